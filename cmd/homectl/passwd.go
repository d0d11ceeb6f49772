package main

import (
	"context"
	"fmt"

	"golang.org/x/term"

	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/internal/secret"
)

func runPasswd(c *command, ctx context.Context, args []string) error {
	if c.assembly.changes() {
		return usagef("The 'passwd' verb does not permit changing other record properties at the same time.")
	}
	user, err := userOr(args)
	if err != nil {
		return err
	}
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	old, err := c.harvest(ctx, user)
	if err != nil {
		return err
	}
	defer old.close()
	if len(old.passwords) == 0 && c.interactive() {
		// Whoever cannot say it would choose a new one for nothing.
		if err := c.askInto(ctx, old, "password", "Please enter current password for user %s:", user); err != nil {
			return err
		}
	}
	for {
		weak, err := c.changePassword(ctx, client, user, old)
		if weak == nil || err != nil {
			return err
		}
		c.fail("%s", fault.Public(weak))
		c.info("(Use --enforce-password-policy=no to turn off password quality checks for this account.)")
	}
}

// changePassword asks for the new password and sets it. weak is why the daemon
// does not like that one.
func (c *command) changePassword(ctx context.Context, client *home1.Client, user string, old *keyring) (weak, err error) {
	p, err := c.newPassword(ctx, user)
	if err != nil {
		return nil, err
	}
	fresh := &keyring{passwords: []*secret.Bytes{p}}
	defer fresh.close()
	if p.Len() == 0 {
		return nil, usagef("An empty password protects nothing, refusing.")
	}
	section, err := fresh.section()
	if err != nil {
		return nil, fmt.Errorf("new password: %w", err)
	}
	defer section.Close()
	err = c.slow(ctx, user, old, func(ctx context.Context, known *secret.Bytes) error {
		err := client.ChangePasswordHome(ctx, user, section, known)
		if fault.Is(err, fault.LowPasswordQuality) {
			weak = err
			return nil
		}
		return err
	})
	return weak, err
}

// userOr returns the one user that was named, or the caller.
func userOr(args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	return caller()
}

// interactive reports whether there is somebody to ask.
func (c *command) interactive() bool { return c.ask && term.IsTerminal(int(c.in.Fd())) }
