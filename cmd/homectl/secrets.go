package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// passwordLimit is the longest password read from a terminal or variable, in
// bytes.
const passwordLimit = 2048

// A keyring is what was learned so far to open one home: newest first, without
// duplicates.
type keyring struct{ passwords []*secret.Bytes }

func (k *keyring) close() { secret.CloseAll(k.passwords) }

// add takes p over.
func (k *keyring) add(p *secret.Bytes) {
	for _, have := range k.passwords {
		if have.Equal(p) {
			p.Close()
			return
		}
	}
	k.passwords = append([]*secret.Bytes{p}, k.passwords...)
}

// section returns the content of a record's secret section, for the bus. The
// caller closes it.
func (k *keyring) section() (*secret.Bytes, error) { return records.EncodeSecrets(k.passwords) }

// steal takes a password out of the environment, so that neither a second
// question nor a child sees it. Nil if there is none.
func steal(variable string) (*secret.Bytes, error) {
	value, ok := os.LookupEnv(variable)
	if !ok {
		return nil, nil
	}
	if err := os.Unsetenv(variable); err != nil {
		return nil, err
	}
	return secret.Take([]byte(value))
}

// harvest collects what the caller passed without being asked.
func harvest() (*keyring, error) {
	k := &keyring{}
	p, err := steal("PASSWORD")
	if err == nil && p != nil {
		k.add(p)
	}
	return k, err
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
			if err := c.askInto(k, "password", "Please enter password for user %s:", user); err != nil {
				return err
			}
		case fault.BadRecoveryKey:
			if len(k.passwords) > 0 {
				c.notice("Recovery key incorrect or not sufficient, please try again.")
			}
			if err := c.askInto(k, "recovery keys", "Please enter recovery key for user %s:", user); err != nil {
				return err
			}
		case fault.BadPasswordAndNoToken:
			if len(k.passwords) > 0 {
				c.notice("Password incorrect or not sufficient, and configured security token not inserted, please try again.")
			} else {
				c.notice("Security token not inserted, please enter password.")
			}
			if err := c.askInto(k, "password", "Please enter password for user %s:", user); err != nil {
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

func (c *command) askInto(k *keyring, what, prompt, user string) error {
	p, err := c.prompt(what, fmt.Sprintf(prompt, user), user)
	if err != nil {
		return err
	}
	k.add(p)
	return nil
}

// errCancelled reads, through reason, as the system words ECANCELED.
var errCancelled error = unix.ECANCELED

// prompt asks on the controlling terminal, without echo.
func (c *command) prompt(what, text, user string) (*secret.Bytes, error) {
	if !c.ask || !term.IsTerminal(int(c.in.Fd())) {
		return nil, usagef("No password was given for user %s. There is no terminal to ask on: set $PASSWORD (for a new password $NEWPASSWORD), or run this on one.", user)
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		tty = c.in
	} else {
		defer tty.Close()
	}
	fmt.Fprint(tty, printable(text)+" ")
	p, err := readHidden(tty)
	fmt.Fprintln(tty)
	if err != nil {
		return nil, usagef("Failed to acquire %s: %s", what, reason(err))
	}
	return p, nil
}

// readHidden reads one line without echo, straight into a secret. The terminal
// is set back whatever happens; Ctrl-C ends the program after that.
func readHidden(tty *os.File) (*secret.Bytes, error) {
	fd := int(tty.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *old
	// ISIG off: Ctrl-C arrives as a byte, so that no signal can leave the
	// terminal without echo.
	raw.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	raw.Iflag |= unix.ICRNL
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &raw); err != nil {
		return nil, err
	}
	restore := func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }
	defer restore()

	line, err := secret.New(passwordLimit)
	if err != nil {
		return nil, err
	}
	defer line.Close()
	var result *secret.Bytes
	err = line.Use(func(buf []byte) error {
		n := 0
		for {
			var one [1]byte
			got, err := tty.Read(one[:])
			if err != nil || got == 0 {
				if err == nil || errors.Is(err, io.EOF) {
					err = errCancelled
				}
				return err
			}
			switch b := one[0]; b {
			case '\n', '\r', 0:
				var err error
				result, err = secret.Copy(buf[:n])
				return err
			case 0x03:
				restore()
				_ = unix.Kill(os.Getpid(), unix.SIGINT)
				select {}
			case 0x04:
				return errCancelled
			case 0x15:
				clear(buf[:n])
				n = 0
			case 0x08, 0x7f:
				n = backspace(buf, n)
			default:
				if b < ' ' || n == len(buf) {
					fmt.Fprint(tty, "\a")
					continue
				}
				buf[n] = b
				n++
			}
			one[0] = 0
		}
	})
	return result, err
}

// backspace takes one character, not one byte, off the end.
func backspace(buf []byte, n int) int {
	for n > 0 {
		n--
		b := buf[n]
		buf[n] = 0
		if b&0xc0 != 0x80 {
			break
		}
	}
	return n
}

// newPassword asks twice, at most four times over. $NEWPASSWORD answers instead.
func (c *command) newPassword(user string) (*secret.Bytes, error) {
	p, err := steal("NEWPASSWORD")
	if err != nil || p != nil {
		return p, err
	}
	for range 4 {
		first, err := c.prompt("password", fmt.Sprintf("Please enter new password for user %s:", user), user)
		if err != nil {
			return nil, err
		}
		second, err := c.prompt("password", fmt.Sprintf("Please enter new password for user %s (repeat):", user), user)
		if err != nil {
			first.Close()
			return nil, err
		}
		same := first.Equal(second)
		second.Close()
		if same {
			return first, nil
		}
		first.Close()
		c.fail("Password didn't match, try again.")
	}
	return nil, usagef("Too many attempts, giving up.")
}

// blank reports whether a JSON text holds nothing.
func blank(text []byte) bool { return len(bytes.TrimSpace(text)) == 0 }
