package presence

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// sysBlock is where the kernel lists its block devices (sysfs-block-dm of its
// ABI documents).
const sysBlock = "/sys/block"

// Suspended reports whether the home of a user is locked: whether its mapped
// device, which has systemd-homed's name for it, is suspended. Sysfs tells that
// without a device being opened. A home without such a device is not.
func Suspended(userName string) (bool, error) { return suspended(sysBlock, "home-"+userName) }

func suspended(dir, device string) (bool, error) {
	list, err := filepath.Glob(filepath.Join(dir, "dm-*"))
	if err != nil {
		return false, fmt.Errorf("list mapped devices: %w", err)
	}
	for _, d := range list {
		name, err := attribute(d, "name")
		if err != nil {
			return false, err
		}
		if name != device {
			continue
		}
		state, err := attribute(d, "suspended")
		return state == "1", err
	}
	return false, nil
}

// attribute reads one of a mapped device's; "" if the device is gone by now.
func attribute(device, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(device, "dm", name))
	if err != nil && !absent(err) && !errors.Is(err, unix.ENODEV) {
		return "", fmt.Errorf("look at mapped device: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}
