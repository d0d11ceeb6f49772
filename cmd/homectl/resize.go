package main

import (
	"context"
	"math"

	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/internal/secret"
)

// sizeOnRecord asks the daemon for the size that the record states.
const sizeOnRecord = math.MaxUint64

func runResize(c *command, ctx context.Context, args []string) error {
	size, err := c.resizeTo(args[1:])
	if err != nil {
		return err
	}
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	k, err := c.harvest(ctx, args[0])
	if err != nil {
		return err
	}
	defer k.close()
	return c.resize(ctx, client, args[0], size, k)
}

// resizeTo is the size in bytes that the argument or --disk-size= names, the
// one on record if neither does.
func (c *command) resizeTo(args []string) (uint64, error) {
	size, share := c.assembly.sizes()
	given := newAssembly()
	for _, a := range args {
		if err := setDiskSize(given, &property{bucket: "this"}, a); err != nil {
			return 0, err
		}
	}
	said, part := given.sizes()
	switch {
	case share || part:
		return 0, usagef("Relative disk size specification currently not supported when resizing.")
	case said == nil && size == nil:
		return sizeOnRecord, nil
	case said == nil:
		return *size, nil
	case size != nil && *size != *said:
		return 0, usagef("Disk size specified twice and doesn't match, refusing.")
	}
	return *said, nil
}

func runRebalance(c *command, ctx context.Context, _ []string) error {
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	switch err := client.Rebalance(ctx); {
	case err == nil:
		c.info("Completed rebalancing.")
	case fault.Is(err, fault.RebalanceNotNeeded):
		c.info("No homes needed rebalancing.")
	default:
		c.explain("Failed to rebalance", "", err)
		return errSaid
	}
	return nil
}

func (c *command) resize(ctx context.Context, client *home1.Client, user string, size uint64, k *keyring) error {
	return c.slow(ctx, user, k, func(ctx context.Context, section *secret.Bytes) error {
		return client.ResizeHome(ctx, user, size, section)
	})
}

// sizes returns the size that was given in bytes, and whether a share was.
func (a *assembly) sizes() (size *uint64, share bool) {
	for _, b := range []map[string]any{a.any, a.this, a.other} {
		if n, ok := b["diskSize"].(uint64); ok {
			size = &n
		}
		share = share || b["diskSizeRelative"] != nil
	}
	return size, share
}

// resizes reports whether a size was given.
func (a *assembly) resizes() bool {
	size, share := a.sizes()
	return size != nil || share
}
