package pamhome

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hearth/pamhome/frame"
	"hearth/pamhome/login1"
	"hearth/pamhome/session"
	"hearth/records"
)

// Sessions is the login manager, as far as a session needs it. *login1.Client
// is one.
type Sessions interface {
	CreateSession(ctx context.Context, r login1.Request) (login1.Reply, error)
	ReleaseSession(ctx context.Context, id string) error
	Inhibit(ctx context.Context, what, who, why string) (*os.File, error)
	Close() error
}

// registerTimeout bounds the creation of a session. The user's service manager
// is part of it, and may ask for the password of the home.
const registerTimeout = 120 * time.Second

const (
	keySession = "hearth-session-fd"
	keyInhibit = "hearth-inhibit-fd"
)

// sessionHalf is what pam_systemd(8) does in open_session: with "register" all
// of it, with "settings" what needs no login manager. It serves all users, and
// asks nobody anything. A failure of settings never fails the session.
func (c *call) sessionHalf(ctx context.Context) frame.Code {
	if !c.register && !c.settings {
		return frame.Success
	}
	if id, _ := c.Start.Env("XDG_SESSION_ID"); c.register && id != "" {
		c.debug("An earlier module registered session %s, doing nothing.", id)
		return frame.Success
	}
	// Not booted with systemd: nothing. Booted with it, but no login manager
	// (that of elogind counts): no registration.
	seats := c.isDirectory("/run/systemd/seats")
	if !seats && !c.isDirectory("/run/systemd/system") {
		return frame.Success
	}
	u, code := c.sessionUser(ctx)
	if code != frame.Success {
		if c.register {
			return code
		}
		c.log(logWarning, "No user record of %s, changing nothing of the session.", c.current)
		return frame.Success
	}
	ch := session.Choose(c.sessionInput(u), c.serverTerminal)
	for _, w := range ch.Warnings {
		c.log(logWarning, "%s", w)
	}
	c.debug("Session type '%s', class '%s', seat '%s', VT %d, terminal '%s', display '%s'.", ch.Type, ch.Class, ch.Seat, ch.VTNr, ch.TTY, ch.Display)
	var made *login1.Reply
	if c.register && seats && ch.Class != "none" {
		if made, code = c.createSession(ctx, u, &ch); code != frame.Success {
			return code
		}
	}
	// Within another session (su, sudo) that one's variables stay.
	runtime := ""
	if made != nil {
		runtime = c.sessionEnv(u, ch, made)
	}
	if c.register && ch.Inhibit != "" {
		c.inhibit(ctx, ch)
	}
	c.shellCredentials()
	c.homeEnv(u, ch.Area, runtime)
	c.applySettings(u, made != nil && made.Seat != "")
	if c.register && made != nil {
		c.mark(u, ch, made.ID)
	}
	return frame.Success
}

// sessionUser finds the record of whoever the session is for.
func (c *call) sessionUser(ctx context.Context) (records.View, frame.Code) {
	name := c.current
	if len(name) <= 255 {
		if v, code := c.Conv.Load(keyRecord + name); code == frame.Success && v.Kind == frame.Text {
			r, err := records.Parse(v.Text, records.ClientReply)
			if err != nil || !r.Matches(name) {
				c.log(logErr, "The cached user record is not that of %s.", name)
				return records.View{}, frame.ServiceErr
			}
			return r.View(c.machine), frame.Success
		}
	}
	if c.Users != nil {
		text, err := c.Users(ctx, name)
		if err == nil {
			r, err := records.Parse(text, records.ClientReply)
			if err != nil || !r.Matches(name) {
				c.log(logErr, "The user database's record is not that of %s.", name)
				return records.View{}, frame.ServiceErr
			}
			if v := r.View(c.machine); v.HasUID {
				c.Conv.Store(keyRecord+name, text)
				return v, frame.Success
			}
			return records.View{}, frame.UserUnknown
		}
		c.debug("User database: %v", err)
	}
	pw, code := c.Conv.Lookup(name)
	if code != frame.Success {
		return records.View{}, frame.UserUnknown
	}
	return records.View{
		UserName: name, UID: pw.UID, GID: pw.GID, HasUID: true, HomeDirectory: pw.Home, Shell: pw.Shell,
		Disposition: records.DispositionOf(name, pw.UID),
	}, frame.Success
}

func (c *call) sessionInput(v records.View) session.Input {
	// No bus carries anything but UTF-8, and a remote host's name is not ours
	// to choose: it must not cost the session.
	item := func(p *string) string {
		if p == nil {
			return ""
		}
		return strings.ToValidUTF8(*p, "?")
	}
	s := c.Start
	display, _ := s.Env("DISPLAY")
	return session.Input{
		Service: item(s.Service), TTY: item(s.TTY), Display: item(s.Display), RUser: item(s.RUser), RHost: item(s.RHost),
		Env: c.harder, PAMDisplay: display, Options: c.session,
		User: session.User{UID: v.UID, Disposition: v.Disposition, DefaultArea: v.Login.DefaultArea},
	}
}

// harder looks a name up in the PAM environment, then in the login program's
// own, unless that one is not to be trusted.
func (c *call) harder(name string) string {
	// What this very call has put is not in START.
	if name == "XDG_AREA" && c.area != "" {
		return c.area
	}
	if v, _ := c.Start.Env(name); v != "" {
		return v
	}
	if c.Start.Secure {
		return ""
	}
	v, _ := c.Start.HostEnv(name)
	return v
}

// createSession registers the session. A nil reply with Success: there is one
// already, or none is wanted.
func (c *call) createSession(ctx context.Context, v records.View, ch *session.Choice) (*login1.Reply, frame.Code) {
	r := login1.Request{UID: v.UID, Leader: c.Start.Host, PID: c.Start.PID, Choice: *ch, Limits: c.sessionLimits()}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	logins, err := c.logins(ctx)
	if err != nil {
		c.log(logErr, "Failed to connect to system bus: %v", err)
		return nil, frame.SessionErr
	}
	made, err := logins.CreateSession(ctx, r)
	if older, ok := ch.Older(); errors.Is(err, login1.ErrRefused) && ok {
		if older == "" {
			c.debug("The login manager knows no class '%s': not registered.", ch.Class)
			return nil, frame.Success
		}
		c.debug("The login manager knows no class '%s', trying '%s'.", ch.Class, older)
		ch.Class, r.Choice.Class = older, older
		made, err = logins.CreateSession(ctx, r)
	}
	if errors.Is(err, login1.ErrBusy) {
		c.debug("Not creating session: %v", err)
		return nil, frame.Success
	}
	if err != nil {
		c.log(logErr, "Failed to create session: %v", err)
		return nil, frame.SessionErr
	}
	if made.Lifeline != nil {
		defer func() { _ = made.Lifeline.Close() }()
		if code := c.Conv.StoreFile(keySession, made.Lifeline); code != frame.Success {
			return nil, frame.SessionErr
		}
	}
	if made.NoDevices {
		c.log(logWarning, "The login manager cannot be told of extra device access, or not beside session limits: %s is not granted.", strings.Join(ch.ExtraDevices, ":"))
		ch.ExtraDevices = nil
	}
	c.note(c.current, func(s *state) { s.SessionID = made.ID })
	return &made, frame.Success
}

// sessionLimits reads what an earlier module left for the session's scope.
func (c *call) sessionLimits() []session.Property {
	var list []session.Property
	for _, key := range session.LimitKeys {
		v, code := c.Conv.Load(key)
		if code != frame.Success || v.Kind != frame.Text {
			continue
		}
		if p, ok, warn := session.Limit(key, string(v.Text)); ok {
			list = append(list, p)
		} else if warn {
			c.log(logWarning, "Failed to parse %s, ignoring: %s", key, v.Text)
		}
	}
	return list
}

// sessionEnv tells the session who it is. It returns the runtime directory,
// "" where it is not this user's.
func (c *call) sessionEnv(v records.View, ch session.Choice, r *login1.Reply) string {
	vt := ""
	if r.VTNr > 0 {
		vt = fmt.Sprint(r.VTNr)
	}
	for _, e := range []struct{ name, value string }{
		{"XDG_SESSION_ID", r.ID}, {"XDG_SESSION_TYPE", ch.Type}, {"XDG_SESSION_CLASS", ch.Class}, {"XDG_SESSION_DESKTOP", ch.Desktop},
		{"XDG_SESSION_EXTRA_DEVICE_ACCESS", strings.Join(ch.ExtraDevices, ":")},
		{"XDG_SEAT", r.Seat}, {"XDG_VTNR", vt},
	} {
		if _, set := c.Start.Env(e.name); e.value != "" {
			c.putEnv(e.name + "=" + e.value)
		} else if set {
			c.putEnv(e.name)
		}
	}
	// su and sudo must not hand the first user's directory to the second.
	if r.UID != v.UID {
		c.log(logDebug, "The session is one of user %d: not setting $XDG_RUNTIME_DIR.", r.UID)
		return ""
	}
	if err := c.checkRuntime(r.RuntimePath, v.UID); err != nil {
		c.log(logErr, "Not setting $XDG_RUNTIME_DIR: %v", err)
		return ""
	}
	c.putEnv("XDG_RUNTIME_DIR=" + r.RuntimePath)
	return r.RuntimePath
}

func (c *call) inhibit(ctx context.Context, ch session.Choice) {
	logins, err := c.logins(ctx)
	var f *os.File
	if err == nil {
		f, err = logins.Inhibit(ctx, ch.Inhibit, ch.Service, ch.InhibitWhy)
	}
	if err != nil {
		c.log(logWarning, "Failed to take inhibitor lock, ignoring: %v", err)
		return
	}
	defer func() { _ = f.Close() }()
	if code := c.Conv.StoreFile(keyInhibit, f); code != frame.Success {
		c.log(logWarning, "Failed to keep inhibitor lock, ignoring: %v", code)
	}
}

// maxPrompt bounds what is read of a prompt credential, in bytes.
const maxPrompt = 4096

// shellCredentials passes the prompt that the administrator gave the service
// on to the shell; a snippet of the system's profile shows it.
func (c *call) shellCredentials() {
	dir, _ := c.Start.HostEnv("CREDENTIALS_DIRECTORY")
	if c.Start.Secure || !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return
	}
	for credential, name := range map[string]string{
		"shell.prompt.prefix": "SHELL_PROMPT_PREFIX", "shell.prompt.suffix": "SHELL_PROMPT_SUFFIX", "shell.welcome": "SHELL_WELCOME",
	} {
		text, err := readBounded(filepath.Join(dir, credential), maxPrompt)
		if err != nil || strings.ContainsRune(text, 0) {
			continue
		}
		c.putEnv(name + "=" + text)
	}
}

// applySettings does what the record says of the process and its environment.
func (c *call) applySettings(v records.View, seat bool) {
	service := ""
	if c.Start.Service != nil {
		service = *c.Start.Service
	}
	s := session.From(v, c.session, service, seat, session.Machine{
		TimeZone: session.Zone, Locale: session.Locale, Kernel: c.Bounding(),
	})
	for _, w := range s.Warnings {
		c.log(logWarning, "%s", w)
	}
	for _, kv := range s.Env {
		c.putEnv(kv)
	}
	a := frame.Apply{Umask: s.Umask, Ambient: (*uint64)(s.Ambient), Bounding: (*uint64)(s.Bounding)}
	if s.Nice != nil {
		n := int32(*s.Nice)
		a.Nice = &n
	}
	for _, l := range s.Limits {
		a.Limits = append(a.Limits, frame.Limit(l))
	}
	failed, _ := c.Conv.Apply(a)
	for _, f := range []struct {
		bit  frame.Failed
		what string
	}{{frame.FailedNice, "nice level"}, {frame.FailedLimit, "a resource limit"}, {frame.FailedAmbient, "ambient capabilities"}, {frame.FailedBounding, "the capability bounding set"}} {
		if failed&f.bit != 0 {
			c.log(logWarning, "Failed to set %s of the user record, ignoring.", f.what)
		}
	}
}

// mark tells a terminal that knows OSC 3008 where the session begins.
func (c *call) mark(v records.View, ch session.Choice, id string) {
	if ch.Type != "tty" || c.harder("TERM") == "dumb" {
		return
	}
	context := fmt.Sprintf("%016x%016x", c.Now().UnixNano(), uint64(c.Start.PID))
	text := "\x1b]3008;start=" + context + ";machineid=" + c.machine.ID + ";hostname=" + oscText(c.machine.Hostname) +
		";targetuser=" + oscText(v.UserName) + ";sessionid=" + oscText(id) + ";type=session\x1b\\"
	if len(text) > frame.MaxTTYWrite {
		return
	}
	c.note(c.current, func(s *state) { s.OSC = context })
	c.Conv.WriteTTY([]byte(text))
}

// oscText keeps a value within its field.
func oscText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == ';' || r == '\\' || r > 0x7e {
			return '_'
		}
		return r
	}, s)
}

// closeSession is what pam_systemd(8) does in close_session.
func (c *call) closeSession(ctx context.Context) frame.Code {
	if !c.register {
		return frame.Success
	}
	s := c.state(c.current)
	if s.OSC != "" {
		c.Conv.WriteTTY([]byte("\x1b]3008;end=" + s.OSC + "\x1b\\"))
	}
	c.Conv.Drop(keyInhibit)
	if s.SessionID == "" {
		return frame.Success
	}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	logins, err := c.logins(ctx)
	if err == nil {
		err = logins.ReleaseSession(ctx, s.SessionID)
	}
	if err != nil {
		c.log(logErr, "Failed to release session: %v", err)
		return frame.SessionErr
	}
	return frame.Success
}

// logins connects to the login manager on first use.
func (c *call) logins(ctx context.Context) (Sessions, error) {
	if c.sessions == nil {
		s, err := c.DialLogins(ctx)
		if err != nil {
			return nil, err
		}
		c.sessions = s
	}
	return c.sessions, nil
}
