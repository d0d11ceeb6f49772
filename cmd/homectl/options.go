package main

import (
	"slices"
	"strings"

	"golang.org/x/term"
)

const generalOptions = "Options"

// allOptions is the whole grammar: the general options, then the properties.
func allOptions() []option {
	boolSwitch := func(name string, set func(c *command, b bool)) func(*command, string, bool) error {
		return func(c *command, arg string, _ bool) error {
			b, err := parseBool(arg)
			if err != nil {
				return usagef("Failed to parse boolean argument to '--%s=': %s", name, arg)
			}
			set(c, b)
			return nil
		}
	}
	match := func(where string) func(*command, string, bool) error {
		return func(c *command, _ string, _ bool) error {
			c.assembly.match = where
			return nil
		}
	}
	notYet := func(name string) func(*command, string, bool) error {
		return func(*command, string, bool) error { return usagef("Option --%s is not available yet.", name) }
	}
	opts := []option{
		{name: "help", short: 'h', help: "Show this help", group: generalOptions, apply: func(c *command, _ string, _ bool) error { c.help(); return errDone{} }},
		{name: "version", help: "Show the version", group: generalOptions, apply: func(c *command, _ string, _ bool) error { c.showVersion(); return errDone{} }},
		{name: "introspect-cli", apply: notYet("introspect-cli")},
		{name: "no-pager", help: "Accepted; output is never paged", group: generalOptions, apply: func(*command, string, bool) error { return nil }},
		{name: "no-legend", help: "Leave out table headers and footers", group: generalOptions, apply: func(c *command, _ string, _ bool) error { c.legend = false; return nil }},
		{name: "no-ask-password", help: "Ask nothing: no password, no polkit dialogue", group: generalOptions, apply: func(c *command, _ string, _ bool) error { c.ask = false; return nil }},
		{name: "offline", help: "Change the record alone, not the storage", group: generalOptions, apply: func(c *command, _ string, _ bool) error { c.offline = true; return nil }},
		{name: "dry-run", help: "create, update: show what would be sent, change nothing", group: generalOptions, apply: func(c *command, _ string, _ bool) error { c.dry = rehearse; return nil }},
		{name: "host", short: 'H', argument: requiredArgument, metavar: "[USER@]HOST", apply: notYet("host")},
		{name: "machine", short: 'M', argument: requiredArgument, metavar: "CONTAINER", apply: func(_ *command, arg string, _ bool) error {
			if arg == ".host" || arg == "root@.host" {
				return nil
			}
			if name := arg[strings.LastIndexByte(arg, '@')+1:]; !hostName().MatchString(name) {
				return usagef("Invalid --machine= specified: %s", arg)
			}
			return usagef("Option --machine is not available yet.")
		}},
		{name: "identity", short: 'I', argument: requiredArgument, metavar: "PATH", help: "Read the JSON record from PATH, or - for standard input", group: generalOptions, apply: func(c *command, arg string, _ bool) error { c.identity = arg; return nil }},
		{name: "json", argument: requiredArgument, metavar: "pretty|short|off", help: "Print JSON", group: generalOptions, apply: func(c *command, arg string, _ bool) error {
			switch arg {
			case "pretty", "short", "off":
				c.json = arg
				return nil
			case "help":
				for _, s := range []string{"pretty", "short", "off"} {
					c.print(s)
				}
				return errDone{}
			}
			return usagef("Unknown argument to --json= switch: %s", arg)
		}},
		{short: 'j', help: "Same as --json=pretty on a terminal, --json=short elsewhere", group: generalOptions, apply: func(c *command, _ string, _ bool) error { c.autoJSON(); return nil }},
		{name: "export-format", argument: requiredArgument, metavar: "full|stripped|minimal", help: "How much of the record inspect prints", group: generalOptions, apply: func(c *command, arg string, _ bool) error {
			formats := []string{"full", "stripped", "minimal"}
			switch {
			case arg == "help":
				for _, s := range formats {
					c.print(s)
				}
				return errDone{}
			case !slices.Contains(formats, arg):
				return usagef("Invalid export format: %s", arg)
			}
			c.export = arg
			return nil
		}},
		{short: 'E', help: "Once: -j --export-format=stripped; twice: minimal", group: generalOptions, apply: func(c *command, _ string, _ bool) error {
			switch c.export {
			case "", "full":
				c.export = "stripped"
			case "stripped":
				c.export = "minimal"
			default:
				return usagef("Specifying -E more than twice is not supported.")
			}
			if c.json == "" || c.json == "off" {
				c.autoJSON()
			}
			return nil
		}},
		{name: "key-name", argument: requiredArgument, metavar: "NAME", help: "Name of the key that add-signing-key adds", group: generalOptions, apply: func(c *command, arg string, _ bool) error {
			if strings.Contains(arg, "/") || len(arg) > 255 || arg == "." || arg == ".." {
				return usagef("Parameter for --key-name= not a valid filename: %s", arg)
			}
			c.keyName = arg
			return nil
		}},
		{name: "seize", argument: requiredArgument, metavar: "BOOL", help: "create: drop the signatures of the record given (default: yes)", group: generalOptions, apply: boolSwitch("seize", func(c *command, b bool) { c.seize = b })},
		{name: "prompt-new-user", apply: notYet("prompt-new-user")},
		{name: "prompt-groups", argument: requiredArgument, apply: boolSwitch("prompt-groups", func(*command, bool) {})},
		{name: "prompt-shell", argument: requiredArgument, apply: boolSwitch("prompt-shell", func(*command, bool) {})},
		{name: "chrome", argument: requiredArgument, apply: boolSwitch("chrome", func(*command, bool) {})},
		{name: "mute-console", argument: requiredArgument, apply: boolSwitch("mute-console", func(*command, bool) {})},
		{name: "match", argument: requiredArgument, apply: func(c *command, arg string, _ bool) error {
			switch arg {
			case "any", "this", "other":
				c.assembly.match = arg
			case "auto":
				c.assembly.match = ""
			default:
				return usagef("--match= argument not understood. Refusing.")
			}
			return nil
		}},
		{short: 'A', apply: match("any")},
		{short: 'T', apply: match("this")},
		{short: 'N', apply: match("other")},
		{short: 'P', help: "Same as --enforce-password-policy=no", group: generalOptions, apply: func(c *command, _ string, _ bool) error {
			c.assembly.any["enforcePasswordPolicy"] = false
			return nil
		}},
	}
	for i := range properties {
		opts = append(opts, properties[i].options()...)
		if properties[i].name == "ssh-authorized-keys" {
			opts = append(opts, recoveryOptions()...)
		}
	}
	return opts
}

func (c *command) autoJSON() {
	c.json = "short"
	if term.IsTerminal(int(c.out.Fd())) {
		c.json = "pretty"
	}
}
