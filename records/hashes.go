package records

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	yescrypt "github.com/openwall/yescrypt-go"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/trace"
)

// HashPassword returns the yescrypt hash of p with a fresh salt of 16 bytes
// from rand, as crypt(3) makes it by default. Fault: InvalidArgs for a password
// longer than any tool would accept.
func HashPassword(p *secret.Bytes, rand io.Reader) (string, error) {
	if p.Len() > maxPassword {
		return "", fault.Newf(fault.InvalidArgs, "hash password", "The password is longer than %d bytes.", maxPassword)
	}
	var salt [16]byte
	if _, err := io.ReadFull(rand, salt[:]); err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	setting := append([]byte("$y$j9T$"), encode64(salt[:])...)
	var out string
	err := p.Use(func(b []byte) error {
		h, err := yescrypt.Hash(b, setting)
		out = string(h)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	return out, nil
}

const itoa64 = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// encode64 writes bytes as crypt(3) does: least significant bits first, up to
// three bytes at a time.
func encode64(src []byte) string {
	var b strings.Builder
	for len(src) > 0 {
		n := min(3, len(src))
		var bits uint32
		for i := range n {
			bits |= uint32(src[i]) << (8 * i)
		}
		for range (8*n + 5) / 6 {
			b.WriteByte(itoa64[bits&63])
			bits >>= 6
		}
		src = src[n:]
	}
	return b.String()
}

// CheckHash reports whether p is the password of a crypt(3) hash; see crypt.go
// for the methods. A hash of another method, one that costs too much, a
// malformed and an empty one match nothing. The error is secret.ErrClosed at
// most.
func CheckHash(stored string, p *secret.Bytes) (bool, error) { return checkHash(stored, p, allowed) }

func checkHash(stored string, p *secret.Bytes, max costs) (bool, error) {
	ok := false
	err := p.Use(func(b []byte) error {
		ok = fitsHash(stored, b, max)
		return nil
	})
	return ok, err
}

// A HashCache remembers which password fitted which hash, so that a hash
// function that is slow on purpose runs once per pair within an operation, and
// ends the operation when all of it takes too long (maxWork). It borrows the
// passwords: what is closed fits nothing any more. It is for one goroutine.
type HashCache struct {
	known  map[string][]known // by hash
	fitted []fitted
	runs   int // evaluations, for tests
	work   work
	stop   <-chan struct{} // may be nil
	// Observe, where it is set, is called with trace.Hash before a hash is
	// evaluated, and what it returns after that.
	Observe func(work string) (done func())
	// Room, where it is set, is called with how many bytes of memory the hash
	// takes that is evaluated next, if they are many.
	Room func(bytes uint64)
}

type known struct {
	p  *secret.Bytes
	ok bool
}

type fitted struct {
	hash string
	p    *secret.Bytes
}

// NewHashCache returns an empty cache.
func NewHashCache() *HashCache { return &HashCache{known: map[string][]known{}} }

// StopOn makes evaluations give up, with fault.Timeout, once stop is closed.
// What is known by then remains known.
func (c *HashCache) StopOn(stop <-chan struct{}) { c.stop = stop }

// MadeOf tells the cache of which password each hash of the record was made, by
// its place among the secrets (see Secrets.Places): whoever made them knows, and
// to find it out takes as long as making them. -1 says nothing.
func (c *HashCache) MadeOf(r *Record, s *Secrets, places []int) {
	hashes := layers{{privileged, r.doc.get("privileged")}}.texts("hashedPassword")
	for i, at := range places {
		if i < len(hashes) && at >= 0 && at < len(s.Passwords) {
			c.learn(hashes[i], s.Passwords[at], true)
		}
	}
}

func (c *HashCache) learn(stored string, p *secret.Bytes, ok bool) {
	c.known[stored] = append(c.known[stored], known{p, ok})
	if ok {
		c.fitted = append(c.fitted, fitted{stored, p})
	}
}

// evaluate is CheckHash that can be stopped. Nothing can interrupt the function
// itself: it then goes on by itself, with a copy of the password and a count of
// its own.
func (c *HashCache) evaluate(stored string, p *secret.Bytes) (bool, error) {
	count, most := c.work, allowed
	most.work = &count
	if c.stop == nil {
		ok, err := checkHash(stored, p, most)
		c.work = count
		return ok, err
	}
	own, err := p.Clone()
	if err != nil {
		return false, err
	}
	var ok bool
	done := make(chan error, 1)
	go func() {
		defer own.Close()
		var err error
		ok, err = checkHash(stored, own, most)
		done <- err
	}()
	select {
	case err := <-done:
		c.work = count
		return ok, err
	case <-c.stop:
		return false, fault.New(fault.Timeout, "check password", errors.New("asked to stop"))
	}
}

// likelyFirst orders passwords by what is known of them: what fits the hash,
// then what has fitted none so far, then what is the password of another hash.
// A change of password so costs one evaluation of each hash, of the old record
// and the new.
func (c *HashCache) likelyFirst(stored string, passwords []*secret.Bytes) []*secret.Bytes {
	rank := func(p *secret.Bytes) int {
		at := 1
		for _, f := range c.fitted {
			switch {
			case !f.p.Equal(p):
			case f.hash == stored:
				return 0
			default:
				at = 2
			}
		}
		return at
	}
	list := slices.Clone(passwords)
	slices.SortStableFunc(list, func(a, b *secret.Bytes) int { return rank(a) - rank(b) })
	return list
}

// check is CheckHash. Faults: LimitsExceeded, Timeout.
func (c *HashCache) check(stored string, p *secret.Bytes) (bool, error) {
	for _, k := range c.known[stored] {
		if k.p.Equal(p) {
			return k.ok, nil
		}
	}
	c.runs++
	if n := hashMemory(stored); n > 1<<20 && c.Room != nil {
		c.Room(n)
	}
	if c.Observe != nil {
		defer c.Observe(trace.Hash)()
	}
	ok, err := c.evaluate(stored, p)
	if c.work.over {
		return false, fault.Newf(fault.LimitsExceeded, "check password hashes",
			"The record has more or costlier password hashes than are tried at once with so many passwords.")
	}
	if err == nil {
		c.learn(stored, p, ok)
	}
	return ok, err
}
