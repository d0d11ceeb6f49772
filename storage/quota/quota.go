// Package quota bounds and reads what a home in a directory takes of the file
// system that it shares: a user's quota on ext4 and xfs, a subvolume's qgroup
// on btrfs. It knows the kernel's interfaces for them, no home and no record.
package quota

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNone says that the file system keeps no quota, or has it switched off.
var ErrNone = errors.New("no quota here")

// ErrNoEntry is an ErrNone of a file system that could count by user, and has
// nothing on this one. The kernel does not tell it from counting switched off.
var ErrNoEntry = fmt.Errorf("%w for the user", ErrNone)

// Figures are what is counted, in bytes.
type Figures struct {
	Used  uint64
	Limit uint64 // 0: none
}

// Limit bounds the home in dir to size bytes: its subvolume on btrfs; on ext4
// and xfs everything there that belongs to uid, in KiB, rounded down. Anything
// else is ErrNone.
func Limit(dir *os.File, uid uint32, size uint64) error {
	kind, err := keeper(dir)
	if err != nil {
		return fmt.Errorf("set quota: %w", err)
	}
	switch kind {
	case byUser:
		return limitUser(dir, uid, size)
	case bySubvolume:
		return limitSubvolume(dir, size)
	}
	return ErrNone
}

// Read returns what is counted of the home in dir, and its limit. It needs no
// rights in dir, but root's. ErrNone where nothing is counted.
func Read(dir *os.File, uid uint32) (Figures, error) {
	kind, err := keeper(dir)
	if err != nil {
		return Figures{}, fmt.Errorf("read quota: %w", err)
	}
	switch kind {
	case byUser:
		return readUser(dir, uid)
	case bySubvolume:
		return readSubvolume(dir)
	}
	return Figures{}, ErrNone
}

type counting int

const (
	byNobody counting = iota
	byUser
	bySubvolume
)

// keeper says by what the file system around dir would count.
func keeper(dir *os.File) (counting, error) {
	var fs unix.Statfs_t
	if err := onFD(dir, func(fd int) error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return byNobody, err
	}
	switch uint32(fs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC:
		return byUser, nil
	case unix.BTRFS_SUPER_MAGIC:
		var st unix.Stat_t
		err := onFD(dir, func(fd int) error { return unix.Fstat(fd, &st) })
		if err == nil && st.Ino == firstObject {
			return bySubvolume, nil
		}
		return byNobody, err
	}
	return byNobody, nil
}

// dqblk is struct if_dqblk of linux/quota.h; limits are in KiB.
type dqblk struct {
	blockHard, blockSoft, space uint64
	inodeHard, inodeSoft, inode uint64
	blockTime, inodeTime        uint64
	valid                       uint32
}

const (
	getUserQuota = 0x800007 << 8 // QCMD(Q_GETQUOTA, USRQUOTA)
	setUserQuota = 0x800008 << 8 // QCMD(Q_SETQUOTA, USRQUOTA)
	blockLimits  = 1             // QIF_BLIMITS
)

func readUser(dir *os.File, uid uint32) (Figures, error) {
	var b dqblk
	if err := quotactl(dir, getUserQuota, uid, &b); err != nil {
		return Figures{}, userError("read quota", err)
	}
	return Figures{Used: b.space, Limit: b.blockHard * 1024}, nil
}

func limitUser(dir *os.File, uid uint32, size uint64) error {
	var now dqblk
	err := quotactl(dir, getUserQuota, uid, &now)
	switch {
	case errors.Is(err, unix.ESRCH):
		now = dqblk{}
	case err != nil:
		return userError("read quota", err)
	}
	if now.valid&blockLimits != 0 && now.blockHard == size/1024 {
		return nil
	}
	want := dqblk{blockHard: size / 1024, blockSoft: size / 1024, valid: blockLimits}
	return userError("set quota", quotactl(dir, setUserQuota, uid, &want))
}

func userError(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("%s: %w (%v)", op, ErrNoEntry, err)
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s: %w (%v)", op, ErrNone, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

func quotactl(dir *os.File, command uint, uid uint32, block *dqblk) error {
	return onFD(dir, func(fd int) error {
		_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd), uintptr(command), uintptr(uid), uintptr(unsafe.Pointer(block)), 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
}

// onFD lends f's descriptor to call, again after EINTR.
func onFD(f *os.File, call func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) {
		for {
			if inner = call(int(fd)); !errors.Is(inner, unix.EINTR) {
				return
			}
		}
	}); err != nil {
		return err
	}
	return inner
}
