package manager

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// retakeLock locks the image of a home that is in use and whose lock went with
// a former daemon: without it another machine or service could open the image
// a second time. It does not wait. That it cannot is no reason to do without
// the home.
func (m *Manager) retakeLock(e *entry) {
	if e.Storage != "luks" || e.lock != nil {
		return
	}
	f, err := lockImage(e.ImagePath)
	if err != nil {
		m.logOf(e).Warn("cannot lock the image of the active home again", "error", err)
		return
	}
	e.lock = f
}

// lockImage returns nil for what is no file: block devices are not locked.
func lockImage(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return f, nil
		}
		err = fmt.Errorf("lock %s: %w", path, err)
	}
	return nil, errors.Join(err, f.Close())
}
