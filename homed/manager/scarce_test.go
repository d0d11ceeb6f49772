package manager_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/internal/testenv"
	"hearth/records"
)

// TestNoRoomForRecords: with the disk of the records full, or read-only, no
// home is made, and who is known gets in. On a full one they go on changing
// their record and their password too: room for that was set aside.
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
		var want fault.Kind
		if what == "read-only" {
			want = s.kind
		}
		before := d.savedView("ann").RealName
		for i := range 5 {
			name := fmt.Sprintf("Ann, %s, %d", what, i)
			r, err := newRecord(t, "ann", "realName", name).Edit().Set("lastChangeUSec", uint64(time.Now().UnixMicro())).Record()
			if err != nil {
				t.Fatal(err)
			}
			kind(t, what+": update", d.update(r, manager.Offline), want)
			kind(t, what+": change password", d.change("ann", "another one", password), want)
			if want != "" {
				name = before
			}
			if now := d.savedView("ann").RealName; now != name {
				t.Errorf("%s: the record on the disk says %q, want %q", what, now, name)
			}
			if now := d.record("ann").View(records.Machine{ID: machineID}).RealName; now != name {
				t.Errorf("%s: the name is %q, want %q", what, now, name)
			}
		}
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		if err := d.create(newRecord(t, "bob")); err != nil {
			t.Errorf("%s, then not: %v", what, err)
		}
		d.must(home.Remove, "bob")
		if info, err := os.Stat(filepath.Join(disk, ".reserve")); err != nil || info.Sys().(*syscall.Stat_t).Blocks*512 < manager.ReserveSize {
			t.Errorf("%s, then not: nothing is set aside: %v", what, err)
		}
	}
	list, err := filepath.Glob(filepath.Join(disk, ".#*"))
	if err != nil || len(list) > 0 {
		t.Errorf("left behind: %q, %v", list, err)
	}
}

// TestReserveIsForRecordsThatAreThere: a new record finds no room on a full
// disk, and one that outgrows what was set aside leaves the old one.
func TestReserveIsForRecordsThatAreThere(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	if err := unix.Mount("scarce", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	save := manager.ReplaceFileFromReserve(dir)
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 1<<20), 0o600); err == nil {
		t.Fatal("it is not full")
	}
	path := filepath.Join(dir, "ann.identity")
	if err := save(path, make([]byte, manager.ReserveSize+1), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more than was set aside: %v", err)
	}
	if exists(path) {
		t.Error("there is a record now")
	}
	for _, n := range []int{10000, 10000, 5000, 8000, 8192} {
		if err := save(path, make([]byte, n), 0o600); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() != int64(n) || info.Mode() != 0o600 {
			t.Errorf("%d bytes: %v, %v", n, info, err)
		}
	}
}

// TestNoRoomForReferences: where the file that keeps a reference cannot be
// made, a login works and its end is noticed all the same.
func TestNoRoomForReferences(t *testing.T) {
	testenv.Need(t, "root")
	dir := testenv.Scratch(t)
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("scarce", run, "tmpfs", 0, "nr_inodes=1"); err != nil {
		t.Fatal(err)
	}
	full := true
	t.Cleanup(func() {
		if full {
			_ = unix.Unmount(run, unix.MNT_DETACH)
		}
	})
	d := boot(t, dir)
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	first := d.must(home.Acquire, "ann", password).Reference
	if list, err := os.ReadDir(run); err != nil || len(list) > 0 {
		t.Fatalf("there is room: %v, %v", list, err)
	}
	second := d.must(home.Ref, "ann").Reference
	d.must(home.Acquire, "ann", password).Reference.Close()
	first.Close()
	time.Sleep(300 * time.Millisecond) // the grace of a short reference, and more
	d.fails(fault.HomeBusy, home.Release, "ann")
	d.state("ann", "active")
	second.Close()
	d.eventually("ann", "inactive")
	if err := unix.Unmount(run, 0); err != nil {
		t.Fatal(err)
	}
	full = false
	third := d.must(home.Acquire, "ann", password).Reference
	defer third.Close()
	if !exists(filepath.Join(run, "ann.dont-suspend")) {
		t.Error("with room the reference has no file")
	}
	d.must(home.Deactivate, "ann")
}

// TestLookUpsDoNotWaitForTheDisk: while a record is on its way to a disk that
// takes its time, look-ups are answered, with what is on the disk.
func TestLookUpsDoNotWaitForTheDisk(t *testing.T) {
	testenv.Need(t, "root", "mkfs.ext4")
	dir := testenv.Scratch(t)
	disk := filepath.Join(dir, "records")
	image := filepath.Join(dir, "records.img")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{{"truncate", "-s", "16M", image}, {"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, disk}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", c, err, out)
		}
	}
	mounted, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	freeze := func(request uint) {
		t.Helper()
		if err := unix.IoctlSetInt(int(mounted.Fd()), request, 0); err != nil {
			t.Fatal(err)
		}
	}
	const fifreeze, fithaw = 0xc0045877, 0xc0045878 // linux/fs.h
	d := boot(t, dir)
	t.Cleanup(func() {
		_ = unix.IoctlSetInt(int(mounted.Fd()), fithaw, 0)
		d.stop()
		if err := errors.Join(mounted.Close(), unix.Unmount(disk, 0)); err != nil {
			t.Error(err)
		}
	})
	if err := d.create(newRecord(t, "ann", "realName", "Ann")); err != nil {
		t.Fatal(err)
	}
	r, err := newRecord(t, "ann", "realName", "Ann Slow").Edit().Set("lastChangeUSec", uint64(time.Now().UnixMicro())).Record()
	if err != nil {
		t.Fatal(err)
	}
	freeze(fifreeze)
	updated := make(chan error, 1)
	go func() { updated <- d.update(r, manager.Offline) }()
	time.Sleep(100 * time.Millisecond) // it is on its way; if not yet, the look-ups below are no worse a test
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		i, err := d.Lookup(ctx, manager.Key{Name: "ann"})
		if err != nil || i.RealName != "Ann" {
			t.Errorf("look-up: %q, %v", i.RealName, err)
		}
		if list, err := d.List(ctx); err != nil || len(list) != 1 {
			t.Errorf("list: %v, %v", list, err)
		}
		cancel()
	}
	select {
	case err := <-updated:
		t.Errorf("the update did not wait for the disk: %v", err)
	default:
	}
	freeze(fithaw)
	if err := <-updated; err != nil {
		t.Error(err)
	}
	if i, err := d.Lookup(t.Context(), manager.Key{Name: "ann"}); err != nil || i.RealName != "Ann Slow" {
		t.Errorf("afterwards: %q, %v", i.RealName, err)
	}
}
