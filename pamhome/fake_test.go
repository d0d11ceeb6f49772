package pamhome

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/pamhome/frame"
	"hearth/pamhome/session"
)

// A login is the login program: it answers prompts from a script, keeps the
// PAM handle, and writes down what happens as the fixtures do.
type login struct {
	t       *testing.T
	user    string
	items   map[string]string
	args    []string
	env     []string // PAM environment
	hostEnv []string
	data    map[string]frame.Value
	refs    map[string]*os.File
	answers []string // "NULL": success without an answer
	refuse  bool
	// mute refuses texts as well, as service managers before 258 do.
	mute    bool
	ppid    uint32
	agents  Agents
	authTok string
	oldTok  string
	lines   []string
	logs    []string
	bus     *service
	now     func() time.Time
	// interlock is what pam_home.so counts: in this call a reference was
	// stored or seen.
	interlock bool
	hadRefs   bool
	applied   []frame.Apply
	tty       string
	passwd    map[string]frame.Passwd
	sessions  *sessions
	root      string
}

func newLogin(t *testing.T, user string) *login {
	l := &login{
		t: t, user: user, items: map[string]string{"service": "hometest"}, args: []string{"debug"},
		data: map[string]frame.Value{}, refs: map[string]*os.File{}, now: time.Now,
	}
	l.bus = &service{l: l}
	t.Cleanup(func() {
		for _, f := range l.refs {
			_ = f.Close()
		}
	})
	return l
}

func (l *login) say(format string, args ...any) {
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

var styleNames = map[frame.Style]string{frame.EchoOff: "PROMPT_ECHO_OFF", frame.EchoOn: "PROMPT_ECHO_ON", frame.Error: "ERROR_MSG", frame.Info: "TEXT_INFO"}

func (l *login) prompt(text string) (string, frame.Code) {
	if l.refuse || len(l.answers) == 0 {
		l.say("  conv n=1 %-15s '%s' -> PAM_CONV_ERR", styleNames[frame.EchoOff], text)
		return "", frame.ConvErr
	}
	a := l.answers[0]
	l.answers = l.answers[1:]
	l.say("  conv n=1 %-15s '%s' -> '%s'", styleNames[frame.EchoOff], text, a)
	return a, frame.Success
}

func (l *login) Converse(style frame.Style, text string) (*secret.Bytes, frame.Code) {
	if style == frame.Error || style == frame.Info {
		l.say("  conv n=1 %-15s '%s'", styleNames[style], text)
		if l.mute {
			return nil, frame.ConvErr
		}
		return nil, frame.Success
	}
	a, code := l.prompt(text)
	if code != frame.Success || a == "NULL" {
		return nil, code
	}
	return l.secret(a), code
}

func (l *login) secret(s string) *secret.Bytes {
	b, err := secret.Copy([]byte(s))
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

// NewToken does what libpam does.
func (l *login) NewToken(verify bool, prompt string) (*secret.Bytes, frame.Code) {
	if prompt == "" {
		prompt = "New password: "
	}
	if verify {
		prompt = "Retype " + prompt
	}
	a, code := l.prompt(prompt)
	if code != frame.Success {
		l.say("  conv n=1 %-15s 'Password change has been aborted.'", styleNames[frame.Error])
		return nil, frame.AuthTokErr
	}
	if verify && a != l.authTok {
		l.say("  conv n=1 %-15s 'Sorry, passwords do not match.'", styleNames[frame.Error])
		return nil, frame.TryAgain
	}
	l.authTok = a
	return l.secret(a), frame.Success
}

func (l *login) SetToken(s *secret.Bytes) frame.Code {
	return code(s.Use(func(p []byte) error {
		l.authTok = string(p)
		return nil
	}))
}

func code(err error) frame.Code {
	if err != nil {
		return frame.BufErr
	}
	return frame.Success
}

func (l *login) SetUser(name string) frame.Code {
	l.user = name
	return frame.Success
}

func (l *login) PutEnv(kv string) frame.Code {
	name, _, _ := strings.Cut(kv, "=")
	l.env = slices.DeleteFunc(l.env, func(o string) bool { return strings.HasPrefix(o, name+"=") })
	l.env = append(l.env, kv)
	return frame.Success
}

func (l *login) Load(key string) (frame.Value, frame.Code) {
	if strings.HasPrefix(key, keyReference) && l.refs[key] != nil {
		l.interlock = true
		return frame.Value{Kind: frame.Held}, frame.Success
	}
	v := l.data[key]
	v.Text = slices.Clone(v.Text)
	return v, frame.Success
}

func (l *login) Store(key string, text []byte) frame.Code {
	l.data[key] = frame.Value{Kind: frame.Text, Text: slices.Clone(text)}
	return frame.Success
}

func (l *login) StoreMark(key string) frame.Code {
	l.data[key] = frame.Value{Kind: frame.Mark}
	return frame.Success
}

func (l *login) StoreFile(key string, f *os.File) frame.Code {
	if l.refs[key] != nil {
		_ = l.refs[key].Close()
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return frame.BufErr
	}
	l.refs[key] = os.NewFile(uintptr(fd), key)
	l.interlock, l.hadRefs = true, true
	return frame.Success
}

func (l *login) Drop(key string) frame.Code {
	if f := l.refs[key]; f != nil {
		_ = f.Close()
		delete(l.refs, key)
		l.interlock = false
	}
	delete(l.data, key)
	return frame.Success
}

func (l *login) Apply(a frame.Apply) (frame.Failed, frame.Code) {
	l.applied = append(l.applied, a)
	return 0, frame.Success
}

func (l *login) WriteTTY(p []byte) frame.Code {
	l.tty += string(p)
	return frame.Success
}

func (l *login) Lookup(name string) (frame.Passwd, frame.Code) {
	if p, ok := l.passwd[name]; ok {
		return p, frame.Success
	}
	return frame.Passwd{}, frame.UserUnknown
}

func (l *login) Log(priority int, line string) {
	l.logs = append(l.logs, fmt.Sprintf("<%d>%s", priority, line))
}

func (l *login) item(name string) *string {
	v, ok := l.items[name]
	if !ok {
		return nil
	}
	return &v
}

var phases = map[string]frame.Phase{
	"auth": frame.Authenticate, "acct": frame.Account, "open": frame.OpenSession, "close": frame.CloseSession, "chau": frame.ChangeToken,
}

// run calls one hook as pam_home.so does, with its shortcuts and interlock.
func (l *login) run(op string, flags uint32) frame.Code {
	l.t.Helper()
	phase := phases[op]
	mark := l.data[keyHomeRecord+l.user].Kind == frame.Mark
	whole := (op == "open" || op == "close") && (slices.Contains(l.args, "register") || slices.Contains(l.args, "settings"))
	switch {
	case op == "setcred":
		return frame.Success
	case whole:
	case op == "close" && !l.hadRefs:
		return frame.Success
	case l.user == "root" || l.user == "nobody" || mark:
		if op == "open" || op == "close" {
			return frame.Success
		}
		return frame.UserUnknown
	}
	user := l.user
	s := &frame.Start{
		Phase: phase, Flags: flags, Args: l.args, User: &user, Service: l.item("service"), TTY: l.item("tty"),
		Display: l.item("xdisplay"), RHost: l.item("rhost"), Conversation: true,
		PAMEnv: slices.Clone(l.env), ProcEnv: l.hostEnv, PPID: l.ppid,
	}
	if op == "auth" || op == "chau" {
		s.AuthTok, s.OldAuthTok = l.token(l.authTok), l.token(l.oldTok)
	}
	defer s.Close()
	l.interlock = false
	got := Run(context.Background(), Hook{
		Conv: l, Start: s, MachineID: machineID, Hostname: "test", Now: l.now, Agents: l.agents, Bounding: func() session.Capabilities { return session.All },
		Dial: func(context.Context) (Homes, error) {
			if l.bus.dial != nil {
				return nil, l.bus.dial
			}
			return l.bus, nil
		},
		DialLogins: func(context.Context) (Sessions, error) { return l.sessions, nil },
		Root:       l.root,
	})
	if !l.interlock && (got == frame.Success && (op == "auth" || op == "acct") || got == frame.NewAuthTokReqd && op == "acct") {
		l.t.Errorf("%s: %v without a reference", op, got)
	}
	return got
}

func (l *login) token(s string) *secret.Bytes {
	if s == "" {
		return nil
	}
	return l.secret(s)
}

const machineID = "0123456789abcdef0123456789abcdef"

func (l *login) envLine() string {
	if len(l.env) == 0 {
		return "  PAM env: (empty)"
	}
	env := slices.Clone(l.env)
	sort.Strings(env)
	return "  PAM env: " + strings.Join(env, " ")
}

// A service answers from a script, "ok" when it is used up, and writes every
// call down with its secrets.
type service struct {
	l      *login
	script []string // AcquireHome, ChangePasswordHome
	ref    []string // RefHome, ReleaseHome
	record string
	opened string // the record once the home is active; "": the same
	lookup error
	dial   error
	reader *os.File // of the last reference: it ends with the last holder
}

const fakeRecord = `{"userName":"fake","uid":60999,"gid":60999,"disposition":"regular","aliases":["fakealias"]}`

func (s *service) next(list *[]string, format string, args ...any) error {
	e := "ok"
	if len(*list) > 0 {
		e, *list = (*list)[0], (*list)[1:]
	}
	s.l.say("    bus: %s -> %s", fmt.Sprintf(format, args...), e)
	if e == "ok" {
		return nil
	}
	return fault.Newf(fault.FromBus("org.freedesktop.home1."+e), "call", "fake error %s", e)
}

func (s *service) fifo(err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	if s.reader != nil {
		_ = s.reader.Close()
	}
	s.reader = r
	return w, nil
}

func text(b *secret.Bytes) string {
	s := "{}"
	_ = b.Use(func(p []byte) error { s = string(p); return nil })
	return s
}

func (s *service) GetUserRecordByName(_ context.Context, name string) ([]byte, bool, error) {
	if s.lookup != nil {
		return nil, false, s.lookup
	}
	s.l.say("    bus: GetUserRecordByName(%q) -> record", name)
	if s.record == "" {
		return []byte(fakeRecord), false, nil
	}
	return []byte(s.record), false, nil
}

func (s *service) AcquireHome(_ context.Context, name string, secrets *secret.Bytes, suspend bool) (*os.File, error) {
	err := s.next(&s.script, "AcquireHome(%q, %s, please_suspend=%v)", name, text(secrets), suspend)
	if err == nil && s.opened != "" {
		s.record = s.opened
	}
	return s.fifo(err)
}

func (s *service) RefHome(_ context.Context, name string, suspend bool) (*os.File, error) {
	err := s.next(&s.ref, "RefHome(%q, please_suspend=%v)", name, suspend)
	if err == nil && s.opened != "" {
		s.record = s.opened
	}
	return s.fifo(err)
}

func (s *service) RefHomeUnrestricted(_ context.Context, name string, suspend bool) (*os.File, error) {
	var none []string
	return s.fifo(s.next(&none, "RefHomeUnrestricted(%q, please_suspend=%v)", name, suspend))
}

func (s *service) ReleaseHome(_ context.Context, name string) error {
	return s.next(&s.ref, "ReleaseHome(%q)", name)
}

func (s *service) Call(_ context.Context, method string, args ...any) error {
	return s.next(&s.script, "%s(%q, new=%s, old=%s)", method, args[0], text(args[1].(*secret.Bytes)), text(args[2].(*secret.Bytes)))
}

func (s *service) Close() error { return nil }
