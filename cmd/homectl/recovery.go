package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// recovery is what the options say of a recovery key.
type recovery struct {
	given, want bool
	file        string
}

func recoveryOptions() []option {
	return []option{
		{name: "recovery-key", argument: requiredArgument, metavar: "BOOL", help: "Make a new recovery key, or have none", group: "Authentication User Record Properties", apply: func(c *command, arg string, _ bool) error {
			b, err := parseBool(arg)
			if err != nil {
				return usagef("Failed to parse --recovery-key= argument: %s", arg)
			}
			c.recovery.given, c.recovery.want = true, b
			c.assembly.reset("recoveryKey", "recoveryKeyType")
			return nil
		}},
		{name: "recovery-key-file", argument: requiredArgument, metavar: "PATH", help: "Write the recovery key to a new file, too", group: "Authentication User Record Properties", apply: func(c *command, arg string, _ bool) error {
			c.recovery.file = arg
			return nil
		}},
	}
}

func (r recovery) check() error {
	if r.file != "" && !r.want {
		return usagef("--recovery-key-file= requires --recovery-key=yes.")
	}
	return nil
}

// enrolRecovery draws a recovery key, which the caller closes, and puts its hash
// into the record.
func (c *command) enrolRecovery(record map[string]any, random io.Reader) (*secret.Bytes, error) {
	raw, err := secret.New(32)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	var key *secret.Bytes
	err = raw.Use(func(b []byte) error {
		if _, err := io.ReadFull(random, b); err != nil {
			return err
		}
		var err error
		key, err = records.NewRecoveryKey(b)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("draw recovery key: %w", err)
	}
	hash, err := c.hash(key, random)
	if err != nil {
		key.Close()
		return nil, fmt.Errorf("hash recovery key: %w", err)
	}
	types, _ := record["recoveryKeyType"].([]any)
	record["recoveryKeyType"] = append(types, records.RecoveryKeyType)
	priv, _ := record["privileged"].(map[string]any)
	if priv == nil {
		priv = map[string]any{}
	}
	keys, _ := priv["recoveryKey"].([]any)
	priv["recoveryKey"] = append(keys, map[string]any{"type": records.RecoveryKeyType, "hashedPassword": hash})
	record["privileged"] = priv
	return key, nil
}

func hasRecovery(record map[string]any) bool {
	priv, _ := record["privileged"].(map[string]any)
	keys, _ := priv["recoveryKey"].([]any)
	return len(keys) > 0
}

// createWithRecovery makes a home and, if asked to, a recovery key for it, which
// is shown once it has opened the home.
func (c *command) createWithRecovery(ctx context.Context, client *home1.Client, record map[string]any, name string, k *keyring) error {
	if !c.recovery.want {
		return c.createHome(ctx, client, record, name, k)
	}
	key, err := c.enrolRecovery(record, rand.Reader)
	if err != nil {
		return err
	}
	defer key.Close()
	k.recovery = key
	defer func() { k.recovery = nil }()
	if err := c.createHome(ctx, client, record, name, k); err != nil {
		return err
	}
	if err := tryRecovery(ctx, client, name, key); err != nil {
		return usagef("The home of user %s was created, but its recovery key was not tried: %s. It is not shown; make another with 'homectl update %s --recovery-key=yes'.", name, fault.Public(err), name)
	}
	return c.showRecovery(key)
}

// updateWithRecovery changes a record together with its recovery key. The update
// alone would leave the keyslots as they are: the new key would open nothing, and
// the old one still the image. So it is followed by a change of the keyslots, to
// those of the record, and by the key's trial; only then is it shown. former is
// what the record was. All that has to be asked is asked before anything changes.
func (c *command) updateWithRecovery(ctx context.Context, client *home1.Client, user string, record, former map[string]any, k *keyring) error {
	if c.offline {
		return usagef("A recovery key changes with the storage, not with the record alone: leave out --offline. Nothing was changed.")
	}
	var key *secret.Bytes
	if c.recovery.want {
		var err error
		if key, err = c.enrolRecovery(record, rand.Reader); err != nil {
			return err
		}
		defer key.Close()
		record["lastPasswordChangeUSec"] = record["lastChangeUSec"]
	}
	if err := c.askAll(ctx, record, user, k); err != nil {
		return err
	}
	update := func(record map[string]any) error { return c.updateHome(ctx, client, user, record, k) }
	if err := update(record); err != nil {
		return err
	}
	k.recovery = key
	defer func() { k.recovery = nil }()
	if err := syncKeyslots(ctx, client, user, k); err != nil {
		return c.putBack(user, former, "The keyslots of the home were not changed", err, update)
	}
	if key == nil {
		return nil
	}
	if err := tryRecovery(ctx, client, user, key); err != nil {
		// The former recovery key has no keyslot any more.
		k.recovery = nil
		for _, m := range []any{former, former["privileged"]} {
			if m, ok := m.(map[string]any); ok {
				delete(m, "recoveryKey")
				delete(m, "recoveryKeyType")
			}
		}
		again := func(record map[string]any) error {
			return errors.Join(update(record), syncKeyslots(ctx, client, user, k))
		}
		return c.putBack(user, former, "The new recovery key does not open the home", err, again)
	}
	return c.showRecovery(key)
}

// putBack says what failed, has the former record put back, and says whether
// that worked.
func (c *command) putBack(user string, former map[string]any, what string, why error, update func(map[string]any) error) error {
	c.fail("%s: %s. Its record lists the new recovery key already, which is not shown; putting the former record back.", what, fault.Public(why))
	err := timestamp(former, uint64(time.Now().UnixMicro()), false)
	if err == nil {
		err = update(former)
	}
	if err != nil && !errors.Is(err, errSaid) {
		c.fail("%s", err)
	}
	if err != nil {
		c.fail("The former record of user %s was not put back. The passwords work as before; make another recovery key with 'homectl update %[1]s --recovery-key=yes'.", user)
	}
	return errSaid
}

// askAll asks for every password of the record: the keyslots are made anew, one
// for each.
func (c *command) askAll(ctx context.Context, record map[string]any, user string, k *keyring) error {
	priv, _ := record["privileged"].(map[string]any)
	hashes, _ := priv["hashedPassword"].([]any)
	for _, h := range hashes {
		hash, _ := h.(string)
		for {
			fits, err := k.fits(hash)
			if err != nil {
				return err
			}
			if fits {
				break
			}
			if len(k.passwords) > 0 {
				c.notice("Password incorrect or not sufficient, please try again.")
			}
			if err := c.askInto(ctx, k, "password", "Please enter password for user %s:", user); err != nil {
				return err
			}
		}
	}
	return nil
}

// fits reports whether one of the passwords is the one that was hashed.
func (k *keyring) fits(hash string) (bool, error) {
	for _, p := range k.passwords {
		if ok, err := records.CheckHash(hash, p); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// syncKeyslots has the home's keyslots made anew from its record.
func syncKeyslots(ctx context.Context, client *home1.Client, user string, k *keyring) error {
	none, err := secret.Copy([]byte("{}"))
	if err != nil {
		return err
	}
	defer none.Close()
	known, err := k.section()
	if err != nil {
		return err
	}
	defer known.Close()
	return client.ChangePasswordHome(ctx, user, none, known)
}

// tryRecovery opens the home with the recovery key and nothing else.
func tryRecovery(ctx context.Context, client *home1.Client, user string, key *secret.Bytes) error {
	section, err := records.EncodeSecrets([]*secret.Bytes{key})
	if err != nil {
		return err
	}
	defer section.Close()
	return client.AuthenticateHome(ctx, user, section)
}

// showRecovery writes the key to the file that was named, and to standard output,
// where a pipe gets nothing else.
func (c *command) showRecovery(key *secret.Bytes) error {
	if c.recovery.file != "" {
		if err := writeRecovery(c.recovery.file, key); err != nil {
			c.warn("Failed to write recovery key file '%s', ignoring: %s", c.recovery.file, reason(err))
		}
	}
	before, after := "", ""
	l := looks(c.colour, os.Getenv)
	if l.emoji {
		before = "🔐 "
	}
	if l.colour {
		before, after = before+"\x1b[0;1;39m", "\x1b[0m"
	}
	fmt.Fprint(c.err, "A secret recovery key has been generated for this account:\n\n    ", before)
	err := writeKey(c.out, key)
	fmt.Fprint(c.err, after, `
Keep it in a safe place away from this machine. Should the passwords of this
account be lost, it opens the home in their place, wherever one is asked for;
case and dashes do not matter. It is stored nowhere and is not shown again: a
lost key can only be replaced by another one.
`)
	return err
}

// writeRecovery makes the file: a key never replaces one that is there.
func writeRecovery(path string, key *secret.Bytes) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(writeKey(f, key), f.Sync(), f.Close())
}

// writeKey writes key and newline at once.
func writeKey(w io.Writer, key *secret.Bytes) error {
	return key.Use(func(b []byte) error {
		line := make([]byte, len(b)+1)
		defer clear(line)
		line[copy(line, b)] = '\n'
		_, err := w.Write(line)
		return err
	})
}
