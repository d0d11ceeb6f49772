// Package disk asks the kernel about block devices: what is a partition of
// what, where it begins, how large sectors are. It knows no partition table;
// what lies on a device is its callers'.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const sysfs = "/sys/dev/block"

// A Device is a disk or one of its partitions, as it was when it was looked at.
type Device struct {
	Major, Minor uint32
	// Size is its length and Start where it begins on its disk, in bytes.
	Size, Start int64
	// SectorSize is that of the disk, in bytes: nothing smaller is written.
	SectorSize int
	// Partition says that it is one; Disk is then the node of the whole.
	Partition bool
	Disk      string

	dir string // in sysfs
}

// Look returns what an open device node stands for.
func Look(f *os.File) (Device, error) {
	var d Device
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return d, fmt.Errorf("look at device: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return d, fmt.Errorf("look at device: %s is none", f.Name())
	}
	d.Major, d.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	var err error
	if d.Size, err = f.Seek(0, io.SeekEnd); err != nil {
		return d, fmt.Errorf("size of %s: %w", f.Name(), err)
	}
	if d.SectorSize, err = unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET); err != nil {
		return d, fmt.Errorf("sectors of %s: %w", f.Name(), err)
	}
	if d.dir, err = filepath.EvalSymlinks(fmt.Sprintf("%s/%d:%d", sysfs, d.Major, d.Minor)); err != nil {
		return d, fmt.Errorf("look at device: %w", err)
	}
	if _, err := os.Stat(filepath.Join(d.dir, "partition")); errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	d.Partition = true
	if d.Start, err = sectors(d.dir, "start"); err != nil {
		return d, err
	}
	d.Disk, err = node(filepath.Dir(d.dir))
	return d, err
}

// PartitionAt returns the node of the partition that the kernel sees in these
// bytes of the disk. Error: fs.ErrNotExist if it sees none.
func (d Device) PartitionAt(start, size int64) (string, error) {
	list, err := filepath.Glob(filepath.Join(d.dir, "*", "partition"))
	if err != nil {
		return "", err
	}
	for _, p := range list {
		dir := filepath.Dir(p)
		from, err1 := sectors(dir, "start")
		long, err2 := sectors(dir, "size")
		if err1 == nil && err2 == nil && from == start && long == size {
			return node(dir)
		}
	}
	return "", fmt.Errorf("partition %d+%d of %d:%d: %w", start, size, d.Major, d.Minor, fs.ErrNotExist)
}

// Announce has the kernel tell everybody of the device once more: udev then
// looks at what is on it.
func (d Device) Announce() error {
	return os.WriteFile(filepath.Join(d.dir, "uevent"), []byte("change"), 0)
}

// sectors reads a number of 512-byte sectors, which is sysfs's unit whatever
// the disk's is, and returns bytes.
func sectors(dir, name string) (int64, error) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n < 0 || n > 1<<54 {
		return 0, fmt.Errorf("%s of %s is %q", name, dir, text)
	}
	return n * 512, nil
}

// node returns the path of the node that devtmpfs made for a device in sysfs.
func node(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "uevent"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			return filepath.Join("/dev", name), nil
		}
	}
	return "", fmt.Errorf("%s has no node", dir)
}

// Reread has the kernel read the partition table of an open disk. It fails
// while a partition is in use, and where the driver knows no partitions.
func Reread(disk *os.File) error {
	if err := unix.IoctlSetInt(int(disk.Fd()), unix.BLKRRPART, 0); err != nil {
		return fmt.Errorf("reread partition table: %w", err)
	}
	return nil
}

// ResizePartition has the kernel show the partition d, which may be in use, as
// size bytes of the open disk that it is on. The table has to say so too: this
// holds until it is read again.
func ResizePartition(disk *os.File, d Device, size int64) error {
	text, err := os.ReadFile(filepath.Join(d.dir, "partition"))
	if err != nil {
		return fmt.Errorf("resize partition: %w", err)
	}
	number, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return fmt.Errorf("resize partition: %w", err)
	}
	// struct blkpg_partition and struct blkpg_ioctl_arg of linux/blkpg.h
	part := struct {
		start, length int64
		number        int32
		names         [128]byte
	}{start: d.Start, length: size, number: int32(number)}
	arg := struct {
		op, flags, length int32
		part              unsafe.Pointer
	}{op: 3 /* BLKPG_RESIZE_PARTITION */, length: int32(unsafe.Sizeof(part)), part: unsafe.Pointer(&part)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(&part)
	if errno != 0 {
		return fmt.Errorf("resize partition %d: %w", number, errno)
	}
	return nil
}

// Discard tells an open device that nothing of its first size bytes is needed.
func Discard(device *os.File, size int64) error {
	which := [2]uint64{0, uint64(size)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&which)))
	if errno != 0 {
		return fmt.Errorf("discard: %w", errno)
	}
	return nil
}
