package crashtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"hearth/storage/dm"
	"hearth/storage/loop"
)

// A Rig is a disk whose content is given, and that can be had as a block device
// again and again: every time with that content, whatever happened to it the
// time before. It needs root and the targets snapshot and log-writes.
type Rig struct {
	name string // of its mapped devices
	dir  string
	size int64
	base *os.File
	low  *loop.Device // the base as a device
	high *loop.Device // where a device's changes go

	from int // so many steps of a log are in the base for good
}

// NewRig makes a disk of size bytes of zeros, in sparse files in dir, which
// should be in memory. Close it.
func NewRig(ctx context.Context, name, dir string, size int64) (_ *Rig, err error) {
	r := &Rig{name: name, dir: dir, size: size}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close(ctx))
		}
	}()
	if r.base, r.low, err = sparse(ctx, filepath.Join(dir, "base"), size); err != nil {
		return nil, err
	}
	changes, high, err := sparse(ctx, filepath.Join(dir, "changes"), size+size/8)
	if err != nil {
		return nil, err
	}
	r.high = high
	return r, changes.Close()
}

// sparse makes a file and a loop device of it.
func sparse(ctx context.Context, path string, size int64) (*os.File, *loop.Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	l, err := loop.Attach(ctx, f, loop.Config{})
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, l, nil
}

// Close lets go of everything.
func (r *Rig) Close(ctx context.Context) error {
	var errs []error
	for _, l := range []*loop.Device{r.high, r.low} {
		if l != nil {
			errs = append(errs, l.Detach(ctx))
		}
	}
	if r.base != nil {
		errs = append(errs, r.base.Close())
	}
	return errors.Join(errs...)
}

// Base is the node of the disk itself: what is written there is the content
// that every other device begins with.
func (r *Rig) Base() string { return r.low.Path }

// snapshot maps the base with changes of its own.
func (r *Rig) snapshot(ctx context.Context) (*dm.Mapped, error) {
	params := fmt.Sprintf("%d:%d %d:%d N 8", r.low.Major, r.low.Minor, r.high.Major, r.high.Minor)
	return dm.Create(ctx, r.name+"-disk", "", uint64(r.size/512), "snapshot", params, dm.Options{})
}

// A Recording is a device whose writes are being recorded.
type Recording struct {
	Node string

	rig  *Rig
	m    *dm.Mapped
	log  *os.File
	loop *loop.Device
}

// Record makes the disk available for one operation. End it.
func (r *Rig) Record(ctx context.Context) (_ *Recording, err error) {
	rec := &Recording{rig: r}
	defer func() {
		if err != nil {
			err = errors.Join(err, rec.close(ctx))
		}
	}()
	// A write takes its own size and a sector; few are smaller than a page.
	if rec.log, rec.loop, err = sparse(ctx, filepath.Join(r.dir, "log"), 2*r.size); err != nil {
		return nil, err
	}
	low, err := r.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	params := fmt.Sprintf("%d:%d %d:%d", low.Major, low.Minor, rec.loop.Major, rec.loop.Minor)
	if rec.m, err = dm.Create(ctx, r.name+"-log", "", uint64(r.size/512), "log-writes", params, dm.Options{}); err != nil {
		return nil, err
	}
	rec.Node = rec.m.Node
	return rec, nil
}

// Mark puts a word into the log.
func (r *Recording) Mark(word string) error { return r.m.Message("mark " + word) }

// End returns what was recorded. Nobody uses the device any more.
func (r *Recording) End(ctx context.Context) (Log, error) {
	if err := dm.Remove(ctx, r.m.Name, false); err != nil {
		return nil, errors.Join(err, r.close(ctx))
	}
	log, err := ReadWritesLog(r.log)
	return log, errors.Join(err, r.close(ctx))
}

func (r *Recording) close(ctx context.Context) error {
	errs := []error{dm.Remove(ctx, r.rig.name+"-log", false), dm.Remove(ctx, r.rig.name+"-disk", false)}
	if r.loop != nil {
		errs = append(errs, r.loop.Detach(ctx))
	}
	if r.log != nil {
		errs = append(errs, r.log.Close(), os.Remove(r.log.Name()))
	}
	return errors.Join(errs...)
}

// Settle brings the disk to where it is after the first cut steps of a log for
// good, as far as they are stable: the states to come are that of later cuts.
func (r *Rig) Settle(log Log, cut int) error {
	stable := log.Stable(cut)
	if stable <= r.from {
		return nil
	}
	if err := log.Prefix(stable).Apply(r.base, r.from); err != nil {
		return fmt.Errorf("settle disk: %w", err)
	}
	r.from = stable
	return nil
}

// Replay returns the node of the disk in a state, and how to be done with it.
func (r *Rig) Replay(ctx context.Context, s State) (node string, done func() error, err error) {
	m, err := r.snapshot(ctx)
	if err != nil {
		return "", nil, err
	}
	done = func() error { return dm.Remove(ctx, m.Name, false) }
	f, err := os.OpenFile(m.Node, os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(s.Apply(f, r.from), f.Sync(), f.Close())
	}
	if err != nil {
		return "", nil, errors.Join(err, done())
	}
	return m.Node, done, nil
}
