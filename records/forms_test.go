package records

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

// TestForms compares the hand-written forms of texts with the regular
// expressions that say what they mean.
func TestForms(t *testing.T) {
	forms := []struct {
		name, expression string
		is               func(string) bool
		sample           string
	}{
		{"name", `^[A-Za-z_][A-Za-z0-9_-]{0,30}$`, PortableName, "ann-b_1"},
		{"locale", `^[A-Za-z0-9_.@-]{1,127}$`, func(s string) bool { return isLocale(s) || s == "." || s == ".." }, "de_DE.UTF-8@euro"},
		{"token", `^pkcs11:[A-Za-z0-9.~/_?;&%=-]+$`, isTokenURI, "pkcs11:model=x;id=%01"},
		{"variable", `^[A-Za-z_][A-Za-z0-9_]*=`, isVariable, "A_1=b c"},
		{"dashed id", `^[0-9A-Fa-f]{8}-([0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}$`, isDashedID, "01234567-89ab-cdef-0123-456789ABCDEF"},
		{"plain id", `^[0-9A-Fa-f]{32}$`, func(s string) bool { return only(s, hexadecimal, 32, 32) }, strings.Repeat("0a", 16)},
		{"hash", `^[0-9A-Fa-f]{64}$`, func(s string) bool { return only(s, hexadecimal, 64, 64) }, strings.Repeat("0F", 32)},
		{"blob", `^[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,254}$`, ValidBlobName, "avatar-1.x~"},
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, f := range forms {
		e := regexp.MustCompile(f.expression)
		try := func(s string) {
			if got, want := f.is(s), e.MatchString(s); got != want {
				t.Fatalf("%s %q: %v, want %v", f.name, s, got, want)
			}
		}
		if !f.is(f.sample) {
			t.Errorf("%s: %q is none", f.name, f.sample)
		}
		for _, n := range []int{0, 1, 30, 31, 32, 126, 127, 128, 254, 255, 256, 4096} {
			try(strings.Repeat("a", n))
			try("pkcs11:" + strings.Repeat("a", n))
		}
		for c := range 256 {
			try(string([]byte{byte(c)}))
			for _, s := range []string{f.sample, "", "a"} {
				try(s + string([]byte{byte(c)}))
				try(string([]byte{byte(c)}) + s)
			}
		}
		for range 3000 {
			b := []byte(f.sample)
			for range r.IntN(3) + 1 {
				switch at := r.IntN(len(b)); r.IntN(3) {
				case 0:
					b[at] = byte(r.IntN(128))
				case 1:
					b = append(b[:at], b[at+1:]...)
				default:
					b = append(b[:at], append([]byte{f.sample[r.IntN(len(f.sample))]}, b[at:]...)...)
				}
				if len(b) == 0 {
					break
				}
			}
			try(string(b))
		}
	}
}
