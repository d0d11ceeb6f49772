package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/pamhome/session"
	"hearth/records"
)

const machineID = "0123456789abcdef0123456789abcdef"

// A service has one home, which the password "right" opens.
type service struct {
	record string // JSON members, with a comma in front
	active bool
	locked bool
	faults []fault.Kind // answers in order; used up: by the password
	calls  []string
}

func (s *service) GetUserRecordByName(_ context.Context, name string) ([]byte, bool, error) {
	state := "inactive"
	if s.locked {
		state = "locked"
	}
	return fmt.Appendf(nil, `{"userName":"ann","uid":60400,"shell":"/bin/zsh","status":{%q:{"useFallback":%v,"state":%q}}%s}`, machineID, !s.active, state, s.record), false, nil
}

func (s *service) ActivateHomeIfReferenced(_ context.Context, name string, secrets *secret.Bytes) error {
	if s.locked {
		return fault.New(fault.HomeLocked, "activate", nil)
	}
	return s.open(secrets)
}

func (s *service) AcquireHome(_ context.Context, name string, secrets *secret.Bytes, suspend bool) (*os.File, error) {
	if err := s.open(secrets); err != nil {
		return nil, err
	}
	return os.Open("/dev/null")
}

func (s *service) open(secrets *secret.Bytes) error {
	sent := ""
	_ = secrets.Use(func(p []byte) error { sent = string(p); return nil })
	s.calls = append(s.calls, sent)
	if len(s.faults) > 0 {
		k := s.faults[0]
		s.faults = s.faults[1:]
		return fault.New(k, "activate", nil)
	}
	if !strings.Contains(sent, `"right"`) {
		return fault.New(fault.BadPassword, "activate", nil)
	}
	s.active = true
	return nil
}

// try runs the questions with those answers; it returns what was shown.
func try(t *testing.T, s *service, answers []string, cached []string, environ ...string) (lines []string, err error) {
	t.Helper()
	u := &unlock{homes: s, machine: records.Machine{ID: machineID}, tell: func(l string) { lines = append(lines, l) }, now: time.Now,
		cached: func() (list []*secret.Bytes) {
			for _, c := range cached {
				p, _ := secret.Copy([]byte(c))
				list = append(list, p)
			}
			return list
		}}
	defer u.Close()
	rest, err := u.harvest(environ)
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(rest, func(kv string) bool { return strings.HasPrefix(kv, "PASSWORD=") || strings.HasPrefix(kv, "PIN=") }) {
		t.Error("the secrets stay in the environment")
	}
	if answers != nil {
		u.ask = func(prompt string) (*secret.Bytes, error) {
			lines = append(lines, prompt)
			if len(answers) == 0 {
				return nil, errCanceled
			}
			a := answers[0]
			answers = answers[1:]
			return secret.Copy([]byte(a))
		}
	}
	r, err := u.run(context.Background())
	if err == nil && (r == nil || !s.active) {
		t.Error("no error, and no active home")
	}
	return lines, err
}

func TestUnlock(t *testing.T) {
	const prompt = "Please enter password for user ann: "
	const wrong = "Password incorrect or not sufficient, please try again."
	const pinPrompt = "Please enter security token PIN for user ann: "
	five := slices.Repeat([]string{prompt, wrong}, 5)[:9]
	for _, tc := range []struct {
		name    string
		s       service
		answers []string
		cached  []string
		environ []string
		lines   []string
		err     string
		calls   []string // not looked at if nil
	}{
		{name: "active", s: service{active: true}},
		{name: "right", answers: []string{"right"}, lines: []string{prompt}, calls: []string{`{}`, `{"password":["right"]}`}},
		{name: "a call whose answer is known is not made", s: service{record: `,"privileged":{"hashedPassword":["$6$x$y"]}`},
			answers: []string{"right"}, lines: []string{prompt}, calls: []string{`{"password":["right"]}`}},
		{name: "nor without a terminal", s: service{record: `,"privileged":{"hashedPassword":["$6$x$y"]}`}, calls: []string{},
			err: "Home of user ann is not active and there is no terminal to ask on; log in with a terminal first."},
		{name: "wrong, right", answers: []string{"wrong", "right"}, lines: []string{prompt, wrong, prompt},
			calls: []string{`{}`, `{"password":["wrong"]}`, `{"password":["right","wrong"]}`}},
		{name: "empty", answers: []string{""}, lines: []string{prompt, wrong, prompt}, err: "Failed to acquire password: Operation canceled"},
		{name: "five wrong", answers: []string{"1", "2", "3", "4", "5", "6"}, lines: five, err: "Too many unsuccessful login attempts for user ann, refusing."},
		{name: "environment", environ: []string{"A=b", "PASSWORD=right"}, cached: []string{"x"}, calls: []string{`{"password":["right"]}`}},
		{name: "cached", cached: []string{"old", "right"}, calls: []string{`{"password":["old","right"]}`}},
		{name: "no terminal", err: "Home of user ann is not active and there is no terminal to ask on; log in with a terminal first."},
		{name: "no reference", s: service{faults: []fault.Kind{fault.HomeNotReferenced}}, err: "Called without reference on home taken, can't operate."},
		{name: "absent", s: service{faults: []fault.Kind{fault.HomeAbsent}},
			err: "Home of user ann is currently absent, please plug in the necessary storage device or backing file system."},
		{name: "recovery key", s: service{faults: []fault.Kind{fault.BadRecoveryKey, fault.BadRecoveryKey}}, answers: []string{"wrong", "right"},
			lines: []string{"Please enter recovery key for user ann: ", "Recovery key incorrect or not sufficient, please try again.", "Please enter recovery key for user ann: "}},
		{name: "busy for a moment", s: service{faults: []fault.Kind{fault.HomeBusy}}, answers: []string{"right"}, lines: []string{prompt}},
		{name: "locked", s: service{locked: true}, answers: []string{"right"}, lines: []string{prompt}, calls: []string{`{}`, `{"password":["right"]}`}},
		{name: "token", s: service{faults: []fault.Kind{fault.TokenPinNeeded, fault.BadPinOneTryLeft, fault.TokenPresenceNeeded, fault.BadPassword}}, answers: []string{"1", "2", "right"},
			lines: []string{pinPrompt, "Security token PIN incorrect, please try again (only one try left!).", pinPrompt, "Please confirm presence on security token.", prompt},
			calls: []string{`{}`, `{"tokenPin":["1"]}`, `{"tokenPin":["2"]}`, `{"tokenPin":["2"],"fido2UserPresencePermitted":true}`, `{"password":["right"],"tokenPin":["2"],"fido2UserPresencePermitted":true}`}},
		{name: "a token that is never touched", s: service{faults: slices.Repeat([]fault.Kind{fault.TokenPresenceNeeded}, 9)}, answers: []string{},
			lines: slices.Repeat([]string{"Please confirm presence on security token."}, 5), err: "Too many unsuccessful login attempts for user ann, refusing."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lines, err := try(t, &tc.s, tc.answers, tc.cached, tc.environ...)
			if !slices.Equal(lines, tc.lines) {
				t.Errorf("shown %q, want %q", lines, tc.lines)
			}
			if got := fmt.Sprint(err); (err != nil || tc.err != "") && got != tc.err {
				t.Errorf("%q, want %q", got, tc.err)
			}
			if tc.calls != nil && !slices.Equal(tc.s.calls, tc.calls) {
				t.Errorf("calls %q, want %q", tc.s.calls, tc.calls)
			}
		})
	}
}

func TestBecome(t *testing.T) {
	home := t.TempDir()
	t.Chdir("/")
	for _, tc := range []struct{ called, want []string }{
		{[]string{"-homeshell"}, []string{"-zsh"}},
		{[]string{"/usr/lib/hearth/homeshell", "-c", "ls"}, []string{"zsh", "-c", "ls"}},
		{nil, []string{"-zsh"}},
	} {
		s := &shell{args: tc.called, environ: []string{"HOME=/", "SHELL=x", "PIN=1", "TERM=y", "PASSWORD=z"}}
		s.view.Shell, s.home = "/bin/zsh", home
		err := s.become(func(path string, args, environ []string) error {
			slices.Sort(environ)
			if path != "/bin/zsh" || !slices.Equal(args, tc.want) || !slices.Equal(environ, []string{"HOME=" + home, "SHELL=/bin/zsh", "TERM=y"}) {
				t.Errorf("%v: exec %s %q %q", tc.called, path, args, environ)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	for _, name := range fallbackShells {
		s := &shell{}
		s.view.Shell, s.home, s.view.UserName = filepath.Join("/usr/bin", name), home, "ann"
		err := s.become(func(string, []string, []string) error { t.Error("a loop"); return nil })
		if fmt.Sprint(err) != "Primary shell of 'ann' is fallback shell, refusing loop." {
			t.Error(err)
		}
	}
}

func TestUpgrade(t *testing.T) {
	for _, tc := range []struct {
		value, class string
		calls        int
		fails        bool
	}{
		{"", "user", 0, false}, {"1", "user-incomplete", 1, false}, {"no", "user-incomplete", 0, false},
		{"junk", "user-incomplete", 0, true}, {"1", "user-light", 0, false}, {"1", "", 0, false},
	} {
		s := &shell{}
		if tc.class != "" {
			s.set("XDG_SESSION_CLASS", tc.class)
		}
		if tc.value != "" {
			s.set("XDG_SESSION_INCOMPLETE", tc.value)
		}
		calls := 0
		err := s.upgrade(func() error { calls++; return nil })
		if calls != tc.calls || (err != nil) != tc.fails {
			t.Errorf("%q: %d calls, %v", tc.value, calls, err)
		}
		if class, _ := s.env("XDG_SESSION_CLASS"); calls == 1 && class != "user" {
			t.Errorf("class %q", class)
		}
	}
}

// TestSettle: area, bus and environment of the record.
func TestSettle(t *testing.T) {
	home, run := t.TempDir(), t.TempDir()
	for _, dir := range []string{home + "/Areas/work", run + "/Areas/work"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(home+"/Areas/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bus := range []string{run + "/bus", run + "/Areas/work/bus"} {
		l, err := net.Listen("unix", bus)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
	}
	here := []string{"A=record", "DBUS_SESSION_BUS_ADDRESS=unix:path=" + run + "/bus", "EMAIL=ann@example.org", "HOME=" + home, "TZ=:UTC", "XDG_RUNTIME_DIR=" + run}
	work := []string{"A=record", "DBUS_SESSION_BUS_ADDRESS=unix:path=" + run + "/Areas/work/bus", "EMAIL=ann@example.org", "HOME=" + home + "/Areas/work", "TZ=:UTC", "XDG_AREA=work", "XDG_RUNTIME_DIR=" + run + "/Areas/work"}
	gone := "Path '" + home + "/Areas/%[1]s' of requested user area '%[1]s' is not accessible, reverting to regular home directory."
	for _, tc := range []struct {
		areaEnv, areaRecord, runtimeDir string
		want                            []string
		says                            string
	}{
		{"-", "", run, here, ""},
		{"work", "", run, work, ""},
		{"-", "work", run, work, ""},
		{"-", "work", run + "/Areas/work", work, ""},
		{"", "work", run, here, ""},
		{"none", "", run, here, fmt.Sprintf(gone, "none")},
		{"file", "", run, here, fmt.Sprintf(gone, "file")},
	} {
		s := &shell{home: home, environ: []string{"A=host", "XDG_RUNTIME_DIR=" + tc.runtimeDir}}
		says := ""
		s.tell = func(line string) { says = line }
		if tc.areaEnv != "-" {
			s.set("XDG_AREA", tc.areaEnv)
		}
		s.view.HomeDirectory, s.view.Login.DefaultArea, s.view.Environment = home, tc.areaRecord, []string{"A=record"}
		s.view.Login.EmailAddress, s.view.Login.TimeZone, s.view.Login.Languages = "ann@example.org", "UTC", []string{"xx_XX.UTF-8"}
		s.settle(session.Machine{TimeZone: func(string) bool { return true }, Locale: func(string) bool { return false }})
		s.set("HOME", s.home)
		slices.Sort(s.environ)
		if !slices.Equal(s.environ, tc.want) || says != tc.says {
			t.Errorf("%+v:\n%q\nsays %q", tc, s.environ, says)
		}
	}
}

// TestTerminal types at a real one.
// TestInterrupt: Ctrl-C at the prompt ends the program by that signal, and its
// terminal echoes again; Ctrl-Z does nothing.
func TestInterrupt(t *testing.T) {
	if os.Getenv("HOMESHELL_ASK") == "1" {
		_, err := (&terminal{0}).ask("? ")
		t.Fatal(err)
	}
	master, slave, err := pty.Open()
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = master.Close(); _ = slave.Close() }()
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestInterrupt$")
	cmd.Env = append(os.Environ(), "HOMESHELL_ASK=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	seen := make([]byte, 2)
	if _, err := io.ReadFull(master, seen); err != nil || string(seen) != "? " {
		t.Fatalf("prompt %q: %v", seen, err)
	}
	if _, err := master.WriteString("rig\x1aht\x03"); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGINT {
		t.Errorf("ended with %v", err)
	}
	after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal is %+v, was %+v, %v", after, before, err)
	}
}

func TestTerminal(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = master.Close(); _ = slave.Close() }()
	term := &terminal{int(slave.Fd())}
	stderr := os.Stderr
	os.Stderr = slave
	defer func() { os.Stderr = stderr }()
	for _, tc := range []struct{ typed, want string }{{"rig\x7fght\r", "right"}, {"\r", ""}, {"\x04", "canceled"}} {
		got := make(chan string, 1)
		go func() {
			p, err := term.ask("? ")
			if err != nil {
				got <- "canceled"
				return
			}
			_ = p.Use(func(b []byte) error { got <- string(b); return nil })
			p.Close()
		}()
		// A terminal hands out what it has piece by piece: the end of the line
		// before may come now.
		for seen := ""; seen != "? "; {
			b := make([]byte, 1)
			if _, err := master.Read(b); err != nil || !strings.HasPrefix("? ", seen+strings.TrimLeft(string(b), "\r\n")) {
				t.Fatalf("prompt %q%q: %v", seen, b, err)
			}
			seen += strings.TrimLeft(string(b), "\r\n")
		}
		if _, err := master.WriteString(tc.typed); err != nil {
			t.Fatal(err)
		}
		if g := <-got; g != tc.want {
			t.Errorf("typed %q, got %q", tc.typed, g)
		}
		rest := make([]byte, 64)
		n, _ := master.Read(rest)
		if s := strings.TrimSpace(string(rest[:n])); s != "" {
			t.Errorf("typed %q, shown %q", tc.typed, s)
		}
	}
}
