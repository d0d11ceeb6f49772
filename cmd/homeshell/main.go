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
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"hearth/homed/home1"
	"hearth/pamhome/session"
	"hearth/records"
)

func main() {
	// Passwords pass through here; unlike a limit on core files this ends
	// with the exec.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	s, err := open(context.Background())
	if err == nil {
		// Returns only on failure.
		err = s.become(unix.Exec)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// open makes the home active and returns the shell that the user gets.
func open(ctx context.Context) (*shell, error) {
	u := &unlock{tell: func(line string) { fmt.Fprintln(os.Stderr, line) }, machine: machine(), cached: cachedPasswords, now: time.Now}
	defer u.Close()
	environ := os.Environ()
	var err error
	if environ, err = u.harvest(environ); err != nil {
		return nil, err
	}
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
	s := &shell{view: record.View(u.machine), args: os.Args, environ: environ, home: record.View(u.machine).HomeDirectory, tell: u.tell}
	if err := s.upgrade(setClass); err != nil {
		return nil, err
	}
	s.settle(session.Machine{TimeZone: session.Zone, Locale: session.Locale})
	return s, nil
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
