package storage

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/fixture"
	"hearth/internal/secret"
	"hearth/records"
	"hearth/storage/luks2"
)

const (
	oldPassword, newPassword = "correct horse", "battery staple"
	testMachine              = "0123456789abcdef0123456789abcdef"
	containerSize            = 20 << 20
)

// hashes are of few rounds (crypt(3), SHA-256), since each test evaluates many.
var hashes = map[string]string{
	oldPassword: "$5$rounds=1000$abcdefgh$ue35C0ITbth1b5zVUjrjm2mMmsmMKiodEeH2UV/Hq10",
	newPassword: "$5$rounds=1000$abcdefgh$.DoMV/IYQao5Uj30uDl6Fecb220Abwv.hxgT3YrM9GA",
	"third one": "$5$rounds=1000$abcdefgh$x0ixHg4mwJTlP2x.awV3OwJG5sBZxTNRwsswebag.B5",
}

var errPower = errors.New("power cut")

// plain is a backend with a real LUKS2 header and a directory for a home. Its
// power fails after so many steps: writes to the device, and what else a test
// counts.
type plain struct {
	t       *testing.T
	device  *fixture.Section
	dir     string
	left    *int // nil: no cut
	unlocks []string
	kept    *secret.Bytes // the volume key that an activation left
	entered bool          // whether anything behind the header was opened
}

func (p *plain) step() error {
	if p.left == nil {
		return nil
	}
	if *p.left--; *p.left < 0 {
		return errPower
	}
	return nil
}

func (p *plain) ReadAt(b []byte, at int64) (int, error) { return p.device.ReadAt(b, at) }
func (p *plain) Sync() error                            { return nil }
func (p *plain) WriteAt(b []byte, at int64) (int, error) {
	if err := p.step(); err != nil {
		return 0, err
	}
	return p.device.WriteAt(b, at)
}

func (p *plain) Open(_ context.Context, a Area, c *Credentials) (*Setup, error) {
	h, err := luks2.Read(p, containerSize)
	if err != nil {
		return nil, err
	}
	for _, b := range c.Passphrases {
		_ = b.Use(func(text []byte) error { p.unlocks = append(p.unlocks, string(text)); return nil })
	}
	var key *secret.Bytes
	switch {
	case !a.KeptKey:
		key, _, err = h.Unlock(p, c.Passphrases)
	case p.kept == nil:
		err = fault.New(fault.BadPassword, "fetch volume key", nil)
	default:
		if key, err = p.kept.Clone(); err == nil {
			err = h.CheckKey(key)
		}
	}
	if err != nil {
		key.Close()
		return nil, err
	}
	s := &Setup{VolumeKey: key, Private: h}
	s.Finally("wipe volume key", func(context.Context) error { key.Close(); return nil })
	record, err := h.HomedToken(key)
	if err == nil {
		err = a.Admit(record)
	}
	var root *os.File
	if err == nil {
		p.entered = true
		root, err = os.Open(p.dir)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close(context.Background()))
	}
	s.Enter(root)
	return s, nil
}

func (p *plain) Rekey(_ context.Context, s *Setup, c *Credentials) error {
	h := s.Private.(*luks2.Header)
	old := h.Keyslots()
	var added []int
	for _, b := range c.Passphrases {
		n, err := h.AddKeyslot(p, s.VolumeKey, b, luks2.PBKDF{Type: "pbkdf2", ForceIterations: 1000})
		if err != nil {
			return err
		}
		added = append(added, n)
	}
	remove := func(list []int) func() error {
		return func() error {
			for _, n := range list {
				if err := h.RemoveKeyslot(p, n); err != nil {
					return err
				}
			}
			return nil
		}
	}
	s.OnRekey(remove(old), remove(added))
	return nil
}

func (p *plain) WriteHeader(_ context.Context, s *Setup, record []byte) error {
	if err := s.Private.(*luks2.Header).SetHomedToken(p, s.VolumeKey, record); err != nil {
		return err
	}
	// Between header and home the power may fail too.
	return p.step()
}

func (p *plain) Create(context.Context, Area, *Credentials) (*Setup, error) { return nil, errPower }
func (p *plain) Deactivate(context.Context, Area) error                     { return nil }
func (p *plain) Remove(context.Context, Area) error                         { return nil }

// house is one home on a plain, with the daemon's part of it.
type house struct {
	t       *testing.T
	disk    *fixture.Disk
	dir     string
	signer  *records.Signer
	keys    *records.Keys
	old     *records.Record // what the host has before
	changed *records.Record // what it asks for
}

func secrets(t *testing.T, list ...string) *records.Secrets {
	t.Helper()
	s := &records.Secrets{}
	for _, p := range list {
		b, err := secret.Copy([]byte(p))
		if err != nil {
			t.Fatal(err)
		}
		s.Passwords = append(s.Passwords, b)
	}
	t.Cleanup(s.Close)
	return s
}

func (h *house) record(at uint64, passwords ...string) *records.Record {
	h.t.Helper()
	var list []string
	for _, p := range passwords {
		list = append(list, hashes[p])
	}
	// The home directory is a mount point, so the home counts as active: an
	// inactive one would be mounted for the ids of its files.
	b := records.NewBuilder("ann").Set("disposition", "regular").Set("lastChangeUSec", at).
		SetPrivileged("hashedPassword", list).Set("homeDirectory", "/proc").Set("imagePath", h.dir+"/home").Set("storage", "luks").
		Set("uid", uint32(os.Geteuid())).Set("gid", uint32(os.Getegid()))
	r, err := b.Record()
	if err != nil {
		h.t.Fatal(err)
	}
	return h.sign(r)
}

func (h *house) sign(r *records.Record) *records.Record {
	h.t.Helper()
	v, err := h.signer.Sign(r)
	if err != nil {
		h.t.Fatal(err)
	}
	return v.Record()
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, disk: fixture.NewDisk(containerSize), dir: t.TempDir(), keys: &records.Keys{}}
	private, public, err := records.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if h.signer, err = records.NewSigner(private); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.signer.Close)
	if err := h.keys.Add(records.LocalKey, public); err != nil {
		t.Fatal(err)
	}
	h.old, h.changed = h.record(1, oldPassword), h.record(2, newPassword)
	key, err := secret.Copy(bytes.Repeat([]byte("k"), 32))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	kdf := luks2.PBKDF{Type: "pbkdf2", ForceIterations: 1000}
	d := h.disk.Section(0, containerSize)
	header, err := luks2.Format(d, luks2.Params{UUID: "00000000-0000-4000-8000-000000000002", PBKDF: kdf}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := header.AddKeyslot(d, key, secrets(t, oldPassword).Passwords[0], kdf); err != nil {
		t.Fatal(err)
	}
	if err := header.SetHomedToken(d, key, h.old.Embedded().Compact()); err != nil {
		t.Fatal(err)
	}
	return h
}

// instance is a copy of the home that is there now.
func (h *house) instance(name string) *plain {
	h.t.Helper()
	p := &plain{t: h.t, device: h.disk.Clone().Section(0, containerSize), dir: filepath.Join(h.dir, name)}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, identityName), h.old.Embedded().Pretty(), 0o600); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "home"), nil, 0o600); err != nil {
		h.t.Fatal(err)
	}
	return p
}

func (h *house) run(p Backend, verb string, r *records.Record, keep func(*records.Record) error, passwords ...string) (*records.Record, error) {
	h.t.Helper()
	host := Host{Machine: records.Machine{ID: testMachine}, HomeRoot: h.dir, Keep: keep, Keys: h.keys}
	return Run(h.t.Context(), host, verb, h.keys.Subject(r, testMachine), secrets(h.t, passwords...), map[string]Backend{"luks": p})
}

func accepts(t *testing.T, r *records.Record, password string) bool {
	t.Helper()
	return records.RefusedBy(r, secrets(t, password), nil) == nil
}

func TestPasswd(t *testing.T) {
	h := newHouse(t)
	p := h.instance("home-1")
	kept := 0
	got, err := h.run(p, Passwd, h.changed, func(r *records.Record) error {
		kept++
		// The old keyslot must still be there: the host may crash now.
		header, err := luks2.Read(p, containerSize)
		if err != nil || len(header.Keyslots()) != 2 {
			t.Errorf("while the host saves: keyslots %v, %v", header.Keyslots(), err)
		}
		return nil
	}, newPassword, oldPassword)
	if err != nil {
		t.Fatal(err)
	}
	if kept != 1 || !accepts(t, got, newPassword) || accepts(t, got, oldPassword) {
		t.Errorf("kept %d times: %s", kept, got.Pretty())
	}
	if !slices.Equal(p.unlocks, []string{oldPassword}) {
		t.Errorf("tried on the old keyslots: %q", p.unlocks)
	}
	header, err := luks2.Read(p, containerSize)
	if err != nil || !slices.Equal(header.Keyslots(), []int{1}) {
		t.Errorf("keyslots %v, %v", header.Keyslots(), err)
	}
	if _, err := h.run(p, Inspect, got, nil, newPassword); err != nil {
		t.Error(err)
	}
	if _, err := h.run(p, Inspect, got, nil, oldPassword); !fault.Is(err, fault.BadPassword) {
		t.Errorf("the old password: %v", err)
	}
	// The same password again, and one beside another.
	again := h.record(3, newPassword)
	if _, err := h.run(p, Passwd, again, nil, newPassword); err != nil {
		t.Fatal(err)
	}
	if got, err = h.run(p, Passwd, h.record(4, newPassword, "third one"), nil, "third one", newPassword); err != nil {
		t.Fatal(err)
	}
	for _, pw := range []string{newPassword, "third one"} {
		if _, err := h.run(p, Inspect, got, nil, pw); err != nil {
			t.Errorf("%s: %v", pw, err)
		}
	}
}

func TestPasswdRefused(t *testing.T) {
	h := newHouse(t)
	for name, given := range map[string][]string{
		"only the new one":    {newPassword},
		"a wrong old one":     {newPassword, "wrong"},
		"not the new one":     {oldPassword},
		"neither":             {"wrong"},
		"the new one, longer": {newPassword + "x", oldPassword},
	} {
		p := h.instance(name)
		before := p.device
		if _, err := h.run(p, Passwd, h.changed, func(*records.Record) error { t.Error("saved"); return nil }, given...); !fault.Is(err, fault.BadPassword) {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := h.run(p, Inspect, h.old, nil, oldPassword); err != nil || !accepts(t, got, oldPassword) || p.device != before {
			t.Errorf("%s: afterwards: %v", name, err)
		}
	}
}

// bare is a backend without keys: what the records say is all there is.
type bare struct{ dir string }

func (b bare) Open(context.Context, Area, *Credentials) (*Setup, error) {
	root, err := os.Open(b.dir)
	if err != nil {
		return nil, err
	}
	s := &Setup{}
	s.Enter(root)
	return s, nil
}
func (b bare) Create(context.Context, Area, *Credentials) (*Setup, error) { return nil, errPower }
func (b bare) Rekey(context.Context, *Setup, *Credentials) error          { return nil }
func (b bare) Deactivate(context.Context, Area) error                     { return nil }
func (b bare) Remove(context.Context, Area) error                         { return nil }

// TestPasswdWithoutKeys: a record that a caller brings does not vouch for
// itself, by whatever verb.
func TestPasswdWithoutKeys(t *testing.T) {
	h := newHouse(t)
	b := bare{h.instance("bare").dir}
	for _, verb := range []string{Passwd, Update} {
		for _, given := range [][]string{{newPassword}, {newPassword, "wrong"}} {
			if _, err := h.run(b, verb, h.changed, nil, given...); !fault.Is(err, fault.BadPassword) {
				t.Errorf("%s with %q: %v", verb, given, err)
			}
		}
	}
	// The host saved, then the power failed: the new password is the one.
	failed := errors.New("cut")
	if _, err := h.run(b, Passwd, h.changed, func(*records.Record) error { return failed }, newPassword, oldPassword); !errors.Is(err, failed) {
		t.Fatal(err)
	}
	if _, err := h.run(b, Inspect, h.changed, nil, newPassword); err != nil {
		t.Error(err)
	}
	if _, err := h.run(b, Inspect, h.old, nil, oldPassword); err != nil {
		t.Error(err)
	}
	if got, err := h.run(b, Passwd, h.changed, nil, newPassword, oldPassword); err != nil || !accepts(t, got, newPassword) {
		t.Error(err)
	}
	if _, err := h.run(b, Inspect, h.changed, nil, oldPassword); !fault.Is(err, fault.BadPassword) {
		t.Errorf("the old password: %v", err)
	}
}

// TestPasswdPowerCut stops a password change after every write. Whatever the
// host has by then, the old password or the new one opens the home, with a
// record that agrees.
func TestPasswdPowerCut(t *testing.T) {
	h := newHouse(t)
	var counts [2]int
	for cut, done := 0, false; !done && !t.Failed(); cut++ {
		p := h.instance(fmt.Sprint("cut", cut))
		left := cut
		p.left = &left
		host := h.old
		got, err := h.run(p, Passwd, h.changed, func(r *records.Record) error {
			if err := p.step(); err != nil {
				return err
			}
			host = r
			return p.step()
		}, newPassword, oldPassword)
		done = err == nil && left >= 0
		p.left = nil
		if done && got == nil {
			t.Fatal("no record")
		}
		opened := ""
		for i, pw := range []string{oldPassword, newPassword} {
			r, err := h.run(p, Inspect, host, nil, pw)
			if err != nil {
				if !fault.Is(err, fault.BadPassword) {
					t.Errorf("cut after %d steps, %s: %v", cut, pw, err)
				}
				continue
			}
			opened += pw
			counts[i]++
			if !accepts(t, r, pw) {
				t.Errorf("cut after %d steps: %s opens the home, but not its record", cut, pw)
			}
			if v, err := h.keys.Verify(r); err != nil || v != records.SignedByUs {
				t.Errorf("cut after %d steps: record is %v, %v", cut, v, err)
			}
		}
		switch {
		case opened == "":
			t.Errorf("cut after %d steps: the home is lost", cut)
		case host != h.old && opened != newPassword:
			t.Errorf("cut after %d steps: the host has the new record, and %q opens", cut, opened)
		}
	}
	if counts[0] < 5 || counts[1] < 5 {
		t.Errorf("the old password was good %d times, the new one %d times", counts[0], counts[1])
	}
}

// TestHeaderOverrulesOnlyByRight: a header's record that accepts a password
// which the host's rejects is taken only if it is newer and signed.
func TestHeaderOverrulesOnlyByRight(t *testing.T) {
	h := newHouse(t)
	unsigned, err := records.Parse(h.changed.WithoutSignature().Compact(), records.EmbeddedFile)
	if err != nil {
		t.Fatal(err)
	}
	forger := newHouse(t)
	for name, c := range map[string]struct {
		header *records.Record
		host   uint64
		want   fault.Kind
	}{
		"newer and ours": {h.changed, 1, ""},
		"as old":         {h.changed, 2, fault.BadPassword},
		"older":          {h.changed, 3, fault.BadPassword},
		"unsigned":       {unsigned, 1, fault.BadPassword},
		"others signed":  {forger.changed, 1, fault.BadPassword},
	} {
		p := h.instance(name)
		header, err := luks2.Read(p, containerSize)
		if err != nil {
			t.Fatal(err)
		}
		key, _, err := header.Unlock(p, secrets(t, oldPassword).Passwords)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := header.AddKeyslot(p, key, secrets(t, newPassword).Passwords[0], luks2.PBKDF{Type: "pbkdf2", ForceIterations: 1000}); err != nil {
			t.Fatal(err)
		}
		if err := header.SetHomedToken(p, key, c.header.Embedded().Compact()); err != nil {
			t.Fatal(err)
		}
		key.Close()
		if _, err := h.run(p, Inspect, h.record(c.host, oldPassword), nil, newPassword); fault.KindOf(err) != c.want {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestUpdate(t *testing.T) {
	h := newHouse(t)
	p := h.instance("home-1")
	named := func(at uint64) *records.Record {
		r, err := h.old.WithoutSignature().Edit().Set("lastChangeUSec", at).Set("realName", "Ann").Record()
		if err != nil {
			t.Fatal(err)
		}
		return h.sign(r)
	}
	if _, err := h.run(p, Update, named(2), nil, "wrong"); !fault.Is(err, fault.BadPassword) {
		t.Errorf("a wrong password: %v", err)
	}
	got, err := h.run(p, Update, named(2), nil, oldPassword)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(p.dir, identityName))
	if err != nil || !bytes.Contains(text, []byte(`"Ann"`)) {
		t.Errorf("the home's record is %s, %v", text, err)
	}
	if _, bound := got.Binding(testMachine); !bound {
		t.Error("the record has no binding")
	}
	if _, err := h.run(p, Update, named(2), nil, oldPassword); !fault.Is(err, fault.StaleRecord) {
		t.Errorf("the same again: %v", err)
	}
}
