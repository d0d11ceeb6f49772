package records

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	xcrypt "github.com/go-crypt/x/crypt"

	"hearth/internal/fault"
)

// unquote reads a byte string as the transcripts write it.
func unquote(t *testing.T, s string) []byte {
	t.Helper()
	if s == "None" {
		return nil
	}
	out, err := strconv.Unquote(`"` + strings.Trim(s[1:], "'") + `"`)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(out)
}

// TestQualityAgainstLibrary: with the dictionary off, what libpwquality says of
// each sample.
func TestQualityAgainstLibrary(t *testing.T) {
	text := string(read(t, fixtures, "transcripts/pwquality-library.txt"))
	_, text, _ = strings.Cut(text, "dictcheck 0 0\n")
	text, _, _ = strings.Cut(text, "order tests")
	line := regexp.MustCompile(`^(b'.*?') (None|b'.*?') b'(.*?)' => (-?\d+) (?:b'(.*)'|ok)`)
	n := 0
	for _, l := range strings.Split(strings.TrimSpace(text), "\n") {
		m := line.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("cannot read %q", l)
		}
		n++
		if got := DefaultQuality().reason(unquote(t, m[1]), unquote(t, m[2]), m[3]); got != m[5] {
			t.Errorf("%s: %q", l, got)
		}
	}
	if n != 25 {
		t.Errorf("%d samples, 25 expected", n)
	}
}

// TestQualityLikeLibrary: random passwords under random settings, with what
// libpwquality 1.4 said of each. Its dictionary was off.
func TestQualityLikeLibrary(t *testing.T) {
	n, refused := 0, 0
	for line := range strings.Lines(string(read(t, "testdata/pwquality.jsonl"))) {
		var c struct{ Conf, New, Old, User, Says string }
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatal(err)
		}
		var old []byte
		if c.Old != "" {
			old = []byte(c.Old)
		}
		if got := ParseQualityPolicy([]byte(c.Conf)).reason([]byte(c.New), old, c.User); got != c.Says {
			t.Errorf("%q: %q after %q by %s: %q, want %q", c.Conf, c.New, c.Old, c.User, got, c.Says)
		}
		if n++; c.Says != "" {
			refused++
		}
	}
	if n != 1000 || refused < 400 || n-refused < 200 {
		t.Errorf("%d samples, %d refused", n, refused)
	}
}

// TestQualityOrder: the transcript's samples that tell the order of the rules.
// Their settings are not in it and chosen here such that each rule applies.
func TestQualityOrder(t *testing.T) {
	for _, c := range []struct{ conf, new, old, user, want string }{
		{"", "aba", "", "user", "The password is shorter than 8 characters"},
		{"", "resu", "", "user", "The password is shorter than 8 characters"},
		{"", "HELLO", "hello", "u", "The password differs with case changes only"},
		{"", "lohel", "hello", "u", "The password is shorter than 8 characters"},
		{"difok=3", "hello-thexx", "hello-there", "u", "The password is too similar to the old one"},
		{"difok=2", "hello-thexx", "hello-there", "u", ""},
		{"difok = 3 # more", "hexx", "hell", "u", "The password is too similar to the old one"},
		{"difok=7", "hexx-hexx", "hell", "u", ""},
		{"minclass=3", "userabcdef", "", "user", "The password contains less than 3 character classes"},
		{"minclass=2", "abcdefg-", "", "user", ""},
		{"maxrepeat=2", "aaabcuser", "", "user", "The password contains more than 2 same characters consecutively"},
		{"maxrepeat=3", "aaabcdef", "", "user", ""},
		{"maxclassrepeat=4", "abcdeFGH", "", "user", "The password contains more than 4 characters of the same class consecutively"},
		{"maxclassrepeat=5", "abcdeFGH", "", "user", ""},
		{"maxsequence=3", "abcdxuser1", "", "user", "The password contains monotonic sequence longer than 3 characters"},
		{"maxsequence=3", "dcbaxuse1", "", "user", "The password contains monotonic sequence longer than 3 characters"},
		{"maxsequence=4", "abcdxyz1", "", "user", ""},
		{"dcredit=-2", "userabcd1", "", "user", "The password contains less than 2 digits"},
		{"dcredit=-2\nminlen=50", "abcd1", "", "user", "The password contains less than 2 digits"},
		{"ucredit=-1", "abcdefgh", "", "user", "The password contains less than 1 uppercase letters"},
		{"lcredit=-1", "ABCDEFGH", "", "user", "The password contains less than 1 lowercase letters"},
		{"ocredit=-1", "ABCDEFGH", "", "user", "The password contains less than 1 non-alphanumeric characters"},
		{"dcredit=1", "abcde12", "", "u", ""},
		{"dcredit=2", "abcd12", "", "u", ""},
		{"dcredit=1", "abcd12", "", "u", "The password is shorter than 7 characters"},
		{"dcredit=2", "abcdef", "", "u", "The password is shorter than 8 characters"},
		{"minlen=1", "abcde", "", "u", "The password is shorter than 6 characters"},
		{"minlen=x\nunknown=1", "abcdefg", "", "u", "The password is shorter than 8 characters"},
		{"usercheck=0", "my-user-pass1", "", "user", ""},
	} {
		var old []byte
		if c.old != "" {
			old = []byte(c.old)
		}
		if got := ParseQualityPolicy([]byte(c.conf)).reason([]byte(c.new), old, c.user); got != c.want {
			t.Errorf("%s: %s after %q: %q, want %q", c.conf, c.new, c.old, got, c.want)
		}
	}
}

// TestPasswordQuality: which passwords count as new and which as old, with the
// texts of the real tools.
func TestPasswordQuality(t *testing.T) {
	said := func(name string) string {
		text := string(read(t, fixtures, "quality", name))
		_, text, _ = strings.Cut(text, "Password too weak: ")
		text, _, _ = strings.Cut(text, "\n")
		return "Password too weak: " + text
	}
	// Cheap to compute, unlike what HashPassword makes.
	hash := func(p string) string { return "$1$salt$" + string(xcrypt.KeyMD5Crypt([]byte(p), []byte("salt"))) }
	for _, c := range []struct {
		user, is string
		offered  []string
		want     string
	}{
		{"weak1", "abc", []string{"abc"}, said("short.txt")},
		{"weak2", "my-weak2-pass", []string{"my-weak2-pass"}, said("username.txt")},
		{"weak4", "aaaaaaaa", []string{"aaaaaaaa"}, said("repeat.txt")},
		{"goodpw", "Hello-There", []string{"Hello-There", "hello-there"}, said("passwd-caseonly.txt")},
		{"goodpw", "lo-therehel", []string{"lo-therehel", "hello-there"}, said("passwd-rotated.txt")},
		{"goodpw", "lo-therehel", []string{"lo-therehel", "other", "hello-there"}, said("passwd-rotated.txt")},
		{"goodpw", "hello-there", []string{"hello-there"}, ""},
		{"goodpw", "hello-there", []string{"abc"}, ""},
		{"goodpw", "hello-there", nil, ""},
	} {
		r := mustParse(t, fmt.Appendf(nil, `{"userName":%q,"privileged":{"hashedPassword":[%q]}}`, c.user, hash(c.is)), HostFile)
		err := DefaultQuality().Check(r, secretsOf(t, c.offered...))
		if c.want == "" && err != nil || c.want != "" && (!fault.Is(err, fault.LowPasswordQuality) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s %v: %v, want %q", c.user, c.offered, err, c.want)
		}
	}
	if err := DefaultQuality().Check(host(t, "dirmin"), nil); err != nil {
		t.Error(err)
	}
}
