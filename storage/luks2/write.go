package luks2

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// The layout that Format writes, in bytes.
const (
	formatCopy     = 4 << 20  // each header copy
	formatAreas    = 8 << 20  // keyslots area, behind both
	formatData     = 16 << 20 // where the payload starts
	defaultCipher  = "aes"
	defaultMode    = "xts-plain64"
	homeSubsystem  = "systemd-home"
	maxLabel       = lenLabel - 1
	formatSeqid    = 2 // of a fresh header, for every implementation
	defaultSector  = 512
	formatChunk    = 1 << 20
	maxSectorBytes = 4096
)

// Params says what Format is to write. Empty fields other than UUID mean the
// defaults of home areas: subsystem systemd-home, aes, xts-plain64, sha512,
// sectors of 512 bytes.
type Params struct {
	Label, Subsystem, UUID string // label at most 47 bytes; UUID dashed
	Cipher, Mode           string
	KeySize                int // bytes; 0 is the size of the volume key
	Hash                   string
	SectorSize             int
	// PBKDF matters for the digest only: iterations that are forced for
	// keyslots make the digest as cheap as the format allows.
	PBKDF PBKDF
	// Rand is the source of salts and noise; nil is crypto/rand.
	Rand io.Reader
}

func (p Params) withDefaults(key int) Params {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&p.Subsystem, homeSubsystem)
	set(&p.Cipher, defaultCipher)
	set(&p.Mode, defaultMode)
	set(&p.Hash, p.PBKDF.Hash)
	set(&p.Hash, defaultHash)
	if p.KeySize == 0 {
		p.KeySize = key
	}
	if p.SectorSize == 0 {
		p.SectorSize = defaultSector
	}
	if p.Rand == nil {
		p.Rand = rand.Reader
	}
	p.UUID = strings.ToLower(p.UUID)
	return p
}

func (p Params) check(key int) error {
	switch {
	case len(p.Label) > maxLabel || len(p.Subsystem) > maxLabel:
		return fmt.Errorf("label of more than %d bytes", maxLabel)
	case strings.ContainsRune(p.Label+p.Subsystem, 0):
		return errors.New("NUL in the label")
	case !validUUID(p.UUID):
		return fmt.Errorf("UUID %q", p.UUID)
	case p.KeySize != key:
		return fmt.Errorf("volume key of %d bytes, %d asked for", key, p.KeySize)
	case p.SectorSize < 512 || p.SectorSize > maxSectorBytes || p.SectorSize&(p.SectorSize-1) != 0:
		return fmt.Errorf("sectors of %d bytes", p.SectorSize)
	}
	return nil
}

// Format makes d an empty container with the volume key given, without a
// keyslot. What its first 16 MiB held is gone, the payload is left as it is. A
// crash in between leaves no container, or this one. Faults: InvalidArgs,
// NotSupported for a cipher or hash that is not known here, IOError.
func Format(d Device, p Params, volumeKey *secret.Bytes) (*Header, error) {
	const op = "format LUKS2"
	p = p.withDefaults(volumeKey.Len())
	if err := p.check(volumeKey.Len()); err != nil {
		return nil, fault.New(fault.InvalidArgs, op, err)
	}
	h := &Header{
		label: p.Label, subsystem: p.Subsystem, uuid: p.UUID,
		seqid: formatSeqid, size: formatCopy, keySize: p.KeySize, rand: p.Rand,
	}
	doc, err := h.emptyDoc(p, volumeKey)
	if err != nil {
		return nil, err
	}
	if h.meta, err = parseMetadata(doc.text(), h.size); err != nil {
		return nil, fault.New(fault.NotSupported, op, err)
	}
	// Ask for what keyslots and token need now, before anything is overwritten.
	err = volumeKey.Use(func(key []byte) error {
		if _, err := newSectors(h.meta.segment.encryption, key); err != nil {
			return err
		}
		_, err := h.cryptRecord(key, block{}, make([]byte, len(block{})), true)
		return err
	})
	if err != nil {
		return nil, fault.New(fault.NotSupported, op, err)
	}
	if err := h.clear(d); err != nil {
		return nil, fault.New(fault.IOError, op, err)
	}
	for i := range h.salts {
		if err := h.writeCopy(d, i, h.seqid, doc.text()); err != nil {
			return nil, err
		}
	}
	_ = volumeKey.Use(func(key []byte) error {
		h.verified = fingerprint(key)
		return nil
	})
	return h, nil
}

// emptyDoc is the JSON of a container without keyslots.
func (h *Header) emptyDoc(p Params, volumeKey *secret.Bytes) (object, error) {
	dg := digest{hash: p.Hash, iterations: minIterations, salt: make([]byte, saltSize)}
	f, err := hashByName(p.Hash)
	if err != nil {
		return nil, fault.New(fault.NotSupported, "format LUKS2", err)
	}
	if p.PBKDF.ForceIterations == 0 {
		if dg.iterations, err = p.PBKDF.Costs.pbkdf2(p.Hash, f().Size(), uint64(digestTime.Milliseconds())); err != nil {
			return nil, err
		}
	}
	if _, err := io.ReadFull(h.rand, dg.salt); err != nil {
		return nil, fmt.Errorf("draw salt: %w", err)
	}
	err = volumeKey.Use(func(key []byte) error {
		var err error
		dg.sum, err = derivePBKDF2(dg.hash, key, dg.salt, dg.iterations, f().Size())
		return err
	})
	if err != nil {
		return nil, err
	}
	return object{
		{"keyslots", []byte("{}")},
		{"tokens", []byte("{}")},
		{"segments", object{{"0", object{
			{"type", quote("crypt")},
			{"offset", numberString(formatData)},
			{"size", quote("dynamic")},
			{"iv_tweak", quote("0")},
			{"encryption", quote(p.Cipher + "-" + p.Mode)},
			{"sector_size", number(uint64(p.SectorSize))},
		}.text()}}.text()},
		{"digests", object{{"0", dg.object([]int{0}).text()}}.text()},
		{"config", object{
			{"json_size", numberString(formatCopy - binarySize)},
			{"keyslots_size", numberString(formatAreas)},
		}.text()},
	}, nil
}

// clear zeroes what precedes the payload and fills the keyslots area with
// noise, so that used and unused areas look alike.
func (h *Header) clear(d Device) error {
	b := make([]byte, formatChunk)
	for at := int64(0); at < formatData; at += formatChunk {
		if at == 2*formatCopy {
			clear(b)
		}
		if at >= 2*formatCopy && at < 2*formatCopy+formatAreas {
			if _, err := io.ReadFull(h.rand, b); err != nil {
				return fmt.Errorf("draw random bytes: %w", err)
			}
		}
		if _, err := d.WriteAt(b, at); err != nil {
			return err
		}
	}
	h.extent = [2]int64{}
	return d.Sync()
}

// Repair rewrites the damaged copy from the good one. It does nothing if
// neither is damaged.
func (h *Header) Repair(d Device) error {
	if h.Damaged == Neither {
		return nil
	}
	release, err := lock(d, true)
	if err != nil {
		return err
	}
	defer release()
	return h.repair(d)
}

// repair is Repair under the lock.
func (h *Header) repair(d Device) error {
	if err := h.unchanged(d); err != nil {
		return err
	}
	if h.Damaged == Neither {
		return nil
	}
	i := int(h.Damaged - Primary)
	h.salts[i] = nil
	if err := h.writeCopy(d, i, h.seqid, h.meta.doc.text()); err != nil {
		return err
	}
	h.Damaged = Neither
	return nil
}

// unchanged tells whether the good copies are still those that h was read from.
func (h *Header) unchanged(d io.ReaderAt) error {
	for i, sum := range h.sums {
		if h.Damaged == Copy(i)+Primary {
			continue
		}
		seqid, now, err := peek(d, int64(i)*h.size)
		if err != nil {
			return fault.New(fault.IOError, "read LUKS2 header", err)
		}
		if seqid != h.seqid || !equal(sum, now) {
			return fault.New(fault.HomeInUse, "write LUKS2 header", errors.New("somebody else wrote the header meanwhile"))
		}
	}
	return nil
}

// rewrite makes a write of the header alone with d: it leaves two good copies
// there, which are those of h, and then calls write.
func (h *Header) rewrite(d Device, write func() error) error {
	release, err := lock(d, true)
	if err != nil {
		return err
	}
	defer release()
	if err := h.repair(d); err != nil {
		return err
	}
	return write()
}

// commit writes doc as the new metadata. While one copy is being written the
// other is whole, so a crash leaves the old metadata or the new. So does an
// error: h is then what the whole copy says, and the other is damaged.
func (h *Header) commit(d Device, doc object) error {
	const op = "write LUKS2 header"
	t := doc.text()
	if int64(len(t)) >= h.size-binarySize {
		return fault.New(fault.NoDiskSpace, op, fmt.Errorf("JSON text of %d bytes does not fit", len(t)))
	}
	m, err := parseMetadata(t, h.size)
	if err != nil {
		return fault.New(fault.Inconsistent, op, fmt.Errorf("refuse what we would write: %w", err))
	}
	seqid := h.seqid + 1
	if seqid == 0 {
		return fault.New(fault.Inconsistent, op, errors.New("sequence number at its end"))
	}
	if err := h.writeCopy(d, 0, seqid, t); err != nil {
		h.Damaged = Primary
		return err
	}
	// A header read before its first keyslot, or after its last, still knows
	// the size of the key.
	h.keySize = h.volumeKeySize()
	h.seqid, h.meta = seqid, m
	if err := h.writeCopy(d, 1, seqid, t); err != nil {
		h.Damaged = Secondary
		return err
	}
	return nil
}

// writeCopy writes the copy with the index i and waits until it is stable. It
// is invalid until its last write, which brings the checksum.
func (h *Header) writeCopy(d Device, i int, seqid uint64, t []byte) error {
	op := fmt.Sprintf("write %s LUKS2 header", Copy(i)+Primary)
	if h.salts[i] == nil {
		salt := make([]byte, lenSalt)
		if _, err := io.ReadFull(h.rand, salt); err != nil {
			return fmt.Errorf("draw salt: %w", err)
		}
		h.salts[i] = salt
	}
	b := binaryHeader{size: h.size, seqid: seqid, label: h.label, uuid: h.uuid, subsystem: h.subsystem, salt: h.salts[i]}
	head := b.bytes(i)
	sum, err := sumCopy("sha256", head, t, h.size)
	if err != nil {
		return err
	}
	base := int64(i) * h.size
	// Zeros over what is left of a longer text, in whole pages; the rest of the
	// area holds zeros already.
	used := binarySize + int64(len(t)) + 1
	area := make([]byte, (max(used, h.extent[i])+4095)/4096*4096-binarySize)
	copy(area, t)
	// From here on the copy is not what was read.
	h.extent[i] = max(used, h.extent[i])
	if _, err := d.WriteAt(head, base); err != nil {
		return fault.New(fault.IOError, op, err)
	}
	if _, err := d.WriteAt(area, base+binarySize); err != nil {
		return fault.New(fault.IOError, op, err)
	}
	copy(head[offChecksum:endChecksum], sum)
	if err := writeSync(d, head, base); err != nil {
		return fault.New(fault.IOError, op, err)
	}
	h.sums[i], h.extent[i] = sum, used
	return nil
}

func writeSync(d Device, b []byte, at int64) error {
	if _, err := d.WriteAt(b, at); err != nil {
		return err
	}
	return d.Sync()
}
