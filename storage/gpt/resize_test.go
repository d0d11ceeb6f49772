package gpt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/fixture"
	"hearth/internal/testenv"
	"hearth/storage/crashtest"
)

// resized is a table on a disk of old bytes whose file may be longer.
func resized(t *testing.T, file, old int64, ss int) (*fixture.Disk, Partition) {
	t.Helper()
	p, err := Layout(old, ss)
	if err != nil {
		t.Fatal(err)
	}
	p.Name, p.UUID = "ann", testUUID
	d := fixture.NewDisk(file)
	if err := Write(d, old, ss, p, testDisk); err != nil {
		t.Fatal(err)
	}
	return d, p
}

// TestResizeCrash cuts the power after each write, for a disk that grows and
// one that shrinks: in the file, which is long at the time, the old table or
// the new one is found. After a shrink it is found in the file that was cut.
func TestResizeCrash(t *testing.T) {
	for _, c := range []struct{ old, now int64 }{{10 << 20, 14 << 20}, {14 << 20, 10 << 20}, {10<<20 + Move, 10 << 20}, {10 << 20, 10<<20 + Move}} {
		for _, ss := range []int{512, 4096} {
			file := max(c.old, c.now)
			disk, old := resized(t, file, c.old, ss)
			now := old
			now.Size += c.now - c.old
			r := &crashtest.Recorder{Device: disk.Clone()}
			if err := Resize(r, file, old, now.Size, c.now); err != nil {
				t.Fatal(err)
			}
			states := r.Log.States(40, 512, 1, func(s crashtest.State) {
				d := disk.Clone()
				if err := s.Apply(d, 0); err != nil {
					t.Fatal(err)
				}
				p, err := Find(d, file, "ann", testUUID)
				if err != nil || p != old && p != now {
					t.Errorf("%d to %d, sectors of %d, cut %v: %+v, %v", c.old, c.now, ss, s, p, err)
				}
				if got := Disk(d, file, p); got != c.old && got != c.now && got != file {
					t.Errorf("disk of %d bytes", got)
				}
			})
			if states < 100 {
				t.Errorf("%d states only", states)
			}
			for _, size := range []int64{file, c.now} {
				if p, err := Find(r, size, "ann", testUUID); err != nil || p != now || Disk(r, size, p) != c.now {
					t.Errorf("in a file of %d bytes: %+v, %v", size, p, err)
				}
			}
		}
	}
}

func TestResizeRefuses(t *testing.T) {
	const size = 50 << 20
	for _, ss := range []int{512, 4096} {
		d, p := resized(t, size, size, ss)
		other := p
		other.Size -= 4096
		for _, c := range []struct {
			p          Partition
			size, disk int64
			kind       fault.Kind
		}{
			{p, p.Size + 1<<20, size, fault.InvalidArgs},
			{p, p.Size, size + 4096, fault.InvalidArgs},
			{p, 0, size, fault.InvalidArgs},
			{p, p.Size - 100, size, fault.InvalidArgs},
			{other, p.Size, size, fault.NotAnImage},
		} {
			if err := Resize(d, size, c.p, c.size, c.disk); !fault.Is(err, c.kind) {
				t.Errorf("%+v: %v", c, err)
			}
		}
		if now, err := Find(d, size, "ann", testUUID); err != nil || now != p {
			t.Errorf("a refused resize left %+v, %v", now, err)
		}
	}
	d := fixture.NewDisk(size)
	if err := Resize(d, size, Partition{Offset: align, Size: align, SectorSize: 512}, align, size); !fault.Is(err, fault.NotAnImage) {
		t.Errorf("no table: %v", err)
	}
}

// TestResizeSfdisk: a foreign reader finds nothing to complain about.
func TestResizeSfdisk(t *testing.T) {
	testenv.Need(t, "sfdisk")
	for _, now := range []int64{40 << 20, 70 << 20} {
		file := filepath.Join(t.TempDir(), "image")
		d, p := resized(t, 70<<20, 50<<20, 512)
		if err := Resize(d, 70<<20, p, p.Size+now-(50<<20), now); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, now)
		read(t, d, b, 0)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if out := run(t, "sfdisk", "--verify", file); !strings.Contains(out, "No errors detected") || strings.Contains(out, "warning") {
			t.Errorf("sfdisk --verify: %s", out)
		}
	}
}

// second is a disk of size bytes whose table has another partition before the
// home's, and boot code before all.
func second(t *testing.T, size int64, ss int) (*fixture.Disk, Partition) {
	t.Helper()
	other := Partition{Offset: align, Size: align, UUID: testDisk, Name: "other", SectorSize: ss}
	p := Partition{Offset: 3 * align, Size: 20 * align, UUID: testUUID, Name: "ann", SectorSize: ss}
	s := int64(ss)
	entries, err := other.entries(other.Offset/s, (other.Offset+other.Size)/s-1)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := p.entries(p.Offset/s, (p.Offset+p.Size)/s-1)
	if err != nil {
		t.Fatal(err)
	}
	copy(entries[2*entrySize:], mine[:entrySize])
	d := fixture.NewDisk(size)
	guid, err := parseGUID(testDisk)
	if err != nil {
		t.Fatal(err)
	}
	if err := (layout{sectors: size / s, sectorSize: s, first: uint64(align / s), disk: guid, entries: entries}).write(d, "test"); err != nil {
		t.Fatal(err)
	}
	put(t, d, []byte("boot code"), 0)
	return d, p
}

// TestResizeOnDisk: a disk that keeps its size, or was made longer. The other
// partition and the boot code stay, whenever the power is cut.
func TestResizeOnDisk(t *testing.T) {
	const size = 50 << 20
	for _, ss := range []int{512, 4096} {
		for _, longer := range []int64{0, 30 << 20} {
			for _, to := range []int64{18 << 20, 30 << 20} {
				short, old := second(t, size, ss)
				disk := fixture.NewDisk(size + longer)
				b := make([]byte, size)
				read(t, short, b, 0)
				put(t, disk, b, 0)
				room, err := Room(disk, size+longer, old)
				if want := (size+longer)/int64(ss)*int64(ss) - entriesSize - int64(ss) - old.Offset; err != nil || room != want {
					t.Errorf("room of %d, %v, want %d", room, err, want)
				}
				now := old
				now.Size = to
				r := &crashtest.Recorder{Device: disk.Clone()}
				if err := Resize(r, size+longer, old, to, size+longer); err != nil {
					t.Fatal(err)
				}
				states := r.Log.States(40, 512, 1, func(s crashtest.State) {
					d := disk.Clone()
					if err := s.Apply(d, 0); err != nil {
						t.Fatal(err)
					}
					if p, err := Find(d, size+longer, "ann", testUUID); err != nil || p != old && p != now {
						t.Errorf("sectors of %d, cut %v: %+v, %v", ss, s, p, err)
					}
					if p, err := Find(d, size+longer, "other", testDisk); err != nil || p.Size != align {
						t.Errorf("the other partition, cut %v: %+v, %v", s, p, err)
					}
					boot := make([]byte, 9)
					read(t, d, boot, 0)
					if string(boot) != "boot code" {
						t.Errorf("boot code %q", boot)
					}
				})
				if states < 50 {
					t.Errorf("%d states only", states)
				}
				if p, err := Find(r, size+longer, "ann", testUUID); err != nil || p != now {
					t.Errorf("%+v, %v", p, err)
				}
			}
		}
	}
}

// TestRoomRefuses: only the last partition has room that is its own.
func TestRoomRefuses(t *testing.T) {
	d, p := second(t, 50<<20, 512)
	first := Partition{Offset: align, Size: align, SectorSize: 512}
	if _, err := Room(d, 50<<20, first); !fault.Is(err, fault.NotAnImage) {
		t.Errorf("a partition before another: %v", err)
	}
	if _, err := Room(fixture.NewDisk(50<<20), 50<<20, p); !fault.Is(err, fault.NotAnImage) {
		t.Errorf("no table: %v", err)
	}
}
