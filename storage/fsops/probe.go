package fsops

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"hearth/internal/fault"
)

// Where the superblocks are, in bytes from the start of the device, and what
// we read of them. ext4: Documentation/filesystems/ext4/super.rst; btrfs:
// fs/btrfs/disk-io.h and its wiki's "On-disk format"; xfs: the "XFS Algorithms
// and Data Structures" book, chapter "Superblocks". Offsets within them:
//
//	ext4 (little endian): 0x34 mounts u16, 0x36 most mounts s16,
//	    0x38 magic EF53, 0x3A state u16, 0x40 last check u32,
//	    0x44 check interval u32, 0x5C compatible, 0x60 incompatible,
//	    0x64 read-only compatible features, 0x68 uuid, 0xE8 last orphan u32,
//	    0x175 checksum type, 0x3FC crc32c of all before, not inverted
//	btrfs: 0x20 uuid, 0x40 magic _BHRfS_M
//	xfs: 0x00 magic XFSB, 0x20 uuid
const (
	ext4At, ext4Size   = 1024, 1024
	btrfsAt, btrfsSize = 65536, 128
	xfsAt, xfsSize     = 0, 64
)

// ext4's bits.
const (
	stateClean, stateErrors         = 1, 2
	incompatRecover                 = 0x4
	incompatJournalDevice           = 0x8
	incompatKnownToExt3             = 0x2 | 0x4 | 0x10
	roCompatKnownToExt3             = 0x1 | 0x2 | 0x4
	roCompatMetadataChecksum        = 0x400
	roCompatOrphanPresent           = 0x10000
	ext4Magic                uint16 = 0xEF53
)

// Probe recognizes the file system in r and returns its type and its UUID,
// dashed, in lower case.
//
// Faults: NotAnImage if it is none, or more than one, that can hold a home.
func Probe(r io.ReaderAt) (fstype, uuid string, err error) {
	const op = "recognize file system"
	found := 0
	for _, p := range []struct {
		at, size int64
		look     func([]byte) (string, []byte)
	}{
		{ext4At, ext4Size, func(b []byte) (string, []byte) {
			if binary.LittleEndian.Uint16(b[0x38:]) != ext4Magic {
				return "", nil
			}
			incompat, ro := binary.LittleEndian.Uint32(b[0x60:]), binary.LittleEndian.Uint32(b[0x64:])
			if incompat&incompatJournalDevice != 0 {
				return "jbd", nil
			}
			if incompat&^incompatKnownToExt3 == 0 && ro&^roCompatKnownToExt3 == 0 {
				return "ext3", nil // or ext2: neither holds homes
			}
			return "ext4", b[0x68:0x78]
		}},
		{btrfsAt, btrfsSize, func(b []byte) (string, []byte) {
			if string(b[0x40:0x48]) != "_BHRfS_M" {
				return "", nil
			}
			return "btrfs", b[0x20:0x30]
		}},
		{xfsAt, xfsSize, func(b []byte) (string, []byte) {
			if string(b[:4]) != "XFSB" {
				return "", nil
			}
			return "xfs", b[0x20:0x30]
		}},
	} {
		b := make([]byte, p.size)
		if _, err := r.ReadAt(b, p.at); errors.Is(err, io.EOF) {
			continue // a device that ends before has none of the kind
		} else if err != nil {
			return "", "", fmt.Errorf("%s: %w", op, err)
		}
		if t, u := p.look(b); t != "" {
			found++
			fstype = t
			if u != nil {
				uuid = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
			}
		}
	}
	switch {
	case found == 0:
		return "", "", fault.New(fault.NotAnImage, op, errors.New("no known superblock"))
	case found > 1:
		return "", "", fault.New(fault.NotAnImage, op, errors.New("more than one superblock"))
	case minimum[fstype] == 0:
		return "", "", fault.New(fault.NotAnImage, op, fmt.Errorf("%s cannot hold a home", fstype))
	}
	return fstype, uuid, nil
}

// ext4Clean reports whether e2fsck -p would find nothing to do: the superblock
// is whole, unmounted in order, without errors, orphans or a journal to
// replay, and no check is due by the file system's own rule.
func ext4Clean(r io.ReaderAt, now time.Time) (bool, error) {
	b := make([]byte, ext4Size)
	if _, err := r.ReadAt(b, ext4At); err != nil {
		return false, fmt.Errorf("read superblock: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != ext4Magic {
		return false, nil
	}
	incompat, ro := le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	if ro&roCompatMetadataChecksum != 0 {
		sum := ^crc32.Checksum(b[:0x3FC], crc32.MakeTable(crc32.Castagnoli))
		if b[0x175] != 1 || sum != le.Uint32(b[0x3FC:]) {
			return false, nil
		}
	}
	if state := le.Uint16(b[0x3A:]); state&stateClean == 0 || state&stateErrors != 0 {
		return false, nil
	}
	if incompat&incompatRecover != 0 || ro&roCompatOrphanPresent != 0 || le.Uint32(b[0xE8:]) != 0 {
		return false, nil
	}
	if most := int16(le.Uint16(b[0x36:])); most > 0 && int(le.Uint16(b[0x34:])) >= int(most) {
		return false, nil
	}
	if every := int64(le.Uint32(b[0x44:])); every > 0 && now.Unix() >= int64(le.Uint32(b[0x40:]))+every {
		return false, nil
	}
	return true, nil
}
