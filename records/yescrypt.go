package records

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/bits"
	"strings"
	"sync"
)

// yescrypt in the one flavour that crypt(3) makes of it ($y$j): written to
// flags YESCRYPT_RW with 6 rounds, gather 4, simple 2 and boxes of 12 KiB, no
// ROM, no added time, one thread. The algorithm is that of its authors'
// specification ("yescrypt - password hashing scalable beyond bcrypt and
// scrypt") and of libxcrypt. The library for Go takes nearly three times as
// long as libxcrypt, which is most of what a change of password takes; here
// what is looked up lies in arrays whose bounds need no check, a row of the
// memory is read and mixed at once, and the memory serves again.

const (
	boxBytes = 3 * 256 * 2 * 8
	rowWords = 16 // in units of r, of 64 bits
)

// box is what pwxform looks up in: 256 pairs.
type box [256][2]uint64

// boxes are the three in the order of the moment, and where the next pair is
// written.
type boxes struct {
	first, second, third *box
	at                   uint8
}

// memories are what was allocated for a hash and may serve for the next one. The
// kernel hands out fresh memory page by page, which takes longer than to fill it.
var memories sync.Pool

func memory(words int) *[]uint64 {
	if m, ok := memories.Get().(*[]uint64); ok && cap(*m) >= words {
		*m = (*m)[:words]
		return m
	}
	m := make([]uint64, words)
	return &m
}

var errYescrypt = errors.New("not yescrypt in the flavour of crypt(3)")

// yescrypt returns the hash of a password with the parameters and the salt of a
// setting or an older hash, "$y$jNr$SALT", and what follows.
func yescrypt(password []byte, setting string) (string, error) {
	if len(setting) < 7 || setting[:4] != "$y$j" || setting[6] != '$' {
		return "", errYescrypt
	}
	log, r := digit64(setting[4])+1, digit64(setting[5])+1
	if log < 10 || log > 18 || r < 1 || r > 32 {
		return "", errYescrypt
	}
	end := strings.LastIndexByte(setting, '$')
	if end < 7 {
		end = len(setting)
	}
	salt, ok := decode64(setting[7:end])
	if !ok {
		return "", errYescrypt
	}
	key, err := yescryptKey(password, salt, 1<<log, r)
	if err != nil {
		return "", err
	}
	return setting[:end] + "$" + encode64(key), nil
}

// decode64 reads what encode64 writes, and refuses bits that nothing stands for.
func decode64(s string) (out []byte, ok bool) {
	for len(s) > 0 {
		n := min(4, len(s))
		v, ok := number64(s[:n])
		whole := n * 6 / 8
		if !ok || n < 2 || v>>(8*whole) != 0 {
			return nil, false
		}
		for i := range whole {
			out = append(out, byte(v>>(8*i)))
		}
		s = s[n:]
	}
	return out, true
}

func mac(key, text []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(text)
	return h.Sum(nil)
}

// yescryptKey derives 32 bytes. Where the cost allows it a pass with a 64th of
// the memory comes first: it makes the password as hard to guess already before
// the large pass shows an attacker which memory it reads.
func yescryptKey(password, salt []byte, n, r int) ([]byte, error) {
	m := memory(rowWords * n * r)
	defer func() {
		clear(*m) // the password could be guessed by it faster than by the hash
		memories.Put(m)
	}()
	if n*r >= 1<<17 {
		var err error
		if password, err = yescryptPass("yescrypt-prehash", password, salt, n/64, r, *m); err != nil {
			return nil, err
		}
	}
	key, err := yescryptPass("yescrypt", password, salt, n, r, *m)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(mac(key, []byte("Client Key")))
	return sum[:], nil
}

func yescryptPass(label string, password, salt []byte, n, r int, v []uint64) ([]byte, error) {
	password = mac([]byte(label), password)
	b, err := pbkdf2.Key(sha256.New, string(password), salt, 1, 128*r)
	if err != nil {
		return nil, err
	}
	password = bytes.Clone(b[:32])
	defer clear(password)
	// The boxes are the memory of a small scrypt over the first 128 bytes.
	var s [3]box
	c := &boxes{first: &s[2], second: &s[1], third: &s[0]}
	x := make([]uint64, rowWords*r)
	shuffle(x[:rowWords], b)
	fillBoxes(&s, x[:rowWords])
	unshuffle(b, x[:rowWords])
	password = mac(b[64*(2*r-1):], password)

	shuffle(x, b)
	row := len(x)
	last := row - 8 // what decides where to go on reading
	for i := range n {
		copy(v[i*row:][:row], x)
		if i < 2 {
			c.mix(x, nil, false)
			continue
		}
		// One of the rows so far, as if there were a power of two of them.
		part := 1 << (bits.Len(uint(i)) - 1)
		j := int(uint32(x[last]))&(part-1) + i - part
		c.mix(x, v[j*row:][:row], false)
	}
	for range ((n+2)/3 + 1) &^ 1 {
		j := int(uint32(x[last])) & (n - 1)
		c.mix(x, v[j*row:][:row], true)
	}
	unshuffle(b, x)
	return pbkdf2.Key(sha256.New, string(password), b, 1, 32)
}

// shuffle reads bytes in the order in which they are worked on: of 16 words of 32
// bits every fifth one.
func shuffle(x []uint64, b []byte) {
	for i := range x {
		block, k := b[i/8*64:], i%8*2
		x[i] = uint64(binary.LittleEndian.Uint32(block[k*5%16*4:])) | uint64(binary.LittleEndian.Uint32(block[(k+1)*5%16*4:]))<<32
	}
}

func unshuffle(b []byte, x []uint64) {
	for i, w := range x {
		block, k := b[i/8*64:], i%8*2
		binary.LittleEndian.PutUint32(block[k*5%16*4:], uint32(w))
		binary.LittleEndian.PutUint32(block[(k+1)*5%16*4:], uint32(w>>32))
	}
}

// fillBoxes runs scrypt's first half with r = 1: each state that BlockMix goes
// through becomes 128 bytes of the boxes.
func fillBoxes(s *[3]box, x []uint64) {
	at := 0
	for range boxBytes / 128 {
		for i := 0; i < rowWords; i += 2 {
			s[at/256][at%256] = [2]uint64{x[i], x[i+1]}
			at++
		}
		a, b := (*[8]uint64)(x[:8]), (*[8]uint64)(x[8:])
		for i := range a {
			a[i] ^= b[i]
		}
		salsa(a, 8)
		for i := range b {
			b[i] ^= a[i]
		}
		salsa(b, 8)
	}
}

// salsa is the core of Salsa20 with so many rounds on a block in the order of
// shuffle.
func salsa(block *[8]uint64, rounds int) {
	var x [16]uint32
	for k := range 8 {
		x[2*k*5%16], x[(2*k+1)*5%16] = uint32(block[k]), uint32(block[k]>>32)
	}
	x0, x1, x2, x3, x4, x5, x6, x7 := x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
	x8, x9, x10, x11, x12, x13, x14, x15 := x[8], x[9], x[10], x[11], x[12], x[13], x[14], x[15]
	for range rounds / 2 {
		x0, x4, x8, x12 = quarter(x0, x4, x8, x12)
		x5, x9, x13, x1 = quarter(x5, x9, x13, x1)
		x10, x14, x2, x6 = quarter(x10, x14, x2, x6)
		x15, x3, x7, x11 = quarter(x15, x3, x7, x11)
		x0, x1, x2, x3 = quarter(x0, x1, x2, x3)
		x5, x6, x7, x4 = quarter(x5, x6, x7, x4)
		x10, x11, x8, x9 = quarter(x10, x11, x8, x9)
		x15, x12, x13, x14 = quarter(x15, x12, x13, x14)
	}
	x = [16]uint32{x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15}
	for k := range 8 {
		w := block[k]
		block[k] = uint64(uint32(w)+x[2*k*5%16]) | uint64(uint32(w>>32)+x[(2*k+1)*5%16])<<32
	}
}

func quarter(a, b, c, d uint32) (uint32, uint32, uint32, uint32) {
	b ^= bits.RotateLeft32(a+d, 7)
	c ^= bits.RotateLeft32(b+a, 9)
	d ^= bits.RotateLeft32(c+b, 13)
	a ^= bits.RotateLeft32(d+c, 18)
	return a, b, c, d
}

// mix is yescrypt's BlockMix of x XOR y, into x; y may be nil. With keep that
// XOR becomes the new y.
func (c *boxes) mix(x, y []uint64, keep bool) {
	switch {
	case y == nil:
	case keep:
		y = y[:len(x)]
		for i := range x {
			w := x[i] ^ y[i]
			x[i], y[i] = w, w
		}
	default:
		y = y[:len(x)]
		for i := range x {
			x[i] ^= y[i]
		}
	}
	s0, s1, s2, at := c.first, c.second, c.third, c.at
	end := (*[8]uint64)(x[len(x)-8:])
	a0, b0, a1, b1, a2, b2, a3, b3 := end[0], end[1], end[2], end[3], end[4], end[5], end[6], end[7]
	for i := 0; i < len(x); i += 8 {
		w := (*[8]uint64)(x[i:])
		a0, b0, a1, b1 = a0^w[0], b0^w[1], a1^w[2], b1^w[3]
		a2, b2, a3, b3 = a2^w[4], b2^w[5], a3^w[6], b3^w[7]
		for round := range 6 {
			p, q := &s0[uint8(a0>>4)], &s1[uint8(a0>>36)]
			a0 = (a0>>32*uint64(uint32(a0)) + p[0]) ^ q[0]
			b0 = (b0>>32*uint64(uint32(b0)) + p[1]) ^ q[1]
			p, q = &s0[uint8(a1>>4)], &s1[uint8(a1>>36)]
			a1 = (a1>>32*uint64(uint32(a1)) + p[0]) ^ q[0]
			b1 = (b1>>32*uint64(uint32(b1)) + p[1]) ^ q[1]
			p, q = &s0[uint8(a2>>4)], &s1[uint8(a2>>36)]
			a2 = (a2>>32*uint64(uint32(a2)) + p[0]) ^ q[0]
			b2 = (b2>>32*uint64(uint32(b2)) + p[1]) ^ q[1]
			p, q = &s0[uint8(a3>>4)], &s1[uint8(a3>>36)]
			a3 = (a3>>32*uint64(uint32(a3)) + p[0]) ^ q[0]
			b3 = (b3>>32*uint64(uint32(b3)) + p[1]) ^ q[1]
			if uint(round-1) < 4 {
				// It is the next block that looks these up.
				p = &s2[at]
				p[0], p[1] = a0, b0
				p = &s2[at+1]
				p[0], p[1] = a1, b1
				p = &s2[at+2]
				p[0], p[1] = a2, b2
				p = &s2[at+3]
				p[0], p[1] = a3, b3
				at += 4
			}
		}
		w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7] = a0, b0, a1, b1, a2, b2, a3, b3
		s0, s1, s2 = s2, s0, s1
	}
	salsa(end, 2)
	c.first, c.second, c.third, c.at = s0, s1, s2, at
}
