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

// hasKeyslot reports whether a directory has the first keyslot of a home that is
// encrypted with fscrypt. Only root sees such attributes.
func hasKeyslot(path string) bool {
	_, err := unix.Getxattr(path, "trusted.fscrypt_slot0", nil)
	return err == nil
}
