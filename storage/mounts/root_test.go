package mounts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/testenv"
)

// workerOn makes the test binary a worker: it publishes the home on the block
// device of $MOUNTS_TEST_NODE at $MOUNTS_TEST_HOME.
const workerOn = "MOUNTS_TEST_NODE"

func TestMain(m *testing.M) {
	if node := os.Getenv(workerOn); node != "" {
		if err := work(node, os.Getenv("MOUNTS_TEST_HOME")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	testenv.Main(m)
}

func work(node, home string) error {
	if err := EnterWorkNamespace(); err != nil {
		return err
	}
	if err := Mount(node, Work, "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RELATIME, "user_xattr,nodiscard"); err != nil {
		return err
	}
	if err := os.Mkdir(Work+"/ann", 0o700); err != nil {
		return err
	}
	if err := os.Chown(Work+"/ann", 65534, 65534); err != nil {
		return err
	}
	dir, err := os.Open(Work + "/ann")
	if err != nil {
		return err
	}
	var waits *cradle
	if how := os.Getenv("MOUNTS_TEST_AHEAD"); how != "" {
		PrepareShift()
		if waits = ahead.cradle; waits == nil {
			return errors.New("nothing was prepared")
		}
		if PrepareShift(); ahead.cradle != waits {
			return errors.New("it was prepared twice")
		}
		if how == "killed" {
			if err := waits.cmd.Process.Kill(); err != nil {
				return err
			}
		}
	}
	root, err := ShiftUID(dir, 65534, 60100)
	if err != nil {
		return err
	}
	if waits != nil && waits.cmd.ProcessState == nil {
		return errors.New("what was prepared was not used up")
	}
	if err := dir.Close(); err != nil {
		return err
	}
	if fs, err := FSType(root); err != nil || fs != "ext4" {
		return fmt.Errorf("file system is %q, %v", fs, err)
	}
	fd, err := unix.Openat(int(root.Fd()), "letter", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Fchown(fd, 60100, 60100); err != nil {
		return fmt.Errorf("give a file to the user: %w", err)
	}
	// An id that the map leaves out cannot own anything here.
	if err := unix.Fchown(fd, 60200, 60200); err == nil {
		return errors.New("a file could be given to another home's uid")
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	if err := SyncFS(root); err != nil {
		return err
	}
	if err := Publish(root, home); err != nil {
		return err
	}
	if err := UnmountTree(Work); !fault.Is(err, fault.HomeBusy) {
		return fmt.Errorf("with the root open unmounting gave %v", err)
	}
	if err := root.Close(); err != nil {
		return err
	}
	if err := UnmountTree(Work); err != nil {
		return err
	}
	return UnmountTree(Work)
}

func ext4Loop(t *testing.T, dir string) string {
	t.Helper()
	img := filepath.Join(dir, "img")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 40<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", img)
	node := strings.TrimSpace(run(t, "losetup", "--find", "--show", img))
	t.Cleanup(func() { run(t, "losetup", "--detach", node) })
	return node
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return string(out)
}

func owner(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}

// TestHomeReachesTheHost publishes from a worker's namespace and looks from
// outside.
func TestHomeReachesTheHost(t *testing.T) {
	for _, how := range []string{"", "ready", "killed"} {
		t.Run("prepared: "+how, func(t *testing.T) { reaches(t, how) })
	}
}

func reaches(t *testing.T, how string) {
	testenv.Need(t, "root", "loop", "ext4", "mkfs.ext4", "losetup")
	dir := testenv.Scratch(t)
	home := filepath.Join(dir, "home", "ann")
	node := ext4Loop(t, dir)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), workerOn+"="+node, "MOUNTS_TEST_HOME="+home, "MOUNTS_TEST_AHEAD="+how)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("worker: %v: %s", err, out)
	}
	if point, err := IsMountPoint(home); err != nil || !point {
		t.Fatalf("home is no mount point here: %v", err)
	}
	if point, err := IsMountPoint(Work); err != nil || point {
		t.Errorf("the work mount reached the host: %v, %v", point, err)
	}
	for _, p := range []string{home, home + "/letter"} {
		if uid := owner(t, p); uid != 60100 {
			t.Errorf("%s belongs to %d", p, uid)
		}
	}
	// The flags of the worker's mount came along.
	var st unix.Statfs_t
	if err := unix.Statfs(home, &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
		t.Errorf("mount flags %x, %v", st.Flags, err)
	}

	// Deactivation: a private bind keeps hold while the home itself goes.
	hold := filepath.Join(dir, "hold")
	if err := os.Mkdir(hold, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := BindPrivate(home, hold); err != nil {
		t.Fatal(err)
	}
	inside, err := os.Open(home)
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(home, 0); !fault.Is(err, fault.HomeBusy) {
		t.Errorf("an open home could be unmounted: %v", err)
	}
	if err := inside.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(home, 0); err != nil {
		t.Fatal(err)
	}
	if point, err := IsMountPoint(home); err != nil || point {
		t.Errorf("home is still mounted: %v", err)
	}
	if owner(t, hold+"/letter") != 60100 {
		t.Error("the bind does not show the home")
	}
	root, err := os.Open(hold)
	if err != nil {
		t.Fatal(err)
	}
	if err := Trim(root); err != nil && !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	if err := UnmountTree(hold); err != nil {
		t.Fatal(err)
	}

	// On disk the files belong to the neutral owner.
	if err := Mount(node, hold, "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if uid := owner(t, hold+"/ann/letter"); uid != 65534 {
		t.Errorf("on disk the file belongs to %d", uid)
	}
	if err := UnmountTree(hold); err != nil {
		t.Fatal(err)
	}
}

func TestRefusals(t *testing.T) {
	testenv.Need(t, "root")
	dir := testenv.Scratch(t)
	if err := os.Symlink("/tmp", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := Mount("none", filepath.Join(dir, "link"), "tmpfs", 0, ""); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("mounting on a symlink: %v", err)
	}
	if err := Mount("none", dir, "nosuchfs", 0, ""); !fault.Is(err, fault.NotSupported) {
		t.Errorf("unknown file system: %v", err)
	}
	private := filepath.Join(dir, "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", private, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", private, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	if err := Publish(root, filepath.Join(private, "ann")); !fault.Is(err, fault.NotSupported) {
		t.Errorf("publishing on a private mount: %v", err)
	}
	if err := UnmountTree(private); err != nil {
		t.Error(err)
	}
	if point, err := IsMountPoint(filepath.Join(dir, "nothing")); err != nil || point {
		t.Errorf("a missing path: %v, %v", point, err)
	}
}

func TestDirtyMark(t *testing.T) {
	path := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(path, "user.test", []byte("1"), 0); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("no user attributes on this file system")
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	is := func(want bool) {
		t.Helper()
		if got, err := IsDirty(path); err != nil || got != want {
			t.Errorf("dirty %v, %v; want %v", got, err, want)
		}
	}
	is(false)
	if set, err := SetDirty(f); err != nil || !set {
		t.Errorf("first mark: %v, %v", set, err)
	}
	is(true)
	if set, err := SetDirty(f); err != nil || set {
		t.Errorf("second mark: %v, %v", set, err)
	}
	if err := ClearDirty(f); err != nil {
		t.Error(err)
	}
	is(false)
	if err := ClearDirty(f); err != nil {
		t.Error(err)
	}
	if err := unix.Setxattr(path, dirtyMark, []byte("10"), 0); err != nil {
		t.Fatal(err)
	}
	is(false)
}
