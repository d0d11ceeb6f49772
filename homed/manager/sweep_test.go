package manager_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/manager"
	"hearth/internal/testenv"
)

func TestLeftoversAreSwept(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "home")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(root, 0o755))
	long := time.Now().Add(-time.Hour)
	const hex = "0123456789abcdef"
	put := func(name string) string {
		t.Helper()
		path := filepath.Join(root, name)
		must(os.WriteFile(path, []byte("x"), 0o600))
		must(os.Chtimes(path, long, long))
		return path
	}
	image := put(".#homeworkann.home" + hex)
	realm := put(".#homeworkann@example.org.home" + hex)
	tree := filepath.Join(root, ".#homeworkann.homedir"+hex)
	must(os.MkdirAll(filepath.Join(tree, "sub"), 0o700))
	must(os.Symlink(dir, filepath.Join(tree, "sub", "out")))
	must(os.Chtimes(tree, long, long))

	kept := []string{
		put(".#homeworkann.home0123"), put(".#homeworkann.image" + hex), put(".#other.home" + hex), put("ann.home" + hex),
		put(".#homeworklocked.home" + hex), put(".#homeworkyoung.home" + hex),
	}
	must(os.Chtimes(kept[5], time.Now(), time.Now()))
	lock, err := os.Open(kept[4])
	must(err)
	defer func() { _ = lock.Close() }()
	must(unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	link := filepath.Join(root, ".#homeworklink.home"+hex)
	must(os.Symlink(kept[0], link))
	pipe := filepath.Join(root, ".#homeworkpipe.home"+hex)
	must(unix.Mkfifo(pipe, 0o600))

	d := boot(t, dir)
	for _, path := range []string{image, realm, tree} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", filepath.Base(path), err)
		}
	}
	for _, path := range append(kept, link, pipe) {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("not a leftover, and gone: %v", err)
		}
	}
	d.stop()
	// Once its maker is dead, a daemon that starts finds it.
	must(lock.Close())
	boot(t, dir)
	if _, err := os.Lstat(kept[4]); !os.IsNotExist(err) {
		t.Errorf("let go, and still there: %v", err)
	}
}

func TestAttachedLeftoverStays(t *testing.T) {
	testenv.Need(t, "root", "loop", "losetup")
	dir := t.TempDir()
	path := filepath.Join(dir, "home", ".#homeworkann.home0123456789abcdef")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	detach := func() error { return exec.Command("losetup", "-d", strings.TrimSpace(string(out))).Run() }
	defer func() { _ = detach() }()
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, long, long); err != nil {
		t.Fatal(err)
	}
	d := boot(t, dir)
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("attached, and gone: %v", err)
	}
	d.stop()
	if err := detach(); err != nil {
		t.Fatal(err)
	}
	boot(t, dir)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("detached, and still there: %v", err)
	}
}

// TestUnfinishedNames: by what name we know what was never finished, in the form
// in which such names are written elsewhere.
func TestUnfinishedNames(t *testing.T) {
	const hex = "0123456789abcdef"
	parts := []string{"", ".", ".#", ".#homework", "x", "a", ".home", ".homedir", ".identity", "dir", hex, hex[:15], hex + "a", "0", "f", "g", "F", "é"}
	forms := []struct {
		is   func(string) bool
		form *regexp.Regexp
	}{
		{manager.Leftover, regexp.MustCompile(`^\.#homework.+\.home(dir)?[0-9a-f]{16}$`)},
		{manager.UnfinishedRecord, regexp.MustCompile(`^\.#.+\.identity[0-9a-f]+$`)},
		{manager.UnfinishedBlobs, regexp.MustCompile(`^\.#.+[0-9a-f]{16}$`)},
	}
	seen := map[int]int{}
	for _, a := range parts {
		for _, b := range parts {
			for _, c := range parts {
				for _, d := range parts {
					name := a + b + c + d
					for i, f := range forms {
						want := f.form.MatchString(name)
						if f.is(name) != want {
							t.Errorf("%q: %v, want %v", name, !want, want)
						}
						if want {
							seen[i]++
						}
					}
				}
			}
		}
	}
	for i := range forms {
		if seen[i] == 0 {
			t.Errorf("no name of form %d was tried", i)
		}
	}
}
