package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/storage/mounts"
)

// MountFlags are the MS_ flags that the record asks for.
func (a Area) MountFlags() uintptr {
	var flags uintptr
	for _, f := range []struct {
		set bool
		bit uintptr
	}{{a.NoSuid, unix.MS_NOSUID}, {a.NoDevices, unix.MS_NODEV}, {a.NoExec, unix.MS_NOEXEC}} {
		if f.set {
			flags |= f.bit
		}
	}
	return flags
}

// Adopt makes the directory of a home that is active already the setup's. What
// is open belongs to someone else and stays.
func Adopt(a Area, s *Setup) error {
	const op = "open active home"
	root, err := openDirectory(a.HomeDirectory)
	if err != nil {
		return fault.New(fault.IOError, op, err)
	}
	s.Enter(root)
	if s.Found.FileSystemType, err = mounts.FSType(s.Root); err != nil {
		return fault.New(fault.IOError, op, err)
	}
	return nil
}

// Enter makes root the setup's, which closes whatever Root is by then.
func (s *Setup) Enter(root *os.File) {
	s.Root = root
	s.Finally("close home", func(context.Context) error { return s.Root.Close() })
}

// HoldUnfinished locks a new area under its temporary name until it is closed: by
// that the daemon tells it from one whose maker was killed. A file system
// without locks has no daemon sweep it either.
func HoldUnfinished(a Area, area *os.File) {
	if err := unix.Flock(int(area.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		a.Log.Info("the unfinished home area is not locked", "error", err)
	}
}

// PutInPlace renames a finished area to its own path, durably. On error it has
// its temporary name again. FileExists: something is there by now.
func PutInPlace(temp, path string) error { return putInPlace(temp, path, SyncDirectory) }

func putInPlace(temp, path string, sync func(string) error) error {
	const op = "put home area in place"
	err := renameTo(temp, path)
	switch {
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTEMPTY):
		return fault.New(fault.FileExists, op, fmt.Errorf("%s: %w", path, err))
	case err != nil:
		return SpaceFault(op, err)
	}
	if err := sync(filepath.Dir(path)); err != nil {
		// An error says that nothing was made, so nothing may stay. What a
		// power cut brings back is a whole area, which is found as any other.
		return errors.Join(SpaceFault(op, err), renameTo(path, temp))
	}
	return nil
}

// renameTo renames, and replaces nothing.
func renameTo(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return renameUnlessThere(from, to)
	}
	return err
}

// renameUnlessThere is for file systems that cannot promise to replace
// nothing. A link can; a directory at least replaces nothing but an empty one.
func renameUnlessThere(temp, path string) error {
	switch err := unix.Link(temp, path); {
	case err == nil:
		return unix.Unlink(temp)
	case errors.Is(err, unix.EPERM):
		return unix.Rename(temp, path)
	default:
		return err
	}
}

// SyncDirectory makes what was done to the names in a directory durable.
func SyncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// SpaceFault gives a failed write its kind, where it has none yet; nil stays
// nil.
func SpaceFault(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.New(fault.NoDiskSpace, op, err)
	case fault.KindOf(err) != fault.Unknown:
		return fmt.Errorf("%s: %w", op, err)
	case errors.Is(err, unix.EIO):
		return fault.New(fault.IOError, op, err)
	}
	return fault.New(fault.Unknown, op, err)
}
