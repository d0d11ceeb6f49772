package manager_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/homed/home"
	"hearth/internal/fault"
	"hearth/internal/testenv"
)

// TestNoRoomForRecords: with the disk of the records full, or read-only, what
// has to be saved is refused and nothing is begun; who is known gets in.
func TestNoRoomForRecords(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	disk := filepath.Join(dir, "records")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("scarce", disk, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	d := boot(t, dir)
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(disk, "filler")
	for what, s := range map[string]struct {
		kind       fault.Kind
		begin, end func() error
	}{
		"full": {fault.NoDiskSpace, func() error {
			err := os.WriteFile(filler, make([]byte, 1<<20), 0o600)
			if err == nil {
				t.Error("it is not full")
			}
			return nil
		}, func() error { return os.Remove(filler) }},
		"read-only": {fault.IOError,
			func() error { return unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") },
			func() error { return unix.Mount("", disk, "", unix.MS_REMOUNT, "") }},
	} {
		if err := s.begin(); err != nil {
			t.Fatal(err)
		}
		if err := d.create(newRecord(t, "bob")); !fault.Is(err, s.kind) {
			t.Errorf("%s: create: %v", what, err)
		}
		if exists(d.file("home", "bob.home")) {
			t.Errorf("%s: a home was begun", what)
		}
		d.fails(fault.NoSuchHome, home.Activate, "bob", password)
		d.must(home.Activate, "ann", password)
		d.must(home.Deactivate, "ann")
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		if err := d.create(newRecord(t, "bob")); err != nil {
			t.Errorf("%s, then not: %v", what, err)
		}
		d.must(home.Remove, "bob")
	}
	list, err := filepath.Glob(filepath.Join(disk, ".#*"))
	if err != nil || len(list) > 0 {
		t.Errorf("left behind: %q, %v", list, err)
	}
}
