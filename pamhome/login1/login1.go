// Package login1 is the login manager's bus interface, org.freedesktop.login1
// of systemd-logind and elogind, as far as opening and closing a session
// needs it. What session to ask for is left to its caller.
package login1

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/godbus/dbus/v5"

	"hearth/pamhome/session"
)

const (
	name      = "org.freedesktop.login1"
	path      = dbus.ObjectPath("/org/freedesktop/login1")
	manager   = name + ".Manager."
	errPrefix = "org.freedesktop.DBus.Error."
)

// Errors that a caller tells apart. Others carry the bus's text.
var (
	ErrBusy        = errors.New("the process is in a session already")
	ErrRefused     = errors.New("the login manager does not know this class")
	ErrUnavailable = errors.New("no login manager")
)

// Request is a session to be made.
type Request struct {
	UID    uint32
	Leader *os.File // pidfd of the login program; nil: by PID
	PID    uint32
	Choice session.Choice
	// Limits can be said on the bus only, Choice.ExtraDevices over varlink only.
	Limits []session.Property
}

// Reply is the session that was made.
type Reply struct {
	ID          string
	RuntimePath string
	UID         uint32
	Seat        string
	VTNr        uint32
	// NoDevices: the extra devices that were asked for are not granted.
	NoDevices bool
	// Lifeline is the FIFO of a login manager before systemd 258, which must
	// stay open in the login program; nil otherwise. The caller closes it.
	Lifeline *os.File
}

// Client is a connection to the login manager.
type Client struct{ conn *dbus.Conn }

// Dial connects to the system bus. The caller closes the client.
func Dial(ctx context.Context) (*Client, error) {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("%w: connect to system bus: %w", ErrUnavailable, err)
	}
	return &Client{conn}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

type property struct {
	Name  string
	Value dbus.Variant
}

// CreateSession asks for a session. The reply comes when its scope, and for
// most classes the user's service manager, stand: ctx must leave time for the
// password that they may ask for. Where the login manager cannot be told of
// ExtraDevices, the reply says so.
func (c *Client) CreateSession(ctx context.Context, r Request) (Reply, error) {
	if len(r.Choice.ExtraDevices) > 0 && len(r.Limits) == 0 {
		reply, err := createByVarlink(ctx, Socket, r)
		if !errors.Is(err, errNoVarlink) {
			return reply, err
		}
	}
	reply, err := c.createByBus(ctx, r)
	reply.NoDevices = len(r.Choice.ExtraDevices) > 0
	return reply, err
}

func (c *Client) createByBus(ctx context.Context, r Request) (Reply, error) {
	limits := []property{}
	for _, p := range r.Limits {
		limits = append(limits, property{p.Name, dbus.MakeVariant(p.Value)})
	}
	ch := r.Choice
	middle := []any{ch.Service, ch.Type, ch.Class, ch.Desktop, ch.Seat, ch.VTNr, ch.TTY, ch.Display, ch.Remote, ch.RemoteUser, ch.RemoteHost}
	object := c.conn.Object(name, path)
	var call *dbus.Call
	if r.Leader != nil {
		args := append([]any{r.UID, dbus.UnixFD(r.Leader.Fd())}, middle...)
		call = object.CallWithContext(ctx, manager+"CreateSessionWithPIDFD", 0, append(args, uint64(0), limits)...)
	}
	if r.Leader == nil || isError(call.Err, errPrefix+"UnknownMethod") {
		args := append([]any{r.UID, r.PID}, middle...)
		call = object.CallWithContext(ctx, manager+"CreateSession", 0, append(args, limits)...)
	}
	if call.Err != nil {
		return Reply{}, fault(call.Err)
	}
	var reply Reply
	var object2 dbus.ObjectPath
	var fd dbus.UnixFD
	var existing bool
	if err := call.Store(&reply.ID, &object2, &reply.RuntimePath, &fd, &reply.UID, &reply.Seat, &reply.VTNr, &existing); err != nil {
		for _, v := range call.Body {
			if fd, ok := v.(dbus.UnixFD); ok {
				_ = syscall.Close(int(fd))
			}
		}
		return Reply{}, fmt.Errorf("read the session's description: %w", err)
	}
	f := os.NewFile(uintptr(fd), "session")
	if info, err := f.Stat(); err == nil && info.Mode()&os.ModeNamedPipe != 0 {
		reply.Lifeline = f
	} else {
		_ = f.Close()
	}
	return reply, nil
}

// ReleaseSession gives a session up. It is granted to its own processes only.
func (c *Client) ReleaseSession(ctx context.Context, id string) error {
	if err := c.conn.Object(name, path).CallWithContext(ctx, manager+"ReleaseSession", 0, id).Err; err != nil {
		return fault(err)
	}
	return nil
}

// Inhibit takes an inhibitor lock, which lasts as long as the descriptor is
// open somewhere.
func (c *Client) Inhibit(ctx context.Context, what, who, why string) (*os.File, error) {
	var fd dbus.UnixFD
	if err := c.conn.Object(name, path).CallWithContext(ctx, manager+"Inhibit", 0, what, who, why, "block").Store(&fd); err != nil {
		return nil, fault(err)
	}
	return os.NewFile(uintptr(fd), "inhibitor"), nil
}

func isError(err error, name string) bool {
	var d dbus.Error
	return errors.As(err, &d) && d.Name == name
}

func fault(err error) error {
	switch {
	case isError(err, name+".SessionBusy"):
		return ErrBusy
	case isError(err, errPrefix+"InvalidArgs"):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case isError(err, errPrefix+"ServiceUnknown"), isError(err, errPrefix+"NameHasNoOwner"):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
