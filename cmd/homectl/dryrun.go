package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/term"

	"hearth/internal/secret"
	"hearth/records"
	"hearth/records/show"
)

// A rehearsal is how far a verb goes without doing anything.
type rehearsal int

const (
	inEarnest rehearsal = iota
	// rehearse: --dry-run, which hides what nobody should read over a shoulder.
	rehearse
	// dump: $SYSTEMD_HOME_DRY_RUN, which prints all that would be sent, secrets
	// included, as systemd's homectl does.
	dump
)

// rehearsals are the verbs that --dry-run can be given to because they can tell
// what they would do, and those that do nothing anyway.
var rehearsals = []string{"create", "update", "list", "inspect", "list-signing-keys", "get-signing-key", "ssh-authorized-keys", "complete", "help"}

// rehearsing settles how far the verb goes.
func (c *command) rehearsing(verb string) error {
	if c.dry == rehearse && !slices.Contains(rehearsals, verb) {
		return usagef("The verb '%s' cannot tell beforehand what it would do, leave out --dry-run. Nothing was changed.", verb)
	}
	if c.dry == inEarnest && (verb == "create" || verb == "update") {
		// What is no boolean counts as no, as with systemd's homectl.
		if b, err := parseBool(os.Getenv("SYSTEMD_HOME_DRY_RUN")); err == nil && b {
			c.dry = dump
		}
	}
	return nil
}

// wouldSend ends a rehearsal with the record that would be sent. former is what
// the home has, nil for a new one.
func (c *command) wouldSend(user string, former, record map[string]any, k *keyring) error {
	if c.dry == dump {
		if err := c.dump(record, k); err != nil || k.recovery == nil {
			return err
		}
		return c.showRecovery(k.recovery)
	}
	redact(record)
	text, err := encode(record)
	if err != nil {
		return err
	}
	switch {
	case c.json == "short":
		fmt.Fprintf(c.out, "%s\n", text)
	case c.json == "pretty" || former == nil:
		r, err := records.Parse(text, records.ClientReply)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.out, "%s", show.JSON(r))
	default:
		redact(former)
		c.differences(former, record)
	}
	c.info("Nothing was changed: this is what would be sent for user %s.", user)
	return nil
}

// dump writes the record as it would go to the daemon.
func (c *command) dump(record map[string]any, k *keyring) error {
	text, err := encode(record)
	if err != nil {
		return err
	}
	if len(k.passwords) == 0 && k.recovery == nil {
		return c.writeJSON(text)
	}
	section, err := k.section()
	if err != nil {
		return err
	}
	defer section.Close()
	whole, err := secret.New(len(text) + len(`,"secret":`) + section.Len())
	if err != nil {
		return err
	}
	defer whole.Close()
	return whole.Use(func(b []byte) error {
		at := copy(b, text[:len(text)-1])
		at += copy(b[at:], `,"secret":`)
		err := section.Use(func(s []byte) error { at += copy(b[at:], s); return nil })
		b[at] = '}'
		if err != nil {
			return err
		}
		return c.writeJSON(b)
	})
}

// writeJSON writes to standard error, for a person in lines.
func (c *command) writeJSON(text []byte) error {
	var out bytes.Buffer
	defer func() { clear(out.Bytes()) }()
	out.Grow(8*len(text) + 1)
	if !term.IsTerminal(int(c.err.Fd())) {
		out.Write(text)
	} else if err := json.Indent(&out, text, "", "\t"); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err := c.err.Write(out.Bytes())
	return err
}

// redact replaces what a password could be guessed from.
func redact(record map[string]any) {
	const hidden = "(hidden)"
	priv, _ := record["privileged"].(map[string]any)
	for field, value := range priv {
		list, _ := value.([]any)
		if field == "sshAuthorizedKeys" {
			continue
		}
		for i, entry := range list {
			switch entry := entry.(type) {
			case string:
				list[i] = hidden
			case map[string]any:
				for name, v := range entry {
					if _, text := v.(string); text && name != "type" {
						entry[name] = hidden
					}
				}
			}
		}
	}
}

// differences prints the fields that change, each with its old and new value.
func (c *command) differences(former, record map[string]any) {
	fields := slices.Sorted(maps.Keys(former))
	for name := range record {
		if _, ok := former[name]; !ok {
			fields = append(fields, name)
		}
	}
	slices.Sort(fields)
	line := func(colour, sign, name string, value any) {
		text, err := encode(map[string]any{name: value})
		if err != nil {
			return
		}
		s := sign + " " + printable(string(text[1:len(text)-1]))
		if c.colour {
			s = colour + s + "\x1b[0m"
		}
		c.print(s)
	}
	for _, name := range fields {
		before, had := former[name]
		after, has := record[name]
		if had && has && same(before, after) {
			continue
		}
		if had {
			line("\x1b[0;31m", "-", name, before)
		}
		if has {
			line("\x1b[0;32m", "+", name, after)
		}
	}
}

// same compares values of which one was decoded and the other one made here.
func same(a, b any) bool {
	x, err1 := encode(map[string]any{"": a})
	y, err2 := encode(map[string]any{"": b})
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}
