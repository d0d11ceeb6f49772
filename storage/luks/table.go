package luks

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/storage"
	"hearth/storage/disk"
	"hearth/storage/gpt"
)

// A diskTable is the partition table of the disk that a home's device is a part
// of.
type diskTable struct {
	file *os.File // the whole disk, locked
	size int64
	part gpt.Partition // the home's, as the table has it
	most int64         // how large it could be
	node *disk.Device  // the partition in the kernel; nil where it shows none
	why  error         // the table is not ours to change
}

// openTable finds the table behind a home's device. One that cannot be changed
// is no error: the file system may still grow to the end of its device.
//
// A worker may have been killed between telling the table and telling the
// kernel. The kernel is told now: of what is larger always, of what is smaller
// if the header says that the file system is smaller already.
func (c *container) openTable(a storage.Area) (_ *diskTable, err error) {
	const op = "open partition table"
	t := &diskTable{most: c.window.size}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	whole := c.image.Name()
	if c.window.offset == 0 {
		d, err := disk.Look(c.window.file)
		if err != nil {
			return nil, fault.New(fault.IOError, op, err)
		}
		t.node = &d
		if !d.Partition {
			t.why = errors.New("it is no partition")
			return t, nil
		}
		whole = d.Disk
	}
	if t.file, err = os.OpenFile(whole, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0); err != nil {
		return nil, fault.New(fault.IOError, op, err)
	}
	// The lock keeps udev from reading what is half written.
	for end := time.Now().Add(lockWait); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Flock(int(t.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			return nil, fault.New(fault.HomeBusy, op, err)
		}
	}
	if t.size, err = t.file.Seek(0, 2); err != nil {
		return nil, fault.New(fault.IOError, op, err)
	}
	start := c.window.offset
	if t.node != nil {
		start = t.node.Start
	}
	if t.part, t.why = gpt.Find(t.file, t.size, a.FullName, a.Bound.PartitionUUID); t.why != nil {
		return t, nil
	}
	if t.part.Offset != start || t.part.Size < c.window.size && !c.header.Flag(shrinkFlag) {
		t.why = errors.New("the kernel has read another partition table")
		return t, nil
	}
	if err := t.limit(t.part.Size); err != nil {
		return nil, fault.New(fault.IOError, op, err)
	}
	c.window.size = t.part.Size
	most, err := gpt.Room(t.file, t.size, t.part)
	if err != nil {
		t.why = err
		return t, nil
	}
	// As a new home's ends, see gpt.Layout.
	t.most = max(most/mib*mib, t.part.Size)
	return t, nil
}

func (t *diskTable) close() error {
	if t.file == nil {
		return nil
	}
	return t.file.Close()
}

// resize writes the new size into the table.
func (t *diskTable) resize(size int64) error {
	if err := gpt.Resize(t.file, t.size, t.part, size, t.size/int64(t.part.SectorSize)*int64(t.part.SectorSize)); err != nil {
		return err
	}
	t.part.Size = size
	return nil
}

// limit has the kernel show the partition in a size that the table has already.
func (t *diskTable) limit(size int64) error {
	if t.why != nil || t.node == nil || size == t.node.Size {
		return nil
	}
	if err := disk.ResizePartition(t.file, *t.node, size); err != nil {
		return err
	}
	t.node.Size = size
	return nil
}
