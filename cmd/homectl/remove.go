package main

import (
	"context"
	"strings"

	"hearth/homed/home1"
	"hearth/records"
)

func runRemove(c *command, ctx context.Context, args []string) error {
	return c.each(ctx, args, "Failed to remove home", func(ctx context.Context, client *home1.Client, user string) error {
		path := c.imagePath(ctx, client, user)
		if err := client.RemoveHome(ctx, user); err != nil {
			return err
		}
		if strings.HasPrefix(path, "/dev/") {
			c.notice("User %s was forgotten. Nothing was erased on the device: whoever has a password of the home can open it, and it shows again where the device is plugged in.", user)
		}
		return nil
	})
}

// imagePath is where this machine has a home's storage; empty if nobody says.
func (c *command) imagePath(ctx context.Context, client *home1.Client, user string) string {
	text, _, err := client.GetUserRecordByName(ctx, user)
	if err != nil {
		return ""
	}
	r, err := records.Parse(text, records.ClientReply)
	if err != nil {
		return ""
	}
	mid, err := c.machineID()
	if err != nil {
		return ""
	}
	b, _ := r.Binding(mid)
	return b.ImagePath
}
