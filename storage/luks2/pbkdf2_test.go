package luks2

import (
	"bytes"
	"crypto/pbkdf2"
	"math/rand/v2"
	"reflect"
	"testing"
)

// TestPBKDF2 compares with the library, over lengths around every boundary.
func TestPBKDF2(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	for _, name := range []string{"sha1", "sha224", "sha256", "sha384", "sha512", "sha3-256", "sha3-512"} {
		f, err := hashByName(name)
		if err != nil {
			t.Fatal(err)
		}
		size, block := f().Size(), f().BlockSize()
		for _, password := range []int{0, 1, block - 1, block, block + 1, 511} {
			for _, n := range []int{1, size - 1, size, size + 1, 64, 3*size + 5} {
				for _, iterations := range []int{1, 2, 77} {
					word, salt := noise(password), noise(rnd.IntN(200))
					want, err := pbkdf2.Key(f, string(word), salt, iterations, n)
					if err != nil {
						t.Fatal(err)
					}
					got, err := derivePBKDF2(name, word, salt, uint64(iterations), n)
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("%s, password of %d bytes, %d iterations, key of %d: %x, %v, want %x", name, password, iterations, n, got, err, want)
					}
				}
			}
		}
	}
}

// TestPlain: the fast way is taken for what homes are made with, and only for
// what an assignment copies.
func TestPlain(t *testing.T) {
	for _, name := range []string{"sha1", "sha256", "sha512"} {
		f, err := hashByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if !plain(reflect.TypeOf(f())) {
			t.Errorf("%s takes the slow way", name)
		}
	}
	for _, v := range []any{1, struct{}{}, &struct{ p *int }{}, &struct{ s []byte }{}, &struct{ i any }{}, &struct{ a [2]struct{ m map[int]int } }{}, &struct{ f func() }{}} {
		if plain(reflect.TypeOf(v)) {
			t.Errorf("%T is said to be copied whole", v)
		}
	}
}

func BenchmarkPBKDF2(b *testing.B) {
	word, salt := []byte("correct horse"), make([]byte, saltSize)
	const iterations = 100_000
	for _, name := range []string{"sha256", "sha512"} {
		f, err := hashByName(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name+"/ours", func(b *testing.B) {
			for b.Loop() {
				if _, err := derivePBKDF2(name, word, salt, iterations, 32); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/library", func(b *testing.B) {
			for b.Loop() {
				if _, err := pbkdf2.Key(f, string(word), salt, iterations, 32); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
