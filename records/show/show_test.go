package show_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/records"
	"hearth/records/show"
)

const fixtures = "../../fixtures/systemd-262"

// differs lists the fixtures whose text depends on the second it was taken in.
var countdown = regexp.MustCompile(`(?m)^    Next Try: in .*$`)

// TestTextAsTheRealTool renders every record of the fixtures and compares with
// what homectl 262 printed for it.
func TestTextAsTheRealTool(t *testing.T) {
	mid, err := os.ReadFile(filepath.Join(fixtures, "machine-id"))
	if err != nil {
		t.Fatal(err)
	}
	machine := records.Machine{ID: strings.TrimSpace(string(mid)), Hostname: "vm"}
	dirs, err := filepath.Glob(filepath.Join(fixtures, "records", "*", "inspect.txt"))
	if err != nil || len(dirs) < 30 {
		t.Fatalf("%d fixtures: %v", len(dirs), err)
	}
	for _, path := range dirs {
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			compare(t, machine, filepath.Join(filepath.Dir(path), "inspect-full.json"), path, false)
		})
	}
	t.Run("as nobody", func(t *testing.T) {
		dir := filepath.Join(fixtures, "records", "dirfull")
		compare(t, machine, filepath.Join(dir, "inspect-full-as-nobody.json"), filepath.Join(dir, "inspect-as-nobody.txt"), true)
	})
}

func compare(t *testing.T, machine records.Machine, record, text string, incomplete bool) {
	t.Helper()
	in, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(text)
	if err != nil {
		t.Fatal(err)
	}
	r, err := records.Parse(in, records.ClientReply)
	if err != nil {
		t.Fatal(err)
	}
	got := show.Text(r, show.Options{
		Machine: machine,
		// All were taken within this hour; nothing but the countdown
		// depends on the exact moment.
		Now:        time.Date(2026, 11, 22, 8, 30, 0, 0, time.UTC),
		Zone:       time.UTC,
		Incomplete: incomplete,
		GroupName:  func(gid uint32) (string, error) { return fmt.Sprint(gid), nil },
	})
	a, b := countdown.ReplaceAllString(got, "    Next Try: in X"), countdown.ReplaceAllString(string(want), "    Next Try: in X")
	if a != b {
		t.Errorf("differs from homectl 262:\n%s", diff(a, b))
	}
	if strings.ContainsRune(got, 0x1b) {
		t.Error("colours without being asked for")
	}
}

func diff(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	have := map[string]bool{}
	for _, l := range g {
		have[l] = true
	}
	wants := map[string]bool{}
	var out []string
	for _, l := range w {
		wants[l] = true
		if !have[l] {
			out = append(out, "want "+l)
		}
	}
	for _, l := range g {
		if !wants[l] {
			out = append(out, "got  "+l)
		}
	}
	if out == nil {
		return "the order of lines"
	}
	return strings.Join(out, "\n")
}

// TestNothingReachesTheTerminal takes a record whose texts try to.
func TestNothingReachesTheTerminal(t *testing.T) {
	r, err := records.Parse([]byte(`{"userName":"ann","realName":"\u001b[31mred\u0007","location":"\udbff\udfff[0;1;31m","timeZone":"a\nPassword OK: yes"}`), records.ClientReply)
	if err != nil {
		t.Fatal(err)
	}
	for _, colour := range []bool{false, true} {
		text := show.Text(r, show.Options{Now: time.Now(), Zone: time.UTC, Colour: colour})
		for _, bad := range []string{"\x1b[31m", "\a", "\x1b[0;1;31m[0;1;31m", "\nPassword OK: yes"} {
			if strings.Contains(text, bad) {
				t.Errorf("colour %v: %q comes through:\n%q", colour, bad, text)
			}
		}
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 1023: "1023B", 1 << 20: "1M", 8350298112: "7.7G", 5497558138880: "5T", 1<<64 - 1: "15.9E"} {
		if got := show.Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %s, want %s", n, got, want)
		}
	}
	for _, c := range []struct {
		n, accuracy uint64
		want        string
	}{
		{0, 0, "0"}, {1<<64 - 1, 0, "infinity"}, {15552000000000, 0, "5month 3w 6d 19h 30min"}, {1500, 0, "1.500ms"}, {90500000, 0, "1min 30.500000s"},
		{1250000, 1, "1.250000s"}, {3593000000, 1e6, "59min 53s"}, {1, 0, "1us"}, {30500000, 1e6, "30s"},
	} {
		if got := show.Span(c.n, c.accuracy); got != c.want {
			t.Errorf("Span(%d, %d) = %s, want %s", c.n, c.accuracy, got, c.want)
		}
	}
}
