package records

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

func sec(t testing.TB, s string) *secret.Bytes {
	t.Helper()
	b, err := secret.Copy([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// plain reads a secret, which only tests may do.
func plain(t testing.TB, b *secret.Bytes) string {
	t.Helper()
	var s string
	if err := b.Use(func(p []byte) error { s = string(p); return nil }); err != nil {
		t.Fatal(err)
	}
	return s
}

func plains(t testing.TB, list []*secret.Bytes) []string {
	t.Helper()
	var out []string
	for _, b := range list {
		out = append(out, plain(t, b))
	}
	return out
}

func TestCutSecret(t *testing.T) {
	for _, c := range []struct{ in, rest, section string }{
		{`{"secret":{"password":["x"]}}`, `{}`, `{"password":["x"]}`},
		{`{"a":1,"secret":{"p":"\"}"},"b":2}`, `{"a":1,"b":2}`, `{"p":"\"}"}`},
		{` {"secret" : [{}] , "b" : 2 } `, ` {"b" : 2 } `, `[{}]`},
		{`{"a":1 , "secret":7 }`, `{"a":1 }`, `7`},
		{`{"\u0073ecre\u0074":"x","a":1,"b":[]}`, `{"a":1,"b":[]}`, `"x"`},
		{`{"a":{"secret":1}}`, `{"a":{"secret":1}}`, ``},
		{`{"Secret":1,"secret ":2}`, `{"Secret":1,"secret ":2}`, ``},
		{`{}`, `{}`, ``},
	} {
		text := []byte(c.in)
		rest, section, err := CutSecret(text)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if string(rest) != c.rest {
			t.Errorf("%s: rest is %s", c.in, rest)
		}
		if c.section == "" {
			if section != nil {
				t.Errorf("%s: a section where there is none", c.in)
			}
			continue
		}
		if got := plain(t, section); got != c.section {
			t.Errorf("%s: section is %s", c.in, got)
		}
		if bytes.Contains(text[len(rest):], []byte{'"'}) || len(c.section) > 3 && bytes.Contains(text, []byte(c.section)) {
			t.Errorf("%s: the text still holds it: %q", c.in, text)
		}
		section.Close()
	}
	for _, in := range []string{`{"secret":{"password":"hunter2"},"secret":{}}`, `{"secret":{"password":"hunter2"}`, `{"secret":{"password":"hunter2"}} x`, `["hunter2"]`, `"hunter2"`, `{"secret":{"password":"hunter2\u0000"}}`, `{"a":1,"secret":{"password":"hunter2",}}`} {
		text := []byte(in)
		rest, section, err := CutSecret(text)
		if !fault.Is(err, fault.InvalidArgs) || rest != nil || section != nil {
			t.Errorf("%s: %v", in, err)
		}
		if err != nil && strings.Contains(err.Error()+fault.Public(err), "hunter") {
			t.Errorf("the error tells the secret: %v", err)
		}
		if bytes.Contains(text, []byte("hunter2")) {
			t.Errorf("%s is not wiped", in)
		}
	}
}

func TestParseSecrets(t *testing.T) {
	s, err := ParseSecrets(sec(t, ` {"password":["a","b\n\u00e9\ud83d\ude00","a"],"pkcs11Pin":"77","tokenPin":["99"],"fido2UserPresencePermitted":true,
		"fido2UserVerificationPermitted":false,"pkcs11ProtectedAuthenticationPathPermitted":null,"future":{"x":[1]},"password":["later"]} `))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := strings.Join(plains(t, s.Passwords), "|"); got != "a|b\né😀" {
		t.Errorf("passwords %q", got)
	}
	if got := strings.Join(plains(t, s.TokenPins), "|"); got != "77|99" {
		t.Errorf("PINs %q", got)
	}
	if !s.PresencePermitted || s.VerificationPermitted || s.PathPermitted || s.Empty() {
		t.Error("permissions are wrong")
	}
	for in, want := range map[string]int{`{}`: 0, `{"password":null}`: 0, `{"password":"x"}`: 1, `{"password":["x",1]}`: 0, `{"password":[["x"]]}`: 0, `{"password":[]}`: 0, `{"password":[""]}`: 1, `{"p\u0061ssword":"x"}`: 1, `{"password":"\u007f"}`: 1} {
		s, err := ParseSecrets(sec(t, in))
		if err != nil || len(s.Passwords) != want {
			t.Errorf("%s: %v, %d passwords", in, err, len(s.Passwords))
			continue
		}
		s.Close()
	}
	for _, in := range []string{``, `[]`, `"x"`, `{"password":"x"`, `{} {}`, `{"password":"` + "\x01" + `"}`} {
		if _, err := ParseSecrets(sec(t, in)); !fault.Is(err, fault.InvalidArgs) {
			t.Errorf("%q: %v", in, err)
		}
	}
	for n, ok := range map[int]bool{maxSecrets: true, maxSecrets + 1: false} {
		s, err := ParseSecrets(sec(t, `{"password":["x"`+strings.Repeat(`,"x"`, n-1)+`]}`))
		if (err == nil) != ok {
			t.Errorf("%d passwords: %v", n, err)
		}
		s.Close()
	}
	none, err := ParseSecrets(nil)
	if err != nil || !none.Empty() {
		t.Error("nil is not an empty section")
	}
}

func TestEncodeSecrets(t *testing.T) {
	words := []string{"simple", `q"uo\te`, "tab\tnew\n\x01\x7f", "é😀  <>&/", ""}
	var list []*secret.Bytes
	for _, w := range words {
		list = append(list, sec(t, w))
	}
	enc, err := EncodeSecrets(list)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	var other struct{ Password []string }
	if err := json.Unmarshal([]byte(plain(t, enc)), &other); err != nil || strings.Join(other.Password, "|") != strings.Join(words, "|") {
		t.Errorf("another decoder reads %q (%v)", other.Password, err)
	}
	back, err := ParseSecrets(enc)
	if err != nil || strings.Join(plains(t, back.Passwords), "|") != strings.Join(words, "|") {
		t.Errorf("comes back as %q (%v)", plains(t, back.Passwords), err)
	}
	back.Close()
	for _, bad := range []string{"\xff", "a\x00b"} {
		if _, err := EncodeSecrets([]*secret.Bytes{sec(t, bad)}); !fault.Is(err, fault.InvalidArgs) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	empty, err := EncodeSecrets(nil)
	if err != nil || plain(t, empty) != "{}" {
		t.Errorf("no passwords: %v", err)
	}
	empty.Close()
	all := &Secrets{TokenPins: []*secret.Bytes{sec(t, "1234")}, PathPermitted: true, PresencePermitted: true}
	enc2, err := all.Encode()
	if err != nil || plain(t, enc2) != `{"tokenPin":["1234"],"pkcs11ProtectedAuthenticationPathPermitted":true,"fido2UserPresencePermitted":true}` {
		t.Errorf("%s, %v", plain(t, enc2), err)
	}
	enc2.Close()
}

func FuzzSecrets(f *testing.F) {
	for _, s := range []string{`{"a":1,"secret":{"password":["x","\u00e9"]},"b":{}}`, `{"secret":1}`, ` {"secret" : {"password":"\n"} , "x":[{"secret":2}] } `, `{"secret":1,"secret":2}`, `{"\u0073ecret":{}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		before, parseErr := parseDocument(in)
		text := bytes.Clone(in)
		rest, section, err := CutSecret(text)
		if err != nil {
			if !bytes.Equal(text, make([]byte, len(text))) {
				t.Fatal("refused, but not wiped")
			}
			if parseErr == nil && before.kind == object && countKey(before, "secret") < 2 {
				t.Fatalf("refused what the parser takes: %v", err)
			}
			return
		}
		defer section.Close()
		after, err := parseDocument(rest)
		if parseErr != nil {
			return // only an escaped DEL gets here, perhaps cut away
		}
		if err != nil {
			t.Fatalf("the rest is no JSON any more: %q: %v", rest, err)
		}
		if after.get("secret") != nil {
			t.Fatal("a secret remains")
		}
		if !bytes.Equal(appendCompact(nil, after), appendCompact(nil, before.without("secret"))) {
			t.Fatalf("cut too much or too little: %q", rest)
		}
		if (section != nil) != (before.get("secret") != nil) {
			t.Fatal("the section is lost")
		}
		if section == nil {
			return
		}
		if got := plain(t, section); !bytes.Contains(in, []byte(got)) {
			t.Fatal("the section changed")
		}
		s, err := ParseSecrets(section)
		if err != nil {
			if before.get("secret").kind == object && len(in) < maxSecrets {
				t.Fatalf("%v", err)
			}
			return
		}
		defer s.Close()
		if want := before.get("secret").get("password"); want.is(text0) && (len(s.Passwords) != 1 || plain(t, s.Passwords[0]) != want.str) {
			t.Fatal("the password changed")
		}
		enc, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		defer enc.Close()
		again, err := ParseSecrets(enc)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if strings.Join(plains(t, again.Passwords), "\x00") != strings.Join(plains(t, s.Passwords), "\x00") {
			t.Fatal("another password after encoding")
		}
	})
}

// text0 is the kind, where a variable named text hides it.
const text0 = text

func countKey(v *value, key string) int {
	n := 0
	for _, m := range v.members {
		if m.key == key {
			n++
		}
	}
	return n
}
