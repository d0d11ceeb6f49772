package bus

import (
	"strings"

	"github.com/godbus/dbus/v5"

	"hearth/internal/busconn"
)

const (
	driverName  = "org.freedesktop.DBus"
	driverPath  = "/org/freedesktop/DBus"
	driverIface = "org.freedesktop.DBus"
)

// conn is a connection to a bus. One goroutine reads; sending is for all.
type conn struct{ *busconn.Conn }

func connect(address string) (*conn, error) {
	c, err := busconn.Connect(address)
	if err != nil {
		return nil, err
	}
	return &conn{c}, nil
}

// read returns the next message, which the caller closes. A message that the
// bus framed well and filled badly is returned together with errMalformed; any
// other error ends the connection.
func (c *conn) read() (*message, error) {
	buf, fds, err := c.Receive()
	if err != nil {
		return nil, err
	}
	return parse(buf, fds)
}

// headers builds a message's header fields; empty values are left out.
func headers(fields map[dbus.HeaderField]any, body []any) map[dbus.HeaderField]dbus.Variant {
	out := map[dbus.HeaderField]dbus.Variant{}
	for k, v := range fields {
		if s, ok := v.(string); ok && s == "" {
			continue
		}
		out[k] = dbus.MakeVariant(v)
	}
	if len(body) > 0 {
		out[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	return out
}

// callDriver sends a call to the bus itself.
func (c *conn) callDriver(member string, body ...any) (uint32, error) {
	return c.Send(&dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldDestination: driverName,
		dbus.FieldPath:        dbus.ObjectPath(driverPath),
		dbus.FieldInterface:   driverIface,
		dbus.FieldMember:      member,
	}, body)})
}

// reply answers m with the values of body.
func (c *conn) reply(m *message, body []any) error {
	_, err := c.Send(&dbus.Message{Type: dbus.TypeMethodReply, Flags: dbus.FlagNoReplyExpected, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldDestination: m.sender,
		dbus.FieldReplySerial: m.serial,
	}, body)})
	return err
}

// maxText bounds the text of an error, which may quote the caller.
const maxText = 1024

// refuse answers m with an error.
func (c *conn) refuse(m *message, name, text string) error {
	body := []any{strings.ToValidUTF8(text[:min(len(text), maxText)], "?")}
	_, err := c.Send(&dbus.Message{Type: dbus.TypeError, Flags: dbus.FlagNoReplyExpected, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldDestination: m.sender,
		dbus.FieldErrorName:   name,
		dbus.FieldReplySerial: m.serial,
	}, body)})
	return err
}

// emit broadcasts a signal.
func (c *conn) emit(path, iface, member string, body ...any) error {
	return c.tell("", path, iface, member, body...)
}

// tell sends a signal to one connection, to all if its name is empty.
func (c *conn) tell(to, path, iface, member string, body ...any) error {
	_, err := c.Send(&dbus.Message{Type: dbus.TypeSignal, Flags: dbus.FlagNoReplyExpected, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldDestination: to,
		dbus.FieldPath:        dbus.ObjectPath(path),
		dbus.FieldInterface:   iface,
		dbus.FieldMember:      member,
	}, body)})
	return err
}
