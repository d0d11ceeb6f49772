// Package loop makes block devices of regular files through the kernel's loop
// driver. It knows offsets and sizes, no format, and leaves to its callers
// what lies in the file.
package loop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const control = "/dev/loop-control"

// Attempts and pauses: another program can take the free device that the
// kernel named before we do.
const (
	attachTries = 64
	pauseMin    = 10 * time.Millisecond
	pauseMax    = 250 * time.Millisecond
	removeWait  = 5 * time.Second
	removeFirst = time.Millisecond
	removeLast  = 100 * time.Millisecond
)

// Device is an attached loop device.
type Device struct {
	File         *os.File // the open node, ours; keeps the device attached
	Path         string   // /dev/loopN
	Major, Minor uint32
	Number       int

	usesDirectIO, readOnly bool
}

// Config says which part of the file the device shows.
type Config struct {
	Offset, SizeLimit int64 // bytes; SizeLimit 0 is up to the file's end
	// BlockSize is the logical block size in bytes, 0 means 512.
	BlockSize uint32
	ReadOnly  bool
	// BufferedIO leaves direct IO off even where it works.
	BufferedIO bool
}

// Attach makes a loop device of image, which stays the caller's and may be
// closed. The device clears itself on its last close (AUTOCLEAR): a dm device
// or a mount on it keeps it, a killed worker leaves nothing. Direct IO is used
// where the file system has it. Partitions are not scanned.
//
// Faults: NotSupported on a kernel without loop devices.
func Attach(ctx context.Context, image *os.File, c Config) (*Device, error) {
	if c.BlockSize == 0 {
		c.BlockSize = 512
	}
	ctl, err := openControl()
	if err != nil {
		return nil, err
	}
	defer func() { _ = ctl.Close() }()

	direct := !c.BufferedIO
	for try := 1; ; try++ {
		d, err := attachOnce(ctl, image, c, direct)
		switch {
		case err == nil:
			return d, nil
		case direct && errors.Is(err, errNoDirectIO):
			direct = false
			continue
		case !busy(err) || try == attachTries:
			return nil, fmt.Errorf("attach loop device: %w", err)
		}
		if err := pause(ctx, pauseMin+rand.N(pauseMax-pauseMin)); err != nil {
			return nil, fmt.Errorf("attach loop device: %w", err)
		}
	}
}

// errNoDirectIO: file, file system or kernel cannot do direct IO with the
// block size asked for. Kernels differ in where they say so.
var errNoDirectIO = errors.New("no direct IO")

// attachOnce opens the image anew, because the kernel takes over the flags of
// the open file it is given and the caller's must not change.
func attachOnce(ctl, image *os.File, c Config, direct bool) (*Device, error) {
	flags := 0
	if direct {
		flags = unix.O_DIRECT
	}
	backing, err := reopen(image, c.ReadOnly, flags)
	if err != nil {
		if direct && errors.Is(err, unix.EINVAL) {
			return nil, errNoDirectIO
		}
		return nil, err
	}
	// From here on the kernel has its own hold on the file.
	defer func() { _ = backing.Close() }()
	d, err := attachFree(ctl, backing, c, direct)
	if err != nil {
		if direct && errors.Is(err, unix.EINVAL) {
			return nil, errNoDirectIO
		}
		return nil, err
	}
	if direct && !d.usesDirectIO {
		err := onFD(d.File, clearFD)
		if err := errors.Join(err, d.File.Close()); err != nil {
			return nil, err
		}
		return nil, errNoDirectIO
	}
	return d, nil
}

// busy are the failures that another free device cures: taken meanwhile, or
// its node not there yet.
func busy(err error) bool {
	return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

// attachFree binds backing to the first free loop device.
func attachFree(ctl, backing *os.File, c Config, direct bool) (_ *Device, err error) {
	// Whoever plays by the rules (systemd, we) takes free devices one at a
	// time under this lock.
	if err := flock(ctl, unix.LOCK_EX); err != nil {
		return nil, err
	}
	defer func() { _ = flock(ctl, unix.LOCK_UN) }()
	var n int
	if err := onFD(ctl, func(fd int) (err error) {
		n, err = unix.IoctlRetInt(fd, unix.LOOP_CTL_GET_FREE)
		return err
	}); err != nil {
		return nil, fmt.Errorf("find free device: %w", err)
	}
	path := fmt.Sprintf("/dev/loop%d", n)
	mode := unix.O_RDWR
	if c.ReadOnly {
		mode = unix.O_RDONLY
	}
	node, err := open(path, mode|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = node.Close()
		}
	}()
	// udev leaves a locked block device alone; the close of this second open
	// makes it look then. We never wait for it.
	guard, err := open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = guard.Close() }()
	if err := flock(guard, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = unix.EBUSY
		}
		return nil, err
	}
	var st unix.Stat_t
	if err := onFD(node, func(fd int) error {
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		switch _, err := unix.IoctlLoopGetStatus64(fd); {
		case err == nil:
			return unix.EBUSY
		case !errors.Is(err, unix.ENXIO):
			return err
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}

	cfg := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: c.BlockSize}
	cfg.Info.Offset = uint64(c.Offset)
	cfg.Info.Sizelimit = uint64(c.SizeLimit)
	cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if direct {
		cfg.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	if c.ReadOnly {
		cfg.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], backing.Name())
	if err := onFD(node, func(fd int) error { return unix.IoctlLoopConfigure(fd, &cfg) }); err != nil {
		return nil, fmt.Errorf("configure %s: %w", path, err)
	}
	d := &Device{
		File: node, Path: path, Number: n,
		Major: unix.Major(uint64(st.Rdev)), Minor: unix.Minor(uint64(st.Rdev)), readOnly: c.ReadOnly,
	}
	if err := d.verify(c); err != nil {
		_ = onFD(node, clearFD)
		return nil, err
	}
	return d, nil
}

// verify asks the kernel what it made of the configuration.
func (d *Device) verify(c Config) error {
	return onFD(d.File, func(fd int) error {
		info, err := unix.IoctlLoopGetStatus64(fd)
		if err != nil {
			return fmt.Errorf("look at %s: %w", d.Path, err)
		}
		d.usesDirectIO = info.Flags&unix.LO_FLAGS_DIRECT_IO != 0
		block, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
		if err != nil {
			return fmt.Errorf("block size of %s: %w", d.Path, err)
		}
		if uint32(block) != c.BlockSize {
			return fmt.Errorf("%s has blocks of %d bytes instead of %d", d.Path, block, c.BlockSize)
		}
		size, err := blockSize64(fd)
		if err != nil {
			return fmt.Errorf("size of %s: %w", d.Path, err)
		}
		if c.SizeLimit > 0 && size != c.SizeLimit/512*512 {
			return fmt.Errorf("%s has %d bytes instead of %d: the file ends early", d.Path, size, c.SizeLimit)
		}
		return nil
	})
}

// Size returns the device's length in bytes.
func (d *Device) Size() (int64, error) {
	var size int64
	err := onFD(d.File, func(fd int) (err error) {
		size, err = blockSize64(fd)
		return err
	})
	return size, err
}

// DirectIO reports whether the kernel bypasses the page cache of the file.
func (d *Device) DirectIO() bool { return d.usesDirectIO }

// Sync writes out what is in the device's cache.
func (d *Device) Sync() error { return d.File.Sync() }

// SetSizeLimit makes the device show limit bytes from its offset on, 0 up to
// the file's end, and tells who uses it.
func (d *Device) SetSizeLimit(limit int64) error {
	return onFD(d.File, func(fd int) error {
		info, err := unix.IoctlLoopGetStatus64(fd)
		if err != nil {
			return fmt.Errorf("look at %s: %w", d.Path, err)
		}
		info.Sizelimit = uint64(limit)
		if err := unix.IoctlLoopSetStatus64(fd, info); err != nil {
			return fmt.Errorf("resize %s: %w", d.Path, err)
		}
		return nil
	})
}

// Relinquish closes our hold and leaves the device to whatever uses it; the
// kernel clears it after the last close.
func (d *Device) Relinquish() error {
	if d.File == nil {
		return nil
	}
	node := d.File
	d.File = nil
	return node.Close()
}

// Detach syncs the device, clears and removes it. While something still uses
// it, it waits some seconds: the kernel lets go of the device below a removed
// dm device a little later, and udev looks for a moment. A device that is used
// longer clears itself on that user's close. After Detach nothing of d is
// open. A second call does nothing.
func (d *Device) Detach(ctx context.Context) error {
	if d.File == nil {
		return nil
	}
	node := d.File
	d.File = nil
	defer func() { _ = node.Close() }()
	var errs []error
	if !d.readOnly {
		if err := node.Sync(); err != nil {
			errs = append(errs, fmt.Errorf("sync %s: %w", d.Path, err))
		}
	}
	ctl, err := openControl()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer func() { _ = ctl.Close() }()
	ours, _ := Backing(d.Number)
	if err := onFD(node, clearFD); err != nil && !errors.Is(err, unix.ENXIO) {
		return errors.Join(append(errs, fmt.Errorf("clear %s: %w", d.Path, err))...)
	}
	// The kernel clears at the last close, which is this one unless someone
	// else has it open.
	if err := node.Close(); err != nil {
		errs = append(errs, err)
	}
	deadline := time.Now().Add(removeWait)
	for wait := removeFirst; ; wait = min(wait*2, removeLast) {
		if err := removeFree(ctl, d.Number); !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			break
		}
		if now, _ := Backing(d.Number); now != ours && now != "" {
			break // it is another's already
		}
		if pause(ctx, wait) != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// removeFree removes a device that nobody uses. It is a courtesy: /dev
// otherwise keeps as many as were ever used at once. The lock keeps us away
// from a free device that another is about to take.
func removeFree(ctl *os.File, number int) error {
	if err := flock(ctl, unix.LOCK_EX); err != nil {
		return err
	}
	defer func() { _ = flock(ctl, unix.LOCK_UN) }()
	return onFD(ctl, func(fd int) error { return unix.IoctlSetInt(fd, unix.LOOP_CTL_REMOVE, number) })
}

func clearFD(fd int) error { return unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0) }

// Of opens the attached device major:minor, which has to show image; it stays
// attached whatever becomes of the Device. Relinquish closes it.
func Of(image *os.File, major, minor uint32) (*Device, error) {
	at := fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)
	real, err := filepath.EvalSymlinks(at)
	if err != nil {
		return nil, fmt.Errorf("find loop device: %w", err)
	}
	d := &Device{Path: "/dev/" + filepath.Base(real), Major: major, Minor: minor}
	if _, err := fmt.Sscanf(filepath.Base(real), "loop%d", &d.Number); err != nil {
		return nil, fmt.Errorf("%s is no loop device", filepath.Base(real))
	}
	node, err := open(d.Path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	var info *unix.LoopInfo64
	var st unix.Stat_t
	err = onFD(node, func(fd int) (err error) {
		info, err = unix.IoctlLoopGetStatus64(fd)
		return err
	})
	if err == nil {
		err = onFD(image, func(fd int) error { return unix.Fstat(fd, &st) })
	}
	if err == nil && info.Inode != st.Ino {
		err = fmt.Errorf("%s shows another file", d.Path)
	}
	if err != nil {
		_ = node.Close()
		return nil, fmt.Errorf("look at %s: %w", d.Path, err)
	}
	d.File = node
	d.usesDirectIO, d.readOnly = info.Flags&unix.LO_FLAGS_DIRECT_IO != 0, info.Flags&unix.LO_FLAGS_READ_ONLY != 0
	return d, nil
}

// Backing returns the path of the file behind loop device number, "" if it is
// free or does not exist. The kernel appends " (deleted)" to one unlinked.
func Backing(number int) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", number))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSuffix(string(data), "\n"), err
}

// Attached is what the kernel tells of an attached device.
type Attached struct {
	Number            int
	Major, Minor      uint32
	Offset, SizeLimit int64
	DirectIO          bool
}

// Attachments returns the loop devices whose file is path, the lowest number
// first.
func Attachments(path string) ([]Attached, error) {
	numbers, err := devices()
	if err != nil {
		return nil, err
	}
	var list []Attached
	for _, n := range numbers {
		data, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", n))
		if err != nil || strings.TrimSuffix(string(data), "\n") != path {
			continue // free, gone meanwhile, or another's
		}
		a := Attached{Number: n}
		node, err := open(fmt.Sprintf("/dev/loop%d", a.Number), unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return nil, err
		}
		var info *unix.LoopInfo64
		var st unix.Stat_t
		err = onFD(node, func(fd int) (err error) {
			if info, err = unix.IoctlLoopGetStatus64(fd); err != nil {
				return err
			}
			return unix.Fstat(fd, &st)
		})
		_ = node.Close()
		if errors.Is(err, unix.ENXIO) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at loop%d: %w", a.Number, err)
		}
		a.Major, a.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		a.Offset, a.SizeLimit = int64(info.Offset), int64(info.Sizelimit)
		a.DirectIO = info.Flags&unix.LO_FLAGS_DIRECT_IO != 0
		list = append(list, a)
	}
	return list, nil
}

// devices are the numbers of all loop devices, attached or not, in order. A glob
// would list each one's directories, and whoever waits for an end asks often.
func devices() ([]int, error) {
	dir, err := os.Open("/sys/block")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var list []int
	for _, name := range names {
		if rest, ok := strings.CutPrefix(name, "loop"); ok {
			if n, err := strconv.Atoi(rest); err == nil {
				list = append(list, n)
			}
		}
	}
	slices.Sort(list)
	return list, nil
}
