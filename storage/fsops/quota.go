package fsops

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoQuota says that the file system keeps none, or has it switched off.
var ErrNoQuota = errors.New("no quota here")

// Limit bounds the home in dir to size bytes: its subvolume on btrfs; on ext4
// and xfs everything there that belongs to uid, in KiB, rounded down. Anything
// else is ErrNoQuota.
func Limit(dir *os.File, uid uint32, size uint64) error {
	var fs unix.Statfs_t
	if err := onFD(dir, func(fd int) error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return fmt.Errorf("set quota: %w", err)
	}
	switch uint32(fs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC:
		return limitUser(dir, uid, size)
	case unix.BTRFS_SUPER_MAGIC:
		subvolume, err := IsSubvolume(dir)
		if err != nil {
			return err
		}
		if subvolume {
			return limitSubvolume(dir, size)
		}
	}
	return ErrNoQuota
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

func limitUser(dir *os.File, uid uint32, size uint64) error {
	var now dqblk
	err := quotactl(dir, getUserQuota, uid, &now)
	switch {
	case errors.Is(err, unix.ESRCH):
		now = dqblk{}
	case err != nil:
		return quotaError("read quota", err)
	}
	if now.valid&blockLimits != 0 && now.blockHard == size/1024 {
		return nil
	}
	want := dqblk{blockHard: size / 1024, blockSoft: size / 1024, valid: blockLimits}
	return quotaError("set quota", quotactl(dir, setUserQuota, uid, &want))
}

func quotaError(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s: %w (%v)", op, ErrNoQuota, err)
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
