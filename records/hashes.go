package records

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"

	xcrypt "github.com/go-crypt/x/crypt"
	yescrypt "github.com/openwall/yescrypt-go"
	"golang.org/x/crypto/bcrypt"

	"hearth/internal/secret"
)

// HashPassword returns the yescrypt hash of p with a fresh salt of 16 bytes
// from rand, as crypt(3) makes it by default.
func HashPassword(p *secret.Bytes, rand io.Reader) (string, error) {
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

// CheckHash reports whether p is the password of a crypt(3) hash: yescrypt,
// bcrypt, SHA-512 or SHA-256. A hash of another method, a malformed and an
// empty one match nothing. The error is secret.ErrClosed at most.
func CheckHash(stored string, p *secret.Bytes) (bool, error) {
	ok := false
	err := p.Use(func(b []byte) error {
		ok = checkHash(stored, b)
		return nil
	})
	return ok, err
}

func checkHash(stored string, p []byte) bool {
	switch {
	case strings.HasPrefix(stored, "$y$"):
		// The library bounds cost: at most 1 GiB of memory.
		h, err := yescrypt.Hash(p, []byte(stored))
		return err == nil && subtle.ConstantTimeCompare(h, []byte(stored)) == 1
	case strings.HasPrefix(stored, "$2a$"), strings.HasPrefix(stored, "$2b$"), strings.HasPrefix(stored, "$2y$"):
		// The library compares the 60 bytes it knows and no more.
		return len(stored) == 60 && bcrypt.CompareHashAndPassword([]byte(stored), p) == nil
	case strings.HasPrefix(stored, "$6$"):
		return checkSHA(stored[3:], p, sha512.New, 86)
	case strings.HasPrefix(stored, "$5$"):
		return checkSHA(stored[3:], p, sha256.New, 43)
	}
	return false
}

// checkSHA checks the rest of a SHA-crypt hash, [rounds=N$]SALT$HASH.
func checkSHA(rest string, p []byte, h func() hash.Hash, length int) bool {
	rounds := 5000
	if n, tail, ok := strings.Cut(rest, "$"); ok && strings.HasPrefix(n, "rounds=") {
		var err error
		// crypt(3) writes rounds in this range only, without leading zeros.
		if rounds, err = strconv.Atoi(n[len("rounds="):]); err != nil || rounds < 1000 || rounds > 999999999 || n != "rounds="+strconv.Itoa(rounds) {
			return false
		}
		rest = tail
	}
	salt, want, ok := strings.Cut(rest, "$")
	if !ok || len(salt) > 16 || len(want) != length {
		return false
	}
	got := xcrypt.KeySHACrypt(h, p, []byte(salt), rounds)
	return subtle.ConstantTimeCompare(got, []byte(want)) == 1
}

// A HashCache remembers which password fitted which hash, so that a hash
// function that is slow on purpose runs once per pair within an operation. It
// borrows the passwords: what is closed fits nothing any more. It is for one
// goroutine.
type HashCache struct {
	known []known
	runs  int // evaluations, for tests
}

type known struct {
	hash string
	p    *secret.Bytes
	ok   bool
}

// NewHashCache returns an empty cache.
func NewHashCache() *HashCache { return &HashCache{} }

func (c *HashCache) check(stored string, p *secret.Bytes) (bool, error) {
	for _, k := range c.known {
		if k.hash == stored && k.p.Equal(p) {
			return k.ok, nil
		}
	}
	c.runs++
	ok, err := CheckHash(stored, p)
	if err == nil {
		c.known = append(c.known, known{stored, p, ok})
	}
	return ok, err
}
