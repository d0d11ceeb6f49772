package storage_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"hearth/storage"
)

// trace collects which steps ran, in order.
type trace []string

func (tr *trace) step(name string, err error) func(context.Context) error {
	return func(ctx context.Context) error {
		if ctx.Err() != nil {
			name += " cancelled"
		}
		*tr = append(*tr, name)
		return err
	}
}

func TestSetup(t *testing.T) {
	broken := errors.New("broken")
	build := func(tr *trace, commit, undo error) *storage.Setup {
		s := &storage.Setup{}
		s.Finally("close image", tr.step("close image", nil))
		s.Undo("unlink", tr.step("unlink", nil))
		s.OnCommit(tr.step("rename", commit))
		s.Undo("detach", tr.step("detach", undo))
		s.Finally("close home", tr.step("close home", nil))
		s.OnKeep(func() { _ = tr.step("leave key", nil)(context.Background()) })
		return s
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what was begun is taken back all the same
	for _, c := range []struct {
		name         string
		commit, undo error
		run          func(*storage.Setup) error
		want         string
		fails        bool
	}{
		{"close", nil, nil, func(*storage.Setup) error { return nil }, "close home, detach, unlink, close image", false},
		{"close goes on after errors", nil, broken, func(*storage.Setup) error { return nil }, "close home, detach, unlink, close image", true},
		{"keep", nil, nil, func(s *storage.Setup) error { s.Keep(); return nil }, "leave key, close home, close image", false},
		{"commit", nil, nil, func(s *storage.Setup) error { return s.Commit(ctx) }, "close home, detach, rename, leave key, close image", false},
		{"commit fails", broken, nil, func(s *storage.Setup) error { return s.Commit(ctx) }, "close home, detach, rename, unlink, close image", true},
		{"closing for commit fails", nil, broken, func(s *storage.Setup) error { return s.Commit(ctx) }, "close home, detach, unlink, close image", true},
		{"close twice", nil, nil, func(s *storage.Setup) error { return s.Close(ctx) }, "close home, detach, unlink, close image", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var tr trace
			s := build(&tr, c.commit, c.undo)
			err := c.run(s)
			err = errors.Join(err, s.Close(ctx))
			if got := strings.Join(tr, ", "); got != c.want {
				t.Errorf("ran %q, want %q", got, c.want)
			}
			if (err != nil) != c.fails || err != nil && !errors.Is(err, broken) {
				t.Errorf("error %v", err)
			}
		})
	}
}
