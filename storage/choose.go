package storage

import (
	"os"

	"golang.org/x/sys/unix"

	"hearth/storage/dm"
	"hearth/storage/fsops"
)

// A site is what the choice of a storage depends on.
type site struct {
	container bool // we run in one, where there are no block devices
	luks      bool // its backend is there, and so is the device mapper
	encrypted bool // the home root is on an encrypted device already
	btrfs     bool // the home root is on btrfs
}

// choose picks the storage of a new home whose record names none, the same as
// systemd-homed: encrypted once, not twice and not never.
func (s site) choose() string {
	switch {
	case s.luks && !s.container && !s.encrypted:
		return "luks"
	case s.btrfs:
		return "subvolume"
	}
	return "directory"
}

// survey looks at the machine. A home root that does not exist, or cannot be
// looked at, is on nothing special.
func survey(homeRoot string, backends map[string]Backend) site {
	s := site{container: inContainer(), luks: backends["luks"] != nil && dm.Available()}
	root, err := os.Open(homeRoot)
	if err != nil {
		return s
	}
	defer func() { _ = root.Close() }()
	var fs unix.Statfs_t
	s.btrfs = unix.Fstatfs(int(root.Fd()), &fs) == nil && uint32(fs.Type) == unix.BTRFS_SUPER_MAGIC
	if major, minor, ok := fsops.BlockDevice(root); ok {
		s.encrypted = dm.Encrypted(major, minor)
	}
	return s
}

// inContainer goes by what the service manager, or the container's, wrote
// down.
func inContainer() bool {
	for _, path := range []string{"/run/systemd/container", "/run/host/container-manager"} {
		if info, err := os.Stat(path); err == nil && info.Size() > 0 {
			return true
		}
	}
	return false
}
