package main

import (
	"context"

	"hearth/homed/home1"
	"hearth/internal/secret"
)

func runActivate(c *command, ctx context.Context, args []string) error {
	return c.eachWithSecrets(ctx, args, (*home1.Client).ActivateHome)
}

// eachWithSecrets carries out, user by user, a call that may have to ask. Each
// user gets a harvest of their own: a password passed for one is not tried on
// the next.
func (c *command) eachWithSecrets(ctx context.Context, users []string, call func(*home1.Client, context.Context, string, *secret.Bytes) error) error {
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	for _, u := range users {
		k, e := c.harvest(ctx, u)
		if e == nil {
			e = c.slow(ctx, u, k, func(ctx context.Context, section *secret.Bytes) error {
				return call(client, ctx, u, section)
			})
		}
		if e == nil {
			c.remember(ctx, k, u)
		}
		k.close()
		if e != nil {
			c.explain("Operation on home "+u+" failed", u, e)
			err = errSaid
		}
	}
	return err
}
