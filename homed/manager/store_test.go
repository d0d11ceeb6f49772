package manager_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"hearth/homed/manager"
	"hearth/internal/steps"
	"hearth/internal/testenv"
	"hearth/records"
)

// savesTo has the test program save a record there, followed by the test.
const savesTo = "HEARTH_TEST_SAVES_TO"

// fullDisk has that program save it as on a full disk.
const fullDisk = "HEARTH_TEST_FULL_DISK"

const formerRecord, newRecordText = `{"userName":"ann","v":1}`, `{"userName":"ann","v":2}`

func saveAndExit(path string) {
	save := manager.ReplaceFile
	if os.Getenv(fullDisk) != "" {
		save = manager.ReplaceFileFromReserve(filepath.Dir(path))
	}
	err := steps.Ask()
	if err == nil {
		err = save(path, []byte(newRecordText), 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestSaveRecord: a record comes into its place as a power cut demands, and
// killed before any step of it the service leaves the former record or the new
// one.
func TestSaveRecord(t *testing.T) {
	testenv.Need(t, "steps")
	t.Run("as usual", func(t *testing.T) { saveRecord(t) })
	t.Run("on a full disk", func(t *testing.T) { saveRecord(t, fullDisk+"=1") })
}

func saveRecord(t *testing.T, env ...string) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ann.identity")
	save := func(before func(steps.Step) bool) error {
		t.Helper()
		if err := os.WriteFile(path, []byte(formerRecord), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(append(os.Environ(), savesTo+"="+path), env...)
		cmd.Stderr = t.Output()
		return steps.Run(cmd, before)
	}
	holds := func() string {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	n := 0
	o := &steps.Order{Of: func(p string) bool { return p == path }}
	if err := save(func(s steps.Step) bool { n++; return o.Step(s) }); err != nil {
		t.Fatal(err)
	}
	o.End()
	if len(o.Faults) != 0 || len(o.Renames) != 1 || holds() != newRecordText {
		t.Errorf("renamed %q, holds %s; not in order: %q", o.Renames, holds(), o.Faults)
	}
	seen := map[string]int{}
	for last := 1; last <= n; last++ {
		i := 0
		if err := save(func(steps.Step) bool { i++; return i != last }); err == nil {
			t.Errorf("step %d of %d: it was not killed", last, n)
		}
		seen[holds()]++
	}
	if seen[formerRecord] == 0 || seen[newRecordText] == 0 || len(seen) != 2 {
		t.Errorf("killed before each of %d steps it leaves %v", n, seen)
	}
	t.Logf("%d steps: %v", n, seen)
}

// TestLoadSweepsRecords: what a kill left of a record goes at the next start.
func TestLoadSweepsRecords(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	d.stop()
	files := map[string]bool{".#ann.identity123456": false, ".#ann.identity0123456789abcdef": false, ".#notes": true, "ann.identity.bak": true}
	for name := range files {
		if err := os.WriteFile(d.file("records", name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files["ann.identity"] = true
	d = boot(t, d.dir)
	for name, stays := range files {
		if exists(d.file("records", name)) != stays {
			t.Errorf("%s: stays %v", name, !stays)
		}
	}
}

// TestReadRegular: a file is read to its end, however its size was when that was
// asked for, and no further than a record can be long.
func TestReadRegular(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, n := range []int{0, 1, 4096, 1 << 20} {
		want := bytes.Repeat([]byte("x"), n)
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := manager.ReadRegular(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %d, %v", n, len(got), err)
		}
	}
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Fatal(err)
	}
	if got, err := manager.ReadRegular(path); err != nil || len(got) != records.MaxFile+1 {
		t.Errorf("a file without an end: %d, %v", len(got), err)
	}
	// Of files of the kernel's making the size is not known before.
	want, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := manager.ReadRegular("/proc/self/limits"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := manager.ReadRegular(path + ".none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
