package storage

import (
	"context"
	"errors"

	"hearth/internal/fault"
	"hearth/internal/trace"
	"hearth/records"
)

// update writes a newer record into the home's copies. Every copy and the new
// record have to accept the secrets. A power cut leaves the new record in some
// of the copies, and the next activation takes it to the rest.
func (f *flow) update(ctx context.Context) (out *records.Record, err error) {
	record, err := f.verified()
	if err != nil {
		return nil, err
	}
	if f.Offline {
		return f.updateOffline(ctx, record)
	}
	// Blobs that cannot be kept, for want of space say, refuse the update
	// before it began. Their directory takes its place last: until then the
	// record in the home is newer than the host's, and a power cut has the next
	// activation take both from there.
	staged, err := f.stageHostBlobs(ctx, record)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, staged.abandon())
		}
	}()
	setup, err := f.openAny(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, setup.Close(ctx)) }()
	trace.From(ctx).Step("record")
	got, err := f.reconcile(setup, records.Newer)
	if err != nil {
		return nil, err
	}
	trace.From(ctx).Step("owner")
	if err := f.shiftInactive(setup); err != nil {
		return nil, err
	}
	trace.From(ctx).Step("copies of the record")
	if err := f.writeCopies(context.WithoutCancel(ctx), setup, got); err != nil {
		return nil, err
	}
	if err := staged.commit(context.WithoutCancel(ctx)); err != nil {
		f.Log.Warn("the blob directory of the host is not replaced", "error", err)
	}
	staged = nil
	return f.bind(got.Record, setup, f.view.HomeDirectory), nil
}

// keepsCredentials demands that an update for which nobody proved who he is
// changes nothing about how that is proved: an open session would else do for
// its password. Fault: BadPassword, since with a password more is allowed.
func (f *flow) keepsCredentials(r *records.Record, where string) error {
	if f.verb != Update || records.SameCredentials(f.subject.Record(), r) {
		return nil
	}
	return fault.New(fault.BadPassword, "compare credentials", errors.New("they differ from those in the "+where))
}
