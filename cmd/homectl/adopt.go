package main

import (
	"context"
	"path/filepath"
	"strings"

	"hearth/internal/fault"
	"hearth/records"
)

func runAdopt(c *command, ctx context.Context, args []string) error {
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	for _, path := range args {
		if e := client.AdoptHome(ctx, path); e != nil {
			c.fail("Failed to adopt home: %s", fault.Public(e))
			c.advise("", e)
			err = errSaid
			continue
		}
		// The service leaves a home alone whose name is taken, without a word.
		text, _, e := client.GetUserRecordByName(ctx, adoptedName(path))
		if e != nil {
			c.warn("'%s' was not adopted: there is an account of that name already.", path)
			continue
		}
		if r, e := records.Parse(text, records.ClientReply); e == nil && !heldAt(r, path) {
			c.warn("'%s' was not adopted: user %s has a home already.", path, r.UserName())
		}
	}
	return err
}

// adoptedName is the user name that a path stands for: NAME[@REALM].home or
// NAME[@REALM].homedir.
func adoptedName(path string) string {
	stem := filepath.Base(path)
	name, _, _ := strings.Cut(strings.TrimSuffix(stem, filepath.Ext(stem)), "@")
	return name
}

// heldAt reports whether a home's storage is at path.
func heldAt(r *records.Record, path string) bool {
	mid, err := machineID()
	if err != nil {
		return true
	}
	b, ok := r.Binding(mid)
	return ok && b.ImagePath == filepath.Clean(path)
}
