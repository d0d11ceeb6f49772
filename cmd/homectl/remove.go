package main

import (
	"context"

	"hearth/homed/home1"
)

func runRemove(c *command, ctx context.Context, args []string) error {
	return c.each(ctx, args, "Failed to remove home", func(ctx context.Context, client *home1.Client, user string) error {
		return client.RemoveHome(ctx, user)
	})
}
