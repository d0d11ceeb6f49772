// Package directory is the storage backend of homes in a plain directory of
// the host. It knows how such a directory is made, and that nothing in it is
// encrypted: the password keeps the mount, not the data. What all areas share
// that are directories it leaves to storage.
package directory

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"hearth/storage"
)

// Backend implements storage.Backend. Its zero value works.
type Backend struct{}

var (
	_ storage.Backend = Backend{}
	_ storage.Resizer = Backend{}
)

// Create implements storage.Backend. The files belong to the user on the disk
// too, by whose uid a quota counts them. There are no keyslots.
func (Backend) Create(ctx context.Context, a storage.Area, _ *storage.Credentials) (*storage.Setup, error) {
	return storage.CreateTree(ctx, a, func(parent *os.File, name string) (uint32, error) {
		return a.UID, unix.Mkdirat(int(parent.Fd()), name, 0o700)
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

// Remove implements storage.Backend.
func (Backend) Remove(ctx context.Context, a storage.Area) error { return storage.RemoveTree(ctx, a) }
