// Package gpt finds and writes the partition table of a home image: a GPT with
// one partition of the home type. It knows bytes only and works over
// io.ReaderAt and io.WriterAt. It leaves to its callers where those bytes are
// and what the partition holds.
//
// No library is used: the home's crash safety rests on the order of the writes
// and the syncs between them, which go-diskfs does not offer.
package gpt

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"

	"hearth/internal/fault"
)

// HomeType is the type of a partition that holds a home.
const HomeType = "773f91ef-66d4-49b5-bd83-d683bf40ad16"

// MaxName is how long a partition name can be, in UTF-16 units.
const MaxName = 36

// Device is an image that can be written. Sync returns when all that was
// written before is on stable storage.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Partition is where a home's container lies in its image.
type Partition struct {
	Offset, Size int64  // bytes
	UUID         string // dashed, lower case; empty for a container without a table
	Name         string
	SectorSize   int // of the table, bytes
}

// The protective MBR, sector 0, little endian:
//
//	offset  len  field
//	   446   16  entry: 00, 00 02 00, type EE, FF FF FF, first LBA 1, sectors
//	   462   48  further entries, zero
//	   510    2  55 AA
//
// The header, sector 1, and its backup in the last sector, little endian (UEFI
// specification, section 5.3):
//
//	offset  len  field
//	     0    8  "EFI PART"
//	     8    4  revision 00 00 01 00
//	    12    4  header size
//	    16    4  CRC-32 of the header with this field zero
//	    20    4  zero
//	    24    8  LBA of this header
//	    32    8  LBA of the other
//	    40    8  first usable LBA
//	    48    8  last usable LBA
//	    56   16  disk GUID
//	    72    8  first LBA of the entries
//	    80    4  number of entries
//	    84    4  size of an entry
//	    88    4  CRC-32 of the entries
//
// An entry:
//
//	 0   16  type GUID
//	16   16  partition GUID
//	32    8  first LBA
//	40    8  last LBA
//	48    8  attributes
//	56   72  name, UTF-16LE
const (
	headerSize  = 92
	entrySize   = 128
	entryCount  = 128
	entriesSize = entrySize * entryCount
	signature   = "EFI PART"
	revision    = 0x00010000
	minSector   = 512
	maxSector   = 4096
	align       = 1 << 20
	maxEntries  = 1 << 20 // bytes of entries that a reader accepts
)

var luksMagic = []byte("LUKS\xba\xbe")

var errNone = errors.New("no partition table")

// Find returns the one partition of the home type that is named name and, if
// uuid is not empty, has that UUID, in an image of size bytes. A LUKS container
// without a table is found as a partition of the whole size with neither name
// nor UUID. Fault: NotAnImage if there is not exactly one.
func Find(d io.ReaderAt, size int64, name, uuid string) (Partition, error) {
	const op = "find home partition"
	magic := make([]byte, len(luksMagic))
	if _, err := readAt(d, size, magic, 0); err == nil && bytes.Equal(magic, luksMagic) {
		return Partition{Size: size, SectorSize: minSector}, nil
	}
	var list []Partition
	tables := 0
	for ss := int64(minSector); ss <= maxSector; ss *= 2 {
		all, err := table(d, size, ss)
		switch {
		case err == nil:
			tables++
			list = append(list, all...)
		case !errors.Is(err, errNone):
			return Partition{}, fault.New(fault.IOError, op, err)
		}
	}
	if tables != 1 {
		return Partition{}, fault.New(fault.NotAnImage, op, fmt.Errorf("%d partition tables", tables))
	}
	var found []Partition
	for _, p := range list {
		if p.Name == name && (uuid == "" || strings.EqualFold(p.UUID, uuid)) {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return Partition{}, fault.New(fault.NotAnImage, op, fmt.Errorf("%d partitions match name and UUID, of %d home partitions", len(found), len(list)))
	}
	return found[0], nil
}

// readAt reads all of b inside the image.
func readAt(d io.ReaderAt, size int64, b []byte, at int64) ([]byte, error) {
	if at < 0 || at > size || int64(len(b)) > size-at {
		return nil, fmt.Errorf("%w: image ends at %d", errNone, size)
	}
	n, err := d.ReadAt(b, at)
	switch {
	case n == len(b):
		return b, nil
	case err == nil || errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%w: image ends at %d", errNone, at+int64(n))
	}
	return nil, err
}

// table returns the home partitions of a valid table for sectors of ss bytes.
func table(d io.ReaderAt, size, ss int64) ([]Partition, error) {
	mbr, err := readAt(d, size, make([]byte, 512), 0)
	if err != nil {
		return nil, err
	}
	if !protective(mbr) {
		return nil, fmt.Errorf("%w: no protective MBR", errNone)
	}
	list, err := tableAt(d, size, ss, 1)
	if !errors.Is(err, errNone) {
		return list, err
	}
	return tableAt(d, size, ss, size/ss-1)
}

func protective(mbr []byte) bool {
	if mbr[510] != 0x55 || mbr[511] != 0xAA {
		return false
	}
	for at := 446; at < 510; at += 16 {
		if mbr[at+4] == 0xEE {
			return true
		}
	}
	return false
}

// A raw table is one whose sums are right.
type raw struct {
	header  []byte // its sum cleared
	entries []byte
	each    uint64 // bytes of an entry
}

// tableAt reads the home partitions of the table whose header is in sector lba.
func tableAt(d io.ReaderAt, size, ss, lba int64) ([]Partition, error) {
	t, err := rawAt(d, size, ss, lba)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	first, last := le.Uint64(t.header[40:]), le.Uint64(t.header[48:])
	list := []Partition{}
	for b := t.entries; len(b) > 0; b = b[t.each:] {
		from, to := le.Uint64(b[32:]), le.Uint64(b[40:])
		if formatGUID(b[:16]) != HomeType || from < first || to > last || from > to {
			continue
		}
		list = append(list, Partition{
			Offset: int64(from) * ss, Size: int64(to-from+1) * ss,
			UUID: formatGUID(b[16:32]), Name: decodeName(b[56:128]), SectorSize: int(ss),
		})
	}
	return list, nil
}

// rawAt reads the table whose header is in sector lba.
func rawAt(d io.ReaderAt, size, ss, lba int64) (raw, error) {
	h, err := readAt(d, size, make([]byte, ss), lba*ss)
	if err != nil {
		return raw{}, err
	}
	le := binary.LittleEndian
	n := le.Uint32(h[12:])
	if string(h[:8]) != signature || n < headerSize || int64(n) > ss {
		return raw{}, fmt.Errorf("%w: no header in sector %d", errNone, lba)
	}
	sum := le.Uint32(h[16:])
	clear(h[16:20])
	if crc32.ChecksumIEEE(h[:n]) != sum || le.Uint64(h[24:]) != uint64(lba) {
		return raw{}, fmt.Errorf("%w: header in sector %d is damaged", errNone, lba)
	}
	total := uint64(size / ss)
	first, last, entries := le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint64(h[72:])
	count, each := uint64(le.Uint32(h[80:])), uint64(le.Uint32(h[84:]))
	if first > last || last >= total || entries >= total || each < entrySize || count == 0 || count*each > maxEntries {
		return raw{}, fmt.Errorf("%w: header in sector %d does not fit the image", errNone, lba)
	}
	b, err := readAt(d, size, make([]byte, count*each), int64(entries)*ss)
	if err != nil {
		return raw{}, err
	}
	if crc32.ChecksumIEEE(b) != le.Uint32(h[88:]) {
		return raw{}, fmt.Errorf("%w: entries of sector %d are damaged", errNone, lba)
	}
	return raw{header: h, entries: b, each: each}, nil
}

func decodeName(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// A GUID on disk has its first three groups little endian.
var guidOrder = [16]int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15}

func formatGUID(b []byte) string {
	var o [16]byte
	for i, j := range guidOrder {
		o[i] = b[j]
	}
	s := hex.EncodeToString(o[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

func parseGUID(s string) ([16]byte, error) {
	var g [16]byte
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 || len(s) != 36 {
		return g, fmt.Errorf("UUID %q", s)
	}
	for i, j := range guidOrder {
		g[j] = b[i]
	}
	return g, nil
}

// Layout returns the partition of a new image of size bytes: from 1 MiB to the
// last whole MiB that leaves room for the backup table. Name and UUID are the
// caller's to fill. Faults: InvalidArgs for a sector size out of the format,
// BadHomeSize if nothing remains.
func Layout(size int64, sectorSize int) (Partition, error) {
	if err := checkSector(sectorSize); err != nil {
		return Partition{}, err
	}
	ss := int64(sectorSize)
	end := (lastUsable(size/ss, ss) + 1) * ss / align * align
	if end <= align {
		return Partition{}, fault.New(fault.BadHomeSize, "lay out home image", fmt.Errorf("%d bytes leave no room for a partition", size))
	}
	return Partition{Offset: align, Size: end - align, SectorSize: sectorSize}, nil
}

func checkSector(n int) error {
	if n < minSector || n > maxSector || n&(n-1) != 0 {
		return fault.New(fault.InvalidArgs, "lay out home image", fmt.Errorf("sectors of %d bytes", n))
	}
	return nil
}

// lastUsable is the last sector before the backup table of an image of n
// sectors.
func lastUsable(n, ss int64) int64 { return n - 2 - entriesSize/ss }

// Write writes a table with the one partition p to an image of size bytes. The
// backup comes first and each part is stable before the next, so a crash leaves
// the old table or the new one valid as long as the image keeps its size.
// Faults: InvalidArgs if p does not fit or its name is too long, IOError.
func Write(d Device, size int64, sectorSize int, p Partition, diskGUID string) error {
	const op = "write partition table"
	if err := checkSector(sectorSize); err != nil {
		return err
	}
	ss := int64(sectorSize)
	n := size / ss
	first, last := align/ss, lastUsable(n, ss)
	from, to := p.Offset/ss, (p.Offset+p.Size)/ss-1
	if p.Offset%ss != 0 || p.Size%ss != 0 || p.Size <= 0 || from < first || to > last {
		return fault.New(fault.InvalidArgs, op, fmt.Errorf("partition %d+%d in an image of %d bytes", p.Offset, p.Size, size))
	}
	entries, err := p.entries(from, to)
	if err != nil {
		return fault.New(fault.InvalidArgs, op, err)
	}
	disk, err := parseGUID(diskGUID)
	if err != nil {
		return fault.New(fault.InvalidArgs, op, err)
	}
	return layout{sectors: n, sectorSize: ss, first: uint64(first), disk: disk, entries: entries}.write(d, op)
}

// A layout is all that a table says.
type layout struct {
	sectors, sectorSize int64
	first               uint64 // usable sector
	disk                [16]byte
	entries             []byte // entriesSize bytes
	boot                []byte // the first sector as it was; nil for a fresh one
}

// write puts the table on the disk in the order that Write promises.
func (l layout) write(d Device, op string) error {
	ss, n := l.sectorSize, l.sectors
	header := func(my, other, at int64) []byte {
		b := make([]byte, ss)
		le := binary.LittleEndian
		copy(b, signature)
		le.PutUint32(b[8:], revision)
		le.PutUint32(b[12:], headerSize)
		le.PutUint64(b[24:], uint64(my))
		le.PutUint64(b[32:], uint64(other))
		le.PutUint64(b[40:], l.first)
		le.PutUint64(b[48:], uint64(lastUsable(n, ss)))
		copy(b[56:], l.disk[:])
		le.PutUint64(b[72:], uint64(at))
		le.PutUint32(b[80:], entryCount)
		le.PutUint32(b[84:], entrySize)
		le.PutUint32(b[88:], crc32.ChecksumIEEE(l.entries))
		le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:headerSize]))
		return b
	}
	mbr := make([]byte, 512)
	copy(mbr[446:], []byte{0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1})
	if l.boot != nil {
		mbr = l.boot
	}
	// In a hybrid MBR the first entry may be another's.
	if mbr[450] == 0xEE {
		binary.LittleEndian.PutUint32(mbr[458:], uint32(min(n-1, 0xFFFFFFFF)))
	}
	mbr[510], mbr[511] = 0x55, 0xAA

	for _, w := range []struct {
		at int64
		b  []byte
	}{
		{(n - 1 - entriesSize/ss) * ss, l.entries},
		{(n - 1) * ss, header(n-1, 1, n-1-entriesSize/ss)},
		{2 * ss, l.entries},
		{ss, header(1, n-1, 2)},
		{0, mbr},
	} {
		if _, err := d.WriteAt(w.b, w.at); err != nil {
			return fault.New(fault.IOError, op, err)
		}
		if err := d.Sync(); err != nil {
			return fault.New(fault.IOError, op, err)
		}
	}
	return nil
}

// entries lays out the entries, p the first and only one.
func (p Partition) entries(from, to int64) ([]byte, error) {
	b := make([]byte, entriesSize)
	kind, err := parseGUID(HomeType)
	if err != nil {
		return nil, err
	}
	own, err := parseGUID(p.UUID)
	if err != nil {
		return nil, err
	}
	name := utf16.Encode([]rune(p.Name))
	if len(name) > MaxName || strings.ContainsRune(p.Name, 0) {
		return nil, fmt.Errorf("name %q does not fit a partition table", p.Name)
	}
	copy(b, kind[:])
	copy(b[16:], own[:])
	binary.LittleEndian.PutUint64(b[32:], uint64(from))
	binary.LittleEndian.PutUint64(b[40:], uint64(to))
	for i, c := range name {
		binary.LittleEndian.PutUint16(b[56+2*i:], c)
	}
	return b, nil
}
