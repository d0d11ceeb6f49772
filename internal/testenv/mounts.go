package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inside marks the test process that already has its mount namespace.
const inside = "HOMED_TEST_MOUNT_NAMESPACE"

// Main is a TestMain for packages whose tests mount. As root it runs the test
// binary again in a mount namespace of its own, in which / is private and /run
// a mount point that is shared: what a test leaves behind ends with it, and
// what the tests see is the propagation of a systemd host. Without root it
// just runs the tests, which then skip by Need.
//
// It is used as
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
func Main(m *testing.M) {
	if root() != nil || os.Getenv(inside) != "" {
		if os.Getenv(inside) != "" {
			if err := isolate(); err != nil {
				fmt.Fprintln(os.Stderr, "test namespace:", err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	// With Unshareflags the runtime would make / private by itself, before
	// the child could say otherwise; Cloneflags leaves it to isolate.
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	signal.Ignore(os.Interrupt, syscall.SIGQUIT) // the child's to answer
	var exit *exec.ExitError
	switch err := cmd.Run(); {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		os.Exit(exit.ExitCode())
	default:
		fmt.Fprintln(os.Stderr, "test namespace:", err)
		os.Exit(1)
	}
}

func isolate() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	if err := unix.Mount("/run", "/run", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind /run: %w", err)
	}
	if err := unix.Mount("", "/run", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make /run shared: %w", err)
	}
	return nil
}

// Scratch returns a fresh directory that is a shared mount point, mode 0755.
// At the end of the test it fails the test for every mount below it and every
// loop device on a file in it that is still there, then clears them away.
// Needs root, and Main.
func Scratch(t testing.TB) string {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Fatal("testenv.Scratch without testenv.Main")
	}
	// A path of ours: t.TempDir holds the test's name, which may be long or
	// hold a space.
	dir, err := os.MkdirTemp("", "hearth")
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind scratch: %v", err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatalf("share scratch: %v", err)
	}
	t.Cleanup(func() {
		for _, m := range MountsBelow(dir) {
			t.Errorf("leaked mount: %s", m)
			_ = unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		// A detached device is there for as long as udev still looks at it.
		for end := time.Now().Add(3 * time.Second); len(LoopsBelow(dir)) > 0 && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
		}
		for _, l := range LoopsBelow(dir) {
			t.Errorf("leaked loop device: %s", l)
			if fd, err := unix.Open(l, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
				_ = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
				_ = unix.Close(fd)
			}
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount scratch: %v", err)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove scratch: %v", err)
		}
	})
	return dir
}

// MountsBelow lists the mount points strictly below dir, the newest first.
// Paths with a space or the like appear as the kernel escapes them.
func MountsBelow(dir string) []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			list = append([]string{f[4]}, list...)
		}
	}
	return list
}

// LoopsBelow lists the nodes of the loop devices whose backing file is, or
// was, below dir.
func LoopsBelow(dir string) []string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var list []string
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(data), dir+"/") {
			list = append(list, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return list
}

// Keys lists the kernel's keys that this process may see and whose line in
// /proc/keys has one of the parts.
func Keys(parts ...string) []string {
	data, err := os.ReadFile("/proc/keys")
	if err != nil {
		return nil
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		if slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(line, p) }) {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}

// KeysLeft is Keys once the kernel has had time to clear away what was dropped.
func KeysLeft(parts ...string) (list []string) {
	for range 100 {
		if list = Keys(parts...); len(list) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return list
}
