package pamhome

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/secret"
	"hearth/pamhome/askpassword"
	"hearth/pamhome/frame"
)

// Agents is where the system's password agents are asked. It is for services
// that nobody sits in front of: the manager of a lingering user, run0. Service
// managers before 258 refuse every prompt for them; later ones bring the
// question to the agents themselves. The zero value asks nobody.
type Agents struct {
	Dir     string // of the questions
	LockDir string // one question per home, whoever asks
	NoLogin string // a file that is there while the machine shuts down
	// Question limits one question, Call all of a hook's. Poll is how often we
	// look whether the home was opened by others.
	Question, Call, Poll time.Duration
}

// SystemAgents are those of the machine. A unit has 90 s to start, and others
// wait for it.
func SystemAgents() Agents {
	return Agents{
		Dir: askpassword.SystemDir, LockDir: "/run/hearth", NoLogin: "/run/nologin",
		Question: 30 * time.Second, Call: 60 * time.Second, Poll: time.Second,
	}
}

// agentServices are asked for, unless the module line adds more.
var agentServices = []string{"systemd-user", "systemd-run0"}

const (
	agentTries = 3 // answers; each wrong one costs a pause of the service's
	// maxCredential is the size of a password in a file.
	maxCredential = 2048
)

// activated reports whether the login program is the service manager's child
// on its way to become a unit of the system: its two variables are gone from
// the environment when the unit runs.
func (c *call) activated() bool {
	unit, _ := c.Start.HostEnv("SYSTEMD_ACTIVATION_UNIT")
	scope, _ := c.Start.HostEnv("SYSTEMD_ACTIVATION_SCOPE")
	return c.Start.PPID == 1 && unit != "" && scope == "system" && !c.Start.Secure
}

// unattended reports whether this is a unit whose home somebody else has to
// open: nobody sits in front of it, and it cannot ask by itself.
func (c *call) unattended() bool {
	service := ""
	if c.Start.Service != nil {
		service = *c.Start.Service
	}
	phase := c.Start.Phase == frame.Account || c.Start.Phase == frame.OpenSession
	remote := c.Start.RHost != nil && *c.Start.RHost != ""
	return phase && c.activated() && !remote && c.Start.RUID == 0 && c.Start.EUID == 0 && slices.Contains(c.agentServices, service)
}

// mayAskAgents reports whether the question goes to the agents, after the
// conversation refused it. A manager that accepts a text has brought the
// prompt to them already, and somebody there declined it: asking again would
// be a second question.
func (c *call) mayAskAgents(u *user) bool {
	if c.Agents.Dir == "" || c.agentsOff || !c.unattended() || c.state(u.name).Declined {
		return false
	}
	if c.byTerminal() && *c.Start.Service != "systemd-run0" {
		return false
	}
	if _, err := os.Stat(c.Agents.NoLogin); err == nil {
		return false
	}
	if c.asked == 0 {
		_, code := c.Conv.Converse(frame.Info, "Home of user "+u.name+" is not active, a password is needed.")
		if code != frame.ConvErr {
			return false
		}
	}
	return true
}

// askAgents puts one question, and waits until somebody answers it, declines
// it, or opens the home by other means: then the reference is returned.
func (c *call) askAgents(ctx context.Context, u *user, a *asking, q question) (*os.File, outcome) {
	if c.asked == 0 {
		c.askUntil = time.Now().Add(c.Agents.Call)
	}
	ctx, cancel := context.WithDeadlineCause(ctx, c.askUntil, askpassword.ErrExpired)
	defer cancel()
	f, err := c.oneQuestion(ctx, u, a, q)
	if err == nil {
		return f, answered
	}
	// Account and session are two calls of one login, and one question.
	c.log(logNotice, "Home of user %s stays closed: %v.", u.name, err)
	c.note(u.name, func(s *state) { s.Declined = true })
	return nil, refused
}

var (
	errRejected = errors.New("no password that was given opens it")
	errNothing  = errors.New("the question for its password was answered with nothing")
)

// oneQuestion returns neither file nor error when there is an answer to try.
func (c *call) oneQuestion(ctx context.Context, u *user, a *asking, q question) (*os.File, error) {
	if c.asked == agentTries {
		return nil, errRejected
	}
	lock, f, err := c.lockQuestion(ctx, u)
	if err != nil || f != nil {
		return f, err
	}
	defer func() { _ = lock.Close() }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	request := askpassword.ForHome(u.name, q.name, c.asked > 0, min(c.Agents.Question, time.Until(c.askUntil)))
	type reply struct {
		list []*secret.Bytes
		err  error
	}
	replies := make(chan reply, 1)
	go func() {
		list, err := askpassword.Ask(ctx, c.Agents.Dir, request)
		replies <- reply{list, err}
	}()
	poll := time.NewTicker(c.Agents.Poll)
	defer poll.Stop()
	for {
		select {
		case <-poll.C:
			if f, err := c.callFor(ctx, ref, u, &a.known); err == nil {
				stop()
				secret.CloseAll((<-replies).list)
				return f, nil
			}
		case r := <-replies:
			if r.err != nil {
				return nil, r.err
			}
			c.asked++
			return nil, a.take(q, r.list)
		}
	}
}

// take keeps what an agent answered. An answer that no JSON can carry is as
// good as a wrong one.
func (a *asking) take(q question, list []*secret.Bytes) error {
	nothing := true
	for _, s := range slices.Backward(list) {
		nothing = nothing && s.Len() == 0
		switch {
		case s.Len() == 0 || !travels(s):
			s.Close()
		case q.member == memberPIN:
			a.known.setPIN(s)
		default:
			a.known.addPassword(s)
		}
	}
	if nothing { // the console's agent has no other way to decline
		return errNothing
	}
	return nil
}

// lockQuestion waits until nobody else asks for this home, looking in between
// whether it is open. The lock ends with the file, or with the process.
func (c *call) lockQuestion(ctx context.Context, u *user) (lock, opened *os.File, err error) {
	if err := os.MkdirAll(c.Agents.LockDir, 0o700); err != nil {
		return nil, nil, err
	}
	lock, err = os.OpenFile(filepath.Join(c.Agents.LockDir, "ask-"+u.name+".lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, nil, err
	}
	for {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return lock, nil, nil
		}
		if err == unix.EWOULDBLOCK || err == unix.EINTR {
			select {
			case <-time.After(c.Agents.Poll):
				if opened, err = c.callFor(ctx, ref, u, &answers{}); err != nil {
					continue
				}
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		_ = lock.Close()
		return nil, opened, err
	}
}

// credential offers the unit's own password files, each once per handle, before
// anybody is asked. It reports whether there was one more to try.
func (c *call) credential(u *user, a *asking, q question) bool {
	if a.offered { // and rejected
		a.offered = false
		a.known.Close()
		a.known = answers{}
		c.log(logWarning, "The password in a credential of the unit does not open the home of user %s.", u.name)
	}
	if q.member != memberPassword || c.agentsOff || !c.unattended() {
		return false
	}
	dir, ok := c.Start.HostEnv("CREDENTIALS_DIRECTORY")
	if !ok {
		// Where managers before 258 put it.
		dir, ok = c.Start.Env("CREDENTIALS_DIRECTORY")
	}
	if !ok || !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return false
	}
	names := []string{"pam.authtok." + *c.Start.Service, "home.password"}
	for n := c.state(u.name).Credentials; n < len(names); n++ {
		c.note(u.name, func(s *state) { s.Credentials = n + 1 })
		s, err := readCredential(filepath.Join(dir, names[n]))
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			c.log(logWarning, "Credential %s is of no use: %v", names[n], err)
		case s.Len() == 0 || !travels(s):
			s.Close()
			c.log(logWarning, "Credential %s holds no password.", names[n])
		default:
			c.debug("Trying the password of credential %s.", names[n])
			a.known.addPassword(s)
			a.offered = true
			return true
		}
	}
	return false
}

// readCredential reads a file of root's, who we are here; one line feed at the end is not
// of the password.
func readCredential(path string) (*secret.Bytes, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() {
		return nil, os.ErrPermission
	}
	whole, err := secret.Read(f, maxCredential)
	if err != nil {
		return nil, err
	}
	defer whole.Close()
	var s *secret.Bytes
	err = whole.Use(func(p []byte) error {
		if n := len(p); n > 0 && p[n-1] == '\n' {
			p = p[:n-1]
		}
		var err error
		s, err = secret.Copy(p)
		return err
	})
	return s, err
}
