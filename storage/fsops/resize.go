package fsops

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
)

// The requests that change a mounted file system's size: linux/ext4.h,
// linux/btrfs.h, xfs_fs.h.
const (
	ext4Resize     = 0x40086610
	btrfsResize    = 0x50009403
	xfsGeometry    = 0x8070587C
	xfsGrowData    = 0x4010586E
	btrfsFirstDisk = 1 // the number of a home's only device
)

// Span returns how many bytes of its device the file system counts as its own.
// root is in it where it is mounted; device is where it lies.
func Span(fstype string, root *os.File, device io.ReaderAt) (int64, error) {
	const op = "measure file system"
	switch fstype {
	case "ext4":
		b := make([]byte, ext4Size)
		if _, err := device.ReadAt(b, ext4At); err != nil {
			return 0, fmt.Errorf("%s: %w", op, err)
		}
		// 0x4 blocks u32, 0x18 log2 of a block in KiB, 0x150 the upper half of
		// blocks where the feature "64bit" (0x80 of incompat) is on.
		le := binary.LittleEndian
		blocks := uint64(le.Uint32(b[4:]))
		if le.Uint32(b[0x60:])&0x80 != 0 {
			blocks |= uint64(le.Uint32(b[0x150:])) << 32
		}
		shift := le.Uint32(b[0x18:])
		if shift > 6 || blocks >= 1<<(63-10-6) {
			return 0, fault.New(fault.NotAnImage, op, fmt.Errorf("%d blocks of 2^%d KiB", blocks, shift))
		}
		return int64(blocks << (10 + shift)), nil
	case "btrfs":
		info := struct { // btrfs_ioctl_dev_info_args
			id          uint64
			uuid        [16]byte
			used, total uint64
			rest        [4056]byte
		}{id: btrfsFirstDisk}
		if err := ioctl(root, btrfsDevInfo, unsafe.Pointer(&info)); err != nil {
			return 0, fmt.Errorf("%s: %w", op, err)
		}
		return int64(info.total), nil
	case "xfs":
		g, err := xfsShape(root)
		return int64(g.blockSize) * int64(g.dataBlocks), err
	}
	return 0, cannot(fstype)
}

// xfsGeom is struct xfs_fsop_geom_v4.
type xfsGeom struct {
	blockSize, rtExtSize, agBlocks, agCount, logBlocks, sectSize, inodeSize, maxInodePercent uint32
	dataBlocks                                                                               uint64
	rest                                                                                     [72]byte
}

func xfsShape(root *os.File) (g xfsGeom, err error) {
	if err = ioctl(root, xfsGeometry, unsafe.Pointer(&g)); err != nil {
		err = fmt.Errorf("measure file system: %w", err)
	}
	return g, err
}

func cannot(fstype string) error {
	return fault.Newf(fault.NotSupported, "resize file system", "A file system of type %q cannot be resized.", fstype)
}

// Grow has the mounted file system that root is in use size bytes of its
// device, in whole blocks. A crash leaves the old size or one in between.
func Grow(fstype string, root *os.File, size int64) error {
	var err error
	switch fstype {
	case "ext4":
		var fs unix.Statfs_t
		if err = onFD(root, func(fd int) error { return unix.Fstatfs(fd, &fs) }); err == nil {
			blocks := uint64(size) / uint64(fs.Bsize)
			err = ioctl(root, ext4Resize, unsafe.Pointer(&blocks))
		}
	case "btrfs":
		err = resizeBtrfs(root, size)
	case "xfs":
		var g xfsGeom
		if g, err = xfsShape(root); err == nil {
			args := struct {
				blocks       uint64
				percent, pad uint32
			}{blocks: uint64(size) / uint64(max(g.blockSize, 512)), percent: g.maxInodePercent}
			err = ioctl(root, xfsGrowData, unsafe.Pointer(&args))
		}
	default:
		return cannot(fstype)
	}
	if err != nil {
		return fmt.Errorf("grow file system to %d bytes: %w", size, err)
	}
	return nil
}

// ShrinkMounted has the mounted file system give up what is behind size bytes.
// ENOSPC: its files do not fit, and it stays as it is. Faults: BadHomeSize for a
// type that cannot, with the text that clients know.
func ShrinkMounted(fstype string, root *os.File, size int64) error {
	const op = "shrink file system"
	switch fstype {
	case "btrfs":
		if err := resizeBtrfs(root, size); err != nil {
			return fmt.Errorf("%s to %d bytes: %w", op, size, err)
		}
		return nil
	case "ext4":
		return fault.Newf(fault.BadHomeSize, op, "File systems of this type can only be shrunk offline")
	case "xfs":
		return fault.Newf(fault.BadHomeSize, op, "File systems of this type cannot be shrunk")
	}
	return cannot(fstype)
}

func resizeBtrfs(root *os.File, size int64) error {
	var args struct { // btrfs_ioctl_vol_args
		fd   int64
		name [4088]byte
	}
	copy(args.name[:], strconv.FormatInt(size, 10))
	return ioctl(root, btrfsResize, unsafe.Pointer(&args))
}

// ShrinkExt4 makes the unmounted ext4 on a device size bytes long. A crash
// meanwhile leaves a file system that Repair makes whole. Faults: BadHomeSize if
// its files do not fit, IOError if it is damaged, NotSupported without the
// tools.
func ShrinkExt4(ctx context.Context, node string, size int64) error {
	const op = "shrink file system"
	if err := preen(ctx, node); err != nil {
		return err
	}
	path, err := tool("resize2fs")
	if err != nil {
		e := fault.Newf(fault.NotSupported, op, "The program resize2fs is not installed.")
		e.Err = err
		return e
	}
	err = run(ctx, path, node, strconv.FormatInt(size/512, 10)+"s")
	if err != nil && ctx.Err() == nil {
		// It refuses before it moves anything, or leaves a mark in the superblock.
		if cerr := preen(ctx, node); cerr != nil {
			return errors.Join(cerr, err)
		}
		e := fault.Newf(fault.BadHomeSize, op, "The files of this home do not fit into the requested size")
		e.Err = err
		return e
	}
	if err != nil {
		return err
	}
	return preen(ctx, node)
}

// preen repairs what can be without asking. resize2fs (1.47) at times leaves a
// resize inode behind that e2fsck calls not valid, and will not make anew
// without asking, though it finds no error with it: unless that is put right, the
// check after the next power cut keeps the user out.
func preen(ctx context.Context, node string) error {
	err := e2fsck(ctx, node, "-p")
	if err == nil || ctx.Err() != nil || e2fsck(ctx, node, "-n") != nil {
		return err
	}
	return e2fsck(ctx, node, "-y")
}

// Repair makes an ext4 whole that a shrink was cut off from: what could not be
// decided without asking is decided for keeping data.
func Repair(ctx context.Context, node string) error {
	if preen(ctx, node) == nil {
		return nil
	}
	return e2fsck(ctx, node, "-y")
}

// e2fsck checks an ext4 whatever its superblock says.
func e2fsck(ctx context.Context, node, mode string) error {
	op := "check file system on " + node
	path, err := tool("e2fsck")
	if err != nil {
		e := fault.Newf(fault.NotSupported, op, "The program e2fsck is not installed.")
		e.Err = err
		return e
	}
	err = run(ctx, path, "-f", mode, node)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return nil // repaired
	}
	if err != nil {
		return fault.New(fault.IOError, op, err)
	}
	return nil
}
