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
	"hearth/internal/testenv"
	"hearth/records"
)

// asked holds what was asked of the service manager against want.
func (d *daemon) asked(want string) {
	d.t.Helper()
	if got := d.freezer.since(); got != want {
		d.t.Errorf("the service manager was asked to %q, want %q", got, want)
	}
}

func (d *daemon) mark(name string) {
	d.t.Helper()
	if err := os.WriteFile(d.file("home", name), nil, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func TestLockUnlock(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	d.fails(fault.HomeNotActive, home.Lock, "ann")
	d.fails(fault.HomeNotLocked, home.Unlock, "ann", password)
	d.must(home.Activate, "ann", password)
	d.asked("")

	d.must(home.Lock, "ann")
	d.state("ann", "locked")
	d.asked("freeze")
	if lockable(t, d.file("home", "ann.home")) {
		t.Error("the image of a locked home is not kept")
	}
	if i, err := d.Lookup(t.Context(), manager.Key{Name: "ann"}); err != nil || !strings.Contains(string(i.Record().Compact()), `"useFallback":true`) {
		t.Errorf("a locked home shows as usable: %v\n%s", err, i.Record().Compact())
	}
	_, err := d.do(home.Lock, "ann")
	if fault.Public(err) != "Home ann is already locked." || !fault.Is(err, fault.HomeLocked) {
		t.Errorf("a second lock: %v", err)
	}
	for _, v := range []home.Verb{home.Activate, home.Deactivate, home.Authenticate, home.Ref, home.Release, home.Remove, home.Unregister} {
		d.fails(fault.HomeLocked, v, "ann", password)
	}
	d.must(home.DeactivateAll, "")
	d.must(home.LockAll, "")
	d.fails(fault.BadPassword, home.Unlock, "ann", "wrong")
	d.state("ann", "locked")
	d.asked("")

	d.must(home.Unlock, "ann", password)
	d.state("ann", "active")
	d.asked("thaw")
	i, err := d.Lookup(t.Context(), manager.Key{Name: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	// Each unlock counts, also the one that found nothing locked.
	if c := i.Record().Counters(machineID); c.Good != 2 || c.Bad != 1 || c.RateCount != 4 {
		t.Errorf("counters %+v", c)
	}
	d.must(home.Deactivate, "ann")
}

func TestUnlockCountsBeforeItLooksAtTheState(t *testing.T) {
	d := boot(t, t.TempDir())
	r, err := records.NewBuilder("ann").Set("rateLimitBurst", uint64(1)).Record()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.create(r); err != nil {
		t.Fatal(err)
	}
	d.fails(fault.HomeNotLocked, home.Unlock, "ann", password)
	d.fails(fault.AuthenticationLimit, home.Unlock, "ann", password)
}

// TestAcquireUnlocks is the lock screen after the machine slept.
func TestAcquireUnlocks(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	for _, n := range []string{"ann", "bob", "carl"} {
		if err := d.create(newRecord(t, n)); err != nil {
			t.Fatal(err)
		}
	}
	acquire := func(name string, suspend bool) manager.Result {
		t.Helper()
		r, err := d.Do(t.Context(), manager.Operation{Verb: home.Acquire, Key: manager.Key{Name: name}, Secrets: d.secrets(password), PleaseSuspend: suspend})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	ann, bob := acquire("ann", true), acquire("bob", false)
	d.must(home.Activate, "carl", password)
	d.must(home.LockAll, "")
	d.state("ann", "locked")
	d.state("bob", "active")
	d.state("carl", "active")
	d.asked("freeze")
	again := acquire("ann", true)
	d.state("ann", "active")
	d.asked("thaw")

	// Who leaves a locked home leaves it locked; it closes once it can.
	d.must(home.LockAll, "")
	d.asked("freeze")
	_, _ = ann.Reference.Close(), again.Reference.Close()
	time.Sleep(300 * time.Millisecond)
	d.state("ann", "locked")
	d.fails(fault.HomeLocked, home.Release, "ann")
	d.must(home.Unlock, "ann", password)
	d.eventually("ann", "inactive")
	d.asked("thaw")
	// Nor does a lock make it forget who left just before.
	ann = acquire("ann", true)
	d.must(home.LockAll, "")
	d.asked("freeze")
	_ = ann.Reference.Close()
	d.fails(fault.HomeLocked, home.Release, "ann")
	d.must(home.Unlock, "ann", password)
	d.eventually("ann", "inactive")
	_ = bob.Reference.Close()
	d.must(home.DeactivateAll, "")
}

// TestLockAllTwice: systemd-sleep asks for it and, on a machine where the login
// manager is followed too, so do we. That is the same as one of them.
func TestLockAllTwice(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	r, err := d.Do(t.Context(), manager.Operation{Verb: home.Acquire, Key: manager.Key{Name: "ann"}, Secrets: d.secrets(password), PleaseSuspend: true})
	if err != nil {
		t.Fatal(err)
	}
	both := make(chan error, 2)
	for range cap(both) {
		go func() {
			_, err := d.Do(t.Context(), manager.Operation{Verb: home.LockAll})
			both <- err
		}()
	}
	for range cap(both) {
		if err := <-both; err != nil {
			t.Error(err)
		}
	}
	d.state("ann", "locked")
	d.asked("freeze")
	d.must(home.Unlock, "ann", password)
	d.asked("thaw")
	_ = r.Reference.Close()
	d.must(home.DeactivateAll, "")
}

func TestLockThatFails(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	d.must(home.Activate, "ann", password)
	d.mark("ann.home.stuck")
	d.fails(fault.IOError, home.Lock, "ann")
	d.state("ann", "active")
	d.asked("freeze, thaw")
	if err := os.Remove(d.file("home", "ann.home.stuck")); err != nil {
		t.Fatal(err)
	}

	// Killed when the home was suspended already: what counts is what it is.
	d.mark("ann.home.kill")
	d.fails(fault.WorkerFailed, home.Lock, "ann")
	d.state("ann", "locked")
	d.asked("freeze")
	d.must(home.Unlock, "ann", password)
	d.asked("thaw")
	if err := os.Remove(d.file("home", "ann.home.kill")); err != nil {
		t.Fatal(err)
	}

	// Without the service manager the home is locked all the same.
	d.freezer.wrong = errors.New("no service manager")
	d.must(home.Lock, "ann")
	d.must(home.Unlock, "ann", password)
	d.state("ann", "active")
	d.must(home.Deactivate, "ann")
}

func TestStorageThatCannotBeLocked(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	if err := d.create(newRecord(t, "ann", "realName", "Cannot Lock")); err != nil {
		t.Fatal(err)
	}
	r, err := d.Do(t.Context(), manager.Operation{Verb: home.Acquire, Key: manager.Key{Name: "ann"}, Secrets: d.secrets(password), PleaseSuspend: true})
	if err != nil {
		t.Fatal(err)
	}
	d.fails(fault.NotSupported, home.Lock, "ann")
	d.must(home.LockAll, "") // a machine may sleep with it
	d.state("ann", "active")
	_ = r.Reference.Close()
	d.must(home.Release, "ann")
}

func TestRestartWhileLocked(t *testing.T) {
	testenv.Need(t, "root")
	dir := testenv.Scratch(t)
	d := boot(t, dir)
	for _, n := range []string{"ann", "bob"} {
		if err := d.create(newRecord(t, n)); err != nil {
			t.Fatal(err)
		}
	}
	d.must(home.Activate, "ann", password)
	bob := d.must(home.Acquire, "bob", password).Reference
	d.must(home.Lock, "ann")
	d.must(home.Lock, "bob")
	d.stop()
	_ = bob.Close()
	d = boot(t, dir)
	d.state("ann", "locked")
	d.state("bob", "locked")
	d.asked("")
	d.fails(fault.HomeLocked, home.Deactivate, "ann")
	d.must(home.Unlock, "ann", password)
	d.state("ann", "active")
	d.asked("thaw")
	d.must(home.Deactivate, "ann")
	// Nobody refers to it since before the restart.
	d.must(home.Unlock, "bob", password)
	d.eventually("bob", "inactive")
}
