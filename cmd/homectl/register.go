package main

import (
	"context"
	"slices"

	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/records"
)

func runRegister(c *command, ctx context.Context, args []string) error {
	if c.identity != "" {
		if len(args) > 0 {
			return usagef("Not accepting an arguments if --identity= is specified, refusing.")
		}
		args = []string{c.identity}
	}
	if len(args) == 0 {
		args = []string{"-"}
	}
	if len(args) > 1 && slices.Contains(args, "-") {
		return usagef("Refusing reading from standard input if multiple user records are specified.")
	}
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	for _, path := range args {
		shown := path
		if path == "-" {
			shown = "<stdio>"
		}
		text, e := c.readFile(path)
		if e != nil {
			c.fail("[%s:0:0] Failed to parse user record: %s", shown, reason(e))
			err = errSaid
			continue
		}
		// What is left of the text lies in its memory until it is sent.
		rest, section, e := records.CutSecret(text)
		section.Close()
		if e != nil {
			c.fail("[%s:1:1] Failed to parse user record: %s", shown, reason(e))
			err = errSaid
			continue
		}
		e = client.RegisterHome(ctx, rest)
		clear(text)
		if e != nil {
			c.fail("Failed to register home: %s", fault.Public(e))
			c.advise("", e)
			err = errSaid
		}
	}
	return err
}

func runUnregister(c *command, ctx context.Context, args []string) error {
	return c.each(ctx, args, "Failed to unregister home", func(ctx context.Context, client *home1.Client, user string) error {
		return client.UnregisterHome(ctx, user)
	})
}
