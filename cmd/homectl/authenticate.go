package main

import (
	"context"

	"hearth/homed/home1"
)

func runAuthenticate(c *command, ctx context.Context, args []string) error {
	if len(args) == 0 {
		me, err := caller()
		if err != nil {
			return err
		}
		args = []string{me}
	}
	return c.eachWithSecrets(ctx, args, (*home1.Client).AuthenticateHome)
}
