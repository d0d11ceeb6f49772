package storage

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/trace"
	"hearth/storage/mounts"
)

// deactivate unmounts the home and detaches its storage. force leaves behind
// whoever still uses it. A suspended home is refused either way: what it still
// has to write would wait for ever.
func (f *flow) deactivate(ctx context.Context, force bool) error {
	trace.From(ctx).Step("unmount")
	mounted, err := mounts.IsMountPoint(f.view.HomeDirectory)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.Unknown, "look at home directory", err)
	}
	if mounted {
		if err := f.touchable(); err != nil {
			return err
		}
		if err := f.unpublish(ctx, force); err != nil {
			return err
		}
		// Nobody can enter any more: half a deactivation would help nobody.
		ctx = context.WithoutCancel(ctx)
	}
	f.area.Active = mounted
	err = f.backend.Deactivate(ctx, f.area)
	if mounted && fault.Is(err, fault.HomeNotActive) {
		err = nil
	}
	if err == nil && f.view.DropCaches {
		if derr := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); derr != nil {
			f.Log.Warn("cannot drop caches", "error", derr)
		}
	}
	return err
}

// unpublish takes the home directory's mount away. Meanwhile a private bind of
// it holds the file system, so that it can be trimmed and synced when nobody
// writes any more.
func (f *flow) unpublish(ctx context.Context, force bool) (err error) {
	home := f.view.HomeDirectory
	if err := mounts.BindPrivate(home, mounts.Work); err != nil {
		return fault.New(fault.Unknown, "bind home", err)
	}
	defer func() {
		if uerr := mounts.UnmountTree(mounts.Work); uerr != nil {
			err = errors.Join(err, fault.New(fault.Unknown, "unmount work directory", uerr))
		}
	}()
	flags := 0
	if force {
		flags = unix.MNT_FORCE | unix.MNT_DETACH
	}
	root, err := openDirectory(mounts.Work)
	if err != nil {
		return fault.New(fault.IOError, "open home", err)
	}
	defer func() { _ = root.Close() }()
	if err := mounts.Unmount(home, flags); err != nil {
		return fmt.Errorf("close home: %w", f.inUse(err))
	}
	f.autoShrink(context.WithoutCancel(ctx))
	if f.view.Storage == "luks" && f.view.LUKS.OfflineDiscard {
		if terr := mounts.Trim(root); terr != nil {
			f.Log.Info("home was not trimmed", "error", terr)
		}
	}
	if serr := mounts.SyncFS(root); serr != nil {
		// The mount is gone; the kernel writes on when the device goes.
		f.Log.Warn("cannot sync home", "error", serr)
	}
	return nil
}

// inUse says in the error who keeps the home busy.
func (f *flow) inUse(err error) error {
	if f.Users == nil || !fault.Is(err, fault.HomeBusy) {
		return err
	}
	who, werr := f.Users(f.view.UID, f.view.GID, f.view.HomeDirectory)
	if werr != nil {
		f.Log.Warn("cannot tell who uses the home", "error", werr)
	}
	named := fault.Newf(fault.HomeBusy, "close home", "Home %s is currently being used by %s.", f.view.UserName, who)
	named.Err = fmt.Errorf("in use by %s: %w", who, err)
	return named
}

func openDirectory(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
