package manager_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/homed/udev"
	"hearth/internal/fault"
)

// drives are block devices that a test plugs in and out.
type drives struct {
	there  []udev.Device
	events chan udev.Event
}

func (d *drives) Blocks() ([]udev.Device, error) { return d.there, nil }

func (d *drives) Events(ctx context.Context) (<-chan udev.Event, error) {
	out := make(chan udev.Event)
	go func() {
		defer close(out)
		for {
			select {
			case e := <-d.events:
				out <- e
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

const (
	annsDisk = "11111111-1111-4111-8111-111111111111"
	bobsDisk = "22222222-2222-4222-8222-222222222222"
)

func drive(name, uuid string) udev.Device {
	return udev.Device{SysPath: "/sys/devices/" + name, Properties: map[string]string{
		"ID_PART_ENTRY_SCHEME": "gpt", "ID_PART_ENTRY_TYPE": "773f91ef-66d4-49b5-bd83-d683bf40ad16",
		"ID_PART_ENTRY_NAME": name, "ID_FS_UUID": uuid,
	}}
}

// TestDevices plugs drives with homes in and out.
func TestDevices(t *testing.T) {
	dir := t.TempDir()
	links := filepath.Join(dir, "links")
	if err := os.Mkdir(links, 0o755); err != nil {
		t.Fatal(err)
	}
	plug := func(uuid string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(links, uuid), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unplug := func(uuid string) {
		t.Helper()
		if err := os.Remove(filepath.Join(links, uuid)); err != nil {
			t.Fatal(err)
		}
	}
	plug(annsDisk)
	system := &drives{there: []udev.Device{drive("ann", annsDisk)}, events: make(chan udev.Event)}
	d := bootWith(t, dir, machineID, system)
	d.state("ann", "unfixated")

	plug(bobsDisk)
	bob := drive("bob", bobsDisk)
	bob.Properties["ID_SEAT"] = "seat1"
	system.events <- udev.Event{Device: bob}
	d.eventually("bob", "unfixated")
	for d.info("bob").Seat != "seat1" {
		time.Sleep(time.Millisecond)
	}

	// Not a home, another scheme, no UUID, no user's name, an account's name.
	for name, change := range map[string]func(map[string]string){
		"carl":   func(p map[string]string) { p["ID_PART_ENTRY_TYPE"] = annsDisk },
		"dora":   func(p map[string]string) { p["ID_PART_ENTRY_SCHEME"] = "dos" },
		"eve":    func(p map[string]string) { delete(p, "ID_FS_UUID") },
		"fred":   func(p map[string]string) { p["ID_PART_ENTRY_NAME"] = "../fred" },
		"daemon": func(map[string]string) {},
	} {
		o := drive(name, "33333333-3333-4333-8333-333333333333")
		change(o.Properties)
		system.events <- udev.Event{Device: o}
	}

	unplug(bobsDisk)
	system.events <- udev.Event{Device: bob, Removed: true}
	d.eventually("bob", "")
	d.state("ann", "unfixated")
	if list, err := d.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("homes are %v, %v", list, err)
	}
}

// TestAdopt takes homes from outside of the home root.
func TestAdopt(t *testing.T) {
	dir := t.TempDir()
	d := boot(t, dir)
	elsewhere := t.TempDir()
	adopt := func(path string, want fault.Kind) {
		t.Helper()
		if err := d.Adopt(t.Context(), path); fault.KindOf(err) != want {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if err := os.Mkdir(elsewhere+"/dora@example.org.homedir", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(elsewhere+"/ann.home", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	adopt(elsewhere+"/ann.home", "")
	d.state("ann", "unfixated")
	adopt(elsewhere+"/ann.home", "")
	adopt(elsewhere+"/dora@example.org.homedir/", "")
	d.state("dora", "unfixated")
	if got := d.info("dora").Record().View(d.Machine); got.ImagePath != elsewhere+"/dora@example.org.homedir" || got.Storage != "directory" {
		t.Errorf("dora is at %s, %s", got.ImagePath, got.Storage)
	}
	adopt(elsewhere+"/none.home", fault.FileNotFound)
	adopt(elsewhere, fault.UnrecognizedFormat)
	adopt("/", fault.BadAddress)

	// A name that is taken stays whose it is.
	if err := os.Mkdir(elsewhere+"/ann.homedir", 0o700); err != nil {
		t.Fatal(err)
	}
	adopt(elsewhere+"/ann.homedir", "")
	if got := d.info("ann").Record().View(d.Machine).Storage; got != "luks" {
		t.Errorf("ann is on %s", got)
	}
	d.fails(fault.HomeUnfixated, home.Unregister, "ann")
}

func (d *daemon) info(name string) manager.Info {
	d.t.Helper()
	i, err := d.Lookup(d.t.Context(), manager.Key{Name: name})
	if err != nil {
		d.t.Error(err)
	}
	return i
}
