package storage

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/storage/mounts"
)

// remove deletes the area and the empty directory that the home was mounted
// on. What is gone already is no error.
func (f *flow) remove(ctx context.Context) error {
	home := f.view.HomeDirectory
	mounted, err := mounts.IsMountPoint(home)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.Unknown, "look at home directory", err)
	}
	if mounted {
		return fault.New(fault.HomeBusy, "remove", fmt.Errorf("%s is mounted", home))
	}
	if err := f.backend.Remove(ctx, f.area); err != nil {
		return err
	}
	switch err := unix.Rmdir(home); {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY):
		return fault.Newf(fault.HomeBusy, "remove home directory", "The directory %s is not empty.", home)
	default:
		return fault.New(fault.Unknown, "remove home directory", err)
	}
}
