package fsops

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/testenv"
	"hearth/storage/loop"
)

const mirrorAt = 64 << 20

// A disk has a superblock and one mirror, and nothing else.
type disk struct{ primary, mirror super }

func (d disk) ReadAt(b []byte, at int64) (int, error) {
	for _, c := range []struct {
		at int64
		s  super
	}{{btrfsAt, d.primary}, {mirrorAt, d.mirror}} {
		if at == c.at && len(b) == len(c.s) {
			return copy(b, c.s), nil
		}
	}
	return 0, errors.New("nothing is there")
}

// made by hand: a superblock of one system chunk.
func handmade(kind uint16) super {
	s := make(super, superSize)
	le := binary.LittleEndian
	copy(s[0x20:], "a file system id")
	copy(s[0x40:], superMagic)
	le.PutUint64(s[0x48:], 7)
	le.PutUint32(s[0x90:], 4096)
	le.PutUint32(s[0x94:], 16384)
	le.PutUint32(s[0xA0:], 17+48+32)
	le.PutUint16(s[0xC4:], kind)
	s[chunksAt+8] = 228
	s[chunksAt+17+44] = 1
	return s.at(btrfsAt)
}

// commits are the superblock of a commit, the one of an fsync after it, and that
// of the next commit, which changes some of each sector.
func commits(kind uint16) (former, synced, latter super) {
	former = handmade(kind)
	synced = slices.Clone(former)
	binary.LittleEndian.PutUint64(synced[0x60:], 4711)
	latter = slices.Clone(former)
	binary.LittleEndian.PutUint64(latter[0x48:], 8)
	for at := 0x140; at < superSize; at += 100 {
		if at < chunksAt || at >= chunksAt+256 {
			latter[at]++
		}
	}
	return former, synced.at(btrfsAt), latter.at(btrfsAt)
}

// tear takes from the later one those sectors whose bit is set.
func tear(old, later super, mask int) super {
	s := slices.Clone(old)
	for i := range superSize / superSector {
		if mask&(1<<i) != 0 {
			copy(s[i*superSector:][:superSector], later[i*superSector:])
		}
	}
	return s
}

// TestStandIns: of all that a cut may leave of both superblocks, the first one
// offered is that of the last fsync or of the new commit, and nothing else.
func TestStandIns(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for kind, rounds := range map[uint16]int{0: 600, 2: 30, 3: 30} {
		former, synced, latter := commits(kind)
		for n := range rounds {
			p, m := n%256, rng.IntN(256)
			if n < 512 {
				m = n / 256 * 255 // a whole mirror
			}
			d := disk{tear(synced, latter, p), tear(former.at(mirrorAt), latter.at(mirrorAt), m)}
			list, primary, err := BtrfsStandIns(d, 300<<20)
			if err != nil || !bytes.Equal(primary, d.primary) {
				t.Fatal(err)
			}
			if p == 0 || p == 255 {
				if list != nil {
					t.Errorf("type %d: a whole superblock has %d stand-ins", kind, len(list))
				}
				continue
			}
			if len(list) == 0 {
				t.Fatalf("type %d, torn %08b, mirror %08b: no stand-in", kind, p, m)
			}
			best := super(list[0])
			if !best.whole() || best.place() != btrfsAt {
				t.Errorf("type %d, torn %08b, mirror %08b: the stand-in is not whole", kind, p, m)
			}
			if first := best[0x20:superSector]; !bytes.Equal(first, synced[0x20:superSector]) && !bytes.Equal(first, latter[0x20:superSector]) {
				t.Errorf("type %d, torn %08b, mirror %08b: the stand-in is of generation %d with log root %d",
					kind, p, m, best.generation(), binary.LittleEndian.Uint64(best[0x60:]))
			}
			if p|m == 255 && !bytes.Equal(best, latter) {
				t.Errorf("type %d, torn %08b, mirror %08b: the new commit is there, and not taken", kind, p, m)
			}
		}
	}
}

// TestNoStandIn: what is no tear is left alone.
func TestNoStandIn(t *testing.T) {
	former, synced, latter := commits(0)
	torn := tear(synced, latter, 0b10)
	mirror := former.at(mirrorAt)
	change := func(s super, at int, b byte) super {
		c := slices.Clone(s)
		c[at] ^= b
		return c
	}
	// By itself it does not parse either.
	hurt := change(torn, chunksAt+8, 1)
	const size = 300 << 20
	for _, c := range []struct {
		what string
		d    disk
		size int64
		want int
	}{
		{"torn", disk{torn, mirror}, size, 2},
		{"torn, of the new commit", disk{tear(synced, latter, 1), mirror}, size, 2},
		{"hurt", disk{hurt, mirror}, size, 2},
		{"a device that ends in its mirror", disk{hurt, mirror}, mirrorAt + superSize - 1, 0},
		{"a mirror of another file system", disk{hurt, change(mirror, 0x20, 1).at(mirrorAt)}, size, 0},
		{"a mirror that is much older", disk{hurt, change(mirror, 0x48, 64).at(mirrorAt)}, size, 0},
		{"a mirror that belongs elsewhere", disk{hurt, former.at(256 << 30)}, size, 0},
		{"a superblock that belongs elsewhere", disk{change(torn, 0x31, 1), mirror}, size, 0},
		{"no superblock", disk{change(torn, 0x40, 1), mirror}, size, 0},
		{"a checksum that we cannot", disk{change(torn, 0xC4, 1), mirror}, size, 0},
	} {
		list, _, err := BtrfsStandIns(c.d, c.size)
		if err != nil || len(list) != c.want {
			t.Errorf("%s: %d stand-ins, %v, want %d", c.what, len(list), err, c.want)
		}
	}
}

// TestMountMended: the kernel mounts what stands in for a torn superblock, and
// what was synced before is there, wherever the tear is and whatever the mirror.
func TestMountMended(t *testing.T) {
	testenv.Need(t, "root", "loop", "btrfs", "mkfs.btrfs")
	for _, sum := range []string{"crc32c", "blake2"} {
		t.Run(sum, func(t *testing.T) { mountMended(t, sum) })
	}
}

func mountMended(t *testing.T, sum string) {
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, MinimumSize("btrfs"))); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.btrfs", "-q", "--csum", sum, image).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	dir := t.TempDir()
	// use mounts the image for a time.
	use := func(what string, in func(node string)) (mended bool, err error) {
		l, err := loop.Attach(t.Context(), f, loop.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := l.Detach(t.Context()); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}()
		mended, err = MountMended("btrfs", l.Path, func() error { return unix.Mount(l.Path, dir, "btrfs", 0, "nodiscard,commit=300") })
		if err != nil {
			return mended, err
		}
		in(l.Path)
		for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			if err := unix.Unmount(dir, 0); err == nil {
				return mended, nil
			} else if time.Now().After(end) {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	at := func(r *os.File, place int64) super {
		s := make(super, superSize)
		if _, err := r.ReadAt(s, place); err != nil {
			t.Fatal(err)
		}
		return s
	}
	write := func(name string) *os.File {
		w, err := os.Create(filepath.Join(dir, name))
		if err == nil {
			_, err = w.WriteString(name)
		}
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	// The image after a commit, an fsync, and another commit. Nothing that the
	// former ones need is overwritten by then.
	var former, synced, latter super
	var disk []byte
	if mended, err := use("made", func(node string) {
		one := write("one")
		if err := unix.Syncfs(int(one.Fd())); err != nil {
			t.Fatal(err)
		}
		former = at(f, btrfsAt)
		_, _ = one.WriteString(", and more")
		if err := errors.Join(one.Sync(), one.Close()); err != nil {
			t.Fatal(err)
		}
		synced = at(f, btrfsAt)
		two := write("two")
		if err := errors.Join(unix.Syncfs(int(two.Fd())), two.Close()); err != nil {
			t.Fatal(err)
		}
		latter = at(f, btrfsAt)
		if disk, err = os.ReadFile(image); err != nil {
			t.Fatal(err)
		}
	}); err != nil || mended {
		t.Fatal(mended, err)
	}
	root := func(s super) uint64 { return binary.LittleEndian.Uint64(s[0x60:]) }
	if latter.generation() != former.generation()+1 || root(synced) == 0 || bytes.Equal(former, synced) || root(latter) != 0 ||
		!bytes.Equal(former[superSector:], synced[superSector:]) {
		t.Fatalf("generations %d, %d, %d, log roots %d, %d, %d", former.generation(), synced.generation(), latter.generation(), root(former), root(synced), root(latter))
	}
	zeros := make([]byte, 1<<16)
	for _, mirror := range []struct {
		name string
		s    func(mask int) super
	}{
		{"former", func(int) super { return former.at(mirrorAt) }},
		{"latter", func(int) super { return latter.at(mirrorAt) }},
		{"torn too", func(mask int) super { return tear(former.at(mirrorAt), latter.at(mirrorAt), mask) }},
	} {
		for _, k := range []int{1, 2, 6} { // between these a commit changes something
			low := 1<<k - 1
			for _, mask := range []int{low, 255 &^ low} {
				what := fmt.Sprintf("torn %08b, mirror %s", mask, mirror.name)
				torn := tear(synced, latter, mask)
				for at := 0; at < len(disk); at += len(zeros) {
					if b := disk[at:][:len(zeros)]; !bytes.Equal(b, zeros) {
						if _, err := f.WriteAt(b, int64(at)); err != nil {
							t.Fatal(err)
						}
					}
				}
				_, perr := f.WriteAt(torn, btrfsAt)
				_, merr := f.WriteAt(mirror.s(mask), mirrorAt)
				if err := errors.Join(perr, merr); err != nil {
					t.Fatal(err)
				}
				mended, err := use(what, func(string) {
					if got, err := os.ReadFile(filepath.Join(dir, "one")); err != nil || string(got) != "one, and more" {
						t.Errorf("%s: %q, %v", what, got, err)
					}
					got, err := os.ReadFile(filepath.Join(dir, "two"))
					if mask&1 != 0 && (err != nil || string(got) != "two") || mask&1 == 0 && mirror.name == "former" && err == nil {
						t.Errorf("%s: of the new commit: %q, %v", what, got, err)
					}
				})
				if err != nil || !mended {
					t.Errorf("%s: mended %v, %v", what, mended, err)
				}
				if out, err := exec.Command("btrfs", "check", image).CombinedOutput(); err != nil {
					t.Errorf("%s: %v\n%s", what, err, out)
				}
			}
		}
	}
	// What cannot be mounted is left as it was.
	torn := tear(synced, latter, 1)
	binary.LittleEndian.PutUint64(torn[0x50:], 4096) // no root is there
	bad := former.at(mirrorAt)
	binary.LittleEndian.PutUint64(bad[0x50:], 4096)
	_, perr := f.WriteAt(torn, btrfsAt)
	_, merr := f.WriteAt(bad.at(mirrorAt), mirrorAt)
	if err := errors.Join(perr, merr); err != nil {
		t.Fatal(err)
	}
	if mended, err := use("bad", func(string) {}); err == nil || mended {
		t.Errorf("bad roots: mended %v, %v", mended, err)
	}
	if !bytes.Equal(at(f, btrfsAt), torn) {
		t.Error("bad roots: the superblock is not as it was")
	}
}

// FuzzStandIns: nothing that lies on a disk makes the parser fail, and what it
// offers is whole.
func FuzzStandIns(f *testing.F) {
	for kind := range uint16(4) {
		former, synced, latter := commits(kind)
		f.Add([]byte(tear(synced, latter, 0b10)), []byte(former.at(mirrorAt)))
		f.Add([]byte(tear(synced, latter, 1)), []byte(tear(former.at(mirrorAt), latter.at(mirrorAt), 1)))
		f.Add([]byte(synced), []byte{})
	}
	f.Fuzz(func(t *testing.T, primary, mirror []byte) {
		d := disk{make(super, superSize), make(super, superSize)}
		copy(d.primary, primary)
		copy(d.mirror, mirror)
		former := slices.Clone(d.primary)
		list, got, err := BtrfsStandIns(d, mirrorAt+superSize)
		if err != nil || !bytes.Equal(got, former) {
			t.Fatal(err)
		}
		for _, b := range list {
			if s := super(b); !s.whole() || s.place() != btrfsAt || !s.kin(former) {
				t.Errorf("offers %x", b)
			}
		}
	})
}
