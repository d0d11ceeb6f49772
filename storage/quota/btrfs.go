package quota

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The requests of linux/btrfs.h, and the keys of linux/btrfs_tree.h, that are
// used here.
const (
	inoLookup    = 0xD0009412
	treeSearch   = 0xD0009411
	quotaCtl     = 0xC0109428
	qgroupCreate = 0x4010942A
	qgroupLimit  = 0x8030942B
	rescanWait   = 0x942E

	firstObject   = 256 // inode of every subvolume's top
	quotaTree     = 8
	keyInfo       = 242 // u64 generation, referenced, ...
	keyLimit      = 244 // u64 flags, most referenced, ...
	maxReferenced = 1
)

// tries bounds how often we wait for a rescan that keeps a qgroup busy.
const tries = 10

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	return onFD(f, func(fd int) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
			return errno
		}
		return nil
	})
}

// Subvolume returns the number of the subvolume that dir is in, which is also
// that of its qgroup.
func Subvolume(dir *os.File) (uint64, error) {
	var args struct { // btrfs_ioctl_ino_lookup_args
		tree, object uint64
		name         [4080]byte
	}
	args.object = firstObject
	if err := ioctl(dir, inoLookup, unsafe.Pointer(&args)); err != nil {
		return 0, fmt.Errorf("ask for the subvolume's number: %w", err)
	}
	return args.tree, nil
}

// limitSubvolume bounds what the subvolume that dir is the top of refers to.
// Quota is switched on for the whole file system, and stays.
func limitSubvolume(dir *os.File, limit uint64) error {
	id, err := Subvolume(dir)
	if err != nil {
		return err
	}
	enable := struct{ cmd, status uint64 }{cmd: 1} // BTRFS_QUOTA_CTL_ENABLE
	// On where it is on already is an error; what matters is the limit.
	_ = ioctl(dir, quotaCtl, unsafe.Pointer(&enable))
	args := struct { // btrfs_ioctl_qgroup_limit_args
		qgroup, flags, maxReferenced, maxExclusive, rsvReferenced, rsvExclusive uint64
	}{qgroup: id, flags: maxReferenced, maxReferenced: limit}
	if err := patiently(dir, func() error { return ioctl(dir, qgroupLimit, unsafe.Pointer(&args)) }); err != nil {
		return fmt.Errorf("limit subvolume: %w", err)
	}
	return nil
}

// DropGroup deletes the qgroup of a subvolume that was removed; dir is anywhere
// on its file system. Without quota there is none, which is success. The kernel
// keeps it busy until the subvolume's blocks are gone.
func DropGroup(dir *os.File, subvolume uint64) error {
	args := struct{ create, qgroup uint64 }{qgroup: subvolume}
	err := patiently(dir, func() error { return ioctl(dir, qgroupCreate, unsafe.Pointer(&args)) })
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("drop qgroup: %w", err)
	}
	return nil
}

func patiently(dir *os.File, f func() error) (err error) {
	for range tries {
		if err = f(); !errors.Is(err, unix.EBUSY) {
			return err
		}
		if werr := ioctl(dir, rescanWait, nil); werr != nil {
			return errors.Join(err, werr)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// search is btrfs_ioctl_search_args.
type search struct {
	tree                                                                       uint64
	minObject, maxObject, minOffset, maxOffset, minTransaction, maxTransaction uint64
	minType, maxType, items, _                                                 uint32
	_                                                                          [4]uint64
	found                                                                      [4096 - 104]byte
}

// readSubvolume finds the items of the subvolume's qgroup in the tree of quotas.
func readSubvolume(dir *os.File) (Figures, error) {
	const op = "read qgroup"
	id, err := Subvolume(dir)
	if err != nil {
		return Figures{}, err
	}
	args := search{
		tree: quotaTree, minOffset: id, maxOffset: id, maxTransaction: 1<<64 - 1,
		minType: keyInfo, maxType: keyLimit, items: 64,
	}
	err = ioctl(dir, treeSearch, unsafe.Pointer(&args))
	if errors.Is(err, unix.ENOENT) {
		return Figures{}, fmt.Errorf("%s: %w", op, ErrNone)
	}
	if err != nil {
		return Figures{}, fmt.Errorf("%s: %w", op, err)
	}
	return groupOf(args.found[:], args.items, id)
}

// groupOf takes a qgroup's figures out of a search's result: items of 32 bytes
// (u64 transaction, object, offset; u32 type, length) and what they hold.
func groupOf(b []byte, items uint32, id uint64) (f Figures, err error) {
	le := binary.LittleEndian
	found := false
	for ; items > 0 && len(b) >= 32; items-- {
		offset, kind, n := le.Uint64(b[16:]), le.Uint32(b[24:]), le.Uint32(b[28:])
		b = b[32:]
		if uint64(n) > uint64(len(b)) {
			break
		}
		item := b[:n]
		b = b[n:]
		switch {
		case offset != id || n < 16:
		case kind == keyInfo:
			f.Used, found = le.Uint64(item[8:]), true
		case kind == keyLimit && le.Uint64(item)&maxReferenced != 0:
			f.Limit = le.Uint64(item[8:])
		}
	}
	if !found {
		return Figures{}, fmt.Errorf("read qgroup %d: %w", id, ErrNone)
	}
	return f, nil
}
