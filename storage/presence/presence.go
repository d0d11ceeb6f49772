// Package presence looks at a home area from outside: is its storage there, is
// it marked dirty, is it mounted, is it locked, how much is counted of it. It needs no key, opens no storage and changes
// nothing, so the daemon may link it; what to do about a state is its callers'.
package presence

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/storage/mounts"
)

// State is what can be seen of a home area.
type State int

// The states. A home that is active is that whatever its image path says; a
// dirty one was not closed in order, and activates like any other. Of a block
// device whose name says nothing of what is on it, it is unclear whether there
// is a home on it.
const (
	Absent State = iota
	Inactive
	Dirty
	Active
	Unclear
)

// String returns the state's name, as homectl shows it.
func (s State) String() string {
	switch s {
	case Absent:
		return "absent"
	case Inactive:
		return "inactive"
	case Dirty:
		return "dirty"
	case Active:
		return "active"
	case Unclear:
		return "unclear"
	}
	return fmt.Sprintf("State(%d)", int(s))
}

// Area says where to look, as the record's binding has it.
type Area struct {
	Storage       string // luks, directory, subvolume, fscrypt, cifs
	ImagePath     string // symlinks are followed; unused for cifs
	HomeDirectory string
}

// Look returns the state of an area. It asks for attributes only, and of the
// home directory nothing but whether it is a mount point, which does not wait
// for a home that is locked.
//
// Faults: UnrecognizedFormat if what is at the image path cannot be the
// storage.
func Look(a Area) (State, error) { return look(a, false) }

func look(a Area, quick bool) (State, error) {
	if a.HomeDirectory != "" {
		active, err := isMounted(a.HomeDirectory, quick)
		if err != nil && !absent(err) {
			return Absent, fmt.Errorf("look at home area: %w", err)
		}
		if active {
			return Active, nil
		}
	}
	if a.Storage == "cifs" {
		return Inactive, nil // whether the server is there shows when it is needed
	}
	kind, err := typeOf(a.ImagePath, quick)
	if absent(err) {
		return Absent, nil
	} else if err != nil {
		return Absent, fmt.Errorf("look at home area %s: %w", a.ImagePath, err)
	}
	switch {
	case a.Storage == "luks" && kind == unix.S_IFREG:
		dirty, err := mounts.IsDirty(a.ImagePath)
		if absent(err) {
			return Absent, nil
		}
		if err != nil {
			return Absent, fmt.Errorf("look at home area: %w", err)
		}
		if dirty {
			return Dirty, nil
		}
		return Inactive, nil
	case a.Storage == "luks" && kind == unix.S_IFBLK && !named(a.ImagePath):
		return Unclear, nil
	case a.Storage == "luks" && kind == unix.S_IFBLK:
		return Inactive, nil
	case a.Storage != "luks" && kind == unix.S_IFDIR:
		return Inactive, nil
	}
	return Absent, fault.New(fault.UnrecognizedFormat, "look at home area "+a.ImagePath, fmt.Errorf("not storage of kind %q", a.Storage))
}

// named reports whether a device's path is there only as long as a certain
// content is on it.
func named(path string) bool {
	for _, by := range []string{"uuid", "partuuid", "partlabel", "label"} {
		if strings.HasPrefix(path, "/dev/disk/by-"+by+"/") {
			return true
		}
	}
	return false
}

func stat(path string, st *unix.Stat_t) error {
	for {
		if err := unix.Stat(path, st); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// absent: a path that leads nowhere, whichever part of it is missing.
func absent(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }
