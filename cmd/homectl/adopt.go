package main

import (
	"context"
	"path/filepath"
	"strings"

	"hearth/internal/fault"
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
		name := adoptedName(path)
		if at := c.imagePath(ctx, client, name); at == "" {
			c.warn("'%s' was not adopted: there is an account of the name %s already.", path, name)
		} else if at != filepath.Clean(path) {
			c.warn("'%s' was not adopted: the home of user %s is at '%s'.", path, name, at)
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
