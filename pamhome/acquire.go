package pamhome

import (
	"context"
	"os"
	"strings"
	"time"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/pamhome/askpassword"
	"hearth/pamhome/frame"
)

// tries is how many answers may be rejected, and how often a home may be busy.
const tries = 5

// A question is what a rejection by the service makes us say and ask.
type question struct {
	member string // of the secret section: what the service wants
	first  string // prompt while nothing of the member is known
	before string // line in front of the first prompt, %u is the user
	again  string // prompt afterwards
	wrong  string // line in front of it
	name   string // in the log
}

// The texts are the original's: scripts and graphical logins match them.
var questions = map[fault.Kind]question{
	fault.BadPassword: {
		member: memberPassword, name: "Password",
		first: "Password: ",
		again: "Sorry, try again: ", wrong: "Password incorrect or not sufficient for authentication of user %u.",
	},
	fault.BadRecoveryKey: {
		member: memberPassword, name: "Recovery key", // it travels as a password
		first: "Recovery key: ",
		again: "Sorry, reenter recovery key: ", wrong: "Password/recovery key incorrect or not sufficient for authentication of user %u.",
	},
	fault.BadPasswordAndNoToken: {
		member: memberPassword, name: "Password",
		first: "Try again with password: ", before: "Security token of user %u not inserted.",
		again: "Try again with password: ", wrong: "Password incorrect or not sufficient, and configured security token of user %u not inserted.",
	},
	fault.TokenPinNeeded: {
		member: memberPIN, name: "PIN", first: "Security token PIN: ", again: "Security token PIN: ",
	},
	fault.BadPin:              pinAgain("Security token PIN incorrect for user %u."),
	fault.BadPinFewTriesLeft:  pinAgain("Security token PIN of user %u incorrect (only a few tries left!)"),
	fault.BadPinOneTryLeft:    pinAgain("Security token PIN of user %u incorrect (only one try left!)"),
	fault.TokenPathNeeded:     {member: memberPath, wrong: "Please authenticate physically on security token of user %u."},
	fault.TokenPresenceNeeded: {member: memberPresence, wrong: "Please confirm presence on security token of user %u."},
	fault.TokenVerifyNeeded:   {member: memberVerification, wrong: "Please verify user on security token of user %u."},
}

func pinAgain(wrong string) question {
	const prompt = "Sorry, retry security token PIN: "
	return question{member: memberPIN, name: "PIN", first: prompt, before: wrong, again: prompt, wrong: wrong}
}

// asking is the state of asking one user for what the service wants.
type asking struct {
	known    answers
	rejected int
	offered  bool // what is known comes from a credential and was not tried yet
}

// outcome of a question.
type outcome int

const (
	answered outcome = iota
	refused          // the login program cannot ask
	ended            // code is the hook's result
)

// ask does what a rejection asks for: says the texts, takes the answer. carried
// says that the rejected call held what is asked for.
func (c *call) ask(a *asking, user string, q question, carried bool) (outcome, frame.Code) {
	fill := func(s string) string { return strings.ReplaceAll(s, "%u", user) }
	for {
		if carried {
			if a.rejected++; a.rejected == tries {
				if c.Start.Phase != frame.ChangeToken {
					c.tell(frame.Error, "Too many unsuccessful login attempts for user %s, refusing.", user)
				}
				return ended, frame.MaxTries
			}
		}
		if q.first == "" { // no answer is wanted, the person acts on the token
			c.tell(frame.Info, "%s", fill(q.wrong))
			a.known.permit(q.member)
			return answered, frame.Success
		}
		line, prompt := q.before, q.first
		again := a.known.has(q.member) || carried
		if again {
			line, prompt = q.wrong, q.again
		}
		if line != "" {
			c.tell(frame.Error, "%s", fill(line))
		}
		if c.activated() {
			// It is shown far from the login: who it is for must be in it.
			prompt = askpassword.ForHome(user, q.name, again, 0).Message
		}
		answer, code := c.Conv.Converse(frame.EchoOff, prompt)
		switch {
		case code != frame.Success:
			answer.Close()
			return refused, code
		case answer.Len() == 0:
			answer.Close()
			c.debug("%s request aborted.", q.name)
			return ended, frame.AuthTokErr
		case !travels(answer):
			// No JSON can carry it, so no home can have it as its password.
			answer.Close()
			carried = true
			continue
		case q.member == memberPassword && c.bySSH() && a.known.tried(answer):
			// sshd answers all questions of one try with the one password that it
			// was sent. Four more rejections of it would use up the service's rate
			// limit, take a derivation each, and end the connection of somebody
			// who has mistyped once. This failure lets sshd ask again.
			answer.Close()
			return ended, frame.AuthErr
		case q.member == memberPIN:
			a.known.setPIN(answer)
		default:
			a.known.addPassword(answer)
		}
		return answered, frame.Success
	}
}

// method is the bus method that gives a reference.
type method int

const (
	ref          method = iota // only if the home is active
	acquire                    // activates it, with secrets
	unrestricted               // whatever its state: for a session that unlocks it later
)

// acquire makes the login program hold a reference to the home of PAM_USER.
// must says that the person has to prove who they are even if the home is
// active. The user is nil when a reference was held already and no record was
// needed.
func (c *call) acquire(ctx context.Context, must bool) (*user, frame.Code) {
	if c.held(c.raw) {
		return nil, frame.Success
	}
	u, code := c.user(ctx)
	if code != frame.Success {
		return nil, code
	}
	if u.name != c.raw && c.held(u.name) {
		return u, frame.Success
	}
	a := &asking{}
	defer a.known.Close()
	if must && c.Start.AuthTok.Len() > 0 {
		t, err := c.Start.AuthTok.Clone()
		if err != nil {
			return nil, frame.BufErr
		}
		a.known.addPassword(t)
	}
	how, reference, code := c.reference(ctx, u, a, must)
	if code != frame.Success {
		return nil, code
	}
	// No copy of it may outlive the handing over: it would keep the home
	// active after the logout.
	code = c.Conv.StoreFile(keyReference+u.name, reference)
	_ = reference.Close()
	if code != frame.Success {
		return nil, frame.BufErr
	}
	if t := a.known.newest(); must && t != nil {
		if code := c.Conv.SetToken(t); code != frame.Success {
			return nil, code
		}
	}
	if c.Start.Phase == frame.Authenticate {
		c.note(u.name, func(s *state) { s.RefFromAuth = true })
	}
	switch {
	// Others may have opened it since the record was fetched.
	case how == acquire, how == ref && u.view.UseFallback:
		c.forget(u)
		if c.Start.Phase != frame.Authenticate {
			if u, code = c.settle(ctx, u); code != frame.Success {
				return nil, code
			}
		}
	case how == unrestricted:
		c.putEnv("XDG_SESSION_INCOMPLETE=1")
		c.log(logNotice, "Home for user %s acquired in incomplete mode, requires later activation.", u.name)
		return u, frame.Success
	}
	c.log(logNotice, "Home for user %s successfully acquired.", u.name)
	return u, frame.Success
}

// settle reads the record again after an activation outside authenticate, and
// replaces the home directory and shell of an inactive home, which the login
// program may have been given before.
func (c *call) settle(ctx context.Context, before *user) (*user, frame.Code) {
	c.raw = before.name // PAM_USER was set to it
	u, code := c.user(ctx)
	if code != frame.Success {
		return nil, code
	}
	if !before.view.UseFallback || u.view.UseFallback {
		return u, frame.Success
	}
	for _, e := range []struct{ name, fallback, now string }{
		{"HOME", before.view.FallbackHomeDirectory, u.view.HomeDirectory},
		{"SHELL", before.view.FallbackShell, u.view.Shell},
	} {
		value, ok := c.Start.Env(e.name)
		if !ok {
			value, ok = c.Start.HostEnv(e.name)
		}
		// A service manager before 258 gives no HOME where it is /.
		unset := !ok && e.name == "HOME" && c.activated()
		if unset || ok && e.fallback != "" && value == e.fallback {
			c.putEnv(e.name + "=" + e.now)
		}
	}
	return u, frame.Success
}

// reference is the loop: it calls, asks, and calls again.
func (c *call) reference(ctx context.Context, u *user, a *asking, must bool) (method, *os.File, frame.Code) {
	how := ref
	if must {
		how = acquire
	}
	inactive, locked, busy := false, false, 0
	for {
		var f *os.File
		var err error
		if how == acquire && a.known.empty() && c.knownAnswer(u) {
			err = fault.New(fault.BadPassword, "acquire home", nil)
		} else {
			f, err = c.callFor(ctx, how, u, &a.known)
		}
		if err == nil {
			return how, f, frame.Success
		}
		kind := fault.KindOf(err)
		q, ask := questions[kind]
		switch {
		case how == ref && kind == fault.HomeNotActive:
			inactive, how = true, acquire
		case how == ref && kind == fault.HomeLocked:
			locked, how = true, acquire
		case kind == fault.HomeBusy && how != unrestricted:
			if busy++; busy == tries {
				c.log(logErr, "Failed to acquire home for user %s: %s", u.name, fault.Public(err))
				c.tell(frame.Error, "%s", oneLine(fault.Public(err)))
				return how, nil, frame.MaxTries
			}
			inactive, how = true, acquire
			select {
			case <-time.After(100 * time.Millisecond << busy):
			case <-ctx.Done():
				return how, nil, frame.ServiceErr
			}
		case ask && how != unrestricted:
			how = acquire
			if c.credential(u, a, q) {
				continue
			}
			done, code := c.ask(a, u.name, q, a.known.has(q.member))
			if done == refused && code == frame.ConvErr && c.mayAskAgents(u) {
				if f, done = c.askAgents(ctx, u, a, q); f != nil {
					return ref, f, frame.Success
				}
			}
			if done == refused && c.unattended() {
				// That took its time: somebody may have logged in meanwhile.
				if f, err := c.callFor(ctx, ref, u, &a.known); err == nil {
					return ref, f, frame.Success
				}
			}
			switch {
			case done == ended:
				return how, nil, code
			case done == refused && !must && c.byTerminal() && !c.state(u.name).Declined:
				how = unrestricted
			case done == refused:
				c.log(logErr, "Failed to prompt for password/prompt.")
				return how, nil, c.cannotAsk(u.name, inactive, locked)
			}
		default:
			return how, nil, c.final(u.name, err)
		}
	}
}

// cannotAsk says why a login that cannot ask does not get in.
func (c *call) cannotAsk(user string, inactive, locked bool) frame.Code {
	if inactive {
		c.tell(frame.Error, "Home of user %s is currently not active, please log in locally first.", user)
	}
	if locked {
		c.tell(frame.Error, "Home of user %s is currently locked, please unlock locally first.", user)
	}
	if inactive || locked {
		return frame.PermDenied
	}
	return frame.ConvErr
}

// bySSH reports whether the login program is OpenSSH's.
func (c *call) bySSH() bool { return c.Start.Service != nil && *c.Start.Service == "sshd" }

// knownAnswer reports whether a call without secrets can only be answered with
// BadPassword. Then it is not made: each one costs a slot of the rate limit.
func (c *call) knownAnswer(u *user) bool {
	return u.passwordOnly && u.view.State != "absent" && u.view.RateLimited(c.now()) == 0
}

func (c *call) callFor(ctx context.Context, how method, u *user, known *answers) (*os.File, error) {
	homes, err := c.service(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	switch how {
	case ref:
		return homes.RefHome(ctx, u.name, c.suspend)
	case unrestricted:
		return homes.RefHomeUnrestricted(ctx, u.name, c.suspend)
	}
	var section *secret.Bytes
	if section, err = known.encode(); err != nil {
		return nil, err
	}
	defer section.Close()
	return homes.AcquireHome(ctx, u.name, section, c.suspend)
}

// final ends on a failure that no answer changes.
func (c *call) final(user string, err error) frame.Code {
	kind := fault.KindOf(err)
	if kind == fault.TokenPinLocked {
		c.tell(frame.Error, "Security token PIN is locked, please unlock it first. (Hint: Removal and re-insertion might suffice.)")
		return frame.ServiceErr
	}
	c.log(logErr, "Failed to acquire home for user %s: %s", user, fault.Public(err))
	switch kind {
	case fault.HomeAbsent:
		c.tell(frame.Error, "Home of user %s is currently absent, please plug in the necessary storage device or backing file system.", user)
		return frame.PermDenied
	case fault.AuthenticationLimit:
		c.tell(frame.Error, "Too frequent login attempts for user %s, try again later.", user)
		return frame.MaxTries
	}
	c.tell(frame.Error, "%s", oneLine(fault.Public(err)))
	return frame.ServiceErr
}

// oneLine makes the service's message fit to be shown in a login.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) {
			return '?'
		}
		return r
	}, s)
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "")
	}
	if s == "" {
		return "The home cannot be opened."
	}
	return s
}
