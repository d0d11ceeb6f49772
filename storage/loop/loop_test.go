package loop_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/testenv"
	"hearth/storage/loop"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func image(t *testing.T, size int64) *os.File {
	t.Helper()
	testenv.Need(t, "root", "loop")
	f, err := os.OpenFile(filepath.Join(testenv.Scratch(t), "img"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func attach(t *testing.T, f *os.File, c loop.Config) *loop.Device {
	t.Helper()
	d, err := loop.Attach(t.Context(), f, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Detach(context.Background()) })
	return d
}

func TestShowsPartOfTheFile(t *testing.T) {
	f := image(t, 16<<20)
	d := attach(t, f, loop.Config{Offset: 1 << 20, SizeLimit: 4 << 20})
	if size, err := d.Size(); err != nil || size != 4<<20 {
		t.Errorf("size %d, %v", size, err)
	}
	want := bytes.Repeat([]byte("hearth! "), 512)
	if _, err := d.File.WriteAt(want, 8192); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 1<<20+8192); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file does not hold what was written to the device: %v", err)
	}
	list, err := loop.Attachments(f.Name())
	if err != nil || len(list) != 1 || list[0].Number != d.Number || list[0].Offset != 1<<20 || list[0].SizeLimit != 4<<20 {
		t.Errorf("attachments %+v, %v", list, err)
	}
	if path, err := loop.Backing(d.Number); err != nil || path != f.Name() {
		t.Errorf("backing %q, %v", path, err)
	}
	if err := d.SetSizeLimit(8 << 20); err != nil {
		t.Fatal(err)
	}
	if size, err := d.Size(); err != nil || size != 8<<20 {
		t.Errorf("size after growing %d, %v", size, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(d.Path, &st); err != nil || unix.Major(st.Rdev) != d.Major || unix.Minor(st.Rdev) != d.Minor {
		t.Errorf("numbers %d:%d, %v", d.Major, d.Minor, err)
	}
	for range 2 {
		if err := d.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if path, err := loop.Backing(d.Number); err != nil || path == f.Name() {
		t.Errorf("still attached to %q, %v", path, err)
	}
}

func TestBlockSizeAndReadOnly(t *testing.T) {
	f := image(t, 8<<20)
	d := attach(t, f, loop.Config{BlockSize: 4096, ReadOnly: true})
	n := 0
	raw, err := d.File.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.BLKSSZGET) }); err != nil {
		t.Fatal(err)
	}
	if err != nil || n != 4096 {
		t.Errorf("block size %d, %v", n, err)
	}
	// Kernels differ in whether they refuse the open or the write.
	if w, err := os.OpenFile(d.Path, os.O_WRONLY, 0); err == nil {
		if _, err := w.WriteAt(make([]byte, 4096), 0); err == nil {
			err = w.Sync()
			t.Errorf("a read-only device took a write (sync: %v)", err)
		}
		_ = w.Close()
	}
}

// TestClearsItself is what a killed worker relies on.
func TestClearsItself(t *testing.T) {
	f := image(t, 8<<20)
	d := attach(t, f, loop.Config{BufferedIO: true})
	if d.DirectIO() {
		t.Error("direct IO although not wanted")
	}
	user, err := os.Open(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Relinquish(); err != nil {
		t.Fatal(err)
	}
	if path, err := loop.Backing(d.Number); err != nil || path != f.Name() {
		t.Errorf("a device in use went away: %q, %v", path, err)
	}
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	if path, err := loop.Backing(d.Number); err != nil || path == f.Name() {
		t.Errorf("still attached to %q, %v", path, err)
	}
}

// TestDetachWaitsForTheLastUser: what follows a detach may rely on the file.
func TestDetachWaitsForTheLastUser(t *testing.T) {
	f := image(t, 8<<20)
	d := attach(t, f, loop.Config{})
	user, err := os.Open(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = user.Close() })
	if err := d.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if path, err := loop.Backing(d.Number); err != nil || path == f.Name() {
		t.Errorf("still attached to %q, %v", path, err)
	}
}

func TestRefusesAFileThatEndsEarly(t *testing.T) {
	f := image(t, 4<<20)
	if d, err := loop.Attach(t.Context(), f, loop.Config{Offset: 1 << 20, SizeLimit: 4 << 20}); err == nil {
		_ = d.Detach(t.Context())
		t.Error("attached a partition that reaches beyond the file")
	}
}

func TestManyAtOnce(t *testing.T) {
	f := image(t, 1<<20)
	errs := make(chan error)
	const n = 8
	for range n {
		go func() {
			d, err := loop.Attach(t.Context(), f, loop.Config{})
			if err == nil {
				err = d.Detach(t.Context())
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
