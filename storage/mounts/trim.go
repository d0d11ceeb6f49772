package mounts

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// trimRange is struct fstrim_range of linux/fs.h, in bytes.
type trimRange struct{ start, length, minimum uint64 }

func ioctlTrim(fd int, r *trimRange) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fitrim, uintptr(unsafe.Pointer(r))); errno != 0 {
		return errno
	}
	return nil
}
