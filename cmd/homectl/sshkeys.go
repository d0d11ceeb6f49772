package main

import (
	"context"
	"fmt"

	"hearth/internal/fault"
	"hearth/records"
)

// runSSHAuthorizedKeys prints the keys of a record for sshd, which may read no
// file of a home that is closed. A user without a home area has none here and
// may have them elsewhere, so that is no failure.
func runSSHAuthorizedKeys(c *command, ctx context.Context, args []string) error {
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	text, incomplete, err := client.GetUserRecordByName(ctx, args[0])
	switch {
	case fault.Is(err, fault.NoSuchHome):
		return nil
	case err != nil:
		c.explain("Failed to read the SSH keys", args[0], err)
		return errSaid
	}
	r, err := records.Parse(text, records.ClientReply)
	if err != nil {
		return usagef("Failed to read the keys: the record of %s cannot be read: %s", args[0], reason(err))
	}
	if incomplete {
		return usagef("Only root and %s may see the keys.", r.UserName())
	}
	for _, key := range r.View(records.Machine{}).Login.SSHAuthorizedKeys {
		fmt.Fprintln(c.out, key)
	}
	return nil
}
