package luks

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/trace"
	"hearth/storage"
	"hearth/storage/dm"
	"hearth/storage/keyring"
	"hearth/storage/mounts"
)

// Suspended implements storage.Suspender. It asks the device mapper alone.
func (Backend) Suspended(a storage.Area) (bool, error) {
	m, err := dm.Open(deviceName(a))
	if fault.Is(err, fault.HomeNotActive) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for suspended home: %w", err)
	}
	st, err := m.Status()
	return st.Suspended, err
}

// Suspend implements storage.Suspender. Three places of the kernel have the
// key: the session keyring, the table, the cipher. The first is emptied while
// an error still costs nothing but a later question for the password; the
// message wipes the other two. What the file system has cached of the home's
// files stays in memory.
func (Backend) Suspend(ctx context.Context, a storage.Area) error {
	m, err := dm.Open(deviceName(a))
	if err != nil {
		return err
	}
	st, err := m.Status()
	if err != nil {
		return err
	}
	if !st.Suspended {
		// Suspending does this too, but cannot say what went wrong with it.
		if err := syncHome(a); err != nil {
			return err
		}
	}
	if err := keyring.Drop(keyName(a)); err != nil {
		return fmt.Errorf("forget the volume key: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return fault.New(fault.Timeout, "lock", err)
	}
	if !st.Suspended {
		if err := m.Suspend(); err != nil {
			return fault.New(fault.IOError, "lock", err)
		}
	}
	if err := m.Message("key wipe"); err != nil {
		err = fault.New(fault.IOError, "wipe the volume key", err)
		if st.Suspended {
			return err
		}
		return errors.Join(err, m.Resume())
	}
	return nil
}

// syncHome writes out what the home's users have written.
func syncHome(a storage.Area) error {
	const op = "sync home"
	fd, err := unix.Open(a.HomeDirectory, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fault.New(fault.IOError, op, fmt.Errorf("open %s: %w", a.HomeDirectory, err))
	}
	root := os.NewFile(uintptr(fd), a.HomeDirectory)
	return storage.SpaceFault(op, errors.Join(mounts.SyncFS(root), root.Close()))
}

// Resume implements storage.Suspender. The header is read through the image, as
// at activation; of the home itself nothing is touched before access goes on.
func (Backend) Resume(ctx context.Context, a storage.Area, c *storage.Credentials) error {
	m, err := dm.Open(deviceName(a))
	if err != nil {
		return err
	}
	st, err := m.Status()
	if err != nil {
		return err
	}
	s := &storage.Setup{}
	defer func() {
		// Descriptors and a copy of the key, which go with this process.
		if err := s.Close(ctx); err != nil {
			a.Log.Warn("leftovers after unlocking", "error", err)
		}
	}()
	img, err := openImage(a, s)
	if err != nil {
		return err
	}
	trace.From(ctx).Step("header")
	if err := img.read(ctx, a, s); err != nil {
		return err
	}
	if want := deviceUUID(a, img.header); st.UUID != want {
		// The key of another container would turn the home's blocks into noise.
		return wrongMedium("mapped device", st.UUID, want)
	}
	trace.From(ctx).Step("unlock")
	if err := img.unlock(ctx, a, s, c); err != nil {
		return err
	}
	if !img.device && a.HandLock != nil && !a.HaveLock {
		if err := a.HandLock(img.image); err != nil {
			return fmt.Errorf("hand over image lock: %w", err)
		}
	}
	trace.From(ctx).Step("mapped device")
	if st.Suspended {
		if err := img.resume(m, s); err != nil {
			return err
		}
	}
	keepKey(a, s)
	s.Keep()
	return nil
}

// resume sets the key, in the form that the table names it, and lets access go
// on. On error the device has no key.
func (c *container) resume(m *dm.Mapped, s *storage.Setup) error {
	name := c.header.KeyDescription()
	err := keyring.WithLogonKey(name, s.VolumeKey, func() error {
		return m.Message(fmt.Sprintf("key set :%d:logon:%s", s.VolumeKey.Len(), name))
	})
	if err == nil {
		err = m.Resume()
	}
	if err != nil {
		return errors.Join(fault.New(fault.IOError, "unlock", err), m.Message("key wipe"))
	}
	return nil
}
