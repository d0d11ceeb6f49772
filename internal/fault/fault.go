// Package fault gives every failure its kind, where its meaning is known, and
// holds the one table that maps kinds to bus error names, to PAM results and to
// what a person reads. It decides nothing; it leaves retrying and undoing to
// its callers.
package fault

import (
	"errors"
	"fmt"
	"strings"
)

// Kind says what a failure means. Its value is the stable code that crosses
// processes.
type Kind string

// Error is a failure whose meaning is known.
type Error struct {
	Kind Kind
	// Op says what was being done, verb and object: "open keyslot".
	Op string
	// User is the home concerned, if known.
	User string
	// Text is the public text, complete and without secrets. Empty: the
	// table's text for the kind.
	Text string
	// Wording takes the place of the table's text; %u is filled in as there.
	Wording string
	// Err is the cause. It goes to the journal only.
	Err error
}

// New returns a failure of kind k while doing op; err is its cause or nil.
func New(k Kind, op string, err error) *Error { return &Error{Kind: k, Op: op, Err: err} }

// Newf returns a failure whose public text is given by a format. The text
// reaches the caller on the bus: it must name no secret.
func Newf(k Kind, op, format string, args ...any) *Error {
	return &Error{Kind: k, Op: op, Text: fmt.Sprintf(format, args...)}
}

// Error returns the chain as the journal shows it.
func (e *Error) Error() string {
	s := e.Op
	switch {
	case e.Err != nil:
		s += ": " + e.Err.Error()
	case e.Text != "":
		s += ": " + e.Text
	default:
		s += ": " + string(e.Kind)
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// For returns the same failure with its home filled in where it was unknown.
func For(user string, err error) error {
	var e *Error
	if err == nil || !errors.As(err, &e) || e.User != "" {
		return err
	}
	c := *e
	c.User = user
	// What wraps e keeps its words in the journal's chain.
	if !errors.Is(e, err) {
		c.Err = err
		c.Op = "home " + user
	}
	return &c
}

// KindOf returns the kind of the outermost Error in err's chain, Unknown for
// any other error, and "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Unknown
}

// Is reports whether err is a failure of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// Public returns the text of err that may leave the process: the error's own
// public text, else its row's text with the home's name filled in. It never
// contains the chain.
func Public(err error) string {
	var e *Error
	if !errors.As(err, &e) {
		return fill(row(Unknown).Text, "")
	}
	if e.Text != "" {
		return e.Text
	}
	if e.Wording != "" {
		return fill(e.Wording, e.User)
	}
	return fill(row(e.Kind).Text, e.User)
}

// fill puts the home's name for %u.
func fill(text, user string) string {
	if user == "" {
		text = strings.ReplaceAll(text, " %u", "")
	}
	return strings.ReplaceAll(text, "%u", user)
}

// BusName returns the D-Bus error name of the kind.
func (k Kind) BusName() string { return row(k).Bus }

// General reports whether the kind is one of the bus or the system, not of
// homes.
func (k Kind) General() bool { return !strings.HasPrefix(row(k).Bus, home1) }

// Next returns what the user of a command line can do about it, with the
// home's name filled in; empty where there is no advice.
func (k Kind) Next(user string) string { return fill(row(k).Next, user) }

// FromBus returns the kind of a D-Bus error name; Unknown for a foreign one.
func FromBus(name string) Kind {
	for i := range table {
		if table[i].Bus == name {
			return table[i].Kind
		}
	}
	return Unknown
}

// PAM is the result a PAM hook returns for a kind that it does not handle by
// asking again, by its symbol in Linux-PAM.
func (k Kind) PAM() string { return row(k).PAM }

func row(k Kind) *Row {
	for i := range table {
		if table[i].Kind == k {
			return &table[i]
		}
	}
	return row(Unknown)
}
