package manager_test

import (
	"bytes"
	"math"
	"os"
	"testing"
	"time"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/internal/testenv"
	"hearth/records"
)

func (d *daemon) resize(name string, size uint64, pw string) error {
	d.t.Helper()
	_, err := d.Do(d.t.Context(), manager.Operation{Verb: home.Resize, Key: manager.Key{Name: name}, Size: size, Secrets: d.secrets(pw)})
	return err
}

// TestResize: which sizes change the record, and which are asked for in vain.
func TestResize(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	view := func() records.View { return d.savedView("ann") }
	kind(t, "to the size on record while rebalancing decides", d.resize("ann", math.MaxUint64, password), fault.InvalidArgs)
	kind(t, "with a wrong password", d.resize("ann", 1<<30, "wrong"), fault.BadPassword)
	if v := view(); v.DiskSize != nil || v.RebalanceWeight != 100 {
		t.Errorf("a refused resize changed the record: %v, %v", v.DiskSize, v.RebalanceWeight)
	}
	if err := d.resize("ann", 1<<30, password); err != nil {
		t.Fatal(err)
	}
	v := view()
	if v.DiskSize == nil || *v.DiskSize != 1<<30 || v.RebalanceWeight != 0 || v.LastChangeUSec == nil {
		t.Errorf("after a resize: %v, %v, %v", v.DiskSize, v.RebalanceWeight, v.LastChangeUSec)
	}
	// The size it has, said or not, changes no record.
	for _, size := range []uint64{1 << 30, math.MaxUint64} {
		if err := d.resize("ann", size, password); err != nil {
			t.Error(err)
		}
	}
	if now := view(); *now.LastChangeUSec != *v.LastChangeUSec {
		t.Error("a resize to the size on record changed the record")
	}

	none, err := newRecord(t, "bob").Edit().Set("rebalanceWeight", uint64(0)).Record()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.create(none); err != nil {
		t.Fatal(err)
	}
	kind(t, "to a size on record that is none", d.resize("bob", math.MaxUint64, password), fault.InvalidArgs)

	if err := os.WriteFile(d.file("home", "eve.home"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.eventually("eve", "unfixated")
	kind(t, "an unfixated home", d.resize("eve", 1<<30, password), fault.HomeUnfixated)
}

// TestResizeToTheSizeThatIsThere counts no login, as with systemd-homed.
func TestResizeToTheSizeThatIsThere(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	const size = 6 << 20
	counted := d.record("ann").Counters(machineID).Good
	for _, c := range []struct {
		image  int
		counts uint64
	}{{size - 1<<20, 1}, {size, 0}, {size + 1, 1}} {
		// What these workers keep in an image is JSON.
		text, err := os.ReadFile(d.file("home", "ann.home"))
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.TrimSpace(text)
		text = append(text, bytes.Repeat([]byte{' '}, c.image-len(text))...)
		if err := os.WriteFile(d.file("home", "ann.home"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.resize("ann", size, password); err != nil {
			t.Error(err)
		}
		now := d.record("ann").Counters(machineID).Good
		if now != counted+c.counts {
			t.Errorf("an image of %d bytes: %d logins counted, want %d", c.image, now-counted, c.counts)
		}
		counted = now
	}
}

// TestRebalance: all open homes of ours take part that have a weight, and keep
// it; nobody is asked for a password, and no login counted.
func TestRebalance(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, t.TempDir())
	d.fails(fault.RebalanceNotNeeded, home.Rebalance, "")
	saved := d.savedView
	for _, name := range []string{"ann", "bob", "carl", "eve"} {
		b := newRecord(t, name, "fileSystemType", "btrfs").Edit()
		switch name {
		case "bob":
			b.Set("rebalanceWeight", uint64(0))
		case "carl":
			b.Set("rebalanceWeight", uint64(10))
		}
		r, err := b.Record()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.create(r); err != nil {
			t.Fatal(err)
		}
	}
	d.fails(fault.RebalanceNotNeeded, home.Rebalance, "") // none is open
	d.must(home.Activate, "ann", password)
	d.must(home.Activate, "bob", password)
	counted := d.record("ann").Counters(machineID)
	d.must(home.Rebalance, "")
	d.state("ann", "active")
	if v := saved("ann"); v.DiskSize == nil || *v.DiskSize < 256<<20 || v.HasRebalanceWeight || v.RebalanceWeight != 100 {
		t.Errorf("ann has size %v and weight %d", v.DiskSize, v.RebalanceWeight)
	}
	if now := d.record("ann").Counters(machineID); now != counted {
		t.Errorf("counted: %+v, was %+v", now, counted)
	}
	for _, name := range []string{"bob", "eve"} {
		if v := saved(name); v.DiskSize != nil {
			t.Errorf("%s was resized to %d", name, *v.DiskSize)
		}
	}
	// By itself only where the record asks for it.
	d.must(home.Activate, "eve", password)
	d.must(home.Activate, "carl", password)
	for end := time.Now().Add(20 * time.Second); saved("carl").DiskSize == nil && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
	}
	if v := saved("carl"); v.DiskSize == nil || !v.HasRebalanceWeight || v.RebalanceWeight != 10 {
		t.Errorf("carl has size %v and weight %d", v.DiskSize, v.RebalanceWeight)
	}
	if v := saved("eve"); v.DiskSize != nil {
		t.Errorf("eve was resized to %d", *v.DiskSize)
	}
	d.must(home.DeactivateAll, "")
}
