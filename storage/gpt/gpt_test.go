package gpt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/fixture"
	"hearth/internal/testenv"
	"hearth/storage/crashtest"
)

var sets = []struct {
	set        string
	sectorSize int
}{
	{"systemd-262-images/ext4-pbkdf2-fresh", 512},
	{"systemd-262-images/btrfs-pbkdf2-used", 512},
	{"systemd-262-images/ext4-argon2id-realm", 512},
	{"systemd-262-images/ext4-4k-aes256xts", 4096},
	{"systemd-257-images/ext4-grown", 512},
	{"systemd-257-images/ext4-shrunk", 512},
	{"systemd-257-images/btrfs-argon2id", 512},
	{"systemd-257-images/ext4-argon2id-realm", 512},
	{"systemd-257-images/ext4-4k-misplaced", 4096},
}

// TestFixtures finds the partition of images by the real daemon, and writes
// each table again: byte for byte the same.
func TestFixtures(t *testing.T) {
	for _, c := range sets {
		t.Run(c.set, func(t *testing.T) {
			t.Parallel()
			d := fixture.Image(t, c.set)
			user := fixture.User(t, c.set)
			p, err := Find(d, d.Size(), user, "")
			if err != nil {
				t.Fatal(err)
			}
			want, err := Layout(d.Size(), c.sectorSize)
			if err != nil {
				t.Fatal(err)
			}
			want.Name, want.UUID = user, p.UUID
			if strings.HasPrefix(c.set, "systemd-257") {
				// That release left one MiB more at the end.
				want.Size -= 1 << 20
			}
			if p != want {
				t.Fatalf("found %+v, want %+v", p, want)
			}
			if record := string(fixture.File(t, c.set+"/host.identity")); !strings.Contains(record, p.UUID) {
				t.Errorf("partition UUID %s is not in the record", p.UUID)
			}
			if _, err := Find(d, d.Size(), user, strings.ToUpper(p.UUID)); err != nil {
				t.Errorf("by UUID: %v", err)
			}
			for name, uuid := range map[string]string{user + "x": "", user: "00000000-0000-4000-8000-000000000000"} {
				if _, err := Find(d, d.Size(), name, uuid); !fault.Is(err, fault.NotAnImage) {
					t.Errorf("name %q, UUID %q: %v", name, uuid, err)
				}
			}

			again := fixture.NewDisk(d.Size())
			disk := make([]byte, 16)
			read(t, d, disk, int64(c.sectorSize)+56)
			if err := Write(again, d.Size(), c.sectorSize, p, formatGUID(disk)); err != nil {
				t.Fatal(err)
			}
			for _, at := range []int64{0, d.Size() - 1<<20} {
				a, b := make([]byte, 128<<10), make([]byte, 128<<10)
				if at != 0 {
					a, b = make([]byte, 1<<20), make([]byte, 1<<20)
				}
				read(t, d, a, at)
				read(t, again, b, at)
				if i := firstDifference(a, b); i >= 0 {
					t.Errorf("byte %d is %#x, the real daemon wrote %#x", at+int64(i), b[i], a[i])
				}
			}

			// The backup alone does.
			if _, err := d.WriteAt(make([]byte, 3*c.sectorSize), int64(c.sectorSize)); err != nil {
				t.Fatal(err)
			}
			if got, err := Find(d, d.Size(), user, p.UUID); err != nil || got != p {
				t.Errorf("by the backup: %+v, %v", got, err)
			}
		})
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func read(t *testing.T, d *fixture.Disk, b []byte, at int64) {
	t.Helper()
	if _, err := d.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
}

const (
	testUUID = "b25166c9-897b-4511-94e5-f3e5fb78ff11"
	testDisk = "804a1bba-309e-4a86-a247-4f2fec83ce69"
)

func newImage(t *testing.T, size int64, sectorSize int, name string) (*fixture.Disk, Partition) {
	t.Helper()
	p, err := Layout(size, sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	p.Name, p.UUID = name, testUUID
	d := fixture.NewDisk(size)
	if err := Write(d, size, sectorSize, p, testDisk); err != nil {
		t.Fatal(err)
	}
	return d, p
}

// TestSfdisk: a foreign reader finds nothing to complain about.
func TestSfdisk(t *testing.T) {
	testenv.Need(t, "sfdisk", "fdisk")
	for _, c := range []struct {
		size       int64
		sectorSize int
	}{{50 << 20, 512}, {50<<20 + 12345*512, 512}, {300 << 20, 4096}, {5<<20 + 4096, 4096}} {
		d, p := newImage(t, c.size, c.sectorSize, "änn@example.com")
		path := filepath.Join(t.TempDir(), "image")
		if err := d.WriteFile(path); err != nil {
			t.Fatal(err)
		}
		start, size := p.Offset/int64(c.sectorSize), p.Size/int64(c.sectorSize)
		if c.sectorSize == 512 {
			if out := run(t, "sfdisk", "--verify", path); !strings.Contains(out, "No errors detected") || strings.Contains(out, "warning") {
				t.Errorf("sfdisk --verify: %s", out)
			}
			out := run(t, "sfdisk", "--dump", path)
			for _, want := range []string{"label: gpt", strings.ToUpper(testDisk), "start= " + fmt.Sprintf("%11d", start), fmt.Sprintf("size= %11d", size), HomeType, strings.ToUpper(testUUID), `name="\xc3\xa4nn@example.com"`} {
				if !strings.Contains(out, want) {
					t.Errorf("sfdisk --dump lacks %q:\n%s", want, out)
				}
			}
		}
		out := run(t, "fdisk", "-b", fmt.Sprint(c.sectorSize), "-o", "Start,Sectors,UUID", "-l", path)
		if !strings.Contains(out, fmt.Sprintf("%d", start)) || !strings.Contains(out, fmt.Sprintf("%d", size)) || !strings.Contains(out, strings.ToUpper(testUUID)) {
			t.Errorf("fdisk -l lacks the partition %d+%d:\n%s", start, size, out)
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command("env", append([]string{"LC_ALL=C.UTF-8", "PATH=/usr/sbin:/sbin:/usr/bin:/bin", name}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestLayout(t *testing.T) {
	for _, c := range []struct {
		size, want int64
		ss         int
	}{
		{50 << 20, 48 << 20, 512},
		{50 << 20, 48 << 20, 4096},
		{50<<20 + 33*512, 49 << 20, 512}, // the backup table just fits behind
		{50<<20 + 32*512, 48 << 20, 512},
		{3 << 20, 1 << 20, 512},
	} {
		p, err := Layout(c.size, c.ss)
		if err != nil || p.Offset != 1<<20 || p.Size != c.want {
			t.Errorf("%d in sectors of %d: %+v, %v, want size %d", c.size, c.ss, p, err, c.want)
		}
	}
	for _, size := range []int64{-1, 0, 512, 1 << 20, 2 << 20} {
		if p, err := Layout(size, 512); !fault.Is(err, fault.BadHomeSize) {
			t.Errorf("%d bytes: %+v, %v", size, p, err)
		}
	}
	for _, ss := range []int{0, 256, 1000, 8192} {
		if _, err := Layout(50<<20, ss); !fault.Is(err, fault.InvalidArgs) {
			t.Errorf("sectors of %d: %v", ss, err)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	const size = 50 << 20
	good, err := Layout(size, 512)
	if err != nil {
		t.Fatal(err)
	}
	good.Name, good.UUID = "ann", testUUID
	for name, f := range map[string]func(*Partition){
		"long name":       func(p *Partition) { p.Name = strings.Repeat("a", MaxName+1) },
		"long surrogates": func(p *Partition) { p.Name = strings.Repeat("😀", MaxName/2+1) },
		"UUID":            func(p *Partition) { p.UUID = "x" },
		"over the backup": func(p *Partition) { p.Size += 1 << 20 },
		"over the table":  func(p *Partition) { p.Offset = 512 },
		"empty":           func(p *Partition) { p.Size = 0 },
		"unaligned":       func(p *Partition) { p.Size-- },
	} {
		p := good
		f(&p)
		if err := Write(fixture.NewDisk(size), size, 512, p, testDisk); !fault.Is(err, fault.InvalidArgs) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFindRefuses(t *testing.T) {
	const size = 50 << 20
	find := func(d *fixture.Disk, size int64) error {
		_, err := Find(d, size, "ann", "")
		return err
	}
	for name, damage := range map[string]func(d *fixture.Disk) int64{
		"nothing":           func(d *fixture.Disk) int64 { *d = *fixture.NewDisk(size); return size },
		"file cut":          func(d *fixture.Disk) int64 { return size - 1<<20 },
		"no protective MBR": func(d *fixture.Disk) int64 { put(t, d, []byte{0}, 510); return size },
		"both headers": func(d *fixture.Disk) int64 {
			put(t, d, []byte{9}, 512+57)
			put(t, d, []byte{9}, size-512+57)
			return size
		},
		"both entries": func(d *fixture.Disk) int64 {
			put(t, d, []byte{9}, 1024)
			put(t, d, []byte{9}, size-33*512)
			return size
		},
		"two tables": func(d *fixture.Disk) int64 {
			o, _ := newImage(t, size, 4096, "ann")
			b := make([]byte, 6*4096)
			read(t, o, b, 4096)
			put(t, d, b[:92], 4096)
			put(t, d, b[4096:], 8192)
			return size
		},
		"two partitions": func(d *fixture.Disk) int64 {
			b := make([]byte, 512+entriesSize)
			read(t, d, b, 512)
			copy(b[512+128:][:128], b[512:])
			binary.LittleEndian.PutUint32(b[88:], crc32.ChecksumIEEE(b[512:]))
			binary.LittleEndian.PutUint32(b[16:], 0)
			binary.LittleEndian.PutUint32(b[16:], crc32.ChecksumIEEE(b[:92]))
			put(t, d, b, 512)
			return size
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := newImage(t, size, 512, "ann")
			if err := find(d, size); err != nil {
				t.Fatal(err)
			}
			if err := find(d, damage(d)); !fault.Is(err, fault.NotAnImage) {
				t.Errorf("%v", err)
			}
		})
	}
	d := fixture.NewDisk(size)
	put(t, d, luksMagic, 0)
	if p, err := Find(d, size, "ann", ""); err != nil || p.Offset != 0 || p.Size != size || p.UUID != "" {
		t.Errorf("bare container: %+v, %v", p, err)
	}
}

func put(t *testing.T, d *fixture.Disk, b []byte, at int64) {
	t.Helper()
	if _, err := d.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// rewritten is what making the partition smaller does to a new image, disk.
func rewritten(t *testing.T, ss int) (disk *fixture.Disk, old, now Partition, log crashtest.Log) {
	t.Helper()
	disk, old = newImage(t, crashSize, ss, "ann")
	now = old
	now.Size -= 4 << 20
	r := &crashtest.Recorder{Device: disk.Clone()}
	if err := Write(r, crashSize, ss, now, testDisk); err != nil {
		t.Fatal(err)
	}
	return disk, old, now, r.Log
}

const crashSize = 50 << 20

// found counts the states in which the old table or the new one is found, and
// those in which neither is.
func found(t *testing.T, disk *fixture.Disk, old, now Partition, log crashtest.Log) (good, lost int) {
	t.Helper()
	log.States(40, 512, 1, func(s crashtest.State) {
		d := disk.Clone()
		if err := s.Apply(d, 0); err != nil {
			t.Fatal(err)
		}
		if p, err := Find(d, crashSize, "ann", testUUID); err == nil && (p == old || p == now) {
			good++
		} else {
			lost++
		}
	})
	return good, lost
}

// TestCrash rewrites a table with a smaller partition and cuts the power after
// each write: the old table or the new one is found. With no flush in between,
// chance finds neither sooner or later.
func TestCrash(t *testing.T) {
	for _, ss := range []int{512, 4096} {
		disk, old, now, log := rewritten(t, ss)
		if good, lost := found(t, disk, old, now, log); lost > 0 || good < 100 {
			t.Errorf("sectors of %d: found in %d states, lost in %d", ss, good, lost)
		}
		log = slices.DeleteFunc(log, func(s crashtest.Step) bool { return s.Flush })
		if _, lost := found(t, disk, old, now, log); lost == 0 {
			t.Errorf("sectors of %d: without flushes the table is never lost", ss)
		}
	}
}

// TestOrder pins the order of 2.4: backup before primary, a sync after each.
func TestOrder(t *testing.T) {
	_, _, _, log := rewritten(t, 512)
	var order []string
	for _, s := range log {
		if s.Flush {
			order = append(order, "sync")
		} else {
			order = append(order, fmt.Sprintf("%d+%d", s.At, len(s.Data)))
		}
	}
	want := "52411904+16384 sync 52428288+512 sync 1024+16384 sync 512+512 sync 0+512 sync"
	if got := strings.Join(order, " "); got != want {
		t.Errorf("order %s, want %s", got, want)
	}
}

// FuzzFind puts any sectors at the start and at the end of an image.
func FuzzFind(f *testing.F) {
	const size = 4 << 20
	p := Partition{Offset: align, Size: align, UUID: testUUID, Name: "ann"}
	d := fixture.NewDisk(size)
	if err := Write(d, size, 512, p, testDisk); err != nil {
		f.Fatal(err)
	}
	// Four entries instead of 128 keep the inputs short.
	head := make([]byte, 3*512)
	if _, err := d.ReadAt(head, 0); err != nil {
		f.Fatal(err)
	}
	head[512+80] = 4
	f.Add(head, []byte{}, true)
	f.Add(head, head[512:1024], false)
	f.Add([]byte("LUKS\xba\xbe"), []byte{}, false)
	f.Fuzz(func(t *testing.T, head, tail []byte, fix bool) {
		if len(head) > 8192 || len(tail) > 8192 {
			return
		}
		d := fixture.NewDisk(size)
		_, _ = d.WriteAt(head, 0)
		_, _ = d.WriteAt(tail, size-int64(len(tail)))
		if fix && len(head) >= 1024 {
			fixSums(d, head[512:1024])
		}
		p, err := Find(d, size, "ann", "")
		if err != nil {
			if !fault.Is(err, fault.NotAnImage) {
				t.Errorf("%v", err)
			}
			return
		}
		if p.Offset < 0 || p.Size <= 0 || p.Offset+p.Size > size {
			t.Errorf("partition %+v in an image of %d bytes", p, size)
		}
	})
}

// fixSums makes the checksums of the header h right. They are no fence against
// whoever wrote the rest.
func fixSums(d *fixture.Disk, h []byte) {
	le := binary.LittleEndian
	total := uint64(le.Uint32(h[80:])) * uint64(le.Uint32(h[84:]))
	if at := le.Uint64(h[72:]); at < 64 && total <= 1<<20 {
		b := make([]byte, total)
		if _, err := d.ReadAt(b, int64(at)*512); err == nil {
			le.PutUint32(h[88:], crc32.ChecksumIEEE(b))
		}
	}
	if n := le.Uint32(h[12:]); n >= headerSize && n <= 512 {
		clear(h[16:20])
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:n]))
	}
	_, _ = d.WriteAt(h, 512)
}
