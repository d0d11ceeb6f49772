package session

import (
	"fmt"
	"reflect"
	"testing"
)

var (
	ann    = User{UID: 60100, Disposition: "regular"}
	root   = User{UID: 0, Disposition: "intrinsic"}
	daemon = User{UID: 1, Disposition: "system"}
)

type env map[string]string

func input(u User, e env) Input {
	return Input{Service: "login", User: u, Env: func(name string) string { return e[name] }}
}

func noServer(string) uint32 { return 0 }

// The cases that say "seen" are what pam_systemd of 262 did.
func TestChoose(t *testing.T) {
	type want struct{ typ, class, tty, display string }
	for _, c := range []struct {
		name string
		u    User
		e    env
		set  func(*Input)
		want want
	}{
		{"seen: nothing known", ann, nil, nil, want{"unspecified", "background", "", ""}},
		{"seen: a terminal", ann, nil, func(in *Input) { in.TTY = "pts/9" }, want{"tty", "user", "pts/9", ""}},
		{"a device path", ann, nil, func(in *Input) { in.TTY = "/dev/tty3" }, want{"tty", "user", "tty3", ""}},
		{"seen: a display in place of a terminal", ann, nil, func(in *Input) { in.TTY = ":1" }, want{"x11", "user", "", ":1"}},
		{"both displays", ann, nil, func(in *Input) { in.TTY, in.Display = ":1", ":0" }, want{"x11", "user", "", ":0"}},
		{"cron", ann, nil, func(in *Input) { in.TTY = "cron" }, want{"unspecified", "background", "", ""}},
		{"root's cron", root, nil, func(in *Input) { in.TTY = "cron" }, want{"unspecified", "background", "", ""}},
		{"cron with a type", ann, env{"XDG_SESSION_TYPE": "x11"}, func(in *Input) { in.TTY = "cron" }, want{"unspecified", "background", "", ""}},
		{"sshd", ann, nil, func(in *Input) { in.TTY = "ssh" }, want{"tty", "user", "", ""}},
		{"sshd with a type", ann, env{"XDG_SESSION_TYPE": "wayland"}, func(in *Input) { in.TTY = "ssh" }, want{"tty", "user", "", ""}},
		{"root by ssh", root, nil, func(in *Input) { in.TTY = "ssh" }, want{"tty", "user", "", ""}},
		{"the service manager", ann, env{"XDG_SESSION_TYPE": "x11"}, func(in *Input) { in.Service, in.TTY = "systemd-user", "tty1" }, want{"unspecified", "manager", "", ""}},
		{"root's service manager", root, nil, func(in *Input) { in.Service = "systemd-user" }, want{"unspecified", "manager-early", "", ""}},
		{"a daemon's service manager", daemon, nil, func(in *Input) { in.Service = "systemd-user" }, want{"unspecified", "manager-early", "", ""}},
		{"seen: root on a terminal", root, nil, func(in *Input) { in.TTY = "/dev/pts/8" }, want{"tty", "user-early", "pts/8", ""}},
		{"seen: root without one", root, nil, nil, want{"unspecified", "background-light", "", ""}},
		{"seen: root with X", root, env{"XDG_SESSION_TYPE": "x11"}, nil, want{"x11", "user-early", "", ""}},
		{"seen: daemon on a terminal", daemon, nil, func(in *Input) { in.TTY = "/dev/pts/8" }, want{"tty", "user-light", "pts/8", ""}},
		{"seen: daemon without one", daemon, nil, nil, want{"unspecified", "background-light", "", ""}},
		{"seen: daemon with X", daemon, env{"XDG_SESSION_TYPE": "x11"}, nil, want{"x11", "user", "", ""}},
		{"an area", ann, env{"XDG_AREA": "work"}, func(in *Input) { in.TTY = "tty1" }, want{"tty", "user-light", "tty1", ""}},
		{"an area in the background", ann, env{"XDG_AREA": "work"}, nil, want{"unspecified", "background-light", "", ""}},
		{"an area by ssh", ann, env{"XDG_AREA": "work"}, func(in *Input) { in.TTY = "ssh" }, want{"tty", "user", "", ""}},
		{"class and type by option", ann, nil, func(in *Input) { in.Options.Class, in.Options.Type = "greeter", "wayland" }, want{"wayland", "greeter", "", ""}},
		{"the environment beats options", ann, env{"XDG_SESSION_CLASS": "lock-screen", "XDG_SESSION_TYPE": "mir"},
			func(in *Input) { in.Options.Class, in.Options.Type = "greeter", "wayland" }, want{"mir", "lock-screen", "", ""}},
		{"seen: what nobody knows is passed on", ann, env{"XDG_SESSION_CLASS": "bogus", "XDG_SESSION_TYPE": "bogus"}, nil, want{"bogus", "bogus", "", ""}},
		{"the home is closed yet", ann, env{"XDG_SESSION_INCOMPLETE": "1"}, func(in *Input) { in.TTY = "ssh" }, want{"tty", "user-incomplete", "", ""}},
		{"seen: incomplete and background", ann, env{"XDG_SESSION_INCOMPLETE": "1", "XDG_SESSION_CLASS": "background"}, nil, want{"unspecified", "background", "", ""}},
		{"not incomplete", ann, env{"XDG_SESSION_INCOMPLETE": "0"}, func(in *Input) { in.TTY = "ssh" }, want{"tty", "user", "", ""}},
		{"$DISPLAY gives no type", ann, nil, func(in *Input) { in.PAMDisplay = ":0" }, want{"unspecified", "background", "", ""}},
	} {
		in := input(c.u, c.e)
		if c.set != nil {
			c.set(&in)
		}
		got := Choose(in, noServer)
		if w := (want{got.Type, got.Class, got.TTY, got.Display}); w != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, w, c.want)
		}
	}
}

func TestSeat(t *testing.T) {
	for _, c := range []struct {
		name          string
		e             env
		display, envD string
		x             uint32
		seat          string
		vt            uint32
	}{
		{"none", nil, "", "", 7, "", 0},
		{"given", env{"XDG_SEAT": "seat0", "XDG_VTNR": "3"}, "", "", 7, "seat0", 3},
		{"X server", nil, ":0", "", 7, "seat0", 7},
		{"X server of the PAM environment", nil, "", ":0", 7, "seat0", 7},
		{"X server not found", nil, ":0", "", 0, "", 0},
		{"X on another seat", env{"XDG_SEAT": "seat1"}, ":1", "", 7, "seat1", 0},
		{"terminal given", env{"XDG_VTNR": "3"}, ":0", "", 7, "", 3},
		{"terminal on another seat", env{"XDG_SEAT": "seat1", "XDG_VTNR": "3"}, "", "", 7, "seat1", 0},
		{"no number", env{"XDG_VTNR": "x"}, "", "", 7, "", 0},
		{"negative", env{"XDG_VTNR": "-1"}, "", "", 7, "", 0},
	} {
		in := input(ann, c.e)
		in.Display, in.PAMDisplay = c.display, c.envD
		got := Choose(in, func(string) uint32 { return c.x })
		if got.Seat != c.seat || got.VTNr != c.vt {
			t.Errorf("%s: seat %q, vt %d; want %q, %d", c.name, got.Seat, got.VTNr, c.seat, c.vt)
		}
		if bad := c.name == "no number" || c.name == "negative"; bad != (len(got.Warnings) == 1) {
			t.Errorf("%s: warnings %q", c.name, got.Warnings)
		}
	}
}

func TestRemote(t *testing.T) {
	for host, want := range map[string]bool{
		"": false, "localhost": false, "LOCALHOST.": false, "localhost.localdomain": false, "a.localhost": false, "b.LocalHost.": false,
		"h.example.org": true, "localhost.example.org": true, "xlocalhost": true, "127.0.0.1": true,
	} {
		in := input(ann, nil)
		in.RHost = host
		if got := Choose(in, noServer); got.Remote != want || got.RemoteHost != host {
			t.Errorf("%q: %v %q", host, got.Remote, got.RemoteHost)
		}
	}
}

func TestArea(t *testing.T) {
	in := input(User{Disposition: "regular", DefaultArea: "c"}, env{"XDG_AREA": "a"})
	in.Options.Area = "b"
	if got := Choose(in, noServer).Area; got != "a" {
		t.Error(got)
	}
	in.Env = func(string) string { return "" }
	if got := Choose(in, noServer).Area; got != "b" {
		t.Error(got)
	}
	in.Options.Area = ""
	if got := Choose(in, noServer).Area; got != "c" {
		t.Error(got)
	}
}

func TestOlder(t *testing.T) {
	for class, want := range map[string]string{
		"user-light": "user true", "user-early": "user true", "user-incomplete": "user true", "user-early-light": "user-early true",
		"background-light": "background true", "manager": " true", "manager-early": " true", "user": " false", "background": " false", "greeter": " false",
	} {
		older, ok := Choice{Class: class, Chosen: true}.Older()
		if older+" "+fmt.Sprint(ok) != want {
			t.Errorf("%s: %q %v", class, older, ok)
		}
		if older, ok := (Choice{Class: class}).Older(); ok || older != "" {
			t.Errorf("%s, asked for by name, becomes %q", class, older)
		}
	}
}

func TestLimit(t *testing.T) {
	for _, c := range []struct {
		key, value string
		want       any // nil: nothing set
		name       string
		warn       bool
	}{
		{"systemd.memory_max", "200M", uint64(200 << 20), "MemoryMax", false},
		{"systemd.memory_max", "1.5G", uint64(3 << 29), "MemoryMax", false},
		{"systemd.memory_max", "4096", uint64(4096), "MemoryMax", false},
		{"systemd.memory_max", "infinity", ^uint64(0), "MemoryMax", false},
		{"systemd.memory_max", "50%", uint32(1<<31 - 1), "MemoryMaxScale", false},
		{"systemd.memory_max", "100%", uint32(1<<32 - 1), "MemoryMaxScale", false},
		{"systemd.memory_max", "101%", nil, "", true},
		{"systemd.memory_max", "1000‰", uint32(1<<32 - 1), "MemoryMaxScale", false},
		{"systemd.memory_max", "-1", nil, "", true},
		{"systemd.memory_max", "99999999999E", nil, "", true},
		{"systemd.memory_max", "1.x", nil, "", true},
		{"systemd.tasks_max", "50", uint64(50), "TasksMax", false},
		{"systemd.tasks_max", "infinity", nil, "", false},
		{"systemd.tasks_max", "0", nil, "", true},
		{"systemd.cpu_weight", "100", uint64(100), "CPUWeight", false},
		{"systemd.cpu_weight", "idle", uint64(0), "CPUWeight", false},
		{"systemd.cpu_weight", "0", nil, "", true},
		{"systemd.cpu_weight", "10001", nil, "", true},
		{"systemd.io_weight", "340", uint64(340), "IOWeight", false},
		{"systemd.io_weight", "idle", nil, "", true},
		{"systemd.runtime_max_sec", "3600", uint64(3600e6), "RuntimeMaxUSec", false},
		{"systemd.runtime_max_sec", "1h 30min", uint64(5400e6), "RuntimeMaxUSec", false},
		{"systemd.runtime_max_sec", "2h30m", uint64(9000e6), "RuntimeMaxUSec", false},
		{"systemd.runtime_max_sec", "infinity", nil, "", false},
		{"systemd.runtime_max_sec", "3 parsecs", nil, "", true},
		{"systemd.runtime_max_sec", "", nil, "", true},
		{"systemd.other", "1", nil, "", true},
	} {
		p, ok, warn := Limit(c.key, c.value)
		if ok != (c.want != nil) || warn != c.warn || ok && (p.Name != c.name || p.Value != c.want) {
			t.Errorf("%s=%s: %v %v %v", c.key, c.value, p, ok, warn)
		}
	}
}

func FuzzLimit(f *testing.F) {
	for _, s := range []string{"200M", "50%", "1.5G", "idle", "infinity", "3h 2s", "1000‰", "9999999999999999999", "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, key := range LimitKeys {
			if p, ok, warn := Limit(key, s); ok && (warn || p.Name == "" || p.Value == nil) || !ok && p != (Property{}) {
				t.Errorf("%s=%q: %v %v %v", key, s, p, ok, warn)
			}
		}
	})
}

func TestOption(t *testing.T) {
	var set *Capabilities
	for _, c := range []struct {
		value string
		want  Capabilities
		warn  int
	}{
		{"cap_wake_alarm,CAP_KILL", WakeAlarm | 1<<5, 0},
		{"chown", WakeAlarm | 1<<5 | 1, 0},
		{"~cap_kill", WakeAlarm | 1, 0},
		{"cap_nonsense", WakeAlarm | 1, 1},
		{"", WakeAlarm | 1, 0},
	} {
		var warnings []string
		if set, warnings = Option(set, c.value); *set != c.want || len(warnings) != c.warn {
			t.Errorf("%q: %x, want %x; %q", c.value, *set, c.want, warnings)
		}
	}
	if set, _ := Option(nil, "~cap_sys_admin"); *set != All&^(1<<21) {
		t.Errorf("all but one: %x", *set)
	}
}

func TestNoWarningsByDefault(t *testing.T) {
	if c := Choose(input(ann, nil), noServer); !reflect.DeepEqual(c.Warnings, []string(nil)) || !c.Chosen {
		t.Errorf("%+v", c)
	}
}
