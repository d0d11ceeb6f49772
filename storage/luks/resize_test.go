package luks

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/testenv"
	"hearth/records"
	"hearth/storage"
	"hearth/storage/keyring"
	"hearth/storage/storagetest"
)

func TestAim(t *testing.T) {
	f := frame{
		now:     extent{disk: 64 * mib, partition: 62 * mib},
		payload: 16 * mib, least: 33*mib + 1, most: 100*mib + 5,
	}
	least := 33*mib + unit + 16*mib + 2*mib // rounded up, with what is around
	for _, c := range []struct {
		name string
		want uint64
		only storage.Direction
		disk int
	}{
		{"the same", 64 * mib, storage.EitherWay, 64 * mib},
		{"the same but for rounding", 64*mib + 4095, storage.EitherWay, 64 * mib},
		{"larger", 80 * mib, storage.EitherWay, 80 * mib},
		{"larger, rounded down", 80*mib + 4095, storage.EitherWay, 80 * mib},
		{"larger than there is room for", 1 << 60, storage.EitherWay, 100 * mib},
		{"the most", storage.Largest, storage.EitherWay, 100 * mib},
		{"larger by next to nothing", 64*mib + 4096, storage.EitherWay, 64 * mib},
		{"smaller", 60 * mib, storage.EitherWay, 60 * mib},
		{"smaller than the files", 1, storage.EitherWay, least},
		{"the least", 0, storage.OnlyShrink, least},
		{"smaller by next to nothing", 64*mib - 4096, storage.EitherWay, 64 * mib},
		{"larger, which it may not", 80 * mib, storage.OnlyShrink, 64 * mib},
		{"smaller, which it may not", 60 * mib, storage.OnlyGrow, 64 * mib},
	} {
		got := f.aim(storage.Size{Bytes: c.want, Only: c.only})
		if got.disk != int64(c.disk) || got.disk-got.partition != 2*mib {
			t.Errorf("%s: %+v, want %d", c.name, got, c.disk)
		}
	}
	// A partition to the last usable sector, as sgdisk and older releases make
	// them: the tail behind it keeps its odd length.
	odd := frame{now: extent{64 * mib, 63*mib - 33*512}, payload: 16 * mib, least: 33 * mib, most: maxSize}
	for _, want := range []uint64{80 * mib, 55 * mib, 0} {
		got := odd.aim(storage.Size{Bytes: want})
		if got.disk-got.partition != odd.now.disk-odd.now.partition || got.partition%unit != 0 || got.partition-odd.payload < odd.least || want > 0 && uint64(got.disk) > want {
			t.Errorf("want %d: %+v", want, got)
		}
	}
	full := f
	full.most = 10 * mib // an overcommitted image on a full disk
	for _, want := range []uint64{80 * mib, storage.Largest} {
		if got := full.aim(storage.Size{Bytes: want}); got != f.now {
			t.Errorf("no room at all: %+v", got)
		}
	}
}

func TestIntent(t *testing.T) {
	for _, i := range []intent{{1, 2}, {2, 1}, {5, 5}, {maxSize, 4096}} {
		if got, err := parseIntent(i.String()); err != nil || got != i {
			t.Errorf("%q: %+v, %v", i, got, err)
		}
	}
	for _, text := range []string{"", "grow", "grow 1", "grow 2 1", "shrink 1 2", "grow 1 2 ", "grow 1 2 3", "grow -1 2", "grow 0 2", "move 1 2", "grow 1 99999999999999999999", "grow 0x1 2"} {
		if i, err := parseIntent(text); err == nil {
			t.Errorf("%q: %+v", text, i)
		}
	}
}

func FuzzIntent(f *testing.F) {
	for _, s := range []string{"grow 1 2", "shrink 68719476736 4096", "grow 1 2 3", "grow 01 2", "shrink -1 -2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		i, err := parseIntent(text)
		if err == nil && (i.String() != text || i.from <= 0 || i.to <= 0) {
			t.Errorf("%q: %+v", text, i)
		}
	})
}

// resizable is a world whose home has files all over it.
func resizable(t *testing.T, fstype string, size int) (w *storagetest.World, same func(when string)) {
	testenv.Need(t, "root", "loop", "dm-crypt", fstype, "mkfs."+fstype)
	w = storagetest.New(t, storagetest.Kind{
		Storage: "luks", Backend: Backend{}, Image: true, Remains: remains,
		Fields: map[string]any{
			"fileSystemType": fstype, "diskSize": size, "autoResizeMode": "off",
			"luksPbkdfType": "pbkdf2", "luksPbkdfForceIterations": 1000,
		},
	})
	w.Must(t, storage.Create, storagetest.Password)
	w.Must(t, storage.Activate, storagetest.Password)
	// Many, of which some are gone again: what remains lies all over.
	files := map[string][]byte{}
	for n := range 40 {
		name := fmt.Sprintf("file%d", n)
		b := make([]byte, 200_000)
		_, _ = rand.Read(b)
		if err := os.WriteFile(filepath.Join(w.Home(), name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	unix.Sync()
	for name := range files {
		if len(files) <= 20 {
			break
		}
		if err := os.Remove(filepath.Join(w.Home(), name)); err != nil {
			t.Fatal(err)
		}
		delete(files, name)
	}
	return w, func(when string) {
		t.Helper()
		for name, want := range files {
			if got, err := os.ReadFile(filepath.Join(w.Home(), name)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %s is not what it was (%v)", when, name, err)
			}
		}
	}
}

// wants gives the world's record another size.
func wants(t *testing.T, w *storagetest.World, size int) {
	t.Helper()
	w.Record = w.With(t, map[string]any{"diskSize": size, "lastChangeUSec": w.Record.LastChangeUSec() + 1})
}

func imageSizeOf(t *testing.T, w *storagetest.World) int {
	t.Helper()
	info, err := os.Stat(w.View().ImagePath)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Size())
}

// homeSize is what the mounted file system counts, in bytes.
func homeSize(t *testing.T, w *storagetest.World) int {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(w.Home(), &fs); err != nil {
		t.Fatal(err)
	}
	return int(fs.Blocks) * int(fs.Bsize)
}

// sound has foreign programs judge the closed image.
func sound(t *testing.T, w *storagetest.World) {
	t.Helper()
	if out, err := exec.Command("/usr/sbin/sfdisk", "--verify", w.View().ImagePath).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("No errors detected")) {
		t.Errorf("sfdisk --verify: %v %s", err, out)
	}
	if n, err := unix.Getxattr(w.View().ImagePath, intentMark, nil); err == nil {
		t.Errorf("a note of %d bytes is left", n)
	}
}

// TestResize grows and shrinks homes that are open and that are not.
func TestResize(t *testing.T) {
	for fstype, sizes := range map[string][]int{
		"ext4":  {64 * mib, 90 * mib, 120 * mib, 70 * mib},
		"btrfs": {300 * mib, 340 * mib, 380 * mib, 310 * mib, 290 * mib},
	} {
		t.Run(fstype, func(t *testing.T) {
			w, same := resizable(t, fstype, sizes[0])
			resize := func(size int) {
				t.Helper()
				before := 0
				open := false
				if _, err := os.Stat(filepath.Join(w.Home(), ".identity")); err == nil {
					before, open = homeSize(t, w), true
				}
				was := imageSizeOf(t, w)
				wants(t, w, size)
				w.Must(t, storage.Resize, storagetest.Password)
				if got := imageSizeOf(t, w); got != size {
					t.Errorf("image of %d bytes, want %d", got, size)
				}
				if open {
					// All of the difference is the user's, but for bookkeeping.
					if got, step := homeSize(t, w)-before, size-was; got < step*9/10-mib && step > 0 || got > step*9/10+mib && step < 0 {
						t.Errorf("the file system has changed by %d bytes, the image by %d", got, step)
					}
					return
				}
				sound(t, w)
				w.Idle(t)
			}
			resize(sizes[1])
			same("grown while open")
			w.Must(t, storage.Deactivate, "")
			sound(t, w)
			resize(sizes[2])
			resize(sizes[3])
			w.Must(t, storage.Activate, storagetest.Password)
			same("grown and shrunk while closed")
			if v := w.Record.View(storagetest.Machine); *v.DiskSize != uint64(sizes[3]) {
				t.Errorf("the record says %d", *v.DiskSize)
			}
			if fstype == "btrfs" {
				resize(sizes[4])
				same("shrunk while open")
			} else {
				wants(t, w, sizes[0])
				w.Refused(t, storage.Resize, storagetest.Password, fault.BadHomeSize)
				if got := imageSizeOf(t, w); got != sizes[3] {
					t.Errorf("a refused shrink left an image of %d bytes", got)
				}
				w.Record = w.With(t, map[string]any{"diskSize": sizes[3]})
			}
			w.Must(t, storage.Deactivate, "")
			sound(t, w)
			// Less than the files need is as little as they need.
			wants(t, w, 0)
			w.Must(t, storage.Resize, storagetest.Password)
			if got := imageSizeOf(t, w); got >= sizes[3] || got < 34*mib {
				t.Errorf("the smallest image has %d bytes", got)
			}
			w.Must(t, storage.Activate, storagetest.Password)
			same("at its smallest")
			w.Must(t, storage.Deactivate, "")
			sound(t, w)
		})
	}
}

// TestResizeCut takes a copy of the image before every step, as a power cut
// would leave it, and opens each: all files are there, and nothing is left of
// the resize.
func TestResizeCut(t *testing.T) {
	for _, c := range []struct {
		fstype   string
		from, to int
		open     bool
	}{
		{"ext4", 64 * mib, 90 * mib, true}, {"ext4", 90 * mib, 64 * mib, false},
		{"btrfs", 300 * mib, 340 * mib, false}, {"btrfs", 340 * mib, 300 * mib, true},
	} {
		t.Run(fmt.Sprintf("%s %d-%d open=%v", c.fstype, c.from/mib, c.to/mib, c.open), func(t *testing.T) {
			w, same := resizable(t, c.fstype, c.from)
			if !c.open {
				w.Must(t, storage.Deactivate, "")
			}
			image := w.View().ImagePath
			type cut struct{ stage, file string }
			var cuts []cut
			dir := testenv.Scratch(t)
			w.Host.Progress = func(stage string, _, _ uint64) {
				if len(cuts) == 0 && stage != "note resize" {
					return // opening the home
				}
				to := filepath.Join(dir, fmt.Sprintf("cut%d", len(cuts)))
				if out, err := exec.Command("cp", "--sparse=always", "--preserve=xattr", image, to).CombinedOutput(); err != nil {
					t.Errorf("copy: %v %s", err, out)
				}
				cuts = append(cuts, cut{stage, to})
			}
			former := w.Record
			wants(t, w, c.to)
			w.Must(t, storage.Resize, storagetest.Password)
			w.Host.Progress = nil
			if c.open {
				same("after the resize")
				w.Must(t, storage.Deactivate, "")
			}
			var stages []string
			// The host has the record from before, or the new one.
			both := [2]*records.Record{former, w.Record}
			for n, cut := range cuts {
				stages = append(stages, cut.stage)
				if out, err := exec.Command("cp", "--sparse=always", "--preserve=xattr", cut.file, image).CombinedOutput(); err != nil {
					t.Fatalf("copy: %v %s", err, out)
				}
				w.Record = both[n%2]
				w.Must(t, storage.Activate, storagetest.Password)
				same("cut before: " + cut.stage)
				size := imageSizeOf(t, w)
				if size != c.from && size != c.to {
					t.Errorf("cut before %s: image of %d bytes", cut.stage, size)
				}
				if got := homeSize(t, w); size-got > 36*mib {
					t.Errorf("cut before %s: %d bytes of an image of %d", cut.stage, got, size)
				}
				w.Must(t, storage.Deactivate, "")
				sound(t, w)
			}
			t.Logf("cut before each of %q", stages)
			if len(cuts) < 5 || !slices.Contains(stages, "end resize") {
				t.Errorf("steps: %q", stages)
			}
		})
	}
}

// TestAutoResize: a home shrinks as it closes only where its record asks for
// it, and grows again as it opens wherever it was shrunk.
func TestAutoResize(t *testing.T) {
	w, same := resizable(t, "btrfs", 340*mib)
	mode := func(v any) {
		t.Helper()
		w.Record = w.With(t, map[string]any{"autoResizeMode": v})
	}
	closes := func(how string, shrinks bool) {
		t.Helper()
		w.Must(t, storage.Deactivate, "")
		if n := imageSizeOf(t, w); (n < 330*mib) != shrinks || n > 340*mib {
			t.Errorf("%s: closed with %d bytes", how, n)
		}
		sound(t, w)
	}
	opens := func(how string, grows bool) {
		t.Helper()
		w.Must(t, storage.Activate, storagetest.Password)
		same(how)
		if n := imageSizeOf(t, w); (n == 340*mib) != grows || grows && homeSize(t, w) < 320*mib {
			t.Errorf("%s: open with %d bytes, file system of %d", how, n, homeSize(t, w))
		}
	}
	closes("off", false)
	mode(nil)
	opens("by default", true)
	closes("by default", false)
	mode("shrink-and-grow")
	opens("asked for", true)
	closes("asked for", true)
	mode("off")
	opens("not any more", false)
	mode("grow")
	closes("only to grow", true) // as small as it was
	opens("to grow", true)
	mode("shrink-and-grow")
	w.Host.KeepSize = true
	closes("the machine goes down", false)
	w.Host.KeepSize = false
	opens("after that", true)
	closes("asked for again", true)

	// A full disk keeps nobody out.
	image, aside := w.View().ImagePath, filepath.Join(testenv.Scratch(t), "aside")
	move := func(from, to string) {
		t.Helper()
		if out, err := exec.Command("cp", "--sparse=never", from, to).CombinedOutput(); err != nil {
			t.Fatalf("copy: %v %s", err, out)
		}
	}
	move(image, aside)
	room := fmt.Sprintf("size=%d", imageSizeOf(t, w)+6*mib)
	if err := unix.Mount("small", w.Root, "tmpfs", 0, room); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(w.Root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	move(aside, image)
	opens("on a full disk", false)
	if !strings.Contains(w.Log.String(), "not enough disk space for the size that the record says") {
		t.Error("nobody was told")
	}
	w.Must(t, storage.Deactivate, "")
}

// TestResizeByKeptKey: an open home needs no password for it, as long as the
// kernel has its key.
func TestResizeByKeptKey(t *testing.T) {
	w, same := resizable(t, "ext4", 64*mib)
	wants(t, w, 80*mib)
	w.Must(t, storage.Resize, "")
	if n := imageSizeOf(t, w); n != 80*mib {
		t.Errorf("image of %d bytes", n)
	}
	same("resized without a password")
	if err := keyring.Drop("homework-user-" + w.User); err != nil {
		t.Fatal(err)
	}
	wants(t, w, 90*mib)
	w.Refused(t, storage.Resize, "", fault.BadPassword)
	w.Refused(t, storage.Resize, "battery staple", fault.BadPassword)
	w.Must(t, storage.Resize, storagetest.Password)
	w.Must(t, storage.Deactivate, "")
	wants(t, w, 64*mib)
	w.Refused(t, storage.Resize, "", fault.BadPassword)
	if n := imageSizeOf(t, w); n != 90*mib {
		t.Errorf("image of %d bytes", n)
	}
	sound(t, w)
}

// TestResizeXFS: it only grows.
func TestResizeXFS(t *testing.T) {
	w, same := resizable(t, "xfs", 320*mib)
	was := homeSize(t, w)
	for _, size := range []int{400 * mib, 480 * mib} {
		wants(t, w, size)
		w.Must(t, storage.Resize, storagetest.Password)
		wants(t, w, size-40*mib)
		w.Refused(t, storage.Resize, storagetest.Password, fault.BadHomeSize)
		if n := imageSizeOf(t, w); n != size {
			t.Errorf("image of %d bytes, want %d", n, size)
		}
		if size == 400*mib {
			same("grown while open")
			if n := homeSize(t, w); n-was < 70*mib {
				t.Errorf("the file system has grown by %d bytes", n-was)
			}
			w.Must(t, storage.Deactivate, "")
			sound(t, w)
		}
	}
	sound(t, w)
	w.Must(t, storage.Activate, storagetest.Password)
	same("grown while closed")
}
