package pamhome

import (
	"context"
	"fmt"
	"os"
	"time"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/pamhome/frame"
	"hearth/pamhome/session"
	"hearth/records"
)

// Conversation is the login program as a hook sees it: the person in front of
// it, its PAM items and environment, and what is kept on its PAM handle.
// *frame.Conn is one.
type Conversation interface {
	Converse(style frame.Style, text string) (*secret.Bytes, frame.Code)
	NewToken(verify bool, prompt string) (*secret.Bytes, frame.Code)
	SetToken(s *secret.Bytes) frame.Code
	SetUser(name string) frame.Code
	PutEnv(kv string) frame.Code
	Load(key string) (frame.Value, frame.Code)
	Store(key string, text []byte) frame.Code
	StoreMark(key string) frame.Code
	StoreFile(key string, f *os.File) frame.Code
	Drop(key string) frame.Code
	Apply(a frame.Apply) (frame.Failed, frame.Code)
	WriteTTY(p []byte) frame.Code
	Lookup(name string) (frame.Passwd, frame.Code)
	Log(priority int, line string)
}

// Homes is the service, as far as a login needs it. Secrets are borrowed.
// *home1.Client is one.
type Homes interface {
	GetUserRecordByName(ctx context.Context, name string) (text []byte, incomplete bool, err error)
	AcquireHome(ctx context.Context, name string, secrets *secret.Bytes, pleaseSuspend bool) (*os.File, error)
	RefHome(ctx context.Context, name string, pleaseSuspend bool) (*os.File, error)
	RefHomeUnrestricted(ctx context.Context, name string, pleaseSuspend bool) (*os.File, error)
	ReleaseHome(ctx context.Context, name string) error
	Call(ctx context.Context, method string, args ...any) error
	Close() error
}

// Hook is one call of a PAM hook, ready to run.
type Hook struct {
	Conv  Conversation
	Start *frame.Start
	// Dial connects to the service. It is called once at most, and only when
	// what the PAM handle holds does not answer the question.
	Dial func(ctx context.Context) (Homes, error)
	// DialLogins connects to the login manager, at most once; Users asks the
	// user database for the record of a name. Both serve the session half.
	DialLogins func(ctx context.Context) (Sessions, error)
	Users      func(ctx context.Context, name string) ([]byte, error)
	// Root is put before every path of the machine that is read; "" is "/".
	Root string
	// MachineID and Hostname tell which parts of a record are about us.
	MachineID, Hostname string
	// Bounding asks for the login process's capability bounding set, one
	// call of the kernel for each: only a session that is set up needs it.
	Bounding func() session.Capabilities
	Now      func() time.Time
	// Agents are asked where nobody sits in front of the login program.
	Agents Agents
}

// storageTimeout bounds each call that may wait for storage, a token or a
// person at one.
const storageTimeout = 120 * time.Second

// Priorities of syslog.
const (
	logErr     = 3
	logWarning = 4
	logNotice  = 5
	logDebug   = 7
)

// Keys on the PAM handle; the name of a user follows. The first two are
// systemd's, so that pam_systemd finds the record.
const (
	keyHomeRecord = "systemd-home-user-record-"
	keyRecord     = "systemd-user-record-"
	keyState      = "hearth-home-state-"
	keyReference  = "hearth-home-fd-"
	keyOtherRef   = "systemd-home-fd-"
)

// call is a running hook.
type call struct {
	Hook
	options
	machine records.Machine
	homes   Homes
	raw     string // PAM_USER as it is at the start of the call
	// What the password agents answered so far, and until when they may.
	asked    int
	askUntil time.Time
	current  string // PAM_USER as it is now
	area     string // what this call has put into XDG_AREA

	sessions Sessions
}

// Run carries the hook out and returns its result. It tells the person what
// the person must know, and logs what the administrator must.
func Run(ctx context.Context, h Hook) frame.Code {
	c := &call{Hook: h, machine: records.Machine{ID: h.MachineID, Hostname: h.Hostname}}
	c.readOptions()
	defer func() {
		if c.homes != nil {
			_ = c.homes.Close()
		}
		if c.sessions != nil {
			_ = c.sessions.Close()
		}
	}()
	if h.Start.User == nil || *h.Start.User == "" {
		return frame.ServiceErr
	}
	c.raw = *h.Start.User
	c.current = c.raw
	switch h.Start.Phase {
	case frame.Authenticate:
		c.debug("authenticating")
		_, code := c.acquire(ctx, true)
		return code
	case frame.Account:
		c.debug("starting account management")
		return c.account(ctx)
	case frame.OpenSession:
		c.debug("starting session")
		if code := c.open(ctx); code != frame.Success {
			return code
		}
		return c.sessionHalf(ctx)
	case frame.CloseSession:
		c.debug("ending session")
		code := c.closeSession(ctx)
		if home := c.close(ctx); home != frame.Success {
			return home
		}
		return code
	case frame.ChangeToken:
		c.debug("starting authentication token management")
		return c.changeToken(ctx)
	}
	return frame.ServiceErr
}

func (c *call) log(priority int, format string, args ...any) {
	c.Conv.Log(priority, fmt.Sprintf(format, args...))
}

func (c *call) debug(format string, args ...any) {
	if c.options.debug {
		c.log(logDebug, format, args...)
	}
}

// tell shows a line. Whether it was seen changes nothing; where nobody sits in
// front (units, cron), the journal has it.
func (c *call) tell(style frame.Style, format string, args ...any) {
	s, code := c.Conv.Converse(style, fmt.Sprintf(format, args...))
	s.Close()
	if code == frame.ConvErr {
		c.log(logNotice, format, args...)
	}
}

// service connects on first use.
func (c *call) service(ctx context.Context) (Homes, error) {
	if c.homes == nil {
		h, err := c.Dial(ctx)
		if err != nil {
			return nil, err
		}
		c.homes = h
	}
	return c.homes, nil
}

// held reports whether the login program holds a reference to the home of
// that name, ours or one of systemd's module in the same stack.
func (c *call) held(name string) bool {
	if len(name) > 255 {
		return false
	}
	for _, key := range []string{keyReference, keyOtherRef} {
		if v, code := c.Conv.Load(key + name); code == frame.Success && v.Kind == frame.Held {
			return true
		}
	}
	return false
}

// byTerminal reports whether the login is one whose shell can ask for the
// password later: on a terminal, sshd's included, and not graphical.
func (c *call) byTerminal() bool {
	if d := c.Start.Display; d != nil && *d != "" {
		return false
	}
	tty := c.Start.TTY
	if tty == nil || *tty == "cron" {
		return false
	}
	for _, r := range *tty {
		if r == ':' {
			return false
		}
	}
	return true
}

// open runs open_session. For users who are not ours it succeeds.
func (c *call) open(ctx context.Context) frame.Code {
	_, code := c.acquire(ctx, false)
	if code == frame.UserUnknown {
		return frame.Success
	}
	if code != frame.Success {
		return code
	}
	c.putEnv("SYSTEMD_HOME=1")
	if c.suspend {
		c.putEnv("SYSTEMD_HOME_SUSPEND=1")
	} else {
		c.putEnv("SYSTEMD_HOME_SUSPEND=0")
	}
	return frame.Success
}

func (c *call) putEnv(kv string) {
	if code := c.Conv.PutEnv(kv); code != frame.Success {
		c.log(logWarning, "Cannot set %s in the environment: %v", kv, code)
	}
}

// close runs close_session: the reference ends first, so that the release
// finds the home free.
func (c *call) close(ctx context.Context) frame.Code {
	name := ""
	for _, n := range c.names() {
		if len(n) > 255 {
			continue
		}
		if v, code := c.Conv.Load(keyReference + n); code == frame.Success && v.Kind == frame.Held {
			name = n
			break
		}
	}
	if name == "" {
		return frame.Success
	}
	if code := c.Conv.Drop(keyReference + name); code != frame.Success {
		return code
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	homes, err := c.service(ctx)
	if err == nil {
		err = homes.ReleaseHome(ctx, name)
	}
	switch fault.KindOf(err) {
	case "":
		return frame.Success
	case fault.HomeBusy:
		c.log(logNotice, "Not deactivating home directory of %s, as it is still used.", name)
		return frame.Success
	case fault.AccessDenied:
		// A service manager's child has dropped its rights by now. What
		// counts, the end of the reference, is done.
		c.debug("Release of home %s left to the service: %s", name, fault.Public(err))
		return frame.Success
	}
	c.log(logErr, "Failed to release user home: %s", fault.Public(err))
	return frame.SessionErr
}

// names returns the names under which this handle may hold a reference:
// PAM_USER, and what the cached record says it stands for.
func (c *call) names() []string {
	name, _, _ := splitArea(c.raw)
	list := []string{c.raw}
	if name != c.raw {
		list = append(list, name)
	}
	if !skipped(name) {
		if v, code := c.Conv.Load(keyHomeRecord + name); code == frame.Success && v.Kind == frame.Text {
			if r, err := records.Parse(v.Text, records.ClientReply); err == nil && r.UserName() != c.raw && r.UserName() != name {
				list = append(list, r.UserName())
			}
		}
	}
	return list
}
