// Package mounts asks the kernel for mounts: the private work mount of a
// worker, the idmapped mount of a home and its publication, unmounting, and
// what the mount table says; and for the few things that are asked of a
// mounted or holding file system as a whole: sync, trim, the dirty mark. It
// knows no format and leaves the order of steps, and undoing them, to its
// callers.
package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
)

// Work is where a worker mounts what it works on. Every worker has its own
// namespace, so all may use it at once.
const Work = "/run/systemd/user-home-mount"

// ErrUnsupported says that kernel or file system cannot do it here; the
// callers of ShiftUID and Trim go on without.
var ErrUnsupported = errors.New("not supported by the kernel or this file system")

// EnterWorkNamespace prepares the mount namespace that the process was started
// in (CLONE_NEWNS): mounts below /run stay inside, those of the host still
// arrive, and Work exists. All other propagation stays as it is, because a
// home that is mounted below /home must reach the host.
//
// It refuses to touch a namespace that it sees to be that of process 1 or of
// the parent process.
func EnterWorkNamespace() error {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("enter work namespace: %w", err)
	}
	for _, pid := range []int{1, os.Getppid()} {
		// Without CAP_SYS_PTRACE, or from one that is not dumpable, this
		// cannot be read; then we rely on how we were started.
		if other, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid)); err == nil && other == own {
			return fmt.Errorf("enter work namespace: it is that of process %d too", pid)
		}
	}
	point, err := IsMountPoint("/run")
	if err != nil {
		return fmt.Errorf("enter work namespace: %w", err)
	}
	if !point {
		// Containers and build machines. Where / is shared this one bind
		// reaches the host too, once: the next worker finds it there. It
		// shows the same files, and keeps all that follows to ourselves.
		if err := unix.Mount("/run", "/run", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind /run: %w", err)
		}
	}
	if err := unix.Mount("", "/run", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make /run a slave: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(Work), 0o755); err != nil {
		return fmt.Errorf("make work directory: %w", err)
	}
	if err := os.Mkdir(Work, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make work directory: %w", err)
	}
	return nil
}

// Mount mounts source on target, which must exist and is not followed if it is
// a symlink. flags are MS_ bits, data the file system's own options. What is
// mounted below Work is private to the namespace.
//
// Faults: NotSupported if the kernel does not have the file system, IOError if
// it cannot be read.
func Mount(source, target, fstype string, flags uintptr, data string) error {
	op := "mount " + fstype
	at, err := openPath(target)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	defer func() { _ = at.Close() }()
	err = unix.Mount(source, fdPath(at), fstype, flags, data)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		e := fault.Newf(fault.NotSupported, op, "This kernel does not support the file system %s.", fstype)
		e.Err = err
		return e
	case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EIO):
		return fault.New(fault.IOError, op+" from "+source, err)
	default:
		return fmt.Errorf("%s from %s: %w", op, source, err)
	}
}

// BindPrivate makes the directory source appear at target as well, without
// what is mounted below it. Nothing propagates from the new mount nor to it.
func BindPrivate(source, target string) error {
	src, err := openPath(source)
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	defer func() { _ = src.Close() }()
	at, err := openPath(target)
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	defer func() { _ = at.Close() }()
	if err := unix.Mount(fdPath(src), fdPath(at), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", source, target, err)
	}
	// The copy starts as a peer of its source. at still names what lies
	// below, so the path is looked up once more.
	if err := unix.Mount("", target, "", unix.MS_PRIVATE, ""); err != nil {
		_ = unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		return fmt.Errorf("make %s private: %w", target, err)
	}
	return nil
}

// Publish makes the directory root, with the ids and flags of its mount,
// appear at target: the step after which the home is active. A missing target
// is made, 0700; its parents 0755. root stays the caller's, and while it is
// open its own mount cannot be unmounted.
//
// It fails where target's mount is not shared: the home would be visible to
// this process alone.
func Publish(root *os.File, target string) error {
	err := os.MkdirAll(filepath.Dir(target), 0o755)
	if err == nil {
		err = os.Mkdir(target, 0o700)
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.New(fault.NoDiskSpace, "publish", err)
	case err != nil && !errors.Is(err, os.ErrExist):
		return fmt.Errorf("publish: %w", err)
	}
	at, err := openPath(target)
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	defer func() { _ = at.Close() }()
	shared, err := propagates(at)
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if !shared {
		return fault.Newf(fault.NotSupported, "publish "+target, "%s is on a private mount, a home mounted there would not be seen by anyone.", target)
	}
	if err := unix.Mount(fdPath(root), fdPath(at), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("publish on %s: %w", target, err)
	}
	return nil
}

// Unmount unmounts what is mounted last on path, not following a symlink.
// flags may be MNT_FORCE, MNT_DETACH. Faults: HomeBusy while something is open
// or mounted in it.
func Unmount(path string, flags int) error {
	switch err := unix.Unmount(path, flags|unix.UMOUNT_NOFOLLOW); {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return fault.New(fault.HomeBusy, "unmount "+path, err)
	default:
		return fmt.Errorf("unmount %s: %w", path, err)
	}
}

// UnmountTree unmounts everything at and below path, the newest first. Nothing
// mounted there is success. Faults: HomeBusy.
func UnmountTree(path string) error {
	for {
		list, err := table()
		if err != nil {
			return err
		}
		progress, again := false, false
		var last error
		for i := len(list) - 1; i >= 0; i-- {
			p := list[i].point
			if p != path && !strings.HasPrefix(p, path+"/") {
				continue
			}
			again = true
			if err := Unmount(p, 0); err != nil {
				// An entry may be hidden below a newer one, or be gone with
				// one: only a round without any progress is a failure.
				last = err
				continue
			}
			progress = true
		}
		if !again {
			return nil
		}
		if !progress {
			return last
		}
	}
}

// IsMountPoint reports whether something is mounted on path itself, not
// following a symlink. At a path that does not exist nothing is mounted.
func IsMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	err := retry(func() error {
		return unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a mount on %s: %w", path, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	// Kernels before 5.8 do not say; the table does.
	list, err := table()
	if err != nil {
		return false, err
	}
	for _, e := range list {
		if e.point == path {
			return true, nil
		}
	}
	return false, nil
}

// SyncFS writes out everything of the file system that f is on.
func SyncFS(f *os.File) error {
	return onFD(f, "sync file system", func(fd int) error { return unix.Syncfs(fd) })
}

// fitrim is FITRIM of linux/fs.h: _IOWR('X', 121, struct fstrim_range).
const fitrim = 0xC0185879

// Trim tells the storage below f's file system which blocks are free. A file
// system or storage that cannot is ErrUnsupported.
func Trim(f *os.File) error {
	return onFD(f, "trim", func(fd int) error {
		r := trimRange{length: ^uint64(0)}
		err := ioctlTrim(fd, &r)
		switch {
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
		return err
	})
}

// FSType returns the name of the file system f is on, as mount(2) takes it, or
// "" for one that holds no homes.
func FSType(f *os.File) (string, error) {
	var st unix.Statfs_t
	if err := onFD(f, "stat file system", func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return "", err
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4", nil
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs", nil
	case unix.XFS_SUPER_MAGIC:
		return "xfs", nil
	case 0xff534d42, 0xfe534d42: // CIFS_SUPER_MAGIC, SMB2_SUPER_MAGIC
		return "cifs", nil
	}
	return "", nil
}

// openPath pins a directory without following a symlink at its end.
func openPath(path string) (*os.File, error) {
	return open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY)
}

func open(path string, flags int) (*os.File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// onFD calls f with file's descriptor, keeping the file open for the time,
// again after EINTR.
func onFD(file *os.File, op string, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = retry(func() error { return f(int(fd)) }) }); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if inner != nil {
		return fmt.Errorf("%s: %w", op, inner)
	}
	return nil
}

func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
