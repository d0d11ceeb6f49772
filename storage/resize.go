package storage

import (
	"context"
	"errors"
	"math"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/trace"
	"hearth/records"
	"hearth/storage/mounts"
)

// A Size is how large an area is to be.
type Size struct {
	// Bytes is rounded and clamped to what is possible. Of an image it is the
	// file's length, of a quota the limit.
	Bytes uint64
	// Only keeps the area from changing the other way.
	Only Direction
}

// A Direction is one that a size may change in.
type Direction int

// The directions.
const (
	EitherWay Direction = iota
	OnlyGrow
	OnlyShrink
)

// A Resizer can change the size of an area.
type Resizer interface {
	// Resize sets the open area to want, as near as possible, and returns what
	// it is now; want.Only may keep it as it is. It calls Progress before each
	// step. What a crash leaves opens again, with the old size, the new one, or
	// one that the next Open completes or takes back. Faults: BadHomeSize for a
	// file system that cannot, or not now, or whose files do not fit;
	// NoDiskSpace, NotSupported, IOError.
	Resize(ctx context.Context, s *Setup, want Size) (got Size, err error)
	// Elastic reports whether the open area can shrink and grow as it is, so
	// that it may at each logout and login.
	Elastic(s *Setup) bool
}

// resize makes the area as large as the record says and brings the record to
// all copies. The storage comes first: an error there leaves all records as
// they were. A crash between the two leaves the old record with the new size,
// and nothing depends on their being equal.
func (f *flow) resize(ctx context.Context) (out *records.Record, err error) {
	const op = "resize"
	if f.view.DiskSize == nil {
		return nil, fault.Newf(fault.InvalidArgs, op, "No disk size to resize to specified.")
	}
	resizer, ok := f.backend.(Resizer)
	if !ok {
		return nil, fault.Newf(fault.NotSupported, op, "The size of this kind of storage cannot be changed.")
	}
	setup, err := f.openAny(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, setup.Close(ctx)) }()
	trace.From(ctx).Step("record")
	got, err := f.reconcile(setup, records.NewerOrEqual)
	if err != nil {
		return nil, err
	}
	trace.From(ctx).Step("resize")
	size, err := resizer.Resize(ctx, setup, Size{Bytes: *f.view.DiskSize})
	if err != nil {
		return nil, err
	}
	f.Log.Info("the home area has its size", "wanted", *f.view.DiskSize, "bytes", size.Bytes)
	// The size has changed: the record has to follow.
	ctx = context.WithoutCancel(ctx)
	if err := f.shiftInactive(setup); err != nil {
		return nil, err
	}
	trace.From(ctx).Step("copies of the record")
	if err := f.writeCopies(ctx, setup, got); fault.Is(err, fault.NoDiskSpace) {
		// The host keeps the record, and the next activation brings it here.
		f.Log.Warn("no room for the record in the home", "error", err)
	} else if err != nil {
		return nil, err
	}
	return f.bind(got.Record, setup, f.view.HomeDirectory), nil
}

// Largest asks for as much as there is room for.
const Largest = math.MaxUint64 - 1

// autoGrow makes an elastic area as large as the record that rules wants it,
// never smaller: systemd-homed, and we where the record asks for it, shrink it
// at logout. Whatever keeps it from growing keeps nobody out.
func (f *flow) autoGrow(ctx context.Context, s *Setup, r records.Subject) {
	v := r.View(f.Machine)
	resizer, ok := f.backend.(Resizer)
	if !ok || v.AutoResizeMode == "off" || !resizer.Elastic(s) {
		return
	}
	want := uint64(0)
	if v.DiskSize != nil {
		want = *v.DiskSize
	} else {
		want = usualSize(v.ImagePath)
	}
	got, err := resizer.Resize(ctx, s, Size{Bytes: want, Only: OnlyGrow})
	if err != nil {
		f.Log.Warn("the home area stays smaller than its record says", "wanted", want, "error", err)
	} else if want < Largest && got.Bytes+got.Bytes/20 < want {
		f.Log.Warn("not enough disk space for the size that the record says", "wanted", want, "bytes", got.Bytes)
	}
}

// usualSize is what a home without a size of its own is given at creation: of a
// disk all, of a file system what is free but for itself; 0 if that is not much
// more than it has.
func usualSize(image string) uint64 {
	var st unix.Stat_t
	var fs unix.Statfs_t
	switch err := unix.Stat(image, &st); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK:
		return Largest
	case err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || unix.Statfs(image, &fs) != nil:
		return 0
	}
	size := (fs.Bavail*uint64(fs.Frsize) + uint64(st.Blocks)*512) / 100 * 83
	if size < uint64(st.Size)/20*21 {
		return 0
	}
	return size
}

// autoShrink gives the space that an elastic area has no use for back to the
// machine, as its home closes: root is its last mount. That is done where the
// record asks for it in so many words; the default of systemd-homed moves data
// at every logout, which trimming saves.
func (f *flow) autoShrink(ctx context.Context) {
	resizer, ok := f.backend.(Resizer)
	if !ok || f.KeepSize || !f.view.HasAutoResizeMode || f.view.AutoResizeMode != "shrink-and-grow" || f.view.Storage != "luks" {
		return
	}
	a := f.area
	a.Active, a.KeptKey, a.HomeDirectory = true, true, mounts.Work
	setup, err := f.backend.Open(ctx, a, &Credentials{})
	if err == nil {
		if resizer.Elastic(setup) {
			_, err = resizer.Resize(ctx, setup, Size{Only: OnlyShrink})
		}
		err = errors.Join(err, setup.Close(ctx))
	}
	if err != nil {
		f.Log.Info("the home area keeps its size", "error", err)
	}
}
