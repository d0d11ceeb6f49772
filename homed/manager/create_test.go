package manager_test

import (
	"crypto/rand"
	"testing"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

func hashed(t *testing.T, password string) string {
	t.Helper()
	p, err := secret.Copy([]byte(password))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	h, err := records.HashPassword(p, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestRealize makes the storage of a record that was registered before. What
// fails leaves the record.
func TestRealize(t *testing.T) {
	d := boot(t, t.TempDir())
	register := func(r *records.Record, err error) {
		t.Helper()
		if err == nil {
			_, err = d.Do(t.Context(), manager.Operation{Verb: home.Register, Record: r})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	register(newRecord(t, "ann", "storage", "luks").Edit().SetPrivileged("hashedPassword", []string{hashed(t, "short"), hashed(t, password)}).Record())
	d.state("ann", "absent")
	d.fails(fault.KeyUnavailable, home.Realize, "ann")
	d.fails(fault.LowPasswordQuality, home.Realize, "ann", "short")
	d.state("ann", "absent")
	d.must(home.Realize, "ann", password)
	d.state("ann", "inactive")
	d.fails(fault.HomeExists, home.Realize, "ann", password)
	d.fails(fault.NoSuchHome, home.Realize, "bob", password)
	if n := d.record("ann").Counters(machineID); n != (records.Counters{}) {
		t.Errorf("making a home counts as authentication: %+v", n)
	}

	register(newRecord(t, "bob", "storage", "luks", "realName", "No Space").Edit().Record())
	d.fails(fault.NoDiskSpace, home.Realize, "bob", password)
	d.state("bob", "absent")
	if !exists(d.file("records", "bob.identity")) {
		t.Error("a failed realization deleted the record")
	}

	o := newOther(t)
	if err := d.AddSigningKey(t.Context(), "other.public", o.public); err != nil {
		t.Fatal(err)
	}
	register(o.signs(newRecord(t, "cid", "storage", "luks")), nil)
	d.must(home.Realize, "cid", password)
	d.state("cid", "inactive")
}

// TestCreateWithWeakPassword: nothing of a home that is refused is left.
func TestCreateWithWeakPassword(t *testing.T) {
	d := boot(t, t.TempDir())
	weak, err := newRecord(t, "ann").Edit().SetPrivileged("hashedPassword", []string{hashed(t, "short")}).Record()
	if err != nil {
		t.Fatal(err)
	}
	create := func(r *records.Record) error {
		_, err := d.Do(t.Context(), manager.Operation{Verb: home.Create, Record: r, Secrets: d.secrets("short")})
		return err
	}
	kind(t, "creating with a weak password", create(weak), fault.LowPasswordQuality)
	d.state("ann", "")
	if weak, err = weak.Edit().Set("enforcePasswordPolicy", false).Record(); err != nil {
		t.Fatal(err)
	}
	if err := create(weak); err != nil {
		t.Error(err)
	}
}
