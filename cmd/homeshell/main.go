// Command homeshell is the shell of an SSH session whose home is not active
// yet: a key let the user in, and only the password opens the home. It asks on
// the terminal, has the home activated and the session made a full one, and
// becomes the user's own shell. It decides nothing about homes; the service
// knows from the caller's uid whose home is meant.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"hearth/homed/home1"
	"hearth/internal/secret"
	"hearth/records"
)

func main() {
	s, err := open(context.Background())
	if err == nil {
		// Returns only on failure.
		err = s.become(unix.Exec)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// open makes the home active and returns the shell that the user gets.
func open(ctx context.Context) (*session, error) {
	u := &unlock{tell: func(line string) { fmt.Fprintln(os.Stderr, line) }, machine: machine()}
	defer u.Close()
	environ := os.Environ()
	var err error
	if environ, err = u.harvest(environ); err != nil {
		return nil, err
	}
	_ = os.Unsetenv("PASSWORD")
	if t, err := openTerminal(); err == nil {
		u.ask = t.ask
	}
	homes, err := home1.Dial(ctx)
	if err != nil {
		return nil, notify("Failed to connect to system bus: %v", err)
	}
	defer func() { _ = homes.Close() }()
	u.homes = homes
	record, err := u.run(ctx)
	if err != nil {
		return nil, err
	}
	s := &session{view: record.View(u.machine), args: os.Args, environ: environ}
	return s, s.upgrade(setClass)
}

// machine tells which parts of a record are about us.
func machine() records.Machine {
	var m records.Machine
	if id, err := os.ReadFile("/etc/machine-id"); err == nil {
		m.ID = strings.TrimSpace(string(id))
	}
	m.Hostname, _ = os.Hostname()
	return m
}

// setClass asks the login manager to make the session a full one; it answers
// when the user's service manager runs.
func setClass() error {
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	call := conn.Object("org.freedesktop.login1", "/org/freedesktop/login1/session/self").
		Call("org.freedesktop.login1.Session.SetClass", 0, "user")
	var e dbus.Error
	if errors.As(call.Err, &e) && e.Name == "org.freedesktop.DBus.Error.UnknownMethod" {
		// A login manager without unfinished sessions made a full one at once.
		return nil
	}
	return call.Err
}

// A session is what is left to do once the home is active.
type session struct {
	view    records.View
	args    []string
	environ []string
}

func (s *session) env(name string) (string, bool) {
	for _, kv := range slices.Backward(s.environ) {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v, true
		}
	}
	return "", false
}

func (s *session) unset(name string) {
	s.environ = slices.DeleteFunc(s.environ, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

func (s *session) set(name, value string) {
	s.unset(name)
	s.environ = append(s.environ, name+"="+value)
}

// upgrade turns an unfinished session into a full one.
func (s *session) upgrade(setClass func() error) error {
	value, ok := s.env("XDG_SESSION_INCOMPLETE")
	if !ok {
		return nil
	}
	incomplete, valid := parseBool(value)
	if !valid {
		return notify("Failed to parse $XDG_SESSION_INCOMPLETE: %s", value)
	}
	if !incomplete {
		return nil
	}
	if err := setClass(); err != nil {
		return notify("Failed to upgrade session: %v", err)
	}
	s.set("XDG_SESSION_CLASS", "user")
	s.unset("XDG_SESSION_INCOMPLETE")
	// The user's bus did not exist when the session was opened.
	if dir, ok := s.env("XDG_RUNTIME_DIR"); ok && filepath.IsAbs(dir) {
		if _, has := s.env("DBUS_SESSION_BUS_ADDRESS"); !has {
			if info, err := os.Stat(dir + "/bus"); err == nil && info.Mode().Type() == os.ModeSocket {
				s.set("DBUS_SESSION_BUS_ADDRESS", "unix:path="+dir+"/bus")
			}
		}
	}
	return nil
}

func parseBool(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	}
	return false, false
}

// fallbackShells are the names of shells like this one: ours and systemd's.
var fallbackShells = []string{"homeshell", "systemd-home-fallback-shell"}

// become replaces the process by the user's shell, in the user's home.
func (s *session) become(exec func(path string, args, environ []string) error) error {
	shell, home := s.view.Shell, s.view.HomeDirectory
	if slices.Contains(fallbackShells, filepath.Base(shell)) {
		return notify("Primary shell of '%s' is fallback shell, refusing loop.", s.view.UserName)
	}
	if err := os.Chdir(home); err != nil {
		return notify("Failed to change directory to home directory '%s': %v", home, err)
	}
	s.set("SHELL", shell)
	s.set("HOME", home)
	for _, name := range []string{"PASSWORD", "NEWPASSWORD", "PIN"} {
		s.unset(name)
	}
	// A dash in front of the name is how a shell knows that it is a login
	// shell.
	name := filepath.Base(shell)
	if len(s.args) == 0 || strings.HasPrefix(s.args[0], "-") {
		name = "-" + name
	}
	args := []string{name}
	if len(s.args) > 1 {
		args = append(args, s.args[1:]...)
	}
	if err := exec(shell, args, s.environ); err != nil {
		return notify("Failed to execute shell '%s': %v", shell, err)
	}
	return nil
}

// passwordOf takes a password out of an environment. The strings of the
// process's own copy cannot be wiped; they end with the exec.
func passwordOf(environ []string) (rest []string, password *secret.Bytes, err error) {
	for _, kv := range environ {
		v, ok := strings.CutPrefix(kv, "PASSWORD=")
		if !ok {
			rest = append(rest, kv)
		} else if password == nil && v != "" {
			if password, err = secret.Copy([]byte(v)); err != nil {
				return nil, nil, err
			}
		}
	}
	return rest, password, nil
}
