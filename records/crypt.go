package records

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"strconv"
	"strings"

	xcrypt "github.com/go-crypt/x/crypt"
	yescrypt "github.com/openwall/yescrypt-go"
	"golang.org/x/crypto/bcrypt"
	//lint:ignore SA1019 what hashes of old are made of
	"golang.org/x/crypto/blowfish"
	//lint:ignore SA1019 likewise
	"golang.org/x/crypto/md4"
)

// Hashes come with a record, and a record may come from anyone, so what a hash
// says of its own cost is bounded before anything is computed. The bounds are
// what crypt_gensalt(3) makes at the most, or some ten seconds of a present
// processor where that would be days. A hash beyond them fits no password.
var allowed = costs{blocks: 1 << 30 / 128, bcrypt: 17, sha: 10_000_000, sunMD5: 2_000_000}

// costs bounds what the methods may take.
type costs struct {
	blocks      uint64 // of yescrypt and scrypt: N·r·p; N·r blocks of 128 bytes are in memory
	bcrypt      int    // logarithm of the rounds
	sha, sunMD5 int    // rounds
	work        *work  // what all evaluations together may take; nil is no bound
}

// work counts what the evaluations of one operation take, in microseconds of a
// present processor. They are estimated from what the hashes say of themselves:
// the same record fails or passes on every machine.
type work struct {
	done uint64
	over bool // an evaluation did not take place any more
}

// maxWork ends an operation on a record, or with secrets, that would keep a
// processor for hours. Some four hundred hashes as crypt(3) makes them by
// default fit in, three of the costliest that are allowed.
const maxWork = 60_000_000

// take notes work that is about to be done and reports whether it may be.
func (c costs) take(usec uint64) bool {
	if c.work == nil {
		return true
	}
	if usec > maxWork-c.work.done {
		c.work.over = true
		return false
	}
	c.work.done += usec
	return true
}

// maxPassword is the longest password of crypt(3), in bytes. The older methods
// take time with its square.
const maxPassword = 511

// methods are those of libxcrypt that a shadow file of today may still hold,
// by the prefix of their hashes. Not among them are the kinds of DES and
// gost-yescrypt, for which there is no library.
var methods = []struct {
	prefix string
	fits   func(stored string, p []byte, max costs) bool
}{
	{"$y$", fitsYescrypt},
	{"$6$", func(stored string, p []byte, max costs) bool { return fitsSHA(stored[3:], p, max, sha512.New, 86) }},
	{"$5$", func(stored string, p []byte, max costs) bool { return fitsSHA(stored[3:], p, max, sha256.New, 43) }},
	{"$2a$", fitsBcrypt}, {"$2b$", fitsBcrypt}, {"$2y$", fitsBcrypt}, {"$2x$", fitsBcryptX},
	{"$7$", fitsScrypt},
	{"$1$", fitsMD5},
	{"$sha1$", fitsSHA1},
	{"$md5", fitsSunMD5},
	{"$3$", fitsNT},
}

// fitsHash reports whether p is the password of a hash that costs no more than
// max.
func fitsHash(stored string, p []byte, max costs) bool {
	// However cheap, each costs something.
	if !max.take(1000) || len(p) > maxPassword {
		return false
	}
	for _, m := range methods {
		if strings.HasPrefix(stored, m.prefix) {
			return m.fits(stored, p, max)
		}
	}
	return false
}

func same(got []byte, want string) bool {
	return subtle.ConstantTimeCompare(got, []byte(want)) == 1
}

// digit64 is the value of a digit of crypt(3)'s base 64, -1 if it is none.
func digit64(c byte) int { return strings.IndexByte(itoa64, c) }

// number64 reads such digits, the least significant first.
func number64(s string) (n uint64, ok bool) {
	for i := range len(s) {
		d := digit64(s[i])
		if d < 0 {
			return 0, false
		}
		n |= uint64(d) << (6 * i)
	}
	return n, true
}

// hashMemory is how many bytes a yescrypt hash takes that is not refused for
// that; of others 0.
func hashMemory(stored string) uint64 {
	if len(stored) < 7 || !strings.HasPrefix(stored, "$y$j") {
		return 0
	}
	n, r := digit64(stored[4])+1, digit64(stored[5])+1
	if n < 1 || n > 30 || r < 1 || uint64(r)<<n > allowed.blocks {
		return 0
	}
	return uint64(r) << n * 128
}

// fitsYescrypt checks $y$j, the digits of N and r, $SALT$HASH: the flavour that
// crypt(3) makes, and the only one the library knows.
func fitsYescrypt(stored string, p []byte, max costs) bool {
	if len(stored) < 7 || stored[3] != 'j' || stored[6] != '$' {
		return false
	}
	n, r := digit64(stored[4])+1, digit64(stored[5])+1
	if n < 1 || n > 30 || r < 1 || uint64(r)<<n > max.blocks || !max.take(uint64(r)<<n) {
		return false
	}
	h, err := yescrypt.Hash(p, []byte(stored))
	return err == nil && same(h, stored)
}

// fitsScrypt checks $7$, one digit of N's logarithm, five of r, five of p,
// SALT$HASH.
func fitsScrypt(stored string, p []byte, max costs) bool {
	const salt = 3 + 1 + 5 + 5
	end := strings.LastIndexByte(stored, '$')
	if end < salt || len(stored)-end-1 != 43 {
		return false
	}
	log := digit64(stored[3])
	r, ok1 := number64(stored[4:9])
	parallel, ok2 := number64(stored[9:salt])
	// None of the factors alone is beyond 2^30, so the products are exact.
	if log < 1 || log > 30 || !ok1 || !ok2 || r < 1 || parallel < 1 || r<<log > max.blocks || r<<log*parallel > max.blocks || !max.take(r<<log*parallel) {
		return false
	}
	h, err := yescrypt.ScryptKey(p, []byte(stored[salt:end]), 1<<log, int(r), int(parallel), 32)
	return err == nil && same([]byte(encode64(h)), stored[end+1:])
}

// fitsBcrypt checks $2?$COST$, 22 digits of salt, 31 of hash.
func fitsBcrypt(stored string, p []byte, max costs) bool {
	// The library compares the 60 bytes it knows and no more.
	if len(stored) != 60 {
		return false
	}
	// The salt has 128 bits: crypt(3) leaves the others of its last digit 0.
	if cost, err := bcrypt.Cost([]byte(stored)); err != nil || cost > max.bcrypt || !strings.Contains(".Oeu", stored[28:29]) || !max.take(150<<cost) {
		return false
	}
	return bcrypt.CompareHashAndPassword([]byte(stored), p) == nil
}

// base64Bcrypt is the alphabet of bcrypt alone.
var base64Bcrypt = base64.NewEncoding("./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789").WithPadding(base64.NoPadding).Strict()

// fitsBcryptX checks $2x$, laid out as fitsBcrypt: what releases of crypt_blowfish
// before 2011 made. They took the bytes of a password for signed numbers, so
// that one above 127 covers those before it in its group of four.
func fitsBcryptX(stored string, p []byte, max costs) bool {
	if len(stored) != 60 || stored[6] != '$' {
		return false
	}
	cost, err := strconv.Atoi(stored[4:6])
	salt, errSalt := base64Bcrypt.DecodeString(stored[7:29])
	if err != nil || errSalt != nil || cost < bcrypt.MinCost || cost > max.bcrypt || !max.take(150<<cost) {
		return false
	}
	// The key schedule takes 18 words of the password, over and over, with a
	// zero byte at its end.
	var key [18 * 4]byte
	defer clear(key[:])
	for i, at := 0, 0; i < len(key); i += 4 {
		var word uint32
		for range 4 {
			var c byte
			if at < len(p) {
				c = p[at]
			}
			word = word<<8 | uint32(int32(int8(c)))
			if at++; at > len(p) {
				at = 0
			}
		}
		binary.BigEndian.PutUint32(key[i:], word)
	}
	c, err := blowfish.NewSaltedCipher(key[:], salt)
	if err != nil {
		return false
	}
	for range uint64(1) << cost {
		blowfish.ExpandKey(key[:], c)
		blowfish.ExpandKey(salt, c)
	}
	sum := []byte("OrpheanBeholderScryDoubt")
	for i := 0; i < len(sum); i += blowfish.BlockSize {
		for range 64 {
			c.Encrypt(sum[i:], sum[i:])
		}
	}
	return same([]byte(base64Bcrypt.EncodeToString(sum[:23])), stored[29:])
}

// fitsNT checks $3$$HASH: MD4 over the password with each byte widened to 16
// bits.
func fitsNT(stored string, p []byte, _ costs) bool {
	wide := make([]byte, 2*len(p))
	defer clear(wide)
	for i, c := range p {
		wide[2*i] = c
	}
	h := md4.New()
	h.Write(wide)
	return same([]byte("$3$$"+hex.EncodeToString(h.Sum(nil))), stored)
}

// rounds reads a number that crypt(3) would write in this way, from low to high.
func rounds(s string, low, high int) (n int, ok bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= low && n <= high && s == strconv.Itoa(n)
}

// fitsSHA checks the rest of a SHA-crypt hash, [rounds=N$]SALT$HASH.
func fitsSHA(rest string, p []byte, max costs, h func() hash.Hash, length int) bool {
	n := 5000
	if s, ok := strings.CutPrefix(rest, "rounds="); ok {
		count, tail, _ := strings.Cut(s, "$")
		if n, ok = rounds(count, 1000, max.sha); !ok {
			return false
		}
		rest = tail
	}
	salt, want, ok := strings.Cut(rest, "$")
	return ok && len(salt) <= 16 && len(want) == length && max.take(uint64(n)*(1+uint64(len(p))/64)) && same(xcrypt.KeySHACrypt(h, p, []byte(salt), n), want)
}

// fitsMD5 checks $1$SALT$HASH.
func fitsMD5(stored string, p []byte, max costs) bool {
	salt, want, ok := strings.Cut(stored[3:], "$")
	return ok && len(salt) <= 8 && len(want) == 22 && max.take(2000) && same(xcrypt.KeyMD5Crypt(p, []byte(salt)), want)
}

// fitsSHA1 checks $sha1$ROUNDS$SALT$HASH.
func fitsSHA1(stored string, p []byte, max costs) bool {
	count, rest, _ := strings.Cut(stored[len("$sha1$"):], "$")
	n, ok := rounds(count, 1, max.sha)
	if !ok {
		return false
	}
	salt, want, ok := strings.Cut(rest, "$")
	return ok && len(salt) <= 64 && len(want) == 28 && max.take(uint64(n)) && same(xcrypt.KeySHA1Crypt(p, []byte(salt), uint32(n)), want)
}

// fitsSunMD5 checks $md5[,rounds=N]$SALT$$HASH.
func fitsSunMD5(stored string, p []byte, max costs) bool {
	n, rest := 0, stored[len("$md5"):]
	if s, ok := strings.CutPrefix(rest, ",rounds="); ok {
		count, _, _ := strings.Cut(s, "$")
		if n, ok = rounds(count, 1, max.sunMD5); !ok {
			return false
		}
		rest = s[len(count):]
	}
	salt, want, ok := strings.Cut(strings.TrimPrefix(rest, "$"), "$$")
	return ok && strings.HasPrefix(rest, "$") && len(salt) <= 64 && len(want) == 22 && max.take(uint64(n+4096)*6) && same(xcrypt.KeyMD5CryptSun(p, []byte(salt), uint32(n)), want)
}
