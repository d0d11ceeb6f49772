package mutate

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// A mutant replaces one piece of text, which the file has exactly once.
type mutant struct{ file, old, new string }

var all = flag.Bool("mutate", false, "run the tests on every mutant and print killed/total; takes minutes")
var only = flag.String("only", "", "with -mutate: only the mutants whose description matches this")

// top is the top of the tree.
const top = "../.."

// A fate is what became of the tests that ran on a mutant.
type fate int

const (
	survived fate = iota // They pass.
	killed               // They fail.
	stopped              // They ran out of time, which a busy machine does too.
)

// tally counts what became of the mutants.
type tally struct {
	t                      *testing.T
	lock                   sync.Mutex
	group                  sync.WaitGroup
	slots                  chan struct{}
	killed, stopped, total int
}

// try runs f in its turn.
func (c *tally) try(what string, f func() (fate, error)) {
	c.total++
	c.group.Go(func() {
		c.slots <- struct{}{}
		defer func() { <-c.slots }()
		end, err := f()
		c.lock.Lock()
		defer c.lock.Unlock()
		switch {
		case err != nil:
			fmt.Println("broken  ", what, err)
			c.t.Errorf("broken   %s: %v", what, err)
		case end == survived:
			fmt.Println("SURVIVED", what)
			c.t.Errorf("SURVIVED %s", what)
		case end == stopped:
			c.stopped++
			fmt.Println("stopped ", what)
		default:
			c.killed++
			c.t.Logf("killed   %s", what)
		}
	})
}

// TestMutants checks that each mutant still applies, and with -mutate that each
// is killed.
func TestMutants(t *testing.T) {
	work := t.TempDir()
	for _, m := range mutants {
		if _, err := m.apply(); err != nil {
			t.Errorf("%v: %v", m, err)
		}
	}
	var boards []*switchboard
	used := map[string]bool{}
	for _, r := range rooms {
		s := wire(t, r)
		boards = append(boards, s)
		t.Logf("%s: %d switches", r.path, len(s.list))
		for _, b := range s.list {
			used[b.what] = true
		}
	}
	for what := range sameAs {
		if !used[what] {
			t.Errorf("there is no %q any more", what)
		}
	}
	if !*all || t.Failed() {
		return
	}
	count := &tally{t: t, slots: make(chan struct{}, runtime.NumCPU())}
	for i, r := range rooms {
		wanted := func(b broken) bool { return sameAs[b.what] == "" && regexp.MustCompile(*only).MatchString(b.what) }
		if !slices.ContainsFunc(boards[i].list, wanted) {
			continue
		}
		binary := filepath.Join(work, fmt.Sprint("room", i))
		if err := build(r.path, binary, overlayOf(t, r, boards[i], work)); err != nil {
			t.Fatalf("%s with its switches: %v", r.path, err)
		}
		if end, err := run(r.path, binary, 0); err != nil || end != survived {
			t.Fatalf("the tests of %s fail without any mutant (%v)", r.path, err)
		}
		for _, b := range boards[i].list {
			if wanted(b) {
				count.try(fmt.Sprintf("%s (line %d)", b.what, b.line), func() (fate, error) { return run(r.path, binary, b.number) })
			}
		}
	}
	for i, m := range mutants {
		if !regexp.MustCompile(*only).MatchString(m.String()) {
			continue
		}
		count.try(m.String(), func() (fate, error) { return m.try(work, fmt.Sprint("mutant", i)) })
	}
	count.group.Wait()
	fmt.Printf("%d/%d killed, and %d stopped by time\n", count.killed, count.total, count.stopped)
}

func (m mutant) String() string { return fmt.Sprintf("%s: %q -> %q", m.file, m.old, m.new) }

// apply returns the file's text with the mutant in it.
func (m mutant) apply() ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(top, m.file))
	if err != nil {
		return nil, err
	}
	if n := bytes.Count(text, []byte(m.old)); n != 1 {
		return nil, fmt.Errorf("its text stands there %d times, not once", n)
	}
	return bytes.Replace(text, []byte(m.old), []byte(m.new), 1), nil
}

// try builds and runs the tests with one mutant. One that does not compile or
// no longer applies is an error: it proves nothing.
func (m mutant) try(work, id string) (fate, error) {
	text, err := m.apply()
	if err != nil {
		return 0, err
	}
	broken := filepath.Join(work, id+".go")
	if err := os.WriteFile(broken, text, 0o600); err != nil {
		return 0, err
	}
	binary, room := filepath.Join(work, id+".test"), filepath.Dir(m.file)
	if err := build(room, binary, map[string]string{filepath.Join(top, m.file): broken}); err != nil {
		return 0, err
	}
	defer os.Remove(binary)
	return run(room, binary, 0)
}

// overlayOf writes a room's files with their switches.
func overlayOf(t *testing.T, r room, s *switchboard, work string) map[string]string {
	t.Helper()
	overlay := map[string]string{}
	put := func(path string, text []byte) {
		to := filepath.Join(work, fmt.Sprintf("%d-%s", len(overlay), filepath.Base(r.path)+filepath.Base(path)))
		if err := os.WriteFile(to, text, 0o600); err != nil {
			t.Fatal(err)
		}
		overlay[path] = to
	}
	for path := range s.changes {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		put(path, s.apply(path, text))
	}
	text := "package " + filepath.Base(r.path) + "\n" + panel
	if r.path == "records" {
		text += panelOfRecords
	}
	put(filepath.Join(top, r.path, "switches.go"), []byte(text))
	return overlay
}

// build builds the tests of a room with files replaced.
func build(room, binary string, replace map[string]string) error {
	whole := map[string]string{}
	for path, by := range replace {
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		whole[abs] = by
	}
	list, err := json.Marshal(map[string]map[string]string{"Replace": whole})
	if err != nil {
		return err
	}
	if err := os.WriteFile(binary+".json", list, 0o600); err != nil {
		return err
	}
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-o", binary, "-overlay", binary+".json", ".")
	cmd.Dir = filepath.Join(top, room)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("does not compile: %s", said)
	}
	return nil
}

// run runs the tests of a room with a switch thrown, 0 for none. Those that
// need root are left out: they are few, slow, and may hang on a mutant.
func run(room, binary string, thrown int) (fate, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	// Most mutants fall without the tests that hash passwords, which is slow.
	for _, which := range []string{"-test.skip=" + slow, "-test.run=" + slow} {
		test := exec.CommandContext(ctx, binary, "-test.failfast", "-test.timeout=4m", which)
		test.Dir = filepath.Join(top, room)
		test.Env = append(os.Environ(), fmt.Sprint("MUTANT=", thrown), "HEARTH_TEST_ROOT=0")
		said, err := test.CombinedOutput()
		switch {
		case ctx.Err() != nil || bytes.Contains(said, []byte("panic: test timed out")):
			return stopped, nil
		case err != nil:
			return killed, nil
		}
	}
	return survived, nil
}

const slow = "Password|Authenticate|Passphrases|CheckHash|Hashed|Crypt"
