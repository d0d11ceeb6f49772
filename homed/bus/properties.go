package bus

import (
	"context"
	"log/slog"

	"github.com/godbus/dbus/v5"

	"hearth/homed/home"
	"hearth/homed/home1"
	"hearth/homed/manager"
	"hearth/internal/fault"
)

type unixRecord struct {
	Name          string
	UID, GID      uint32
	RealName      string
	HomeDirectory string
	Shell         string
}

type maskedRecord struct {
	Text       string
	Incomplete bool
}

type autoLogin struct {
	User, Seat string
	Path       dbus.ObjectPath
}

// properties of Home that a signal may carry. UserRecord is not among them:
// each caller sees another one.
func homeProperty(name string, h *manager.Info) any {
	switch name {
	case "UserName":
		return h.Name
	case "UID":
		return h.UID
	case "UnixRecord":
		return unixRecord{h.Name, h.UID, h.GID, h.RealName, h.HomeDirectory, h.Shell}
	case "State":
		return h.State
	}
	return nil
}

// value returns a property as the caller may see it.
func (s *server) value(ctx context.Context, c *call, n *node, p *home1.Property) (dbus.Variant, error) {
	switch p.Name {
	case "AutoLogin":
		list, err := s.autoLogin(ctx)
		return dbus.MakeVariant(list), err
	case "UserRecord":
		text, incomplete := userRecord(c, n.home)
		return dbus.MakeVariant(maskedRecord{text, incomplete}), nil
	case "LogLevel":
		return dbus.MakeVariant(levelName(s.o.Level.Level())), nil
	case "LogTarget":
		return dbus.MakeVariant(logTarget), nil
	case "SyslogIdentifier":
		return dbus.MakeVariant("systemd-homed"), nil
	}
	return dbus.MakeVariant(homeProperty(p.Name, n.home)), nil
}

func (n *node) iface(name string) *home1.Interface {
	for _, list := range [][]*home1.Interface{home1.Standard, n.own} {
		for _, i := range list {
			if i.Name == name {
				return i
			}
		}
	}
	return nil
}

// property answers Get, GetAll and Set.
func (s *server) property(ctx context.Context, c *call, n *node) ([]any, error) {
	ifaceName := string(c.args[0].([]byte))
	if c.method.Name == "GetAll" {
		var from []*home1.Interface
		if ifaceName == "" {
			from = n.own
		} else if i := n.iface(ifaceName); i != nil {
			from = []*home1.Interface{i}
		} else {
			return nil, fault.Newf(fault.UnknownInterface, "find interface", "Unknown interface '%s'.", ifaceName)
		}
		all := map[string]dbus.Variant{}
		for _, i := range from {
			for k := range i.Properties {
				v, err := s.value(ctx, c, n, &i.Properties[k])
				if err != nil {
					return nil, err
				}
				all[i.Properties[k].Name] = v
			}
		}
		return []any{all}, nil
	}
	name := string(c.args[1].([]byte))
	var p *home1.Property
	if i := n.iface(ifaceName); i != nil {
		p = i.Property(name)
	}
	if p == nil {
		return nil, fault.Newf(fault.UnknownProperty, "find property", "Unknown interface %s or property %s.", ifaceName, name)
	}
	if c.method.Name == "Get" {
		v, err := s.value(ctx, c, n, p)
		if err != nil {
			return nil, err
		}
		return []any{v}, nil
	}
	if !p.Writable {
		return nil, fault.Newf(fault.PropertyReadOnly, "set property", "Property '%s' is not writable.", name)
	}
	if p.Privileged && c.uid != 0 {
		return nil, fault.Newf(fault.AccessDenied, "set property", "Only root may set %s.%s.", ifaceName, name)
	}
	v := c.args[2].(variant)
	if v.sig != p.Type {
		return nil, fault.Newf(fault.InvalidArgs, "set property", "The property %s is of type %q, not %q.", name, p.Type, v.sig)
	}
	return nil, s.setLog(p.Name, string(v.value.([]byte)))
}

// The daemon logs to the journal, and to standard error without one.
const logTarget = "auto"

// The levels of syslog by number, with the nearest of ours. What is less than
// an error cannot be silenced apart from it.
var levels = []struct {
	name  string
	level slog.Level
}{
	{"emerg", slog.LevelError}, {"alert", slog.LevelError}, {"crit", slog.LevelError}, {"err", slog.LevelError},
	{"warning", slog.LevelWarn}, {"notice", slog.LevelInfo}, {"info", slog.LevelInfo}, {"debug", slog.LevelDebug},
}

func levelName(l slog.Level) string {
	switch {
	case l <= slog.LevelDebug:
		return "debug"
	case l <= slog.LevelInfo:
		return "info"
	case l <= slog.LevelWarn:
		return "warning"
	}
	return "err"
}

func (s *server) setLog(property, value string) error {
	if property == "LogTarget" {
		switch value {
		case logTarget:
			return nil
		case "console", "kmsg", "journal", "syslog", "journal-or-kmsg", "syslog-or-kmsg", "console-prefixed", "null":
			return fault.Newf(fault.NotSupported, "set log target", "The log target is always %q.", logTarget)
		}
		return fault.Newf(fault.InvalidArgs, "set log target", "Invalid log target '%s'", value)
	}
	for i, l := range levels {
		if value == l.name || value == string(rune('0'+i)) {
			s.o.Level.Set(l.level)
			return nil
		}
	}
	return fault.Newf(fault.InvalidArgs, "set log level", "Invalid log level '%s'", value)
}

const seat0 = "seat0" // a machine without further seats has this one

// autoLogin lists the homes on a device that is plugged in, with its seat, and
// those whose record asks to be logged in on the first seat.
func (s *server) autoLogin(ctx context.Context) ([]autoLogin, error) {
	list, err := s.o.Manager.List(ctx)
	if err != nil {
		return nil, err
	}
	out := []autoLogin{}
	for i := range list {
		h := &list[i]
		if h.Seat != "" {
			out = append(out, autoLogin{h.Name, h.Seat, dbus.ObjectPath(home1.HomePath(h.Name))})
		}
		if h.Seat == seat0 {
			continue
		}
		if h.Subject.View(s.o.Machine).Login.AutoLogin && h.State != string(home.Absent) {
			out = append(out, autoLogin{h.Name, seat0, dbus.ObjectPath(home1.HomePath(h.Name))})
		}
	}
	return out, nil
}

// homeInterfaces are the interfaces of a home with the values that signals and
// the object manager carry.
func homeInterfaces(h *manager.Info) map[string]map[string]dbus.Variant {
	out := map[string]map[string]dbus.Variant{}
	for _, i := range home1.Standard {
		out[i.Name] = map[string]dbus.Variant{}
	}
	own := map[string]dbus.Variant{}
	for _, p := range home1.Home.Properties {
		if v := homeProperty(p.Name, h); v != nil {
			own[p.Name] = dbus.MakeVariant(v)
		}
	}
	out[home1.HomeInterface] = own
	return out
}

// managedObjects answers with every home and all its properties.
func (s *server) managedObjects(ctx context.Context, c *call) ([]any, error) {
	list, err := s.o.Manager.List(ctx)
	if err != nil {
		return nil, err
	}
	out := map[dbus.ObjectPath]map[string]map[string]dbus.Variant{}
	for i := range list {
		h := &list[i]
		ifaces := homeInterfaces(h)
		text, incomplete := userRecord(c, h)
		ifaces[home1.HomeInterface]["UserRecord"] = dbus.MakeVariant(maskedRecord{text, incomplete})
		out[dbus.ObjectPath(home1.HomePath(h.Name))] = ifaces
	}
	return []any{out}, nil
}
