package vmtest

import (
	"bytes"
	"cmp"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRooms runs in a guest the tests of the rooms that need device-mapper,
// which the usual build machine lacks. There nothing may be skipped. Each test
// shows as TestRooms/ROOM/NAME.
func TestRooms(t *testing.T) {
	Need(t)
	t.Parallel()
	const top = "/opt/hearth"
	tree, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	rooms := roomsThatNeed(t, tree, "dm-crypt", "dm")
	if len(rooms) == 0 {
		t.Fatal("no room needs device-mapper")
	}
	bin := t.TempDir()
	items := []Item{
		{Host: filepath.Join(tree, "fixtures"), Guest: top + "/fixtures"},
		{Host: filepath.Join(tree, "go.mod"), Guest: top + "/go.mod"}, // by which tests find the top
	}
	for _, room := range rooms {
		out := filepath.Join(bin, strings.ReplaceAll(room, "/", "-"))
		// Not -trimpath: the file names that a test asks the runtime for are then
		// those of this machine, so that the guest's tree can have the same ones.
		cmd := exec.Command("go", "test", "-c", "-o", out, "./"+room)
		cmd.Dir = tree
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the tests of %s: %v\n%s", room, err, text)
		}
		items = append(items, Item{Host: out, Guest: top + "/" + room + "/tests"})
		if data := filepath.Join(tree, room, "testdata"); exists(data) {
			items = append(items, Item{Host: data, Guest: top + "/" + room + "/testdata"})
		}
	}
	// Two guests: one would keep only one processor busy.
	guests := make(chan *Guest, 2)
	for range cap(guests) {
		g := Boot(t, Options{Payload: items, Memory: "2G", Disable: []string{"systemd-homed.service", "systemd-homed-activate.service"}})
		// Where the sources are on this machine, the guest has its tree too.
		g.MustSh("[ -e " + tree + " ] || { mkdir -p " + filepath.Dir(tree) + "; ln -s " + top + " " + tree + "; }")
		guests <- g
	}
	// What takes longest goes first.
	slices.SortStableFunc(rooms, func(a, b string) int { return cmp.Compare(weight(b), weight(a)) })
	for _, room := range rooms {
		t.Run(room, func(t *testing.T) {
			t.Parallel()
			g := <-guests
			defer func() { guests <- g }()
			r := g.With(t).Do(Command{
				Argv:  []string{"./tests", "-test.v", "-test.timeout=8m"},
				Dir:   top + "/" + room,
				Env:   []string{"HOMED_TEST_STRICT=1"},
				Limit: 9 * time.Minute,
			})
			for line := range strings.Lines(r.Stdout) {
				if _, result, ok := strings.Cut(line, "RESULT "); ok {
					t.Log("RESULT " + strings.TrimSpace(result))
				}
			}
			tests := results(r.Stdout)
			for _, c := range tests {
				t.Run(c.name, func(t *testing.T) {
					switch c.result {
					case "FAIL":
						t.Error(c.output)
					case "SKIP":
						t.Skip(lastLine(c.output))
					}
				})
			}
			if r.Code != 0 && !slices.ContainsFunc(tests, func(c guestTest) bool { return c.result == "FAIL" }) {
				t.Errorf("the tests of %s ended early: %v", room, r)
			}
		})
	}
}

// weight orders rooms by how long their tests take.
func weight(room string) int {
	return map[string]int{"storage/luks": 3, "storage/crashtest": 2, "cmd/homework": 1}[room]
}

// roomsThatNeed lists the packages with a test that names one of the needs to
// testenv.
func roomsThatNeed(t *testing.T, tree string, needs ...string) []string {
	t.Helper()
	var rooms []string
	err := filepath.WalkDir(tree, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(file, "_test.go") {
			return err
		}
		room, err := filepath.Rel(tree, filepath.Dir(file))
		if err != nil || strings.HasPrefix(room, "vmtest") || strings.HasPrefix(room, "internal/") {
			return err
		}
		text, err := os.ReadFile(file)
		for line := range bytes.Lines(text) {
			for _, n := range needs {
				if bytes.Contains(line, []byte(`"`+n+`"`)) && (bytes.Contains(line, []byte("testenv.Need(")) || bytes.Contains(line, []byte("Needs:"))) {
					rooms = append(rooms, room)
				}
			}
		}
		return err
	})
	if err != nil {
		t.Fatalf("list the tests: %v", err)
	}
	slices.Sort(rooms)
	return slices.Compact(rooms)
}

type guestTest struct{ name, result, output string }

var testEnd = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\S+)`)

// results reads the output of a test binary, -test.v, by top-level tests.
func results(output string) []guestTest {
	var list []guestTest
	var since []string // what was said since a test began
	for line := range strings.Lines(output) {
		if m := testEnd.FindStringSubmatch(line); m != nil {
			list = append(list, guestTest{m[2], m[1], strings.Join(since, "") + line})
			since = nil
			continue
		}
		if strings.HasPrefix(line, "    --- ") && len(list) > 0 && len(since) == 0 || strings.HasPrefix(line, "=== ") {
			continue
		}
		since = append(since, line)
	}
	return list
}

func lastLine(s string) string {
	var last string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "---") {
			last = line
		}
	}
	if _, reason, ok := strings.Cut(last, ".go:"); ok {
		if _, reason, ok = strings.Cut(reason, ": "); ok {
			return reason
		}
	}
	return last
}
