// Command mutate breaks package records in one place at a time and counts how
// many of the breaks the package's tests notice. It knows the places where a
// slip would hand out rights or lose data; what the right behaviour is, it
// leaves to the tests. It changes no file: the compiler gets the broken one as
// an overlay.
//
//	go run ./records/mutate [PART OF A NAME]
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// A mutant replaces one piece of text, which the file has exactly once.
type mutant struct{ file, old, new string }

func main() {
	part := strings.Join(os.Args[1:], " ")
	if err := run(part); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(part string) error {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "hearth/records").Output()
	if err != nil {
		return fmt.Errorf("find package records: %w", err)
	}
	dir := strings.TrimSpace(string(out))
	work, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if survived, err := try(dir, work, "whole", nil); err != nil || !survived {
		return fmt.Errorf("the tests fail without any mutant (%v)", err)
	}
	var (
		lock          sync.Mutex
		group         sync.WaitGroup
		total, killed int
		failed        error
		slots         = make(chan struct{}, 2)
	)
	for i, m := range mutants {
		name := m.String()
		if !strings.Contains(name, part) {
			continue
		}
		total++
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			survived, err := try(dir, work, fmt.Sprint(i), &m)
			lock.Lock()
			defer lock.Unlock()
			switch {
			case err != nil:
				failed = fmt.Errorf("%s: %w", name, err)
				fmt.Println("broken  ", failed)
			case survived:
				fmt.Println("SURVIVED", name)
			default:
				killed++
				fmt.Println("killed  ", name)
			}
		})
	}
	group.Wait()
	fmt.Printf("%d/%d\n", killed, total)
	if failed == nil && killed < total {
		failed = fmt.Errorf("the tests do not notice %d of %d mutants", total-killed, total)
	}
	return failed
}

func (m mutant) String() string { return fmt.Sprintf("%s: %q -> %q", m.file, m.old, m.new) }

// try builds and runs the tests with one mutant, or with none. A mutant that
// does not compile or no longer applies is an error: it proves nothing.
func try(dir, work, id string, m *mutant) (survived bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	binary := filepath.Join(work, id+".test")
	args := []string{"test", "-c", "-vet=off", "-ldflags=-s -w", "-o", binary}
	if m != nil {
		path := filepath.Join(dir, m.file)
		text, err := os.ReadFile(path)
		if err != nil {
			return false, err
		}
		if n := bytes.Count(text, []byte(m.old)); n != 1 {
			return false, fmt.Errorf("its text stands there %d times, not once", n)
		}
		broken, overlay := filepath.Join(work, id+".go"), filepath.Join(work, id+".json")
		if err := os.WriteFile(broken, bytes.Replace(text, []byte(m.old), []byte(m.new), 1), 0o600); err != nil {
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
