package luks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/storage"
	"hearth/storage/disk"
	"hearth/storage/fsops"
	"hearth/storage/gpt"
)

const (
	byUUID = "/dev/disk/by-uuid"
	// linkWait bounds how long udev may take to look at a new container.
	linkWait = 45 * time.Second
	// rereadAfter is when we have the kernel read a new partition table
	// ourselves. udev does it too, once we close the disk; both doing it would
	// have the partition come and go.
	rereadAfter = 2 * time.Second
	// lockWait bounds how long others may look at a device.
	lockWait = 10 * time.Second

	tableSize  = mib      // in front and behind, with what aligns it
	headerSize = 16 * mib // of a container
)

func device(path string) bool { return strings.HasPrefix(path, "/dev/") }

// claimed is a block device on its way to become a home.
type claimed struct {
	area  storage.Area
	file  *os.File // held exclusively
	whole *os.File // the disk, locked: udev leaves it alone
	disk.Device
	part gpt.Partition // to be made; zero for a partition that is there
}

// claimDevice takes a block device for a new home and returns the part of it
// that becomes the container. A partition has to be set aside for this home,
// by type and name, and is used as it is. A disk gets a partition table, but
// only at Commit: until then it looks empty to everybody, so a power cut leaves
// nothing that could be taken for a home. On a partition that power cut leaves
// a container without files.
//
// What is in use or not empty is refused. (systemd-homed overwrites what it is
// given.)
func claimDevice(ctx context.Context, a storage.Area, s *storage.Setup, r *recipe) (window, error) {
	const op = "take block device"
	c := &claimed{area: a}
	if err := c.open(s); err != nil {
		return window{}, err
	}
	if err := c.lock(ctx, s); err != nil {
		return window{}, err
	}
	w := window{file: c.file}
	var err error
	if c.Partition {
		w.size, err = c.Size/mib*mib, c.isMeant(r)
	} else {
		err = c.layout(r)
		w.offset, w.size = c.part.Offset, c.part.Size
	}
	if err != nil {
		return window{}, err
	}
	if least := r.least - 2*tableSize; w.size < least {
		return window{}, fault.New(fault.BadHomeSize, op, fmt.Errorf("%d bytes, %d are needed", w.size, least))
	}
	if err := c.isEmpty(ctx); err != nil {
		return window{}, err
	}
	r.sectorSize = max(r.sectorSize, c.SectorSize)
	if a.LUKS.Discard || a.LUKS.OfflineDiscard {
		if err := disk.Discard(c.file, c.Size); err != nil {
			a.Log.Info("the device was not discarded", "error", err)
		}
	}
	s.Undo("empty device", func(context.Context) error { return c.erase() })
	s.OnCommit(func(ctx context.Context) error { return c.finish(ctx, r) })
	// The name of a device is that of the moment; the container's stays.
	s.Found.ImagePath = filepath.Join(byUUID, r.luksUUID)
	return w, nil
}

// open opens the device for us alone: refused while it, or a partition of it,
// is mounted or mapped.
func (c *claimed) open(s *storage.Setup) error {
	const op = "open block device"
	path := c.area.ImagePath
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fault.Newf(fault.HomeBusy, op, "The device %s is in use.", path)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOMEDIUM):
		return fault.New(fault.HomeAbsent, op, fmt.Errorf("%s: %w", path, err))
	case err != nil:
		return fault.New(fault.Unknown, op, fmt.Errorf("%s: %w", path, err))
	}
	c.file = os.NewFile(uintptr(fd), path)
	s.Finally("close device", func(context.Context) error { return c.close() })
	if c.Device, err = disk.Look(c.file); err != nil {
		return fault.New(fault.NotAnImage, op, err)
	}
	return nil
}

func (c *claimed) close() error {
	err := c.file.Close()
	if c.whole != nil && c.whole != c.file {
		err = errors.Join(err, c.whole.Close())
	}
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// lock takes the lock that udev respects, which is that of the whole disk.
func (c *claimed) lock(ctx context.Context, s *storage.Setup) error {
	const op = "lock block device"
	c.whole = c.file
	if c.Partition {
		whole, err := os.OpenFile(c.Disk, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return fault.New(fault.IOError, op, err)
		}
		c.whole = whole
	}
	for end := time.Now().Add(lockWait); ; {
		err := unix.Flock(int(c.whole.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fault.New(fault.IOError, op, err)
		case time.Now().After(end):
			return fault.Newf(fault.HomeBusy, op, "Another program works on the device %s.", c.area.ImagePath)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fault.New(fault.Timeout, op, err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isEmpty refuses a device with anything on it that somebody may miss.
func (c *claimed) isEmpty(ctx context.Context) error {
	const op = "look for signatures"
	path := c.area.ImagePath
	found, err := fsops.Signatures(ctx, c.file)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fault.Newf(fault.FileExists, op, "The device %s is not empty, %s was found on it. If nothing of that is needed, erase it with \"wipefs --all %s\" first.",
			path, strings.Join(found, ", "), path)
	}
	return nil
}

// isMeant refuses a partition that nobody made for this home, and takes over
// its UUID.
func (c *claimed) isMeant(r *recipe) error {
	const op = "look at partition"
	size, err := c.whole.Seek(0, 2)
	if err != nil {
		return fault.New(fault.IOError, op, err)
	}
	p, err := gpt.Find(c.whole, size, c.area.FullName, "")
	if err != nil && !fault.Is(err, fault.NotAnImage) {
		return err
	}
	if err != nil || p.Offset != c.Start || p.Size != c.Size {
		return fault.Newf(fault.InvalidArgs, op, "The partition %s is not one for this home. Give it the type %s and the name %s, or name an empty disk.",
			c.area.ImagePath, gpt.HomeType, c.area.FullName)
	}
	r.partitionUUID = p.UUID
	return nil
}

// layout plans the one partition of a disk, of the size that the record asks
// for, else all of it.
func (c *claimed) layout(r *recipe) error {
	const op = "lay out disk"
	part, err := gpt.Layout(c.Size, c.SectorSize)
	if err != nil {
		return err
	}
	a := c.area
	switch {
	case a.DiskSize != nil && *a.DiskSize > uint64(c.Size):
		return fault.Newf(fault.BadHomeSize, op, "The device %s has %d bytes only.", a.ImagePath, c.Size)
	case a.DiskSize != nil:
		part.Size = min(part.Size, int64(*a.DiskSize)/mib*mib)
	case a.DiskSizeRelative != nil:
		part.Size = int64(scale(uint64(part.Size), min(*a.DiskSizeRelative, 1<<32-1), 1<<32-1))
	}
	part.UUID, part.Name = r.partitionUUID, a.FullName
	c.part = part
	return nil
}

// finish makes the home visible: what is on the device first, then, on a disk,
// the table that leads there.
func (c *claimed) finish(ctx context.Context, r *recipe) error {
	if err := c.file.Sync(); err != nil {
		return storage.SpaceFault("sync device", err)
	}
	if !c.Partition {
		if err := gpt.Write(c.file, c.Size, c.SectorSize, c.part, r.diskGUID); err != nil {
			return storage.SpaceFault("write partition table", err)
		}
	}
	if err := c.close(); err != nil {
		return storage.SpaceFault("close device", err)
	}
	c.awaitLink(ctx, r)
	return nil
}

// awaitLink waits until the home can be found by its path. The home is
// complete without that.
func (c *claimed) awaitLink(ctx context.Context, r *recipe) {
	if _, err := os.Stat("/run/udev/control"); err != nil {
		return
	}
	c.area.Progress("wait for udev", 0, 0)
	link := filepath.Join(byUUID, r.luksUUID)
	begun := time.Now()
	for nudged := false; ; {
		_, err := os.Stat(link)
		if err == nil && c.partitionThere() {
			return
		}
		if waited := time.Since(begun); waited > linkWait {
			c.area.Log.Warn("udev does not know the new home yet", "path", link, "error", err)
			return
		} else if waited > rereadAfter && !nudged {
			nudged = true
			c.nudge()
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			return
		}
	}
}

func (c *claimed) partitionThere() bool {
	if c.Partition {
		return true
	}
	_, err := c.PartitionAt(c.part.Offset, c.part.Size)
	return err == nil
}

// nudge tells kernel and udev to look, where neither did by itself.
func (c *claimed) nudge() {
	var err error
	if !c.partitionThere() {
		var whole *os.File
		if whole, err = os.OpenFile(c.area.ImagePath, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			err = errors.Join(disk.Reread(whole), whole.Close())
		}
	}
	if err := errors.Join(err, c.Announce()); err != nil {
		c.area.Log.Info("the kernel did not announce the new home", "error", err)
	}
}

// erase takes back what an unfinished home left: table, container header, and
// the table's backup.
func (c *claimed) erase() error {
	zero := make([]byte, mib)
	head := min(c.Size, tableSize+headerSize)
	for at := int64(0); at < head; at += mib {
		if _, err := c.file.WriteAt(zero[:min(mib, head-at)], at); err != nil {
			return fault.New(fault.IOError, "erase device", err)
		}
	}
	if !c.Partition && c.Size > mib {
		if _, err := c.file.WriteAt(zero, c.Size-mib); err != nil {
			return fault.New(fault.IOError, "erase device", err)
		}
	}
	return c.file.Sync()
}

// enterPartition goes from a disk to the partition that was found on it. Where
// the kernel shows none, the disk's window stays and gets a loop device.
func (c *container) enterPartition(s *storage.Setup) error {
	const op = "open home partition"
	d, err := disk.Look(c.image)
	if err != nil {
		return fault.New(fault.IOError, op, err)
	}
	path, err := d.PartitionAt(c.window.offset, c.window.size)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.IOError, op, err)
	}
	node, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fault.New(fault.IOError, op, err)
	}
	s.Finally("close partition", func(context.Context) error { return node.Close() })
	c.window.file, c.window.offset = node, 0
	return nil
}
