package shimtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"hearth/homed/home1"
	"hearth/internal/testenv"
)

// service stands in for the home service on a bus of its own: one home, ann,
// whose password is "right". It counts who holds her home by a FIFO, as the
// real one does.
type service struct {
	mu    sync.Mutex
	fifo  string
	calls []string
	// active without a password, for RefHome
	active atomic.Bool
	slow   time.Duration // of AcquireHome
}

func (s *service) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
}

func (s *service) taken() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := strings.Join(s.calls, "\n")
	s.calls = nil
	return c
}

func fail(name string) *dbus.Error {
	return dbus.NewError("org.freedesktop.home1."+name, []any{"ann: " + name})
}

func (s *service) GetUserRecordByName(name string) (string, bool, dbus.ObjectPath, *dbus.Error) {
	s.note("GetUserRecordByName %s", name)
	if name != "ann" {
		return "", false, "/", fail("NoSuchHome")
	}
	return `{"userName":"ann","uid":60400,"gid":60400,"disposition":"regular","privileged":{"hashedPassword":["$6$x$y"]}}`,
		false, "/org/freedesktop/home1/home/60400", nil
}

// writer is a reference: the write end of the FIFO.
func (s *service) writer() (dbus.UnixFD, *dbus.Error) {
	fd, err := unix.Open(s.fifo, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	return dbus.UnixFD(fd), nil
}

func (s *service) AcquireHome(name, secrets string, suspend bool) (dbus.UnixFD, *dbus.Error) {
	s.note("AcquireHome %s %s %v", name, secrets, suspend)
	time.Sleep(s.slow)
	if !strings.Contains(secrets, `"right"`) {
		return 0, fail("BadPassword")
	}
	return s.writer()
}

func (s *service) RefHome(name string, suspend bool) (dbus.UnixFD, *dbus.Error) {
	s.note("RefHome %s %v", name, suspend)
	if !s.active.Load() {
		return 0, fail("HomeNotActive")
	}
	return s.writer()
}

func (s *service) RefHomeUnrestricted(name string, suspend bool) (dbus.UnixFD, *dbus.Error) {
	s.note("RefHomeUnrestricted %s %v", name, suspend)
	return s.writer()
}

func (s *service) ReleaseHome(name string) *dbus.Error {
	s.note("ReleaseHome %s", name)
	if !othersGone(s.fifo) {
		return fail("HomeBusy")
	}
	return nil
}

func (s *service) ChangePasswordHome(name, next, old string) *dbus.Error {
	s.note("ChangePasswordHome %s %s %s", name, next, old)
	return dbus.NewError("org.freedesktop.DBus.Error.NotSupported", []any{"Changing passwords is not available yet."})
}

// othersGone looks for the FIFO among the descriptors of all processes but
// this one.
func othersGone(path string) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	self := fmt.Sprintf("/proc/%d/", os.Getpid())
	for _, p := range all {
		if strings.HasPrefix(p, self) {
			continue
		}
		if to, err := os.Readlink(p); err == nil && to == path {
			return false
		}
	}
	return true
}

// chain builds the real module with the real helper, against that service.
func chain(t *testing.T) (*bench, *service) {
	t.Helper()
	address := testenv.Bus(t)
	s := &service{fifo: filepath.Join(t.TempDir(), "ann.dont-suspend")}
	if err := unix.Mkfifo(s.fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	keep, err := os.OpenFile(s.fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keep.Close() })
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.Export(s, home1.ManagerPath, home1.ManagerInterface); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(home1.Name, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return helperOn(t, address), s
}

// helperOn builds the real module with the real helper, which finds its bus at
// an address.
func helperOn(t *testing.T, address string) *bench {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "pamhome"), "hearth/cmd/pamhome").CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	helper := filepath.Join(dir, "helper")
	text := fmt.Sprintf("#!/bin/sh\nDBUS_SYSTEM_BUS_ADDRESS='%s' exec %s\n", address, filepath.Join(dir, "pamhome"))
	if err := os.WriteFile(helper, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	b := build(t, helper, "")
	b.service("svc", "")
	return b
}

// TestNoService: without a bus, or without the service on it, every user logs
// in as if the module were not there.
func TestNoService(t *testing.T) {
	for name, address := range map[string]string{"no bus": "unix:path=/nowhere/bus", "no service": testenv.Bus(t)} {
		out := helperOn(t, address).login("svc", "ann", "auth", "acct", "open", "close", "chau")
		want := strings.Join([]string{result("auth", "USER_UNKNOWN"), result("acct", "USER_UNKNOWN"), result("open", "SUCCESS"),
			result("close", "SUCCESS"), result("chau", "USER_UNKNOWN")}, "\n") + "\n"
		if out != want {
			t.Errorf("%s:\n%s", name, out)
		}
	}
}

// TestChain is a login through libpam, module, helper and bus.
func TestChain(t *testing.T) {
	b, s := chain(t)
	expect(t, b.login("-a", "wrong", "-a", "right", "-i", "tty=tty1", "svc", "ann", "auth", "acct", "setcred", "open", "env", "fds", "close", "fds"),
		"  conv n=1 PROMPT_ECHO_OFF 'Password: ' -> 'wrong'",
		"  conv n=1 ERROR_MSG       'Password incorrect or not sufficient for authentication of user ann.'",
		"  conv n=1 PROMPT_ECHO_OFF 'Sorry, try again: ' -> 'right'",
		result("auth", "SUCCESS"), result("acct", "SUCCESS"), result("setcred", "SUCCESS"), result("open", "SUCCESS"),
		"env SYSTEMD_HOME=1", "env SYSTEMD_HOME_SUSPEND=0", "env end",
		"fd fifo cloexec", "fds end", result("close", "SUCCESS"), "fds end")
	calls := s.taken()
	for _, want := range []string{`AcquireHome ann {"password":["wrong"]} false`, `AcquireHome ann {"password":["right","wrong"]} false`, "ReleaseHome ann"} {
		if !strings.Contains(calls, want) {
			t.Errorf("no %s in\n%s", want, calls)
		}
	}
	if strings.Contains(calls, "{}") {
		t.Errorf("a call whose answer was known:\n%s", calls)
	}
	// The login program that dies takes its reference along.
	if !othersGone(s.fifo) {
		t.Error("somebody still holds the home")
	}

	// A key login cannot ask: incomplete, and the shell asks later.
	expect(t, b.login("-r", "-i", "tty=ssh", "svc", "ann", "acct", "open", "env", "close"),
		"  conv n=1 PROMPT_ECHO_OFF 'Password: ' -> PAM_CONV_ERR",
		result("acct", "SUCCESS"), result("open", "SUCCESS"),
		"env XDG_SESSION_INCOMPLETE=1", "env SYSTEMD_HOME=1", "env SYSTEMD_HOME_SUSPEND=0", "env end", result("close", "SUCCESS"))
	expect(t, b.login("-r", "svc", "ann", "acct", "open"),
		"  conv n=1 PROMPT_ECHO_OFF 'Password: ' -> PAM_CONV_ERR",
		"  conv n=1 ERROR_MSG       'Home of user ann is currently not active, please log in locally first.'",
		result("acct", "PERM_DENIED"),
		"  conv n=1 PROMPT_ECHO_OFF 'Password: ' -> PAM_CONV_ERR",
		"  conv n=1 ERROR_MSG       'Home of user ann is currently not active, please log in locally first.'",
		result("open", "PERM_DENIED"))
	s.taken()
	expect(t, b.login("svc", "bob", "auth", "acct", "open", "close", "chau"),
		"auth = PAM_USER_UNKNOWN PAM_USER='bob'", "acct = PAM_USER_UNKNOWN PAM_USER='bob'", "open = PAM_SUCCESS PAM_USER='bob'",
		"close = PAM_SUCCESS PAM_USER='bob'", "chau = PAM_USER_UNKNOWN PAM_USER='bob'")
	if calls := s.taken(); calls != "GetUserRecordByName bob" {
		t.Errorf("for somebody else's user:\n%s", calls)
	}
	expect(t, b.login("-a", "n", "-a", "n", "svc", "ann", "chau"),
		"  conv n=1 PROMPT_ECHO_OFF 'New password: ' -> 'n'",
		"  conv n=1 PROMPT_ECHO_OFF 'Retype new password: ' -> 'n'",
		"  conv n=1 ERROR_MSG       'Changing passwords is not available yet.'",
		result("chau", "SERVICE_ERR"))
	// The child that authenticated is another process than the one that goes on.
	s.active.Store(true)
	expect(t, b.login("-a", "right", "svc", "ann", "fork:auth", "acct", "open", "close"),
		"  conv n=1 PROMPT_ECHO_OFF 'Password: ' -> 'right'",
		result("auth", "SUCCESS"), result("acct", "SUCCESS"), result("open", "SUCCESS"), result("close", "SUCCESS"))
}

// TestHostDies: a login program killed while the home is being opened leaves no
// helper behind, and no reference.
func TestHostDies(t *testing.T) {
	testenv.Need(t, "root") // to see processes that cannot be dumped
	b, s := chain(t)
	s.slow = 5 * time.Second
	cmd := exec.Command(b.host, "-a", "right", b.dir, "svc", "ann", "auth")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for !strings.Contains(s.peek(), "AcquireHome") {
		if time.Now().After(deadline) {
			t.Fatal("the service was never asked")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if helpers(b) != 1 {
		t.Fatalf("%d helpers at work", helpers(b))
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	begin := time.Now()
	for helpers(b) > 0 {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("the helper outlives the login program")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *service) peek() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.calls, "\n")
}

// helpers counts the processes that run this test's helper.
func helpers(b *bench) int {
	n := 0
	all, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, p := range all {
		if to, err := os.Readlink(p); err == nil && strings.HasPrefix(to, filepath.Dir(filepath.Dir(b.dir))+"/"+strings.Split(b.t.Name(), "/")[0]) && strings.HasSuffix(to, "/pamhome") {
			n++
		}
	}
	return n
}
