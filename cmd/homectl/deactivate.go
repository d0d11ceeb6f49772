package main

import (
	"context"
	"time"

	"hearth/homed/home1"
	"hearth/internal/fault"
)

// How long and how often a busy home is tried again: processes of a session
// that just ended need a moment.
const (
	busyPause = time.Second
	busyTries = 30
)

func runDeactivate(c *command, ctx context.Context, args []string) error {
	return c.each(ctx, args, "Failed to deactivate user home", func(ctx context.Context, client *home1.Client, user string) error {
		for try := 0; ; try++ {
			err := client.DeactivateHome(ctx, user)
			if !fault.Is(err, fault.HomeBusy) || try == busyTries {
				return err
			}
			c.info("Home of user %s is currently busy, retrying deactivation.", user)
			time.Sleep(busyPause)
		}
	})
}

func runDeactivateAll(c *command, ctx context.Context, _ []string) error {
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	if err := client.DeactivateAllHomes(ctx); err != nil {
		c.explain("Failed to deactivate all homes", "", err)
		return errSaid
	}
	return nil
}
