// Package testenv knows what a test may ask of the machine it runs on, and
// gives tests that mount a place where they cannot hurt that machine. It
// leaves what is tested to the tests; no shipped program imports it.
package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The environment that decides between skipping and failing.
const (
	// Strict set to 1 turns a need that is not met into a failure, so that
	// green means that the test ran.
	Strict = "HOMED_TEST_STRICT"
	// Needs narrows Strict to a comma separated list of needs that must be
	// there: a machine without device mapper still is strict about loop
	// devices. Unset means all.
	Needs = "HOMED_TEST_NEEDS"
)

// features are the needs that are not the name of a program.
var features = map[string]func() error{
	"root":     root,
	"loop":     func() error { return opens("/dev/loop-control") },
	"dm":       deviceMapper,
	"dm-crypt": dmCrypt,
	"fuse":     func() error { return opens("/dev/fuse") },
	"ext4":     func() error { return fileSystem("ext4") },
	"btrfs":    func() error { return fileSystem("btrfs") },
	"xfs":      func() error { return fileSystem("xfs") },
	"quota":    userQuota,
	"keyring":  keyring,
	"udev":     func() error { return opens("/run/udev/control") },
	"steps":    followable,
	"systemd":  func() error { return exists("/run/systemd/system") },
}

// Need skips the test, or fails it under Strict, unless everything named is
// there: root, loop, dm, dm-crypt, fuse, ext4, btrfs, xfs, quota (that counts by
// user), keyring, udev, systemd, steps (of another process, to be followed); any other word is a program, looked for in $PATH and the sbin
// directories.
func Need(t testing.TB, needs ...string) {
	t.Helper()
	for _, need := range needs {
		err := met(need)
		if err == nil {
			continue
		}
		if mustHave(need) {
			t.Fatalf("needs %s: %v", need, err)
		}
		t.Skipf("needs %s: %v", need, err)
	}
}

func met(need string) error {
	if check, ok := features[need]; ok {
		return check()
	}
	if _, err := exec.LookPath(need); err == nil {
		return nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if unix.Access(filepath.Join(dir, need), unix.X_OK) == nil {
			return nil
		}
	}
	return fmt.Errorf("no such program")
}

func mustHave(need string) bool {
	if os.Getenv(Strict) != "1" {
		return false
	}
	list, ok := os.LookupEnv(Needs)
	if !ok {
		return true
	}
	for n := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(n) == need {
			return true
		}
	}
	return false
}

// root wants the powers, not the number: root in a user namespace cannot
// mount block devices nor set up loops.
// root is not had where HEARTH_TEST_ROOT=0 says so: under the race detector the
// root tests take minutes, and they run without it in a part of their own.
func root() error {
	if os.Getenv("HEARTH_TEST_ROOT") == "0" {
		return errors.New("not in this part; make test-root runs it")
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("running as uid %d", os.Geteuid())
	}
	if data, err := os.ReadFile("/proc/self/uid_map"); err == nil {
		if f := strings.Fields(string(data)); len(f) != 3 || f[1] != "0" {
			return fmt.Errorf("root in a user namespace")
		}
	}
	return nil
}

func opens(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == unix.ENXIO { // a socket: it is there, and cannot be opened
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return unix.Close(fd)
}

// followable asks for what internal/steps needs of the kernel.
func followable() error {
	action := uint32(unix.SECCOMP_RET_USER_NOTIF)
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action))); errno != 0 {
		return fmt.Errorf("seccomp notices: %w", errno)
	}
	p, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer func() { _ = unix.Close(p) }()
	fd, err := unix.PidfdGetfd(p, 0, 0)
	if err != nil {
		return fmt.Errorf("pidfd_getfd: %w", err)
	}
	return unix.Close(fd)
}

func exists(path string) error {
	_, err := os.Stat(path)
	return err
}

// fileSystem accepts a loadable module too: mount(2) loads it.
func fileSystem(name string) error {
	data, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return nil
		}
	}
	if modprobe(name) == nil {
		return nil
	}
	return fmt.Errorf("not in /proc/filesystems")
}

func modprobe(name string) error {
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if unix.Access(dir+"/modprobe", unix.X_OK) == nil {
			return exec.Command(dir+"/modprobe", "-q", name).Run()
		}
	}
	return fmt.Errorf("no modprobe")
}

// userQuota wants the format that ext4 keeps it in.
func userQuota() error {
	if err := exists("/proc/sys/fs/quota"); err != nil {
		return err
	}
	return modprobe("quota_v2")
}

func deviceMapper() error {
	if opens("/dev/mapper/control") != nil {
		_ = modprobe("dm-mod")
	}
	return opens("/dev/mapper/control")
}

// dmCrypt asks the kernel for the version of the target, which loads it.
func dmCrypt() error {
	if err := deviceMapper(); err != nil {
		return err
	}
	fd, err := unix.Open("/dev/mapper/control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	var buf struct {
		unix.DmIoctl
		room [1024]byte
	}
	buf.Version = [3]uint32{4, 41, 0} // the first that knows DM_GET_TARGET_VERSION
	buf.Data_size = uint32(unsafe.Sizeof(buf))
	buf.Data_start = unix.SizeofDmIoctl
	copy(buf.Name[:], "crypt")
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.DM_GET_TARGET_VERSION, uintptr(unsafe.Pointer(&buf))); errno != 0 {
		return fmt.Errorf("device mapper has no crypt target: %w", errno)
	}
	return nil
}

func keyring() error {
	_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_PROCESS_KEYRING, true)
	return err
}
