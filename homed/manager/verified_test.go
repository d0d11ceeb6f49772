package manager_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// TestUnvouchedCopies: a worker that meets a newer record which nobody vouches
// for opens nothing. Who only asked whether the password is right hears that it
// is, as systemd-homed says.
func TestUnvouchedCopies(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	mark := d.file("home", "ann.home.unvouched")
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := d.record("ann")
	d.fails(fault.BadSignature, home.Activate, "ann", password)
	d.fails(fault.BadPassword, home.Authenticate, "ann", "wrong")
	d.must(home.Authenticate, "ann", password)
	d.state("ann", "inactive")
	after := d.record("ann")
	if c := after.Counters(machineID); !after.SameContent(before) || c.Good != 1 || c.Bad != 1 {
		t.Errorf("%+v, %s", c, after.Compact())
	}

	d.must(home.Unregister, "ann")
	d.eventually("ann", "unfixated")
	d.fails(fault.BadSignature, home.Activate, "ann", password)
	d.fails(fault.BadSignature, home.Fixate, "ann", password)
	d.fails(fault.BadPassword, home.Authenticate, "ann", "wrong")
	d.must(home.Authenticate, "ann", password)
	d.state("ann", "unfixated")
	if exists(d.file("records", "ann.identity")) {
		t.Error("a record was saved that nobody vouches for")
	}
	i, err := d.Lookup(t.Context(), manager.Key{Name: "ann"})
	if err != nil || i.Signed != nil || len(i.Subject.View(i.Machine).HashedPasswords) != 0 {
		t.Errorf("%+v, %v", i, err)
	}
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	d.must(home.Authenticate, "ann", password)
	d.state("ann", "inactive")
}

// TestSecretsGoWithTheWorker: the daemon holds a password no longer than the
// hand-over, however long the operation takes.
func TestSecretsGoWithTheWorker(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	for verb, given := range map[home.Verb][2]*secret.Bytes{
		home.Authenticate:   {d.secrets(password), nil},
		home.ChangePassword: {d.secrets("staple battery"), d.secrets(password)},
	} {
		slow := d.file("home", "ann.home.slow")
		if err := os.WriteFile(slow, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := d.Do(t.Context(), manager.Operation{Verb: verb, Key: manager.Key{Name: "ann"}, Secrets: given[0], OldSecrets: given[1]})
			ended <- err
		}()
		deadline := time.After(10 * time.Second)
		for _, s := range given {
			for s != nil && !errors.Is(s.Use(func([]byte) error { return nil }), secret.ErrClosed) {
				select {
				case err := <-ended:
					t.Fatalf("%s ended: %v", verb, err)
				case <-deadline:
					t.Fatalf("%s: the password is still there", verb)
				case <-time.After(5 * time.Millisecond):
				}
			}
		}
		if err := os.Remove(slow); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", verb, err)
		}
	}
}

// TestNoStorageChosen: a record alone makes no home, and no more is to be seen
// of one than its directory.
func TestNoStorageChosen(t *testing.T) {
	d := boot(t, t.TempDir())
	if _, err := d.Do(t.Context(), manager.Operation{Verb: home.Register, Record: newRecord(t, "ann")}); err != nil {
		t.Fatal(err)
	}
	d.state("ann", "absent")
	d.fails(fault.HomeAbsent, home.Activate, "ann", password)
	if err := os.Mkdir(d.file("home", "ann"), 0o755); err != nil {
		t.Fatal(err)
	}
	d.state("ann", "inactive")
}

// later returns a record changed as an update would.
func later(t *testing.T, r *records.Record, name string, more ...any) *records.Record {
	t.Helper()
	b := r.Embedded().WithoutSignature().Edit().Set("realName", name).Set("lastChangeUSec", uint64(time.Now().UnixMicro()))
	for i := 0; i+1 < len(more); i += 2 {
		b = b.Set(more[i].(string), more[i+1])
	}
	next, err := b.Record()
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// blocked runs f while records cannot be saved.
func (d *daemon) blocked(f func()) {
	d.t.Helper()
	away := d.file("away")
	if err := os.Rename(d.file("records"), away); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.file("records"), nil, 0o600); err != nil {
		d.t.Fatal(err)
	}
	f()
	if err := errors.Join(os.Remove(d.file("records")), os.Rename(away, d.file("records"))); err != nil {
		d.t.Fatal(err)
	}
}

// TestUpdateVerdicts: who may sign the record that takes a record's place.
func TestUpdateVerdicts(t *testing.T) {
	d := boot(t, t.TempDir())
	o := newOther(t)
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	says := func(user, want string, ours bool) {
		t.Helper()
		i, err := d.Lookup(t.Context(), manager.Key{Name: user})
		if err != nil || i.RealName != want || i.Signed == nil || *i.Signed != ours {
			t.Errorf("%s is %q, signed by us alone: %v (%v)", user, i.RealName, *i.Signed, err)
		}
	}
	kind(t, "offline, unsigned", d.update(later(t, d.record("ann"), "One"), manager.Offline), "")
	says("ann", "One", true)
	if text, err := os.ReadFile(d.file("home", "ann.home")); err != nil || strings.Contains(string(text), "One") {
		t.Errorf("an offline update changed the home: %v", err)
	}
	kind(t, "unsigned", d.update(later(t, d.record("ann"), "Two"), 0), "")
	says("ann", "Two", true)
	if text, err := os.ReadFile(d.file("home", "ann.home")); err != nil || !strings.Contains(string(text), "Two") {
		t.Errorf("an update did not reach the home: %v", err)
	}
	// The last one counted a right password, an offline one counts nothing and keeps it.
	good := d.record("ann").Counters(machineID).Good
	kind(t, "offline again", d.update(later(t, d.record("ann"), "Two"), manager.Offline), "")
	if c := d.record("ann").Counters(machineID); good == 0 || c.Good != good {
		t.Errorf("%d right passwords became %d", good, c.Good)
	}
	kind(t, "by a key that does not count", d.update(o.signs(later(t, d.record("ann"), "Three")), manager.Offline), fault.KeyUnavailable)
	says("ann", "Two", true)
	d.blocked(func() {
		kind(t, "not saved", d.update(later(t, d.record("ann"), "Three"), manager.Offline), fault.IOError)
	})
	says("ann", "Two", true)
	liar := d.file("home", "ann.home.liar")
	if err := os.WriteFile(liar, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kind(t, "a home that answers with another record", d.update(later(t, d.record("ann"), "Three"), 0), fault.BadSignature)
	says("ann", "Two", true)

	if err := d.AddSigningKey(t.Context(), "other.public", o.public); err != nil {
		t.Fatal(err)
	}
	fixed := newRecord(t, "carl").Edit().Set("uid", uint32(60300)).Set("gid", uint32(60300))
	carl, err := fixed.Record()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Do(t.Context(), manager.Operation{Verb: home.Register, Record: o.signs(carl)}); err != nil {
		t.Fatal(err)
	}
	kind(t, "unsigned, of what another signed", d.update(later(t, d.record("carl"), "One"), manager.Offline), fault.RecordSigned)
	kind(t, "with the system's uid", d.update(o.signs(later(t, d.record("carl"), "One", "uid", uint32(5), "gid", uint32(5))), manager.Offline), fault.BadAddress)
	says("carl", "carl", false)
	kind(t, "by the other", d.update(o.signs(later(t, d.record("carl"), "One")), manager.Offline), "")
	says("carl", "One", false)
}

// TestFixateChecks: what a found home's record has to be beyond signed, and
// that it counts once it is saved.
func TestFixateChecks(t *testing.T) {
	d := boot(t, t.TempDir())
	o := newOther(t)
	if err := d.AddSigningKey(t.Context(), "other.public", o.public); err != nil {
		t.Fatal(err)
	}
	build := func(name string, uid uint32) *records.Record {
		r, err := newRecord(t, name).Edit().Set("uid", uid).Set("gid", uid).Record()
		if err != nil {
			t.Fatal(err)
		}
		return o.signs(r)
	}
	if _, err := d.Do(t.Context(), manager.Operation{Verb: home.Register, Record: build("bob", 60300)}); err != nil {
		t.Fatal(err)
	}
	image := d.file("home", "ann.home")
	put := func(r *records.Record) {
		t.Helper()
		if err := os.WriteFile(image, r.Compact(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(build("ann", 60301))
	d.eventually("ann", "unfixated")
	for uid, want := range map[string]fault.Kind{"60300": fault.UIDInUse, "5": fault.BadAddress} {
		if err := os.WriteFile(image+".uid", []byte(uid), 0o600); err != nil {
			t.Fatal(err)
		}
		d.fails(want, home.Fixate, "ann", password)
	}
	if err := os.Remove(image + ".uid"); err != nil {
		t.Fatal(err)
	}
	put(build("eve", 60301))
	d.fails(fault.OtherUser, home.Fixate, "ann", password)
	put(build("ann", 60301))
	for text, want := range map[string]fault.Kind{"": fault.IOError, "no record": fault.InvalidArgs} {
		if err := os.WriteFile(image+".says", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		d.fails(want, home.Fixate, "ann", password)
	}
	if err := os.Remove(image + ".says"); err != nil {
		t.Fatal(err)
	}
	alias := func(name string, at uint64) *records.Record {
		r, err := build("ann", 60301).WithoutSignature().Edit().Set("aliases", []string{name}).Set("lastChangeUSec", at).Record()
		if err != nil {
			t.Fatal(err)
		}
		return o.signs(r)
	}
	put(alias("bob", 1))
	d.fails(fault.UserNameExists, home.Fixate, "ann", password)
	put(build("ann", 60301))
	d.blocked(func() { d.fails(fault.IOError, home.Fixate, "ann", password) })
	d.state("ann", "unfixated")
	d.must(home.Fixate, "ann", password)
	if c := d.record("ann").Counters(machineID); c.Good == 0 {
		t.Errorf("%+v", c)
	}
	// From then on its names are settled.
	put(alias("annie", 2))
	d.must(home.Authenticate, "ann", password)
	if got := d.record("ann").Aliases(); len(got) != 0 {
		t.Errorf("ann became %q", got)
	}
}

// TestLoadChecks: records on the disk that are in order by themselves and
// cannot be homes.
func TestLoadChecks(t *testing.T) {
	dir := t.TempDir()
	d := boot(t, dir)
	o := newOther(t)
	if err := d.AddSigningKey(t.Context(), "other.public", o.public); err != nil {
		t.Fatal(err)
	}
	d.stop()
	for file, text := range map[string]string{
		"ann":  `{"userName":"ann","uid":60300,"gid":60300,"binding":{"` + machineID + `":{"storage":"luks"},"elsewhere":{"uid":60400}}}`,
		"bob":  `{"userName":"bob","uid":60300,"gid":60300}`,
		"carl": `{"userName":"dora","uid":60301,"gid":60301}`,
		"eve":  `{"userName":"eve","uid":5,"gid":5}`,
		"fred": `{"userName":"fred"}`,
	} {
		r, err := records.Parse([]byte(text), records.HostFile)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.file("records", file+".identity"), o.signs(r).Pretty(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// It cannot be read, which is no reason to delete it.
	if err := os.Mkdir(d.file("records", "gina.identity"), 0o700); err != nil {
		t.Fatal(err)
	}
	d = boot(t, dir)
	list, err := d.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "ann" {
		t.Fatalf("%+v, %v", list, err)
	}

	// What other machines bound stays when the home's own record comes in.
	if err := os.WriteFile(d.file("home", "ann.home"), list[0].Record().Embedded().Compact(), 0o600); err != nil {
		t.Fatal(err)
	}
	d.must(home.Authenticate, "ann", password)
	if b, ok := d.record("ann").Binding("elsewhere"); !ok || b.UID != 60400 {
		t.Errorf("the other machine's binding is gone: %s", d.record("ann").Compact())
	}
	d.stop()
	if err := d.LoadRecord("gina"); err == nil || !exists(d.file("records", "gina.identity")) {
		t.Errorf("what cannot be read: %v", err)
	}
}
