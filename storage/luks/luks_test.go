package luks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/fixture"
	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/records"
	"hearth/storage"
	"hearth/storage/dm"
	"hearth/storage/mounts"
	"hearth/storage/storagetest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func remains(user string) []string {
	var list []string
	if name := "home-" + user; dm.Exists(name) {
		list = append(list, "mapped device "+name)
	}
	for _, k := range testenv.KeysLeft(keyName(storage.Area{View: records.View{UserName: user}})+":", "logon     cryptsetup:") {
		list = append(list, "key "+k)
	}
	// udev may still be at work on events of a device that is gone.
	link := dm.Dir + "/home-" + user
	for range 100 {
		if _, err := os.Lstat(link); err != nil {
			return list
		}
		time.Sleep(50 * time.Millisecond)
	}
	return append(list, link)
}

func TestSuite(t *testing.T) {
	for fstype, size := range map[string]int{"ext4": 50 * mib, "btrfs": 280 * mib} {
		t.Run(fstype, func(t *testing.T) {
			storagetest.Run(t, storagetest.Kind{
				Storage: "luks", Backend: Backend{}, Image: true, Remains: remains,
				Needs: []string{"loop", "dm-crypt", fstype, "mkfs." + fstype},
				Fields: map[string]any{
					"fileSystemType": fstype, "diskSize": size,
					"luksPbkdfType": "pbkdf2", "luksPbkdfForceIterations": 1000,
				},
			})
		})
	}
}

// TestFixtures opens homes that the real daemons made, by their own records.
func TestFixtures(t *testing.T) {
	for _, c := range []struct{ set, password, tree string }{
		{"systemd-262-images/ext4-pbkdf2-fresh", "fixture-pw-1", ""},
		{"systemd-262-images/ext4-dirty", "fixture-pw-1", ""},
		{"systemd-262-images/ext4-argon2id-realm", "fixture-pw-1", ""},
		{"systemd-262-images/ext4-cbc-essiv", "fixture-pw-1", ""},
		{"systemd-262-images/ext4-4k-aes256xts", "fixture-pw-1", ""},
		{"systemd-262-images/btrfs-pbkdf2-used", "fixture-pw-2", ""},
		{"systemd-257-images/ext4-pbkdf2-recovery", "fixture-pw-1", "tree.txt"},
		{"systemd-257-images/ext4-rekeyed", "fixture-pw-2", "tree.txt"},
	} {
		t.Run(c.set, func(t *testing.T) {
			testenv.Need(t, "root", "loop", "dm-crypt", "ext4", "btrfs", "xz")
			dir := filepath.Dir(c.set)
			w := storagetest.New(t, storagetest.Kind{Storage: "luks", Backend: Backend{}, Image: true, Remains: remains})
			text := fixture.File(t, filepath.Join(c.set, "host.identity"))
			// The record's binding has the paths of the machine it was made on.
			text = bytes.ReplaceAll(text, []byte("/home/"), []byte(w.Root+"/"))
			record, err := records.Parse(text, records.WorkerInput)
			if err != nil {
				t.Fatal(err)
			}
			w.Record, w.User = record, record.UserName()
			w.Trust(t, "theirs.public", fixture.File(t, dir+"/local.public"))
			w.Host.Machine.ID = strings.TrimSpace(string(fixture.File(t, filepath.Join(dir, "machine-id"))))
			image := w.View().ImagePath
			if err := fixture.Image(t, c.set).WriteFile(image); err != nil {
				t.Fatal(err)
			}
			w.Refused(t, storage.Activate, "wrong", fault.BadPassword)
			w.Must(t, storage.Inspect, c.password)
			for range 2 {
				w.Must(t, storage.Activate, c.password)
				if c.tree != "" {
					compareTree(t, w, string(fixture.File(t, filepath.Join(c.set, c.tree))))
				}
				w.Must(t, storage.Deactivate, "")
				w.Idle(t)
			}
		})
	}
}

// compareTree holds the home against lines "sha256  path", then "--", then
// lines "mode uid:gid size path".
func compareTree(t *testing.T, w *storagetest.World, tree string) {
	t.Helper()
	sums, _, ok := strings.Cut(tree, "--\n")
	line := regexp.MustCompile(`^([0-9a-f]{64})\s+(.+)$`)
	n := 0
	for l := range strings.Lines(sums) {
		m := line.FindStringSubmatch(strings.TrimSpace(l))
		if m == nil {
			continue
		}
		n++
		data, err := os.ReadFile(filepath.Join(w.Home(), m[2]))
		if err != nil {
			t.Error(err)
			continue
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != m[1] {
			t.Errorf("%s differs", m[2])
		}
	}
	if !ok || n == 0 {
		t.Errorf("tree names no files: %q", tree)
	}
}

// area is one as the flows would make it.
func area(t *testing.T, root string) storage.Area {
	return storage.Area{
		View: records.View{
			UserName: "ann", Storage: "luks", ImagePath: root + "/ann.home", HomeDirectory: root + "/ann",
			FileSystemType: "ext4",
			LUKS: records.LUKSView{Cipher: "aes", CipherMode: "xts-plain64", VolumeKeySize: 32,
				PBKDFType: "pbkdf2", PBKDFHash: "sha512", PBKDFForceIterations: new(uint64), OfflineDiscard: true},
		},
		FullName: "ann", FileSystemTypeChosen: true, Log: slog.New(slog.DiscardHandler),
		Rand: &counter{}, Progress: func(string, uint64, uint64) {},
	}
}

// counter is a poor source of randomness that never ends.
type counter struct{ n byte }

func (c *counter) Read(p []byte) (int, error) {
	for i := range p {
		c.n = c.n*5 + 3
		p[i] = c.n
	}
	return len(p), nil
}

// testRecipe is what plan makes for a home without file system.
func testRecipe() recipe {
	return recipe{
		partitionUUID: "00000000-0000-4000-8000-000000000001", luksUUID: "00000000-0000-4000-8000-000000000002",
		diskGUID: "00000000-0000-4000-8000-000000000003", sectorSize: 512, keySize: 32, least: minSize,
	}
}

// image makes a container up to the mapped device, which needs no device
// mapper and no root.
func image(t *testing.T, a storage.Area, passwords ...string) {
	t.Helper()
	if n := a.LUKS.PBKDFForceIterations; n != nil {
		*n = 1000
	}
	size := uint64(24 * mib)
	a.DiskSize = &size
	r := testRecipe()
	s := &storage.Setup{}
	defer func() {
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	w, err := newImage(a, s, r)
	if err != nil {
		t.Fatal(err)
	}
	if got := w.offset + w.size + mib; got != int64(size) {
		t.Errorf("image has %d bytes, want %d", got, size)
	}
	var list []*secret.Bytes
	for _, p := range passwords {
		b, err := secret.Copy([]byte(p))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		list = append(list, b)
	}
	h, err := format(t.Context(), a, s, w, r, list)
	if err != nil {
		t.Fatal(err)
	}
	s.Private = &opened{window: w, header: h}
	if err := (Backend{}).WriteHeader(t.Context(), s, []byte(`{"userName":"ann","lastChangeUSec":1}`)); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func unlocked(t *testing.T, a storage.Area, password string) (*storage.Setup, string, error) {
	t.Helper()
	s := &storage.Setup{}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	c, err := openImage(a, s)
	if err != nil {
		return s, "", err
	}
	if err := c.read(t.Context(), a, s); err != nil {
		return s, "", err
	}
	p, err := secret.Copy([]byte(password))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	record := ""
	a.Admit = func(header []byte) error { record = string(header); return nil }
	return s, record, func() error {
		err := c.unlock(t.Context(), a, s, &storage.Credentials{Passphrases: []*secret.Bytes{p}})
		return err
	}()
}

func TestImageWithoutDevices(t *testing.T) {
	root := t.TempDir()
	a := area(t, root)
	image(t, a, "one", "two")
	list, err := os.ReadDir(root)
	if err != nil || len(list) != 1 || list[0].Name() != "ann.home" {
		t.Fatalf("directory after commit: %v, %v", list, err)
	}
	for _, p := range []string{"one", "two"} {
		s, _, err := unlocked(t, a, p)
		if err != nil {
			t.Fatal(err)
		}
		if s.Found.LUKSVolumeKeySize != 32 || s.Found.LUKSCipher != "aes" || s.Found.LUKSCipherMode != "xts-plain64" ||
			s.Found.PartitionUUID != "00000000-0000-4000-8000-000000000001" || s.Found.LUKSUUID != "00000000-0000-4000-8000-000000000002" {
			t.Errorf("found %+v", s.Found)
		}
	}
	if _, _, err := unlocked(t, a, "three"); !fault.Is(err, fault.BadPassword) {
		t.Errorf("a wrong password: %v", err)
	}

	// What the binding pins must be what is found.
	good := records.Binding{
		PartitionUUID: "00000000-0000-4000-8000-000000000001", LUKSUUID: "00000000-0000-4000-8000-000000000002",
		LUKSCipher: "aes", LUKSCipherMode: "xts-plain64", LUKSVolumeKeySize: 32,
	}
	other := "11111111-0000-4000-8000-000000000001"
	for name, c := range map[string]struct {
		change func(*records.Binding)
		want   fault.Kind
	}{
		"all right":       {func(*records.Binding) {}, ""},
		"luks uuid":       {func(b *records.Binding) { b.LUKSUUID = other }, fault.WrongMedium},
		"cipher":          {func(b *records.Binding) { b.LUKSCipher = "serpent" }, fault.WrongMedium},
		"cipher mode":     {func(b *records.Binding) { b.LUKSCipherMode = "cbc-essiv:sha256" }, fault.WrongMedium},
		"volume key size": {func(b *records.Binding) { b.LUKSVolumeKeySize = 64 }, fault.WrongMedium},
		"partition uuid":  {func(b *records.Binding) { b.PartitionUUID = other }, fault.NotAnImage},
	} {
		b := a
		b.Bound = good
		c.change(&b.Bound)
		if _, _, err := unlocked(t, b, "one"); fault.KindOf(err) != c.want {
			t.Errorf("%s: %v (%q), want %q", name, err, fault.KindOf(err), c.want)
		}
	}
}

func TestAdmitEndsOpening(t *testing.T) {
	a := area(t, t.TempDir())
	image(t, a, "one")
	p, err := secret.Copy([]byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	refused := errors.New("not yours")
	a.Admit = func(header []byte) error {
		if !strings.Contains(string(header), `"userName":"ann"`) {
			t.Errorf("header is %q", header)
		}
		return refused
	}
	handed := false
	a.HandLock = func(*os.File) error { handed = true; return nil }
	if _, err := (Backend{}).Open(t.Context(), a, &storage.Credentials{Passphrases: []*secret.Bytes{p}}); !errors.Is(err, refused) {
		t.Errorf("open: %v", err)
	}
	if dirty, err := mounts.IsDirty(a.ImagePath); dirty || err != nil {
		t.Errorf("refused image is dirty: %v, %v", dirty, err)
	}
	if handed {
		t.Error("the lock of a refused image was handed over")
	}
}

func TestNoImage(t *testing.T) {
	root := t.TempDir()
	a := area(t, root)
	open := func() error {
		_, err := (Backend{}).Open(context.Background(), a, &storage.Credentials{})
		return err
	}
	for _, c := range []struct {
		name string
		make func() error
		want fault.Kind
	}{
		{"nothing", func() error { return nil }, fault.HomeAbsent},
		{"dangling link", func() error { return os.Symlink("nowhere", a.ImagePath) }, fault.HomeAbsent},
		{"directory", func() error { return os.Mkdir(a.ImagePath, 0o700) }, fault.NotAnImage},
		{"pipe", func() error { return unix.Mkfifo(a.ImagePath, 0o600) }, fault.NotAnImage},
		{"empty", func() error { return os.WriteFile(a.ImagePath, nil, 0o600) }, fault.NotAnImage},
		{"noise", func() error { return os.WriteFile(a.ImagePath, bytes.Repeat([]byte("noise"), 1<<20), 0o600) }, fault.NotAnImage},
	} {
		if err := c.make(); err != nil {
			t.Fatal(err)
		}
		if err := open(); !fault.Is(err, c.want) {
			t.Errorf("%s: %v (%q), want %q", c.name, err, fault.KindOf(err), c.want)
		}
		if err := os.RemoveAll(a.ImagePath); err != nil {
			t.Fatal(err)
		}
	}
}

func TestImageIsLocked(t *testing.T) {
	a := area(t, t.TempDir())
	image(t, a, "one")
	a.HandLock = func(*os.File) error { return nil }
	s, _, err := unlocked(t, a, "one")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := unlocked(t, a, "one"); !fault.Is(err, fault.HomeInUse) {
		t.Errorf("second opening: %v", err)
	}
	b := a
	b.HaveLock = true
	if _, _, err := unlocked(t, b, "one"); err != nil {
		t.Errorf("with the lock at hand: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := unlocked(t, a, "one"); err != nil {
		t.Errorf("after it was let go: %v", err)
	}
}

// TestRemoveSparesWhatIsUsed: an image that another machine has open stays.
func TestRemoveSparesWhatIsUsed(t *testing.T) {
	a := area(t, t.TempDir())
	image(t, a, "one")
	a.HandLock = func(*os.File) error { return nil }
	other, err := os.Open(a.ImagePath)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := (Backend{}).Remove(t.Context(), a); !fault.Is(err, fault.HomeInUse) {
		t.Errorf("remove: %v", err)
	}
	if _, err := os.Stat(a.ImagePath); err != nil {
		t.Error(err)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := (Backend{}).Remove(t.Context(), a); err != nil {
			t.Error(err)
		}
	}
}

// TestUnfinishedImageIsLocked: the daemon deletes an unfinished image that
// nobody holds.
func TestUnfinishedImageIsLocked(t *testing.T) {
	a := area(t, t.TempDir())
	s := &storage.Setup{}
	w, err := newImage(a, s, testRecipe())
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(w.file.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	try := func() error { return unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	if err := try(); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("while it is made: %v", err)
	}
	if err := errors.Join(s.Commit(t.Context()), s.Close(t.Context()), try()); err != nil {
		t.Errorf("once it is in place: %v", err)
	}
}

func TestCommitReplacesNothing(t *testing.T) {
	root := t.TempDir()
	a := area(t, root)
	if err := os.WriteFile(a.ImagePath, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &storage.Setup{}
	if _, err := newImage(a, s, testRecipe()); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context()); !fault.Is(err, fault.FileExists) {
		t.Errorf("commit: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(a.ImagePath); err != nil || string(got) != "mine" {
		t.Errorf("file in the way is %q, %v", got, err)
	}
	if list, _ := os.ReadDir(root); len(list) != 1 {
		t.Errorf("left behind: %v", list)
	}
}

func TestPlanRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*storage.Area)
		want   fault.Kind
	}{
		"long name":   {func(a *storage.Area) { a.FullName = strings.Repeat("a", 37) }, fault.InvalidArgs},
		"file system": {func(a *storage.Area) { a.FileSystemType = "vfat" }, fault.NotSupported},
	} {
		a := area(t, t.TempDir())
		c.change(&a)
		if _, err := plan(a); !fault.Is(err, c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

func TestImageSize(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if st.Bavail*uint64(st.Frsize) < 512*mib {
		t.Skip("needs 512 MiB of free space to reckon with")
	}
	num := func(n uint64) *uint64 { return &n }
	for _, c := range []struct {
		name          string
		size, rel     *uint64
		least, lo, hi int64
	}{
		{"explicit", num(100*mib + 5), nil, 50 * mib, 100 * mib, 100 * mib},
		{"min", num(0), nil, 50 * mib, 50 * mib, 50 * mib},
		{"max", num(1<<64 - 2), nil, 50 * mib, 256 * mib, maxSize},
		{"relative nothing", nil, num(0), 50 * mib, 50 * mib, 50 * mib},
		{"relative all", nil, num(1<<32 - 1), 50 * mib, 256 * mib, maxSize},
		{"default", nil, nil, 50 * mib, 256 * mib, maxSize},
	} {
		a := storage.Area{View: records.View{DiskSize: c.size, DiskSizeRelative: c.rel}}
		got, err := imageSize(a, f, recipe{least: c.least})
		if err != nil || got < c.lo || got > c.hi || got%mib != 0 {
			t.Errorf("%s: %d, %v, want %d to %d", c.name, got, err, c.lo, c.hi)
		}
	}
}

func TestWindow(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString("0123456789"); err != nil {
		t.Fatal(err)
	}
	w := window{file: f, offset: 2, size: 5}
	for _, c := range []struct {
		at   int64
		n    int
		want string
		err  error
	}{{0, 5, "23456", nil}, {1, 2, "34", nil}, {3, 5, "56", io.EOF}, {5, 1, "", io.EOF}, {-1, 1, "", io.EOF}} {
		b := make([]byte, c.n)
		n, err := w.ReadAt(b, c.at)
		if string(b[:n]) != c.want || !errors.Is(err, c.err) {
			t.Errorf("read %d at %d: %q, %v", c.n, c.at, b[:n], err)
		}
	}
	for _, at := range []int64{-1, 4, 1 << 62} {
		if _, err := w.WriteAt([]byte("xy"), at); err == nil {
			t.Errorf("write at %d went through", at)
		}
	}
	if _, err := w.WriteAt([]byte("xy"), 3); err != nil {
		t.Error(err)
	}
	if got, _ := os.ReadFile(f.Name()); string(got) != "01234xy789" {
		t.Errorf("file holds %q", got)
	}
}
