package storage

import (
	"context"
	"errors"
	"fmt"
	"os"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/trace"
	"hearth/records"
	"hearth/storage/fsops"
	"hearth/storage/mounts"
	"hearth/storage/presence"
)

// create makes a new area and fills it. It becomes visible as the last step;
// the home is left inactive.
func (f *flow) create(ctx context.Context) (out *records.Record, err error) {
	record, err := f.verified()
	if err != nil {
		return nil, err
	}
	trace.From(ctx).Step("new password")
	if err := records.RequirePlaintexts(record, f.secrets); err != nil {
		return nil, err
	}
	state, err := testHome(&f.view)
	if err != nil {
		return nil, err
	}
	if state != homeAbsent {
		return nil, fault.New(fault.FileExists, "create", fmt.Errorf("%s: %w", f.view.HomeDirectory, os.ErrExist))
	}
	there, err := imageThere(f.view.ImagePath)
	if err != nil {
		return nil, err
	}
	// Of a block device the backend decides whether it is free.
	if seen, err := presence.Look(presence.Area{Storage: f.view.Storage, ImagePath: f.view.ImagePath}); err == nil && seen == presence.Unclear {
		there = false
	}
	if there {
		return nil, fault.New(fault.FileExists, "create", fmt.Errorf("%s: %w", f.view.ImagePath, os.ErrExist))
	}
	staged, err := f.stageHostBlobs(ctx, record)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, staged.abandon())
		}
	}()
	passphrases, err := record.EffectivePassphrases(f.secrets)
	if err != nil {
		return nil, err
	}
	defer secret.CloseAll(passphrases)
	trace.From(ctx).Step("area")
	setup, err := f.backend.Create(ctx, f.area, &Credentials{Passphrases: passphrases})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, setup.Close(ctx)) }()

	trace.From(ctx).Step("copies of the record")
	if keeper, ok := f.backend.(HeaderKeeper); ok {
		if err := keeper.WriteHeader(ctx, setup, record.Embedded().Compact()); err != nil {
			return nil, fmt.Errorf("write header: %w", err)
		}
	}
	trace.From(ctx).Step("owner")
	if err := f.shift(setup); err != nil {
		return nil, err
	}
	f.Progress("populate", 0, 0)
	trace.From(ctx).Step("populate")
	if err := f.populate(ctx, setup, record); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fault.New(fault.Timeout, "create", err)
	}
	// The home directory enters the binding with the first activation.
	bound := f.bind(record, setup, "")
	if err := staged.commit(ctx); err != nil {
		return nil, err
	}
	staged = nil
	if err := setup.Commit(ctx); err != nil {
		return nil, fmt.Errorf("finish area: %w", err)
	}
	return bound, nil
}

// populate fills a new home, storage.md 1.7.
func (f *flow) populate(ctx context.Context, s *Setup, record records.Verified) error {
	const op = "populate home"
	v := &f.view
	if err := fsops.CopySkeleton(ctx, v.SkeletonDirectory, s.Root, v.UID, v.GID); err != nil {
		return SpaceFault(op, err)
	}
	if err := writeIdentity(s.Root, record.Record(), v.UID, v.GID, f.Rand); err != nil {
		return err
	}
	if err := f.populateBlobs(ctx, s, record); err != nil {
		return SpaceFault(op, err)
	}
	if err := fsops.ChownTree(ctx, s.Root, v.UID, v.GID); err != nil {
		return SpaceFault(op, err)
	}
	if err := s.Root.Chmod(os.FileMode(v.AccessMode) & os.ModePerm); err != nil {
		return SpaceFault(op, err)
	}
	if err := mounts.SyncFS(s.Root); err != nil {
		return SpaceFault(op, err)
	}
	return nil
}
