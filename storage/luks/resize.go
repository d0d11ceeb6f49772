package luks

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/storage"
	"hearth/storage/dm"
	"hearth/storage/fsops"
	"hearth/storage/gpt"
	"hearth/storage/keyring"
	"hearth/storage/loop"
	"hearth/storage/mounts"
)

// unit is what sizes are rounded down to, as systemd-homed does, in bytes.
const unit = 4096

// keepFree is what a shrink leaves in the file system beside its files.
const keepFree = 16 * mib

// extent is how large the layers of an image are, in bytes. They differ by what
// lies around them, so all move by equal steps.
type extent struct {
	disk      int64 // what the table describes, as long as the file
	partition int64
}

// A frame is what bounds the extents of one image.
type frame struct {
	now     extent
	payload int64 // offset of the file system in the partition
	least   int64 // of the file system
	most    int64 // of the file
}

// aim returns the extent nearest to want. It is now if want is that already, or
// cannot be had, or is too near to be worth it.
func (f frame) aim(want storage.Size) extent {
	around := f.now.disk - f.now.partition
	disk := int64(min(want.Bytes, maxSize)) / unit * unit
	switch {
	case uint64(f.now.disk) <= want.Bytes && disk <= f.now.disk:
		return f.now
	case disk > f.now.disk:
		disk = min(disk, f.most)
	default:
		disk = max(disk, (f.least+f.payload+around+unit-1)/unit*unit)
	}
	partition := (disk - around) / unit * unit
	to := extent{partition + around, partition}
	grow := to.disk-f.now.disk >= gpt.Move
	shrink := f.now.disk-to.disk >= gpt.Move
	wanted := uint64(f.now.disk) < want.Bytes
	if grow && wanted && want.Only != storage.OnlyShrink || shrink && !wanted && want.Only != storage.OnlyGrow {
		return to
	}
	return f.now
}

// resizing is one change of size.
type resizing struct {
	a      storage.Area
	s      *storage.Setup
	o      *opened
	c      *container
	mapped *dm.Mapped
	loop   *loop.Device // nil for a partition that the kernel shows
	table  *diskTable   // nil for an image file
	span   int64        // of the file system
}

// Resize implements storage.Resizer. The orders are
//
//	image   grow    note, file, table, loop, mapping, file system, end
//	        shrink  note, file system, mapping, loop, table, file, end
//	device  grow    table, kernel's partition, mapping, file system
//	        shrink  note, file system, mapping, table, kernel's partition, end
//
// so that the file system never ends behind its mapping, the mapping never
// behind the partition, the partition never behind the file, on the disk as in
// the kernel. (systemd-homed cuts the file before it writes the table, and
// resizes no partition that is not in use.) What each cut leaves, and what
// becomes of it, is told at settleFile.
func (Backend) Resize(ctx context.Context, s *storage.Setup, want storage.Size) (got storage.Size, err error) {
	const op = "resize image"
	o, ok := s.Private.(*opened)
	if !ok {
		return got, errors.New("the setup has no LUKS2 header")
	}
	switch {
	case o.image == nil:
		return got, errors.New("the setup is that of a new image")
	case !o.image.device && o.image.part.Offset == 0:
		return got, fault.Newf(fault.NotSupported, op, "An image without a partition table cannot be resized.")
	case !o.header.Dynamic():
		return got, fault.Newf(fault.NotSupported, op, "This image states a size of its own in its LUKS2 header and cannot be resized.")
	}
	r := &resizing{a: o.area, s: s, o: o, c: o.image}
	if err := r.attach(); err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, r.release()) }()
	if r.span, err = span(s, r.mapped.Node); err != nil {
		return got, err
	}
	f, err := r.frame()
	if err != nil {
		return got, err
	}
	to := f.aim(want)
	switch {
	case r.fixed() && to.disk < f.now.disk:
		return got, fault.Newf(fault.NotSupported, op, "The device %s cannot be made smaller: %v.", o.image.image.Name(), r.table.why)
	case to.disk < f.now.disk:
		err = r.shrink(ctx, f, to)
	case to.disk > f.now.disk, r.c.room()-r.span >= unit && want.Only != storage.OnlyShrink:
		err = r.grow(ctx, f, to)
	case want.Bytes > uint64(f.now.disk)+unit && want.Bytes < maxSize && want.Only == storage.EitherWay:
		err = fault.New(fault.NoDiskSpace, op, fmt.Errorf("room for %d bytes, %d are wanted", f.most, want.Bytes))
	}
	return storage.Size{Bytes: uint64(r.size()), Only: want.Only}, err
}

// Elastic implements storage.Resizer.
func (Backend) Elastic(s *storage.Setup) bool {
	o, ok := s.Private.(*opened)
	return ok && o.image != nil && s.Found.FileSystemType == "btrfs"
}

// attach finds the devices of the open home and makes sure that they are those
// of this image.
func (r *resizing) attach() (err error) {
	const op = "find devices"
	if r.mapped, err = dm.Open(deviceName(r.a)); err != nil {
		return err
	}
	st, err := r.mapped.Status()
	if err != nil {
		return fault.New(fault.IOError, op, err)
	}
	if want := deviceUUID(r.a, r.o.header); st.UUID != want {
		return wrongMedium("mapped device", st.UUID, want)
	}
	major, minor, err := r.mapped.Backing()
	if err != nil {
		return fault.New(fault.IOError, op, err)
	}
	if r.c.device {
		if r.table, err = r.c.openTable(r.a); err != nil {
			return err
		}
		if d := r.table.node; d != nil {
			if d.Major != major || d.Minor != minor {
				err = wrongMedium("device", fmt.Sprintf("%d:%d", d.Major, d.Minor), fmt.Sprintf("%d:%d", major, minor))
				return errors.Join(err, r.release())
			}
			r.o.window = r.c.window
			return nil
		}
	}
	if r.loop, err = loop.Of(r.c.image, major, minor); err != nil {
		return errors.Join(fault.New(fault.WrongMedium, op, err), r.release())
	}
	return nil
}

// release closes what attach has opened.
func (r *resizing) release() error {
	var errs []error
	if r.loop != nil {
		errs = append(errs, r.loop.Relinquish())
	}
	if r.table != nil {
		errs = append(errs, r.table.close())
	}
	return errors.Join(errs...)
}

// fixed reports whether the home has a device whose length is not ours to
// change.
func (r *resizing) fixed() bool { return r.table != nil && r.table.why != nil }

// size is what a user's size means: the length of the file, or of the
// partition.
func (r *resizing) size() int64 {
	if r.c.device {
		return r.c.window.size
	}
	return r.c.size
}

// room is how large the file system could be, in bytes.
func (c *container) room() int64 {
	sectors, _ := c.header.Table(c.window.size, 0, 0, false)
	return int64(sectors) * 512 / unit * unit
}

func span(s *storage.Setup, node string) (int64, error) {
	device, err := os.Open(node)
	if err != nil {
		return 0, fault.New(fault.IOError, "measure file system", err)
	}
	defer func() { _ = device.Close() }()
	n, err := fsops.Span(s.Found.FileSystemType, s.Root, device)
	if err != nil {
		return 0, fault.New(fault.IOError, "measure file system", err)
	}
	return n, nil
}

// frame measures what bounds the new size.
func (r *resizing) frame() (frame, error) {
	const op = "measure home"
	if err := mounts.SyncFS(r.s.Root); err != nil {
		return frame{}, storage.SpaceFault(op, err)
	}
	var fs, around unix.Statfs_t
	if err := errors.Join(unix.Fstatfs(int(r.s.Root.Fd()), &fs), unix.Fstatfs(int(r.c.image.Fd()), &around)); err != nil {
		return frame{}, fault.New(fault.IOError, op, err)
	}
	least := max(r.span-int64(fs.Bfree)*fs.Bsize+keepFree, fsops.MinimumSize(r.s.Found.FileSystemType), minSize)
	if r.c.device {
		p := r.c.window.size
		return frame{now: extent{p, p}, payload: r.c.header.DataOffset(), least: least, most: min(r.table.most, maxSize)}, nil
	}
	held, err := r.c.held()
	if err != nil {
		return frame{}, fault.New(fault.IOError, op, err)
	}
	most := int64(maxSize)
	if hi, free := bits.Mul64(uint64(around.Frsize), around.Bavail); hi == 0 && free < maxSize {
		most = min(most, held+int64(free)-spare)
	}
	return frame{
		now:     extent{gpt.Disk(r.c.image, r.c.size, r.c.part), r.c.window.size},
		payload: r.c.header.DataOffset(),
		least:   least,
		most:    most,
	}, nil
}

// held returns how many bytes of disk the image takes.
func (c *container) held() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(c.image.Fd()), &st); err != nil {
		return 0, err
	}
	return min(max(st.Blocks, 0), maxSize/512) * 512, nil
}

// grow makes everything larger, from the outside in.
func (r *resizing) grow(ctx context.Context, f frame, to extent) error {
	a, c := r.a, r.c
	if err := r.begin(f, to); err != nil {
		return err
	}
	// Half of it is worth less than all of it.
	ctx = context.WithoutCancel(ctx)
	if to.disk > f.now.disk && r.table != nil {
		if err := r.writeTable(to); err != nil {
			return err
		}
	} else if to.disk > f.now.disk {
		a.Progress("extend image", 0, uint64(to.disk))
		got, err := allocate(c.image, f.now.disk, to.disk, a.LUKS.Discard)
		if err == nil {
			to = f.aim(storage.Size{Bytes: uint64(got), Only: storage.OnlyGrow})
			// Also when all of it was got: aim rounds.
			err = errors.Join(c.image.Truncate(to.disk), c.image.Sync())
		}
		if err == nil && to == f.now {
			err = unix.ENOSPC
		}
		if err != nil {
			return errors.Join(storage.SpaceFault("extend image", err), c.image.Truncate(f.now.disk), c.forgetIntent())
		}
		c.size = to.disk
		if err := r.writeTable(to); err != nil {
			return err
		}
	}
	a.Progress("map", 0, 0)
	if err := r.limit(to.partition); err != nil {
		return fault.New(fault.IOError, "grow device", err)
	}
	if err := r.remap(); err != nil {
		return err
	}
	a.Progress("grow file system", 0, 0)
	if err := fsops.Grow(r.s.Found.FileSystemType, r.s.Root, c.room()); err != nil {
		return storage.SpaceFault("resize", err)
	}
	return r.end(ctx)
}

// shrink makes everything smaller, from the inside out.
func (r *resizing) shrink(ctx context.Context, f frame, to extent) error {
	a, c := r.a, r.c
	if err := r.roomToMove(f, to); err != nil {
		return err
	}
	offline := r.s.Found.FileSystemType == "ext4" && !a.Active
	if !offline && r.s.Found.FileSystemType != "btrfs" {
		// Before anything is noted: it says why it cannot.
		return fsops.ShrinkMounted(r.s.Found.FileSystemType, r.s.Root, r.span)
	}
	if err := r.begin(f, to); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	a.Progress("shrink file system", 0, 0)
	var err error
	if offline {
		err = r.shrinkUnmounted(ctx, to.partition-f.payload)
	} else {
		to, err = r.shrinkMounted(f, to)
	}
	if err != nil && !fault.Is(err, fault.BadHomeSize) {
		return err // the note stays, for who repairs
	}
	if err != nil || to == f.now {
		return errors.Join(err, c.forgetIntent())
	}
	if err := mounts.SyncFS(r.s.Root); err != nil {
		return storage.SpaceFault("resize", err)
	}
	a.Progress("map", 0, 0)
	c.window.size = to.partition
	r.o.window = c.window
	if err := r.remap(); err != nil {
		return err
	}
	if err := r.sync(); err != nil {
		return fault.New(fault.IOError, "shrink device", err)
	}
	if r.table != nil {
		// The kernel reads the table again at the next start at the latest.
		if err := r.writeTable(to); err != nil {
			return err
		}
		if err := r.limit(to.partition); err != nil {
			return fault.New(fault.IOError, "shrink partition", err)
		}
		return r.end(ctx)
	}
	if err := r.limit(to.partition); err != nil {
		return fault.New(fault.IOError, "shrink loop device", err)
	}
	if err := r.writeTable(to); err != nil {
		return err
	}
	a.Progress("cut image", 0, uint64(to.disk))
	if err := errors.Join(c.image.Truncate(to.disk), c.image.Sync()); err != nil {
		return storage.SpaceFault("cut image", err)
	}
	c.size = to.disk
	return r.end(ctx)
}

// roomToMove makes sure that what a shrink moves finds its place in a sparse
// image: the file system would take a full disk for a broken one.
func (r *resizing) roomToMove(f frame, to extent) error {
	if r.c.device {
		return nil // all of it is there
	}
	held, err := r.c.held()
	if err != nil {
		return fault.New(fault.IOError, "measure home", err)
	}
	moved := min(f.least, f.now.disk-to.disk, f.now.disk-held)
	if f.most-held < moved {
		return fault.New(fault.NoDiskSpace, "shrink image", fmt.Errorf("%d bytes are free around the image, up to %d will be moved", f.most-held, moved))
	}
	return nil
}

// begin makes the intent durable, and the file as long as the disk is.
func (r *resizing) begin(f frame, to extent) error {
	r.a.Progress("note resize", 0, 0)
	i := intent{f.now.disk, to.disk}
	if err := r.c.note(i); err != nil {
		return storage.SpaceFault("resize", err)
	}
	return r.c.cutTail()
}

// writeTable gives the partition its new size. The file is as long as the
// larger of the two.
func (r *resizing) writeTable(to extent) error {
	r.a.Progress("write partition table", 0, 0)
	c := r.c
	if r.table != nil {
		if err := r.table.resize(to.partition); err != nil {
			return storage.SpaceFault("resize", err)
		}
	} else if err := gpt.Resize(c.image, c.size, c.part, to.partition, to.disk); err != nil {
		return storage.SpaceFault("resize", err)
	}
	c.part.Size = to.partition
	c.window.size = to.partition
	r.o.window = c.window
	return nil
}

// limit gives the device below the mapped one its size.
func (r *resizing) limit(size int64) error {
	if r.loop != nil {
		return r.loop.SetSizeLimit(size)
	}
	return r.table.limit(size)
}

// sync has the device below the mapped one write out what it holds.
func (r *resizing) sync() error {
	if r.loop != nil {
		return r.loop.Sync()
	}
	return r.c.window.Sync()
}

// remap has the mapped device show the whole partition. The live table stays
// but for its length.
func (r *resizing) remap() error {
	const op = "resize mapped device"
	_, target, params, err := r.mapped.Table()
	if err != nil {
		return fault.New(fault.IOError, op, err)
	}
	sectors, _ := r.o.header.Table(r.c.window.size, 0, 0, false)
	err = keyring.WithLogonKey(r.o.header.KeyDescription(), r.s.VolumeKey, func() error {
		return r.mapped.Reload(sectors, target, params, dm.Options{})
	})
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// shrinkMounted takes as little as the file system gives up between what it is
// and what it is to be.
func (r *resizing) shrinkMounted(f frame, to extent) (extent, error) {
	size := func(e extent) int64 { return (e.partition - f.payload) / unit * unit }
	best, low, high := f.now, size(to), min(r.span, size(f.now))
	for try := low; try < high && high-try >= mib; try = (low + high) / 2 / unit * unit {
		err := fsops.ShrinkMounted(r.s.Found.FileSystemType, r.s.Root, try)
		switch {
		case err == nil:
			step := try - size(to)
			best = extent{to.disk + step, to.partition + step}
			high = try
			if try == low {
				return best, nil
			}
		case errors.Is(err, unix.ENOSPC):
			low = try
		default:
			return f.now, storage.SpaceFault("resize", err)
		}
	}
	return best, nil
}

// shrinkUnmounted takes the file system from the work directory for the time
// that its program needs.
func (r *resizing) shrinkUnmounted(ctx context.Context, size int64) error {
	if err := errors.Join(r.s.Root.Close(), mounts.UnmountTree(mounts.Work)); err != nil {
		return fault.New(fault.IOError, "unmount home", err)
	}
	err := fsops.ShrinkExt4(ctx, r.mapped.Node, size/512*512)
	if merr := mountNode(r.a, r.s.Found.FileSystemType, r.mapped.Node); merr != nil {
		return errors.Join(err, merr)
	}
	root, rerr := topDirectory(r.a)
	if rerr != nil {
		return errors.Join(err, rerr)
	}
	r.s.Root = root
	return err
}

// end makes the new size final.
func (r *resizing) end(ctx context.Context) error {
	r.a.Progress("end resize", 0, 0)
	if r.a.LUKS.Discard {
		trim(r.a, r.s.Root, "home was not trimmed")
	}
	if err := mounts.SyncFS(r.s.Root); err != nil {
		return storage.SpaceFault("resize", err)
	}
	if err := r.sync(); err != nil {
		return fault.New(fault.IOError, "resize", err)
	}
	return storage.SpaceFault("resize", r.c.forgetIntent())
}
