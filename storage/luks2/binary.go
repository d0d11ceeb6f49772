package luks2

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

// The binary header, the first 4096 bytes of a copy. Integers are big endian,
// texts NUL padded. (LUKS2 on-disk format specification, section 2.)
//
//	offset  len  field
//	     0    6  magic, LUKS BA BE; SKUL BA BE in the secondary
//	     6    2  version, 2
//	     8    8  hdr_size: bytes of this copy, JSON area included
//	    16    8  seqid
//	    24   48  label
//	    72   32  checksum algorithm
//	   104   64  salt, its own in each copy
//	   168   40  UUID
//	   208   48  subsystem
//	   256    8  hdr_offset: 0, or hdr_size in the secondary
//	   264  184  padding
//	   448   64  checksum of the whole copy with this field zero
//	   512 3584  padding
const (
	binarySize = 4096
	minCopy    = 0x4000
	maxCopy    = 0x400000

	offVersion   = 6
	offSize      = 8
	offSeqid     = 16
	offLabel     = 24
	offAlgorithm = 72
	offSalt      = 104
	offUUID      = 168
	offSubsystem = 208
	offOffset    = 256
	offChecksum  = 448
	endChecksum  = 512

	lenLabel     = 48
	lenAlgorithm = 32
	lenSalt      = 64
	lenUUID      = 40
	lenSubsystem = 48
)

var magics = [2][]byte{[]byte("LUKS\xba\xbe"), []byte("SKUL\xba\xbe")}

var errNoMagic = errors.New("no LUKS2 magic")

// binaryHeader is what the first 4096 bytes of a copy say.
type binaryHeader struct {
	size, offset           int64
	seqid                  uint64
	label, uuid, subsystem string
	algorithm              string
	salt, checksum         []byte
}

// parseBinary reads the binary header of the copy with the index which (0 for
// the primary), found at offset at.
func parseBinary(b []byte, which int, at int64) (binaryHeader, error) {
	var h binaryHeader
	if len(b) < binarySize || !bytes.Equal(b[:len(magics[which])], magics[which]) {
		return h, errNoMagic
	}
	if v := binary.BigEndian.Uint16(b[offVersion:]); v != 2 {
		return h, fmt.Errorf("%w: version %d", errNoMagic, v)
	}
	size, offset := binary.BigEndian.Uint64(b[offSize:]), binary.BigEndian.Uint64(b[offOffset:])
	if size < minCopy || size > maxCopy || size&(size-1) != 0 {
		return h, fmt.Errorf("header of %d bytes", size)
	}
	want := uint64(at)
	if offset != want || which == 1 && size != want {
		return h, fmt.Errorf("header for offset %d found at %d", offset, at)
	}
	return binaryHeader{
		size: int64(size), offset: int64(offset),
		seqid:     binary.BigEndian.Uint64(b[offSeqid:]),
		label:     text(b[offLabel:][:lenLabel]),
		algorithm: text(b[offAlgorithm:][:lenAlgorithm]),
		uuid:      text(b[offUUID:][:lenUUID]),
		subsystem: text(b[offSubsystem:][:lenSubsystem]),
		salt:      bytes.Clone(b[offSalt:][:lenSalt]),
		checksum:  bytes.Clone(b[offChecksum:endChecksum]),
	}, nil
}

func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// bytes lays the header out for the copy with the index which, checksum zero.
func (h *binaryHeader) bytes(which int) []byte {
	b := make([]byte, binarySize)
	copy(b, magics[which])
	binary.BigEndian.PutUint16(b[offVersion:], 2)
	binary.BigEndian.PutUint64(b[offSize:], uint64(h.size))
	binary.BigEndian.PutUint64(b[offSeqid:], h.seqid)
	copy(b[offLabel:][:lenLabel], h.label)
	copy(b[offAlgorithm:][:lenAlgorithm], "sha256")
	copy(b[offSalt:][:lenSalt], h.salt)
	copy(b[offUUID:][:lenUUID], h.uuid)
	copy(b[offSubsystem:][:lenSubsystem], h.subsystem)
	binary.BigEndian.PutUint64(b[offOffset:], uint64(which)*uint64(h.size))
	return b
}

// sumCopy returns the checksum over a copy of size bytes: head, whose checksum
// bytes count as zero, then body, then zeros.
func sumCopy(algorithm string, head, body []byte, size int64) ([]byte, error) {
	s, err := beginSum(algorithm, head)
	if err != nil {
		return nil, err
	}
	s.Write(body)
	for rest := size - binarySize - int64(len(body)); rest > 0; {
		n := min(rest, int64(len(zeros)))
		s.Write(zeros[:n])
		rest -= n
	}
	return endSum(s), nil
}

// beginSum begins the checksum over a copy with its binary header. The JSON area
// comes next.
func beginSum(algorithm string, head []byte) (hash.Hash, error) {
	f, err := hashByName(algorithm)
	if err != nil {
		// No feature that is missing: a copy that cannot be checked is invalid.
		return nil, fmt.Errorf("checksum by %q", algorithm)
	}
	s := f()
	s.Write(head[:offChecksum])
	s.Write(zeros[:endChecksum-offChecksum])
	s.Write(head[endChecksum:binarySize])
	return s, nil
}

func endSum(s hash.Hash) []byte {
	return append(s.Sum(nil), make([]byte, max(0, endChecksum-offChecksum-s.Size()))...)
}

// zeros is never written to.
var zeros = make([]byte, 1<<16)

// An area is a JSON area on its way in, in pieces: it is mostly zeros,
// megabytes of them, which need not be in memory together.
type area struct {
	text []byte
	end  bool // of the text, which its first NUL is
	more bool // there is something behind it
}

func (a *area) write(p []byte) {
	if !a.end {
		n := bytes.IndexByte(p, 0)
		if n < 0 {
			a.text = append(a.text, p...)
			return
		}
		a.text, a.end = append(a.text, p[:n]...), true
		p = p[n:]
	}
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		a.more = a.more || !bytes.Equal(p[:n], zeros[:n])
		p = p[n:]
	}
}

// json returns the JSON text at the start of the area. Behind it only NULs may
// follow, at least one; one newline is tolerated.
func (a *area) json() ([]byte, error) {
	t := bytes.TrimSuffix(a.text, []byte{'\n'})
	switch {
	case !a.end:
		return nil, errors.New("JSON text fills its area")
	case a.more:
		return nil, errors.New("bytes after the JSON text")
	case len(t) < 2 || t[0] != '{' || t[len(t)-1] != '}':
		return nil, errors.New("JSON text is no object")
	}
	return t, nil
}

// fingerprint stands for a volume key in memory.
func fingerprint(key []byte) *[sha256.Size]byte {
	s := sha256.Sum256(key)
	return &s
}
