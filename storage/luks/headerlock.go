package luks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/storage/disk"
	"hearth/storage/loop"
)

// The locks by which programs that use libcryptsetup take turns at the header
// of a block device: a file for each device, named by its number, locked with
// flock(2), shared to read and exclusive to write ("LUKS2 On-Disk Format
// Specification", 2.7). Whoever has locked the file looks whether it is still
// the one in the directory, and its last user removes it.
const (
	headerLocks    = "/run/cryptsetup"
	headerLockMode = 0o600
	headerLockDir  = 0o700
)

// headerWait bounds how long another program may hold the lock: it derives a
// key meanwhile when it adds a keyslot. Tests shorten it.
var headerWait = 30 * time.Second

// Lock implements luks2.Locker: it takes the locks of every block device that
// shows the window. The image itself is kept by the lock that is on the file.
func (w window) Lock(exclusive bool) (release func(), err error) {
	names, err := w.lockNames()
	if err != nil {
		return nil, fault.New(fault.IOError, "find devices of the image", err)
	}
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	var held []*os.File
	release = func() {
		for _, f := range slices.Backward(held) {
			releaseHeader(f)
		}
	}
	end := time.Now().Add(headerWait)
	for _, name := range names {
		f, err := lockHeader(filepath.Join(headerLocks, name), how, end)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, f)
	}
	return release, nil
}

// lockNames are the names of the locks, in the one order in which everybody
// who takes more than one of them has to.
func (w window) lockNames() ([]string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(w.file.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return []string{lockName(unix.Major(st.Rdev), unix.Minor(st.Rdev))}, nil
	}
	// As the kernel names it, whatever became of the name it was opened by.
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", w.file.Fd()))
	if err != nil {
		return nil, err
	}
	list, err := loop.Attachments(path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range list {
		switch l.Offset {
		case w.offset:
			names = append(names, lockName(l.Major, l.Minor))
		case 0:
			if name := w.partitionOf(l); name != "" {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

func lockName(major, minor uint32) string { return fmt.Sprintf("L_%d:%d", major, minor) }

// partitionOf names the lock of the partition that the kernel shows of a whole
// image; "" if there is none.
func (w window) partitionOf(l loop.Attached) string {
	node, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", l.Number), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer func() { _ = node.Close() }()
	d, err := disk.Look(node)
	if err != nil {
		return ""
	}
	path, err := d.PartitionAt(w.offset, w.size)
	if err != nil {
		return ""
	}
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	return lockName(unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// lockHeader locks the file of one device. Fault: HomeBusy if another program
// holds it up to the end.
func lockHeader(path string, how int, end time.Time) (*os.File, error) {
	const op = "take header lock"
	for wait := time.Millisecond; ; wait = min(wait*2, 50*time.Millisecond) {
		f, err := openLock(path)
		if err != nil {
			return nil, fault.New(fault.IOError, op, err)
		}
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil && stillThere(f, path) {
			return f, nil
		}
		_ = f.Close()
		switch {
		case err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, fault.New(fault.IOError, op, fmt.Errorf("%s: %w", path, err))
		case time.Now().After(end):
			return nil, fault.New(fault.HomeBusy, op, fmt.Errorf("another program holds %s", path))
		case err != nil:
			time.Sleep(wait)
		}
	}
}

func openLock(path string) (*os.File, error) {
	open := func() (*os.File, error) {
		return os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, headerLockMode)
	}
	f, err := open()
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if err := os.Mkdir(filepath.Dir(path), headerLockDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return open()
}

// stillThere: the former holder may have removed the file that we waited for.
func stillThere(f *os.File, path string) bool {
	ours, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Lstat(path)
	return err == nil && os.SameFile(ours, now)
}

// releaseHeader gives a lock back and removes its file unless another waits
// for it.
func releaseHeader(f *os.File) {
	fd := int(f.Fd())
	_ = unix.Flock(fd, unix.LOCK_UN)
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil && stillThere(f, f.Name()) {
		_ = os.Remove(f.Name())
	}
	_ = f.Close()
}
