package gpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"hearth/internal/fault"
)

// Move is how far apart, in bytes, the ends of the disk before and after a
// Resize have to be at least, so that neither backup table overwrites the
// other.
const Move = 64 << 10

// Resize makes the partition p, which has to be the last one, size bytes long,
// and the disk that the table describes disk bytes. The file is as long as the
// larger of old and new disk the whole time, so that at each moment the old
// table or the new one is whole and found: the file grows before, and is cut
// after; a disk that is no file keeps its size. All other content of the table
// stays, and of the first sector all but the size of the disk. Faults: NotAnImage for a table
// that is not as p says or laid out unusually, InvalidArgs if size does not fit,
// IOError.
func Resize(d Device, file int64, p Partition, size, disk int64) error {
	const op = "resize partition"
	ss := int64(p.SectorSize)
	t, _, err := whole(d, file, ss)
	if err != nil {
		return fault.New(fault.NotAnImage, op, err)
	}
	if t.each != entrySize || len(t.entries) != entriesSize {
		return fault.New(fault.NotAnImage, op, fmt.Errorf("the table has %d bytes of entries of %d", len(t.entries), t.each))
	}
	le := binary.LittleEndian
	var entry []byte
	for b := t.entries; len(b) > 0; b = b[entrySize:] {
		if [16]byte(b[:16]) == ([16]byte{}) {
			continue
		}
		from, to := int64(le.Uint64(b[32:])), int64(le.Uint64(b[40:]))
		switch {
		case from == p.Offset/ss && to == (p.Offset+p.Size)/ss-1 && entry == nil:
			entry = b
		case to >= p.Offset/ss || to < 0:
			return fault.New(fault.NotAnImage, op, errors.New("the home's partition is not the last one"))
		}
	}
	if entry == nil {
		return fault.New(fault.NotAnImage, op, errors.New("the home's partition is gone from the table"))
	}
	n := disk / ss
	last := (p.Offset+size)/ss - 1
	if size <= 0 || size%ss != 0 || disk%ss != 0 || disk > file || last > lastUsable(n, ss) {
		return fault.New(fault.InvalidArgs, op, fmt.Errorf("partition %d+%d on a disk of %d bytes", p.Offset, size, disk))
	}
	le.PutUint64(entry[40:], uint64(last))
	boot, err := readAt(d, file, make([]byte, 512), 0)
	if err != nil {
		return fault.New(fault.IOError, op, err)
	}
	if !protective(boot) {
		boot = nil
	}
	return layout{sectors: n, sectorSize: ss, first: le.Uint64(t.header[40:]), disk: [16]byte(t.header[56:72]), entries: t.entries, boot: boot}.write(d, op)
}

// Room returns how large the partition p could be, in bytes, on a disk of size
// bytes: up to what the table keeps for itself. Fault: NotAnImage if it is not
// the last one there.
func Room(d io.ReaderAt, size int64, p Partition) (int64, error) {
	const op = "measure partition"
	ss := int64(p.SectorSize)
	t, _, err := whole(d, size, ss)
	if err != nil {
		return 0, fault.New(fault.NotAnImage, op, err)
	}
	le := binary.LittleEndian
	for b := t.entries; uint64(len(b)) >= t.each; b = b[t.each:] {
		from, to := int64(le.Uint64(b[32:])), int64(le.Uint64(b[40:]))
		if [16]byte(b[:16]) != ([16]byte{}) && from != p.Offset/ss && (to >= p.Offset/ss || to < 0) {
			return 0, fault.New(fault.NotAnImage, op, errors.New("the home's partition is not the last one"))
		}
	}
	return max((lastUsable(size/ss, ss)+1)*ss-p.Offset, p.Size), nil
}

// whole returns the table that counts, and the sector of its header: that in
// sector 1, or the backup in the last sector of a file of size bytes.
func whole(d io.ReaderAt, size, ss int64) (raw, int64, error) {
	t, err := rawAt(d, size, ss, 1)
	if errors.Is(err, errNone) {
		at := size/ss - 1
		t, err = rawAt(d, size, ss, at)
		return t, at, err
	}
	return t, 1, err
}

// Disk returns how long the table says the disk is, in bytes: a file that a
// resize was cut off from may be longer. It is size where the table makes no
// sense.
func Disk(d io.ReaderAt, size int64, p Partition) int64 {
	ss := int64(p.SectorSize)
	t, at, err := whole(d, size, ss)
	if err != nil || at != 1 {
		return size
	}
	backup := binary.LittleEndian.Uint64(t.header[32:])
	if backup >= uint64(size/ss) || (p.Offset+p.Size)/ss-1 > lastUsable(int64(backup)+1, ss) {
		return size
	}
	return (int64(backup) + 1) * ss
}
