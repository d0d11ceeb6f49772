package storage

import (
	"context"
	"errors"
	"fmt"
	"os"

	"hearth/internal/secret"
	"hearth/internal/trace"
	"hearth/records"
)

// A Setup is what is open of one area: the user's directory, the volume key,
// and how to close all of it again. Whoever got one defers Close.
type Setup struct {
	// Root is the user's directory; nil where HeaderAlone was enough. A flow may replace it by the same
	// directory seen through an id-mapped mount; Close closes what is there.
	Root *os.File
	// VolumeKey is the setup's own; nil for a storage without.
	VolumeKey *secret.Bytes
	// Found is what the storage turned out to be, for the binding.
	Found records.Binding
	// Private belongs to the backend.
	Private any

	steps   []step
	kept    func()
	rekeyed *rekeyed
	commit  func(context.Context) error
	visible int // steps below belong to the area, those above to its being open
}

type step struct {
	what   string
	undo   func(context.Context) error
	always bool
}

// Undo registers how to take back what was just done. It runs at Close, the
// last one first, unless Keep came before.
func (s *Setup) Undo(what string, undo func(context.Context) error) {
	s.steps = append(s.steps, step{what: what, undo: undo})
}

// Finally registers what Close has to do even after Keep: this process's own
// descriptors, mounts and copies of keys.
func (s *Setup) Finally(what string, f func(context.Context) error) {
	s.steps = append(s.steps, step{what: what, undo: f, always: true})
}

// OnCommit registers how a new area becomes visible. What was pushed before is
// the area itself, what follows is its being open.
func (s *Setup) OnCommit(publish func(context.Context) error) {
	s.commit, s.visible = publish, len(s.steps)
}

// Commit closes what is open of a new area and makes the area visible. On
// error it is not visible, and Close takes away the rest.
func (s *Setup) Commit(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	trace.From(ctx).Step("close")
	if err := s.unwind(ctx, s.visible); err != nil {
		return err
	}
	trace.From(ctx).Step("publish")
	if s.commit != nil {
		if err := s.commit(ctx); err != nil {
			return err
		}
	}
	s.Keep()
	return nil
}

// OnKeep registers what is to be left behind once the setup stays.
func (s *Setup) OnKeep(f func()) { s.kept = f }

// Keep disarms all undo steps: what was set up stays.
func (s *Setup) Keep() {
	if s.kept != nil {
		s.kept()
		s.kept = nil
	}
	kept := s.steps[:0]
	for _, st := range s.steps {
		if st.always {
			kept = append(kept, st)
		}
	}
	s.steps, s.visible = kept, 0
}

// Close unwinds in reverse order, goes on after errors and joins them. It
// cannot be cancelled: half an undo helps nobody. A second call does nothing.
func (s *Setup) Close(ctx context.Context) error {
	if len(s.steps) > 0 {
		trace.From(ctx).Step("close")
	}
	return s.unwind(context.WithoutCancel(ctx), 0)
}

func (s *Setup) unwind(ctx context.Context, down int) error {
	var errs []error
	for len(s.steps) > down {
		last := s.steps[len(s.steps)-1]
		s.steps = s.steps[:len(s.steps)-1]
		if err := last.undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", last.what, err))
		}
	}
	return errors.Join(errs...)
}
