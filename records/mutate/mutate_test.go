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
	"sync"
	"testing"
	"time"
)

// A mutant replaces one piece of text, which the file has exactly once.
type mutant struct{ file, old, new string }

var all = flag.Bool("mutate", false, "run the tests of records on every mutant and print killed/total; takes minutes")

// dir is the package that is broken.
const dir = ".."

// TestMutants checks that each mutant still applies, and with -mutate that each
// is killed.
func TestMutants(t *testing.T) {
	work := t.TempDir()
	for _, m := range mutants {
		if _, err := m.apply(); err != nil {
			t.Errorf("%v: %v", m, err)
		}
	}
	if !*all || t.Failed() {
		return
	}
	if survived, err := try(work, "whole", nil); err != nil || !survived {
		t.Fatalf("the tests fail without any mutant (%v)", err)
	}
	var (
		lock   sync.Mutex
		group  sync.WaitGroup
		killed int
		slots  = make(chan struct{}, 2)
	)
	for i, m := range mutants {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			survived, err := try(work, fmt.Sprint(i), &m)
			lock.Lock()
			defer lock.Unlock()
			switch {
			case err != nil:
				t.Errorf("broken   %v: %v", m, err)
			case survived:
				t.Errorf("SURVIVED %v", m)
			default:
				killed++
				t.Logf("killed   %v", m)
			}
		})
	}
	group.Wait()
	fmt.Printf("%d/%d\n", killed, len(mutants))
}

func (m mutant) String() string { return fmt.Sprintf("%s: %q -> %q", m.file, m.old, m.new) }

// apply returns the file's text with the mutant in it.
func (m mutant) apply() ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, m.file))
	if err != nil {
		return nil, err
	}
	if n := bytes.Count(text, []byte(m.old)); n != 1 {
		return nil, fmt.Errorf("its text stands there %d times, not once", n)
	}
	return bytes.Replace(text, []byte(m.old), []byte(m.new), 1), nil
}

// try builds and runs the tests with one mutant, or with none. A mutant that
// does not compile or no longer applies is an error: it proves nothing.
func try(work, id string, m *mutant) (survived bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	binary := filepath.Join(work, id+".test")
	args := []string{"test", "-c", "-vet=off", "-ldflags=-s -w", "-o", binary}
	if m != nil {
		text, err := m.apply()
		if err != nil {
			return false, err
		}
		path, err := filepath.Abs(filepath.Join(dir, m.file))
		if err != nil {
			return false, err
		}
		broken, overlay := filepath.Join(work, id+".go"), filepath.Join(work, id+".json")
		if err := os.WriteFile(broken, text, 0o600); err != nil {
			return false, err
		}
		list, err := json.Marshal(map[string]map[string]string{"Replace": {path: broken}})
		if err != nil {
			return false, err
		}
		if err := os.WriteFile(overlay, list, 0o600); err != nil {
			return false, err
		}
		args = append(args, "-overlay", overlay)
	}
	build := exec.CommandContext(ctx, "go", append(args, ".")...)
	build.Dir = dir
	if said, err := build.CombinedOutput(); err != nil {
		return false, fmt.Errorf("does not compile: %s", said)
	}
	defer os.Remove(binary)
	// Most mutants fall without the tests that hash passwords, which is slow.
	for _, which := range []string{"-test.skip=" + slow, "-test.run=" + slow} {
		test := exec.CommandContext(ctx, binary, "-test.failfast", "-test.timeout=2m", which)
		test.Dir = dir
		if err := test.Run(); err != nil {
			return false, ctx.Err()
		}
	}
	return true, nil
}

const slow = "Password|Authenticate|Passphrases|CheckHash|Hashed"
