package manager

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
)

const (
	// reserveName is a file beside the records that keeps room for one of them.
	// A record that the disk has no room for becomes what that file is.
	reserveName = ".reserve"
	reserveSize = 64 << 10
)

func (m *Manager) reservePath() string { return filepath.Join(m.Layout.RecordDir, reserveName) }

// setAside keeps room for a record, or as much of it as there is. Without any
// nothing else is worse than before, so it only tells.
func (m *Manager) setAside() {
	if m.reserved >= reserveSize {
		return
	}
	f, err := os.OpenFile(m.reservePath(), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		m.log.Debug("cannot keep room for a record", "error", err)
		return
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		m.log.Warn("cannot keep room for a record", "file", f.Name(), "error", err)
		return
	}
	m.reserved = 0
	for size := int64(reserveSize); size >= 4096; size /= 2 {
		if err = unix.Fallocate(int(f.Fd()), 0, 0, size); err == nil {
			m.reserved = size
			return
		}
		if !noRoom(err) {
			break // a file system that sets nothing aside
		}
	}
	m.log.Debug("cannot keep room for a record", "error", err)
}

// replaceFromReserve is replaceFile on a full disk. Neither blocks nor names
// are new: the content goes into the file that was set aside, which then takes
// the place of the old one. What that had is set aside next.
func (m *Manager) replaceFromReserve(path string, content []byte, mode os.FileMode) (err error) {
	if int64(len(content)) > m.reserved {
		return fmt.Errorf("%d bytes are more than the %d that were set aside: %w", len(content), m.reserved, unix.ENOSPC)
	}
	f, err := os.OpenFile(m.reservePath(), os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		m.reserved = 0
		return err
	}
	if _, err = f.WriteAt(content, 0); err == nil {
		err = f.Truncate(int64(len(content)))
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	m.reserved = 0 // whatever it has now is found by setting aside again
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(m.reservePath(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	m.setAside()
	return err
}

func noRoom(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// notSaved gives what keeps a record from being saved its kind.
func notSaved(op string, err error) error {
	if noRoom(err) {
		return fault.New(fault.NoDiskSpace, op, err)
	}
	return fault.New(fault.IOError, op, err)
}
