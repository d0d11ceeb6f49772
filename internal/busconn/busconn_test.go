package busconn_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"hearth/internal/busconn"
	"hearth/internal/testenv"
)

func call(dest, iface, member string, body ...any) *dbus.Message {
	m := &dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(dest),
		dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath("/x")),
		dbus.FieldInterface:   dbus.MakeVariant(iface),
		dbus.FieldMember:      dbus.MakeVariant(member),
	}}
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	return m
}

// service answers Echo with its argument, Fail with an error, and Wait never.
type service struct{}

func (service) Echo(s string) (string, *dbus.Error) { return s, nil }
func (service) Fail() *dbus.Error                   { return dbus.NewError("a.b.Wrong", []any{"why"}) }
func (service) Wait() *dbus.Error                   { select {} }

func TestCalls(t *testing.T) {
	address := testenv.Bus(t)
	s, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Export(service{}, "/x", "a.b"); err != nil {
		t.Fatal(err)
	}
	name := s.Names()[0]
	c, err := busconn.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			text := strings.Repeat("x", i*1000)
			a := c.Go(call(name, "a.b", "Echo", text))
			if <-a.Done; a.Err != nil || len(a.Body) != 1 || a.Body[0] != text {
				t.Errorf("echo of %d bytes: %v", len(text), a.Err)
			}
		})
	}
	all.Wait()
	a := c.Go(call(name, "a.b", "Fail"))
	<-a.Done
	var e dbus.Error
	if !errors.As(a.Err, &e) || e.Name != "a.b.Wrong" || e.Error() != "why" {
		t.Errorf("an error: %v", a.Err)
	}
	a = c.Go(call(name, "a.b", "Echo", "no \xff UTF-8"))
	var f dbus.FormatError
	if <-a.Done; !errors.As(a.Err, &f) {
		t.Errorf("what cannot be sent: %v", a.Err)
	}
	// A call that waits ends with the connection, and one made after it too.
	a = c.Go(call(name, "a.b", "Wait"))
	select {
	case <-a.Done:
		t.Errorf("it is answered: %v", a.Err)
	case <-time.After(20 * time.Millisecond):
	}
	_ = c.Close()
	if <-a.Done; a.Err == nil {
		t.Error("a call survives its connection")
	}
	a = c.Go(call(name, "a.b", "Echo", "x"))
	if <-a.Done; a.Err == nil {
		t.Error("a closed connection answers")
	}
	if _, err := busconn.Dial("unix:path=/nonexistent"); err == nil {
		t.Error("a bus that is not there answers")
	}
	if _, err := busconn.Dial("tcp:host=localhost"); err == nil || !strings.Contains(err.Error(), "not a unix socket") {
		t.Errorf("another transport: %v", err)
	}
}
