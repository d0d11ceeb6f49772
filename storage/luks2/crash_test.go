package luks2

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/fixture"
	"hearth/internal/secret"
	"hearth/storage/crashtest"
)

const (
	oldRecord, newRecord = `{"userName":"ann","v":1}`, `{"userName":"ann","v":2}`
	crashSeed            = 20260101
)

// rekeyed is what a password change does to a small container: disk is how it
// was before.
func rekeyed(t *testing.T) (disk *fixture.Disk, vk *secret.Bytes, log crashtest.Log) {
	t.Helper()
	disk, vk = small(t, "old", oldRecord)
	r := &crashtest.Recorder{Device: disk.Clone().Section(0, testSize)}
	h, err := Read(r, testSize)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.AddKeyslot(r, vk, keep(t, "new"), cheap); err != nil {
		t.Fatal(err)
	}
	if err := h.SetHomedToken(r, vk, []byte(newRecord)); err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveKeyslot(r, 0); err != nil {
		t.Fatal(err)
	}
	return disk, vk, r.Log
}

// lost says why the container cannot be used by the old password or the new
// one; "" if it can.
func lost(t *testing.T, d *fixture.Section, vk *secret.Bytes) string {
	t.Helper()
	h, err := Read(d, testSize)
	if err != nil {
		return err.Error()
	}
	key, _, err := h.Unlock(d, []*secret.Bytes{keep(t, "old"), keep(t, "new")})
	if err != nil {
		return err.Error()
	}
	defer key.Close()
	if !key.Equal(vk) {
		return "another volume key"
	}
	if got, err := h.HomedToken(vk); err != nil || string(got) != oldRecord && string(got) != newRecord {
		return "record " + string(got)
	}
	return ""
}

// TestCrash cuts the power after every write of a password change, with all or
// some of the unsynced sectors written: the old password or the new one opens,
// the record is the old one or the new one, and the way on is open.
func TestCrash(t *testing.T) {
	disk, vk, log := rekeyed(t)
	subsets := 6
	if testing.Short() {
		subsets = 2
	}
	n := log.States(subsets, 512, crashSeed, func(s crashtest.State) {
		d := disk.Clone().Section(0, testSize)
		if err := s.Apply(d, 0); err != nil {
			t.Fatal(err)
		}
		if why := lost(t, d, vk); why != "" {
			t.Errorf("%v: %s", s, why)
			return
		}
		if s.Random {
			return
		}
		h := mustRead(t, d)
		if _, err := h.AddKeyslot(d, vk, keep(t, "next"), cheap); err != nil {
			t.Errorf("%v: %v", s, err)
		}
		if h := mustRead(t, d); h.Damaged != Neither {
			t.Errorf("%v: %v is still damaged", s, h.Damaged)
		}
	})
	t.Logf("password change: %d writes, %d states, seed %d", log.Writes(), n, crashSeed)
	if log.Writes() < 15 || n < 100 {
		t.Errorf("only %d writes in %d states", log.Writes(), n)
	}
}

// TestCrashControl: the method notices what must not be done.
func TestCrashControl(t *testing.T) {
	disk, vk, log := rekeyed(t)
	caught := func(log crashtest.Log) (n int) {
		log.States(2, 512, crashSeed, func(s crashtest.State) {
			d := disk.Clone().Section(0, testSize)
			if err := s.Apply(d, 0); err != nil {
				t.Fatal(err)
			}
			if lost(t, d, vk) != "" {
				n++
			}
		})
		return n
	}
	flushes := func(s crashtest.Step) bool { return s.Flush }
	if caught(slices.DeleteFunc(slices.Clone(log), flushes)) == 0 {
		t.Error("without a single flush no container was lost")
	}
	// The new keyslot is written first, with a flush of its own. Now the old
	// one is destroyed before.
	first := slices.IndexFunc(log, flushes) + 1
	if caught(slices.Concat(log[first:], log[:first])) == 0 {
		t.Error("with the new keyslot written last no container was lost")
	}
}

// TestCrashFormat: a container that was not finished is none, or this one.
func TestCrashFormat(t *testing.T) {
	vk := keep(t, strings.Repeat("k", 32))
	r := &crashtest.Recorder{Device: newDevice()}
	if _, err := Format(r, Params{UUID: testUUID, PBKDF: cheap}, vk); err != nil {
		t.Fatal(err)
	}
	r.Log.States(1, 4096, crashSeed, func(s crashtest.State) {
		d := newDevice()
		if err := s.Apply(d, 0); err != nil {
			t.Fatal(err)
		}
		h, err := Read(d, testSize)
		switch {
		case err == nil:
			if err := h.CheckKey(vk); err != nil {
				t.Errorf("%v: %v", s, err)
			}
		case s.Cut == len(r.Log) || !fault.Is(err, fault.NotAnImage) && !fault.Is(err, fault.Inconsistent):
			t.Errorf("%v: %v", s, err)
		}
	})
}

// faulty is a device on which one write or one sync fails; what it wrote by
// then is there by half.
type faulty struct {
	Device
	left int
}

var errDevice = errors.New("no such luck")

func (f *faulty) WriteAt(b []byte, at int64) (int, error) {
	if f.left--; f.left == -1 {
		n, _ := f.Device.WriteAt(b[:len(b)/2], at)
		return n, errDevice
	}
	return f.Device.WriteAt(b, at)
}

func (f *faulty) Sync() error {
	if f.left--; f.left == -1 {
		return errDevice
	}
	return f.Device.Sync()
}

// TestFailedWrite: after a write that failed the header can be written again,
// and says what the device holds.
func TestFailedWrite(t *testing.T) {
	disk, vk := small(t, "old", oldRecord)
	failed := 0
	for at, done := 0, false; !done; at++ {
		d := &faulty{disk.Clone().Section(0, testSize), at}
		h, err := Read(d, testSize)
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.AddKeyslot(d, vk, keep(t, "new"), cheap)
		if done = err == nil; !done {
			failed++
			if !errors.Is(err, errDevice) {
				t.Errorf("failure %d: %v", at, err)
			}
		}
		d.left = 1 << 30
		if err := h.SetHomedToken(d, vk, []byte(newRecord)); err != nil {
			t.Errorf("failure %d: the next write: %v", at, err)
			continue
		}
		again, err := Read(d, testSize)
		if err != nil || again.Damaged != Neither || !slices.Equal(again.Keyslots(), h.Keyslots()) {
			t.Errorf("failure %d: %v, damaged %v, keyslots %v and %v", at, err, again.Damaged, again.Keyslots(), h.Keyslots())
			continue
		}
		for _, n := range again.Keyslots() {
			key, got, err := again.Unlock(d, []*secret.Bytes{keep(t, []string{"old", "new"}[n])})
			if err != nil || got != n {
				t.Errorf("failure %d: keyslot %d is listed and does not open: %v", at, n, err)
			}
			key.Close()
		}
	}
	if failed < 8 {
		t.Errorf("only %d failures", failed)
	}
}
