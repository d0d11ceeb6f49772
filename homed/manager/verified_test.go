package manager_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/internal/secret"
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
