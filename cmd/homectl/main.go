// Command homectl creates, opens, closes and shows home areas. It is a bus
// client like any other: what it may do, the daemon and polkit decide. It knows
// the command line, the terminal and the record that a create or update sends;
// storage and signatures it leaves to the daemon.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

func main() {
	// Passwords pass through here. Unlike a limit on core files this ends with
	// exec, so that the child of "with" may dump its own.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	c := &command{
		program:  filepath.Base(os.Args[0]),
		in:       os.Stdin,
		out:      os.Stdout,
		err:      os.Stderr,
		assembly: newAssembly(),
		legend:   true,
		ask:      true,
		machine:  "/etc/machine-id",
		hash:     records.HashPassword,
	}
	c.colour = colours(c.out, c.err)
	os.Exit(c.run(context.Background(), os.Args[1:]))
}

// A command is one run of homectl.
type command struct {
	program  string
	in       *os.File
	out, err *os.File
	colour   bool

	// machine is the path of the file with this machine's ID.
	machine string
	// hash makes the crypt(3) hash of a new password.
	hash     func(p *secret.Bytes, random io.Reader) (string, error)
	assembly *assembly
	// blobs are the files that go along with the record; nil: none do.
	blobs map[string]*os.File
	// What the options said.
	identity string // path, "-", or ""
	keyName  string
	json     string // "", "pretty", "short", "off"
	export   string // "", "stripped", "minimal"
	legend   bool
	ask      bool // may ask
	offline  bool
	seize    bool
	dry      rehearsal
	recovery recovery

	// passed: the caller brought a secret along. Without a terminal nobody is
	// then asked for a better one: a script is to hear at once that it is wrong.
	passed bool

	client *home1.Client
}

// A verb is one thing homectl does.
type verb struct {
	name     string
	args     string
	min, max int // how many arguments; max -1: any
	help     string
	group    string
	run      func(c *command, ctx context.Context, args []string) error
}

// errSaid is an error that was printed already.
var errSaid = errors.New("said")

// exitStatus is the status of a child that homectl hands on.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// run returns the exit status.
func (c *command) run(ctx context.Context, args []string) int {
	c.seize = true
	rest, err := parse(c.program, allOptions(), args, c)
	if err == nil {
		err = c.dispatch(ctx, rest)
	}
	if c.client != nil {
		_ = c.client.Close()
	}
	var status exitStatus
	switch {
	case err == nil, errors.As(err, &errDone{}):
		return 0
	case errors.As(err, &status):
		return int(status)
	case !errors.Is(err, errSaid):
		c.fail("%s", err)
	}
	return 1
}

func (c *command) dispatch(ctx context.Context, args []string) error {
	name := "list"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	all := verbs()
	for _, v := range all {
		if v.name != name {
			continue
		}
		if len(args) < v.min {
			return usagef("Too few arguments.")
		}
		if v.max >= 0 && len(args) > v.max {
			return usagef("Too many arguments.")
		}
		if err := c.rehearsing(name); err != nil {
			return err
		}
		defer c.polkitAgent(name)()
		return v.run(c, ctx, args)
	}
	var known []string
	for _, v := range all {
		if v.group != "" {
			known = append(known, v.name)
		}
	}
	if n := nearest(name, known); n != "" {
		return usagef("Unknown command verb '%s', did you mean '%s'?", name, n)
	}
	return usagef("Unknown command verb '%s'.", name)
}

// bus connects on first use.
func (c *command) bus(ctx context.Context) (*home1.Client, error) {
	if c.client == nil {
		client, err := home1.Dial(ctx)
		if err != nil {
			return nil, usagef("Failed to connect to system scope bus via local transport: %s", reason(err))
		}
		c.client = client
	}
	return c.client, nil
}

// each runs one call per user, prints what fails and goes on.
func (c *command) each(ctx context.Context, users []string, prefix string, call func(context.Context, *home1.Client, string) error) error {
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	for _, u := range users {
		if e := call(ctx, client, u); e != nil {
			c.explain(prefix, u, e)
			err = errSaid
		}
	}
	return err
}

// explain prints a failure of the daemon: the first line as scripts know it,
// and on a terminal what to do about it.
func (c *command) explain(prefix, user string, err error) {
	if errors.Is(err, errSaid) {
		return
	}
	var u usageError
	if errors.As(err, &u) {
		c.fail("%s", u.text)
		return
	}
	c.fail("%s: %s", prefix, fault.Public(err))
	c.advise(user, err)
}

func (c *command) advise(user string, err error) {
	if next := fault.KindOf(err).Next(user); next != "" && term.IsTerminal(int(c.err.Fd())) {
		c.info("%s", next)
	}
}

// Lines for the person. They go to standard error; results go to standard
// output.

func (c *command) fail(format string, a ...any)   { c.line("\x1b[0;1;31m", format, a...) }
func (c *command) warn(format string, a ...any)   { c.line("\x1b[0;1;33m", format, a...) }
func (c *command) notice(format string, a ...any) { c.line("\x1b[0;1;39m", format, a...) }
func (c *command) info(format string, a ...any)   { c.line("", format, a...) }

func (c *command) line(colour, format string, a ...any) {
	text := printable(fmt.Sprintf(format, a...))
	if c.colour && colour != "" {
		text = colour + text + "\x1b[0m"
	}
	fmt.Fprintln(c.err, text)
}

// printable keeps control sequences that come from records and the bus off the
// terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '�'
		}
		return r
	}, s)
}

// colours follows the variables that systemd's tools and others know.
func colours(out, err *os.File) bool {
	if v, ok := os.LookupEnv("SYSTEMD_COLORS"); ok {
		b, e := parseBool(v)
		return e != nil || b
	}
	if _, ok := os.LookupEnv("NO_COLOR"); ok {
		return false
	}
	t := os.Getenv("TERM")
	return t != "" && t != "dumb" && term.IsTerminal(int(out.Fd())) && term.IsTerminal(int(err.Fd()))
}

// caller is the user name of whoever runs homectl.
func caller() (string, error) {
	u, err := user.Current()
	if err != nil {
		return "", usagef("Failed to determine the user name of the caller: %s", reason(err))
	}
	return u.Username, nil
}

// machineID returns this machine's ID, 32 hexadecimal digits.
func (c *command) machineID() (string, error) {
	text, err := os.ReadFile(c.machine)
	id := strings.TrimSpace(string(text))
	if err != nil || len(id) != 32 {
		return "", usagef("Failed to read the machine ID: %s is missing or not valid. See systemd-machine-id-setup(1).", c.machine)
	}
	return id, nil
}

// reason returns the words of an error without the operation and path that the
// caller's text names already.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		s := errno.Error()
		return strings.ToUpper(s[:1]) + s[1:]
	}
	if errors.Is(err, io.EOF) {
		return "No data available"
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return fault.Public(f)
	}
	return err.Error()
}
