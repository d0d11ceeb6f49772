package busconn

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/godbus/dbus/v5"
)

// Caller is a connection for who only calls: it takes the answers to its own
// calls and nothing else. Signals and calls from others are thrown away, and
// their descriptors closed.
type Caller struct {
	conn *Conn

	mu      sync.Mutex
	waiting map[uint32]*Call
	err     error // why nothing is answered any more
}

// Call is one call. Done is closed when the other fields are set.
type Call struct {
	Done chan struct{}
	// Body are the values of the answer as godbus decodes them; a dbus.UnixFD
	// that is one of them is the caller's to close.
	Body []any
	// Err is a dbus.Error, or why there is no answer.
	Err error
	// Sender is who sent a dbus.Error; the bus itself is org.freedesktop.DBus.
	Sender string
}

// DialSystem connects to the system bus, or where DBUS_SYSTEM_BUS_ADDRESS
// points.
func DialSystem() (*Caller, error) {
	address := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS")
	if address == "" {
		address = SystemBus
	}
	return Dial(address)
}

// Dial connects to a bus and says Hello.
func Dial(address string) (*Caller, error) {
	conn, err := Connect(address)
	if err != nil {
		return nil, err
	}
	c := &Caller{conn: conn, waiting: map[uint32]*Call{}}
	go c.read()
	hello := c.Go(&dbus.Message{Type: dbus.TypeMethodCall, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant("org.freedesktop.DBus"),
		dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/DBus")),
		dbus.FieldInterface:   dbus.MakeVariant("org.freedesktop.DBus"),
		dbus.FieldMember:      dbus.MakeVariant("Hello"),
	}})
	if <-hello.Done; hello.Err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("say hello to the bus: %w", hello.Err)
	}
	return c, nil
}

// Close ends the connection. Calls that wait end with an error.
func (c *Caller) Close() error { return c.conn.Close() }

// Go sends a call. It is on the wire, or has failed, when Go returns.
func (c *Caller) Go(m *dbus.Message) *Call {
	call := &Call{Done: make(chan struct{})}
	added := false
	serial, err := c.conn.SendThen(m, func(serial uint32) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if added = c.err == nil; added {
			c.waiting[serial] = call
		}
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !added:
		call.end(nil, cmp.Or(err, c.err))
	case err != nil && c.waiting[serial] == call:
		delete(c.waiting, serial)
		call.end(nil, err)
	}
	return call
}

func (call *Call) end(body []any, err error) {
	call.Body, call.Err = body, err
	close(call.Done)
}

// read hands answers out until the connection ends.
func (c *Caller) read() {
	for {
		buf, fds, err := c.conn.Receive()
		if err != nil {
			c.fail(err)
			return
		}
		if t := dbus.Type(buf[1]); t == dbus.TypeMethodReply || t == dbus.TypeError {
			err = c.take(buf, fds)
		} else {
			CloseAll(fds)
		}
		clear(buf)
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// fail ends all calls.
func (c *Caller) fail(err error) {
	c.mu.Lock()
	c.err = err
	list := c.waiting
	c.waiting = map[uint32]*Call{}
	c.mu.Unlock()
	for _, call := range list {
		call.end(nil, err)
	}
	_ = c.conn.Close()
}

// take hands one answer out, and closes the descriptors that it does not show.
// Whose answer it is that cannot be read, cannot be known.
func (c *Caller) take(buf []byte, fds []int) error {
	m, err := decode(buf, fds)
	shown := map[int]bool{}
	if err == nil {
		for _, v := range m.Body {
			if fd, ok := v.(dbus.UnixFD); ok {
				shown[int(fd)] = true
			}
		}
	}
	for _, fd := range fds {
		if !shown[fd] {
			CloseAll([]int{fd})
		}
	}
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	serial, _ := m.Headers[dbus.FieldReplySerial].Value().(uint32)
	c.mu.Lock()
	call := c.waiting[serial]
	delete(c.waiting, serial)
	c.mu.Unlock()
	switch {
	case call == nil:
		for fd := range shown {
			CloseAll([]int{fd})
		}
	case m.Type == dbus.TypeError:
		name, _ := m.Headers[dbus.FieldErrorName].Value().(string)
		for fd := range shown {
			CloseAll([]int{fd})
		}
		call.Sender, _ = m.Headers[dbus.FieldSender].Value().(string)
		call.end(nil, dbus.Error{Name: name, Body: m.Body})
	default:
		call.end(m.Body, nil)
	}
	return nil
}

// decode has godbus read a message. What it makes of one that it does not
// understand is an error, never a panic of ours.
func decode(buf []byte, fds []int) (m *dbus.Message, err error) {
	defer func() {
		if r := recover(); r != nil {
			m, err = nil, errors.New("the message cannot be decoded")
		}
	}()
	return dbus.DecodeMessageWithFDs(bytes.NewReader(buf), fds)
}
