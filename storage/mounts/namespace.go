package mounts

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// NewNamespace takes the calling thread, and all that it starts, into a mount
// namespace of its own, as CLONE_NEWNS does at the start of a process; nothing
// is made private. The thread has to be the process's first, which /proc/self
// speaks of, and to stay the caller's (runtime.LockOSThread in an init function).
//
// Other threads stay where they are: what looks at paths must run on this one.
// To take them along, setns(2) would want CAP_SYS_CHROOT, and threads that share
// no working directory.
func NewNamespace() error {
	const op = "make mount namespace"
	if unix.Gettid() != unix.Getpid() {
		return fmt.Errorf("%s: %w", op, errors.New("this is not the process's first thread"))
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}
