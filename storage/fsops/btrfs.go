package fsops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The requests of linux/btrfs.h that are used here.
const (
	btrfsSnapDestroy = 0x5000940F
	btrfsSubvolGet   = 0x80089419
	btrfsSubvolSet   = 0x4008941A
	btrfsFsInfo      = 0x8400941F
	btrfsDevInfo     = 0xD000941E

	subvolReadOnly = 1 << 1 // BTRFS_SUBVOL_RDONLY
	subvolInode    = 256    // BTRFS_FIRST_FREE_OBJECTID, of every subvolume's top
)

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	return onFD(f, func(fd int) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
			return errno
		}
		return nil
	})
}

// IsSubvolume reports whether dir is the top of a btrfs subvolume.
func IsSubvolume(dir *os.File) (bool, error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	err := onFD(dir, func(fd int) error { return unix.Fstat(fd, &st) })
	if err == nil {
		err = onFD(dir, func(fd int) error { return unix.Fstatfs(fd, &fs) })
	}
	if err != nil {
		return false, fmt.Errorf("look for a subvolume: %w", err)
	}
	return uint32(fs.Type) == unix.BTRFS_SUPER_MAGIC && st.Ino == subvolInode, nil
}

// BlockDevice returns the numbers of the one block device that the file system
// of dir is on; none where it is on several, or on something else.
func BlockDevice(dir *os.File) (major, minor uint32, ok bool) {
	var st unix.Stat_t
	if onFD(dir, func(fd int) error { return unix.Fstat(fd, &st) }) != nil {
		return 0, 0, false
	}
	if major, minor = unix.Major(st.Dev), unix.Minor(st.Dev); major != 0 {
		return major, minor, true
	}
	// btrfs shows a made-up number.
	var info struct { // btrfs_ioctl_fs_info_args
		maxID, devices uint64
		rest           [1008]byte
	}
	if ioctl(dir, btrfsFsInfo, unsafe.Pointer(&info)) != nil || info.devices != 1 {
		return 0, 0, false
	}
	for id := uint64(1); id <= min(info.maxID, 1024); id++ {
		dev := struct { // btrfs_ioctl_dev_info_args
			id   uint64
			rest [3064]byte
			path [1024]byte
		}{id: id}
		if ioctl(dir, btrfsDevInfo, unsafe.Pointer(&dev)) != nil {
			continue // numbers of devices that were taken out
		}
		path, _, _ := bytes.Cut(dev.path[:], []byte{0})
		if unix.Stat(string(path), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			return 0, 0, false
		}
		return unix.Major(st.Rdev), unix.Minor(st.Rdev), true
	}
	return 0, 0, false
}

// RemoveTree deletes name in dir and all below it, btrfs subvolumes included.
// What does not exist is no error. It follows no symlink and enters nothing
// that is mounted inside: such a place stays, with EBUSY.
func RemoveTree(ctx context.Context, dir *os.File, name string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	fail := func(err error) error {
		return &os.PathError{Op: "remove", Path: below(dir, name), Err: err}
	}
	first := onFD(dir, func(fd int) error { return unix.Unlinkat(fd, name, 0) })
	switch {
	case first == nil, errors.Is(first, unix.ENOENT):
		return nil
	case !errors.Is(first, unix.EISDIR):
		return fail(first)
	}
	var at int
	err := onFD(dir, func(fd int) (err error) {
		at, err = unix.Openat2(fd, name, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
		})
		return err
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EXDEV):
		return fail(unix.EBUSY)
	case err != nil:
		return fail(err)
	}
	tree := os.NewFile(uintptr(at), below(dir, name))
	defer func() { _ = tree.Close() }()
	subvolume, err := IsSubvolume(tree)
	if err != nil {
		return fail(err)
	}
	drop := func() error { return unlinkDirectory(dir, name) }
	if subvolume {
		drop = func() error { return destroySubvolume(dir, name) }
		// At once, unless others are nested in it.
		if drop() == nil {
			return nil
		}
		if err := makeWritable(tree); err != nil {
			return fail(err)
		}
	}
	// Whoever still has it open may add to it while we are at it.
	for range 3 {
		if err = empty(ctx, tree); err != nil {
			return err
		}
		if err = drop(); !errors.Is(err, unix.ENOTEMPTY) {
			break
		}
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fail(err)
	}
	return nil
}

func empty(ctx context.Context, tree *os.File) error {
	if _, err := tree.Seek(0, 0); err != nil {
		return err
	}
	return eachName(tree, func(name string) error { return RemoveTree(ctx, tree, name) })
}

func unlinkDirectory(dir *os.File, name string) error {
	return onFD(dir, func(fd int) error { return unix.Unlinkat(fd, name, unix.AT_REMOVEDIR) })
}

func destroySubvolume(dir *os.File, name string) error {
	var args struct { // btrfs_ioctl_vol_args
		fd   int64
		name [4088]byte
	}
	if len(name) >= len(args.name) {
		return unix.ENAMETOOLONG
	}
	copy(args.name[:], name)
	return ioctl(dir, btrfsSnapDestroy, unsafe.Pointer(&args))
}

func makeWritable(subvolume *os.File) error {
	var flags uint64
	if err := ioctl(subvolume, btrfsSubvolGet, unsafe.Pointer(&flags)); err != nil {
		return err
	}
	if flags&subvolReadOnly == 0 {
		return nil
	}
	flags &^= subvolReadOnly
	return ioctl(subvolume, btrfsSubvolSet, unsafe.Pointer(&flags))
}
