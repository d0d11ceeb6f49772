package presence_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/testenv"
	"hearth/storage/mounts"
	"hearth/storage/presence"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestLook(t *testing.T) {
	dir := t.TempDir()
	image, link, tree := filepath.Join(dir, "ann.home"), filepath.Join(dir, "link"), filepath.Join(dir, "ann.homedir")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(image, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(tree, 0o700); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(dir, "ann")
	look := func(storage, path string, want presence.State, kind fault.Kind) {
		t.Helper()
		got, err := presence.Look(presence.Area{Storage: storage, ImagePath: path, HomeDirectory: home})
		if got != want || fault.KindOf(err) != kind {
			t.Errorf("%s at %s: %v, %v; want %v", storage, path, got, err, want)
		}
	}
	look("luks", image, presence.Inactive, "")
	look("luks", link, presence.Inactive, "")
	look("luks", filepath.Join(dir, "none"), presence.Absent, "")
	look("luks", filepath.Join(image, "below"), presence.Absent, "")
	look("luks", tree, presence.Absent, fault.UnrecognizedFormat)
	look("luks", "/dev/null", presence.Absent, fault.UnrecognizedFormat)
	look("directory", tree, presence.Inactive, "")
	look("directory", image, presence.Absent, fault.UnrecognizedFormat)
	look("subvolume", filepath.Join(dir, "none"), presence.Absent, "")
	look("cifs", "", presence.Inactive, "")
	if unix.Access("/dev/loop0", unix.F_OK) == nil {
		look("luks", "/dev/loop0", presence.Unclear, "")
	}

	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if set, err := mounts.SetDirty(f); err != nil {
		t.Fatal(err)
	} else if set {
		look("luks", image, presence.Dirty, "")
		look("luks", link, presence.Dirty, "")
	}
}

func TestLookActive(t *testing.T) {
	testenv.Need(t, "root")
	dir := testenv.Scratch(t)
	home := filepath.Join(dir, "ann")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", home, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	// Also when the image was taken away below the mount.
	a := presence.Area{Storage: "luks", ImagePath: filepath.Join(dir, "none"), HomeDirectory: home}
	if s, err := presence.Look(a); err != nil || s != presence.Active {
		t.Errorf("state %v, %v", s, err)
	}
	if err := mounts.Unmount(home, 0); err != nil {
		t.Fatal(err)
	}
	if s, err := presence.Look(a); err != nil || s != presence.Absent {
		t.Errorf("state %v, %v", s, err)
	}
}
