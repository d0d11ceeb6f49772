package luks2

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// errFeature marks what the format allows and this package cannot do.
var errFeature = errors.New("not supported")

// hashByName knows the hashes by the names of cryptsetup.
func hashByName(name string) (func() hash.Hash, error) {
	switch name {
	case "sha1":
		return sha1.New, nil
	case "sha224":
		return sha256.New224, nil
	case "sha256":
		return sha256.New, nil
	case "sha384":
		return sha512.New384, nil
	case "sha512":
		return sha512.New, nil
	case "sha3-256":
		return func() hash.Hash { return sha3.New256() }, nil
	case "sha3-512":
		return func() hash.Hash { return sha3.New512() }, nil
	}
	return nil, fmt.Errorf("hash %q: %w", name, errFeature)
}

// xts is XTS-AES of IEEE 1619 over one data unit of any length from 16 bytes,
// with a full tweak block and ciphertext stealing. (golang.org/x/crypto/xts has
// neither.)
type xts struct{ data, tweak cipher.Block }

// newXTS splits key into data key and tweak key.
func newXTS(key []byte) (*xts, error) {
	if len(key) != 32 && len(key) != 64 {
		return nil, fmt.Errorf("aes-xts with %d bytes of key: %w", len(key), errFeature)
	}
	d, err := aes.NewCipher(key[:len(key)/2])
	if err != nil {
		return nil, err
	}
	t, err := aes.NewCipher(key[len(key)/2:])
	if err != nil {
		return nil, err
	}
	return &xts{d, t}, nil
}

type block [aes.BlockSize]byte

// double multiplies the tweak by x in GF(2^128), little endian.
func (t *block) double() {
	lo, hi := binary.LittleEndian.Uint64(t[:8]), binary.LittleEndian.Uint64(t[8:])
	carry := hi >> 63
	binary.LittleEndian.PutUint64(t[8:], hi<<1|lo>>63)
	binary.LittleEndian.PutUint64(t[:8], lo<<1^carry*0x87)
}

func (t *block) xor(b []byte) { subtle.XORBytes(b, b, t[:]) }

// step passes one block through f under the tweak t, in place.
func (t *block) step(f func(dst, src []byte), b []byte) {
	t.xor(b)
	f(b, b)
	t.xor(b)
}

// encrypt encrypts the data unit b in place. iv is the tweak before its own
// encryption.
func (x *xts) encrypt(iv block, b []byte) {
	x.tweak.Encrypt(iv[:], iv[:])
	full, tail := len(b)/aes.BlockSize, len(b)%aes.BlockSize
	for i := range full {
		iv.step(x.data.Encrypt, b[i*aes.BlockSize:][:aes.BlockSize])
		iv.double()
	}
	if tail == 0 {
		return
	}
	// The last full block lends its end to fill the tail, which moves before it.
	last, rest := b[(full-1)*aes.BlockSize:][:aes.BlockSize], b[full*aes.BlockSize:]
	for i := range rest {
		last[i], rest[i] = rest[i], last[i]
	}
	iv.step(x.data.Encrypt, last)
}

// decrypt is the inverse of encrypt.
func (x *xts) decrypt(iv block, b []byte) {
	x.tweak.Encrypt(iv[:], iv[:])
	full, tail := len(b)/aes.BlockSize, len(b)%aes.BlockSize
	whole := full
	if tail != 0 {
		whole--
	}
	for i := range whole {
		iv.step(x.data.Decrypt, b[i*aes.BlockSize:][:aes.BlockSize])
		iv.double()
	}
	if tail == 0 {
		return
	}
	// With stealing the last full block was encrypted under the tweak after its
	// own, see encrypt.
	before := iv
	iv.double()
	last, rest := b[whole*aes.BlockSize:][:aes.BlockSize], b[full*aes.BlockSize:]
	iv.step(x.data.Decrypt, last)
	for i := range rest {
		last[i], rest[i] = rest[i], last[i]
	}
	before.step(x.data.Decrypt, last)
}

const areaSector = 512

// sectors encrypts or decrypts whole sectors of 512 bytes, in place, as dm-crypt
// does with sector numbers from 0.
type sectors interface{ crypt(b []byte, encrypt bool) }

// newSectors returns the cipher that a keyslot area names.
func newSectors(encryption string, key []byte) (sectors, error) {
	switch encryption {
	case "aes-xts-plain64":
		x, err := newXTS(key)
		if err != nil {
			return nil, err
		}
		return xtsSectors{x}, nil
	case "aes-cbc-essiv:sha256", "aes-cbc-plain64", "aes-cbc-plain":
		c, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("%s with %d bytes of key: %w", encryption, len(key), errFeature)
		}
		if !strings.Contains(encryption, "essiv") {
			return cbcSectors{c, nil}, nil
		}
		salt := sha256.Sum256(key)
		defer clear(salt[:])
		e, err := aes.NewCipher(salt[:])
		return cbcSectors{c, e}, err
	}
	return nil, fmt.Errorf("encryption %q: %w", encryption, errFeature)
}

type xtsSectors struct{ x *xts }

func (s xtsSectors) crypt(b []byte, encrypt bool) {
	for n := 0; len(b) >= areaSector; n, b = n+1, b[areaSector:] {
		var iv block
		binary.LittleEndian.PutUint64(iv[:], uint64(n))
		if encrypt {
			s.x.encrypt(iv, b[:areaSector])
		} else {
			s.x.decrypt(iv, b[:areaSector])
		}
	}
}

// cbcSectors is CBC whose IV is the sector number, encrypted with essiv if that
// is there. "plain" and "plain64" are the same below 2^32 sectors.
type cbcSectors struct{ c, essiv cipher.Block }

func (s cbcSectors) crypt(b []byte, encrypt bool) {
	for n := 0; len(b) >= areaSector; n, b = n+1, b[areaSector:] {
		var iv block
		binary.LittleEndian.PutUint64(iv[:], uint64(n))
		if s.essiv != nil {
			s.essiv.Encrypt(iv[:], iv[:])
		}
		if encrypt {
			cipher.NewCBCEncrypter(s.c, iv[:]).CryptBlocks(b[:areaSector], b[:areaSector])
		} else {
			cipher.NewCBCDecrypter(s.c, iv[:]).CryptBlocks(b[:areaSector], b[:areaSector])
		}
	}
}
