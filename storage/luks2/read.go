package luks2

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"hearth/internal/fault"
)

// found is one copy as it was found on the device.
type found struct {
	binaryHeader
	meta   *metadata
	extent int64 // bytes from its start that may differ from zero
}

// Read reads the header of the container that starts at offset 0 of d and has
// size bytes. It uses the copy that is valid and newer, and writes nothing;
// Damaged then says which copy Repair would rewrite. Others are kept from
// writing meanwhile by d itself, see Locker, or the caller. Faults: NotAnImage if there is no LUKS2 container,
// Inconsistent if there is one without a valid copy, NotSupported if it needs
// what this package cannot do, IOError.
func Read(d io.ReaderAt, size int64) (*Header, error) {
	const op = "read LUKS2 header"
	release, err := lock(d, false)
	if err != nil {
		return nil, err
	}
	defer release()
	p, perr := readCopy(d, size, 0, 0)
	if fault.Is(perr, fault.IOError) {
		return nil, perr
	}
	var s *found
	var serr error
	if p != nil {
		s, serr = readCopy(d, size, 1, p.size)
	} else {
		serr = errNoMagic
		for at := int64(minCopy); at <= maxCopy && s == nil; at *= 2 {
			var err error
			if s, err = readCopy(d, size, 1, at); err != nil && !errors.Is(err, errNoMagic) {
				serr = err
			}
		}
	}
	if fault.Is(serr, fault.IOError) {
		return nil, serr
	}
	for _, err := range []error{perr, serr} {
		// A valid copy that needs more than we have is not damaged, and the
		// other is not to win over it.
		if errors.Is(err, errFeature) || errors.Is(err, errRequirement) {
			return nil, fault.New(fault.NotSupported, op, err)
		}
	}
	use, damaged := p, Neither
	switch {
	case p != nil && s != nil && s.seqid > p.seqid:
		use, damaged = s, Primary
	case p != nil && (s == nil || s.seqid < p.seqid):
		damaged = Secondary
	case p == nil && s != nil:
		use, damaged = s, Primary
		// Something else may have been put over the container on purpose.
		// Then it is not ours to bring back.
		if what := foreign(d); what != "" {
			return nil, fault.New(fault.NotAnImage, op, fmt.Errorf("primary is gone, and in its place is %s", what))
		}
	case p == nil:
		kind := fault.Inconsistent
		if errors.Is(perr, errNoMagic) && errors.Is(serr, errNoMagic) {
			kind = fault.NotAnImage
		}
		return nil, fault.New(kind, op, fmt.Errorf("primary: %w, secondary: %w", perr, serr))
	}
	if !validUUID(use.uuid) {
		return nil, fault.New(fault.Inconsistent, op, fmt.Errorf("UUID %q", use.uuid))
	}
	h := &Header{
		Damaged: damaged,
		label:   use.label, subsystem: use.subsystem, uuid: use.uuid,
		seqid: use.seqid, size: use.size, meta: use.meta, rand: rand.Reader,
	}
	for i, f := range []*found{p, s} {
		// What a damaged copy holds is not known: all of it will be rewritten.
		h.extent[i] = h.size
		if f != nil && f.size == h.size {
			h.salts[i], h.sums[i], h.extent[i] = f.salt, f.checksum, f.extent
		}
	}
	return h, nil
}

// readCopy reads and checks the copy with the index which at offset at.
func readCopy(d io.ReaderAt, size int64, which int, at int64) (*found, error) {
	head := make([]byte, binarySize)
	if size-at < binarySize {
		return nil, fmt.Errorf("%w: ends at %d", errNoMagic, size)
	}
	if err := readFull(d, head, at); err != nil {
		return nil, ioFault(err)
	}
	b, err := parseBinary(head, which, at)
	if err != nil {
		return nil, err
	}
	if size-at < b.size {
		return nil, fmt.Errorf("header of %d bytes at %d, the device ends at %d", b.size, at, size)
	}
	s, err := beginSum(b.algorithm, head)
	if err != nil {
		return nil, err
	}
	var in area
	piece := make([]byte, min(b.size-binarySize, int64(len(zeros))))
	for from := int64(binarySize); from < b.size; from += int64(len(piece)) {
		piece = piece[:min(int64(len(piece)), b.size-from)]
		if err := readFull(d, piece, at+from); err != nil {
			return nil, ioFault(err)
		}
		s.Write(piece)
		in.write(piece)
	}
	if !equal(endSum(s), b.checksum) {
		return nil, errors.New("checksum does not match")
	}
	t, err := in.json()
	if err != nil {
		return nil, err
	}
	m, err := parseMetadata(t, b.size)
	if err != nil {
		return nil, err
	}
	return &found{b, m, binarySize + int64(len(t)) + 1}, nil
}

func ioFault(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", errNoMagic, err)
	}
	return fault.New(fault.IOError, "read LUKS2 header", err)
}

// readFull fills b from offset at. The end of the device is an error.
func readFull(d io.ReaderAt, b []byte, at int64) error {
	n, err := d.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		hex := '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
		if dash != (c == '-') || !dash && !hex {
			return false
		}
	}
	return true
}

// signatures of what commonly stands at the start of a partition.
var signatures = []struct {
	at   int64
	sign string
	name string
}{
	{0, "XFSB", "xfs"},
	{1080, "\x53\xef", "ext4"},
	{0x10040, "_BHRfS_M", "btrfs"},
	{4086, "SWAPSPACE2", "swap"},
	{510, "\x55\xaa", "a boot sector"},
	{512, "EFI PART", "a partition table"},
	{4096, "EFI PART", "a partition table"},
	{0, "LABELONE", "LVM"},
	{512, "LABELONE", "LVM"},
	{0, "hsqs", "squashfs"},
	{1024, "\x10\x20\xf5\xf2", "f2fs"},
	{0, "LUKS\xba\xbe\x00\x01", "LUKS1"},
	{3, "NTFS    ", "ntfs"},
	{3, "-FVE-FS-", "BitLocker"},
	{4096, "\xfc\x4e\x2b\xa9", "RAID"},
}

// foreign names what stands where the primary should be; "" if nothing known.
func foreign(d io.ReaderAt) string {
	for _, s := range signatures {
		b := make([]byte, len(s.sign))
		if readFull(d, b, s.at) == nil && string(b) == s.sign {
			return s.name
		}
	}
	return ""
}

// peek reads sequence number and checksum of the copy at offset at
// without checking the rest.
func peek(d io.ReaderAt, at int64) (seqid uint64, sum []byte, err error) {
	b := make([]byte, endChecksum)
	if err := readFull(d, b, at); err != nil {
		return 0, nil, err
	}
	return binary.BigEndian.Uint64(b[offSeqid:]), bytes.Clone(b[offChecksum:]), nil
}
