package main

import (
	"fmt"
	"runtime/debug"
	"strings"
	"unicode/utf8"
)

func (c *command) print(s string) { fmt.Fprintln(c.out, s) }

// showVersion prints the commit this was built from, where the build knew it.
func (c *command) showVersion() {
	commit := "unknown build"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = s.Value
			}
		}
	}
	fmt.Fprintf(c.out, "hearth 0 (%s)\n+LUKS2 -FIDO2 -PKCS11 -PWQUALITY -QRENCODE\n", commit)
}

// help prints verbs and options by section, each with its columns aligned.
func (c *command) help() {
	title := func(s string) {
		if c.colour {
			s = "\x1b[0;4m" + s + "\x1b[0m"
		}
		c.print("\n" + s + ":")
	}
	c.print(c.program + " [OPTION…] COMMAND …\n\nCreate, open, close and inspect home areas.")

	all := verbs()
	left := 0
	for _, v := range all {
		left = max(left, utf8.RuneCountInString(v.name+" "+v.args))
	}
	section := ""
	for _, v := range all {
		if v.group == "" {
			continue
		}
		if v.group != section {
			section = v.group
			title(section)
		}
		c.row(v.name+" "+v.args, left, v.help)
	}

	opts := allOptions()
	left = 0
	for i := range opts {
		if opts[i].help != "" {
			left = max(left, utf8.RuneCountInString(spelling(&opts[i])))
		}
	}
	section = ""
	for i := range opts {
		o := &opts[i]
		if o.help == "" {
			continue
		}
		if o.group != section {
			section = o.group
			title(section)
		}
		c.row(spelling(o), left, o.help)
	}
	c.print("\nSee homectl(1) for details.")
}

func (c *command) row(left string, width int, right string) {
	c.print("  " + left + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(left))) + "  " + right)
}

func spelling(o *option) string {
	s := "   "
	if o.short != 0 {
		s = "-" + string(o.short) + " "
	}
	if o.name == "" {
		return strings.TrimRight(s, " ")
	}
	s += "--" + o.name
	switch o.argument {
	case requiredArgument:
		s += "=" + o.metavar
	case optionalArgument:
		s += "[=" + o.metavar + "]"
	}
	return s
}
