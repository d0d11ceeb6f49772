package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/godbus/dbus/v5"

	"hearth/homed/home1"
	"hearth/internal/busconn"
	"hearth/internal/fault"
)

const (
	polkitName  = "org.freedesktop.PolicyKit1"
	polkitPath  = "/org/freedesktop/PolicyKit1/Authority"
	polkitIface = "org.freedesktop.PolicyKit1.Authority"
)

// access answers who a caller is and what polkit thinks of it.
//
// Its questions go out on a plain godbus connection, one that has agreed to no
// descriptors: anybody may send us a signal with some, godbus would leak them,
// and a connection without the agreement never gets them.
type access struct {
	conn *dbus.Conn

	mu   sync.Mutex
	uids map[string]uint32
}

// A unique name is never given out twice, so what is known of one stays true.
// The bound only keeps callers that come and go from filling memory.
const maxKnownCallers = 4096

func newAccess(ctx context.Context, address string) (*access, error) {
	sock, err := busconn.DialUnix(address)
	if err != nil {
		return nil, fmt.Errorf("connect to the bus: %w", err)
	}
	// Hidden behind an interface, godbus cannot see that this is a unix
	// socket and does not offer to take descriptors.
	c, err := dbus.NewConn(struct{ io.ReadWriteCloser }{sock}, dbus.WithContext(ctx))
	if err != nil {
		_ = sock.Close()
		return nil, fmt.Errorf("connect to the bus: %w", err)
	}
	if err := c.Auth(nil); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("authenticate on the bus: %w", err)
	}
	if err := c.Hello(); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("say hello to the bus: %w", err)
	}
	return &access{conn: c, uids: map[string]uint32{}}, nil
}

func (a *access) Close() error { return a.conn.Close() }

// caller returns the effective uid that a connection had when it came to the
// bus.
func (a *access) caller(ctx context.Context, sender string) (uint32, error) {
	if sender == "" {
		return 0, fault.New(fault.AccessDenied, "tell the caller", errors.New("message without sender"))
	}
	a.mu.Lock()
	uid, ok := a.uids[sender]
	a.mu.Unlock()
	if ok {
		return uid, nil
	}
	err := a.conn.BusObject().CallWithContext(ctx, driverIface+".GetConnectionUnixUser", 0, sender).Store(&uid)
	if err != nil {
		return 0, fault.New(fault.AccessDenied, "tell the caller", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.uids) >= maxKnownCallers {
		clear(a.uids)
	}
	a.uids[sender] = uid
	return uid, nil
}

// subject is the home a polkit rule may want to know of.
type subject struct {
	uid  uint32
	name string
}

// authorize asks polkit whether the sender may do action; about is nil where
// the action concerns no home in particular. interactive says that the caller
// would wait for somebody to type a password. Faults: AccessDenied,
// InteractiveRequired, else what polkit says.
func (a *access) authorize(ctx context.Context, sender, action string, about *subject, interactive bool) error {
	op := "authorize " + action
	details := map[string]string{}
	if about != nil {
		details["uid"] = strconv.FormatUint(uint64(about.uid), 10)
		details["username"] = about.name
	}
	var flags uint32
	if interactive {
		flags = 1
	}
	who := struct {
		Kind    string
		Details map[string]dbus.Variant
	}{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(sender)}}
	var answer struct {
		Authorized, Challenge bool
		Details               map[string]string
	}
	err := a.conn.Object(polkitName, polkitPath).
		CallWithContext(ctx, polkitIface+".CheckAuthorization", 0, who, action, details, flags, "").Store(&answer)
	var d dbus.Error
	switch {
	case err == nil && answer.Authorized:
		return nil
	case err == nil && answer.Challenge:
		return fault.New(fault.InteractiveRequired, op, nil)
	case err == nil:
		return fault.Newf(fault.AccessDenied, op, "Permission denied")
	case !errors.As(err, &d):
		return fault.New(fault.Unknown, op, err)
	}
	switch d.Name {
	case polkitName + ".Error.Failed", polkitName + ".Error.Cancelled", polkitName + ".Error.NotAuthorized",
		"org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner":
		// Without polkit only root may do what polkit guards.
		return fault.New(fault.AccessDenied, op, err)
	}
	e := fault.New(fault.FromBus(d.Name), op, err)
	e.Text = d.Error()
	return e
}

// allowed is gate 3 of a method: nothing to ask, root, the owner where that
// is enough, else polkit. parked is called before polkit is asked.
func (a *access) allowed(ctx context.Context, c *call, action string, about *subject, parked func()) error {
	if action == "" || c.uid == 0 {
		return nil
	}
	if about != nil && c.method.OwnerSkips && c.uid == about.uid {
		return nil
	}
	if !c.method.Details {
		about = nil
	}
	parked()
	return a.authorize(ctx, c.msg.sender, action, about, c.msg.flags&flagInteractive != 0)
}

// privileged is gate 2: members of the table marked so are root's. That a bus
// can prove a capability is left out, since dbus-daemon cannot.
func privileged(c *call, iface *home1.Interface) error {
	if !c.method.Privileged || c.uid == 0 {
		return nil
	}
	return fault.Newf(fault.AccessDenied, "check the caller", "Access to %s.%s() not permitted.", iface.Name, c.method.Name)
}
