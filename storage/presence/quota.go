package presence

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"hearth/storage/quota"
)

// ErrNoEntry says that nothing is counted of this user where users could be.
var ErrNoEntry = quota.ErrNoEntry

// Quota returns what is counted of a home that is a directory, in bytes: what
// it takes and its limit, 0 for none. ok is false where nothing is counted; the
// error is ErrNoEntry where only nothing is counted of this user. It
// opens the area for a moment, not the home directory: that might be on its
// way to be unmounted.
func Quota(imagePath string, uid uint32) (used, limit uint64, ok bool, err error) {
	fd, err := unix.Open(imagePath, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, false, fmt.Errorf("look at quota of %s: %w", imagePath, err)
	}
	dir := os.NewFile(uintptr(fd), imagePath)
	defer func() { _ = dir.Close() }()
	f, err := quota.Read(dir, uid)
	if errors.Is(err, quota.ErrNone) && !errors.Is(err, ErrNoEntry) {
		return 0, 0, false, nil
	}
	return f.Used, f.Limit, err == nil, err
}
