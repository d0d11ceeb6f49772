package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/creack/pty"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

const machineID = "0123456789abcdef0123456789abcdef"

// A service has one home, which the password "right" opens.
type service struct {
	active bool
	faults []fault.Kind // answers in order; used up: by the password
	calls  []string
}

func (s *service) GetUserRecordByName(_ context.Context, name string) ([]byte, bool, error) {
	return fmt.Appendf(nil, `{"userName":"ann","uid":60400,"shell":"/bin/zsh","status":{%q:{"useFallback":%v}}}`, machineID, !s.active), false, nil
}

func (s *service) ActivateHomeIfReferenced(_ context.Context, name string, secrets *secret.Bytes) error {
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
func try(t *testing.T, s *service, answers []string, environ ...string) (lines []string, err error) {
	t.Helper()
	u := &unlock{homes: s, machine: records.Machine{ID: machineID}, tell: func(l string) { lines = append(lines, l) }}
	defer u.Close()
	rest, err := u.harvest(environ)
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(rest, func(kv string) bool { return strings.HasPrefix(kv, "PASSWORD=") }) {
		t.Error("the password stays in the environment")
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
	five := slices.Repeat([]string{prompt, wrong}, 5)[:9]
	for _, tc := range []struct {
		name    string
		s       service
		answers []string
		environ []string
		lines   []string
		err     string
	}{
		{name: "active", s: service{active: true}},
		{name: "right", answers: []string{"right"}, lines: []string{prompt}},
		{name: "wrong, right", answers: []string{"wrong", "right"}, lines: []string{prompt, wrong, prompt}},
		{name: "empty", answers: []string{""}, lines: []string{prompt, wrong, prompt}, err: "Failed to acquire password: Operation canceled"},
		{name: "five wrong", answers: []string{"1", "2", "3", "4", "5", "6"}, lines: five, err: "Too many unsuccessful login attempts for user ann, refusing."},
		{name: "environment", environ: []string{"A=b", "PASSWORD=right"}},
		{name: "no terminal", err: "Home of user ann is not active and there is no terminal to ask on; log in with a terminal first."},
		{name: "no reference", s: service{faults: []fault.Kind{fault.HomeNotReferenced}}, err: "Called without reference on home taken, can't operate."},
		{name: "absent", s: service{faults: []fault.Kind{fault.HomeAbsent}},
			err: "Home of user ann is currently absent, please plug in the necessary storage device or backing file system."},
		{name: "recovery key", s: service{faults: []fault.Kind{fault.BadRecoveryKey, fault.BadRecoveryKey}}, answers: []string{"wrong", "right"},
			lines: []string{"Please enter recovery key for user ann: ", "Recovery key incorrect or not sufficient, please try again.", "Please enter recovery key for user ann: "}},
		{name: "busy", s: service{faults: []fault.Kind{fault.HomeBusy}}, err: "Operation on home ann failed: " + fault.Public(fault.New(fault.HomeBusy, "", nil))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lines, err := try(t, &tc.s, tc.answers, tc.environ...)
			if !slices.Equal(lines, tc.lines) {
				t.Errorf("shown %q, want %q", lines, tc.lines)
			}
			if got := fmt.Sprint(err); (err != nil || tc.err != "") && got != tc.err {
				t.Errorf("%q, want %q", got, tc.err)
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
		s := &session{args: tc.called, environ: []string{"HOME=/", "SHELL=x", "PIN=1", "TERM=y", "PASSWORD=z"}}
		s.view.Shell, s.view.HomeDirectory = "/bin/zsh", home
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
		s := &session{}
		s.view.Shell, s.view.HomeDirectory, s.view.UserName = filepath.Join("/usr/bin", name), home, "ann"
		err := s.become(func(string, []string, []string) error { t.Error("a loop"); return nil })
		if fmt.Sprint(err) != "Primary shell of 'ann' is fallback shell, refusing loop." {
			t.Error(err)
		}
	}
}

func TestUpgrade(t *testing.T) {
	for _, tc := range []struct {
		value string
		calls int
		fails bool
	}{{"", 0, false}, {"1", 1, false}, {"no", 0, false}, {"junk", 0, true}} {
		s := &session{}
		if tc.value != "" {
			s.environ = []string{"XDG_SESSION_INCOMPLETE=" + tc.value, "XDG_SESSION_CLASS=user-incomplete"}
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

// TestTerminal types at a real one.
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
		seen := make([]byte, 2)
		if _, err := master.Read(seen); err != nil || string(seen) != "? " {
			t.Fatalf("prompt %q: %v", seen, err)
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
