package storage

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/trace"
	"hearth/records"
	"hearth/storage/mounts"
)

// rekeyed is a change of passphrases that is not final yet.
type rekeyed struct{ retire, revert func() error }

// OnRekey registers how a change of passphrases becomes final, and how it is
// taken back.
func (s *Setup) OnRekey(retire, revert func() error) { s.rekeyed = &rekeyed{retire, revert} }

// Retire takes away what opened the area before its Rekey.
func (s *Setup) Retire() error { return s.endRekey(func(r *rekeyed) error { return r.retire() }) }

// Revert takes away what Rekey added.
func (s *Setup) Revert() error { return s.endRekey(func(r *rekeyed) error { return r.revert() }) }

func (s *Setup) endRekey(end func(*rekeyed) error) error {
	r := s.rekeyed
	s.rekeyed = nil
	if r == nil {
		return nil
	}
	return end(r)
}

// passwd makes the passwords of the record the ones that open the home. The
// secrets hold all of them, and one that opens it now.
//
// The order keeps the old password or the new one good at every moment: new
// keyslots, header, record in the home, record on the host, and only then the
// old keyslots go. What a crash in between leaves is put right by the next
// activation, see admit and embedded.
func (f *flow) passwd(ctx context.Context) (out *records.Record, err error) {
	record, err := f.verified()
	if err != nil {
		return nil, err
	}
	trace.From(ctx).Step("new password")
	fresh, err := record.EffectivePassphrases(f.secrets)
	if err != nil {
		return nil, err
	}
	defer secret.CloseAll(fresh)
	setup, err := f.openForPasswd(ctx, fresh)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, setup.Close(ctx)) }()
	trace.From(ctx).Step("record")
	got, err := f.reconcile(setup, records.NewerOrEqual)
	if err != nil {
		return nil, err
	}
	trace.From(ctx).Step("owner")
	if err := f.shiftInactive(setup); err != nil {
		return nil, err
	}
	before, err := readIdentity(setup.Root)
	if err != nil {
		return nil, err
	}
	f.Progress("rekey", 0, 0)
	trace.From(ctx).Step("new keyslot")
	if err := f.backend.Rekey(ctx, setup, &Credentials{Passphrases: fresh}); err != nil {
		return nil, fmt.Errorf("change keys: %w", err)
	}
	// Half of what follows would be worse than all of it.
	ctx = context.WithoutCancel(ctx)
	trace.From(ctx).Step("copies of the record")
	bound := f.bind(got.Record, setup, f.view.HomeDirectory)
	if _, ok := f.backend.(HeaderKeeper); !ok {
		// Nothing outside of the home can overrule the host's record, so that
		// one goes first.
		if err := f.keep(bound); err != nil {
			return nil, errors.Join(err, setup.Revert())
		}
		return bound, errors.Join(f.writeCopies(ctx, setup, got), setup.Retire())
	}
	if err := f.writeCopies(ctx, setup, got); err != nil {
		return nil, errors.Join(err, f.restore(ctx, setup, before))
	}
	if err := f.keep(bound); err != nil {
		// The host may have either record by now. With all keyslots in place
		// the new password opens the home in both cases.
		f.Log.Warn("the record is not known to be saved on the host, the old keyslots stay until the next change", "error", err)
		return bound, nil
	}
	trace.From(ctx).Step("old keyslots")
	if err := setup.Retire(); err != nil {
		return nil, fmt.Errorf("the new password is set, but the old one may still open the image: %w", err)
	}
	return bound, nil
}

// openForPasswd opens the home by what opened it up to now. The host record
// that we have names the new passwords, so it is no judge of the old ones; the
// keyslots and the other copies of the record are.
func (f *flow) openForPasswd(ctx context.Context, fresh []*secret.Bytes) (*Setup, error) {
	if err := f.lookAny(); err != nil {
		return nil, err
	}
	all, err := f.secrets.Candidates()
	if err != nil {
		return nil, err
	}
	defer secret.CloseAll(all)
	// A new password is not tried on the old keyslots: each try costs as much
	// as the right one. Only one that stays among others may be all there is.
	var old, kept []*secret.Bytes
	for _, p := range all {
		if among(p, fresh) {
			kept = append(kept, p)
		} else {
			old = append(old, p)
		}
	}
	if len(old) == 0 || len(fresh) > 1 {
		old = append(old, kept...)
	}
	f.auth = &authentication{done: make(chan struct{})}
	close(f.auth.done)
	return f.openWith(ctx, old)
}

func among(p *secret.Bytes, list []*secret.Bytes) bool {
	for _, o := range list {
		if o.Equal(p) {
			return true
		}
	}
	return false
}

// lookAny looks at a home that may be active or not, before it is opened.
func (f *flow) lookAny() error {
	state, herr := testHome(&f.view)
	there, ierr := imageThere(f.view.ImagePath)
	err := errors.Join(herr, ierr)
	if err == nil && !there {
		err = fault.New(fault.HomeAbsent, f.verb, fmt.Errorf("%s: %w", f.view.ImagePath, unix.ENOENT))
	}
	f.area.Active = state == homeMounted
	return err
}

// shiftInactive is shift for a home that may be active: then the directory
// shows its owners already.
func (f *flow) shiftInactive(s *Setup) error {
	if f.area.Active {
		return nil
	}
	return f.shift(s)
}

// writeCopies brings the copies of the record in the area up to date, those
// that are not. A home that is full has no room for its own: the header's and
// the host's are newer then, and an activation that finds room writes it.
func (f *flow) writeCopies(ctx context.Context, s *Setup, got records.Reconciled) error {
	if keeper, ok := f.backend.(HeaderKeeper); ok && got.WriteHeader {
		if err := keeper.WriteHeader(ctx, s, got.Record.Embedded().Compact()); err != nil {
			return fmt.Errorf("update header: %w", err)
		}
	}
	if got.WriteEmbedded {
		sweepHome(ctx, s.Root, f.Log)
		err := writeIdentity(s.Root, got.Record.Record(), f.view.UID, f.view.GID, f.Rand)
		if fault.Is(err, fault.NoDiskSpace) {
			f.Log.Warn("no room for the record in the home", "error", err)
			got.WriteEmbedded = false
		} else if err != nil {
			return err
		}
	}
	f.syncBlobs(ctx, s, got)
	if !got.WriteEmbedded {
		return nil
	}
	return SpaceFault("sync home", mounts.SyncFS(s.Root))
}

// restore puts the former record back into header and home and takes the new
// keyslots away.
func (f *flow) restore(ctx context.Context, s *Setup, identity []byte) error {
	var errs []error
	if keeper, ok := f.backend.(HeaderKeeper); ok && f.header != nil {
		errs = append(errs, keeper.WriteHeader(ctx, s, f.header.Embedded().Compact()))
	}
	if now, err := readIdentity(s.Root); err == nil && string(now) != string(identity) {
		if r, err := records.Parse(identity, records.EmbeddedFile); err == nil {
			errs = append(errs, writeIdentity(s.Root, r, f.view.UID, f.view.GID, f.Rand))
		}
	}
	if err := errors.Join(errs...); err != nil {
		// The header may name either password: both have to open it.
		return err
	}
	return s.Revert()
}

// keep has the host save the record.
func (f *flow) keep(r *records.Record) error {
	if f.Keep == nil {
		return nil
	}
	return f.Keep(r)
}
