package records

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

func TestCheckHash(t *testing.T) {
	for _, c := range []struct {
		hash, password string
		want           bool
	}{
		// Made by openssl and by libxcrypt.
		{"$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1", "Hello world!", true},
		{"$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.", "Hello world!", true},
		{"$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5", "Hello world!", true},
		{"$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5", "hello world!", false},
		{"$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5x", "Hello world!", false},
		{"$6$rounds=999$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1", "Hello world!", false},
		{"$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*U", true},
		{"$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*U", true},
		{"$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeWx", "U*U", false},
		{"$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*V", false},
		{"$y$j9T$5Uru/BpWPPzE2WDoWreqA0$V3ROsH11sYCDc6blhm.Lox2iWA6OV2uuX9iA7F/I27/", "fixture-password", true},
		{"$y$j9T$5Uru/BpWPPzE2WDoWreqA0$V3ROsH11sYCDc6blhm.Lox2iWA6OV2uuX9iA7F/I27/", "fixture-passwore", false},
		{"$y$j9T$5Uru/BpWPPzE2WDoWreqA0", "fixture-password", false},
		{"", "", false}, {"$y$", "", false}, {"x", "x", false}, {"!$6$a$b", "", false}, {"$6$", "", false}, {"$2a$", "", false}, {"$9$x$y", "", false}, {"$6$a", "", false},
	} {
		ok, err := CheckHash(c.hash, sec(t, c.password))
		if err != nil || ok != c.want {
			t.Errorf("%s with %q: %v, %v", c.hash, c.password, ok, err)
		}
	}
	closed := sec(t, "x")
	closed.Close()
	if _, err := CheckHash("$6$a$b", closed); err == nil {
		t.Error("a closed password is checked")
	}
}

func TestHashPassword(t *testing.T) {
	h, err := HashPassword(sec(t, "fixture-password"), bytes.NewReader(bytes.Repeat([]byte{0xff}, 16)))
	if err != nil || !strings.HasPrefix(h, "$y$j9T$zzzzzzzzzzzzzzzzzzzzz1$") || len(h) != 73 {
		t.Fatalf("%s, %v", h, err)
	}
	if ok, err := CheckHash(h, sec(t, "fixture-password")); !ok || err != nil {
		t.Errorf("it does not fit: %v", err)
	}
	a, _ := HashPassword(sec(t, "x"), rand.Reader)
	b, _ := HashPassword(sec(t, "x"), rand.Reader)
	if a == b {
		t.Error("two hashes share a salt")
	}
	if _, err := HashPassword(sec(t, "x"), bytes.NewReader(nil)); err == nil {
		t.Error("hashed without a salt")
	}
}

func TestNormaliseRecoveryKey(t *testing.T) {
	canonical := strings.TrimSpace(string(read(t, fixtures, "records/recov/recovery-key.txt")))
	for in, ok := range map[string]bool{
		canonical:                                    true,
		strings.ToUpper(canonical):                   true,
		strings.ReplaceAll(canonical, "-", ""):       true,
		strings.Replace(canonical, "-", "", 1):       false,
		strings.Replace(canonical, "-", "c", 1):      false,
		strings.Replace(canonical, "c", "a", 1):      false,
		canonical + "c":                              false,
		"":                                           false,
		"-" + strings.Replace(canonical, "-", "", 1): false,
	} {
		key, err := NormaliseRecoveryKey(sec(t, in))
		if err != nil || (key != nil) != ok || ok && plain(t, key) != canonical {
			t.Errorf("%s: %v, %v", in, key, err)
		}
		key.Close()
	}
	key, err := NewRecoveryKey(bytes.Repeat([]byte{0x0f}, 32))
	if err != nil || plain(t, key) != strings.TrimSuffix(strings.Repeat("cvcvcvcv-", 8), "-") {
		t.Errorf("%v", err)
	}
	key.Close()
}

func secretsOf(t testing.TB, passwords ...string) *Secrets {
	t.Helper()
	s := &Secrets{}
	for _, p := range passwords {
		b, err := secret.Copy([]byte(p))
		if err != nil {
			t.Fatal(err)
		}
		s.Passwords = append(s.Passwords, b)
	}
	t.Cleanup(s.Close)
	return s
}

func TestAuthenticate(t *testing.T) {
	recov := mustParse(t, read(t, fixtures, "records/recov/host.identity"), HostFile)
	key := strings.TrimSpace(string(read(t, fixtures, "records/recov/recovery-key.txt")))
	hash := "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"
	with := func(privileged string) *Record {
		return mustParse(t, []byte(`{"userName":"ann","privileged":{`+privileged+`}}`), HostFile)
	}
	token := `"fido2HmacSalt":[{"credential":"AAAA","salt":"AAAA","hashedPassword":"` + hash + `"}]`
	for _, c := range []struct {
		name   string
		r      *Record
		s      []string
		strict bool
		want   fault.Kind
	}{
		{"password", recov, []string{"no", "fixture-password"}, true, ""},
		{"recovery key", recov, []string{key}, true, ""},
		{"recovery key, other spelling", recov, []string{strings.ToUpper(strings.ReplaceAll(key, "-", ""))}, true, ""},
		{"wrong", recov, []string{"no"}, true, fault.BadPassword},
		{"nothing offered", recov, nil, false, fault.BadPassword},
		{"only a recovery key", with(`"recoveryKey":[{"type":"modhex64","hashedPassword":"` + hash + `"}]`), []string{"x"}, true, fault.BadRecoveryKey},
		{"unknown type, as typed", with(`"recoveryKey":[{"type":"x","hashedPassword":"` + hash + `"}]`), []string{"Hello world!"}, true, ""},
		{"token", with(`"hashedPassword":["` + hash + `"],` + token), []string{"x"}, true, fault.BadPasswordAndNoToken},
		{"nothing defined", with(``), []string{"x"}, true, fault.HomeCantAuthenticate},
		{"nothing defined, not strict", with(``), nil, false, ""},
		{"empty hash", with(`"hashedPassword":[""]`), []string{""}, false, fault.BadPassword},
	} {
		s := secretsOf(t, c.s...)
		if err := Authenticate(c.r, s, c.strict, NewHashCache()); fault.KindOf(err) != c.want {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if err := Authenticate(recov, nil, true, nil); !fault.Is(err, fault.BadPassword) {
		t.Errorf("no secrets at all: %v", err)
	}
}

func TestEachPairIsHashedOnce(t *testing.T) {
	r := mustParse(t, []byte(`{"userName":"ann","privileged":{"hashedPassword":["$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"]}}`), HostFile)
	s := secretsOf(t, "no", "Hello world!")
	c := NewHashCache()
	for range 3 {
		if err := Authenticate(r, s, true, c); err != nil {
			t.Fatal(err)
		}
	}
	if c.runs != 2 {
		t.Errorf("%d evaluations, want 2", c.runs)
	}
	if err := RequirePlaintexts(r, s); err != nil {
		t.Error(err)
	}
	if _, err := r.EffectivePassphrases(s); err != nil || s.cache.runs != 2 {
		t.Errorf("%v, %d evaluations", err, s.cache.runs)
	}
}

func TestEffectivePassphrases(t *testing.T) {
	recov := mustParse(t, read(t, fixtures, "records/recov/host.identity"), HostFile)
	key := strings.TrimSpace(string(read(t, fixtures, "records/recov/recovery-key.txt")))
	s := secretsOf(t, strings.ToUpper(key), "fixture-password")
	got, err := recov.EffectivePassphrases(s)
	if err != nil || strings.Join(plains(t, got), "|") != "fixture-password|"+key {
		t.Errorf("%q, %v", plains(t, got), err)
	}
	secret.CloseAll(got)
	all, err := s.Candidates()
	if err != nil || strings.Join(plains(t, all), "|") != strings.ToUpper(key)+"|"+key+"|fixture-password" {
		t.Errorf("%q, %v", plains(t, all), err)
	}
	secret.CloseAll(all)
	none := mustParse(t, []byte(`{"userName":"ann"}`), HostFile)
	for _, c := range []struct {
		r    *Record
		s    *Secrets
		want fault.Kind
	}{
		{recov, secretsOf(t, "fixture-password"), fault.BadRecoveryKey},
		{recov, secretsOf(t, key), fault.BadPassword},
		{recov, secretsOf(t), fault.KeyUnavailable},
		{recov, nil, fault.KeyUnavailable},
		{none, secretsOf(t, "x"), fault.InvalidArgs},
	} {
		if err := RequirePlaintexts(c.r, c.s); fault.KindOf(err) != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}
