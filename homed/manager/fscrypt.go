package manager

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// policyArg is struct fscrypt_get_policy_ex_arg with room for any policy.
type policyArg struct {
	size   uint64
	policy [24]byte
}

// getPolicy succeeds if a directory is encrypted with fscrypt.
func getPolicy(d *os.File) error {
	arg := policyArg{size: 24}
	rc, err := d.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	if err := rc.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.FS_IOC_GET_ENCRYPTION_POLICY_EX, uintptr(unsafe.Pointer(&arg)))
	}); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}
