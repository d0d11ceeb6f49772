package mounts

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// dirtyMark is the extended attribute, of one byte '1', on an image that may
// have changed since it was last closed in order. systemd-homed uses the same.
const dirtyMark = "user.home-dirty"

// SetDirty marks the image before its first change and syncs the mark. set is
// false if the mark was there already, so that whoever set it clears it, or if
// the file system has no user attributes.
//
// The mark is in the image's inode: its directory needs no sync.
func SetDirty(image *os.File) (set bool, err error) {
	err = onFD(image, "mark image dirty", func(fd int) error {
		return unix.Fsetxattr(fd, dirtyMark, []byte("1"), unix.XATTR_CREATE)
	})
	switch {
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err != nil:
		return false, err
	}
	if err := image.Sync(); err != nil {
		return true, fmt.Errorf("mark image dirty: %w", err)
	}
	return true, nil
}

// ClearDirty takes the mark away. What was written is synced first: a clean
// mark must never be older than the data. No mark is success.
func ClearDirty(image *os.File) error {
	if err := image.Sync(); err != nil {
		return fmt.Errorf("mark image clean: %w", err)
	}
	err := onFD(image, "mark image clean", func(fd int) error { return unix.Fremovexattr(fd, dirtyMark) })
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := image.Sync(); err != nil {
		return fmt.Errorf("mark image clean: %w", err)
	}
	return nil
}

// IsDirty reports whether the image at path, symlinks followed, carries the
// mark. A file system without user attributes has no dirty images.
func IsDirty(path string) (bool, error) {
	var buf [2]byte
	var n int
	err := retry(func() (err error) {
		n, err = unix.Getxattr(path, dirtyMark, buf[:])
		return err
	})
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ERANGE):
		return false, nil // ERANGE: longer than the mark, so another one's
	case err != nil:
		return false, fmt.Errorf("read dirty mark of %s: %w", path, err)
	}
	return n == 1 && buf[0] == '1', nil
}
