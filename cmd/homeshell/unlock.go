package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// tries is how many answers may be rejected, how often the home may be busy,
// and how often it may close again behind us.
const tries = 5

// homes is the service, as far as the shell needs it. The empty name is the
// caller's own home.
type homes interface {
	GetUserRecordByName(ctx context.Context, name string) (text []byte, incomplete bool, err error)
	ActivateHomeIfReferenced(ctx context.Context, name string, secrets *secret.Bytes) error
	AcquireHome(ctx context.Context, name string, secrets *secret.Bytes, pleaseSuspend bool) (*os.File, error)
}

// unlock activates the caller's home, asking for what the service wants.
type unlock struct {
	homes   homes
	machine records.Machine
	tell    func(line string)
	// ask puts a prompt on the terminal; nil where there is none.
	ask func(prompt string) (*secret.Bytes, error)
	// cached looks for a password that other programs of the user's left for
	// a while in the kernel; nil if there is none.
	cached func() []*secret.Bytes
	now    func() time.Time

	known records.Secrets // passwords newest first, one PIN at most
}

// Close wipes what was typed.
func (u *unlock) Close() { u.known.Close() }

// run returns the record of the home once it is active. Its errors are
// sentences for the person in front of it.
func (u *unlock) run(ctx context.Context) (*records.Record, error) {
	for round := range tries {
		text, _, err := u.homes.GetUserRecordByName(ctx, "")
		if err != nil {
			return nil, notify("Failed to inspect home: %s", fault.Public(err))
		}
		record, err := records.Parse(text, records.ClientReply)
		if err != nil {
			return nil, notify("Failed to inspect home: %s", fault.Public(err))
		}
		view := record.View(u.machine)
		if !view.UseFallback {
			return record, nil
		}
		if round == 0 && len(u.known.Passwords) == 0 && u.cached != nil {
			u.known.Passwords = u.cached()
		}
		if err := u.activate(ctx, &view); err != nil {
			return nil, err
		}
	}
	return nil, notify("Failed to activate home dir, even after %d tries.", tries)
}

// A question is what a rejection by the service makes us say and ask.
type question struct {
	wants  want
	first  string // line in front of the first prompt
	again  string // line once the call carried what is wanted
	prompt string // %u is the user; "": there is nothing to type
}

type want int

const (
	password want = iota
	pin
	path
	presence
	verification
)

// The texts are the original's.
var questions = map[fault.Kind]question{
	fault.BadPassword:    {password, "", "Password incorrect or not sufficient, please try again.", "Please enter password for user %u: "},
	fault.BadRecoveryKey: {password, "", "Recovery key incorrect or not sufficient, please try again.", "Please enter recovery key for user %u: "},
	fault.BadPasswordAndNoToken: {password, "Security token not inserted, please enter password.",
		"Password incorrect or not sufficient, and configured security token not inserted, please try again.", "Please enter password for user %u: "},
	fault.TokenPinNeeded:      {pin, "", "", "Please enter security token PIN for user %u: "},
	fault.BadPin:              pinAgain("Security token PIN incorrect, please try again."),
	fault.BadPinFewTriesLeft:  pinAgain("Security token PIN incorrect, please try again (only a few tries left!)."),
	fault.BadPinOneTryLeft:    pinAgain("Security token PIN incorrect, please try again (only one try left!)."),
	fault.TokenPathNeeded:     act(path, "Please authenticate physically on security token."),
	fault.TokenPresenceNeeded: act(presence, "Please confirm presence on security token."),
	fault.TokenVerifyNeeded:   act(verification, "Please verify user on security token."),
}

func pinAgain(line string) question {
	return question{pin, line, line, "Please enter security token PIN for user %u: "}
}

// act is a question that the person answers at the token.
func act(w want, line string) question { return question{w, line, line, ""} }

// activate calls and asks until the home is active.
func (u *unlock) activate(ctx context.Context, view *records.View) error {
	rejected, busy, locked := 0, 0, view.State == "locked"
	for {
		var err error
		if u.knownAnswer(view) {
			err = fault.New(fault.BadPassword, "activate", nil)
		} else {
			err = u.try(ctx, locked)
		}
		q, ask := questions[fault.KindOf(err)]
		switch kind := fault.KindOf(err); {
		case err == nil, kind == fault.HomeAlreadyActive:
			return nil
		case kind == fault.HomeLocked && !locked:
			locked = true
		case kind == fault.HomeBusy && busy < tries-1:
			busy++
			select {
			case <-time.After(100 * time.Millisecond << busy):
			case <-ctx.Done():
				return ctx.Err()
			}
		case ask:
			carried := u.carried(q.wants)
			if carried {
				if rejected++; rejected >= tries {
					return notify("Too many unsuccessful login attempts for user %s, refusing.", view.UserName)
				}
			}
			if err := u.answer(q, carried, view.UserName); err != nil {
				return err
			}
		default:
			return final(view.UserName, err)
		}
	}
}

// try makes one call. A locked home is resumed only by acquiring it; the
// reference that comes with it ends here, since the session has its own.
func (u *unlock) try(ctx context.Context, locked bool) error {
	section, err := u.known.Encode()
	if err != nil {
		return err
	}
	defer section.Close()
	if !locked {
		return u.homes.ActivateHomeIfReferenced(ctx, "", section)
	}
	reference, err := u.homes.AcquireHome(ctx, "", section, false)
	if err != nil {
		return err
	}
	return reference.Close()
}

// knownAnswer reports whether a call without secrets can only be answered with
// BadPassword. Then it is not made: each one costs a slot of the rate limit.
func (u *unlock) knownAnswer(v *records.View) bool {
	return u.known.Empty() && v.PasswordOnly && v.State != "absent" && v.RateLimited(uint64(u.now().UnixMicro())) == 0
}

// carried reports whether the call that was rejected held what is wanted.
func (u *unlock) carried(w want) bool {
	switch w {
	case password:
		return len(u.known.Passwords) > 0
	case pin:
		return len(u.known.TokenPins) > 0
	case path:
		return u.known.PathPermitted
	case presence:
		return u.known.PresencePermitted
	}
	return u.known.VerificationPermitted
}

// answer says what there is to say and takes one answer.
func (u *unlock) answer(q question, carried bool, user string) error {
	if q.prompt != "" && u.ask == nil {
		return notify("Home of user %s is not active and there is no terminal to ask on; log in with a terminal first.", user)
	}
	line := q.first
	if carried {
		line = q.again
	}
	if line != "" {
		u.tell(line)
	}
	switch q.wants {
	case path:
		u.known.PathPermitted = true
		return nil
	case presence:
		u.known.PresencePermitted = true
		return nil
	case verification:
		u.known.VerificationPermitted = true
		return nil
	}
	p, err := u.ask(strings.ReplaceAll(q.prompt, "%u", user))
	if err != nil {
		return notify("Failed to acquire password: %v", err)
	}
	if q.wants == pin {
		// Only the newest is ever sent: a token counts tries.
		secret.CloseAll(u.known.TokenPins)
		u.known.TokenPins = []*secret.Bytes{p}
		return nil
	}
	u.known.Passwords = slices.DeleteFunc(u.known.Passwords, func(o *secret.Bytes) bool {
		same := o.Equal(p)
		if same {
			o.Close()
		}
		return same
	})
	u.known.Passwords = slices.Insert(u.known.Passwords, 0, p)
	return nil
}

// final says what no answer changes.
func final(user string, err error) error {
	switch fault.KindOf(err) {
	case fault.HomeNotReferenced:
		return notify("Called without reference on home taken, can't operate.")
	case fault.HomeAbsent:
		return notify("Home of user %s is currently absent, please plug in the necessary storage device or backing file system.", user)
	case fault.AuthenticationLimit:
		return notify("Too frequent login attempts for user %s, try again later.", user)
	case fault.TokenPinLocked:
		return notify("Security token PIN is locked, please unlock it first. (Hint: Removal and re-insertion might suffice.)")
	}
	return notify("Operation on home %s failed: %s", user, fault.Public(err))
}
