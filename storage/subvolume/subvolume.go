// Package subvolume is the storage backend of homes in a btrfs subvolume of
// the host. It knows how a subvolume is made and removed with what the file
// system keeps for it; where there is no btrfs it makes a plain directory
// instead, as systemd-homed does. Nothing in it is encrypted. What all areas
// share that are directories it leaves to storage.
//
// Not built: joining the qgroups of the subvolume that
// a new one is in.
package subvolume

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hearth/storage"
	"hearth/storage/fsops"
	"hearth/storage/quota"
)

// Backend implements storage.Backend. Its zero value works.
type Backend struct{}

var (
	_ storage.Backend = Backend{}
	_ storage.Resizer = Backend{}
)

// Create implements storage.Backend. A subvolume is limited as a whole, so its
// files need no owner that means anything; in a directory a quota counts the
// user's.
func (Backend) Create(ctx context.Context, a storage.Area, _ *storage.Credentials) (*storage.Setup, error) {
	return storage.CreateTree(ctx, a, func(parent *os.File, name string) (uint32, error) {
		err := fsops.MakeSubvolume(parent, name)
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			a.Log.Info("no subvolumes here, a directory instead", "error", err)
			return a.UID, unix.Mkdirat(int(parent.Fd()), name, 0o700)
		}
		return storage.NeutralOwner, err
	})
}

// Open implements storage.Backend.
func (Backend) Open(ctx context.Context, a storage.Area, _ *storage.Credentials) (*storage.Setup, error) {
	return storage.OpenTree(ctx, a)
}

// Rekey implements storage.Backend. There are no keyslots: what the record says
// is all that a password opens.
func (Backend) Rekey(context.Context, *storage.Setup, *storage.Credentials) error { return nil }

// Resize implements storage.Resizer: the quota is changed.
func (Backend) Resize(_ context.Context, s *storage.Setup, want storage.Size) (storage.Size, error) {
	return storage.ResizeTree(s, want)
}

// Elastic implements storage.Resizer.
func (Backend) Elastic(*storage.Setup) bool { return false }

// Deactivate implements storage.Backend.
func (Backend) Deactivate(_ context.Context, a storage.Area) error { return storage.DeactivateTree(a) }

// Remove implements storage.Backend: the subvolume with those nested in it,
// and its qgroup.
func (Backend) Remove(ctx context.Context, a storage.Area) error {
	group, folder := qgroup(a)
	if folder != nil {
		defer func() { _ = folder.Close() }()
	}
	if err := storage.RemoveTree(ctx, a); err != nil {
		return err
	}
	if folder != nil {
		if err := quota.DropGroup(folder, group); err != nil {
			a.Log.Info("the qgroup of the subvolume stays", "qgroup", group, "error", err)
		}
	}
	return nil
}

// qgroup returns the number of the area's own qgroup, which is that of its
// subvolume, and the folder around it; no folder if there is no subvolume.
func qgroup(a storage.Area) (uint64, *os.File) {
	path, err := filepath.EvalSymlinks(a.ImagePath)
	if err != nil {
		return 0, nil
	}
	top, err := os.Open(path)
	if err != nil {
		return 0, nil
	}
	defer func() { _ = top.Close() }()
	if is, err := fsops.IsSubvolume(top); err != nil || !is {
		return 0, nil
	}
	id, err := quota.Subvolume(top)
	if err != nil {
		return 0, nil
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return 0, nil
	}
	return id, folder
}
