package session

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Input is what the login program says of the session that it opens. Items
// that are not set are empty.
type Input struct {
	Service, TTY, Display, RUser, RHost string
	// Env is the "harder" look-up of pam_systemd: the PAM environment where it
	// has a value that is not empty, else the program's own in which it may
	// trust, else "".
	Env func(name string) string
	// PAMDisplay is $DISPLAY of the PAM environment alone: an su inside an X
	// session has the process's, which is not its own display.
	PAMDisplay string
	Options    Options
	User       User
}

// Options are those of the module line. "" means not given.
type Options struct {
	Class, Type, Desktop, Area string
	Bounding, Ambient          *Capabilities
}

// User is what the choice needs of the record.
type User struct {
	UID         uint32
	Disposition string
	DefaultArea string
}

// low reports whether the user is not a person: such a user gets no service
// manager without need.
func (u User) low() bool {
	return u.Disposition == "intrinsic" || u.Disposition == "system" || u.Disposition == "dynamic"
}

// Choice is the session to ask for. Its fields are the arguments of the login
// manager's CreateSession.
type Choice struct {
	Service, Type, Class, Desktop string
	// Chosen: nobody asked for the class by name, so a login manager that
	// does not know it may be asked for an older one.
	Chosen                 bool
	Seat                   string
	VTNr                   uint32
	TTY, Display           string
	Remote                 bool
	RemoteUser, RemoteHost string
	Area                   string
	ExtraDevices           []string
	Inhibit, InhibitWhy    string
	// Warnings are lines for the log; none of them stops the session.
	Warnings []string
}

// Choose follows the table of pam_systemd(8): the first matching case of the
// terminal, then what is still open by type and by kind of user. server finds
// the virtual terminal of the X server behind a display, 0 where there is
// none; it is asked only when nobody named seat and terminal.
func Choose(in Input, server func(display string) uint32) Choice {
	or := func(name, unset string) string {
		if v := in.Env(name); v != "" {
			return v
		}
		return unset
	}
	c := Choice{
		Service: in.Service, TTY: in.TTY, Display: in.Display,
		Remote: in.RHost != "" && !localHost(in.RHost), RemoteUser: in.RUser, RemoteHost: in.RHost,
		Seat:       in.Env("XDG_SEAT"),
		Type:       or("XDG_SESSION_TYPE", in.Options.Type),
		Class:      or("XDG_SESSION_CLASS", in.Options.Class),
		Desktop:    or("XDG_SESSION_DESKTOP", in.Options.Desktop),
		Area:       or("XDG_AREA", in.Options.Area),
		Inhibit:    in.Env("XDG_SESSION_INHIBIT"),
		InhibitWhy: or("XDG_SESSION_INHIBIT_WHY", "Active PAM session"),
	}
	if c.Area == "" {
		c.Area = in.User.DefaultArea
	}
	if v := in.Env("XDG_VTNR"); v != "" {
		if n, err := strconv.ParseUint(v, 10, 32); err == nil {
			c.VTNr = uint32(n)
		} else {
			c.warn("Failed to parse $XDG_VTNR, ignoring: %s", v)
		}
	}
	if v := in.Env("XDG_SESSION_EXTRA_DEVICE_ACCESS"); v != "" {
		c.ExtraDevices = slices.DeleteFunc(strings.Split(v, ":"), func(s string) bool { return s == "" })
	}
	c.Chosen = c.Class == ""

	c.terminal(in.User)
	display := c.Display
	if display == "" {
		display = in.PAMDisplay
	}
	if display != "" && c.VTNr == 0 && (c.Seat == "" || c.Seat == "seat0") {
		if n := server(display); n > 0 {
			c.Seat, c.VTNr = "seat0", n
		}
	}
	if c.VTNr > 0 && c.Seat != "" && c.Seat != "seat0" {
		c.VTNr = 0 // only the first seat has virtual terminals
	}
	if c.Type == "" {
		switch {
		case c.Display != "":
			c.Type = "x11"
		case c.TTY != "":
			c.Type = "tty"
		default:
			c.Type = "unspecified"
		}
	}
	if c.Class == "" {
		c.Class = classFor(c.Type, c.Area, in.User)
	}
	if v := in.Env("XDG_SESSION_INCOMPLETE"); v != "" {
		switch incomplete, ok := ParseBool(v); {
		case !ok:
			c.warn("Failed to parse $XDG_SESSION_INCOMPLETE, ignoring: %s", v)
		case incomplete && c.Class == "user":
			c.Class = "user-incomplete"
		case incomplete:
			c.warn("PAM session of class '%s' is incomplete, which is not supported, ignoring.", c.Class)
		}
	}
	return c
}

// terminal applies the first case that fits the terminal. Programs without
// one put a word in its place, because other modules want the item set.
func (c *Choice) terminal(u User) {
	class := func(name string) {
		if c.Class == "" {
			c.Class = name
		}
	}
	switch {
	case c.Service == "systemd-user":
		c.Type, c.TTY = "unspecified", ""
		if u.low() {
			class("manager-early")
		} else {
			class("manager")
		}
	case strings.Contains(c.TTY, ":"):
		if c.Display == "" {
			c.Display = c.TTY
		}
		c.TTY = ""
	case c.TTY == "cron":
		c.Type, c.TTY = "unspecified", ""
		class("background")
	case c.TTY == "ssh":
		// sshd sets this word before it has made the pty.
		c.Type, c.TTY = "tty", ""
		class("user")
	default:
		c.TTY = strings.TrimPrefix(c.TTY, "/dev/")
	}
}

// classFor is the class of a session for which nobody named one.
func classFor(typ, area string, u User) string {
	background := typ == "unspecified"
	graphical := typ == "x11" || typ == "wayland" || typ == "mir"
	light := u.low() || u.Disposition == "regular" && area != ""
	switch {
	case background && light:
		return "background-light"
	case background:
		return "background"
	case u.low() && u.UID == 0:
		return "user-early"
	case u.low() && graphical:
		return "user"
	case light:
		return "user-light"
	}
	return "user"
}

// Older returns the class to ask a login manager for that refused this one,
// "" where the session then stays unregistered and the login goes on. Only a
// class that we chose ourselves may be replaced; ok is false for others and
// where there is nothing older.
func (c Choice) Older() (class string, ok bool) {
	if !c.Chosen {
		return "", false
	}
	switch c.Class {
	case "user-light", "user-early", "user-incomplete":
		return "user", true
	case "user-early-light":
		return "user-early", true
	case "background-light":
		return "background", true
	case "manager", "manager-early":
		return "", true
	}
	return "", false
}

// localHost reports whether a remote host is this one.
func localHost(name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return name == "localhost" || name == "localhost.localdomain" ||
		strings.HasSuffix(name, ".localhost") || strings.HasSuffix(name, ".localhost.localdomain")
}

// ParseBool reads a boolean as systemd spells them.
func ParseBool(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	}
	return false, false
}

func (c *Choice) warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}
