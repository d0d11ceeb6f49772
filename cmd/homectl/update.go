package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"time"

	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

func runUpdate(c *command, ctx context.Context, args []string) error {
	if err := c.recovery.check(); err != nil {
		return err
	}
	if c.identity == "" && !c.assembly.changes() {
		return usagef("No field to change specified.")
	}
	if _, share := c.assembly.sizes(); share {
		return usagef("Relative disk size specification currently not supported when resizing.")
	}
	resizes := c.assembly.resizes() && !c.offline
	record, section, err := c.readIdentity()
	if err != nil {
		return err
	}
	defer section.Close()
	user, err := updatedUser(record, args)
	if err != nil {
		return err
	}
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	whole := record != nil
	var former map[string]any
	if !whole || c.recovery.given {
		if former, err = c.currentRecord(ctx, client, user); err != nil {
			return err
		}
	}
	if !whole {
		text, err := encode(former)
		if err != nil {
			return err
		}
		if record, err = decode(text); err != nil {
			return err
		}
	}
	mid, err := c.machineID()
	if err != nil {
		return err
	}
	if err := c.assembly.apply(record, mid); err != nil {
		return err
	}
	if err := timestamp(record, uint64(time.Now().UnixMicro()), whole); err != nil {
		return err
	}
	if err := c.checkRecord(former, record); err != nil {
		return err
	}
	if c.blobs, err = c.changedBlobs(record, user); err != nil {
		return err
	}
	defer closeBlobs(c.blobs)
	k, err := c.harvest(ctx, user)
	if err != nil {
		return err
	}
	defer k.close()
	if err := k.addSection(section); err != nil {
		return err
	}
	if c.dry != inEarnest {
		return c.wouldUpdate(ctx, client, user, former, record, k)
	}
	if resizes {
		c.info("Updating home directory.")
	}
	if c.recovery.want || c.recovery.given && hasRecovery(former) {
		err = c.updateWithRecovery(ctx, client, user, record, former, k)
	} else {
		err = c.updateHome(ctx, client, user, record, k)
	}
	if err != nil || !resizes {
		return err
	}
	c.info("Resizing home.")
	if err := c.resize(ctx, client, user, sizeOnRecord, k); err != nil {
		c.notice("The record states the new size already, but the home area keeps the one it had. Try again with \"homectl resize %s\".", user)
		return err
	}
	return nil
}

// updateHome has the daemon keep a changed record.
func (c *command) updateHome(ctx context.Context, client *home1.Client, user string, record map[string]any, k *keyring) error {
	if record["signature"] == nil {
		delete(record, "blobManifest") // the daemon makes it of the files
	}
	text, err := encode(record)
	if err != nil {
		return err
	}
	return c.slow(ctx, user, k, func(ctx context.Context, section *secret.Bytes) error {
		return client.UpdateHome(ctx, user, text, section, c.blobs, c.offline)
	})
}

// wouldUpdate tells what runUpdate would send.
func (c *command) wouldUpdate(ctx context.Context, client *home1.Client, user string, former, record map[string]any, k *keyring) error {
	var err error
	if former == nil {
		if former, err = c.currentRecord(ctx, client, user); err != nil {
			return err
		}
	}
	if c.recovery.want {
		if k.recovery, err = c.enrolRecovery(record, rand.Reader); err != nil {
			return err
		}
		defer k.recovery.Close()
		c.recovery.file = ""
	}
	return c.wouldSend(user, former, record, k)
}

// updatedUser is whose record is changed: the argument's, the identity's, or
// the caller's. An identity without name gets it.
func updatedUser(record map[string]any, args []string) (string, error) {
	if record == nil {
		return userOr(args)
	}
	name, _ := record["userName"].(string)
	switch {
	case len(args) == 0 && name == "":
		return "", usagef("No username specified.")
	case len(args) == 0:
		return name, nil
	case name == "":
		record["userName"] = args[0]
	case name != args[0]:
		return "", usagef("User name specified on command line and in JSON record do not match.")
	}
	return args[0], nil
}

// currentRecord asks the daemon for what is to be changed, without what the
// daemon makes itself.
func (c *command) currentRecord(ctx context.Context, client *home1.Client, user string) (map[string]any, error) {
	text, incomplete, err := client.GetUserRecordByName(ctx, user)
	if err != nil {
		c.explain("Failed to acquire user home record", user, err)
		return nil, errSaid
	}
	if incomplete {
		return nil, usagef("Lacking rights to acquire user record including privileged metadata, can't update record.")
	}
	record, err := decode(text)
	if err != nil {
		return nil, usagef("Failed to parse the record of user %s: %s", user, reason(err))
	}
	for _, s := range []string{"binding", "status", "signature", "secret"} {
		delete(record, s)
	}
	return record, nil
}

// decode reads a record that the daemon or a file gave, numbers as they are.
func decode(text []byte) (map[string]any, error) {
	// The parser first: the decoder would drop the second of two equal keys.
	if _, err := records.Parse(text, records.ClientReply); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var record map[string]any
	err := dec.Decode(&record)
	return record, err
}

// timestamp notes the time of the change, in microseconds since 1970. A whole
// record that was given keeps its own.
func timestamp(record map[string]any, now uint64, whole bool) error {
	const field = "lastChangeUSec"
	if whole {
		if record[field] == nil {
			record[field] = now
		}
		return nil
	}
	text, err := encode(map[string]any{"userName": "x", field: record[field]})
	if err != nil {
		return err
	}
	r, err := records.Parse(text, records.ClientReply)
	if err != nil {
		return err
	}
	if r.LastChangeUSec() >= now {
		return usagef("lastChangeUSec is from the future, can't update.")
	}
	record[field] = now
	return nil
}

// addSection takes over the passwords of a secret section.
func (k *keyring) addSection(section *secret.Bytes) error {
	if section == nil || section.Len() == 0 {
		return nil
	}
	given, err := records.ParseSecrets(section)
	if err != nil {
		return usagef("Failed to parse the secret section of the identity: %s", fault.Public(err))
	}
	defer given.Close()
	for i := len(given.Passwords) - 1; i >= 0; i-- {
		p, err := given.Passwords[i].Clone()
		if err != nil {
			return err
		}
		k.add(p)
	}
	return nil
}

// changes reports whether any property was given.
func (a *assembly) changes() bool {
	return len(a.any)+len(a.this)+len(a.other)+len(a.priv)+len(a.rlimits)+len(a.filter)+len(a.rlimitFilter) > 0 || a.blobs.touched
}
