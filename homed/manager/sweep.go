package manager

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hearth/records"
)

// sweepAge is how long nothing has touched what is swept. A creation that goes
// on touches its area all the time; this covers one by systemd-homed, which
// takes no lock, and the moment in which ours has made the area and not locked
// it yet.
const sweepAge = time.Minute

// leftover is the name of an area that is being created, the same as
// systemd-homed's. (Regular expressions cost a start more than these few lines.)
func leftover(name string) bool {
	name, ok := suffixed(name, 16, 16)
	if area, dir := strings.CutSuffix(name, "dir"); dir {
		name = area
	}
	area, is := strings.CutSuffix(name, ".home")
	return ok && is && len(area) > len(".#homework") && strings.HasPrefix(area, ".#homework")
}

// suffixed takes hexadecimal digits off the end of a name: all of them, at most
// most. ok is whether they were at least least.
func suffixed(name string, least, most int) (rest string, ok bool) {
	n := 0
	for n < most && n < len(name) && strings.IndexByte("0123456789abcdef", name[len(name)-1-n]) >= 0 {
		n++
	}
	return name[:len(name)-n], n >= least
}

// sweep deletes an area in the home root whose creation was cut off by a kill or
// a power cut. The worker that makes one holds a lock on it for as long as it
// lives and then renames or deletes it, so what is left was left if it has such
// a name, was not touched for a while, nobody holds its lock, and no loop device
// shows it. It was never a home: no record names it.
func (m *Manager) sweep(path string) {
	gone, err := m.sweepOne(path)
	switch {
	case err != nil:
		m.log.Warn("cannot delete what an interrupted creation left", "path", path, "error", err)
	case gone:
		m.log.Info("deleted what an interrupted creation left", "path", path)
	}
}

func (m *Manager) sweepOne(path string) (gone bool, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() && !info.IsDir() || m.Now().Sub(info.ModTime()) < sweepAge {
		return false, err
	}
	switch err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, nil
	case err != nil:
		return false, err
	}
	if attached, err := onLoop(path); attached || err != nil {
		return false, err
	}
	// Its maker may have put it in place before we had the lock.
	if now, err := os.Lstat(path); err != nil || !os.SameFile(info, now) {
		return false, nil
	}
	err = os.RemoveAll(path)
	return err == nil, err
}

// onLoop reports whether a loop device shows the file. It asks sysfs, so that
// nothing is opened.
func onLoop(path string) (bool, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return false, err
	}
	for _, f := range files {
		// One that is gone meanwhile shows nothing.
		if text, err := os.ReadFile(f); err == nil && string(text) == path+"\n" {
			return true, nil
		}
	}
	return false, nil
}

// sweepBlobs deletes blob directories whose home is gone, and those that were
// never finished. Records are loaded by then: a directory without one belonged
// to a home that was removed while nobody looked.
func (m *Manager) sweepBlobs() {
	entries, err := os.ReadDir(m.Layout.BlobDir)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			m.log.Warn("cannot look through the blob directories", "error", err)
		}
		return
	}
	for _, e := range entries {
		name := e.Name()
		unfinished := unfinishedBlobs(name)
		if m.homes[name] != nil || !e.IsDir() || !unfinished && !records.PortableName(name) {
			continue
		}
		if _, err := os.Lstat(m.recordPath(name)); !errors.Is(err, os.ErrNotExist) {
			continue // a record that could not be read is a home's all the same
		}
		if info, err := e.Info(); unfinished && (err != nil || m.Now().Sub(info.ModTime()) < sweepAge) {
			continue // a worker of the daemon before us may be at it
		}
		if err := os.RemoveAll(filepath.Join(m.Layout.BlobDir, name)); err != nil {
			m.log.Warn("cannot delete the blob directory of a home that is gone", "HOME_USER", name, "error", err)
		}
	}
}

func unfinishedBlobs(name string) bool {
	name, ok := suffixed(name, 16, 16)
	return ok && len(name) > 2 && strings.HasPrefix(name, ".#")
}
