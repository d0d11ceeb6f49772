package home1

import (
	"encoding/xml"
	"io"
	"os"
	"reflect"
	"syscall"
	"testing"

	"github.com/godbus/dbus/v5"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
)

// TestOwnTable: our methods are the manager's with descriptors for texts that
// may hold a password, guarded the same, and the bus lets these pass and no
// others.
func TestOwnTable(t *testing.T) {
	want := map[string]string{
		"ActivateHome": "sh", "ActivateHomeIfReferenced": "sh", "CreateHome": "h", "CreateHomeEx": "ha{sh}t", "RealizeHome": "sh",
		"FixateHome": "sh", "AuthenticateHome": "sh", "UpdateHome": "h", "UpdateHomeEx": "ha{sh}t", "ResizeHome": "sth",
		"ChangePasswordHome": "shh", "UnlockHome": "sh", "AcquireHome": "shb",
	}
	got := map[string]string{}
	for _, m := range OwnManager.Methods {
		got[m.Name] = m.InSignature()
		plain := *Manager.Method(m.Name)
		if len(plain.In) != len(m.In) {
			t.Errorf("%s has %d arguments", m.Name, len(m.In))
		}
		m.In, plain.In = nil, nil
		if !reflect.DeepEqual(m, plain) || !m.Sensitive {
			t.Errorf("%+v, plain %+v", m, plain)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("methods are %v", got)
	}
	text, err := os.ReadFile("../../cmd/homed/system/org.freedesktop.home1.conf")
	if err != nil {
		t.Fatal(err)
	}
	var policy struct {
		Policies []struct {
			Context string `xml:"context,attr"`
			User    string `xml:"user,attr"`
			Allow   []struct {
				Own    string `xml:"own,attr"`
				Dest   string `xml:"send_destination,attr"`
				Iface  string `xml:"send_interface,attr"`
				Member string `xml:"send_member,attr"`
			} `xml:"allow"`
		} `xml:"policy"`
	}
	if err := xml.Unmarshal(text, &policy); err != nil {
		t.Fatal(err)
	}
	owner, allowed := "", map[string]bool{}
	for _, p := range policy.Policies {
		for _, a := range p.Allow {
			if a.Own == OwnName {
				owner += p.User + p.Context
			}
			if a.Dest == OwnName {
				if a.Iface != OwnInterface || p.Context != "default" || OwnManager.Method(a.Member) == nil {
					t.Errorf("the bus allows %+v", a)
				}
				allowed[a.Member] = true
			}
		}
	}
	if owner != "root" || len(allowed) != len(want) {
		t.Errorf("the name is for %q, %d methods are allowed", owner, len(allowed))
	}
}

// counting is a service that notes what it is asked and answers each call with
// the same error.
type counting struct {
	got    chan string
	answer *dbus.Error
}

func (s *counting) AuthenticateHome(_, text string) *dbus.Error {
	s.got <- "plain " + text
	return s.answer
}

// sealed is the same with a descriptor.
type sealed struct {
	got    chan string
	answer *dbus.Error
}

func (s *sealed) AuthenticateHome(_ string, fd dbus.UnixFD) *dbus.Error {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		text = []byte(err.Error())
	}
	s.got <- "sealed " + string(text)
	return s.answer
}

// TestFallBack: where our own interface is missing the plain method is called,
// and from then on alone. Every other answer stands: a second try would count a
// wrong password twice.
func TestFallBack(t *testing.T) {
	text := `{"password":["geheim"]}`
	pw, err := secret.Copy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close()
	wrong := &dbus.Error{Name: Name + ".BadPassword", Body: []any{"no"}}
	for what, c := range map[string]struct {
		own    *dbus.Error // the answer of our interface
		absent bool        // the name has no owner
		other  bool        // the name is served, the interface not
		want   []string    // two calls
		kind   fault.Kind
	}{
		"no such name":      {absent: true, want: []string{"plain", "plain"}, kind: fault.BadPassword},
		"no such object":    {other: true, want: []string{"plain", "plain"}, kind: fault.BadPassword},
		"unknown method":    {own: &dbus.ErrMsgUnknownMethod, want: []string{"sealed", "plain", "plain"}, kind: fault.BadPassword},
		"bad password":      {own: wrong, want: []string{"sealed", "sealed"}, kind: fault.BadPassword},
		"denied by polkit":  {own: dbus.NewError("org.freedesktop.DBus.Error.AccessDenied", nil), want: []string{"sealed", "sealed"}, kind: fault.AccessDenied},
		"no answer in time": {own: dbus.NewError("org.freedesktop.DBus.Error.NoReply", nil), want: []string{"sealed", "sealed"}, kind: fault.FromBus("org.freedesktop.DBus.Error.NoReply")},
		"pretended absence": {own: dbus.NewError("org.freedesktop.DBus.Error.ServiceUnknown", nil), want: []string{"sealed", "sealed"}, kind: fault.ServiceUnknown},
	} {
		t.Run(what, func(t *testing.T) {
			address := testenv.Bus(t)
			srv, err := dbus.Connect(address)
			if err != nil {
				t.Fatal(err)
			}
			defer srv.Close()
			got := make(chan string, 8)
			if err := srv.Export(&counting{got, wrong}, ManagerPath, ManagerInterface); err != nil {
				t.Fatal(err)
			}
			if !c.other {
				if err := srv.Export(&sealed{got, c.own}, OwnPath, OwnInterface); err != nil {
					t.Fatal(err)
				}
			}
			names := []string{Name, OwnName}
			if c.absent {
				names = names[:1]
			}
			for _, name := range names {
				if _, err := srv.RequestName(name, 0); err != nil {
					t.Fatal(err)
				}
			}
			client, err := DialAddress(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			before := openFiles(t)
			for range 2 {
				if err := client.AuthenticateHome(t.Context(), "ann", pw); fault.KindOf(err) != c.kind {
					t.Errorf("answer is %v (%s)", err, fault.KindOf(err))
				}
			}
			// godbus, the service here, leaves those open that no method of its takes.
			if after := openFiles(t); after > before && !c.other {
				t.Errorf("%d files open, %d before", after, before)
			}
			var list []string
			for len(got) > 0 {
				list = append(list, <-got)
			}
			for i := range c.want {
				c.want[i] += " " + text
			}
			if !reflect.DeepEqual(list, c.want) {
				t.Errorf("the service got %q, want %q", list, c.want)
			}
			if plain := client.plain.Load(); plain != (c.want[len(c.want)-1] == "plain "+text) {
				t.Errorf("remembered is %v", plain)
			}
		})
	}
}

// TestSealedByClient: the memfd is one that nobody can change; without a secret
// there is nothing to hide, and the plain method is called at once.
func TestSealedByClient(t *testing.T) {
	f, err := seal(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if text, err := io.ReadAll(f); err != nil || string(text) != "{}" {
		t.Errorf("no secrets are %q, %v", text, err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written")
	}
	if err := syscall.Ftruncate(int(f.Fd()), 0); err == nil {
		t.Error("it can be cut")
	}
	if carriesSecret([]any{"ann", (*secret.Bytes)(nil), true}) {
		t.Error("nothing is a secret")
	}
}
