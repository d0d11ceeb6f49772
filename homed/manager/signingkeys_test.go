package manager_test

import (
	"crypto/rand"
	"errors"
	"os"
	"strings"
	"testing"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/records"
)

// other is somebody else's key.
type other struct {
	t      *testing.T
	signer *records.Signer
	public []byte
}

func newOther(t *testing.T) *other {
	t.Helper()
	private, public, err := records.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := records.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &other{t, s, public}
}

func (o *other) signs(r *records.Record) *records.Record {
	o.t.Helper()
	v, err := o.signer.Sign(r)
	if err != nil {
		o.t.Fatal(err)
	}
	return v.Record()
}

// TestKeysOfOthers: a key counts from the moment it is added, after a restart
// too, and what it signed is refused once it is removed.
func TestKeysOfOthers(t *testing.T) {
	dir := t.TempDir()
	d := boot(t, dir)
	o := newOther(t)
	register := func(name string) error {
		_, err := d.Do(t.Context(), manager.Operation{Verb: home.Register, Record: o.signs(newRecord(t, name))})
		return err
	}
	kind(t, "registering with an unknown key", register("ann"), fault.BadSignature)
	if err := d.AddSigningKey(t.Context(), "other.public", o.public); err != nil {
		t.Fatal(err)
	}
	if err := register("ann"); err != nil {
		t.Fatal(err)
	}
	// The home of one that is found.
	if err := os.WriteFile(d.file("home", "bob.home"), o.signs(newRecord(t, "bob")).Embedded().Compact(), 0o600); err != nil {
		t.Fatal(err)
	}
	d.eventually("bob", "unfixated")
	d.must(home.Fixate, "bob", password)
	kind(t, "changing what another signed", d.change("bob", "another one", password), fault.RecordSigned)
	d.stop()

	d = boot(t, dir)
	d.state("ann", "absent")
	d.state("bob", "inactive")
	kind(t, "adding it under another name", d.AddSigningKey(t.Context(), "again.public", o.public), fault.InvalidArgs)
	if err := d.RemoveSigningKey(t.Context(), "other.public"); err != nil {
		t.Fatal(err)
	}
	kind(t, "registering with a removed key", register("cid"), fault.BadSignature)
	kind(t, "removing it again", d.RemoveSigningKey(t.Context(), "other.public"), fault.InvalidArgs)
	d.state("ann", "absent") // who is loaded stays
	d.stop()

	d = boot(t, dir)
	d.state("ann", "")
	d.eventually("bob", "unfixated")
	if !exists(d.file("records", "ann.identity")) {
		t.Error("the record that nobody vouches for was deleted")
	}
	kind(t, "activating what nobody vouches for", second(d.do(home.Activate, "bob", password)), fault.BadSignature)
}

func second(_ manager.Result, err error) error { return err }

// TestKeysThatAreNotOursToReplace: no file is lost, and none is added that
// another would hide.
func TestKeysThatAreNotOursToReplace(t *testing.T) {
	dir := t.TempDir()
	o := newOther(t)
	for _, sub := range []string{"etc", "records"} {
		if err := os.MkdirAll(dir+"/"+sub, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{
		"/etc/hidden.public": "", "/records/broken.public": "no key", "/etc/admin.public": string(newOther(t).public),
	} {
		if err := os.WriteFile(dir+path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := boot(t, dir)
	for _, name := range []string{"hidden.public", "broken.public", "admin.public"} {
		kind(t, "adding "+name, d.AddSigningKey(t.Context(), name, o.public), fault.InvalidArgs)
	}
	kind(t, "removing the administrator's", d.RemoveSigningKey(t.Context(), "admin.public"), fault.FileNotFound)
	list, err := d.SigningKeys(t.Context())
	if err != nil || len(list) != 2 || list[1].Name != "admin.public" {
		t.Errorf("keys are %v, %v", list, err)
	}
	// Nothing is accepted that could not be kept.
	if err := errors.Join(os.Rename(dir+"/records", dir+"/aside"), os.WriteFile(dir+"/records", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	kind(t, "adding where nothing can be written", d.AddSigningKey(t.Context(), "other.public", o.public), fault.IOError)
	if list, err := d.SigningKeys(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("keys are %v, %v", list, err)
	}
	if err := errors.Join(os.Remove(dir+"/records"), os.Rename(dir+"/aside", dir+"/records")); err != nil {
		t.Fatal(err)
	}
	if err := d.AddSigningKey(t.Context(), "other.public", []byte(strings.Replace(string(o.public), "\n", "\r\n", -1))); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(dir + "/records/other.public")
	if err != nil || string(text) != string(o.public) {
		t.Errorf("stored is %q, %v", text, err)
	}
	if info, err := os.Stat(dir + "/records/other.public"); err != nil || info.Mode().Perm() != 0o444 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
}
