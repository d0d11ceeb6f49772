package luks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/trace"
	"hearth/storage"
	"hearth/storage/dm"
	"hearth/storage/keyring"
	"hearth/storage/loop"
	"hearth/storage/mounts"
)

// detachWait bounds how long others may have the loop device open.
const detachWait = 5 * time.Second

// Deactivate implements storage.Backend: removes the mapped device, with which
// the loop device goes, and marks the image clean.
func (Backend) Deactivate(ctx context.Context, a storage.Area) error {
	t := trace.From(ctx)
	t.Step("mapped device")
	name := deviceName(a)
	mapped := dm.Exists(name)
	if !mapped && !a.Active {
		return fault.New(fault.HomeNotActive, "deactivate", errors.New("neither mount nor mapped device"))
	}
	if mapped {
		if err := dm.Remove(ctx, name, false); err != nil {
			return err
		}
	}
	if err := dm.WaitGone(ctx, name); err != nil {
		if fault.Is(err, fault.Timeout) {
			return fault.New(fault.HomeBusy, "remove mapped device", err)
		}
		return err
	}
	if err := keyring.Drop(keyName(a)); err != nil {
		a.Log.Warn("cannot forget the volume key", "error", err)
	}
	t.Step("loop")
	awaitDetached(ctx, a)
	t.Step("mark and reserve")
	return settle(a)
}

// awaitDetached waits until no loop device holds the image: the kernel lets go
// of it a moment after the mapped device is gone, and who is told that the home
// is closed may unmount or move what the image is on.
func awaitDetached(ctx context.Context, a storage.Area) {
	path, err := filepath.EvalSymlinks(a.ImagePath)
	if err != nil {
		return
	}
	deadline := time.Now().Add(detachWait)
	for wait := time.Millisecond; ; wait = min(wait*2, 8*time.Millisecond) {
		held, err := loop.Attachments(path)
		if err != nil || len(held) == 0 {
			return
		}
		if time.Now().After(deadline) {
			a.Log.Warn("a loop device still holds the image", "device", held[0].Number)
			return
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// settle puts a closed image in order by its path. Whoever took it away
// meanwhile is welcome to it.
func settle(a storage.Area) error {
	fd, err := unix.Open(a.ImagePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		a.Log.Warn("cannot mark the image clean", "error", err)
		return nil
	}
	image := os.NewFile(uintptr(fd), a.ImagePath)
	defer func() { _ = image.Close() }()
	info, err := image.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	if !a.LUKS.OfflineDiscard {
		reserve(a, image, info.Size())
	}
	if err := mounts.ClearDirty(image); err != nil {
		a.Log.Warn("cannot mark the image clean", "error", err)
	}
	return nil
}

// Remove implements storage.Backend: unlinks an image file, unless somebody
// uses it elsewhere. Nothing on a block device is erased.
func (Backend) Remove(ctx context.Context, a storage.Area) (err error) {
	const op = "remove image"
	info, err := os.Stat(a.ImagePath)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Unknown, op, err)
	}
	s := &storage.Setup{}
	defer func() { err = errors.Join(err, s.Close(ctx)) }()
	file := info.Mode().IsRegular()
	if file {
		if _, err := openImage(a, s); err != nil && !fault.Is(err, fault.HomeAbsent) {
			return err
		}
	}
	if err := clearMapped(ctx, a); err != nil {
		return fault.New(fault.HomeBusy, op, err)
	}
	if !file {
		a.Log.Info("block devices are not erased", "path", a.ImagePath)
		return nil
	}
	if err := unix.Unlink(a.ImagePath); err != nil && !errors.Is(err, unix.ENOENT) {
		return fault.New(fault.Unknown, op, fmt.Errorf("%s: %w", a.ImagePath, err))
	}
	if err := storage.SyncDirectory(filepath.Dir(a.ImagePath)); err != nil {
		return fault.New(fault.IOError, op, err)
	}
	return nil
}
