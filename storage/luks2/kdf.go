package luks2

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/crypto/argon2"

	"hearth/internal/fault"
)

// Bounds on what a header may make us spend. The memory bound is the format's;
// the others are ours and lie beyond a minute of work on a fast machine, since
// whoever wrote the header chose them.
const (
	maxMemoryKiB  = 4 << 20
	maxThreads    = 64
	maxIterations = 1 << 28
	maxPasses     = 64 * maxMemoryKiB // argon2: KiB times passes
	maxKeySize    = 512
	maxAreaKey    = 64 // of aes-xts
	maxSalt       = 1024
)

// Bounds on what we write ourselves.
const (
	minIterations = 1000
	minPasses     = 4
	minMemoryKiB  = 32
	// A measurement does not go below this, whatever it says: a machine that
	// was busy for a moment would leave a home with a weak key derivation for
	// good. The real daemon's homes made with 1 ms have 32 MiB as well.
	leastMeasuredKiB = 32 << 10
	maxOwnThreads    = 4
	saltSize         = 32
	digestTime       = 125 * time.Millisecond
	defaultTimeMS    = 500
	defaultMemoryKiB = 64 << 10
	defaultHash      = "sha512"
	defaultKDF       = "argon2id"
)

// PBKDF says how a passphrase becomes a key. Empty fields mean the defaults of
// home areas: argon2id, sha512, 500 ms, 64 MiB, one thread.
type PBKDF struct {
	Type string // "argon2id", "argon2i" or "pbkdf2"
	Hash string // of pbkdf2, and of the anti-forensic split in any case
	// TimeMS is the time one derivation shall take here, in ms.
	TimeMS uint64
	// MemoryKiB and Threads bound argon2. The caller keeps the memory below
	// what the machine can spare and the threads below its processors.
	MemoryKiB, Threads uint32
	// ForceIterations sets the iterations of pbkdf2, or the passes of argon2,
	// without measuring. 0 measures.
	ForceIterations uint64
	// Costs remember what measurements found; nil measures each time.
	Costs *Costs
}

// kdf is a derivation as a keyslot states it.
type kdf struct {
	kind       string
	hash       string // pbkdf2
	iterations uint64
	passes     uint64 // argon2
	memory     uint64 // argon2, KiB
	threads    uint64
	salt       []byte
}

func parseKDF(o object) (kdf, error) {
	r := reader{o: o, what: "kdf"}
	k := kdf{kind: r.str("type"), salt: r.bin("salt")}
	switch k.kind {
	case "pbkdf2":
		k.hash, k.iterations = r.str("hash"), r.num("iterations", 1<<32-1)
	case "argon2i", "argon2id":
		k.passes, k.memory, k.threads = r.num("time", 1<<32-1), r.num("memory", 1<<32-1), r.num("cpus", 1<<32-1)
	default:
		r.fail("type", "%q is not known", k.kind)
	}
	if r.err != nil {
		return k, r.err
	}
	return k, k.check()
}

// check refuses what would take for ever, or what no derivation can be.
func (k *kdf) check() error {
	if len(k.salt) == 0 || len(k.salt) > maxSalt {
		return fmt.Errorf("kdf: salt of %d bytes", len(k.salt))
	}
	if k.kind == "pbkdf2" {
		return checkPBKDF2(k.hash, k.iterations)
	}
	if k.passes < 1 || k.threads < 1 || k.threads > maxThreads || k.memory < 8 || k.memory > maxMemoryKiB || k.passes > maxPasses/k.memory {
		return fmt.Errorf("kdf: argon2 with %d passes over %d KiB in %d threads", k.passes, k.memory, k.threads)
	}
	return nil
}

// checkLength refuses a key of n bytes that is longer than any cipher here
// takes, or that takes pbkdf2 beyond our bound: it iterates anew for each piece
// of the hash's length.
func (k *kdf) checkLength(n int) error {
	if n > maxAreaKey {
		return fmt.Errorf("kdf: key of %d bytes", n)
	}
	if k.kind != "pbkdf2" {
		return nil
	}
	f, err := hashByName(k.hash)
	if err != nil {
		return err
	}
	if size := f().Size(); k.iterations*uint64((n+size-1)/size) > maxIterations {
		return fmt.Errorf("pbkdf2 with %d iterations for %d bytes", k.iterations, n)
	}
	return nil
}

func checkPBKDF2(hash string, iterations uint64) error {
	if iterations < 1 || iterations > maxIterations {
		return fmt.Errorf("pbkdf2 with %d iterations", iterations)
	}
	_, err := hashByName(hash)
	return err
}

// object is the kdf member of a keyslot.
func (k *kdf) object() object {
	o := object{{"type", quote(k.kind)}}
	if k.kind == "pbkdf2" {
		o = append(o, member{"hash", quote(k.hash)}, member{"iterations", number(k.iterations)})
	} else {
		o = append(o, member{"time", number(k.passes)}, member{"memory", number(k.memory)}, member{"cpus", number(k.threads)})
	}
	return append(o, member{"salt", encoded(k.salt)})
}

// derive returns n bytes of key, which the caller wipes. k was checked.
func (k *kdf) derive(passphrase []byte, n int) ([]byte, error) {
	switch k.kind {
	case "pbkdf2":
		return derivePBKDF2(k.hash, passphrase, k.salt, k.iterations, n)
	case "argon2i":
		return argon2.Key(passphrase, k.salt, uint32(k.passes), uint32(k.memory), uint8(k.threads), uint32(n)), nil
	}
	return argon2.IDKey(passphrase, k.salt, uint32(k.passes), uint32(k.memory), uint8(k.threads), uint32(n)), nil
}

var errWrongKey = errors.New("the digest does not match")

// matches reports whether key is the volume key that d was made of.
func (d *digest) matches(key []byte) (bool, error) {
	if d.unusable != nil {
		return false, fault.New(fault.NotSupported, "check volume key", d.unusable)
	}
	sum, err := derivePBKDF2(d.hash, key, d.salt, d.iterations, len(d.sum))
	if err != nil {
		return false, fault.New(fault.NotSupported, "check volume key", err)
	}
	return equal(sum, d.sum), nil
}

func (d *digest) check() error {
	if err := checkPBKDF2(d.hash, d.iterations); err != nil {
		return fmt.Errorf("digest %d: %w", d.id, err)
	}
	// A short digest would let more than one key pass.
	f, _ := hashByName(d.hash)
	if len(d.salt) > maxSalt || len(d.sum) < 16 || len(d.sum) > f().Size() {
		return fmt.Errorf("digest %d: salt of %d bytes, digest of %d", d.id, len(d.salt), len(d.sum))
	}
	return nil
}

func (d *digest) object(segments []int) object {
	return object{
		{"type", quote("pbkdf2")},
		{"keyslots", idList(d.keyslots)},
		{"segments", idList(segments)},
		{"hash", quote(d.hash)},
		{"iterations", number(d.iterations)},
		{"salt", encoded(d.salt)},
		{"digest", encoded(d.sum)},
	}
}

func (p PBKDF) withDefaults() PBKDF {
	if p.Type == "" {
		p.Type = defaultKDF
	}
	if p.Hash == "" {
		p.Hash = defaultHash
	}
	if p.TimeMS == 0 {
		p.TimeMS = defaultTimeMS
	}
	if p.MemoryKiB == 0 {
		p.MemoryKiB = defaultMemoryKiB
	}
	p.MemoryKiB = min(max(p.MemoryKiB, minMemoryKiB), maxMemoryKiB)
	p.Threads = min(max(p.Threads, 1), maxOwnThreads)
	return p
}

// Memory returns the most memory, in bytes, that deriving a new keyslot's key
// takes.
func (p PBKDF) Memory() uint64 {
	p = p.withDefaults()
	if p.Type == "pbkdf2" {
		return 0
	}
	return uint64(p.MemoryKiB) << 10
}

// choose settles what a new keyslot is to cost, for n bytes of key. p has its
// defaults.
func (p PBKDF) choose(n int, salt []byte) (kdf, error) {
	k := kdf{kind: p.Type, salt: salt}
	switch p.Type {
	case "pbkdf2":
		k.hash = p.Hash
		k.iterations = max(p.ForceIterations, minIterations)
		if p.ForceIterations == 0 {
			var err error
			if k.iterations, err = p.Costs.pbkdf2(p.Hash, n, p.TimeMS); err != nil {
				return k, err
			}
		}
	case "argon2i", "argon2id":
		// Below eight blocks per lane argon2 would round up what we state.
		k.threads = uint64(p.Threads)
		k.memory = max(uint64(p.MemoryKiB), 8*k.threads)
		k.passes = max(p.ForceIterations, minPasses)
		if p.ForceIterations == 0 {
			c := p.question(n)
			found, err := p.Costs.of(c, func(o Cost) bool {
				m := k
				m.passes, m.memory = o.Iterations, o.MemoryKiB
				return o.Iterations >= minPasses && o.MemoryKiB >= min(leastMeasuredKiB, k.memory) && o.MemoryKiB <= k.memory && m.check() == nil
			}, func() (Cost, error) {
				m := k
				err := m.measure(n, time.Duration(p.TimeMS)*time.Millisecond)
				c.Iterations, c.MemoryKiB = m.passes, m.memory
				return c, err
			})
			if err != nil {
				return k, err
			}
			k.passes, k.memory = found.Iterations, found.MemoryKiB
		}
	default:
		return k, fmt.Errorf("key derivation %q: %w", p.Type, errFeature)
	}
	return k, k.check()
}

// question is what choose asks of Costs, for n bytes of key.
func (p PBKDF) question(n int) Cost {
	c := Cost{Type: p.Type, TimeMS: p.TimeMS, Bytes: n}
	if p.Type == "pbkdf2" {
		c.Hash = p.Hash
	} else {
		c.MostKiB, c.Threads = p.MemoryKiB, p.Threads
	}
	return c
}

// pbkdf2 returns how many iterations take so many ms.
func (s *Costs) pbkdf2(hash string, n int, ms uint64) (uint64, error) {
	c := PBKDF{Type: "pbkdf2", Hash: hash, TimeMS: ms}.question(n)
	found, err := s.of(c, func(o Cost) bool {
		return o.Iterations >= minIterations && o.Iterations <= maxIterations && o.MemoryKiB == 0
	}, func() (Cost, error) {
		var err error
		c.Iterations, err = measurePBKDF2(hash, n, time.Duration(ms)*time.Millisecond)
		return c, err
	})
	return found.Iterations, err
}

// measurePBKDF2 returns how many iterations take the time d.
func measurePBKDF2(hash string, n int, d time.Duration) (uint64, error) {
	const enough = 40 * time.Millisecond
	salt, word := make([]byte, saltSize), []byte("passphrase")
	for iterations := uint64(minIterations); ; iterations *= 4 {
		start := time.Now()
		if _, err := derivePBKDF2(hash, word, salt, iterations, n); err != nil {
			return 0, err
		}
		if took := time.Since(start); took >= enough || iterations >= maxIterations/4 {
			per := float64(iterations) / float64(max(took, 1))
			return uint64(min(max(per*float64(d), minIterations), maxIterations)), nil
		}
	}
}

// measure sets passes and memory so that a derivation takes the time d: the
// memory that is allowed first, then passes; less memory where even the fewest
// passes take too long.
func (k *kdf) measure(n int, d time.Duration) error {
	word := []byte("passphrase")
	// Small first: where 64 MiB take seconds, one run of them is too many.
	probe := *k
	probe.passes, probe.memory = minPasses, min(k.memory, max(4<<10, 8*k.threads))
	for {
		// Only the second run has its memory at hand, as a derivation has
		// after prefault.
		if _, err := probe.derive(word, n); err != nil {
			return err
		}
		start := time.Now()
		if _, err := probe.derive(word, n); err != nil {
			return err
		}
		took := max(time.Since(start), time.Microsecond)
		scale := float64(d) / float64(took)
		want := uint64(float64(probe.memory) * scale)
		if probe.memory >= k.memory || want <= probe.memory {
			k.memory = min(k.memory, max(want, leastMeasuredKiB, 8*k.threads))
			passes := float64(minPasses) * scale * float64(probe.memory) / float64(k.memory)
			k.passes = uint64(min(max(passes, minPasses), float64(maxPasses/k.memory)))
			return nil
		}
		probe.memory = min(k.memory, want, 8*probe.memory)
	}
}

// equal compares in constant time.
func equal(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

func slotName(n int) string { return strconv.Itoa(n) }
