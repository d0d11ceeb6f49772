package manager_test

import (
	"context"
	"crypto/rand"
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

func (d *daemon) record(name string) *records.Record {
	d.t.Helper()
	i, err := d.Lookup(d.t.Context(), manager.Key{Name: name})
	if err != nil {
		d.t.Fatal(err)
	}
	return i.Record()
}

func (d *daemon) change(name, fresh, old string) error {
	d.t.Helper()
	_, err := d.Do(d.t.Context(), manager.Operation{Verb: home.ChangePassword, Key: manager.Key{Name: name},
		Secrets: d.secrets(fresh), OldSecrets: d.secrets(old)})
	return err
}

func (d *daemon) update(r *records.Record, flags uint64) error {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 20*time.Second)
	defer cancel()
	_, err := d.Do(ctx, manager.Operation{Verb: home.Update, Key: manager.Key{Name: r.UserName()}, Record: r,
		Secrets: d.secrets(password), Flags: flags})
	return err
}

func kind(t *testing.T, what string, err error, want fault.Kind) {
	t.Helper()
	if fault.KindOf(err) != want {
		t.Errorf("%s: %v, want %q", what, err, want)
	}
}

func TestChangePassword(t *testing.T) {
	d := boot(t, t.TempDir())
	r := newRecord(t, "ann").Edit().Set("passwordChangeNow", true).SetPrivileged("hashedPassword", []string{"$y$old"})
	before, err := r.Record()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.create(before); err != nil {
		t.Fatal(err)
	}
	kind(t, "with a wrong old password", d.change("ann", "another one", "wrong"), fault.BadPassword)
	if v := d.record("ann").View(records.Machine{ID: machineID}); v.HashedPasswords[0] != "$y$old" || !v.PasswordChangeNow {
		t.Errorf("a refused change changed the record: %v", v.HashedPasswords)
	}
	kind(t, "with a weak new password", d.change("ann", "short", password), fault.LowPasswordQuality)
	if err := d.change("ann", "another one", password); err != nil {
		t.Fatal(err)
	}
	check := func(d *daemon) {
		t.Helper()
		after := d.record("ann")
		v := after.View(records.Machine{ID: machineID})
		if len(v.HashedPasswords) != 1 || v.PasswordChangeNow || v.LastChangeUSec == nil || v.LastPasswordChangeUSec == nil || *v.LastChangeUSec != *v.LastPasswordChangeUSec {
			t.Fatalf("the record became %s", after.Pretty())
		}
		p := d.secrets("another one")
		s, err := records.ParseSecrets(p)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := records.RefusedBy(after, s, nil); err != nil {
			t.Errorf("the record does not take the new password: %v", err)
		}
		if c := after.Counters(machineID); c.Good == 0 || c.Bad == 0 {
			t.Errorf("nothing was counted: %+v", c)
		}
		d.state("ann", "inactive")
	}
	check(d)
	d.stop()
	// Signed and on disk: another daemon takes it.
	d = boot(t, d.dir)
	check(d)
	// No new password: hashes stay, the storage is brought in line.
	hash := d.record("ann").View(records.Machine{ID: machineID}).HashedPasswords[0]
	if _, err := d.Do(t.Context(), manager.Operation{Verb: home.ChangePassword, Key: manager.Key{Name: "ann"}, OldSecrets: d.secrets(password)}); err != nil {
		t.Fatal(err)
	}
	if got := d.record("ann").View(records.Machine{ID: machineID}).HashedPasswords[0]; got != hash {
		t.Error("the hash changed though no password was given")
	}
}

// keepsNoRecord has the daemon find no place any more for the record of a home.
func (d *daemon) keepsNoRecord(name string) {
	d.t.Helper()
	path := d.file("records", name+".identity")
	if err := os.Rename(path, path+".away"); err != nil {
		d.t.Fatal(err)
	}
	// No file can take the place of a directory.
	if err := os.Mkdir(path, 0o700); err != nil {
		d.t.Fatal(err)
	}
}

// TestChangePasswordThatCannotBeSaved: what was told to have failed must not
// come true later.
func TestChangePasswordThatCannotBeSaved(t *testing.T) {
	d := boot(t, t.TempDir())
	d.createHashed("ann")
	d.keepsNoRecord("ann")
	if err := d.change("ann", "another one", password); err == nil {
		t.Fatal("a change that nobody saved succeeded")
	}
	if got := d.record("ann").View(records.Machine{ID: machineID}).HashedPasswords; len(got) != 1 || got[0] != "$y$old" {
		t.Errorf("the home goes on with the passwords %v", got)
	}
	d.state("ann", "inactive")
}

func TestChangePasswordTooSoon(t *testing.T) {
	d := boot(t, t.TempDir())
	b := newRecord(t, "ann").Edit().Set("passwordChangeMinUSec", uint64(1e15)).Set("lastPasswordChangeUSec", uint64(time.Now().UnixMicro()))
	r, err := b.Record()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.create(r); err != nil {
		t.Fatal(err)
	}
	kind(t, "a young password", d.change("ann", "another one", password), fault.AccessDenied)
	d.state("ann", "inactive")
}

func TestUpdate(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	at := func(n uint64, more ...string) *records.Record {
		r, err := newRecord(t, "ann", more...).Edit().Set("lastChangeUSec", n).Record()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if err := d.update(at(20, "realName", "Ann"), 0); err != nil {
		t.Fatal(err)
	}
	if i, _ := d.Lookup(t.Context(), manager.Key{Name: "ann"}); i.RealName != "Ann" || i.Signed == nil || !*i.Signed || i.UID == 0 {
		t.Errorf("after the update: %+v", i)
	}
	kind(t, "an older record", d.update(at(10), 0), fault.RecordDowngrade)
	kind(t, "as old, different", d.update(at(20, "realName", "Eve"), 0), fault.RecordMismatch)
	kind(t, "another realm", d.update(at(30, "realm", "example.com"), 0), fault.RecordMismatch)
	kind(t, "unknown flags", d.update(at(30), 2), fault.InvalidArgs)
	kind(t, "a system account", d.update(at(30, "disposition", "system"), 0), fault.InvalidArgs)
	aliased, err := at(30).Edit().Set("aliases", []string{"annie"}).Record()
	if err != nil {
		t.Fatal(err)
	}
	kind(t, "another alias", d.update(aliased, 0), fault.RecordMismatch)

	// Without its storage only the host's record can change.
	image := d.file("home", "ann.home")
	if err := os.Rename(image, image+".away"); err != nil {
		t.Fatal(err)
	}
	kind(t, "an absent home", d.update(at(40, "realName", "Anna"), 0), fault.HomeAbsent)
	if err := d.update(at(40, "realName", "Anna"), manager.Offline); err != nil {
		t.Fatal(err)
	}
	d.stop()
	d = boot(t, d.dir)
	if i, _ := d.Lookup(t.Context(), manager.Key{Name: "ann"}); i.RealName != "Anna" || i.State != "absent" {
		t.Errorf("after the offline update: %+v", i)
	}
}

// TestUpdateThatCannotBeSaved: offline, the host's record is all there is.
func TestUpdateThatCannotBeSaved(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	d.keepsNoRecord("ann")
	r, err := newRecord(t, "ann", "realName", "Ann").Edit().Set("lastChangeUSec", uint64(20)).Record()
	if err != nil {
		t.Fatal(err)
	}
	kind(t, "an update that nobody saved", d.update(r, manager.Offline), fault.IOError)
	// Files are put in place by a worker.
	_, err = d.Do(t.Context(), manager.Operation{
		Verb: home.Update, Key: manager.Key{Name: "ann"}, Record: r, Secrets: d.secrets(password),
		Flags: manager.Offline, Blobs: map[string]*os.File{},
	})
	kind(t, "an update with files that nobody saved", err, fault.IOError)
}

// TestChangeOfForeignRecords: what others signed is not ours to change.
func TestChangeOfForeignRecords(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := os.WriteFile(d.file("home", "bob.home"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.eventually("bob", "unfixated")
	kind(t, "changing an unfixated home's password", d.change("bob", "another one", password), fault.RecordSigned)
	bob, err := newRecord(t, "bob").Edit().Set("lastChangeUSec", uint64(1)).Record()
	if err != nil {
		t.Fatal(err)
	}
	kind(t, "updating an unfixated home", d.update(bob, 0), fault.HomeUnfixated)
	d.eventually("bob", "unfixated")
}

// TestCreateChecksThePassword: weak ones are refused by the rules of the
// machine, unless the record turns that off, and leave nothing behind.
func TestCreateChecksThePassword(t *testing.T) {
	d := boot(t, t.TempDir())
	hashed := func(name, password string, more ...any) *records.Record {
		s, err := secret.Copy([]byte(password))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		hash, err := records.HashPassword(s, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		b := newRecord(t, name).Edit().SetPrivileged("hashedPassword", []string{hash})
		for i := 0; i < len(more); i += 2 {
			b = b.Set(more[i].(string), more[i+1])
		}
		r, err := b.Record()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	create := func(r *records.Record, password string) error {
		_, err := d.Do(t.Context(), manager.Operation{Verb: home.Create, Record: r, Secrets: d.secrets(password)})
		return err
	}
	weak := hashed("weak", "short")
	kind(t, "a short password", create(weak, "short"), fault.LowPasswordQuality)
	d.state("weak", "")
	if list, _ := os.ReadDir(d.dir + "/home"); len(list) != 0 {
		t.Errorf("a refused home left %v", list)
	}
	kind(t, "a short password without policy", create(hashed("weak", "short", "enforcePasswordPolicy", false), "short"), "")
	kind(t, "a good password", create(hashed("ann", password), password), "")
	if err := os.WriteFile(d.dir+"/pwquality.conf", []byte("minlen = 20\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	kind(t, "the same where the machine wants longer ones", create(hashed("bob", password), password), fault.LowPasswordQuality)
	kind(t, "a new password where the machine wants longer ones", d.change("ann", "another one", password), fault.LowPasswordQuality)
	kind(t, "a long new password", d.change("ann", "another one of twenty", password), "")
}

// TestCreateIsStrict: what counts here has to be right; what is for other
// machines is theirs. Nothing is left of a refused record.
func TestCreateIsStrict(t *testing.T) {
	d := boot(t, t.TempDir())
	for fields, want := range map[string]fault.Kind{
		`"perMachine":[{"matchMachineId":"` + machineID + `","fooBar":1}]`:                      fault.InvalidArgs,
		`"perMachine":[{"matchMachineId":"` + machineID + `","niceLevel":99}]`:                  fault.InvalidArgs,
		`"perMachine":[{"matchMachineId":"0123456789abcdef0123456789abcdee","fooBar":1}]`:       "",
		`"perMachine":[{"matchMachineId":"0123456789abcdef0123456789abcdee","niceLevel":99}]`:   "",
		`"fooBar":1,"diskSize":"12","umask":"0022","privileged":{"hashedPassword":[],"baz":{}}`: "",
	} {
		r, err := records.Parse([]byte(`{"userName":"ann","disposition":"regular","enforcePasswordPolicy":false,`+fields+`}`), records.BusCreate)
		if err != nil {
			t.Fatal(err)
		}
		kind(t, fields, d.create(r), want)
		if want != "" {
			d.state("ann", "")
		} else if _, err := d.Do(t.Context(), manager.Operation{Verb: home.Remove, Key: manager.Key{Name: "ann"}}); err != nil {
			t.Fatal(err)
		}
	}
	// Without files nothing is said of them; with files they are those that the
	// record names.
	r, err := records.Parse([]byte(`{"userName":"ann","disposition":"regular","blobManifest":{"avatar":"`+strings.Repeat("0", 64)+`"}}`), records.BusCreate)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Do(t.Context(), manager.Operation{Verb: home.Create, Record: r, Secrets: d.secrets(password), Blobs: map[string]*os.File{}})
	kind(t, "none of the files that the record names", err, fault.InvalidArgs)
	d.state("ann", "")
	kind(t, "no files", d.create(r), "")
}

// TestRemarksOnRecords: what does not count is said when a record is read.
func TestRemarksOnRecords(t *testing.T) {
	d := boot(t, t.TempDir())
	r, err := newRecord(t, "ann").Edit().Set("niceLevel", 99).Set("x-list", []records.Object{{}, {}, {}, {}}).Record()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Do(t.Context(), manager.Operation{Verb: home.Register, Record: r}); err != nil {
		t.Fatal(err)
	}
	d.stop()
	d = boot(t, d.dir)
	d.state("ann", "absent")
	for _, want := range []string{"niceLevel: 99 is not a number from -20 to 19", "list of four or more objects"} {
		if said := d.logged.String(); !strings.Contains(said, want) {
			t.Errorf("%q is not said: %s", want, said)
		}
	}
}
