package bus

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/internal/testenv"
)

// inhibited is one inhibitor that was asked for.
type inhibited struct {
	by  string
	how []any
	end *os.File // ends when the inhibitor is let go of
}

// fakeLogin is a login manager that gives inhibitors away. What is sent after
// one was seen comes after the answer that held it.
type fakeLogin struct{ *conn }

func startLogin(t *testing.T, address string, given chan<- inhibited) fakeLogin {
	t.Helper()
	c, err := connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_, err = c.callDriver("Hello")
	if err == nil {
		_, err = c.callDriver("RequestName", loginName, uint32(0))
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			m, err := c.read()
			if err != nil {
				return
			}
			if m.typ == typeCall && m.iface == loginManager && m.member == "Inhibit" {
				i := inhibited{by: m.sender}
				how, err := m.arguments()
				for _, a := range how {
					i.how = append(i.how, string(a.([]byte)))
				}
				r, w, perr := os.Pipe()
				if err = errors.Join(err, perr); err == nil {
					err = c.reply(m, []any{dbus.UnixFD(w.Fd())})
					_ = w.Close()
				}
				if err != nil {
					t.Error(err)
					return
				}
				i.end = r
				given <- i
			}
			m.close()
		}
	}()
	return fakeLogin{c}
}

func (l fakeLogin) sleeps(t *testing.T, yes bool) {
	t.Helper()
	_, err := l.Send(&dbus.Message{Type: dbus.TypeSignal, Body: []any{yes}, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldPath: dbus.ObjectPath(loginPath), dbus.FieldInterface: loginManager, dbus.FieldMember: "PrepareForSleep",
	}, []any{yes})})
	if err != nil {
		t.Fatal(err)
	}
}

// lockers is asked to lock homes, and says when it has.
type lockers struct{ asked, done chan error }

func (l lockers) Do(_ context.Context, op manager.Operation) (manager.Result, error) {
	if op.Verb != home.LockAll || op.Caller != 0 {
		return manager.Result{}, errors.New("that is not what was to be asked for")
	}
	l.asked <- nil
	return manager.Result{}, <-l.done
}

// List has one home that is locked, and one that is not.
func (lockers) List(context.Context) ([]manager.Info, error) {
	return []manager.Info{{Name: "ann", State: "inactive"}, {Name: "bob", State: "locked"}}, nil
}

func within[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(10 * time.Second):
		t.Fatal("never: " + what)
	}
	return v
}

// ended says whether the inhibitor is let go of, waiting for it for as long.
func (i inhibited) ended(t *testing.T, wait time.Duration) bool {
	t.Helper()
	if err := i.end.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	_, err := i.end.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

// TestSleep: the machine waits until homes are locked, each time it sleeps,
// also with a login manager that came later; and nobody else has them locked.
func TestSleep(t *testing.T) {
	address := testenv.Bus(t)
	homes := lockers{make(chan error, 10), make(chan error, 10)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	knob, note := filepath.Join(t.TempDir(), "sync"), filepath.Join(t.TempDir(), "note")
	syncs := func(want string) {
		t.Helper()
		text, err := os.ReadFile(knob)
		_, noted := os.Lstat(note)
		if err != nil || strings.TrimSpace(string(text)) != want || (noted == nil) != (want == "0") {
			t.Errorf("the knob is %q, %v, the note %v, want %s", text, err, noted, want)
		}
	}
	// Left by one that was killed.
	if err := errors.Join(os.WriteFile(knob, []byte("0\n"), 0o600), os.WriteFile(note, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	go func() {
		ended <- Sleep{Homes: homes, Address: address, Log: slog.New(slog.DiscardHandler), Knob: knob, Note: note}.Watch(ctx)
	}()

	inhibitors := make(chan inhibited, 10)
	first := startLogin(t, address, inhibitors)
	i := within(t, "an inhibitor", inhibitors)
	syncs("1")
	if i.how[0] != "sleep" || i.how[3] != "delay" {
		t.Errorf("inhibited is %q", i.how)
	}

	// Strangers say the same, to all and to us alone.
	stranger, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Close() }()
	if err := stranger.Emit(loginPath, loginManager+".PrepareForSleep", true); err != nil {
		t.Fatal(err)
	}
	for _, body := range [][]any{{true}, {"yes"}, {}, {true, true}} {
		m := &dbus.Message{Type: dbus.TypeSignal, Body: body, Headers: headers(map[dbus.HeaderField]any{
			dbus.FieldDestination: i.by, dbus.FieldPath: dbus.ObjectPath(loginPath), dbus.FieldInterface: loginManager, dbus.FieldMember: "PrepareForSleep",
		}, body)}
		if c := stranger.Send(m, nil); c.Err != nil {
			t.Fatal(c.Err)
		}
	}

	for range 2 {
		first.sleeps(t, true)
		within(t, "homes are to be locked", homes.asked)
		if i.ended(t, 300*time.Millisecond) {
			t.Error("the machine may sleep while homes are being locked")
		}
		homes.done <- nil
		if !i.ended(t, 10*time.Second) {
			t.Error("the machine waits for nothing")
		}
		syncs("0")
		first.sleeps(t, false)
		i = within(t, "another inhibitor after the sleep", inhibitors)
		syncs("1")
	}

	// What cannot be locked holds nobody up.
	first.sleeps(t, true)
	within(t, "homes are to be locked", homes.asked)
	homes.done <- errors.New("cannot be locked")
	if !i.ended(t, 10*time.Second) {
		t.Error("the machine waits for a home that cannot be locked")
	}
	first.sleeps(t, false)
	i = within(t, "another inhibitor after the sleep", inhibitors)

	_ = first.Close()
	if !i.ended(t, 10*time.Second) {
		t.Error("an inhibitor of a login manager that is gone is kept")
	}
	second := startLogin(t, address, inhibitors)
	i = within(t, "an inhibitor of the next login manager", inhibitors)
	second.sleeps(t, true)
	within(t, "homes are to be locked", homes.asked)
	homes.done <- nil
	if !i.ended(t, 10*time.Second) {
		t.Error("the machine waits for nothing")
	}
	if len(homes.asked) != 0 {
		t.Error("somebody else had homes locked")
	}
	cancel()
	if err := within(t, "the end", ended); err != nil {
		t.Error(err)
	}
}
