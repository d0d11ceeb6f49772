package home1

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
)

// flatten turns a document into its elements in order, attributes as a set, so
// that two documents compare by what they say.
func flatten(t *testing.T, text string) []string {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	var out []string
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := tok.(type) {
		case xml.StartElement:
			at := map[string]string{}
			for _, a := range e.Attr {
				at[a.Name.Local] = a.Value
			}
			out = append(out, e.Name.Local+" "+at["name"]+" "+at["type"]+" "+at["direction"]+" "+at["access"]+" "+at["value"])
		case xml.EndElement:
			out = append(out, "/"+e.Name.Local)
		}
	}
}

func TestIntrospectionEqualsTheOriginal(t *testing.T) {
	for file, doc := range map[string]string{
		"home1.xml":            Introspect([]*Interface{Manager}, []string{"home"}),
		"home1-home.xml":       Introspect([]*Interface{ObjectManager}, []string{"alice"}),
		"home1-home-alice.xml": Introspect([]*Interface{Home}, nil),
		"home1-home-uid.xml":   Introspect([]*Interface{Home}, nil),
		"LogControl1.xml":      Introspect([]*Interface{LogControl}, nil),
		"root.xml":             Introspect(nil, []string{"org"}),
		"org.xml":              Introspect(nil, []string{"freedesktop"}),
		"org-freedesktop.xml":  Introspect(nil, []string{"LogControl1", "home1"}),
	} {
		want, err := os.ReadFile(filepath.Join("../../fixtures/systemd-262-bus/introspection", file))
		if err != nil {
			t.Fatal(err)
		}
		got, exp := flatten(t, doc), flatten(t, string(want))
		for i := range exp {
			if i >= len(got) || got[i] != exp[i] {
				t.Errorf("%s: element %d is %q, want %q", file, i, append(got, make([]string, len(exp))...)[i], exp[i])
				break
			}
		}
		if len(got) > len(exp) {
			t.Errorf("%s: %d elements too many", file, len(got)-len(exp))
		}
	}
}

// TestEveryMethodIsGuarded holds the table of the bus reference: which members
// are open to everybody is a short list, and a new one must be put there.
func TestEveryMethodIsGuarded(t *testing.T) {
	open := map[string]bool{"GetHomeByName": true, "GetHomeByUID": true, "GetUserRecordByName": true, "GetUserRecordByUID": true,
		"ListHomes": true, "AcquireHome": true, "ListSigningKeys": true, "GetSigningKey": true}
	for _, i := range []*Interface{Manager, Home, OwnManager} {
		for _, m := range i.Methods {
			guarded := m.Privileged || m.Action != ""
			if guarded == open[m.Name] {
				t.Errorf("%s.%s: guarded is %v", i.Name, m.Name, guarded)
			}
			for _, a := range m.In {
				if (strings.Contains(a.Name, "secret") || a.Name == "user_record") && !m.Sensitive {
					t.Errorf("%s takes %s but is not sensitive", m.Name, a.Name)
				}
			}
		}
	}
}

func TestLabels(t *testing.T) {
	for text, label := range map[string]string{"alice": "alice", "a_b1-c": "a_5fb1_2dc", "carol-x": "carol_2dx", "": "_", "60456": "_360456", "é": "_c3_a9"} {
		if got := EscapeLabel(text); got != label {
			t.Errorf("EscapeLabel(%q) = %q, want %q", text, got, label)
		}
		if got := UnescapeLabel(label); got != text {
			t.Errorf("UnescapeLabel(%q) = %q, want %q", label, got, text)
		}
	}
	for label, text := range map[string]string{"60456": "60456", "a_2Dx": "a-x", "a_zz": "a_zz", "a_": "a_", "a_2": "a_2", "_+f": "_+f"} {
		if got := UnescapeLabel(label); got != text {
			t.Errorf("UnescapeLabel(%q) = %q, want %q", label, got, text)
		}
	}
}

func TestJoinSecret(t *testing.T) {
	s, err := secret.Copy([]byte(`{"password":["x"]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for record, want := range map[string]string{
		`{"userName":"ann"}`: `{"userName":"ann","secret":{"password":["x"]}}`,
		"{}\n":               `{"secret":{"password":["x"]}}`,
		"{ }":                `{ "secret":{"password":["x"]}}`,
	} {
		j, err := JoinSecret([]byte(record), s)
		if err != nil {
			t.Fatal(err)
		}
		_ = j.Use(func(p []byte) error {
			if string(p) != want {
				t.Errorf("joined is %s, want %s", p, want)
			}
			return nil
		})
		j.Close()
	}
	if _, err := JoinSecret([]byte("[]"), s); err == nil {
		t.Error("an array was taken for a record")
	}
}

// service answers a few methods of the interface and remembers what it got.
type service struct {
	got   chan []any
	flags chan dbus.Flags
}

func (s *service) AcquireHome(name, section string, suspend bool) (dbus.UnixFD, *dbus.Error) {
	s.got <- []any{name, section, suspend}
	if name == "busy" {
		return 0, &dbus.Error{Name: "org.freedesktop.home1.HomeBusy", Body: []any{"Home busy is busy."}}
	}
	var p [2]int
	_ = syscall.Pipe(p[:])
	return dbus.UnixFD(p[1]), nil
}

func (s *service) ActivateHome(msg dbus.Message, _, section string) *dbus.Error {
	s.flags <- msg.Flags
	return &dbus.Error{Name: "org.freedesktop.home1.BadPassword", Body: []any{"no"}}
}

func (s *service) ReleaseHome(string) *dbus.Error {
	time.Sleep(time.Second)
	return nil
}

func TestClient(t *testing.T) {
	addr := testenv.Bus(t)
	srv, err := dbus.Connect(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	ctx := context.Background()
	c, err := DialAddress(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	if _, err := c.GetHomeByName(ctx, "ann"); fault.KindOf(err) != fault.ServiceUnknown {
		t.Errorf("without a service: %v (%s)", err, fault.KindOf(err))
	}
	s := &service{got: make(chan []any, 4), flags: make(chan dbus.Flags, 1)}
	if err := srv.Export(s, ManagerPath, ManagerInterface); err != nil {
		t.Fatal(err)
	}
	if _, err := srv.RequestName(Name, 0); err != nil {
		t.Fatal(err)
	}
	pw, err := secret.Copy([]byte(`{"password":["geheim"]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close()

	ref, err := c.AcquireHome(ctx, "ann", pw, true)
	if err != nil {
		t.Fatal(err)
	}
	if got := <-s.got; !reflect.DeepEqual(got, []any{"ann", `{"password":["geheim"]}`, true}) {
		t.Errorf("the service got %v", got)
	}
	if _, err := ref.Write([]byte("x")); err != nil {
		t.Errorf("the reference is not the pipe's end: %v", err)
	}
	ref.Close()

	_, err = c.AcquireHome(ctx, "busy", nil, false)
	if got := <-s.got; got[1] != "{}" {
		t.Errorf("no secrets were sent as %v", got[1])
	}
	if fault.KindOf(err) != fault.HomeBusy || fault.Public(err) != "Home busy is busy." {
		t.Errorf("error is %v, kind %s, text %q", err, fault.KindOf(err), fault.Public(err))
	}
	if err := c.ActivateHome(ctx, "ann", pw); fault.KindOf(err) != fault.BadPassword {
		t.Errorf("error is %v", err)
	}
	if f := <-s.flags; f&dbus.FlagAllowInteractiveAuthorization == 0 {
		t.Error("a guarded call does not allow interactive authorization")
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := c.ReleaseHome(short, "ann"); fault.KindOf(err) != fault.Timeout {
		t.Errorf("a caller that leaves gets %v", err)
	}
	if _, err := DialAddress(ctx, "unix:path=/nonexistent/bus"); fault.KindOf(err) != fault.ServiceUnknown {
		t.Errorf("no bus at all: %v", err)
	}
}
