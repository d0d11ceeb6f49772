package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"hearth/internal/secret"
	"hearth/pamhome/askpassword"
)

// A look is how questions appear on this terminal.
type look struct {
	colour, emoji bool
	grey, bullet  string
}

// looks reads it from the environment.
func looks(colour bool, getenv func(string) string) look {
	l := look{colour: colour, grey: "\x1b[0;90m", bullet: "*"}
	terminal := getenv("TERM")
	if strings.Contains(terminal, "256color") || getenv("COLORTERM") != "" {
		l.grey += "\x1b[0;38:5:245m"
	}
	if !speaksUTF8(getenv) {
		return l
	}
	l.bullet = "•"
	l.emoji = terminal != "" && terminal != "dumb" && terminal != "linux"
	if b, err := parseBool(getenv("SYSTEMD_EMOJI")); err == nil {
		l.emoji = b
	}
	return l
}

// speaksUTF8 follows locale(7): the first variable that is set counts.
func speaksUTF8(getenv func(string) string) bool {
	if b, err := parseBool(getenv("SYSTEMD_UTF8")); err == nil {
		return b
	}
	for _, v := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if l := strings.ToLower(getenv(v)); l != "" {
			return strings.Contains(l, "utf-8") || strings.Contains(l, "utf8")
		}
	}
	return false
}

// answerWait is how long a password agent has to answer: whether there is one
// cannot be found out.
const answerWait = time.Minute

// prompt asks on the controlling terminal; what is typed shows as bullets. Where
// there is none it asks the password agents.
func (c *command) prompt(ctx context.Context, what, text, user string) (*secret.Bytes, error) {
	none := usagef("No password was given for user %s. There is no terminal to ask on: set $PASSWORD (for a new password $NEWPASSWORD), or run this on one.", user)
	if !c.ask {
		return nil, none
	}
	if !term.IsTerminal(int(c.in.Fd())) {
		dir := askpassword.SystemDir
		if os.Geteuid() != 0 {
			dir = askpassword.UserDir(os.Getenv("XDG_RUNTIME_DIR"))
		}
		if dir == "" || c.passed {
			return nil, none
		}
		c.notice("There is no terminal: waiting up to %d s for a password agent. See systemd-tty-ask-password-agent(1).", int(answerWait.Seconds()))
		p, err := fromAgents(ctx, dir, printable(text)+" ", user)
		switch {
		case errors.Is(err, askpassword.ErrDeclined):
			return nil, usagef("Failed to acquire %s: %s", what, reason(errCancelled))
		case err != nil:
			return nil, none
		}
		return p, nil
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		tty = c.in
	} else {
		defer tty.Close()
	}
	p, err := readHidden(tty, printable(text), looks(c.colour, os.Getenv))
	if err != nil {
		return nil, usagef("Failed to acquire %s: %s", what, reason(err))
	}
	return p, nil
}

// fromAgents puts one question; of several answers the first counts.
func fromAgents(ctx context.Context, dir, text, user string) (*secret.Bytes, error) {
	// A command that is interrupted takes its question along.
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	list, err := askpassword.Ask(ctx, dir, askpassword.Request{Message: text, Icon: "user-home", ID: "home:" + user, Limit: answerWait})
	if err != nil {
		return nil, err
	}
	secret.CloseAll(list[1:])
	return list[0], nil
}

// errCancelled reads, through reason, as the system words ECANCELED.
var errCancelled error = unix.ECANCELED

// hint stands behind the question until the first key.
const hint = "(press TAB for no echo) "

// readHidden asks on a terminal and reads one line, straight into a secret. A
// bullet per character shows that keys arrive; TAB, or backspace as the first
// key, turns that off. The terminal is set back whatever happens; Ctrl-C ends
// the program after that.
func readHidden(tty *os.File, question string, l look) (*secret.Bytes, error) {
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

	if l.emoji {
		question = "🔐 " + question
	}
	if l.colour {
		fmt.Fprint(tty, "\x1b[0;1;39m", question, " ", l.grey, hint, "\x1b[0m")
	} else {
		fmt.Fprint(tty, question, " ", hint)
	}
	// The newline comes before the terminal is as it was.
	defer fmt.Fprintln(tty)

	line, err := secret.New(passwordLimit)
	if err != nil {
		return nil, err
	}
	defer line.Close()
	e := &hidden{tty: tty, bullet: l.bullet}
	var result *secret.Bytes
	err = line.Use(func(buf []byte) error {
		e.buf = buf
		for first := true; ; first = false {
			var one [1]byte
			got, err := tty.Read(one[:])
			if err != nil || got == 0 {
				if err == nil || errors.Is(err, io.EOF) {
					err = errCancelled
				}
				return err
			}
			b := one[0]
			one[0] = 0
			if b == 0x03 {
				restore()
				_ = unix.Kill(os.Getpid(), unix.SIGINT)
				select {}
			}
			if first {
				erase(tty, len(hint))
			}
			switch b {
			case '\n', '\r', 0:
				var err error
				result, err = secret.Copy(buf[:e.n])
				return err
			case 0x04:
				fmt.Fprint(tty, "(skipped)")
				return errCancelled
			default:
				e.key(b, first)
			}
		}
	})
	return result, err
}

// hidden is a line being typed.
type hidden struct {
	tty    io.Writer
	bullet string
	silent bool
	buf    []byte
	n      int
	begun  int // where the last character begins that is not whole yet
	shown  int // bullets on the screen
}

func erase(tty io.Writer, columns int) { fmt.Fprint(tty, strings.Repeat("\b \b", columns)) }

func (h *hidden) hush() {
	if h.silent {
		return
	}
	erase(h.tty, h.shown)
	h.shown, h.silent = 0, true
	fmt.Fprint(h.tty, "(no echo) ")
}

func (h *hidden) key(b byte, first bool) {
	switch {
	case b == '\t', first && (b == 0x08 || b == 0x7f):
		h.hush()
	case b == 0x15:
		clear(h.buf[:h.n])
		erase(h.tty, h.shown)
		h.n, h.begun, h.shown = 0, 0, 0
	case b == 0x08 || b == 0x7f:
		whole := h.begun == h.n
		h.n = backspace(h.buf, h.n)
		h.begun = h.n
		// A character that is not whole yet has no bullet.
		if whole && h.shown > 0 {
			erase(h.tty, 1)
			h.shown--
		}
	case b < ' ' || h.n == len(h.buf):
		fmt.Fprint(h.tty, "\a")
	default:
		h.buf[h.n] = b
		h.n++
		if !utf8.FullRune(h.buf[h.begun:h.n]) {
			return
		}
		h.begun = h.n
		if !h.silent {
			fmt.Fprint(h.tty, h.bullet)
			h.shown++
		}
	}
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
