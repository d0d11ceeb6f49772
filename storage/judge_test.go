package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/records"
	"hearth/storage/luks2"
)

// headed returns an instance whose header holds that record.
func (h *house) headed(name string, header *records.Record) *plain {
	h.t.Helper()
	p := h.instance(name)
	l, err := luks2.Read(p, containerSize)
	if err != nil {
		h.t.Fatal(err)
	}
	key, _, err := l.Unlock(p, secrets(h.t, oldPassword).Passwords)
	if err != nil {
		h.t.Fatal(err)
	}
	defer key.Close()
	if err := l.SetHomedToken(p, key, header.Embedded().Compact()); err != nil {
		h.t.Fatal(err)
	}
	return p
}

func (h *house) identity(p *plain, r *records.Record) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, identityName), r.Embedded().Pretty(), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func unsignedOf(t *testing.T, r *records.Record) *records.Record {
	t.Helper()
	r, err := records.Parse(r.WithoutSignature().Embedded().Compact(), records.EmbeddedFile)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestHeaderJudgedBeforeOpen: a header's record that claims to be newer than
// the host's has to be signed, or nothing behind the header is touched. One
// that is not newer is overruled, whatever it is.
func TestHeaderJudgedBeforeOpen(t *testing.T) {
	h := newHouse(t)
	forger := newHouse(t)
	for name, c := range map[string]struct {
		header *records.Record
		want   fault.Kind
	}{
		"newer, ours":       {h.record(2, oldPassword), ""},
		"newer, unsigned":   {unsignedOf(t, h.record(2, oldPassword)), fault.BadSignature},
		"newer, foreign":    {forger.record(2, oldPassword), fault.BadSignature},
		"as old, unsigned":  {unsignedOf(t, h.old), ""},
		"as old, foreign":   {forger.record(1, oldPassword), ""},
		"undated, unsigned": {unsignedOf(t, h.record(0, oldPassword)), ""},
	} {
		for _, verb := range []string{Inspect, Update} {
			p := h.headed(verb+" "+name, c.header)
			r, want := h.old, c.want
			if verb == Update {
				if r = h.record(3, oldPassword); want == fault.BadSignature {
					want = "" // the update is newer
				}
			}
			got, err := h.run(p, verb, r, nil, oldPassword)
			if fault.KindOf(err) != want || p.entered != (want == "") {
				t.Errorf("%s, %s: %v, entered: %v", verb, name, err, p.entered)
			}
			if err == nil {
				if _, err := h.keys.Vouch(got); err != nil {
					t.Errorf("%s, %s: %v", verb, name, err)
				}
			}
		}
	}
	// A wrong password is told before that.
	p := h.headed("wrong", forger.record(2, oldPassword))
	if _, err := h.run(p, Inspect, h.old, nil, "wrong"); !fault.Is(err, fault.BadPassword) || p.entered {
		t.Errorf("a wrong password: %v", err)
	}
}

// TestHomeJudged: the record inside the home is its user's to rewrite. One that
// nobody vouches for rules nothing and shuts nobody out.
func TestHomeJudged(t *testing.T) {
	h := newHouse(t)
	forger := newHouse(t)
	for name, c := range map[string]struct {
		inside *records.Record
		rules  bool
	}{
		"newer, ours":               {h.record(2, oldPassword), true},
		"newer, unsigned":           {unsignedOf(t, h.record(2, oldPassword)), false},
		"newer, unsigned, password": {unsignedOf(t, h.record(2, newPassword)), false},
		"newer, foreign":            {forger.record(2, oldPassword), false},
		"newer, foreign, password":  {forger.record(2, newPassword), false},
		"as old, unsigned":          {unsignedOf(t, h.old), false},
		"as old, foreign":           {forger.record(1, oldPassword), false},
	} {
		p := h.instance(name)
		h.identity(p, c.inside)
		for kind, b := range map[string]Backend{"with a header": p, "without": bare{p.dir}} {
			got, err := h.run(b, Inspect, h.old, nil, oldPassword)
			if err != nil {
				t.Errorf("%s, %s: %v", name, kind, err)
				continue
			}
			if _, err := h.keys.Vouch(got); err != nil || c.rules == got.SameContent(h.old) {
				t.Errorf("%s, %s: %v, %s", name, kind, err, got.Compact())
			}
			if _, err := h.run(b, Inspect, h.old, nil, newPassword); !fault.Is(err, fault.BadPassword) {
				t.Errorf("%s, %s, by a password of its own: %v", name, kind, err)
			}
		}
	}
}

// TestFoundHome: the record in a home that was only found decides who enters,
// and has to be signed.
func TestFoundHome(t *testing.T) {
	h := newHouse(t)
	forger := newHouse(t)
	found := records.Bind(h.old.FoundAs(testMachine), testMachine, records.Binding{
		Storage: "luks", ImagePath: h.dir + "/home", HomeDirectory: "/proc", UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), HasUID: true,
	}).Record()
	for name, c := range map[string]struct {
		copied *records.Record
		want   fault.Kind
	}{
		"ours":     {h.old, ""},
		"unsigned": {unsignedOf(t, h.old), fault.BadSignature},
		"foreign":  {forger.old, fault.BadSignature},
	} {
		p := h.headed(name, c.copied)
		h.identity(p, c.copied)
		for kind, b := range map[string]Backend{"with a header": p, "without": bare{p.dir}} {
			got, err := h.run(b, Inspect, found, nil, oldPassword)
			if fault.KindOf(err) != c.want || err == nil && !got.Embedded().Equal(c.copied) {
				t.Errorf("%s, %s: %v", name, kind, err)
			}
			if _, err := h.run(b, Inspect, found, nil, "wrong"); !fault.Is(err, fault.BadPassword) {
				t.Errorf("%s, %s, wrong password: %v", name, kind, err)
			}
		}
		if p.entered != (c.want == "") {
			t.Errorf("%s: entered: %v", name, p.entered)
		}
	}
	// What changes a home, or makes one, needs its record.
	p := h.instance("changes")
	for _, verb := range []string{Create, Update, Passwd} {
		if _, err := h.run(p, verb, found, nil, oldPassword); !fault.Is(err, fault.BadSignature) || p.entered {
			t.Errorf("%s: %v", verb, err)
		}
	}
}

// TestUpdateWithoutKeys: whoever can write in a home without keyslots cannot
// put a password there and then update the record by it.
func TestUpdateWithoutKeys(t *testing.T) {
	h := newHouse(t)
	forger := newHouse(t)
	for name, inside := range map[string]*records.Record{"unsigned": unsignedOf(t, h.record(1, newPassword)), "foreign": forger.record(1, newPassword)} {
		p := h.instance(name)
		h.identity(p, inside)
		for _, verb := range []string{Update, Passwd} {
			if _, err := h.run(bare{p.dir}, verb, h.changed, nil, newPassword); !fault.Is(err, fault.BadSignature) {
				t.Errorf("%s by an %s record in the home: %v", verb, name, err)
			}
		}
		text, err := os.ReadFile(filepath.Join(p.dir, identityName))
		if err != nil || string(text) != string(inside.Embedded().Pretty()) {
			t.Errorf("%s: something was written: %v", name, err)
		}
	}
}

// TestOtherCopies: copies that are no records, or those of others, are refused
// before anybody's password is tried on them.
func TestOtherCopies(t *testing.T) {
	h := newHouse(t)
	bob, err := records.NewBuilder("bob").Set("lastChangeUSec", uint64(1)).SetPrivileged("hashedPassword", []string{hashes[newPassword]}).Record()
	if err != nil {
		t.Fatal(err)
	}
	p := h.headed("bob's header", h.sign(bob))
	if _, err := h.run(p, Inspect, h.old, nil, oldPassword); !fault.Is(err, fault.OtherUser) || p.entered {
		t.Errorf("bob's record in the header: %v", err)
	}
	p = h.instance("bob's home")
	unsigned := unsignedOf(t, bob)
	for text, want := range map[string]fault.Kind{string(h.sign(bob).Pretty()): fault.OtherUser, string(unsigned.Pretty()): "", "no record": "", "[]": "", "{}": "", "\x00": ""} {
		if err := os.WriteFile(filepath.Join(p.dir, identityName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := h.run(p, Inspect, h.old, nil, oldPassword); fault.KindOf(err) != want {
			t.Errorf("%.20q in the home: %v, want %s", text, err, want)
		}
	}
}

// TestOnlyWrongPasswordsAreOverruled: a record that lets nobody in is not a
// record that a change of the password has left behind.
func TestOnlyWrongPasswordsAreOverruled(t *testing.T) {
	h := newHouse(t)
	p := h.headed("closed", h.record(3, oldPassword))
	if _, err := h.run(p, Update, h.record(2), nil, oldPassword); !fault.Is(err, fault.HomeCantAuthenticate) || p.entered {
		t.Errorf("a record without passwords: %v", err)
	}
	// The host's verdict goes before what a keyslot says.
	if _, err := h.run(p, Update, h.record(2), nil, "wrong"); !fault.Is(err, fault.HomeCantAuthenticate) {
		t.Errorf("a record without passwords, and a wrong one: %v", err)
	}
}

// TestNobodyEntersWithoutCredentials: a record without any way to authenticate
// leaves the verdict to the one in the home. Where that is none, or nobody
// vouches for it, nobody is left to say yes.
func TestNobodyEntersWithoutCredentials(t *testing.T) {
	h := newHouse(t)
	host := h.record(2)
	for name, inside := range map[string]string{
		"nothing": "", "no record": "[]", "its own, unsigned": string(unsignedOf(t, host).Pretty()),
		"unsigned, with a password": string(unsignedOf(t, h.record(3, oldPassword)).Pretty()),
		"its own":                   string(host.Embedded().Pretty()),
	} {
		p := h.instance(name)
		if err := os.Remove(filepath.Join(p.dir, identityName)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if inside != "" {
			if err := os.WriteFile(filepath.Join(p.dir, identityName), []byte(inside), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := h.run(bare{p.dir}, Inspect, host, nil, oldPassword); !fault.Is(err, fault.HomeCantAuthenticate) {
			t.Errorf("%s in the home: %v", name, err)
		}
	}
}

// TestUpdateAgain: the last try of an update came as far as the header, and the
// record in the home is worth nothing.
func TestUpdateAgain(t *testing.T) {
	h := newHouse(t)
	r := h.record(2, oldPassword)
	p := h.headed("again", r)
	if err := os.WriteFile(filepath.Join(p.dir, identityName), []byte("no record"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.run(p, Update, r, nil, oldPassword); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(p.dir, identityName))
	if err != nil || string(text) != string(r.Embedded().Pretty()) {
		t.Errorf("in the home: %s, %v", text, err)
	}
}

// TestMissingCopies: a home whose record a crash has emptied, or its user has
// deleted or replaced, opens by the one of header or host.
func TestMissingCopies(t *testing.T) {
	h := newHouse(t)
	p := h.instance("home-1")
	path := filepath.Join(p.dir, identityName)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	opens := func(what string) {
		t.Helper()
		for kind, b := range map[string]Backend{"with a header": p, "without": bare{p.dir}} {
			if got, err := h.run(b, Inspect, h.old, nil, oldPassword); err != nil || !got.SameContent(h.old) {
				t.Errorf("%s, %s: %v", what, kind, err)
			}
			if _, err := h.run(b, Inspect, h.old, nil, newPassword); !fault.Is(err, fault.BadPassword) {
				t.Errorf("%s, %s, by a wrong password: %v", what, kind, err)
			}
		}
		// The record that a caller brings is no judge of who may bring it.
		if _, err := h.run(bare{p.dir}, Update, h.changed, nil, newPassword); err == nil {
			t.Errorf("%s: an update was its own judge", what)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	opens("an empty file")
	for what, put := range map[string]func() error{
		"a directory": func() error { return os.Mkdir(path, 0o700) },
		"a link":      func() error { return os.Symlink("/etc/shadow", path) },
		"a pipe":      func() error { return unix.Mkfifo(path, 0o600) },
	} {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		opens(what)
	}
	if got, err := h.run(p, Inspect, h.old, nil, oldPassword); err != nil || !got.SameContent(h.old) {
		t.Errorf("no file: %v", err)
	}
}

// watched tells what became of its setups.
type watched struct {
	bare
	opened, closed *int
}

func (w watched) Open(ctx context.Context, a Area, c *Credentials) (*Setup, error) {
	s, err := w.bare.Open(ctx, a, c)
	if err == nil {
		*w.opened++
		s.Finally("count", func(context.Context) error { *w.closed++; return nil })
	}
	return s, err
}

// careless has a header and does not ask what its record is worth.
type careless struct{ watched }

func (careless) WriteHeader(context.Context, *Setup, []byte) error { return nil }

// TestPasswordBeforeOpen: a wrong password opens nothing where there is no
// keyslot to try, and leaves nothing open where a backend did not ask.
func TestPasswordBeforeOpen(t *testing.T) {
	h := newHouse(t)
	opened, closed := 0, 0
	w := watched{bare{h.instance("home-1").dir}, &opened, &closed}
	if _, err := h.run(w, Inspect, h.old, nil, "wrong"); !fault.Is(err, fault.BadPassword) || opened != 0 {
		t.Errorf("%v, opened %d times", err, opened)
	}
	if _, err := h.run(careless{w}, Inspect, h.old, nil, "wrong"); !fault.Is(err, fault.BadPassword) || closed != opened {
		t.Errorf("%v, opened %d times, closed %d", err, opened, closed)
	}
	if _, err := h.run(w, Inspect, h.old, nil, oldPassword); err != nil || opened == 0 || closed != opened {
		t.Errorf("%v, opened %d times, closed %d", err, opened, closed)
	}
}
