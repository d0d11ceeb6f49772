package luks

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/storage"
	"hearth/storage/fsops"
	"hearth/storage/gpt"
	"hearth/storage/loop"
	"hearth/storage/luks2"
)

// plugged makes a block device of a new file.
func plugged(t *testing.T, size int64, sectorSize uint32) *loop.Device {
	t.Helper()
	testenv.Need(t, "root", "loop", "wipefs", "mkswap")
	f, err := os.Create(filepath.Join(testenv.Scratch(t), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	l, err := loop.Attach(t.Context(), f, loop.Config{BlockSize: sectorSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Detach(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return l
}

func signatures(t *testing.T, l *loop.Device) []string {
	t.Helper()
	found, err := fsops.Signatures(t.Context(), l.File)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// deviceRecipe is what plan makes for a home of 4 MiB of files.
func deviceRecipe() recipe {
	r := testRecipe()
	r.least = 4*mib + overhead
	return r
}

// TestClaimDevice makes a home's container on a disk: invisible up to the
// commit, gone where there is none, whole after it.
func TestClaimDevice(t *testing.T) {
	for _, ss := range []uint32{512, 4096} {
		l := plugged(t, 32*mib, ss)
		a := area(t, "")
		a.ImagePath = l.Path
		*a.LUKS.PBKDFForceIterations = 1000
		password, err := secret.Copy([]byte("pw"))
		if err != nil {
			t.Fatal(err)
		}
		defer password.Close()
		make := func() (*storage.Setup, window, *luks2.Header) {
			t.Helper()
			s, r := &storage.Setup{}, deviceRecipe()
			w, err := claimDevice(t.Context(), a, s, &r)
			if err != nil {
				t.Fatal(err)
			}
			if r.sectorSize != int(ss) {
				t.Errorf("sectors of %d bytes on a disk with %d", r.sectorSize, ss)
			}
			h, err := format(t.Context(), a, s, w, r, []*secret.Bytes{password})
			if err != nil {
				t.Fatal(err)
			}
			s.Private = &opened{window: w, header: h}
			if err := (Backend{}).WriteHeader(t.Context(), s, []byte(`{"userName":"ann","lastChangeUSec":1}`)); err != nil {
				t.Fatal(err)
			}
			return s, w, h
		}

		// Up to the commit the disk looks empty, and can be tried again.
		s, w, _ := make()
		if got := signatures(t, l); len(got) != 0 {
			t.Errorf("a power cut here leaves %v", got)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := luks2.Read(window{file: l.File, offset: w.offset, size: w.size}, w.size); !fault.Is(err, fault.NotAnImage) {
			t.Errorf("an abandoned home left a header: %v", err)
		}

		s, w, h := make()
		if err := s.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		p, err := gpt.Find(l.File, 32*mib, a.FullName, s.Found.PartitionUUID)
		if err != nil || p.Offset != w.offset || p.Size != w.size || p.SectorSize != int(ss) {
			t.Errorf("found %+v, %v; want %d+%d", p, err, w.offset, w.size)
		}
		if got, err := luks2.Read(window{file: l.File, offset: p.Offset, size: p.Size}, p.Size); err != nil || got.UUID() != h.UUID() {
			t.Errorf("header %v, %v", got, err)
		}
		if want := "/dev/disk/by-uuid/" + h.UUID(); s.Found.ImagePath != want {
			t.Errorf("bound to %s, want %s", s.Found.ImagePath, want)
		}

		r := deviceRecipe()
		s = &storage.Setup{}
		if _, err := claimDevice(t.Context(), a, s, &r); !fault.Is(err, fault.FileExists) {
			t.Errorf("a disk with a home on it: %v", err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestClaimRefused takes none of these.
func TestClaimRefused(t *testing.T) {
	l := plugged(t, 24*mib, 512)
	a := area(t, "")
	refused := func(path string, kind fault.Kind) {
		t.Helper()
		a.ImagePath = path
		s, r := &storage.Setup{}, deviceRecipe()
		_, err := claimDevice(t.Context(), a, s, &r)
		if !fault.Is(err, kind) {
			t.Errorf("%s: %v, want %s", path, err, kind)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	large := uint64(25 * mib)
	a.DiskSize = &large
	refused(l.Path, fault.BadHomeSize)
	small := uint64(19 * mib)
	a.DiskSize = &small
	refused(l.Path, fault.BadHomeSize)
	a.DiskSize = nil
	refused("/dev/null", fault.NotAnImage)
	refused("/dev/no-such-disk", fault.HomeAbsent)
	if got := signatures(t, l); len(got) != 0 {
		t.Errorf("a refusal left %v", got)
	}
	if text, err := exec.Command("/usr/sbin/mkswap", "--quiet", l.Path).CombinedOutput(); err != nil {
		t.Fatalf("mkswap: %v\n%s", err, text)
	}
	refused(l.Path, fault.FileExists)
	if got := signatures(t, l); len(got) != 1 || got[0] != "swap" {
		t.Errorf("what was on the disk is %v", got)
	}
}
