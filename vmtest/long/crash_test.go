package long

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// need skips the test unless long ones are wanted.
func need(t *testing.T) {
	t.Helper()
	if os.Getenv("HEARTH_TEST_LONG") != "1" {
		t.Skip("set HEARTH_TEST_LONG=1 or run make test-long")
	}
	vmtest.Need(t)
}

// TestCrash cuts the power after every write of every operation, all in one
// guest.
func TestCrash(t *testing.T) {
	need(t)
	parts := []string{"TestControl"}
	for _, on := range []string{"ext4", "btrfs", "ext4-1024", "btrfs-1024", "directory", "subvolume"} {
		verbs := []string{"create", "passwd", "rekey", "update"}
		if on != "directory" && on != "subvolume" {
			verbs = append(verbs, "lock", "grow", "grow-active", "shrink")
		}
		if strings.HasPrefix(on, "btrfs") {
			verbs = append(verbs, "shrink-active") // ext4 cannot
		}
		for _, verb := range verbs {
			parts = append(parts, "TestOperations/"+on+"/"+verb)
		}
	}
	var r *room
	for _, part := range parts {
		t.Run(part, func(inner *testing.T) {
			if r == nil {
				r = enter(t, "storage/crashtest") // for those after this one, too
				// A replay makes thousands of devices. Each time udev would look at
				// them, for longer than all the rest takes, and nobody needs what it
				// finds.
				r.g.MustSh("systemctl stop systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd.service")
			}
			r.run(inner, part)
		})
	}
}

// TestKilled kills workers before every step of every verb, all in one guest.
func TestKilled(t *testing.T) {
	need(t)
	var r *room
	for _, kind := range []string{"luks", "directory", "subvolume"} {
		verbs := []string{"create", "activate", "inspect", "update", "passwd", "deactivate", "deactivate-force", "remove"}
		if kind == "luks" {
			verbs = append(verbs, "resize", "lock", "unlock")
		}
		for _, verb := range verbs {
			t.Run(kind+"/"+verb, func(inner *testing.T) {
				if r == nil {
					r = enter(t, "cmd/homework")
				}
				r.run(inner, "TestKilledAtEveryStep/"+kind+"/"+verb+"[ ,].*")
			})
		}
	}
}

// A room is a package whose tests are in a guest.
type room struct {
	g   *vmtest.Guest
	dir string
}

const top = "/opt/hearth"

// enter builds the tests of a package and boots a guest that has them.
func enter(t *testing.T, dir string) *room {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "tests")
	cmd := exec.Command("go", "test", "-c", "-o", bin, "./"+dir)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the tests of %s: %v\n%s", dir, err, text)
	}
	g := vmtest.Boot(t, vmtest.Options{
		Payload: []vmtest.Item{{Host: bin, Guest: top + "/" + dir + "/tests"}},
		Memory:  "3G",
		Disable: []string{"systemd-homed.service", "systemd-homed-activate.service"},
	})
	return &room{g, dir}
}

// run runs a test of the package, at length.
func (r *room) run(t *testing.T, name string) {
	t.Helper()
	const limit = time.Hour
	out := &results{t: t}
	got := r.g.With(t).Do(vmtest.Command{
		Argv:   []string{"./tests", "-test.v", "-test.timeout=55m", "-test.run=^" + strings.ReplaceAll(name, "/", "$/^") + "$"},
		Dir:    top + "/" + r.dir,
		Env:    []string{"HOMED_TEST_STRICT=1", "HEARTH_TEST_LONG=1", "HEARTH_CRASH_SEED=" + os.Getenv("HEARTH_CRASH_SEED"), "HEARTH_CRASH_STATES=" + os.Getenv("HEARTH_CRASH_STATES")},
		Limit:  limit,
		Stdout: out,
	})
	if got.Code != 0 || out.n == 0 {
		t.Errorf("%s of %s: %v\n%s", name, r.dir, got, out.text.String())
	}
}

// results logs each result as it comes: of a run that is cut short they are all
// there is.
type results struct {
	t    *testing.T
	text bytes.Buffer
	seen int // so much of it was looked at
	n    int
}

func (r *results) Write(b []byte) (int, error) {
	r.text.Write(b)
	for {
		line, _, ok := bytes.Cut(r.text.Bytes()[r.seen:], []byte("\n"))
		if !ok {
			return len(b), nil
		}
		r.seen += len(line) + 1
		if _, text, ok := strings.Cut(string(line), "RESULT "); ok {
			r.t.Log("RESULT " + strings.TrimSpace(text))
			r.n++
		}
	}
}
