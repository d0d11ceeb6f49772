package luks2

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/fixture"
	"hearth/internal/secret"
)

// partitionStart is where every image that a home can be opened from has its
// partition.
const partitionStart = 1 << 20

type image struct {
	set       string
	passwords []string
	wrong     string // an old password
}

var images = []image{
	{"systemd-262-images/ext4-pbkdf2-fresh", []string{"fixture-pw-1"}, ""},
	{"systemd-262-images/btrfs-pbkdf2-used", []string{"fixture-pw-2"}, "fixture-pw-1"},
	{"systemd-262-images/ext4-argon2id-realm", []string{"fixture-pw-1"}, ""},
	{"systemd-262-images/ext4-pbkdf2-recovery", []string{"fixture-pw-1", "recovery"}, ""},
	{"systemd-262-images/ext4-4k-aes256xts", []string{"fixture-pw-1"}, ""},
	{"systemd-262-images/ext4-cbc-essiv", []string{"fixture-pw-1"}, ""},
	{"systemd-262-images/ext4-dirty", []string{"fixture-pw-1"}, ""},
	{"systemd-262-images/btrfs-default", []string{"fixture-pw-1"}, ""},
	{"systemd-257-images/ext4-argon2id-realm", []string{"fixture-pw-1"}, ""},
	{"systemd-257-images/ext4-pbkdf2-recovery", []string{"fixture-pw-1", "recovery"}, ""},
	{"systemd-257-images/ext4-rekeyed", []string{"fixture-pw-2"}, "fixture-pw-1"},
	{"systemd-257-images/ext4-two-passwords", []string{"fixture-pw-1", "fixture-pw-2"}, ""},
	{"systemd-257-images/ext4-grown", []string{"fixture-pw-1"}, ""},
	{"systemd-257-images/ext4-shrunk", []string{"fixture-pw-1"}, ""},
	{"systemd-257-images/btrfs-argon2id", []string{"fixture-pw-1"}, ""},
	{"systemd-257-images/default", []string{"fixture-pw-1"}, ""},
	{"systemd-257-images/ext4-cbc-essiv", []string{"fixture-pw-1"}, ""},
	{"systemd-257-images/ext4-unknown-fields", []string{"fixture-pw-1"}, ""},
}

// keep makes a secret that lives as long as the test.
func keep(t testing.TB, s string) *secret.Bytes {
	t.Helper()
	b, err := secret.Copy([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func reveal(t testing.TB, b *secret.Bytes) []byte {
	t.Helper()
	var out []byte
	if err := b.Use(func(p []byte) error { out = bytes.Clone(p); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// partition returns the container of a fixture image.
func partition(t testing.TB, set string) *fixture.Section {
	t.Helper()
	d := fixture.Image(t, set)
	return d.Section(partitionStart, d.Size()-2*partitionStart)
}

func mustRead(t testing.TB, d *fixture.Section) *Header {
	t.Helper()
	h, err := Read(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestFixtures opens what the real daemon wrote: the key of every password is
// the one on record, and the token holds the record on record.
func TestFixtures(t *testing.T) {
	for _, im := range images {
		t.Run(im.set, func(t *testing.T) {
			t.Parallel()
			d := partition(t, im.set)
			h := mustRead(t, d)
			if h.Damaged != Neither {
				t.Errorf("%v copy is damaged", h.Damaged)
			}
			if h.Label() != fixture.User(t, im.set) || h.Subsystem() != "systemd-home" {
				t.Errorf("label %q, subsystem %q", h.Label(), h.Subsystem())
			}
			dump := string(fixture.File(t, im.set+"/luksDump.txt"))
			for _, want := range []string{h.UUID(), fmt.Sprintf("%d", h.Seqid())} {
				if !strings.Contains(dump, want) {
					t.Errorf("%q is not in luksDump.txt", want)
				}
			}
			key := fixture.VolumeKey(t, im.set)
			for i, pw := range im.passwords {
				if pw == "recovery" {
					pw = strings.TrimSpace(string(fixture.File(t, im.set+"/recovery-key.txt")))
				}
				got, slot, err := h.Unlock(d, []*secret.Bytes{keep(t, pw)})
				if err != nil {
					t.Fatalf("password %d: %v", i, err)
				}
				defer got.Close()
				if !bytes.Equal(reveal(t, got), key) {
					t.Errorf("password %d gives another volume key", i)
				}
				if want := h.Keyslots()[i]; slot != want {
					t.Errorf("password %d opened keyslot %d, want %d", i, slot, want)
				}
			}
			wrong := im.wrong
			if wrong == "" {
				wrong = im.passwords[0] + " "
			}
			if _, _, err := h.Unlock(d, []*secret.Bytes{keep(t, wrong)}); !fault.Is(err, fault.BadPassword) {
				t.Errorf("wrong password: %v", err)
			}
			vk := keep(t, string(key))
			record, err := h.HomedToken(vk)
			if err != nil {
				t.Fatal(err)
			}
			if want := fixture.File(t, im.set+"/token-record.json"); !bytes.Equal(record, want) {
				t.Errorf("record in the token:\n%s\nwant\n%s", record, want)
			}
		})
	}
}

// TestTable compares with the tables that the real daemon was seen to load.
func TestTable(t *testing.T) {
	for _, c := range []struct {
		set     string
		discard bool
		want    string
	}{
		{"systemd-262-images/ext4-pbkdf2-fresh", false, "aes-xts-plain64 :32:logon:cryptsetup:UUID-d0 0 7:3 32768"},
		{"systemd-262-images/ext4-pbkdf2-fresh", true, "aes-xts-plain64 :32:logon:cryptsetup:UUID-d0 0 7:3 32768 1 allow_discards"},
		{"systemd-262-images/ext4-4k-aes256xts", true, "aes-xts-plain64 :64:logon:cryptsetup:UUID-d0 0 7:3 32768 2 allow_discards sector_size:4096"},
		{"systemd-262-images/ext4-cbc-essiv", false, "aes-cbc-essiv:sha256 :32:logon:cryptsetup:UUID-d0 0 7:3 32768"},
	} {
		d := partition(t, c.set)
		h := mustRead(t, d)
		n, got := h.Table(d.Size(), 7, 3, c.discard)
		if want := strings.Replace(c.want, "UUID", h.UUID(), 1); got != want {
			t.Errorf("table %q, want %q", got, want)
		}
		if want := uint64(d.Size()-16<<20) / 512; n != want {
			t.Errorf("%d sectors, want %d", n, want)
		}
		if n, _ := h.Table(1<<20, 7, 3, false); n != 0 {
			t.Errorf("device without payload: %d sectors", n)
		}
	}
}

// TestMisplaced: release 257 wrote this header beside its partition.
func TestMisplaced(t *testing.T) {
	d := partition(t, "systemd-257-images/ext4-4k-misplaced")
	if _, err := Read(d, d.Size()); !fault.Is(err, fault.NotAnImage) {
		t.Errorf("read: %v", err)
	}
}

// TestSecondary opens by the secondary alone, and Repair brings the primary
// back.
func TestSecondary(t *testing.T) {
	const set = "systemd-262-images/ext4-pbkdf2-fresh"
	d := partition(t, set)
	pw := []*secret.Bytes{keep(t, "fixture-pw-1")}
	seqid := mustRead(t, d).Seqid()
	for name, c := range map[string]struct {
		copy   Copy
		damage func()
	}{
		"primary gone":        {Primary, func() { write(t, d, make([]byte, 4096), 0) }},
		"primary checksum":    {Primary, func() { write(t, d, []byte{1, 2, 3}, offChecksum) }},
		"primary JSON":        {Primary, func() { write(t, d, []byte("XX"), 4106) }},
		"secondary gone":      {Secondary, func() { write(t, d, make([]byte, 4096), 4<<20) }},
		"secondary JSON tail": {Secondary, func() { write(t, d, []byte("X"), 8<<20-1) }},
		"primary all of it":   {Primary, func() { write(t, d, bytes.Repeat([]byte{0xA5}, 4<<20), 0) }},
	} {
		c.damage()
		h := mustRead(t, d)
		if h.Damaged != c.copy {
			t.Fatalf("%s: damaged is %v", name, h.Damaged)
		}
		key, _, err := h.Unlock(d, pw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		key.Close()
		if err := h.Repair(d); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if h := mustRead(t, d); h.Damaged != Neither || h.Seqid() != seqid {
			t.Errorf("%s: after repair damaged is %v, seqid %d", name, h.Damaged, h.Seqid())
		}
	}
	// Somebody made a file system over it.
	write(t, d, make([]byte, 4096), 0)
	write(t, d, []byte("\x53\xef"), 1080)
	if _, err := Read(d, d.Size()); !fault.Is(err, fault.NotAnImage) {
		t.Errorf("below a file system: %v", err)
	}
	write(t, d, make([]byte, 8<<20), 0)
	if _, err := Read(d, d.Size()); !fault.Is(err, fault.NotAnImage) {
		t.Errorf("without either copy: %v", err)
	}
}

func write(t testing.TB, d Device, b []byte, at int64) {
	t.Helper()
	if _, err := d.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// file puts a container into a file for a program to look at.
func file(t testing.TB, d *fixture.Section) string {
	t.Helper()
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "container")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
