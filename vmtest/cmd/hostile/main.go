// Command hostile is a client of the home service that nobody would want, in a
// guest: it asks a thousand things in one go, passes descriptors where none
// belong, sends records of a megabyte, reads no answers and leaves in the
// middle. What may be seen from its side it judges itself: each call is
// answered once and in order, others are served meanwhile. It ends with a line,
// RESULT, and exit status 1 where it found something; whether anything is left
// in the service, its caller looks.
package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"hearth/internal/busconn"
)

const (
	address = "unix:path=/run/dbus/system_bus_socket"
	name    = "org.freedesktop.home1"
	manager = dbus.ObjectPath("/org/freedesktop/home1")
	limit   = time.Minute // for an answer, on the slowest machine
)

// client is a connection that has said Hello.
type client struct{ *busconn.Conn }

func dial() (*client, error) {
	c, err := busconn.Connect(address)
	if err != nil {
		return nil, err
	}
	hello := call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
	serial, err := c.Send(hello)
	if err == nil {
		_, err = (&client{c}).answers(serial, 1)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return &client{c}, nil
}

func call(destination string, path dbus.ObjectPath, iface, member string, body ...any) *dbus.Message {
	m := &dbus.Message{Type: dbus.TypeMethodCall, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(destination),
		dbus.FieldPath:        dbus.MakeVariant(path),
		dbus.FieldInterface:   dbus.MakeVariant(iface),
		dbus.FieldMember:      dbus.MakeVariant(member),
	}, Body: body}
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	return m
}

func ask(member string, body ...any) *dbus.Message {
	return call(name, manager, name+".Manager", member, body...)
}

// An answer is the serial of a call and the error's name, if it is one.
type answer struct {
	serial uint32
	err    string
}

// answers reads those to n calls, of which first has the lowest serial.
func (c *client) answers(first uint32, n int) (out []answer, err error) {
	_ = c.SetReadDeadline(time.Now().Add(limit))
	seen := map[uint32]bool{}
	for len(out) < n {
		buf, fds, err := c.Receive()
		busconn.CloseAll(fds)
		if err != nil {
			return out, fmt.Errorf("after %d of %d answers: %w", len(out), n, err)
		}
		m, err := dbus.DecodeMessage(bytes.NewReader(buf))
		if err != nil {
			return out, err
		}
		if m.Type != dbus.TypeMethodReply && m.Type != dbus.TypeError {
			continue
		}
		a := answer{}
		a.serial, _ = m.Headers[dbus.FieldReplySerial].Value().(uint32)
		a.err, _ = m.Headers[dbus.FieldErrorName].Value().(string)
		if a.serial < first {
			continue // the bus says that a signal was not let through
		}
		if seen[a.serial] {
			return out, fmt.Errorf("call %d is answered again", a.serial)
		}
		seen[a.serial] = true
		out = append(out, a)
	}
	return out, nil
}

// send makes calls and returns the serial of the first.
func (c *client) send(list ...*dbus.Message) (first uint32, err error) {
	for i, m := range list {
		serial, err := c.Send(m)
		if err != nil {
			return 0, err
		}
		if i == 0 {
			first = serial
		}
	}
	return first, nil
}

// pipelined makes a thousand calls without waiting for an answer. The bus
// itself refuses those that are too many at once; the service's are in order.
func pipelined(user string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	const n = 1000
	sent := make(chan error, 1)
	go func() {
		for i := range n {
			m := ask("GetHomeByName", user)
			switch i % 4 {
			case 1:
				m = ask("GetUserRecordByName", user)
			case 2:
				m = ask("GetHomeByName", "nosuch")
			case 3:
				m = ask("ListHomes")
			}
			if _, err := c.Send(m); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	got, err := c.answers(2, n) // Hello was the first
	if err != nil {
		return err
	}
	last, served := uint32(0), 0
	for _, a := range got {
		switch {
		case a.err == "org.freedesktop.DBus.Error.LimitsExceeded":
			continue
		case (a.serial-2)%4 == 2 && a.err != name+".NoSuchHome", (a.serial-2)%4 != 2 && a.err != "":
			return fmt.Errorf("call %d is answered %q", a.serial, a.err)
		case a.serial < last:
			return fmt.Errorf("call %d is answered after %d", a.serial, last)
		}
		last = a.serial
		served++
	}
	if served < 100 {
		return fmt.Errorf("only %d of %d calls were served", served, n)
	}
	return <-sent
}

// descriptors passes some where none belong.
func descriptors(user string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	fd := dbus.UnixFD(w.Fd())
	for range 100 {
		signal := ask("Changed", map[string]dbus.UnixFD{"x": fd}, []dbus.UnixFD{fd, fd})
		signal.Type = dbus.TypeSignal
		first, err := c.send(signal,
			ask("GetHomeByName", user, fd),
			ask("Nope", []dbus.UnixFD{fd, fd, fd}),
			ask("CreateHomeEx", "{}", map[string]dbus.UnixFD{"avatar": fd, "a/b": fd}, uint64(0)),
			ask("CreateHomeEx", `{"userName":"xx","disposition":"regular"}`, map[string]dbus.UnixFD{"avatar": fd}, uint64(0)))
		if err != nil {
			return err
		}
		got, err := c.answers(first+1, 4)
		if err != nil {
			return err
		}
		for _, a := range got {
			if a.err == "" {
				return fmt.Errorf("call %d succeeds", a.serial-first)
			}
		}
	}
	return nil
}

// large sends what has the size of a megabyte.
func large(string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	long := strings.Repeat("x", 1<<20)
	for _, m := range []*dbus.Message{
		ask("CreateHome", `{"userName":"xx","disposition":"regular","realName":"`+long+`"}`),
		ask("CreateHome", `{"userName":`+strings.Repeat("[", 1<<20)),
		ask("CreateHome", `{"userName":"xx","disposition":"regular","memberOf":[`+strings.Repeat(`"audio",`, 1<<17)+`"video"]}`),
		ask("AuthenticateHome", long, "{}"),
		ask("AcquireHome", "xx", `{"password":["`+long+`"]}`, false),
		ask("GetHomeByName", long),
		call(name, manager+"/home/"+dbus.ObjectPath(long), name+".Home", "Authenticate", "{}"),
	} {
		first, err := c.send(m)
		if err != nil {
			return err
		}
		got, err := c.answers(first, 1)
		if err != nil {
			return err
		}
		if got[0].err == "" {
			return fmt.Errorf("%v succeeds", m.Headers[dbus.FieldMember])
		}
	}
	return nil
}

// silent asks for much and reads nothing, while another is served.
func silent(user string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second)) // the bus stops reading from it at some point
	for range 3000 {
		if _, err := c.Send(ask("ListHomes")); err != nil {
			break
		}
	}
	other, err := dial()
	if err != nil {
		return err
	}
	defer other.Close()
	for range 20 {
		first, err := other.send(ask("GetHomeByName", user))
		if err != nil {
			return err
		}
		got, err := other.answers(first, 1)
		if err != nil {
			return err
		}
		if got[0].err != "" {
			return fmt.Errorf("another is answered %s", got[0].err)
		}
	}
	return nil
}

// leaving asks and is gone.
func leaving(user string) error {
	for range 100 {
		c, err := dial()
		if err != nil {
			return err
		}
		_, err = c.send(ask("ListHomes"), ask("GetUserRecordByName", user), ask("AcquireHome", user, "{}", false))
		if cerr := c.Close(); err != nil || cerr != nil {
			return fmt.Errorf("%v, %v", err, cerr)
		}
	}
	return nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: hostile USER")
		os.Exit(2)
	}
	found := 0
	for _, s := range []struct {
		what string
		f    func(string) error
	}{{"a thousand calls", pipelined}, {"descriptors", descriptors}, {"megabytes", large}, {"silent", silent}, {"leaving", leaving}} {
		if err := s.f(os.Args[1]); err != nil {
			fmt.Printf("FOUND %s: %v\n", s.what, err)
			found++
		}
	}
	fmt.Printf("RESULT hostile client: found %d\n", found)
	if found > 0 {
		os.Exit(1)
	}
}
