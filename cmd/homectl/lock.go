package main

import (
	"context"

	"hearth/homed/home1"
)

func runLock(c *command, ctx context.Context, args []string) error {
	return c.each(ctx, args, "Failed to lock home", func(ctx context.Context, client *home1.Client, user string) error {
		return client.LockHome(ctx, user)
	})
}

func runUnlock(c *command, ctx context.Context, args []string) error {
	return c.eachWithSecrets(ctx, args, (*home1.Client).UnlockHome)
}

// runLockAll locks what may sleep: homes that somebody opened by hand, or
// whose login did not ask for it, stay open.
func runLockAll(c *command, ctx context.Context, _ []string) error {
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	if err := client.LockAllHomes(ctx); err != nil {
		c.explain("Failed to lock all homes", "", err)
		return errSaid
	}
	return nil
}
