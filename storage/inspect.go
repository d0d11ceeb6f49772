package storage

import (
	"context"
	"errors"

	"hearth/internal/trace"
	"hearth/records"
)

// inspect authenticates against all copies of the record and returns the one
// that rules. It writes no copy; an active home stays as it is.
func (f *flow) inspect(ctx context.Context) (out *records.Record, err error) {
	setup, err := f.openAny(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, setup.Close(ctx)) }()
	trace.From(ctx).Step("record")
	got, err := f.reconcile(setup, records.Any)
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
