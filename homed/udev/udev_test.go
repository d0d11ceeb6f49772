package udev

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// message is what udevd sends.
func message(properties string) []byte {
	b := make([]byte, headerSize, headerSize+len(properties))
	copy(b, "libudev")
	binary.BigEndian.PutUint32(b[8:], magic)
	binary.NativeEndian.PutUint32(b[12:], headerSize)
	binary.NativeEndian.PutUint32(b[16:], headerSize)
	binary.NativeEndian.PutUint32(b[20:], uint32(len(properties)))
	return append(b, properties...)
}

const plugged = "ACTION=add\x00DEVPATH=/devices/virtual/block/loop20/loop20p1\x00SUBSYSTEM=block\x00" +
	"ID_PART_ENTRY_NAME=ann\x00ID_FS_UUID=8a0f\x00"

func TestParse(t *testing.T) {
	e, err := parse(message(plugged))
	if err != nil || e.Removed || e.SysPath != "/devices/virtual/block/loop20/loop20p1" || e.Properties["ID_FS_UUID"] != "8a0f" {
		t.Errorf("%+v, %v", e, err)
	}
	e, err = parse(message("ACTION=remove\x00DEVPATH=/devices/x\x00SUBSYSTEM=block\x00"))
	if err != nil || !e.Removed {
		t.Errorf("%+v, %v", e, err)
	}
	short := message(plugged)
	binary.NativeEndian.PutUint32(short[20:], uint32(len(plugged)+1))
	far := message(plugged)
	binary.NativeEndian.PutUint32(far[16:], 1<<32-1)
	for name, b := range map[string][]byte{
		"kernel's": []byte("add@/devices/x\x00SUBSYSTEM=block\x00"), "empty": nil, "cut": message(plugged)[:headerSize-1],
		"too long": short, "beyond": far, "no path": message("SUBSYSTEM=block\x00"), "net": message("SUBSYSTEM=net\x00DEVPATH=/devices/x\x00"),
	} {
		if e, err := parse(b); err == nil {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(message(plugged))
	f.Add(message(""))
	f.Add([]byte("add@/devices/x\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := parse(b); err == nil && (e.SysPath == "" || e.Properties == nil) {
			t.Errorf("%+v", e)
		}
	})
}

func TestBlocks(t *testing.T) {
	dir := t.TempDir()
	put := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("sys/devices/sda/dev", "8:0\n")
	put("sys/devices/sda/sda1/dev", "8:1\n")
	put("sys/devices/sdb/dev", "8:16\n") // udev did not look at it yet
	put("run/data/b8:0", "I:1\nE:ID_PART_TABLE_TYPE=gpt\n")
	put("run/data/b8:1", "S:disk/by-uuid/8a0f\nI:1\nE:ID_FS_UUID=8a0f\nE:ID_X=a=b\nE:none\nQ:seat\n")
	if err := os.MkdirAll(filepath.Join(dir, "sys/class/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"sda": "sda", "sda1": "sda/sda1", "sdb": "sdb", "gone": "gone"} {
		if err := os.Symlink("../../devices/"+to, filepath.Join(dir, "sys/class/block", name)); err != nil {
			t.Fatal(err)
		}
	}
	s := System{Sys: filepath.Join(dir, "sys"), Run: filepath.Join(dir, "run")}
	list, err := s.Blocks()
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, d := range list {
		switch d.SysPath {
		case filepath.Join(dir, "sys/devices/sda"):
		case filepath.Join(dir, "sys/devices/sda/sda1"):
			if len(d.Properties) != 2 || d.Properties["ID_FS_UUID"] != "8a0f" || d.Properties["ID_X"] != "a=b" {
				t.Errorf("%v", d.Properties)
			}
		default:
			t.Errorf("%+v", d)
		}
	}
	if list, err := (System{Sys: filepath.Join(dir, "none")}).Blocks(); err != nil || list != nil {
		t.Errorf("without sysfs: %v, %v", list, err)
	}
}

// TestEvents listens where nothing may happen.
func TestEvents(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := System{}.Events(ctx)
	if err != nil {
		t.Skip(err)
	}
	cancel()
	end := time.After(10 * time.Second)
	for {
		select {
		case _, ok := <-events:
			if !ok {
				return
			}
		case <-end:
			t.Fatal("listening does not end")
		}
	}
}
