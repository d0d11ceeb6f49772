package presence

import (
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"hearth/storage/mounts"
)

// LookQuickly is Look for who is asked all day long. On file systems of this
// machine, which answer at once, it asks the kernel past Go's scheduler: that
// takes a call for one that may wait, and where calls are slow wakes a thread for
// each, which costs more than the look. All else is looked at by Look.
func LookQuickly(a Area) (State, error) { return look(a, true) }

// isMounted is mounts.IsMountPoint.
func isMounted(path string, quick bool) (bool, error) {
	var st unix.Statx_t
	if quick && local(filepath.Dir(path)) {
		switch err := statQuickly(path, &st); {
		case errors.Is(err, unix.ENOENT):
			return false, nil
		case err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0:
			return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
		}
	}
	return mounts.IsMountPoint(path)
}

// typeOf returns what is at a path, a symlink followed, as the type bits of its
// mode.
func typeOf(path string, quick bool) (uint32, error) {
	var x unix.Statx_t
	if quick && local(filepath.Dir(path)) {
		err := statQuickly(path, &x)
		if absent(err) {
			return 0, err
		}
		// What a link leads to, or a mount that has yet to be made, may be elsewhere.
		if kind := uint32(x.Mode) & unix.S_IFMT; err == nil && kind != unix.S_IFLNK && x.Attributes&unix.STATX_ATTR_AUTOMOUNT == 0 {
			return kind, nil
		}
	}
	var st unix.Stat_t
	err := stat(path, &st)
	return st.Mode & unix.S_IFMT, err
}

// statQuickly asks what the kernel knows: should a server be mounted at the path
// itself, it is not asked. A disk may still have to be read, for which the thread
// is kept as systemd-homed's only one would be.
func statQuickly(path string, st *unix.Statx_t) error {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	for {
		at := unix.AT_FDCWD
		_, _, errn := unix.RawSyscall6(unix.SYS_STATX, uintptr(at), uintptr(unsafe.Pointer(name)),
			unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, uintptr(unsafe.Pointer(st)), 0)
		switch errn {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errn
		}
	}
}

// locality is whether a directory is on a file system of this machine, as it was
// seen a few looks ago.
type locality struct {
	local bool
	looks atomic.Int32
}

const (
	lookAgain  = 64
	maxLocales = 1024
)

var (
	locales   sync.Map // of locality, by directory
	localesIn atomic.Int32
)

func local(dir string) bool {
	if v, ok := locales.Load(dir); ok {
		if l := v.(*locality); l.looks.Add(1) < lookAgain {
			return l.local
		}
	}
	l := &locality{local: isLocal(dir)}
	if _, there := locales.Swap(dir, l); !there && localesIn.Add(1) > maxLocales {
		locales.Clear()
		localesIn.Store(0)
	}
	return l.local
}

// isLocal asks for the directory, or, where that is not there, for what it would
// be in.
func isLocal(dir string) bool {
	for {
		var st unix.Statfs_t
		switch err := unix.Statfs(dir, &st); {
		case errors.Is(err, unix.EINTR):
			continue
		case absent(err) && dir != filepath.Dir(dir):
			dir = filepath.Dir(dir)
			continue
		case err != nil:
			return false
		}
		return ofMachine(uint32(st.Type))
	}
}

// ofMachine says of a file system's type whether it is on a disk of this machine,
// or in its memory.
func ofMachine(magic uint32) bool {
	switch magic {
	case unix.EXT4_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}
