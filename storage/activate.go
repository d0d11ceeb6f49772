package storage

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/trace"
	"hearth/records"
	"hearth/storage/fsops"
	"hearth/storage/mounts"
)

// activate opens the area, brings all copies of the record to the one that
// rules, and publishes the home on its directory.
func (f *flow) activate(ctx context.Context) (out *records.Record, err error) {
	f.area.Preallocate = true
	setup, err := f.openAbsent(ctx)
	if err != nil {
		return nil, err
	}
	published := false
	defer func() {
		cerr := setup.Close(ctx)
		if cerr != nil && published {
			// The home is open for its user; what this process could not
			// put down goes with the process.
			f.Log.Warn("leftovers after activation", "error", cerr)
			return
		}
		err = errors.Join(err, cerr)
	}()

	t := trace.From(ctx)
	t.Step("record")
	got, err := f.reconcile(setup, records.Any)
	if err != nil {
		return nil, err
	}
	t.Step("owner")
	if err := f.shift(setup); err != nil {
		return nil, err
	}
	t.Step("record")
	sweepHome(ctx, setup.Root, f.Log)
	// First: a home that is full has no room for a new record either.
	f.autoGrow(ctx, setup, got.Record)
	if got.WriteHeader {
		if keeper, ok := f.backend.(HeaderKeeper); ok {
			if err := keeper.WriteHeader(ctx, setup, got.Record.Embedded().Compact()); err != nil {
				return nil, fmt.Errorf("update header: %w", err)
			}
		}
	}
	if got.WriteEmbedded {
		err := writeIdentity(setup.Root, got.Record.Record(), f.view.UID, f.view.GID, f.Rand)
		if fault.Is(err, fault.NoDiskSpace) {
			// The user has to get in to make room. The other copies have it.
			f.Log.Warn("no room for the record in the home", "error", err)
		} else if err != nil {
			return nil, err
		}
	}
	f.syncBlobs(ctx, setup, got)
	t.Step("owner")
	if err := fsops.ChownTree(ctx, setup.Root, f.view.UID, f.view.GID); err != nil {
		return nil, fault.New(fault.Unknown, "give files to user", err)
	}
	t.Step("record")
	if got.WriteEmbedded {
		if err := mounts.SyncFS(setup.Root); err != nil {
			return nil, SpaceFault("sync home", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, fault.New(fault.Timeout, "activate", err)
	}
	f.Progress("publish", 0, 0)
	t.Step("publish")
	if err := mounts.Publish(setup.Root, f.view.HomeDirectory); err != nil {
		return nil, err
	}
	// The user may have entered by now: from here the home stays.
	published = true
	setup.Keep()
	return f.bind(got.Record, setup, f.view.HomeDirectory), nil
}

// openAbsent makes sure that the home is not active, then opens it.
func (f *flow) openAbsent(ctx context.Context) (*Setup, error) {
	state, herr := testHome(&f.view)
	there, ierr := imageThere(f.view.ImagePath)
	err := errors.Join(herr, ierr)
	switch {
	case err != nil:
	case state == homeMounted:
		err = fault.New(fault.HomeAlreadyActive, "activate", nil)
	case !there:
		err = fault.New(fault.HomeAbsent, "activate", fmt.Errorf("%s: %w", f.view.ImagePath, unix.ENOENT))
	}
	if err != nil {
		// A wrong password is told first, whatever else is wrong.
		if aerr := f.check(false); aerr != nil {
			return nil, aerr
		}
		return nil, err
	}
	return f.open(ctx)
}

// shift shows the user's directory with the user as its owner. Where the
// kernel or the file system cannot, the chown that follows repairs it.
func (f *flow) shift(s *Setup) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(s.Root.Fd()), &st); err != nil {
		return fault.New(fault.Unknown, "look at top directory", err)
	}
	root, err := mounts.ShiftUID(s.Root, st.Uid, f.view.UID)
	if errors.Is(err, mounts.ErrUnsupported) {
		f.Log.Info("no id-mapped mounts here, owners are changed on the disk", "error", err)
		return nil
	}
	if err != nil {
		f.Log.Warn("id-mapped mount failed, owners are changed on the disk", "error", err)
		return nil
	}
	old := s.Root
	s.Root = root
	return old.Close()
}
