package long

import (
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

// TestCrash cuts the power after every write of every operation, each in a
// guest of its own.
func TestCrash(t *testing.T) {
	need(t)
	parts := []string{"TestControl"}
	for _, fs := range []string{"ext4", "btrfs"} {
		for _, verb := range []string{"create", "passwd", "rekey", "update", "lock", "grow", "grow-active", "shrink", "shrink-active"} {
			if fs == "ext4" && verb == "shrink-active" {
				continue // ext4 cannot
			}
			parts = append(parts, "TestOperations/"+fs+"/"+verb)
		}
	}
	for _, part := range parts {
		t.Run(part, func(t *testing.T) { room(t, "storage/crashtest", part) })
	}
}

// room runs a test of a package in a guest, at length.
func room(t *testing.T, dir, run string) {
	t.Helper()
	const top = "/opt/hearth"
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
	const limit = time.Hour
	r := g.Do(vmtest.Command{
		Argv:  []string{"./tests", "-test.v", "-test.timeout=55m", "-test.run=^" + strings.ReplaceAll(run, "/", "$/^") + "$"},
		Dir:   top + "/" + dir,
		Env:   []string{"HOMED_TEST_STRICT=1", "HEARTH_TEST_LONG=1", "HEARTH_CRASH_SEED=" + os.Getenv("HEARTH_CRASH_SEED"), "HEARTH_CRASH_STATES=" + os.Getenv("HEARTH_CRASH_STATES")},
		Limit: limit,
	})
	results := 0
	for line := range strings.Lines(r.Stdout) {
		if _, text, ok := strings.Cut(line, "RESULT "); ok {
			t.Log("RESULT " + strings.TrimSpace(text))
			results++
		}
	}
	if r.Code != 0 || results == 0 {
		t.Errorf("%s of %s: %v", run, dir, r)
	}
}
