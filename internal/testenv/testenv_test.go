package testenv_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// probe records what Need does; only Skipf, Fatalf and Helper are reached.
type probe struct {
	testing.TB
	said string
}

func (p *probe) Helper()                   {}
func (p *probe) Skipf(f string, _ ...any)  { p.said = "skip"; panic(p) }
func (p *probe) Fatalf(f string, _ ...any) { p.said = "fatal"; panic(p) }

func need(needs ...string) string {
	p := &probe{}
	func() {
		defer func() { _ = recover() }()
		testenv.Need(p, needs...)
	}()
	return p.said
}

func TestNeed(t *testing.T) {
	const missing = "no-such-program-anywhere"
	for _, c := range []struct {
		strict string
		list   []string
		needs  []string
		want   string
	}{
		{"", nil, []string{"sh"}, ""},
		{"", nil, []string{"sh", missing}, "skip"},
		{"1", nil, []string{"sh", missing}, "fatal"},
		{"1", []string{"root,sh"}, []string{missing}, "skip"},
		{"1", []string{"root, " + missing}, []string{missing}, "fatal"},
		{"0", nil, []string{missing}, "skip"},
	} {
		t.Setenv(testenv.Strict, c.strict)
		// Setenv restores at the end of the test; what it may not do is
		// leave the variable set to "" here, which means an empty list.
		t.Setenv(testenv.Needs, strings.Join(c.list, ""))
		if c.list == nil {
			if err := os.Unsetenv(testenv.Needs); err != nil {
				t.Fatal(err)
			}
		}
		if got := need(c.needs...); got != c.want {
			t.Errorf("strict %q, list %q, needs %q: %q, want %q", c.strict, c.list, c.needs, got, c.want)
		}
	}
}

func TestScratchIsSharedAndWatched(t *testing.T) {
	testenv.Need(t, "root")
	dir := testenv.Scratch(t)
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", sub, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if got := testenv.MountsBelow(dir); len(got) != 1 || got[0] != sub {
		t.Errorf("mounts below scratch: %q", got)
	}
	if err := unix.Unmount(sub, 0); err != nil {
		t.Fatal(err)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); f[4] == dir && !strings.HasPrefix(f[6], "shared:") {
			t.Errorf("scratch is not shared: %s", line)
		}
	}
}
