// Package luks is the storage backend of homes in a LUKS2 container: an image
// file with a partition table, or a partition, then dm-crypt, then a file
// system with the user's directory at its top. It orders the steps of the
// formats and the kernel interfaces below it and undoes them; bytes and ioctls
// are theirs, users and records its callers'.
package luks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/storage"
	"hearth/storage/dm"
	"hearth/storage/gpt"
	"hearth/storage/keyring"
	"hearth/storage/loop"
	"hearth/storage/luks2"
	"hearth/storage/mounts"
)

// overhead is what table and header take of an image: 1 MiB in front, 16 MiB
// up to the payload, 1 MiB behind.
const overhead = 18 << 20

// Backend implements storage.Backend. Its zero value works.
type Backend struct{}

var (
	_ storage.Backend      = Backend{}
	_ storage.HeaderKeeper = Backend{}
	_ storage.Suspender    = Backend{}
	_ storage.Resizer      = Backend{}
)

// deviceName is the name of the mapped device, the same as systemd-homed's: it
// keeps one home from being opened by both.
func deviceName(a storage.Area) string { return "home-" + a.UserName }

// deviceUUID is the UUID of the mapped device over a container.
func deviceUUID(a storage.Area, h *luks2.Header) string {
	return "CRYPT-LUKS2-" + strings.ReplaceAll(h.UUID(), "-", "") + "-" + deviceName(a)
}

// keyName is the volume key's name in the session keyring.
func keyName(a storage.Area) string { return "homework-user-" + a.UserName }

// A container is one opened image and what was found in it.
type container struct {
	image  *os.File
	device bool  // image is a block device
	size   int64 // of image, bytes
	part   gpt.Partition
	window window
	header *luks2.Header
	intent *intent // of a resize that was cut off
}

// A window is the partition within its image, as a device of its own.
type window struct {
	file         *os.File
	offset, size int64
}

func (w window) ReadAt(b []byte, at int64) (int, error) {
	if at < 0 || at >= w.size {
		return 0, io.EOF
	}
	short := int64(len(b)) > w.size-at
	if short {
		b = b[:w.size-at]
	}
	n, err := w.file.ReadAt(b, w.offset+at)
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

func (w window) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || int64(len(b)) > w.size-at {
		return 0, fmt.Errorf("write %d bytes at %d of %d: %w", len(b), at, w.size, io.ErrShortWrite)
	}
	return w.file.WriteAt(b, w.offset+at)
}

func (w window) Sync() error { return w.file.Sync() }

// openImage opens the image and takes its lock, before anything of it is
// believed.
func openImage(a storage.Area, s *storage.Setup) (*container, error) {
	const op = "open image"
	// Not blocking: the path may be a pipe or a drive without a medium.
	fd, err := unix.Open(a.ImagePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOMEDIUM):
		return nil, fault.New(fault.HomeAbsent, op, fmt.Errorf("%s: %w", a.ImagePath, err))
	case errors.Is(err, unix.EISDIR):
		return nil, fault.New(fault.NotAnImage, op, fmt.Errorf("%s: %w", a.ImagePath, err))
	case err != nil:
		return nil, fault.New(fault.Unknown, op, fmt.Errorf("%s: %w", a.ImagePath, err))
	}
	c := &container{image: os.NewFile(uintptr(fd), a.ImagePath)}
	s.Finally("close image", func(context.Context) error { return c.image.Close() })
	info, err := c.image.Stat()
	if err != nil {
		return nil, fault.New(fault.Unknown, op, err)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		c.size = info.Size()
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		c.device = true
		if c.size, err = c.image.Seek(0, io.SeekEnd); err != nil {
			return nil, fault.New(fault.IOError, op, err)
		}
	default:
		return nil, fault.New(fault.NotAnImage, op, fmt.Errorf("%s is neither a file nor a block device", a.ImagePath))
	}
	return c, c.lock(a)
}

// lock takes the advisory lock that keeps a second machine or service away.
// Block devices have none.
func (c *container) lock(a storage.Area) error {
	const op = "lock image"
	if c.device || a.HaveLock || a.HandLock == nil {
		return nil
	}
	switch err := unix.Flock(int(c.image.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return fault.New(fault.HomeInUse, op, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOLCK):
		a.Log.Warn("the file system of the image has no locks", "error", err)
		return nil
	case err != nil:
		return fault.New(fault.Unknown, op, err)
	}
	return nil
}

// deviceNumbers returns major and minor of a block device.
func deviceNumbers(f *os.File) (major, minor uint32, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("look at device: %w", err)
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev), nil
}

// opened is what Private of our setups holds.
type opened struct {
	area   storage.Area
	image  *container // nil at Create
	window window
	header *luks2.Header
	pbkdf  luks2.PBKDF // for new keyslots
}

// WriteHeader replaces the record in the token.
func (Backend) WriteHeader(_ context.Context, s *storage.Setup, record []byte) error {
	o, ok := s.Private.(*opened)
	if !ok {
		return errors.New("the setup has no LUKS2 header")
	}
	return storage.SpaceFault("write token", o.header.SetHomedToken(o.window, s.VolumeKey, record))
}

// mapDevice makes the mapped device over the loop device or partition at
// major:minor, size bytes long. It goes by itself with its last user, which we
// are meanwhile: a worker that is killed leaves nothing that can be read.
func mapDevice(ctx context.Context, a storage.Area, s *storage.Setup, h *luks2.Header, size int64, major, minor uint32) (string, error) {
	name := deviceName(a)
	sectors, params := h.Table(size, major, minor, a.LUKS.Discard || a.LUKS.OfflineDiscard)
	if sectors == 0 {
		return "", fault.New(fault.NotAnImage, "map image", fmt.Errorf("%d bytes end before the payload", size))
	}
	var m *dm.Mapped
	var hold *os.File
	err := keyring.WithLogonKey(h.KeyDescription(), s.VolumeKey, func() (err error) {
		m, hold, err = dm.CreateHeld(ctx, name, deviceUUID(a, h), sectors, "crypt", params, dm.Options{})
		return err
	})
	if err != nil {
		if hold != nil {
			err = errors.Join(err, hold.Close(), dm.Remove(context.WithoutCancel(ctx), name, false))
		}
		return "", fmt.Errorf("map image: %w", err)
	}
	// Undone after the last close, which starts the removal, which takes its
	// time.
	s.Undo("wait for the mapped device to go", func(ctx context.Context) error {
		if err := dm.Remove(ctx, name, false); err != nil {
			return err
		}
		return dm.WaitGone(ctx, name)
	})
	s.Finally("close mapped device", func(context.Context) error { return hold.Close() })
	return m.Node, nil
}

// attach makes a loop device of the window.
func attach(ctx context.Context, s *storage.Setup, w window, sectorSize int) (*loop.Device, error) {
	l, err := loop.Attach(ctx, w.file, loop.Config{Offset: w.offset, SizeLimit: w.size, BlockSize: uint32(sectorSize)})
	if err != nil {
		return nil, err
	}
	// Kept, it belongs to the mapped device, and goes with it.
	s.Finally("let go of the loop device", func(context.Context) error { return l.Relinquish() })
	s.Undo("detach loop device", l.Detach)
	return l, nil
}

// keepKey leaves the volume key with the session, for later operations on the
// active home, once it is one: a worker that is killed on the way there leaves
// no key behind. That it cannot is no reason to refuse the home.
func keepKey(a storage.Area, s *storage.Setup) {
	s.OnKeep(func() {
		if err := keyring.Put(keyName(a), s.VolumeKey); err != nil {
			a.Log.Warn("cannot keep the volume key in the kernel", "error", err)
		}
	})
}

func holdKey(s *storage.Setup, key *secret.Bytes) {
	s.VolumeKey = key
	s.Finally("wipe volume key", func(context.Context) error { key.Close(); return nil })
}

// trim gives free blocks of the open home back to the image.
func trim(a storage.Area, root *os.File, what string) {
	if err := mounts.Trim(root); err != nil {
		a.Log.Info(what, "error", err)
	}
}

// topDirectory opens the user's directory in the file system mounted on Work.
func topDirectory(a storage.Area) (*os.File, error) {
	path := filepath.Join(mounts.Work, a.FullName)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, fault.New(fault.NotAnImage, "open top directory", fmt.Errorf("%s: %w", path, err))
	case err != nil:
		return nil, fault.New(fault.IOError, "open top directory", fmt.Errorf("%s: %w", path, err))
	}
	return os.NewFile(uintptr(fd), path), nil
}
