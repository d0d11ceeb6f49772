package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/pamhome/askpassword"
	"hearth/records"
	"hearth/records/quality"
)

// passwordLimit is the longest password read from a terminal or variable, in
// bytes.
const passwordLimit = 2048

// A keyring is what was learned so far to open one home: newest first, without
// duplicates.
type keyring struct {
	passwords, pins []*secret.Bytes
	recovery        *secret.Bytes // a new recovery key, borrowed, that goes along with them
	// What a security token may ask of the person.
	path, presence, verification bool
}

func (k *keyring) close() {
	secret.CloseAll(k.passwords)
	secret.CloseAll(k.pins)
	k.passwords, k.pins = nil, nil
}

// add takes p over.
func (k *keyring) add(p *secret.Bytes) { k.passwords = newestFirst(k.passwords, p) }

// addPIN takes p over.
func (k *keyring) addPIN(p *secret.Bytes) { k.pins = newestFirst(k.pins, p) }

func newestFirst(list []*secret.Bytes, p *secret.Bytes) []*secret.Bytes {
	for _, have := range list {
		if have.Equal(p) {
			p.Close()
			return list
		}
	}
	return append([]*secret.Bytes{p}, list...)
}

// permit reports whether permission is news.
func permit(permission *bool) bool {
	news := !*permission
	*permission = true
	return news
}

// section returns the content of a record's secret section, for the bus. The
// caller closes it.
func (k *keyring) section() (*secret.Bytes, error) {
	all := k.passwords
	if k.recovery != nil {
		all = append(slices.Clone(all), k.recovery)
	}
	s := records.Secrets{Passwords: all, TokenPins: k.pins, PathPermitted: k.path, PresencePermitted: k.presence, VerificationPermitted: k.verification}
	return s.Encode()
}

// steal takes a password out of the environment, so that neither a second
// question nor a child sees it. Nil if there is none.
func (c *command) steal(variable string) (*secret.Bytes, error) {
	value, ok := os.LookupEnv(variable)
	if !ok {
		return nil, nil
	}
	if err := os.Unsetenv(variable); err != nil {
		return nil, err
	}
	c.passed = true
	return secret.Take([]byte(value))
}

// harvest collects what the caller passed without being asked: the environment,
// else a credential of the unit that runs us, else what this user's programs
// left in the keyring, if the home is the caller's own.
func (c *command) harvest(ctx context.Context, user string) (*keyring, error) {
	k := &keyring{}
	// The recovery key first: what is added last is tried first.
	for _, item := range []struct {
		variable, credential, key string
		add                       func(*secret.Bytes)
	}{
		{"", "home.recovery-key", "home-recovery-key", k.add}, {"PASSWORD", "home.password", "home-password", k.add},
		{"PIN", "home.token-pin", "token-pin", k.addPIN},
	} {
		if item.variable != "" {
			p, err := c.steal(item.variable)
			if err != nil {
				return k, err
			}
			if p != nil {
				item.add(p)
				continue
			}
		}
		list, err := c.credential(item.credential)
		if err == nil && len(list) == 0 && c.own(ctx, user) {
			// No keyring is no password.
			list, _ = askpassword.Cached(item.key)
		}
		if err != nil {
			return k, err
		}
		for _, p := range slices.Backward(list) {
			item.add(p)
		}
	}
	return k, nil
}

// credential reads one of the unit that runs us.
func (c *command) credential(name string) ([]*secret.Bytes, error) {
	list, err := askpassword.Credential(os.Getenv("CREDENTIALS_DIRECTORY"), name)
	if err != nil {
		return nil, usagef("Failed to open credentials directory: %s", reason(err))
	}
	c.passed = c.passed || len(list) > 0
	return list, nil
}

// own reports whether a home is that of the user who runs us. (The system's own
// look-up cannot be used: this program is linked without NSS.)
func (c *command) own(ctx context.Context, user string) bool {
	if os.Getuid() == 0 {
		return false
	}
	client, err := c.bus(ctx)
	if err != nil {
		return false
	}
	h, err := client.GetHomeByName(ctx, user)
	return err == nil && int(h.UID) == os.Getuid()
}

// remember leaves the password that opened the caller's own home in the
// keyring, if the caller says for how long: a password that nobody asked to
// keep stays nowhere.
func (c *command) remember(ctx context.Context, k *keyring, user string) {
	keep, err := parseSpan(os.Getenv("SYSTEMD_ASK_PASSWORD_KEYRING_TIMEOUT_SEC"))
	if err != nil || keep == 0 || len(k.passwords) == 0 || !c.own(ctx, user) {
		return
	}
	// Without a keyring the next command asks again, no more.
	_ = askpassword.Remember("home-password", k.passwords[0], time.Duration(min(keep, 1<<40))*time.Microsecond)
}

// slow carries out a call that needs secrets: on each complaint of the daemon
// that the user can answer it asks, adds to k and calls again.
func (c *command) slow(ctx context.Context, user string, k *keyring, call func(ctx context.Context, section *secret.Bytes) error) error {
	for {
		section, err := k.section()
		if err != nil {
			return err
		}
		err = call(ctx, section)
		section.Close()
		if err == nil {
			return nil
		}
		switch kind := fault.KindOf(err); {
		case kind == fault.TokenPathNeeded && permit(&k.path):
			c.atToken("Please authenticate physically on security token.")
			continue
		case kind == fault.TokenPresenceNeeded && permit(&k.presence):
			c.atToken("Please confirm presence on security token.")
			continue
		case kind == fault.TokenVerifyNeeded && permit(&k.verification):
			c.atToken("Please verify user on security token.")
			continue
		}
		switch fault.KindOf(err) {
		case fault.HomeAbsent:
			c.fail("Home of user %s is currently absent, please plug in the necessary storage device or backing file system.", user)
			return errSaid
		case fault.AuthenticationLimit:
			c.fail("Too frequent login attempts for user %s, try again later.", user)
			return errSaid
		case fault.BadPassword:
			if len(k.passwords) > 0 {
				c.notice("Password incorrect or not sufficient, please try again.")
			}
			if err := c.askInto(ctx, k, "password", "Please enter password for user %s:", user); err != nil {
				return err
			}
		case fault.BadRecoveryKey:
			if len(k.passwords) > 0 {
				c.notice("Recovery key incorrect or not sufficient, please try again.")
			}
			if err := c.askInto(ctx, k, "recovery keys", "Please enter recovery key for user %s:", user); err != nil {
				return err
			}
		case fault.BadPasswordAndNoToken:
			if len(k.passwords) > 0 {
				c.notice("Password incorrect or not sufficient, and configured security token not inserted, please try again.")
			} else {
				c.notice("Security token not inserted, please enter password.")
			}
			if err := c.askInto(ctx, k, "password", "Please enter password for user %s:", user); err != nil {
				return err
			}
		case fault.TokenPinNeeded:
			if err := c.askPIN(ctx, k, "", user); err != nil {
				return err
			}
		case fault.BadPin:
			if err := c.askPIN(ctx, k, "Security token PIN incorrect, please try again.", user); err != nil {
				return err
			}
		case fault.BadPinFewTriesLeft:
			if err := c.askPIN(ctx, k, "Security token PIN incorrect, please try again (only a few tries left!).", user); err != nil {
				return err
			}
		case fault.BadPinOneTryLeft:
			if err := c.askPIN(ctx, k, "Security token PIN incorrect, please try again (only one try left!).", user); err != nil {
				return err
			}
		case fault.TokenPinLocked:
			c.fail("Security token PIN is locked, please unlock it first. (Hint: Removal and re-insertion might suffice.)")
			return errSaid
		default:
			c.explain(fmt.Sprintf("Operation on home %s failed", user), user, err)
			return errSaid
		}
	}
}

func (c *command) askInto(ctx context.Context, k *keyring, what, prompt, user string) error {
	p, err := c.prompt(ctx, what, fmt.Sprintf(prompt, user), user)
	if err != nil {
		return err
	}
	k.add(p)
	return nil
}

// askPIN says what was wrong with the last PIN, if one was, and asks for another.
func (c *command) askPIN(ctx context.Context, k *keyring, wrong, user string) error {
	if wrong != "" {
		c.notice("%s", wrong)
	}
	p, err := c.prompt(ctx, "security token PIN", fmt.Sprintf("Please enter security token PIN for user %s:", user), user)
	if err != nil {
		return err
	}
	k.addPIN(p)
	return nil
}

// atToken says what the person has to do there.
func (c *command) atToken(what string) {
	if looks(c.colour, os.Getenv).emoji {
		what = "👆 " + what
	}
	c.notice("%s", what)
}

// newPassword asks twice, at most four times over, and says when the answer is
// easy to guess. $NEWPASSWORD answers instead.
func (c *command) newPassword(ctx context.Context, user string) (*secret.Bytes, error) {
	p, err := c.steal("NEWPASSWORD")
	if err != nil || p != nil {
		return p, err
	}
	list, err := c.credential("home.new-password")
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		secret.CloseAll(list[1:])
		return list[0], nil
	}
	for range 4 {
		first, err := c.prompt(ctx, "password", fmt.Sprintf("Please enter new password for user %s:", user), user)
		if err != nil {
			return nil, err
		}
		second, err := c.prompt(ctx, "password", fmt.Sprintf("Please enter new password for user %s (repeat):", user), user)
		if err != nil {
			first.Close()
			return nil, err
		}
		same := first.Equal(second)
		second.Close()
		if same {
			c.adviseOn(first, user)
			return first, nil
		}
		first.Close()
		c.fail("Password didn't match, try again.")
	}
	return nil, usagef("Too many attempts, giving up.")
}

// adviseOn says when a new password is easy to guess. What is too weak, the
// daemon refuses.
func (c *command) adviseOn(p *secret.Bytes, user string) {
	if advice := quality.Advice(p, user); advice != "" {
		c.notice("%s", advice)
	}
}

// blank reports whether a JSON text holds nothing.
func blank(text []byte) bool { return len(bytes.TrimSpace(text)) == 0 }
