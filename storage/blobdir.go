package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"hearth/records"
	"hearth/storage/blobs"
)

// embeddedBlobs is the blob directory's copy inside the home.
const embeddedBlobs = ".identity-blob"

// manifest is what the record says of blobs on this machine; empty if nothing.
func (f *flow) manifest(v records.Verified) records.Manifest {
	m, _ := v.Record().Manifest(f.Machine)
	return m
}

// stageHostBlobs makes the host's blob directory of the files that were given,
// next to the one that counts. nil without an error: none were given.
func (f *flow) stageHostBlobs(ctx context.Context, v records.Verified) (*stagedBlobs, error) {
	if f.Blobs == nil || f.BlobDir == "" {
		return nil, nil
	}
	return f.stageHost(ctx, v, blobs.Of(f.Blobs))
}

// stagedBlobs is the host's directory to be, and the folder it is in.
type stagedBlobs struct {
	*blobs.Staged
	parent *os.File
}

func (s *stagedBlobs) abandon() error {
	if s == nil {
		return nil
	}
	return errors.Join(s.Abandon(), s.parent.Close())
}

func (s *stagedBlobs) commit(ctx context.Context) error {
	if s == nil {
		return nil
	}
	return SpaceFault("replace blob directory", errors.Join(s.Commit(ctx), s.parent.Close()))
}

func (f *flow) stageHost(ctx context.Context, v records.Verified, from blobs.Source) (_ *stagedBlobs, err error) {
	const op = "copy blobs"
	above := filepath.Dir(f.BlobDir)
	if err := os.MkdirAll(above, 0o755); err != nil {
		return nil, SpaceFault(op, err)
	}
	parent, err := os.Open(above)
	if err != nil {
		return nil, SpaceFault(op, err)
	}
	at := blobs.Directory{Parent: parent, Name: filepath.Base(f.BlobDir), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Mode: 0o755}
	temp, err := TempName(f.Rand, "", at.Name)
	if err != nil {
		return nil, errors.Join(err, parent.Close())
	}
	s, err := blobs.Stage(ctx, at, temp, f.manifest(v), from, f.Log)
	if err != nil {
		return nil, SpaceFault(op, errors.Join(err, parent.Close()))
	}
	return &stagedBlobs{s, parent}, nil
}

// putEmbeddedBlobs replaces the copy in the home.
func (f *flow) putEmbeddedBlobs(ctx context.Context, s *Setup, v records.Verified, from blobs.Source) error {
	temp, err := TempName(f.Rand, "", embeddedBlobs)
	if err != nil {
		return err
	}
	at := blobs.Directory{Parent: s.Root, Name: embeddedBlobs, UID: f.view.UID, GID: f.view.GID, Mode: 0o700}
	staged, err := blobs.Stage(ctx, at, temp, f.manifest(v), from, f.Log)
	if err == nil {
		err = staged.Commit(ctx)
	}
	if err != nil {
		return fmt.Errorf("copy blobs into the home: %w", err)
	}
	return nil
}

// hostBlobs is where the blobs come from that the host has: those given with
// the operation, else its directory. ok is false where it has none.
func (f *flow) hostBlobs() (from blobs.Source, end func(), ok bool) {
	if f.Blobs != nil {
		return blobs.Of(f.Blobs), func() {}, true
	}
	if f.BlobDir == "" {
		return nil, nil, false
	}
	dir, err := os.Open(f.BlobDir)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			f.Log.Warn("cannot look at the blob directory of the host", "error", err)
		}
		return nil, nil, false
	}
	return blobs.In(dir), func() { _ = dir.Close() }, true
}

// syncBlobs brings the two blob directories together, by whose record counts.
// Pictures are worth no failed login and no refused change of a password: what
// goes wrong is logged, and the next operation tries again.
func (f *flow) syncBlobs(ctx context.Context, s *Setup, got records.Reconciled) {
	if f.BlobDir == "" {
		return
	}
	err := f.trySyncBlobs(ctx, s, got)
	if err != nil {
		f.Log.Warn("blob directories are not brought together", "error", err)
	}
}

func (f *flow) trySyncBlobs(ctx context.Context, s *Setup, got records.Reconciled) error {
	embedded, err := blobs.Open(s.Root, embeddedBlobs)
	switch {
	case err == nil:
		defer func() { _ = embedded.Close() }()
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	fromHome := got.Embedded == records.EmbeddedWon
	if got.Embedded == records.Identical && f.Blobs == nil {
		m := f.manifest(got.Record)
		host, err := os.Open(f.BlobDir)
		there := err == nil && blobs.Complete(host, m)
		if err == nil {
			_ = host.Close()
		}
		inside := embedded != nil && blobs.Complete(embedded, m)
		if there && inside {
			return nil
		}
		// One of them was lost: the host's is below /var/cache.
		fromHome = inside
	}
	if fromHome {
		if embedded == nil {
			return nil
		}
		staged, err := f.stageHost(ctx, got.Record, blobs.In(embedded))
		if err != nil {
			return err
		}
		return staged.commit(ctx)
	}
	from, end, ok := f.hostBlobs()
	if !ok {
		return nil
	}
	defer end()
	return f.putEmbeddedBlobs(ctx, s, got.Record, from)
}

// updateOffline changes what the host has beside the record, and leaves the
// storage for the next activation.
func (f *flow) updateOffline(ctx context.Context, v records.Verified) (*records.Record, error) {
	staged, err := f.stageHostBlobs(ctx, v)
	if err != nil {
		return nil, err
	}
	if err := staged.commit(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	return v.Record(), nil
}

// populateBlobs gives a new home its copy, an empty one where there are none.
func (f *flow) populateBlobs(ctx context.Context, s *Setup, v records.Verified) error {
	from, end, ok := f.hostBlobs()
	if !ok {
		return nil
	}
	defer end()
	return f.putEmbeddedBlobs(ctx, s, v, from)
}
