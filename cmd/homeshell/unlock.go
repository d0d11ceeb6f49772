package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// tries is how many answers may be rejected.
const tries = 5

// homes is the service, as far as the shell needs it. The empty name is the
// caller's own home.
type homes interface {
	GetUserRecordByName(ctx context.Context, name string) (text []byte, incomplete bool, err error)
	ActivateHomeIfReferenced(ctx context.Context, name string, secrets *secret.Bytes) error
}

// unlock activates the caller's home, asking for what the service wants.
type unlock struct {
	homes   homes
	machine records.Machine
	tell    func(line string)
	// ask puts a prompt on the terminal; nil where there is none.
	ask       func(prompt string) (*secret.Bytes, error)
	passwords []*secret.Bytes // newest first
	rejected  int
}

// Close wipes what was typed.
func (u *unlock) Close() { secret.CloseAll(u.passwords) }

// harvest takes a password that the environment brings, and returns the
// environment without it.
func (u *unlock) harvest(environ []string) ([]string, error) {
	rest, p, err := passwordOf(environ)
	if p != nil {
		u.passwords = append(u.passwords, p)
	}
	return rest, err
}

// run returns the record of the home once it is active. Its errors are
// sentences for the person in front of it.
func (u *unlock) run(ctx context.Context) (*records.Record, error) {
	for range tries {
		text, _, err := u.homes.GetUserRecordByName(ctx, "")
		if err != nil {
			return nil, notify("Failed to inspect home: %s", fault.Public(err))
		}
		record, err := records.Parse(text, records.ClientReply)
		if err != nil {
			return nil, notify("Failed to inspect home: %s", fault.Public(err))
		}
		if !record.View(u.machine).UseFallback {
			return record, nil
		}
		if err := u.activate(ctx, record.UserName()); err != nil {
			return nil, err
		}
	}
	return nil, notify("Failed to activate home dir, even after %d tries.", tries)
}

// activate calls and asks until the home is active.
func (u *unlock) activate(ctx context.Context, user string) error {
	for {
		section, err := records.EncodeSecrets(u.passwords)
		if err != nil {
			return err
		}
		err = u.homes.ActivateHomeIfReferenced(ctx, "", section)
		section.Close()
		line, prompt := "", fmt.Sprintf("Please enter password for user %s: ", user)
		tried := len(u.passwords) > 0
		switch fault.KindOf(err) {
		case "", fault.HomeAlreadyActive:
			return nil
		case fault.HomeNotReferenced:
			return notify("Called without reference on home taken, can't operate.")
		case fault.BadPassword:
			if tried {
				line = "Password incorrect or not sufficient, please try again."
			}
		case fault.BadRecoveryKey:
			prompt = fmt.Sprintf("Please enter recovery key for user %s: ", user)
			if tried {
				line = "Recovery key incorrect or not sufficient, please try again."
			}
		case fault.BadPasswordAndNoToken:
			line = "Security token not inserted, please enter password."
			if tried {
				line = "Password incorrect or not sufficient, and configured security token not inserted, please try again."
			}
		case fault.HomeAbsent:
			return notify("Home of user %s is currently absent, please plug in the necessary storage device or backing file system.", user)
		case fault.AuthenticationLimit:
			return notify("Too frequent login attempts for user %s, try again later.", user)
		default:
			return notify("Operation on home %s failed: %s", user, fault.Public(err))
		}
		if tried {
			if u.rejected++; u.rejected >= tries {
				return notify("Too many unsuccessful login attempts for user %s, refusing.", user)
			}
		}
		if line != "" {
			u.tell(line)
		}
		if err := u.question(user, prompt); err != nil {
			return err
		}
	}
}

// question takes one answer and puts it in front of those before.
func (u *unlock) question(user, prompt string) error {
	if u.ask == nil {
		return notify("Home of user %s is not active and there is no terminal to ask on; log in with a terminal first.", user)
	}
	p, err := u.ask(prompt)
	if err != nil {
		return notify("Failed to acquire password: %v", err)
	}
	u.passwords = slices.DeleteFunc(u.passwords, func(o *secret.Bytes) bool {
		same := o.Equal(p)
		if same {
			o.Close()
		}
		return same
	})
	u.passwords = append([]*secret.Bytes{p}, u.passwords...)
	return nil
}

// terminal is the session's own.
type terminal struct{ fd int }

// maxAnswer is the length of a line that the kernel's line discipline holds.
const maxAnswer = 4096

// openTerminal wants a terminal on standard input: a session without one has
// nobody to ask.
func openTerminal() (*terminal, error) {
	t := &terminal{int(os.Stdin.Fd())}
	_, err := unix.IoctlGetTermios(t.fd, unix.TCGETS)
	return t, err
}

// notice is a failure as a sentence for the person in front of the terminal.
type notice string

func (n notice) Error() string { return string(n) }

func notify(format string, args ...any) error { return notice(fmt.Sprintf(format, args...)) }

// errCanceled is an end of file in place of an answer.
var errCanceled = notify("Operation canceled")

// ask reads one line without echo, straight into locked memory. Interrupt and
// quit keys work; the session ends with them, and the terminal with it.
func (t *terminal) ask(prompt string) (*secret.Bytes, error) {
	old, err := unix.IoctlGetTermios(t.fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	quiet := *old
	quiet.Lflag = quiet.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	quiet.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(t.fd, unix.TCSETSF, &quiet); err != nil {
		return nil, err
	}
	defer func() { _ = unix.IoctlSetTermios(t.fd, unix.TCSETS, old) }()
	if _, err := os.Stderr.WriteString(prompt); err != nil {
		return nil, err
	}
	line, err := secret.New(maxAnswer)
	if err != nil {
		return nil, err
	}
	defer line.Close()
	var answer *secret.Bytes
	err = line.Use(func(p []byte) error {
		var n int
		for {
			var err error
			if n, err = unix.Read(t.fd, p); err == unix.EINTR {
				continue
			} else if err != nil {
				return err
			}
			break
		}
		fmt.Fprintln(os.Stderr)
		if n == 0 || p[n-1] != '\n' {
			return errCanceled
		}
		var err error
		answer, err = secret.Take(p[:n-1])
		return err
	})
	return answer, err
}
