package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/storage/fsops"
	"hearth/storage/mounts"
	"hearth/storage/quota"
)

// The areas that are a directory on the host's own file system differ in how
// that directory is made and removed. What they share is here.

// CreateTree makes an area that is a directory. It has a temporary name beside
// its own until Commit. build makes it in parent, with nothing in it, and says
// who owns on the disk what is to be the user's.
func CreateTree(ctx context.Context, a Area, build func(parent *os.File, name string) (owner uint32, err error)) (_ *Setup, err error) {
	const op = "make home area"
	s := &Setup{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(ctx))
		}
	}()
	above := filepath.Dir(a.ImagePath)
	if err := os.MkdirAll(above, 0o755); err != nil {
		return nil, SpaceFault(op, err)
	}
	parent, err := os.Open(above)
	if err != nil {
		return nil, SpaceFault(op, err)
	}
	s.Finally("close folder", func(context.Context) error { return parent.Close() })
	name, err := TempName(a.Rand, "homework", a.FullName+".homedir")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	owner, err := build(parent, name)
	if err != nil {
		return nil, SpaceFault(op, err)
	}
	temp := filepath.Join(above, name)
	s.Undo("remove temporary directory", func(ctx context.Context) error { return fsops.RemoveTree(ctx, parent, name) })
	held, err := openDirectory(temp)
	if err != nil {
		return nil, SpaceFault(op, err)
	}
	s.Finally("let go of temporary directory", func(context.Context) error { return held.Close() })
	HoldUnfinished(a, held)
	s.OnCommit(func(context.Context) error { return PutInPlace(temp, a.ImagePath) })

	if err := mountTree(a, s, temp); err != nil {
		return nil, err
	}
	if err := errors.Join(s.Root.Chmod(0o700), s.Root.Chown(int(owner), int(owner))); err != nil {
		return nil, SpaceFault(op, err)
	}
	if a.DiskSize != nil {
		// A home without a limit is better than none.
		if err := quota.Limit(s.Root, a.UID, *a.DiskSize); errors.Is(err, quota.ErrNone) {
			a.Log.Info("the file system keeps no quota, the size is not limited", "error", err)
		} else if err != nil {
			a.Log.Warn("the size is not limited", "error", err)
		}
	}
	return s, nil
}

// OpenTree opens an area that is a directory, or adopts it. It needs no
// credentials: those were checked against the record, and there is nothing
// here to decrypt.
func OpenTree(ctx context.Context, a Area) (_ *Setup, err error) {
	s := &Setup{Private: treeOwner(a.UID)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(ctx))
		}
	}()
	path, err := treeOf(a)
	if err != nil {
		return nil, err
	}
	if path == "" {
		return nil, fault.New(fault.HomeAbsent, "open home area", fmt.Errorf("%s: %w", a.ImagePath, unix.ENOENT))
	}
	if a.Active {
		return s, Adopt(a, s)
	}
	if err := mountTree(a, s, path); err != nil {
		return nil, err
	}
	if s.Found.FileSystemType, err = mounts.FSType(s.Root); err != nil {
		return nil, fault.New(fault.IOError, "open home area", err)
	}
	return s, nil
}

// treeOwner is the uid by which a quota may count an area. It is what the
// setups of OpenTree have as Private.
type treeOwner uint32

// ResizeTree bounds what the user of an open area that is a directory can
// write. It may be less than is there by now: then nothing more fits until
// something goes. Fault: NotSupported where the file system keeps no quota, in
// the words that clients know.
func ResizeTree(s *Setup, want Size) (Size, error) {
	const op = "resize"
	owner, ok := s.Private.(treeOwner)
	if !ok {
		return Size{}, errors.New("the setup is not that of an open directory")
	}
	switch err := quota.Limit(s.Root, uint32(owner), want.Bytes); {
	case errors.Is(err, quota.ErrNone):
		e := fault.Newf(fault.NotSupported, op, "Operation not supported on file system")
		e.Err = err
		return Size{}, e
	case err != nil:
		return Size{}, SpaceFault(op, err)
	}
	return want, nil
}

// mountTree shows the directory at path on the work directory, with the flags
// of the record, and opens it there.
func mountTree(a Area, s *Setup, path string) error {
	const op = "mount home area"
	if err := mounts.BindPrivate(path, mounts.Work); err != nil {
		return fault.New(fault.IOError, op, err)
	}
	// Where the home was published it has a mount of its own by then.
	s.Finally("unmount work directory", func(context.Context) error { return mounts.UnmountTree(mounts.Work) })
	if err := mounts.Remount(mounts.Work, a.MountFlags()); err != nil {
		return fault.New(fault.IOError, op, err)
	}
	root, err := openDirectory(mounts.Work)
	if err != nil {
		return fault.New(fault.IOError, op, err)
	}
	s.Enter(root)
	return nil
}

// DeactivateTree is for areas that are nothing but their mount, which the flow
// has taken away.
func DeactivateTree(a Area) error {
	if !a.Active {
		return fault.New(fault.HomeNotActive, "deactivate", errors.New("the home directory is no mount point"))
	}
	return nil
}

// RemoveTree deletes an area that is a directory, and the symlink that leads
// there if the image path is one. HomeBusy: something is mounted in it.
func RemoveTree(ctx context.Context, a Area) error {
	const op = "remove home area"
	path, err := treeOf(a)
	if err != nil || path == "" {
		return err
	}
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return SpaceFault(op, err)
	}
	defer func() { _ = parent.Close() }()
	a.Progress("remove", 0, 0)
	switch err := fsops.RemoveTree(ctx, parent, filepath.Base(path)); {
	case errors.Is(err, unix.EBUSY):
		return fault.New(fault.HomeBusy, op, err)
	case ctx.Err() != nil:
		return fault.New(fault.Timeout, op, errors.Join(err, ctx.Err()))
	case err != nil:
		return SpaceFault(op, err)
	}
	err = parent.Sync()
	if info, lerr := os.Lstat(a.ImagePath); lerr == nil && info.Mode()&os.ModeSymlink != 0 {
		err = errors.Join(err, unix.Unlink(a.ImagePath), SyncDirectory(filepath.Dir(a.ImagePath)))
	}
	return SpaceFault(op, err)
}

// treeOf returns where the area's directory really is, "" if it is absent.
// NotAnImage: something else is there.
func treeOf(a Area) (string, error) {
	const op = "look for home area"
	path, err := filepath.EvalSymlinks(a.ImagePath)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", SpaceFault(op, err)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", nil
	case err != nil:
		return "", SpaceFault(op, err)
	case !info.IsDir():
		return "", fault.New(fault.NotAnImage, op, fmt.Errorf("%s: %w", path, unix.ENOTDIR))
	case path == "/":
		return "", fault.Newf(fault.InvalidArgs, op, "The root directory is no home area.")
	}
	return path, nil
}
