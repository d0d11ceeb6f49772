package main

import (
	"bufio"
	"context"
	"os"
	"slices"
	"strings"

	"hearth/records"
)

// runComplete tells bash how the word before the cursor may go on: its arguments
// are the command line up to the cursor and what bash takes for the word, which
// is less where it holds "=", "@" or ":". Nothing printed lets bash offer files.
func runComplete(c *command, ctx context.Context, args []string) error {
	words, ok := splitLine(args[0])
	if !ok || len(words) < 2 {
		return nil
	}
	word := words[len(words)-1]
	cut := strings.TrimSuffix(word, args[1])
	if cut == word && args[1] != "" {
		return nil // quoted in a way of its own
	}
	for _, s := range c.candidates(ctx, words[1:len(words)-1], word) {
		if strings.HasPrefix(s, word) {
			c.print(printable(strings.TrimPrefix(s, cut)))
		}
	}
	return nil
}

// splitLine splits a command line as a shell would. The last word is the one at
// the cursor and may be empty.
func splitLine(line string) (words []string, ok bool) {
	var b strings.Builder
	var quote rune
	started, escaped := true, false
	for _, r := range line {
		switch {
		case escaped:
			b.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, started = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				b.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, started = r, true
		case r == ' ' || r == '\t':
			if started {
				words = append(words, b.String())
				b.Reset()
			}
			started = false
		default:
			b.WriteRune(r)
			started = true
		}
	}
	return append(words, b.String()), quote == 0 && !escaped
}

// candidates are the ways the last word can go on behind the others.
func (c *command) candidates(ctx context.Context, before []string, word string) []string {
	opts := allOptions()
	var rest []string
	for i := 0; i < len(before); i++ {
		w := before[i]
		switch {
		case w == "--":
			return c.arguments(ctx, append(rest, before[i+1:]...))
		case strings.HasPrefix(w, "--") && !strings.Contains(w, "="), len(w) == 2 && w[0] == '-':
			o := shortOption(opts, w[1])
			if w[1] == '-' {
				o, _ = long("", opts, w[2:])
			}
			if o == nil || o.argument != requiredArgument {
				continue
			}
			if i == len(before)-1 {
				return values(o, word)
			}
			i++
		case strings.HasPrefix(w, "-") && w != "-":
		default:
			rest = append(rest, w)
		}
	}
	if name, value, ok := strings.Cut(word, "="); ok && strings.HasPrefix(name, "--") {
		o, _ := long("", opts, name[2:])
		if o == nil {
			return nil
		}
		var all []string
		for _, v := range values(o, value) {
			all = append(all, name+"="+v)
		}
		return all
	}
	if strings.HasPrefix(word, "-") {
		return optionNames(opts)
	}
	return c.arguments(ctx, rest)
}

func optionNames(opts []option) (all []string) {
	for i := range opts {
		o := &opts[i]
		if o.name == "" || o.help == "" || strings.Contains(o.help, "(not yet)") {
			continue
		}
		s := "--" + o.name
		if o.argument == requiredArgument {
			s += "="
		}
		all = append(all, s)
	}
	return all
}

// fixedValues are those of options that take one of a few words.
var fixedValues = map[string]string{
	"json":                      "pretty short off",
	"export-format":             "full stripped minimal",
	"match":                     "auto any this other",
	"storage":                   "luks directory subvolume fscrypt cifs",
	"fs-type":                   "ext4 btrfs xfs",
	"disk-size":                 "min max",
	"auto-resize-mode":          "off grow shrink-and-grow",
	"rebalance-weight":          "off",
	"luks-cipher":               "aes",
	"luks-cipher-mode":          "xts-plain64",
	"luks-volume-key-size":      "32 64",
	"luks-pbkdf-type":           "argon2id argon2i pbkdf2",
	"luks-pbkdf-hash-algorithm": "sha512 sha256",
	"luks-sector-size":          "512 1024 2048 4096",
	"session-type":              "wayland x11 tty",
}

// values are what an option's argument may be, begun with word; nothing where
// it is a path or anything.
func values(o *option, word string) []string {
	last := strings.LastIndexAny(word, ", ") + 1
	switch {
	case fixedValues[o.name] != "":
		return strings.Fields(fixedValues[o.name])
	case o.metavar == "BOOL":
		return []string{"yes", "no"}
	case o.name == "shell":
		return lines("/etc/shells", "/", 0)
	case o.name == "member-of" || o.name == "groups":
		return after(word[:last], lines("/etc/group", "", ':'))
	case strings.HasPrefix(o.name, "capability-"):
		if last == 0 && strings.HasPrefix(word, "~") {
			last = 1
		}
		return after(word[:last], records.AllCapabilities.Names())
	case o.name == "rlimit" && !strings.Contains(word, "="):
		var all []string
		for name := range rlimitKinds {
			all = append(all, name+"=")
		}
		slices.Sort(all)
		return all
	}
	return nil
}

func after(prefix string, all []string) (out []string) {
	for _, s := range all {
		out = append(out, prefix+s)
	}
	return out
}

// lines are those of a file that begin with prefix, up to the separator.
func lines(path, prefix string, separator byte) (all []string) {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		l := s.Text()
		if separator != 0 {
			l, _, _ = strings.Cut(l, string(separator))
		}
		if l != "" && strings.HasPrefix(l, prefix) {
			all = append(all, l)
		}
	}
	return all
}

// arguments are verbs, and what the verb that is there takes next.
func (c *command) arguments(ctx context.Context, words []string) (all []string) {
	if len(words) == 0 {
		for _, v := range verbs() {
			if v.group != "" || v.name == "help" {
				all = append(all, v.name)
			}
		}
		return all
	}
	given := words[1:]
	for _, v := range verbs() {
		if v.name != words[0] || v.max >= 0 && len(given) >= v.max {
			continue
		}
		switch {
		case strings.HasPrefix(strings.Trim(v.args, "["), "NAME"):
			return c.keyNames(ctx, given)
		case !strings.HasPrefix(strings.Trim(v.args, "["), "USER"):
			return nil
		case v.name == "create":
			return nil
		case v.name == "resize" && len(given) == 1:
			return []string{"min", "max"}
		case v.name == "with" && len(given) > 0:
			return nil
		}
		return c.homeNames(ctx, given, inState[v.name])
	}
	return nil
}

// inState says of which states the homes are that a verb does something to;
// verbs that are not listed take all.
var inState = map[string][]string{
	"activate":   {"inactive", "dirty", "absent", "unfixated"},
	"deactivate": {"active", "lingering", "locked"},
	"lock":       {"active", "lingering"},
	"unlock":     {"locked"},
}

// homeNames are the homes not given yet. A daemon that does not answer has none.
func (c *command) homeNames(ctx context.Context, given, states []string) (all []string) {
	client, err := c.bus(ctx)
	if err != nil {
		return nil
	}
	homes, err := client.ListHomes(ctx)
	if err != nil {
		return nil
	}
	for _, h := range homes {
		if slices.Contains(given, h.UserName) || states != nil && !slices.Contains(states, h.State) {
			continue
		}
		all = append(all, h.UserName)
	}
	slices.Sort(all)
	return all
}

func (c *command) keyNames(ctx context.Context, given []string) (all []string) {
	client, err := c.bus(ctx)
	if err != nil {
		return nil
	}
	keys, err := client.ListSigningKeys(ctx)
	if err != nil {
		return nil
	}
	for _, k := range keys {
		if !slices.Contains(given, k.Name) {
			all = append(all, k.Name)
		}
	}
	slices.Sort(all)
	return all
}
