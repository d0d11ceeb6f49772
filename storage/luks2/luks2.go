// Package luks2 reads and writes the LUKS2 headers of home areas: both header
// copies, keyslots, digests, and the token in which a home carries its user
// record. It knows bytes only and works over io.ReaderAt and io.WriterAt. It
// leaves to its callers where those bytes are, how others are kept away from them
// meanwhile (see Locker), the payload, and what the record in the token means.
package luks2

import (
	"crypto/sha256"
	"fmt"
	"io"
	"strings"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/trace"
)

// Device is where a header lives: offset 0 is the start of the LUKS partition.
// Sync returns when all that was written before is on stable storage; crash
// safety rests on it.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// A Locker is what is read or written and that others may write, too. Read and
// Unlock take its lock shared, each write takes it alone and then looks whether
// the header is still the one it was read from. No derivation happens meanwhile.
type Locker interface {
	// Lock waits for the lock, which release gives back.
	Lock(exclusive bool) (release func(), err error)
}

// lock takes the lock of d, where it has one.
func lock(d any, exclusive bool) (release func(), err error) {
	if l, ok := d.(Locker); ok {
		if release, err = l.Lock(exclusive); err != nil {
			return nil, fmt.Errorf("lock LUKS2 header: %w", err)
		}
		return release, nil
	}
	return func() {}, nil
}

// Copy names one of the two header copies.
type Copy int

// The copies of a header.
const (
	Neither   Copy = iota
	Primary        // at offset 0
	Secondary      // right behind the primary
)

func (c Copy) String() string {
	switch c {
	case Primary:
		return "primary"
	case Secondary:
		return "secondary"
	}
	return "neither"
}

// Header is the metadata of one LUKS2 container, as last read or written. It is
// not safe for concurrent use. After a failed write it is what the copy says that
// is whole, which may be the new state; the next write repairs the other.
type Header struct {
	// Damaged says which copy is unusable or outdated. Repair rewrites it; so
	// does any other write.
	Damaged Copy

	label, subsystem, uuid string
	seqid                  uint64
	size                   int64     // H, bytes of one copy
	salts                  [2][]byte // per copy, kept across rewrites
	sums                   [2][]byte // checksums on the device, to notice another writer
	extent                 [2]int64  // bytes of each copy that may differ from zero
	meta                   *metadata

	keySize     int                // bytes of the volume key, where no keyslot says it
	verified    *[sha256.Size]byte // fingerprint of the key that met the digest
	memoryLimit uint64             // KiB
	stop        <-chan struct{}    // may be nil
	observe     func(work string) (done func())
	rand        io.Reader
}

// UUID returns the container's UUID, dashed lower case.
func (h *Header) UUID() string { return strings.ToLower(h.uuid) }

// Label returns the container's label.
func (h *Header) Label() string { return h.label }

// Subsystem returns the container's subsystem, "systemd-home" for a home.
func (h *Header) Subsystem() string { return h.subsystem }

// Seqid returns the sequence number of the copy in use. It rises with every
// write of metadata.
func (h *Header) Seqid() uint64 { return h.seqid }

// DataOffset returns where the payload starts, in bytes.
func (h *Header) DataOffset() int64 { return h.meta.segment.offset }

// Dynamic reports whether the payload reaches to the end of the device, however
// large that is.
func (h *Header) Dynamic() bool { return h.meta.segment.size < 0 }

// SectorSize returns the encryption sector size in bytes.
func (h *Header) SectorSize() int { return h.meta.segment.sectorSize }

// Cipher returns cipher and mode of the payload ("aes", "xts-plain64") and the
// size of the volume key in bytes; 0 if no keyslot tells.
func (h *Header) Cipher() (cipher, mode string, keySize int) {
	cipher, mode, _ = strings.Cut(h.meta.segment.encryption, "-")
	return cipher, mode, h.volumeKeySize()
}

func (h *Header) volumeKeySize() int {
	for _, s := range h.meta.digest.keyslots {
		if k := h.meta.keyslots[s]; k != nil {
			return k.keySize
		}
	}
	return h.keySize
}

// Keyslots returns the numbers of the keyslots that hold the volume key, in
// ascending order.
func (h *Header) Keyslots() []int { return append([]int(nil), h.meta.digest.keyslots...) }

// KeyDescription returns the description under which the kernel is to find the
// volume key as a logon key.
func (h *Header) KeyDescription() string {
	return fmt.Sprintf("cryptsetup:%s-d%d", h.UUID(), h.meta.digest.id)
}

// Table returns length, in sectors of 512 bytes, and parameters of the dm-crypt
// target that shows the payload of the device major:minor. deviceSize is the
// size in bytes of that device; the length is 0 if it ends before the payload.
// The volume key is referred to by KeyDescription, never contained.
func (h *Header) Table(deviceSize int64, major, minor uint32, discard bool) (sectors uint64, params string) {
	s := h.meta.segment
	length := deviceSize - s.offset
	if s.size >= 0 {
		length = min(length, s.size)
	}
	length = max(length, 0) / int64(s.sectorSize) * int64(s.sectorSize)

	var opts []string
	if discard {
		opts = append(opts, "allow_discards")
	}
	if s.sectorSize != 512 {
		opts = append(opts, fmt.Sprintf("sector_size:%d", s.sectorSize))
	}
	params = fmt.Sprintf("%s :%d:logon:%s %d %d:%d %d", s.encryption, h.volumeKeySize(), h.KeyDescription(),
		s.ivTweak, major, minor, s.offset/512)
	if len(opts) > 0 {
		params += fmt.Sprintf(" %d %s", len(opts), strings.Join(opts, " "))
	}
	return uint64(length / 512), params
}

// SetMemoryLimit sets how much memory, in KiB, Unlock may spend on one
// derivation. 0 is the format's own limit, 4 GiB. A keyslot that asks for more
// is not tried.
func (h *Header) SetMemoryLimit(kib uint64) { h.memoryLimit = kib }

// StopOn makes Unlock and AddKeyslot give up a derivation, with fault.Timeout,
// once stop is closed. What comes after a derivation is not stopped.
func (h *Header) StopOn(stop <-chan struct{}) { h.stop = stop }

// Observe has f called with trace.KDF and trace.Digest before each derivation
// and each check of a volume key, and what it returns after that.
func (h *Header) Observe(f func(work string) (done func())) { h.observe = f }

func (h *Header) work(name string) (done func()) {
	if h.observe == nil {
		return func() {}
	}
	return h.observe(name)
}

// matches is that of the digest, noted.
func (h *Header) matches(key []byte) (bool, error) {
	defer h.work(trace.Digest)()
	return h.meta.digest.matches(key)
}

// KDFMemory returns the most memory, in bytes, that trying one keyslot takes.
// Whoever can have such an amount faulted in cheaply does so before Unlock.
func (h *Header) KDFMemory() uint64 {
	var most uint64
	for _, k := range h.candidates() {
		if k.kdf.memory <= h.limit() {
			most = max(most, k.kdf.memory)
		}
	}
	return most << 10
}

func (h *Header) limit() uint64 {
	if h.memoryLimit == 0 || h.memoryLimit > maxMemoryKiB {
		return maxMemoryKiB
	}
	return h.memoryLimit
}

// CheckKey reports whether volumeKey is the key of this container. Fault:
// BadPassword if not. The answer is remembered, a second check of the same key
// is free.
func (h *Header) CheckKey(volumeKey *secret.Bytes) error {
	return volumeKey.Use(func(key []byte) error { return h.checkKey(key) })
}

func (h *Header) checkKey(key []byte) error {
	sum := fingerprint(key)
	if h.verified != nil && *h.verified == *sum {
		return nil
	}
	if n := h.volumeKeySize(); n != 0 && len(key) != n {
		return fault.New(fault.BadPassword, "check volume key", fmt.Errorf("%d bytes given, the container's key has %d", len(key), n))
	}
	ok, err := h.matches(key)
	if err != nil {
		return err
	}
	if !ok {
		return fault.New(fault.BadPassword, "check volume key", errWrongKey)
	}
	h.verified = sum
	return nil
}
