package main

import (
	"fmt"
	"strings"
)

// Whether an option takes an argument.
const (
	noArgument = iota
	requiredArgument
	optionalArgument // only in the joined form --name=value
)

// An option is one row of the command line's grammar.
type option struct {
	name     string // long, without dashes; "" for a short-only option
	short    byte   // 0 for none
	argument int
	metavar  string
	help     string // "" hides it from --help
	group    string
	// apply takes the option in; it is called in the order of the command
	// line. joined says that an argument was given.
	apply func(c *command, arg string, joined bool) error
}

// usageError is a mistake on the command line, already worded for a person.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// errDone ends parsing because an option answered for itself (--help).
type errDone struct{}

func (errDone) Error() string { return "done" }

// parse reads a GNU-style command line: options anywhere, "--" ends them, long
// names may be cut to a unique prefix, short ones bundled. It returns what is
// left, and the first error.
func parse(program string, opts []option, args []string, c *command) ([]string, error) {
	var rest []string
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			return append(rest, args[i+1:]...), nil
		case strings.HasPrefix(a, "--"):
			name, value, joined := strings.Cut(a[2:], "=")
			o, err := long(program, opts, name)
			if err != nil {
				return nil, err
			}
			switch {
			case o.argument == noArgument && joined:
				return nil, usagef("%s: option '--%s' doesn't allow an argument", program, o.name)
			case o.argument == requiredArgument && !joined:
				if i+1 >= len(args) {
					return nil, usagef("%s: option '--%s' requires an argument", program, o.name)
				}
				i++
				value, joined = args[i], true
			}
			if err := o.apply(c, value, joined); err != nil {
				return nil, err
			}
		case strings.HasPrefix(a, "-") && a != "-":
			for j := 1; j < len(a); j++ {
				o := shortOption(opts, a[j])
				if o == nil {
					return nil, usagef("%s: unrecognized option '-%c'", program, a[j])
				}
				if o.argument == noArgument {
					if err := o.apply(c, "", false); err != nil {
						return nil, err
					}
					continue
				}
				value := a[j+1:]
				if value == "" {
					if i+1 >= len(args) {
						return nil, usagef("%s: option '-%c' requires an argument", program, a[j])
					}
					i++
					value = args[i]
				}
				if err := o.apply(c, value, true); err != nil {
					return nil, err
				}
				break
			}
		default:
			rest = append(rest, a)
		}
	}
	return rest, nil
}

func long(program string, opts []option, name string) (*option, error) {
	var found []*option
	for i := range opts {
		o := &opts[i]
		if o.name == name && name != "" {
			return o, nil
		}
		if name != "" && strings.HasPrefix(o.name, name) {
			found = append(found, o)
		}
	}
	switch len(found) {
	case 0:
		return nil, usagef("%s: unrecognized option '--%s'", program, name)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, o := range found {
		names = append(names, "--"+o.name)
	}
	return nil, usagef("%s: option '--%s' is ambiguous; possibilities: %s", program, name, strings.Join(names, ", "))
}

func shortOption(opts []option, c byte) *option {
	for i := range opts {
		if opts[i].short == c {
			return &opts[i]
		}
	}
	return nil
}

// nearest returns the verb that a mistyped word most likely means, or "".
func nearest(word string, verbs []string) string {
	for _, v := range verbs {
		if strings.HasPrefix(v, word) {
			return v
		}
	}
	best, at := "", 6
	for _, v := range verbs {
		if d := distance(word, v); d < at {
			best, at = v, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two words, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
