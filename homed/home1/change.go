package home1

import (
	"context"
	"os"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// ChangePasswordHome makes the passwords in fresh, the content of a secret
// section, the only ones of a home. old has one that opens it up to now. Both
// are borrowed.
func (c *Client) ChangePasswordHome(ctx context.Context, name string, fresh, old *secret.Bytes) error {
	_, err := c.query(ctx, name, "ChangePasswordHome", name, fresh, old)
	return err
}

// UpdateHome replaces a home's record. record is a JSON object without secret
// section; section is the content of that section, or nil. blobs are all files
// that are to be beside it, nil leaves those that are there. All are borrowed.
// offline leaves the storage alone, and with it the question who asks; without
// blobs there are none afterwards.
func (c *Client) UpdateHome(ctx context.Context, name string, record []byte, section *secret.Bytes, blobs map[string]*os.File, offline bool) error {
	joined, err := JoinSecret(record, section)
	if err != nil {
		return fault.New(fault.InvalidArgs, "join record and secret", err)
	}
	defer joined.Close()
	if offline || blobs != nil {
		flags := uint64(0)
		if offline {
			flags = 1
		}
		_, err = c.query(ctx, name, "UpdateHomeEx", joined, descriptors(blobs), flags)
	} else {
		_, err = c.query(ctx, name, "UpdateHome", joined)
	}
	return err
}

// ResizeHome sets the size of a home in bytes, 2^64-1 to what its record says.
// section is borrowed, and may be nil.
func (c *Client) ResizeHome(ctx context.Context, name string, size uint64, section *secret.Bytes) error {
	_, err := c.query(ctx, name, "ResizeHome", name, size, section)
	return err
}
