package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/pamhome/session"
	"hearth/records"
)

// A shell is what is left to do once the home is active.
type shell struct {
	view    records.View
	home    string // where the session starts: the home directory or an area in it
	args    []string
	environ []string
	tell    func(line string)
}

func (s *shell) env(name string) (string, bool) {
	for _, kv := range slices.Backward(s.environ) {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v, true
		}
	}
	return "", false
}

func (s *shell) unset(name string) {
	s.environ = slices.DeleteFunc(s.environ, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

func (s *shell) set(name, value string) {
	s.unset(name)
	s.environ = append(s.environ, name+"="+value)
}

// upgrade turns an unfinished session into a full one.
func (s *shell) upgrade(setClass func() error) error {
	value, ok := s.env("XDG_SESSION_INCOMPLETE")
	if !ok {
		return nil
	}
	incomplete, valid := session.ParseBool(value)
	if !valid {
		return notify("Failed to parse $XDG_SESSION_INCOMPLETE: %s", value)
	}
	if !incomplete {
		return nil
	}
	// A session in an area is of another class, which the login manager
	// neither holds back nor upgrades. One opened while the home was locked is
	// of none: the login manager could start nothing in a frozen slice.
	if class, _ := s.env("XDG_SESSION_CLASS"); class == "user-incomplete" {
		if err := setClass(); err != nil {
			return notify("Failed to upgrade session: %v", err)
		}
		s.set("XDG_SESSION_CLASS", "user")
	}
	s.unset("XDG_SESSION_INCOMPLETE")
	return nil
}

// settle gives the session what could not be had while the home was closed:
// the area, the user's bus, and what the home's own record says of the
// environment, which may be newer than the host's.
func (s *shell) settle(m session.Machine) {
	for _, kv := range session.From(s.view, session.Options{}, "", false, m).Env {
		name, value, _ := strings.Cut(kv, "=")
		s.set(name, value)
	}
	s.enterArea()
	dir, ok := s.env("XDG_RUNTIME_DIR")
	if !ok || !filepath.IsAbs(dir) {
		return
	}
	if info, err := os.Stat(dir + "/bus"); err == nil && info.Mode().Type() == os.ModeSocket {
		s.set("DBUS_SESSION_BUS_ADDRESS", "unix:path="+dir+"/bus")
	}
}

// enterArea moves the session into the area that was asked for at login, or
// that the record names; set and empty asks for none. An area is a directory
// of the user's below ~/Areas, with a runtime directory of its own.
func (s *shell) enterArea() {
	area, ok := s.env("XDG_AREA")
	if !ok {
		area = s.view.Login.DefaultArea
	}
	s.unset("XDG_AREA")
	if area == "" {
		return
	}
	path := filepath.Join(s.view.HomeDirectory, "Areas", area)
	real, err := filepath.EvalSymlinks(path)
	var st unix.Stat_t
	if err == nil && filepath.Base(path) == area {
		err = unix.Stat(real, &st)
	}
	switch {
	case err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR:
		s.tell("Path '" + path + "' of requested user area '" + area + "' is not accessible, reverting to regular home directory.")
		return
	case st.Uid != uint32(os.Getuid()):
		s.tell("Path '" + path + "' of requested user area '" + area + "' is not owned by user, reverting to regular home directory.")
		return
	}
	s.home = real
	s.set("XDG_AREA", area)
	// Sessions opened with the home closed have the user's runtime directory
	// or, if pam_systemd knew of the area, the area's.
	suffix := "/Areas/" + area
	dir := "/run/user/" + strconv.Itoa(os.Getuid())
	if had, ok := s.env("XDG_RUNTIME_DIR"); ok {
		dir = strings.TrimSuffix(had, suffix)
	}
	s.unset("XDG_RUNTIME_DIR")
	if os.MkdirAll(dir+suffix, 0o755) == nil {
		s.set("XDG_RUNTIME_DIR", dir+suffix)
	}
}

// fallbackShells are the names of shells like this one: ours and systemd's.
var fallbackShells = []string{"homeshell", "systemd-home-fallback-shell"}

// become replaces the process by the user's shell, in the user's home.
func (s *shell) become(exec func(path string, args, environ []string) error) error {
	path := s.view.Shell
	if slices.Contains(fallbackShells, filepath.Base(path)) {
		return notify("Primary shell of '%s' is fallback shell, refusing loop.", s.view.UserName)
	}
	if err := os.Chdir(s.home); err != nil {
		return notify("Failed to change directory to home directory '%s': %v", s.home, err)
	}
	s.set("SHELL", path)
	s.set("HOME", s.home)
	for _, name := range []string{"PASSWORD", "NEWPASSWORD", "PIN"} {
		s.unset(name)
	}
	// A dash in front of the name is how a shell knows that it is a login
	// shell.
	name := filepath.Base(path)
	if len(s.args) == 0 || strings.HasPrefix(s.args[0], "-") {
		name = "-" + name
	}
	args := []string{name}
	if len(s.args) > 1 {
		args = append(args, s.args[1:]...)
	}
	if err := exec(path, args, s.environ); err != nil {
		return notify("Failed to execute shell '%s': %v", path, err)
	}
	return nil
}
