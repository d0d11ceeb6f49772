package directory

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/fixture"
	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/records"
	"hearth/storage"
	"hearth/storage/presence"
	"hearth/storage/storagetest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func kind(fstype string) storagetest.Kind {
	return storagetest.Kind{
		Storage: "directory", Backend: Backend{}, FileSystem: fstype,
		Needs: []string{"loop", "mount", fstype, "mkfs." + fstype},
	}
}

func TestSuite(t *testing.T) {
	for _, fstype := range []string{"ext4", "btrfs"} {
		t.Run(fstype, func(t *testing.T) { storagetest.Run(t, kind(fstype)) })
	}
}

func owner(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}

// TestOnDisk looks at a closed home from outside, as another system would.
func TestOnDisk(t *testing.T) {
	testenv.Need(t, "root", "loop", "mount", "ext4", "mkfs.ext4")
	w := storagetest.New(t, kind("ext4"))
	w.Must(t, storage.Create, storagetest.Password)
	image := w.View().ImagePath
	if image != filepath.Join(w.Root, w.User+".homedir") {
		t.Errorf("the area is at %s", image)
	}
	for _, name := range []string{".", ".identity", ".profile"} {
		if uid := owner(t, filepath.Join(image, name)); uid != storagetest.UID {
			t.Errorf("%s belongs to %d on the disk", name, uid)
		}
	}
	if info, err := os.Stat(image); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the area: %v, %v", info.Mode(), err)
	}
	if b, _ := w.Record.Binding(storagetest.Machine.ID); b.FileSystemType != "" {
		t.Errorf("binding after create names a file system: %+v", b)
	}
}

// TestForeignOwner: the files of a home that came from elsewhere show as the
// user's, and stay as they are on the disk.
func TestForeignOwner(t *testing.T) {
	testenv.Need(t, "root", "loop", "mount", "ext4", "mkfs.ext4")
	w := storagetest.New(t, kind("ext4"))
	w.Must(t, storage.Create, storagetest.Password)
	image := w.View().ImagePath
	for _, name := range []string{".identity", ".profile", "."} {
		if err := os.Lchown(filepath.Join(image, name), 60400, 60400); err != nil {
			t.Fatal(err)
		}
	}
	w.Must(t, storage.Activate, storagetest.Password)
	for _, name := range []string{".", ".identity", ".profile"} {
		if uid := owner(t, filepath.Join(w.Home(), name)); uid != storagetest.UID {
			t.Errorf("%s shows as %d", name, uid)
		}
		if uid := owner(t, filepath.Join(image, name)); uid != 60400 {
			t.Errorf("%s belongs to %d on the disk now", name, uid)
		}
	}
}

// TestSamePath: the area may be the home directory itself.
func TestSamePath(t *testing.T) {
	testenv.Need(t, "root", "loop", "mount", "ext4", "mkfs.ext4")
	w := storagetest.New(t, kind("ext4"))
	w.Record = w.With(t, map[string]any{"imagePath": w.Home()})
	w.Must(t, storage.Create, storagetest.Password)
	w.Refused(t, storage.Create, storagetest.Password, fault.FileExists)
	for range 2 {
		w.Must(t, storage.Activate, storagetest.Password)
		w.Refused(t, storage.Activate, storagetest.Password, fault.HomeAlreadyActive)
		w.Must(t, storage.Inspect, storagetest.Password)
		w.Must(t, storage.Deactivate, "")
		w.Idle(t)
	}
	w.Must(t, storage.Remove, "")
	if _, err := os.Lstat(w.Home()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after remove: %v", err)
	}
}

// TestSymlink: an image path that is a link is followed, and removed with what
// it leads to.
func TestSymlink(t *testing.T) {
	testenv.Need(t, "root", "loop", "mount", "ext4", "mkfs.ext4")
	w := storagetest.New(t, kind("ext4"))
	w.Must(t, storage.Create, storagetest.Password)
	image, real := w.View().ImagePath, filepath.Join(w.Root, "elsewhere")
	if err := errors.Join(os.Rename(image, real), os.Symlink(real, image)); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Activate, storagetest.Password)
	w.Must(t, storage.Deactivate, "")
	w.Must(t, storage.Remove, "")
	for _, path := range []string{image, real} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after remove: %v", path, err)
		}
	}
}

// TestHostile puts in the way what a user could.
func TestHostile(t *testing.T) {
	testenv.Need(t, "root", "loop", "mount", "ext4", "mkfs.ext4")
	w := storagetest.New(t, kind("ext4"))
	w.Must(t, storage.Create, storagetest.Password)
	image := w.View().ImagePath
	identity := filepath.Join(image, ".identity")
	text, err := os.ReadFile(identity)
	if err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(w.Root, "outside")
	for what, put := range map[string]func() error{
		"link": func() error {
			return errors.Join(os.WriteFile(outside, text, 0o600), os.Symlink(outside, identity))
		},
		"pipe":      func() error { return unix.Mkfifo(identity, 0o600) },
		"directory": func() error { return os.Mkdir(identity, 0o700) },
		"device":    func() error { return unix.Mknod(identity, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) },
	} {
		if err := errors.Join(os.RemoveAll(identity), put()); err != nil {
			t.Fatal(err)
		}
		// Nothing is read through it, and the record is written anew.
		w.Must(t, storage.Activate, storagetest.Password)
		w.Must(t, storage.Deactivate, "")
		if got, err := os.ReadFile(identity); err != nil || string(got) != string(text) {
			t.Errorf("after a %s the record is %q, %v", what, got, err)
		}
		if info, err := os.Lstat(identity); err != nil || !info.Mode().IsRegular() {
			t.Errorf("after a %s: %v, %v", what, info, err)
		}
		w.Idle(t)
	}
	// Nothing outside goes with the home.
	if err := errors.Join(os.RemoveAll(identity), os.WriteFile(outside, []byte("stays"), 0o644), os.Symlink(w.Root, filepath.Join(image, "up"))); err != nil {
		t.Fatal(err)
	}
	within := filepath.Join(image, "mnt")
	if err := errors.Join(os.Mkdir(within, 0o755), os.Mkdir(filepath.Join(w.Root, "data"), 0o755),
		os.WriteFile(filepath.Join(w.Root, "data", "file"), nil, 0o644),
		unix.Mount(filepath.Join(w.Root, "data"), within, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	w.Refused(t, storage.Remove, "", fault.HomeBusy)
	if _, err := os.Stat(filepath.Join(w.Root, "data", "file")); err != nil {
		t.Errorf("removing went into a mount: %v", err)
	}
	if err := unix.Unmount(within, 0); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Remove, "")
	if got, err := os.ReadFile(outside); err != nil || string(got) != "stays" {
		t.Errorf("removing followed a link: %q, %v", got, err)
	}
}

func TestNoDirectory(t *testing.T) {
	testenv.Need(t, "root")
	w := storagetest.New(t, storagetest.Kind{Storage: "directory", Backend: Backend{}})
	if err := os.WriteFile(w.View().ImagePath, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Refused(t, storage.Activate, storagetest.Password, fault.NotAnImage)
	w.Refused(t, storage.Remove, "", fault.NotAnImage)
}

// TestPassword: the record alone says what the password is. The copy in the
// home is the judge of the old one, and its user may have forged it.
func TestPassword(t *testing.T) {
	testenv.Need(t, "root")
	w := storagetest.New(t, storagetest.Kind{Storage: "directory", Backend: Backend{}})
	w.Must(t, storage.Create, storagetest.Password)
	w.Must(t, storage.Activate, storagetest.Password)
	old := w.Record

	hashed := func(pw string) map[string]any {
		p := bytesOf(t, pw)
		defer p.Close()
		h, err := records.HashPassword(p, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return map[string]any{"lastChangeUSec": 2000, "privileged": map[string]any{"hashedPassword": []string{h}}}
	}
	change := func(from, to string) error {
		s := &records.Secrets{Passwords: []*secret.Bytes{bytesOf(t, from), bytesOf(t, to)}}
		defer s.Close()
		fresh, err := w.Signer.Sign(w.With(t, hashed(to)))
		if err != nil {
			t.Fatal(err)
		}
		out, err := storage.Run(t.Context(), w.Host, storage.Passwd, fresh, s, map[string]storage.Backend{"directory": Backend{}})
		if err == nil {
			w.Record = out
		}
		return err
	}
	identity := filepath.Join(w.Home(), ".identity")
	genuine, err := os.ReadFile(identity)
	if err != nil {
		t.Fatal(err)
	}
	if err := change("battery staple", "new horse"); !fault.Is(err, fault.BadPassword) {
		t.Errorf("a wrong old password: %v", err)
	}
	forged := hashed("forged horse")
	forged["lastChangeUSec"] = old.LastChangeUSec()
	for _, f := range []*records.Record{w.With(t, forged), w.With(t, forged).Signable()} {
		if err := os.WriteFile(identity, f.Embedded().Pretty(), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := change("forged horse", "new horse"); !fault.Is(err, fault.BadSignature) {
			t.Errorf("a forged record let the password be changed: %v", err)
		}
	}
	if err := os.WriteFile(identity, genuine, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := change(storagetest.Password, "new horse"); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Deactivate, "")
	w.Refused(t, storage.Activate, storagetest.Password, fault.BadPassword)
	w.Must(t, storage.Activate, "new horse")
}

func bytesOf(t *testing.T, text string) *secret.Bytes {
	t.Helper()
	b, err := secret.Copy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestQuota: the size bounds what the user can write, where there is quota.
func TestQuota(t *testing.T) {
	testenv.Need(t, "root", "loop", "mount", "ext4", "mkfs.ext4", "quota")
	k := kind("ext4")
	k.MkfsOptions, k.MountOptions = []string{"-O", "quota", "-E", "quotatype=usrquota"}, []string{"usrquota"}
	k.Fields = map[string]any{"diskSize": 8 << 20}
	w := storagetest.New(t, k)
	w.Must(t, storage.Create, storagetest.Password)
	if strings.Contains(w.Log.String(), "not limited") {
		t.Fatal(w.Log)
	}
	w.Must(t, storage.Activate, storagetest.Password)
	if said := w.Overfill(t, "big", 16); !strings.Contains(said, "quota exceeded") {
		t.Errorf("writing more than the size: %q", said)
	}
	resize := func(size int) {
		t.Helper()
		w.Record = w.With(t, map[string]any{"diskSize": size, "lastChangeUSec": w.Record.LastChangeUSec() + 1})
		w.Must(t, storage.Resize, storagetest.Password)
		used, limit, ok, err := presence.Quota(w.View().ImagePath, storagetest.UID)
		if err != nil || !ok || limit != uint64(size) || used < 1<<20 {
			t.Errorf("%d of %d, %v, %v, want %d", used, limit, ok, err, size)
		}
	}
	resize(32 << 20)
	if said := w.Overfill(t, "big", 16); said != "" {
		t.Errorf("in the larger home: %q", said)
	}
	w.Must(t, storage.Deactivate, "")
	// Less than is there: the user cannot write, and gets in to make room.
	resize(4 << 20)
	w.Must(t, storage.Activate, storagetest.Password)
	if said := w.Overfill(t, "more", 1); !strings.Contains(said, "quota exceeded") {
		t.Errorf("in the smaller home: %q", said)
	}
}

// TestNoQuota: a size that nothing can keep changes nothing.
func TestNoQuota(t *testing.T) {
	testenv.Need(t, "root", "loop", "mount", "ext4", "mkfs.ext4")
	w := storagetest.New(t, kind("ext4"))
	w.Must(t, storage.Create, storagetest.Password)
	before := w.Record
	w.Record = w.With(t, map[string]any{"diskSize": 32 << 20, "lastChangeUSec": w.Record.LastChangeUSec() + 1})
	w.Refused(t, storage.Resize, storagetest.Password, fault.NotSupported)
	if _, _, ok, err := presence.Quota(w.View().ImagePath, storagetest.UID); ok || !errors.Is(err, presence.ErrNoEntry) {
		t.Errorf("a quota is there: %v, %v", ok, err)
	}
	w.Record = before
	w.Must(t, storage.Activate, storagetest.Password)
}

// TestFixtures opens homes that the real daemons made, by their own records.
func TestFixtures(t *testing.T) {
	for set, release := range map[string]string{"fxdir": "systemd-262-images", "fx257dir": "systemd-257-images"} {
		t.Run(release, func(t *testing.T) {
			testenv.Need(t, "root", "tar")
			w := storagetest.New(t, storagetest.Kind{Storage: "directory", Backend: Backend{}})
			text := fixture.File(t, release+"/directory/host.identity")
			text = bytes.ReplaceAll(text, []byte("/home/"), []byte(w.Root+"/"))
			record, err := records.Parse(text, records.WorkerInput)
			if err != nil {
				t.Fatal(err)
			}
			w.Record, w.User = record, record.UserName()
			w.Trust(t, "theirs.public", fixture.File(t, release+"/local.public"))
			w.Host.Machine.ID = strings.TrimSpace(string(fixture.File(t, release+"/machine-id")))
			unpack := exec.Command("tar", "-x", "-p", "--numeric-owner", "-C", w.Root, "-f", fixture.Path(t, release+"/directory/"+set+".homedir.tar"))
			if out, err := unpack.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			w.Refused(t, storage.Activate, "wrong", fault.BadPassword)
			w.Must(t, storage.Inspect, "fixture-pw-1")
			for range 2 {
				w.Must(t, storage.Activate, "fixture-pw-1")
				if _, err := os.Stat(filepath.Join(w.Home(), ".bashrc")); err != nil {
					t.Error(err)
				}
				if release == "systemd-257-images" {
					compare(t, w.Home(), string(fixture.File(t, release+"/directory/tree.txt")))
				}
				w.Must(t, storage.Deactivate, "")
				w.Idle(t)
			}
		})
	}
}

// compare holds the home against lines "sha256  path".
func compare(t *testing.T, home, tree string) {
	t.Helper()
	n := 0
	for line := range strings.Lines(tree) {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok || len(sum) != 64 {
			continue
		}
		data, err := os.ReadFile(filepath.Join(home, name))
		if n++; err != nil || fmt.Sprintf("%x", sha256.Sum256(data)) != sum {
			t.Errorf("%s differs: %v", name, err)
		}
	}
	if n == 0 {
		t.Error("the tree names no files")
	}
}
