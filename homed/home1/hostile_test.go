package home1

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"hearth/internal/fault"
	"hearth/internal/testenv"
)

// TestSignalsFromStrangers: anybody may send a signal to anybody on the bus.
// Whatever is in it, the client lives on and keeps none of its descriptors.
func TestSignalsFromStrangers(t *testing.T) {
	address := testenv.Bus(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := dbus.UnixFD(null.Fd())
	var most []dbus.UnixFD // that dbus-daemon lets pass
	for range 16 {
		most = append(most, fd)
	}
	type pair struct {
		A string
		H dbus.UnixFD
	}
	for what, body := range map[string][]any{
		"nothing":              nil,
		"h":                    {fd},
		"ah":                   {[]dbus.UnixFD{fd, fd}},
		"many":                 {most},
		"a{sh}":                {map[string]dbus.UnixFD{"a": fd}},
		"(sh)":                 {pair{"a", fd}},
		"a(sh)":                {[]pair{{"a", fd}, {"b", fd}}},
		"h in a variant":       {dbus.MakeVariant(fd)},
		"ah in a variant":      {dbus.MakeVariant([]dbus.UnixFD{fd})},
		"a megabyte":           {strings.Repeat("x", 1<<20)},
		"descriptors unspoken": {"x"},
	} {
		t.Run(what, func(t *testing.T) {
			c, err := DialAddress(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			mallory, err := dbus.Connect(address)
			if err != nil {
				t.Fatal(err)
			}
			defer mallory.Close()
			name := other(t, mallory)
			before := openFiles(t)
			for range 20 {
				m := &dbus.Message{Type: dbus.TypeSignal, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
					dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath("/x")),
					dbus.FieldInterface:   dbus.MakeVariant("a.b"),
					dbus.FieldMember:      dbus.MakeVariant("C"),
					dbus.FieldDestination: dbus.MakeVariant(name),
				}}
				if len(body) > 0 {
					m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
				}
				mallory.Send(m, nil)
			}
			if err := mallory.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil {
				t.Fatal(err)
			}
			// Who answers is the bus: nobody has the name.
			if _, err := c.GetHomeByName(t.Context(), "ann"); fault.KindOf(err) != fault.ServiceUnknown {
				t.Errorf("the client's next call: %v", err)
			}
			for end := time.Now().Add(5 * time.Second); openFiles(t) > before; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d files are open, %d were before", openFiles(t), before)
				}
			}
		})
	}
}

// other is the name on the bus that is not mallory's.
func other(t *testing.T, mallory *dbus.Conn) string {
	t.Helper()
	var names []string
	if err := mallory.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, ":") && n != mallory.Names()[0] {
			return n
		}
	}
	t.Fatalf("only %q are there", names)
	return ""
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
