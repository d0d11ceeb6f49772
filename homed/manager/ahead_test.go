package manager_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/internal/fault"
)

// spares are the processes that wait for an operation, started by this one.
func spares(t *testing.T) (pids []string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		argv, _ := os.ReadFile(dir + "/cmdline")
		stat, _ := os.ReadFile(dir + "/stat") // none of one that is gone by now
		// The name in parentheses may hold anything; the parent is the second word
		// behind it.
		words := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(words) > 1 && words[1] == strconv.Itoa(os.Getpid()) && strings.HasSuffix(string(argv), "\x00spare\x00") {
			pids = append(pids, filepath.Base(dir))
		}
	}
	return pids
}

// waits waits until one waits that is not former.
func waits(t *testing.T, former string) string {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if pids := spares(t); len(pids) == 1 && pids[0] != former {
			return pids[0]
		}
	}
	t.Fatalf("these wait: %q", spares(t))
	return ""
}

// TestWorkerAhead: there is a worker before anybody needs one, each operation
// uses one up, and none stays when the service ends.
func TestWorkerAhead(t *testing.T) {
	t.Parallel()
	d := bootWith(t, t.TempDir(), machineID, nil, func(o *manager.Options) { o.Ahead = true })
	first := waits(t, "")
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	second := waits(t, first)
	d.must(home.Authenticate, "ann", password)
	third := waits(t, second)
	if _, err := d.do(home.Authenticate, "ann", "wrong"); err == nil {
		t.Error("the wrong password is right")
	}
	waits(t, third)
	d.stop()
	if left := spares(t); len(left) > 0 {
		t.Errorf("after the end these wait: %q", left)
	}
}

// TestGlance: what is found out in one glance is true of its beginning, and of
// nothing later.
func TestGlance(t *testing.T) {
	t.Parallel()
	d := boot(t, t.TempDir())
	for _, name := range []string{"ann", "bob"} {
		if err := d.create(newRecord(t, name)); err != nil {
			t.Fatal(err)
		}
	}
	image, elsewhere := d.file("home", "ann.home"), d.file("home", "elsewhere")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	states := func(ctx context.Context) string {
		t.Helper()
		said := ""
		for _, name := range []string{"ann", "bob"} {
			i, err := d.Lookup(ctx, manager.Key{Name: name})
			if err != nil {
				t.Fatal(err)
			}
			said += i.State + " "
		}
		return said
	}
	move(image, elsewhere)
	before := manager.AtAGlance(t.Context())
	if got := states(before); got != "absent inactive " {
		t.Errorf("in a glance: %s", got)
	}
	move(elsewhere, image)
	if got := states(before); got != "absent inactive " {
		t.Errorf("in the same glance: %s", got)
	}
	for _, ctx := range []context.Context{t.Context(), manager.AtAGlance(t.Context())} {
		if got := states(ctx); got != "inactive inactive " {
			t.Errorf("later: %s", got)
		}
	}
	if _, err := d.Lookup(before, manager.Key{Name: "nobody"}); !fault.Is(err, fault.NoSuchHome) {
		t.Errorf("nobody: %v", err)
	}
}

// TestQuietStart: a start tells of the records in one line, not in one for each.
func TestQuietStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := boot(t, dir)
	for _, name := range []string{"ann", "bob", "cora"} {
		if err := d.create(newRecord(t, name)); err != nil {
			t.Fatal(err)
		}
	}
	d.stop()
	d = boot(t, dir)
	log := d.logged.String()
	if strings.Count(log, "\n") > 2 || !strings.Contains(log, `msg="records are loaded" homes=3`) {
		t.Errorf("the start says:\n%s", log)
	}
	for _, name := range []string{"ann", "bob", "cora"} {
		d.state(name, "inactive")
	}
}
