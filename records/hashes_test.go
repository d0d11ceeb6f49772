package records

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	xcrypt "github.com/go-crypt/x/crypt"

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

// TestCrypt: what crypt(3) made of some passwords by each method we know.
func TestCrypt(t *testing.T) {
	seen := map[string]int{}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(read(t, "testdata/crypt.txt")), "\n"), "\n") {
		stored, password, ok := strings.Cut(line, " ")
		if strings.HasPrefix(line, "#") {
			continue
		}
		if !ok {
			t.Fatalf("cannot read %q", line)
		}
		for _, m := range methods {
			if strings.HasPrefix(stored, m.prefix) {
				seen[m.prefix]++
			}
		}
		if !fitsHash(stored, []byte(password), allowed) {
			t.Errorf("%s does not fit %q", stored, password)
		}
		if password != "fixture-password" {
			continue // one is enough for what does not fit
		}
		if fitsHash(stored, []byte("y"+password), allowed) {
			t.Errorf("%s fits another password than %q", stored, password)
		}
		changed := []byte(stored)
		changed[len(stored)-3] ^= 1
		for _, bad := range []string{string(changed), stored[:len(stored)-1], stored + ".", stored[:len(stored)/2], strings.TrimRight(stored, "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")} {
			if fitsHash(bad, []byte(password), allowed) {
				t.Errorf("%s fits though %s is the hash", bad, stored)
			}
		}
	}
	for _, m := range methods {
		if seen[m.prefix] < 3 {
			t.Errorf("%d samples of %s", seen[m.prefix], m.prefix)
		}
	}
}

// TestHashCosts: what would take hours or all memory is refused before anything
// is computed.
func TestHashCosts(t *testing.T) {
	const hash43 = "lH4Blq6EUT5kohtMaJuuam4rpgnwNSzdugg1kO8swg1"
	begin := time.Now()
	for _, stored := range []string{
		"$y$jHT$5Uru$" + hash43, // N 2^20, r 32: 4 GiB
		"$y$jGf$5Uru$" + hash43, // r 44
		"$y$jzz$5Uru$" + hash43, // more than an int holds
		"$7$Hk..../....salt$" + hash43,
		"$7$BUzzzz/....salt$" + hash43, // r
		"$7$BU..../zzzzsalt$" + hash43, // p
		"$7$BU..../0...salt$" + hash43, // p 129: ten seconds
		"$7$zzzzzzzzzzzsalt$" + hash43,
		"$7$.U..../....salt$" + hash43, // N 1
		"$7$BU.........salt$" + hash43, // p 0
		"$7$B...../....salt$" + hash43, // r 0
		"$2b$18$CCCCCCCCCCCCCCCCCCCCC.HrBIdffznV69GxsYPA9PLSACo3k11D6",
		"$2x$18$CCCCCCCCCCCCCCCCCCCCC.HrBIdffznV69GxsYPA9PLSACo3k11D6",
		"$2x$03$CCCCCCCCCCCCCCCCCCCCC.HrBIdffznV69GxsYPA9PLSACo3k11D6",
		"$2b$31$CCCCCCCCCCCCCCCCCCCCC.HrBIdffznV69GxsYPA9PLSACo3k11D6",
		"$6$rounds=10000001$abc$" + hash43 + hash43,
		"$5$rounds=999999999$abc$" + hash43,
		"$5$rounds=18446744073709552616$abc$" + hash43,
		"$sha1$10000001$abcdefgh$S1ArdJYzrh17g244/Kvgwg8.Q1c0",
		"$sha1$0$abcdefgh$S1ArdJYzrh17g244/Kvgwg8.Q1c0",
		"$sha1$4294967297$abcdefgh$S1ArdJYzrh17g244/Kvgwg8.Q1c0",
		"$md5,rounds=2000001$abcdefgh$$Vnp9PhHCmIcKm6Q6oZ0rv/",
		"$md5,rounds=4294967295$abcdefgh$$Vnp9PhHCmIcKm6Q6oZ0rv/",
	} {
		if fitsHash(stored, []byte("x"), allowed) {
			t.Errorf("%s fits", stored)
		}
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v to refuse them", took)
	}
	// What lies on the bounds is computed; the cheap ones show it.
	for stored, fits := range map[string]bool{
		"$2b$04$CCCCCCCCCCCCCCCCCCCCC.HrBIdffznV69GxsYPA9PLSACo3k11D6": true,
		"$2b$04$CCCCCCCCCCCCCCCCCCCCCAHrBIdffznV69GxsYPA9PLSACo3k11D6": false, // bits that the salt does not have
		"$sha1$1$x$y47v3qSc7hdK3xpstmFTxdQ1gb2u":                       true,
		"$sha1$01$x$y47v3qSc7hdK3xpstmFTxdQ1gb2u":                      false,
	} {
		if fitsHash(stored, []byte("x"), allowed) != fits {
			t.Errorf("%s: want %v", stored, fits)
		}
	}
	long := strings.Repeat("a", maxPassword+1)
	if _, err := HashPassword(sec(t, long), rand.Reader); !fault.Is(err, fault.InvalidArgs) {
		t.Errorf("a password of %d bytes: %v", len(long), err)
	}
	for _, p := range []string{long[1:], long} {
		if stored := "$1$salt$" + string(xcrypt.KeyMD5Crypt([]byte(p), []byte("salt"))); fitsHash(stored, []byte(p), allowed) != (len(p) <= maxPassword) {
			t.Errorf("a password of %d bytes", len(p))
		}
	}
}

// TestHashWork: what an evaluation takes is known before it takes place, and
// what would be too much altogether does not.
func TestHashWork(t *testing.T) {
	const hash43 = "lH4Blq6EUT5kohtMaJuuam4rpgnwNSzdugg1kO8swg1"
	const evaluation = 1000
	p := []byte("fixture-password")
	for _, c := range []struct {
		stored string
		work   uint64
		cheap  bool
	}{
		{"$y$j9T$5Uru/BpWPPzE2WDoWreqA0$V3ROsH11sYCDc6blhm.Lox2iWA6OV2uuX9iA7F/I27/", 1 << 17, true},
		{"$y$jFT$5Uru/BpWPPzE2WDoWreqA0$V3ROsH11sYCDc6blhm.Lox2iWA6OV2uuX9iA7F/I27/", 1 << 23, false},
		{"$7$BU..../....salt$" + hash43, 1 << 18, false},
		{"$2b$04$CCCCCCCCCCCCCCCCCCCCC.HrBIdffznV69GxsYPA9PLSACo3k11D6", 150 << 4, true},
		{"$2x$04$CCCCCCCCCCCCCCCCCCCCC.HrBIdffznV69GxsYPA9PLSACo3k11D6", 150 << 4, true},
		{"$2b$17$CCCCCCCCCCCCCCCCCCCCC.HrBIdffznV69GxsYPA9PLSACo3k11D6", 150 << 17, false},
		{"$2x$17$CCCCCCCCCCCCCCCCCCCCC.HrBIdffznV69GxsYPA9PLSACo3k11D6", 150 << 17, false},
		{"$6$abc$" + hash43 + hash43, 5000, true},
		{"$5$rounds=10000000$abc$" + hash43, 10000000, false},
		{"$1$abc$" + hash43[:22], 2000, true},
		{"$sha1$1000$abc$" + hash43[:28], 1000, true},
		{"$md5,rounds=2000000$abc$$" + hash43[:22], 6 * 2004096, false},
		{"$3$$a9f0dd57e1edab5bb55a9ac0a99c15ec", 0, true},
		{"!", 0, true},
	} {
		short := work{done: maxWork - evaluation - c.work + 1}
		most := allowed
		most.work = &short
		if fitsHash(c.stored, p, most) || !short.over {
			t.Errorf("%s is computed with a microsecond less than it takes", c.stored)
		}
		if !c.cheap {
			continue
		}
		enough := work{done: maxWork - evaluation - c.work}
		most.work = &enough
		if fits := fitsHash(c.stored, p, most); enough.over || enough.done != maxWork || fits != fitsHash(c.stored, p, allowed) {
			t.Errorf("%s: fits %v, %+v", c.stored, fits, enough)
		}
	}
	// A long password takes longer with the methods that hash it in each round.
	long := work{done: maxWork - evaluation - 8*5000 + 5001}
	most := allowed
	most.work = &long
	if fitsHash("$6$abc$"+hash43+hash43, bytes.Repeat([]byte("a"), maxPassword), most) || !long.over {
		t.Errorf("a long password: %+v", long)
	}
}

// TestManyHashes: neither a record's hashes nor the secrets offered keep an
// operation busy for ever, and what comes before the end still counts.
func TestManyHashes(t *testing.T) {
	const good = "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"
	record := func(before, after int) Verified {
		var list []string
		for i := range before {
			list = append(list, fmt.Sprintf("!%d", i))
		}
		list = append(list, good)
		for i := range after {
			list = append(list, fmt.Sprintf("*%d", i))
		}
		r, err := NewBuilder("ann").SetPrivileged("hashedPassword", list).Record()
		if err != nil {
			t.Fatal(err)
		}
		return vouched(r)
	}
	for _, c := range []struct {
		before, after int
		secrets       []string
		want          fault.Kind
	}{
		{1000, 100000, []string{"Hello world!"}, ""},
		{61000, 0, []string{"Hello world!"}, fault.LimitsExceeded},
		{1000, 61000, []string{"no"}, fault.LimitsExceeded},
		{1000, 1000, []string{"no"}, fault.BadPassword},
		{20000, 0, []string{"no", "nor", "neither", "Hello world!"}, fault.LimitsExceeded},
		{10000, 0, []string{"no", "nor", "neither", "Hello world!"}, ""},
	} {
		s := secretsOf(t, c.secrets...)
		if err := Authenticate(record(c.before, c.after), s, true, nil); fault.KindOf(err) != c.want {
			t.Errorf("%d hashes before the good one, %d passwords: %v, want %q", c.before, len(c.secrets), err, c.want)
		}
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
	digits := []byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}
	key, err = NewRecoveryKey(bytes.Repeat(digits, 4))
	if err != nil || plain(t, key) != strings.TrimSuffix(strings.Repeat("cbdefghi-jklnrtuv-", 4), "-") {
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
		if err := Authenticate(vouched(c.r), s, c.strict, NewHashCache()); fault.KindOf(err) != c.want {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if err := Authenticate(vouched(recov), nil, true, nil); !fault.Is(err, fault.BadPassword) {
		t.Errorf("no secrets at all: %v", err)
	}
}

// TestTokensAskFirst: what a record says that its token asks of the person is
// asked for before the token is missed, as clients know it, in this order.
func TestTokensAskFirst(t *testing.T) {
	const hash = "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"
	salt := func(flags string) string {
		return `{"credential":"AAAA","salt":"AAAA","hashedPassword":"x"` + flags + `}`
	}
	const all = `,"up":true,"uv":true,"clientPin":true`
	for _, c := range []struct {
		salts, card, secret string
		unlock, create      fault.Kind
	}{
		{salt(``), ``, `{}`, fault.BadPasswordAndNoToken, fault.BadPasswordAndNoToken},
		{salt(`,"up":false,"uv":false,"clientPin":false`), ``, `{}`, fault.BadPasswordAndNoToken, fault.BadPasswordAndNoToken},
		{salt(all), ``, `{}`, fault.TokenPresenceNeeded, fault.TokenPresenceNeeded},
		{salt(all), ``, `{"fido2UserPresencePermitted":false}`, fault.TokenPresenceNeeded, fault.TokenPresenceNeeded},
		{salt(all), ``, `{"fido2UserPresencePermitted":true}`, fault.TokenVerifyNeeded, fault.TokenVerifyNeeded},
		{salt(all), ``, `{"fido2UserPresencePermitted":true,"fido2UserVerificationPermitted":true}`, fault.TokenPinNeeded, fault.TokenPinNeeded},
		{salt(all), ``, `{"fido2UserPresencePermitted":true,"fido2UserVerificationPermitted":true,"tokenPin":"1"}`, fault.BadPasswordAndNoToken, fault.BadPasswordAndNoToken},
		{salt(`,"clientPin":true`) + "," + salt(`,"up":true`), ``, `{}`, fault.TokenPresenceNeeded, fault.TokenPinNeeded},
		// A keyslot for each is made in order, the cards first.
		{salt(all), `"pkcs11EncryptedKey":[{"uri":"pkcs11:token=x","data":"AAAA","hashedPassword":"x"}],`, `{}`, fault.TokenPresenceNeeded, fault.BadPasswordAndNoToken},
	} {
		r := vouched(mustParse(t, []byte(`{"userName":"ann","privileged":{"hashedPassword":["`+hash+`"],`+c.card+`"fido2HmacSalt":[`+c.salts+`]}}`), HostFile))
		for _, right := range []bool{false, true} {
			s, err := ParseSecrets(sec(t, c.secret))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if s.Passwords = secretsOf(t, "wrong").Passwords; right {
				s.Passwords = secretsOf(t, "Hello world!").Passwords
			}
			unlock, create := c.unlock, c.create
			if right {
				unlock = "" // whoever has the password needs no token
			} else {
				create = fault.BadPassword
			}
			if err := Authenticate(r, s, true, nil); fault.KindOf(err) != unlock {
				t.Errorf("%s %s %s, right password %v: %v, want %q", c.salts, c.card, c.secret, right, err, unlock)
			}
			if err := RequirePlaintexts(r, s); fault.KindOf(err) != create {
				t.Errorf("%s %s %s, right password %v: to create %v, want %q", c.salts, c.card, c.secret, right, err, create)
			}
		}
	}
}

func TestEachPairIsHashedOnce(t *testing.T) {
	r := vouched(mustParse(t, []byte(`{"userName":"ann","privileged":{"hashedPassword":["$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"]}}`), HostFile))
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

// TestHashesOfAChange: a change of password brings two passwords and meets two
// records, and costs one evaluation of each one's hash, whatever the order in
// which they come.
func TestHashesOfAChange(t *testing.T) {
	of := func(word string) string {
		h, err := HashPassword(secretsOf(t, word).Passwords[0], rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	record := func(hash string) *Record {
		return mustParse(t, []byte(`{"userName":"ann","privileged":{"hashedPassword":["`+hash+`"]}}`), HostFile)
	}
	before, after := record(of("old one")), record(of("new one"))
	s := secretsOf(t, "new one", "old one")
	got, err := vouched(after).EffectivePassphrases(s)
	if err != nil || strings.Join(plains(t, got), "|") != "new one" {
		t.Fatalf("%q, %v", plains(t, got), err)
	}
	secret.CloseAll(got)
	for _, r := range []*Record{before, before, after} {
		if err := RefusedBy(r, s, nil); err != nil {
			t.Error(err)
		}
	}
	if s.cache.runs != 2 {
		t.Errorf("%d evaluations, want 2", s.cache.runs)
	}
}

// TestHashesThatWereMade: whoever has made the hashes of new passwords, and says
// so, spares that they are found out; only what is said counts.
func TestHashesThatWereMade(t *testing.T) {
	before := mustParse(t, []byte(`{"userName":"ann","privileged":{"hashedPassword":["$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"]}}`), HostFile)
	fresh := secretsOf(t, "one", "two")
	after, err := before.WithPasswords(fresh.Passwords, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		places []int
		runs   int
	}{{secretsOf(t, "two", "Hello world!", "one").Places(fresh.Passwords), 0}, {nil, 4}, {[]int{2, -1, 7, 0}, 1}} {
		s := secretsOf(t, "two", "Hello world!", "one")
		cache := NewHashCache()
		s.Remember(cache)
		cache.MadeOf(after, s, c.places)
		got, err := vouched(after).EffectivePassphrases(s)
		if err != nil || strings.Join(plains(t, got), "|") != "one|two" {
			t.Errorf("%v: %q, %v", c.places, plains(t, got), err)
		}
		secret.CloseAll(got)
		if cache.runs != c.runs {
			t.Errorf("%v: %d evaluations, want %d", c.places, cache.runs, c.runs)
		}
		if err := RefusedBy(before, s, nil); err != nil {
			t.Errorf("%v, the former record: %v", c.places, err)
		}
	}
	if got := fresh.Places(secretsOf(t, "three", "two").Passwords); !slices.Equal(got, []int{-1, 1}) {
		t.Errorf("places %v", got)
	}
}

// TestRoomForHashes: it is told what a hash takes, before it takes it, and of
// nothing that is cheap or refused.
func TestRoomForHashes(t *testing.T) {
	var told []uint64
	s := secretsOf(t, "word")
	made, err := HashPassword(s.Passwords[0], rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := NewHashCache()
	c.Room = func(n uint64) { told = append(told, n) }
	for _, h := range []string{made, made, "$y$jzT$saltstring$x", "$y$j5.$saltstring$x", "$y$", "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5", ""} {
		if _, err := c.check(h, s.Passwords[0]); err != nil {
			t.Errorf("%s: %v", h, err)
		}
	}
	if !slices.Equal(told, []uint64{16 << 20}) {
		t.Errorf("told of %v bytes", told)
	}
}

func TestEffectivePassphrases(t *testing.T) {
	recov := vouched(mustParse(t, read(t, fixtures, "records/recov/host.identity"), HostFile))
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
	none := vouched(mustParse(t, []byte(`{"userName":"ann"}`), HostFile))
	for _, c := range []struct {
		v    Verified
		s    *Secrets
		want fault.Kind
	}{
		{recov, secretsOf(t, "fixture-password"), fault.BadRecoveryKey},
		{recov, secretsOf(t, key), fault.BadPassword},
		{recov, secretsOf(t), fault.KeyUnavailable},
		{recov, nil, fault.KeyUnavailable},
		{none, secretsOf(t, "x"), fault.InvalidArgs},
	} {
		if err := RequirePlaintexts(c.v, c.s); fault.KindOf(err) != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

// FuzzHash: no hash makes trouble, and none fits but by what is written in it.
func FuzzHash(f *testing.F) {
	// What a machine computes in milliseconds, so that it tries many.
	cheap := costs{blocks: 1 << 14, bcrypt: 5, sha: 5000, sunMD5: 100}
	for line := range strings.SplitSeq(string(read(f, "testdata/crypt.txt")), "\n") {
		if stored, password, ok := strings.Cut(line, " "); ok {
			f.Add(stored, []byte(password))
		}
	}
	f.Fuzz(func(t *testing.T, stored string, p []byte) {
		if !fitsHash(stored, p, cheap) {
			return
		}
		if len(stored) < 13 || len(p) > maxPassword {
			t.Fatalf("%q fits %q", stored, p)
		}
		if other := append([]byte("x"), p...); len(other) <= 72 && fitsHash(stored, other, cheap) {
			t.Fatalf("%q fits both %q and %q", stored, p, other)
		}
	})
}

// TestHashStops: an evaluation that is stopped is no verdict; what is known
// stays known.
func TestHashStops(t *testing.T) {
	const quick = "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"
	dear := "$6$rounds=1000000$saltstring$" + strings.Repeat("x", 86)
	right := sec(t, "Hello world!")
	stop := make(chan struct{})
	s := &Secrets{Passwords: []*secret.Bytes{right}}
	s.StopOn(stop)
	if ok, err := s.cache.check(quick, right); !ok || err != nil {
		t.Fatalf("before: %v, %v", ok, err)
	}
	close(stop)
	for range 2 {
		if ok, err := s.cache.check(dear, right); ok || !fault.Is(err, fault.Timeout) {
			t.Errorf("stopped: %v, %v", ok, err)
		}
	}
	if ok, err := s.cache.check(quick, right); !ok || err != nil {
		t.Errorf("known: %v, %v", ok, err)
	}
	if s.cache.runs != 3 {
		t.Errorf("%d evaluations", s.cache.runs)
	}
}
