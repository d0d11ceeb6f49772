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
func CheckHash(stored string, p *secret.Bytes) (bool, error) {
	ok := false
	err := p.Use(func(b []byte) error {
		ok = fitsHash(stored, b, allowed)
		return nil
	})
	return ok, err
}

// A HashCache remembers which password fitted which hash, so that a hash
// function that is slow on purpose runs once per pair within an operation. It
// borrows the passwords: what is closed fits nothing any more. It is for one
// goroutine.
type HashCache struct {
	known []known
	runs  int             // evaluations, for tests
	stop  <-chan struct{} // may be nil
}

type known struct {
	hash string
	p    *secret.Bytes
	ok   bool
}

// NewHashCache returns an empty cache.
func NewHashCache() *HashCache { return &HashCache{} }

// StopOn makes evaluations give up, with fault.Timeout, once stop is closed.
// What is known by then remains known.
func (c *HashCache) StopOn(stop <-chan struct{}) { c.stop = stop }

// evaluate is CheckHash that can be stopped. Nothing can interrupt the function
// itself: it then goes on by itself, with a copy of the password of its own.
func (c *HashCache) evaluate(stored string, p *secret.Bytes) (bool, error) {
	if c.stop == nil {
		return CheckHash(stored, p)
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
		ok, err = CheckHash(stored, own)
		done <- err
	}()
	select {
	case err := <-done:
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
		for _, k := range c.known {
			switch {
			case !k.ok || !k.p.Equal(p):
			case k.hash == stored:
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

func (c *HashCache) check(stored string, p *secret.Bytes) (bool, error) {
	for _, k := range c.known {
		if k.hash == stored && k.p.Equal(p) {
			return k.ok, nil
		}
	}
	c.runs++
	ok, err := c.evaluate(stored, p)
	if err == nil {
		c.known = append(c.known, known{stored, p, ok})
	}
	return ok, err
}
