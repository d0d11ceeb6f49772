package fsops

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"

	"golang.org/x/crypto/blake2b"
)

// The superblock of btrfs (fs/btrfs/fs.h and include/uapi/linux/btrfs_tree.h),
// little endian. Offsets within it:
//
//	0x00 checksum of all behind it, 32 bytes, 0x20 fsid, 0x30 where it belongs u64,
//	0x40 magic, 0x48 generation u64, 0x60 root of the log u64, 0x90 sector and
//	0x94 node size u32, 0xA0 bytes of the system chunks u32, 0xC4 type of the
//	checksum u16, 0x32B system chunks, 0xB2B four former roots
//
// A commit writes the primary and its mirrors at the same time; an fsync in
// between writes the primary alone, where it changes the root of the log, which
// is in the first sector. A power cut may tear any that were being written.
const (
	superSize   = 4096
	superSector = 512 // what a disk writes whole
	superMagic  = "_BHRfS_M"
	chunksAt    = 0x32B
	chunksMost  = 2048
)

// superMirrors are where the copies are, as far as the device reaches.
var superMirrors = [...]int64{64 << 20, 256 << 30}

// A super is superSize bytes.
type super []byte

func (s super) generation() uint64 { return binary.LittleEndian.Uint64(s[0x48:]) }
func (s super) place() int64       { return int64(binary.LittleEndian.Uint64(s[0x30:])) }

// sum computes the checksum; nil for a type that we cannot.
func (s super) sum() []byte {
	switch binary.LittleEndian.Uint16(s[0xC4:]) {
	case 0:
		return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(s[0x20:], crc32.MakeTable(crc32.Castagnoli)))
	case 2:
		sum := sha256.Sum256(s[0x20:])
		return sum[:]
	case 3:
		sum := blake2b.Sum256(s[0x20:])
		return sum[:]
	}
	return nil
}

// whole reports whether the checksum is right.
func (s super) whole() bool {
	sum := s.sum()
	return sum != nil && bytes.Equal(sum, s[:len(sum)])
}

// at is the same superblock for another place.
func (s super) at(place int64) super {
	c := slices.Clone(s)
	binary.LittleEndian.PutUint64(c[0x30:], uint64(place))
	if sum := c.sum(); sum != nil {
		clear(c[:0x20])
		copy(c, sum)
	}
	return c
}

// chunksParse reports whether the system chunks, which tell where the chunk tree
// is, are as many as their size says: each is a key of 17 bytes, with the type at
// 8, 48 bytes with the number of stripes u16 at 44, and 32 bytes for each stripe.
func (s super) chunksParse() bool {
	const key, fixed, stripe, kind = 17, 48, 32, 228
	n := binary.LittleEndian.Uint32(s[0xA0:])
	if n == 0 || n > chunksMost {
		return false
	}
	b := s[chunksAt:][:n]
	for len(b) > 0 {
		if len(b) < key+fixed || b[8] != kind {
			return false
		}
		size := key + fixed + stripe*int(binary.LittleEndian.Uint16(b[key+44:]))
		if size > len(b) {
			return false
		}
		b = b[size:]
	}
	return true
}

// kin reports whether two are of one file system, at most a commit apart: all
// that a power cut leaves.
func (s super) kin(o super) bool {
	for _, f := range [][2]int{{0x20, 0x30}, {0x40, 0x48}, {0x90, 0x98}, {0xC4, 0xC6}} {
		if !bytes.Equal(s[f[0]:f[1]], o[f[0]:f[1]]) {
			return false
		}
	}
	apart := int64(s.generation() - o.generation())
	return -1 <= apart && apart <= 1
}

// BtrfsStandIns returns what may stand in for the superblock of the btrfs on a
// device of size bytes, the best first, and the superblock itself; none where
// that is whole, or where no copy tells enough. Each is superSize bytes, for the
// place of the primary.
func BtrfsStandIns(r io.ReaderAt, size int64) (list [][]byte, primary []byte, err error) {
	read := func(at int64) (super, error) {
		s := make(super, superSize)
		if _, err := r.ReadAt(s, at); err != nil {
			return nil, fmt.Errorf("read superblock: %w", err)
		}
		return s, nil
	}
	torn, err := read(btrfsAt)
	if err != nil {
		return nil, nil, err
	}
	// The first sector comes whole, or the file system would not be known.
	if string(torn[0x40:0x48]) != superMagic || torn.place() != btrfsAt || torn.sum() == nil || torn.whole() {
		return nil, torn, nil
	}
	var mirrors []super
	for _, at := range superMirrors {
		if at > size-superSize {
			break
		}
		m, err := read(at)
		if err != nil {
			return nil, nil, err
		}
		if m.place() == at && torn.kin(m) {
			mirrors = append(mirrors, m)
		}
	}
	for _, s := range standIns(torn, mirrors) {
		list = append(list, s)
	}
	return list, torn, nil
}

// standIns are, newest first:
//
//   - what has a right checksum when each sector is taken from the torn one or
//     from its mirror. That is the mirror itself; or what was there before the
//     cut, of which the torn one has the first sector, with the latest root of
//     the log, and a mirror of the same commit the others.
//   - where all these are of the commit before, or none is: the torn one itself
//     with a new checksum. Its first sector is of the new commit, all of which was
//     on the disk before any superblock was written, and the mirror alone would
//     lose what was synced since the commit before. What a commit changes in
//     the other sectors is the former roots, which are for repairs by hand, and,
//     seldom, the system chunks: a commit adds one, takes one away, or leaves them,
//     so their size in the first sector tells whether they go with it.
//
// The kernel is the judge: it mounts none whose trees are not of its generation.
func standIns(torn super, mirrors []super) []super {
	var list []super
	for _, m := range mirrors {
		list = append(list, blends(torn, m)...)
	}
	slices.SortStableFunc(list, func(a, b super) int { return cmp.Compare(b.generation(), a.generation()) })
	if len(list) > 0 && list[0].generation() >= torn.generation() {
		return list
	}
	if !torn.chunksParse() {
		return list
	}
	return append([]super{torn.at(btrfsAt)}, list...)
}

// blends returns what has a right checksum of all that can be put together from
// the sectors of two, for the place of the first. Those with the first sector of
// the first come first.
func blends(torn, mirror super) (list []super) {
	const n = superSize / superSector
	sector := func(s super, i int) []byte { return s[i*superSector:][:superSector] }
next:
	for mask := range 1 << n {
		b := slices.Clone(torn)
		for i := range n {
			if mask&(1<<(n-1-i)) == 0 {
				continue
			}
			if bytes.Equal(sector(torn, i), sector(mirror, i)) {
				continue next // as without it
			}
			copy(sector(b, i), sector(mirror, i))
		}
		if b.whole() {
			list = append(list, b.at(btrfsAt))
		}
	}
	return list
}

// MountMended calls mount, which mounts the file system on a device. Where a
// power cut has torn the superblock of a btrfs, it puts the best that can be
// told from the copies in its place before; the kernel itself takes no copy.
// Nothing of it remains if none of them can be mounted.
func MountMended(fstype, node string, mount func() error) (mended bool, err error) {
	if fstype != "btrfs" {
		return false, mount()
	}
	const op = "mend superblock"
	list, former, err := lookForStandIns(node)
	if err != nil {
		return false, fmt.Errorf("%s: %w", op, err)
	}
	if len(list) == 0 {
		return false, mount()
	}
	// Open for no longer: kernels may refuse to mount what somebody can write to,
	// and udev looks at each device that somebody could.
	put := func(b []byte) error {
		f, err := os.OpenFile(node, os.O_RDWR, 0)
		if err == nil {
			_, err = f.WriteAt(b, btrfsAt)
			err = errors.Join(err, f.Sync(), f.Close())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		return nil
	}
	var errs []error
	for _, s := range list {
		// A cut during this write leaves the first sector of the one or the other,
		// and the mirror, from which the same can be told again.
		if err := put(s); err != nil {
			return false, errors.Join(append(errs, err)...)
		}
		if err := mount(); err == nil {
			return true, nil
		} else {
			errs = append(errs, err)
		}
	}
	return false, errors.Join(append(errs, put(former))...)
}

func lookForStandIns(node string) (list [][]byte, primary []byte, err error) {
	f, err := os.Open(node)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, nil, err
	}
	return BtrfsStandIns(f, size)
}
