package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/godbus/dbus/v5"

	"hearth/internal/busconn"
)

const (
	systemdName    = "org.freedesktop.systemd1"
	systemdPath    = "/org/freedesktop/systemd1"
	systemdManager = systemdName + ".Manager"
)

// Freezer has the service manager freeze and thaw all that runs in a user's
// slice: sessions and the user's own services. It implements manager.Freezer.
type Freezer struct {
	Address string // of the bus; "" = the system's
}

// Freeze returns when every process of the user's slice has stopped.
func (f Freezer) Freeze(ctx context.Context, uid uint32) error {
	return f.call(ctx, "FreezeUnit", slice(uid))
}

// Thaw lets them go on. Processes that were not frozen stay as they are.
//
// Where the machine slept meanwhile, systemd-sleep froze and thawed the slice
// above, and systemd 262 then takes each unit below for frozen by itself. It
// stops no such unit, so her manager would hold the home open for ever.
func (f Freezer) Thaw(ctx context.Context, uid uint32) error {
	return errors.Join(f.call(ctx, "ThawUnit", slice(uid)), f.call(ctx, "ThawUnit", fmt.Sprintf("user@%d.service", uid)))
}

func slice(uid uint32) string { return fmt.Sprintf("user-%d.slice", uid) }

// call uses a connection of its own: it is rare, and waits.
func (f Freezer) call(ctx context.Context, method, unit string) error {
	a, err := newAccess(ctx, cmp.Or(f.Address, busconn.SystemBus))
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	err = a.conn.Object(systemdName, systemdPath).CallWithContext(ctx, systemdManager+"."+method, 0, unit).Err
	var d dbus.Error
	if errors.As(err, &d) {
		switch d.Name {
		case systemdName + ".NoSuchUnit", systemdName + ".UnitInactive":
			return nil // nobody is logged in
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, unit, err)
	}
	return nil
}
