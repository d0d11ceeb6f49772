package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/internal/busconn"
)

const (
	loginName    = "org.freedesktop.login1"
	loginPath    = "/org/freedesktop/login1"
	loginManager = loginName + ".Manager"
	// lockTime bounds how long all homes together may take to be locked. The
	// login manager waits for less, and lets the machine sleep then.
	lockTime = time.Minute
)

// Sleep has the homes locked that may be when the machine sleeps, by what the
// login manager says. It is for machines where nobody else asks for that:
// systemd-sleep calls LockAllHomes itself, elogind does not.
//
// Before it sleeps the kernel writes out all file systems, and waits for those
// that take no write: a locked home of ext4, and the machine stays awake. So
// they are written out before, and where a home is locked the kernel is told not
// to, until the machine is awake again. cmd/homed/system/sleep.in does the same
// for systemd-sleep, with the same note, and both may be there.
type Sleep struct {
	Homes interface {
		Do(context.Context, manager.Operation) (manager.Result, error)
		List(context.Context) ([]manager.Info, error)
	}
	Address string // of the bus; "" = the system's
	Log     *slog.Logger
	// Knob is the kernel's, Note a file that says that it was switched off; "" =
	// the true ones.
	Knob, Note string
}

const (
	syncKnob = "/sys/power/sync_on_suspend"
	syncNote = "/run/hearth-sync-on-suspend"
)

// sleeper is what Sleep knows while it watches.
type sleeper struct {
	Sleep
	conn *conn
	// login is the connection that is the login manager: anybody may send us a
	// signal of that name. "" while there is none.
	login string
	asked uint32   // the serial of the call whose answer says who it is
	wants uint32   // and of the one that is answered by an inhibitor
	holds *os.File // the inhibitor, with which the machine waits for us
	// sleeps says that the machine is about to, or was when we last heard of it.
	sleeps bool
}

// Watch returns nil when ctx ends, and ErrLost when the bus does.
func (s Sleep) Watch(ctx context.Context) error {
	c, err := connect(cmp.Or(s.Address, busconn.SystemBus))
	if err != nil {
		return fmt.Errorf("watch for sleep: %w", err)
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	s.Knob, s.Note = cmp.Or(s.Knob, syncKnob), cmp.Or(s.Note, syncNote)
	w := &sleeper{Sleep: s, conn: c}
	w.syncAgain() // one that was killed while the machine slept
	defer w.letGo()
	err = w.begin()
	for err == nil {
		var m *message
		if m, err = c.read(); errors.Is(err, errMalformed) && m != nil {
			m.close()
			err = nil
			continue
		}
		if err == nil {
			err = w.take(ctx, m)
			m.close()
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch for sleep: %w: %w", ErrLost, err)
}

func (w *sleeper) begin() (err error) {
	_, err = w.conn.callDriver("Hello")
	for _, rule := range []string{
		"type='signal',sender='" + loginName + "',path='" + loginPath + "',interface='" + loginManager + "',member='PrepareForSleep'",
		"type='signal',sender='" + driverName + "',interface='" + driverIface + "',member='NameOwnerChanged',arg0='" + loginName + "'",
	} {
		if err == nil {
			_, err = w.conn.callDriver("AddMatch", rule)
		}
	}
	if err == nil {
		w.asked, err = w.conn.callDriver("GetNameOwner", loginName)
	}
	return err
}

// take deals with one message. An error is the end of the connection.
func (w *sleeper) take(ctx context.Context, m *message) error {
	if w.login != "" && m.sender == w.login && m.typ == typeReply && m.replySerial == w.wants {
		w.letGo()
		if m.sig == "h" && len(m.fds) == 1 && !w.sleeps { // too late for this sleep
			w.holds, m.fds[0] = os.NewFile(uintptr(m.fds[0]), "inhibitor"), -1
		}
		return nil
	}
	a, err := m.arguments()
	if err != nil {
		return nil // it says nothing that we asked for
	}
	switch {
	case m.sender == driverName && m.typ == typeReply && m.replySerial == w.asked && m.sig == "s":
		return w.isLogin(string(a[0].([]byte)))
	case m.sender == driverName && m.typ == typeSignal && m.iface == driverIface && m.member == "NameOwnerChanged" && m.sig == "sss":
		if string(a[0].([]byte)) == loginName {
			return w.isLogin(string(a[2].([]byte)))
		}
	case w.login == "" || m.sender != w.login:
	case m.typ == typeError && m.replySerial == w.wants:
		w.Log.Warn("the machine may sleep before homes are locked", "error", m.errName)
	case m.typ == typeSignal && m.iface == loginManager && m.member == "PrepareForSleep" && m.sig == "b":
		if w.sleeps = a[0] == true; !w.sleeps {
			w.syncAgain()
			return w.inhibit() // to hold the next one up
		}
		w.lockAll(ctx)
		w.letGo()
	}
	return nil
}

// isLogin notes who the login manager is now. What an earlier one promised is
// void.
func (w *sleeper) isLogin(name string) error {
	if name == w.login {
		return nil // it came while we asked
	}
	w.login, w.sleeps = name, false
	w.letGo()
	if name == "" {
		return nil
	}
	return w.inhibit()
}

func (w *sleeper) inhibit() (err error) {
	body := []any{"sleep", "Home service", "Homes are locked first.", "delay"}
	w.wants, err = w.conn.Send(&dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldDestination: w.login,
		dbus.FieldPath:        dbus.ObjectPath(loginPath),
		dbus.FieldInterface:   loginManager,
		dbus.FieldMember:      "Inhibit",
	}, body)})
	return err
}

func (w *sleeper) letGo() {
	if w.holds != nil {
		_ = w.holds.Close()
		w.holds = nil
	}
}

func (w *sleeper) lockAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	for _, path := range []string{"/", "/var", "/home"} {
		if d, err := os.Open(path); err == nil {
			_ = unix.Syncfs(int(d.Fd()))
			_ = d.Close()
		}
	}
	if _, err := w.Homes.Do(ctx, manager.Operation{Verb: home.LockAll}); err != nil {
		w.Log.Error("not all homes are locked while the machine sleeps", "error", err)
	}
	list, err := w.Homes.List(ctx)
	locked := err == nil && slices.ContainsFunc(list, func(i manager.Info) bool { return i.State == string(home.Locked) })
	text, kerr := os.ReadFile(w.Knob)
	if !locked || kerr != nil || strings.TrimSpace(string(text)) != "1" {
		return
	}
	// The note first: whoever starts after a crash finds what to undo.
	err = os.WriteFile(w.Note, nil, 0o600)
	if err == nil {
		err = os.WriteFile(w.Knob, []byte("0"), 0o600)
	}
	if err != nil {
		w.Log.Warn("the machine may stay awake until homes are unlocked", "error", err)
	}
}

// syncAgain has the kernel write out what it has before it sleeps, as before.
func (w *sleeper) syncAgain() {
	if os.Remove(w.Note) != nil {
		return // it was not switched off
	}
	if err := os.WriteFile(w.Knob, []byte("1"), 0o600); err != nil {
		w.Log.Warn("file systems are not written out at the next sleep", "error", err)
	}
}
