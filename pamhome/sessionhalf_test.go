package pamhome

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/pamhome/frame"
	"hearth/pamhome/login1"
)

// sessions is a login manager that knows some classes.
type sessions struct {
	l        *login
	knows    []string // classes; nil: all
	reply    login1.Reply
	err      error
	requests []login1.Request
	released []string
	locks    []string
}

func (s *sessions) CreateSession(_ context.Context, r login1.Request) (login1.Reply, error) {
	s.requests = append(s.requests, r)
	if s.knows != nil && !slices.Contains(s.knows, r.Choice.Class) {
		return login1.Reply{}, fmt.Errorf("%w: %s", login1.ErrRefused, r.Choice.Class)
	}
	reply := s.reply
	if s.err == nil && reply.Lifeline != nil {
		fd, err := unix.Dup(int(reply.Lifeline.Fd()))
		if err != nil {
			s.l.t.Fatal(err)
		}
		reply.Lifeline = os.NewFile(uintptr(fd), "session")
	}
	return reply, s.err
}

func (s *sessions) ReleaseSession(_ context.Context, id string) error {
	s.released = append(s.released, id)
	return s.err
}

func (s *sessions) Inhibit(_ context.Context, what, who, why string) (*os.File, error) {
	s.locks = append(s.locks, what+"|"+who+"|"+why)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_ = r.Close()
	return w, nil
}

func (s *sessions) Close() error { return nil }

// booted makes a login on a machine with systemd and a login manager, for a
// user of its password file.
func booted(t *testing.T, user string, uid uint32, args ...string) *login {
	l := newLogin(t, user)
	l.root = t.TempDir()
	l.args = args
	l.passwd = map[string]frame.Passwd{user: {UID: uid, GID: uid, Home: "/home/" + user, Shell: "/bin/sh"}}
	for _, dir := range []string{"/run/systemd/system", "/run/systemd/seats", "/run/user/" + fmt.Sprint(uid), "/home/" + user} {
		if err := os.MkdirAll(filepath.Join(l.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l.sessions = &sessions{l: l, reply: login1.Reply{ID: "c7", RuntimePath: "/run/user/" + fmt.Sprint(uid), UID: uid}}
	l.bus.lookup = fault.New(fault.NoSuchHome, "look up", nil)
	return l
}

func (l *login) record(fields string) {
	l.data[keyRecord+l.user] = frame.Value{Kind: frame.Text, Text: []byte(`{"userName":"` + l.user + `","homeDirectory":"/home/` + l.user + `",` + fields + `}`)}
}

func me() uint32 { return uint32(os.Getuid()) }

func TestRegister(t *testing.T) {
	l := booted(t, "bob", me(), "register")
	l.record(fmt.Sprintf(`"disposition":"regular","uid":%d,"umask":23,"niceLevel":4,"environment":["A=b"],"emailAddress":"b@x.test","resourceLimits":{"RLIMIT_NOFILE":{"cur":1,"max":2}}`, me()))
	l.items["tty"], l.items["rhost"] = "/dev/pts/3", "evil\xff.test"
	l.env = []string{"XDG_SEAT=", "XDG_SESSION_INHIBIT=sleep:idle"}
	for key, v := range map[string]string{"memory_max": "200M", "tasks_max": "50", "cpu_weight": "100", "io_weight": "340", "runtime_max_sec": "3600"} {
		l.data["systemd."+key] = frame.Value{Kind: frame.Text, Text: []byte(v)}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	l.sessions.reply.Lifeline = w
	if err := os.WriteFile(filepath.Join(l.root, "/run/user", fmt.Sprint(me()), "bus"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := l.run("open", 0); code != frame.Success {
		t.Fatalf("open: %v\n%s", code, strings.Join(l.logs, "\n"))
	}
	request := l.sessions.requests[0]
	var limits []string
	for _, p := range request.Limits {
		limits = append(limits, fmt.Sprint(p.Name, "=", p.Value))
	}
	if got := strings.Join(limits, " "); got != "MemoryMax=209715200 TasksMax=50 CPUWeight=100 IOWeight=340 RuntimeMaxUSec=3600000000" {
		t.Errorf("limits %s", got)
	}
	if c := request.Choice; c.Class != "user" || c.Type != "tty" || c.TTY != "pts/3" || c.RemoteHost != "evil?.test" || request.UID != me() {
		t.Errorf("asked for %+v", request)
	}
	dir := fmt.Sprintf("/run/user/%d", me())
	want := fmt.Sprintf("  PAM env: A=b DBUS_SESSION_BUS_ADDRESS=unix:path=%s/bus EMAIL=b@x.test HOME=/home/bob XDG_RUNTIME_DIR=%s XDG_SEAT XDG_SESSION_CLASS=user XDG_SESSION_ID=c7 XDG_SESSION_INHIBIT=sleep:idle XDG_SESSION_TYPE=tty", dir, dir)
	if got := l.envLine(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if a := l.applied; len(a) != 1 || *a[0].Umask != 0o27 || *a[0].Nice != 4 || !reflect.DeepEqual(a[0].Limits, []frame.Limit{{Number: 7, Soft: 1, Hard: 2}}) || a[0].Ambient != nil {
		t.Errorf("applied %+v", a)
	}
	if l.refs[keySession] == nil || l.refs[keyInhibit] == nil {
		t.Error("descriptors of the session were not kept")
	}
	if want := []string{"sleep:idle|hometest|Active PAM session"}; !reflect.DeepEqual(l.sessions.locks, want) {
		t.Errorf("inhibitors %q", l.sessions.locks)
	}
	if !strings.HasPrefix(l.tty, "\x1b]3008;start=") || !strings.Contains(l.tty, ";targetuser=bob;sessionid=c7;type=session\x1b\\") {
		t.Errorf("mark %q", l.tty)
	}
	id := l.tty[13:45]
	l.tty = ""
	if code := l.run("close", 0); code != frame.Success || !reflect.DeepEqual(l.sessions.released, []string{"c7"}) || l.refs[keyInhibit] != nil {
		t.Errorf("close: %v, released %q", code, l.sessions.released)
	}
	if want := "\x1b]3008;end=" + id + "\x1b\\"; l.tty != want {
		t.Errorf("mark %q, want %q", l.tty, want)
	}
}

// TestExtraDevices: what a session may use beyond its seat is asked for and
// told, unless the login manager cannot be told of it.
func TestExtraDevices(t *testing.T) {
	for left, want := range map[bool]string{false: "XDG_SESSION_EXTRA_DEVICE_ACCESS=render:kvm", true: "XDG_SESSION_EXTRA_DEVICE_ACCESS "} {
		l := booted(t, "bob", me(), "register")
		l.env = append(l.env, "XDG_SESSION_EXTRA_DEVICE_ACCESS=:render::kvm")
		l.sessions.reply.NoDevices = left
		if code := l.run("open", 0); code != frame.Success {
			t.Fatalf("open: %v\n%s", code, strings.Join(l.logs, "\n"))
		}
		if got := l.sessions.requests[0].Choice.ExtraDevices; !slices.Equal(got, []string{"render", "kvm"}) {
			t.Errorf("asked for %q", got)
		}
		if got := l.envLine(); !strings.Contains(got, want) {
			t.Errorf("the session has %s", got)
		}
		if told := strings.Contains(strings.Join(l.logs, "\n"), "render:kvm is not granted"); told != left {
			t.Errorf("the log has %q", l.logs)
		}
	}
}

// TestOlderClass: a login manager that knows no new classes still gets a
// session, unless the class was asked for by name.
func TestOlderClass(t *testing.T) {
	old := []string{"user", "greeter", "lock-screen", "background"}
	l := booted(t, "root", 0, "register")
	l.items["tty"] = "tty1"
	l.sessions.knows = old
	if code := l.run("open", 0); code != frame.Success || len(l.sessions.requests) != 2 || !strings.Contains(l.envLine(), "XDG_SESSION_CLASS=user ") {
		t.Errorf("%v %v %s", code, l.sessions.requests, l.envLine())
	}
	l = booted(t, "root", 0, "register")
	l.items["service"] = "systemd-user"
	l.sessions.knows = old
	if code := l.run("open", 0); code != frame.Success || strings.Contains(l.envLine(), "XDG_SESSION_ID") {
		t.Errorf("%v %s", code, l.envLine())
	}
	l = booted(t, "root", 0, "register", "class=user-early")
	l.sessions.knows = old
	if code := l.run("open", 0); code != frame.SessionErr || len(l.sessions.requests) != 1 {
		t.Errorf("%v %v", code, l.sessions.requests)
	}
}

func TestNotRegistered(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(l *login)
		code frame.Code
		home bool // HOME is set: the rest was done
	}{
		{"an earlier module did", func(l *login) { l.env = []string{"XDG_SESSION_ID=4"} }, frame.Success, false},
		{"settings only", func(l *login) { l.args = []string{"settings"} }, frame.Success, true},
		{"class none", func(l *login) { l.args = append(l.args, "class=none") }, frame.Success, true},
		{"no login manager", func(l *login) { _ = os.Remove(filepath.Join(l.root, "run/systemd/seats")) }, frame.Success, true},
		{"not booted with systemd", func(l *login) { _ = os.RemoveAll(filepath.Join(l.root, "run/systemd")) }, frame.Success, false},
		{"inside a session", func(l *login) { l.sessions.err = login1.ErrBusy }, frame.Success, true},
		{"the login manager fails", func(l *login) { l.sessions.err = login1.ErrUnavailable }, frame.SessionErr, false},
		{"nobody knows the user", func(l *login) { l.passwd = nil }, frame.UserUnknown, false},
		{"nobody knows the user, settings", func(l *login) { l.passwd, l.args = nil, []string{"settings"} }, frame.Success, false},
		{"someone else's record", func(l *login) {
			l.record(`"uid":1`)
			l.data[keyRecord+"bob"] = frame.Value{Kind: frame.Text, Text: []byte(`{"userName":"eve","uid":0}`)}
		}, frame.ServiceErr, false},
	} {
		l := booted(t, "bob", me(), "register")
		c.set(l)
		before := len(l.env)
		if code := l.run("open", 0); code != c.code {
			t.Errorf("%s: %v, want %v", c.name, code, c.code)
		}
		env := l.envLine()
		if strings.Contains(env, "HOME=") != c.home || before == 0 && strings.Contains(env, "XDG_") {
			t.Errorf("%s: %s", c.name, env)
		}
		if code := l.run("close", 0); code != frame.Success || len(l.sessions.released) > 0 {
			t.Errorf("%s: close: %v, released %q", c.name, code, l.sessions.released)
		}
	}
}

// TestForeignRuntime: the directory of another user is not handed on.
func TestForeignRuntime(t *testing.T) {
	for name, set := range map[string]func(l *login){
		"session of another": func(l *login) { l.sessions.reply.UID = me() + 1 },
		"relative":           func(l *login) { l.sessions.reply.RuntimePath = "run" },
		"a link": func(l *login) {
			l.sessions.reply.RuntimePath = "/run/link"
			_ = os.Symlink("user", filepath.Join(l.root, "run/link"))
		},
		"absent": func(l *login) { l.sessions.reply.RuntimePath = "/run/user/none" },
	} {
		l := booted(t, "bob", me(), "register")
		set(l)
		if code := l.run("open", 0); code != frame.Success || strings.Contains(l.envLine(), "XDG_RUNTIME_DIR") {
			t.Errorf("%s: %v %s", name, code, l.envLine())
		}
	}
}

func TestSessionArea(t *testing.T) {
	area := func(l *login, name string) string { return filepath.Join(l.root, "home/bob/Areas", name) }
	l := booted(t, "bob", me(), "register", "area=work")
	if err := os.MkdirAll(area(l, "work"), 0o755); err != nil {
		t.Fatal(err)
	}
	l.run("open", 0)
	dir := fmt.Sprintf("/run/user/%d/Areas/work", me())
	for _, kv := range []string{"HOME=/home/bob/Areas/work", "XDG_AREA=work", "XDG_RUNTIME_DIR=" + dir} {
		if !slices.Contains(l.env, kv) {
			t.Errorf("no %s in%s", kv, l.envLine())
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(l.root, dir), &st); err != nil || st.Uid != me() || st.Mode != unix.S_IFDIR|0o755 {
		t.Errorf("%v %o", err, st.Mode)
	}
	for name, c := range map[string]struct {
		area string
		set  func(l *login)
		line string
	}{
		"absent":  {"none", func(*login) {}, "Path '/home/bob/Areas/none' of requested user area 'none' is not accessible, reverting to regular home directory."},
		"a file":  {"f", func(l *login) { _ = os.WriteFile(area(l, "f"), nil, 0o644) }, "Path '/home/bob/Areas/f' of requested user area 'f' is not accessible, reverting to regular home directory."},
		"foreign": {"etc", func(l *login) { _ = os.Symlink("/proc/1", area(l, "etc")) }, "is not owned by user"},
	} {
		if name == "foreign" && me() == 0 {
			continue // everything here is root's
		}
		l := booted(t, "bob", me(), "register")
		l.env = []string{"XDG_AREA=" + c.area}
		_ = os.MkdirAll(area(l, ""), 0o755)
		c.set(l)
		l.run("open", 0)
		if !slices.Contains(l.env, "HOME=/home/bob") || !slices.Contains(l.env, "XDG_AREA") || !strings.Contains(strings.Join(l.lines, "\n"), c.line) {
			t.Errorf("%s: %s\n%s", name, l.envLine(), strings.Join(l.lines, "\n"))
		}
	}
	// A link of the user's in place of the directory is not followed.
	l = booted(t, "bob", me(), "register", "area=work")
	_ = os.MkdirAll(area(l, "work"), 0o755)
	target := t.TempDir()
	if err := os.Symlink(target, filepath.Join(l.root, "run/user", fmt.Sprint(me()), "Areas")); err != nil {
		t.Fatal(err)
	}
	l.run("open", 0)
	if list, _ := os.ReadDir(target); len(list) > 0 || !slices.Contains(l.env, "XDG_RUNTIME_DIR") {
		t.Errorf("followed a link: %v %s", list, l.envLine())
	}
}

func TestShellCredentials(t *testing.T) {
	l := booted(t, "bob", me(), "settings")
	dir := t.TempDir()
	for name, text := range map[string]string{"shell.prompt.prefix": "pre>", "shell.welcome": "hi", "shell.prompt.suffix": strings.Repeat("x", maxPrompt+1)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.hostEnv = []string{"CREDENTIALS_DIRECTORY=" + dir}
	l.run("open", 0)
	if got := l.envLine(); got != "  PAM env: HOME=/home/bob SHELL_PROMPT_PREFIX=pre> SHELL_WELCOME=hi" {
		t.Error(got)
	}
	l.env, l.hostEnv = nil, []string{"CREDENTIALS_DIRECTORY=" + dir + "/../" + filepath.Base(dir)}
	l.run("open", 0)
	if got := l.envLine(); got != "  PAM env: HOME=/home/bob" {
		t.Error(got)
	}
}

func TestTerminalOf(t *testing.T) {
	for stat, want := range map[string]uint32{
		"1 (Xorg) S 1 1 1 1031 1 4": 7, "1 (a) b) S 1 1 1 1025 1": 1, "1 (x) S 1 1 1 34816 1": 0, "1 (x) S 1 1 1 0 1": 0,
		"1 (x) S 1 1 1 1024 1": 0, "1 (x) S": 0, "": 0, "1 (x) S 1 1 1 x 1": 0,
	} {
		if got := terminalOf(stat); got != want {
			t.Errorf("%q: %d, want %d", stat, got, want)
		}
	}
}

func TestUserRecord(t *testing.T) {
	for reply, want := range map[string]string{
		`{"parameters":{"record":{"userName":"bob"},"incomplete":true}}` + "\x00": `{"userName":"bob"}`,
		`{"error":"io.systemd.UserDatabase.NoRecordFound"}` + "\x00":              "",
		`{"parameters":{}}` + "\x00":                                              "",
		`{"parameters"`:                                                           "",
		"\x00":                                                                    "",
	} {
		socket := filepath.Join(t.TempDir(), "s")
		server, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			var request [4096]byte
			_, _ = conn.Read(request[:])
			_, _ = conn.Write([]byte(reply))
			_ = conn.Close()
		}()
		got, err := UserRecord(t.Context(), socket, "bob")
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v", reply, got, err)
		}
		_ = server.Close()
	}
	// A server that says nothing is left when the caller goes.
	socket := filepath.Join(t.TempDir(), "s")
	server, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := UserRecord(ctx, socket, "bob"); err == nil {
		t.Error("an answer from nowhere")
	}
}
