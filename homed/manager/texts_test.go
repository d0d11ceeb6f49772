package manager_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/homed/manager/managertest"
	"hearth/internal/testenv"
)

// told decodes what an audience is told of a home, without the sizes of disks
// that others write on.
func told(t *testing.T, text []byte) map[string]any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var r map[string]any
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	here := r["status"].(map[string]any)[machineID].(map[string]any)
	for _, k := range []string{"diskSize", "diskUsage", "diskFree", "diskCeiling", "diskFloor"} {
		delete(here, k)
	}
	return r
}

// upToDate holds what both audiences are told against the record of the moment,
// put together anew.
func (d *daemon) upToDate(name, after string) {
	d.t.Helper()
	i := d.info(name)
	for range 2 { // the second time it may be a kept one
		for _, trusted := range []bool{true, false} {
			masked, held := i.Record().Mask(trusted)
			text, incomplete := i.Text(trusted)
			if want := told(d.t, masked.Compact()); !reflect.DeepEqual(told(d.t, text), want) || incomplete != held {
				d.t.Errorf("after %s, trusted %v: %s, %v\nwant %v, %v", after, trusted, text, incomplete, want, held)
			}
			if !trusted && (bytes.Contains(text, []byte("privileged")) || !incomplete) {
				d.t.Errorf("after %s strangers are told %s", after, text)
			}
		}
	}
}

// TestTextsOfTheMoment: no answer is that of a moment that is gone, nor another
// audience's.
func TestTextsOfTheMoment(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	for _, name := range []string{"ann", "bob"} {
		d.createHashed(name)
		d.upToDate(name, "create")
	}
	for i, v := range []home.Verb{home.Activate, home.Lock, home.Unlock, home.Deactivate, home.Authenticate} {
		d.must(v, "ann", password)
		d.upToDate("ann", fmt.Sprintf("%s, the %dth", v, i))
		d.upToDate("bob", "what happened to ann")
	}
	d.fails("BadPassword", home.Authenticate, "ann", "wrong")
	d.upToDate("ann", "a wrong password")
	next, err := d.record("ann").Edit().Set("realName", "Ann Other").Set("lastChangeUSec", uint64(1)<<52).Record()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.update(next.WithoutSignature().Embedded(), 0); err != nil {
		t.Fatal(err)
	}
	d.upToDate("ann", "update")
	if text, _ := d.info("ann").Text(false); !strings.Contains(string(text), "Ann Other") {
		t.Errorf("ann is still %s", text)
	}
	if err := d.change("bob", "another one", password); err != nil {
		t.Fatal(err)
	}
	d.upToDate("bob", "passwd")
	if err := os.Remove(d.file("home", "ann.home")); err != nil { // nobody tells us
		t.Fatal(err)
	}
	d.upToDate("ann", "the loss of its image")
	if s := d.info("ann").State; s != "absent" {
		t.Errorf("ann is %s", s)
	}
	d.stop()
	d = boot(t, d.dir)
	d.upToDate("ann", "a restart")
	d.upToDate("bob", "a restart")
	d.must(home.Remove, "bob")
	if size, really := d.Kept(); size != really || size > 8<<10 {
		t.Errorf("%d bytes are kept of one home, %d in truth", size, really)
	}
}

// TestTextsBesideChanges: who asks after a change is told of it, whoever asks
// beside it.
func TestTextsBesideChanges(t *testing.T) {
	d := boot(t, t.TempDir())
	d.createHashed("ann")
	var stop atomic.Bool
	var askers sync.WaitGroup
	for i := range 4 {
		trusted := i%2 == 0
		askers.Go(func() {
			for !stop.Load() {
				h, err := d.Lookup(t.Context(), manager.Key{Name: "ann"})
				if err != nil {
					t.Error(err)
					return
				}
				if text, _ := h.Text(trusted); bytes.Contains(text, []byte("privileged")) != trusted {
					t.Errorf("trusted %v: %s", trusted, text)
				}
			}
		})
	}
	for n := range 10 {
		name := fmt.Sprintf("Number %d", n)
		next, err := d.record("ann").Edit().Set("realName", name).Set("lastChangeUSec", uint64(1)<<52+uint64(n)).Record()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.update(next.WithoutSignature().Embedded(), 0); err != nil {
			t.Fatal(err)
		}
		for _, trusted := range []bool{true, false} {
			if text, _ := d.info("ann").Text(trusted); !bytes.Contains(text, []byte(name)) {
				t.Errorf("after %s, trusted %v: %s", name, trusted, text)
			}
		}
	}
	stop.Store(true)
	askers.Wait()
}

// TestTextsAreKept: who asks again costs no record, and what is kept has a bound.
func TestTextsAreKept(t *testing.T) {
	const n = 1500
	m, stop := managertest.Serve(t, managertest.Populate(t, t.TempDir(), n), noAccounts{})
	defer stop()
	ask := func(i int) {
		h, err := m.Lookup(t.Context(), manager.Key{Name: fmt.Sprintf("user%d", i)})
		if err != nil {
			t.Fatal(err)
		}
		if text, _ := h.Text(true); !bytes.Contains(text, fmt.Appendf(nil, `"userName":"user%d"`, i)) {
			t.Errorf("user%d is %s", i, text)
		}
	}
	for range 3 {
		for i := range 100 {
			ask(i)
		}
	}
	if made := m.Made(); made != 100 {
		t.Errorf("%d answers made of 100 homes that do not change", made)
	}
	for i := range n {
		ask(i)
	}
	size, really := m.Kept()
	if size != really || size > manager.MaxTexts || size < manager.MaxTexts/2 {
		t.Errorf("%d bytes are kept, %d in truth, of at most %d", size, really, manager.MaxTexts)
	}
}
