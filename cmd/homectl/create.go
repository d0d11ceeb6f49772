package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"hearth/homed/config"
	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// recordLimit bounds an identity file, in bytes.
const recordLimit = 16 << 20

func runCreate(c *command, ctx context.Context, args []string) error {
	if err := c.recovery.check(); err != nil {
		return err
	}
	record, section, err := c.readIdentity()
	if err != nil {
		return err
	}
	defer section.Close()
	if record == nil {
		record = map[string]any{}
	}
	if err := c.name(record, args); err != nil {
		return err
	}
	name, _ := record["userName"].(string)
	if name == "" {
		return usagef("User name field missing, refusing.")
	}
	mid, err := c.machineID()
	if err != nil {
		return err
	}
	for _, s := range []string{"binding", "status"} {
		delete(record, s)
	}
	if c.seize {
		delete(record, "signature")
	}
	if err := c.assembly.apply(record, mid); err != nil {
		return err
	}
	now := time.Now().UnixMicro()
	for field, value := range map[string]any{"disposition": "regular", "lastChangeUSec": now, "lastPasswordChangeUSec": now} {
		if _, ok := record[field]; !ok {
			record[field] = value
		}
	}

	if err := c.checkRecord(nil, record); err != nil {
		return err
	}

	k := &keyring{}
	defer k.close()
	given, err := records.ParseSecrets(section)
	if section.Len() > 0 && err != nil {
		return usagef("Failed to parse the secret section of the identity: %s", reason(err))
	}
	if given != nil {
		defer given.Close()
	}
	priv, _ := record["privileged"].(map[string]any)
	hashes, _ := priv["hashedPassword"].([]any)
	switch {
	case given != nil && len(given.Passwords) > 0:
		for i := len(given.Passwords) - 1; i >= 0; i-- {
			p, err := given.Passwords[i].Clone()
			if err != nil {
				return err
			}
			k.add(p)
		}
	case len(hashes) > 0:
		p, err := c.steal("PASSWORD")
		if err == nil && p == nil {
			p, err = c.prompt(ctx, "password", fmt.Sprintf("Please enter password for user %s:", name), name)
		}
		if err != nil {
			return err
		}
		k.add(p)
	default:
		if err := c.choosePassword(ctx, record, name, k); err != nil {
			return err
		}
	}

	c.warnOfWeak(record, name, k)
	if c.blobs, err = c.newBlobs(record); err != nil {
		return err
	}
	defer closeBlobs(c.blobs)
	if c.dry != inEarnest {
		if c.recovery.want {
			if k.recovery, err = c.enrolRecovery(record, rand.Reader); err != nil {
				return err
			}
			defer k.recovery.Close()
			c.recovery.file = ""
		}
		return c.wouldSend(name, nil, record, k)
	}
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	return c.createWithRecovery(ctx, client, record, name, k)
}

// warnOfWeak says what the daemon will not say where the record turns its
// checks off.
func (c *command) warnOfWeak(record map[string]any, name string, k *keyring) {
	if enforce, ok := record["enforcePasswordPolicy"].(bool); !ok || enforce {
		return
	}
	rules := records.ParseQualityPolicy(config.DefaultLayout("").ReadPasswordRules())
	if err := rules.CheckNew(k.passwords, nil, name); err != nil {
		c.warn("Specified password does not pass quality checks (%s), proceeding anyway.", fault.Public(err))
	}
}

// createHome sends the record, and asks for another password as long as the
// daemon finds it too weak.
func (c *command) createHome(ctx context.Context, client *home1.Client, record map[string]any, name string, k *keyring) error {
	for {
		text, err := encode(record)
		if err != nil {
			return err
		}
		var weak error
		err = c.slow(ctx, name, k, func(ctx context.Context, section *secret.Bytes) error {
			err := client.CreateHome(ctx, text, section, c.blobs)
			if fault.Is(err, fault.LowPasswordQuality) {
				weak = err
				return nil
			}
			return err
		})
		if err != nil || weak == nil {
			return err
		}
		c.fail("%s", fault.Public(weak))
		c.info("(Use --enforce-password-policy=no to turn off password quality checks for this account.)")
		secret.CloseAll(k.passwords)
		k.passwords = nil
		if err := c.choosePassword(ctx, record, name, k); err != nil {
			return err
		}
	}
}

// choosePassword asks for a new password and puts its hash into the record, as
// the only one.
func (c *command) choosePassword(ctx context.Context, record map[string]any, name string, k *keyring) error {
	p, err := c.newPassword(ctx, name)
	if err != nil {
		return err
	}
	if p.Len() == 0 {
		p.Close()
		return usagef("An empty password protects nothing, refusing.")
	}
	k.add(p)
	hash, err := c.hash(p, rand.Reader)
	if err != nil {
		return fmt.Errorf("hash password: %w", err)
	}
	priv, _ := record["privileged"].(map[string]any)
	if priv == nil {
		priv = map[string]any{}
	}
	priv["hashedPassword"] = []any{hash}
	record["privileged"] = priv
	return nil
}

// name fills userName and realm from the argument, which wins over the
// identity.
func (c *command) name(record map[string]any, args []string) error {
	if len(args) == 0 {
		if c.identity == "" {
			return usagef("User name required.")
		}
		return nil
	}
	name, realm := args[0], ""
	// A name that is taken or reserved, the daemon refuses.
	if !records.PortableName(name) {
		name, realm, _ = strings.Cut(args[0], "@")
		if !records.ValidName(name) || !records.ValidRealm(realm) {
			return usagef("User name '%s' is not valid.", args[0])
		}
	}
	record["userName"] = name
	if realm != "" {
		record["realm"] = realm
		delete(c.assembly.any, "realm")
	}
	return nil
}

// readIdentity reads --identity=: the record without its secret section, and
// that section. Nil if none was given.
func (c *command) readIdentity() (map[string]any, *secret.Bytes, error) {
	if c.identity == "" {
		return nil, nil, nil
	}
	text, err := c.readFile(c.identity)
	if err == nil && blank(text) {
		err = io.EOF
	}
	if err != nil {
		return nil, nil, usagef("Failed to parse identity at 0:0: %s", reason(err))
	}
	// What is left of the text lies in its memory until it is decoded.
	defer clear(text)
	rest, section, err := records.CutSecret(text)
	if err != nil {
		return nil, nil, noIdentity(err)
	}
	// Everything but the secrets must be a record before a general decoder
	// touches it: the decoder would drop the second of two equal keys.
	if _, err := records.Parse(rest, records.ClientCreate); err != nil {
		if _, e := records.Parse(named(rest), records.ClientCreate); e != nil {
			section.Close()
			return nil, nil, noIdentity(err)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(rest))
	dec.UseNumber()
	var record map[string]any
	if err := dec.Decode(&record); err != nil {
		section.Close()
		return nil, nil, noIdentity(err)
	}
	return record, section, nil
}

// named gives a name to a record without one: the command line may have it.
func named(text []byte) []byte {
	text = bytes.TrimSpace(text)
	if len(text) < 2 || text[0] != '{' {
		return nil
	}
	inner := bytes.TrimSpace(text[1:])
	out := []byte(`{"userName":"x"`)
	if inner[0] != '}' {
		out = append(out, ',')
	}
	return append(out, inner...)
}

// checkRecord finds what the daemon would refuse before anybody is asked for a
// password, and names the field. What former (nil: none) has wrong already is
// not the caller's doing.
func (c *command) checkRecord(former, record map[string]any) error {
	mid, err := c.machineID()
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	wrong := func(m map[string]any) ([]string, error) {
		text, err := encode(m)
		if err != nil {
			return nil, err
		}
		r, err := records.Parse(text, records.ClientReply)
		if err != nil {
			return nil, usagef("%s", fault.Public(err))
		}
		return r.Ignored(records.Machine{ID: mid, Hostname: host}), nil
	}
	now, err := wrong(record)
	if err != nil || len(now) == 0 {
		return err
	}
	var before []string
	if former != nil {
		if before, err = wrong(former); err != nil {
			return err
		}
	}
	for _, w := range now {
		if !slices.Contains(before, w) {
			return usagef("The record would not be valid: field %s.", w)
		}
	}
	return nil
}

// noIdentity words what is wrong with an identity, with its place if the parser
// names one.
func noIdentity(err error) error {
	if at, ok := strings.CutPrefix(reason(err), "Failed to parse JSON identity record at "); ok {
		return usagef("Failed to parse identity at %s", at)
	}
	return usagef("Failed to parse identity at 1:1: %s", reason(err))
}

// readFile reads a file or, for "-", standard input.
func (c *command) readFile(path string) ([]byte, error) {
	f := c.in
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	text, err := io.ReadAll(io.LimitReader(f, recordLimit+1))
	if err == nil && len(text) > recordLimit {
		err = fmt.Errorf("more than %d bytes", recordLimit)
	}
	return text, err
}

// encode writes a record as the bus wants it.
func encode(record map[string]any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(record); err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}
