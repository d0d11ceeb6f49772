package storage

import (
	"context"
	"errors"

	"hearth/internal/trace"
	"hearth/records"
)

// inspect authenticates against all copies of the record and returns the one
// that rules. It writes no copy; an active home stays as it is.
//
// A closed home with a header stays closed, if the host has a record of it:
// header and host say whether the password is right, and to attach, check and
// mount it all for the third copy takes ten times as long. What wrote that copy
// wrote the header's too; where a power cut kept it from that, activation finds
// the newer one. Of a home that was only found all is looked at, as
// the host's record is made of that.
func (f *flow) inspect(ctx context.Context) (out *records.Record, err error) {
	_, f.area.HeaderAlone = f.subject.(records.Verified)
	setup, err := f.openAny(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, setup.Close(ctx)) }()
	trace.From(ctx).Step("record")
	var got records.Reconciled
	if setup.Root == nil {
		got, err = f.Keys.Reconcile(f.subject, f.header, f.header, records.Any)
	} else {
		got, err = f.reconcile(setup, records.Any)
	}
	if err != nil {
		return nil, err
	}
	return f.bind(got.Record, setup, f.view.HomeDirectory), nil
}

// openAny opens an inactive home or adopts an active one.
func (f *flow) openAny(ctx context.Context) (*Setup, error) {
	if err := f.lookAny(); err != nil {
		// A wrong password is told first, whatever else is wrong.
		if aerr := f.check(false); aerr != nil {
			return nil, aerr
		}
		return nil, err
	}
	return f.open(ctx)
}
