package storage

import (
	"os"
	"path/filepath"
	"testing"

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

// TestHomeJudged: the same for the record inside the home. Nothing is written
// when it is refused.
func TestHomeJudged(t *testing.T) {
	h := newHouse(t)
	forger := newHouse(t)
	for name, c := range map[string]struct {
		inside *records.Record
		want   fault.Kind
	}{
		"newer, ours":      {h.record(2, oldPassword), ""},
		"newer, unsigned":  {unsignedOf(t, h.record(2, oldPassword)), fault.BadSignature},
		"newer, foreign":   {forger.record(2, oldPassword), fault.BadSignature},
		"as old, unsigned": {unsignedOf(t, h.old), ""},
		"as old, foreign":  {forger.record(1, oldPassword), ""},
	} {
		p := h.instance(name)
		h.identity(p, c.inside)
		for kind, b := range map[string]Backend{"with a header": p, "without": bare{p.dir}} {
			got, err := h.run(b, Inspect, h.old, nil, oldPassword)
			if fault.KindOf(err) != c.want {
				t.Errorf("%s, %s: %v", name, kind, err)
			}
			if err == nil {
				if _, err := h.keys.Vouch(got); err != nil {
					t.Errorf("%s, %s: %v", name, kind, err)
				}
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
