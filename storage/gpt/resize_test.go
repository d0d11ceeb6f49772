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
