package mounts

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Remount gives the mount on path the MS_ flags and takes others of its kind
// (MS_NOSUID, MS_NODEV, MS_NOEXEC) away; the file system itself and its other
// mounts keep theirs. path is not followed if it is a symlink.
func Remount(path string, flags uintptr) error {
	at, err := openPath(path)
	if err != nil {
		return fmt.Errorf("set mount flags: %w", err)
	}
	defer func() { _ = at.Close() }()
	if err := unix.Mount("", fdPath(at), "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
		return fmt.Errorf("set mount flags of %s: %w", path, err)
	}
	return nil
}
