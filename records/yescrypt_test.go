package records

import (
	"bytes"
	"crypto/rand"
	"testing"

	oracle "github.com/openwall/yescrypt-go"
)

// TestYescrypt holds ours against the library of yescrypt's author, over several
// sizes of rows and with both numbers of passes. What libxcrypt makes of
// passwords is in the hashes of TestHashes and the fixtures.
func TestYescrypt(t *testing.T) {
	check := func(password []byte, setting string) {
		t.Helper()
		want, err := oracle.Hash(password, []byte(setting))
		got, gerr := yescrypt(password, setting)
		if (err == nil) != (gerr == nil) || got != string(want) {
			t.Errorf("%q with %q: %s, %v, want %s, %v", password, setting, got, gerr, want, err)
		}
	}
	for _, r := range []int{1, 2, 3, 8, 31, 32} {
		check([]byte("password"), "$y$j7"+itoa64[r-1:r]+"$F5Jx5fExrKuPp53xLKQ..1")
	}
	for _, size := range []string{"91", "9T", "A."} { // the second in two passes
		check([]byte("password"), "$y$j"+size+"$F5Jx5fExrKuPp53xLKQ..1")
	}
	for n := range 12 {
		password, salt := make([]byte, n*n), make([]byte, n)
		for _, b := range [][]byte{password, salt} {
			if _, err := rand.Read(b); err != nil {
				t.Fatal(err)
			}
		}
		check(password, "$y$j75$"+encode64(salt))
		check(bytes.Repeat([]byte{0xff}, 5*n), "$y$j70$"+encode64(salt)+"$older")
	}
	for _, setting := range []string{"", "$y$j70", "$y$j70$", "$y$j70$$", "$y$j70$a", "$y$j70$a$", "$y$j70$zz", "$y$j70$..", "$y$j70$./", "$y$j70$!!", "$y$k9T$..",
		"$y$j.T$..", "$y$jzT$..", "$y$j9z$..", "$y$j75$/...", "$y$j75$z", "$y$j75$.1", "$y$j75$zzzzz", "$y$j75$..$..$..", "$7$j9T$.."} {
		check([]byte("x"), setting)
	}
}

func FuzzYescrypt(f *testing.F) {
	f.Add([]byte("password"), "$y$j75$F5Jx5fExrKuPp53xLKQ..1")
	f.Add([]byte{}, "$y$j7T$.$x")
	f.Fuzz(func(t *testing.T, password []byte, setting string) {
		if len(setting) > 4 && digit64(setting[4]) > 10 {
			return // too slow
		}
		want, err := oracle.Hash(password, []byte(setting))
		got, gerr := yescrypt(password, setting)
		if (err == nil) != (gerr == nil) || got != string(want) {
			t.Errorf("%q with %q: %s, %v, want %s, %v", password, setting, got, gerr, want, err)
		}
	})
}

func BenchmarkYescrypt(b *testing.B) {
	const setting = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1"
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			if _, err := yescrypt([]byte("password"), setting); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("library", func(b *testing.B) {
		for b.Loop() {
			if _, err := oracle.Hash([]byte("password"), []byte(setting)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
