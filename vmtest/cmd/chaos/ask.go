package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"hearth/homed/home1"
	"hearth/internal/fault"
)

const socket = "/run/systemd/userdb/io.systemd.Home"

// gone reports whether a call failed because the service, or the connection to
// it, ended before the answer: all that a kill excuses.
func gone(err error) bool {
	var d dbus.Error
	if errors.As(err, &d) {
		switch d.Name {
		case "org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.Disconnected",
			"org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.TimedOut":
			return true
		}
		return false
	}
	return fault.Is(err, fault.ServiceUnknown)
}

// askBus looks homes up over the bus, again and again.
func (r *run) askBus(actor uint64) {
	g := r.rng(actor)
	var c *home1.Client
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	for r.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(context.Background(), answered)
		err := func() error {
			defer cancel()
			var err error
			if c == nil {
				if c, err = home1.Dial(ctx); err != nil {
					return fmt.Errorf("dial: %w", err)
				}
			}
			t := r.targets[g.IntN(len(r.targets))]
			r.calls.Add(1)
			switch g.IntN(4) {
			case 0:
				h, err := c.GetHomeByName(ctx, t.name)
				if err == nil && (h.UID != t.uid || h.GID != t.uid || h.RealName != t.realName() || h.HomeDirectory != "/home/"+t.name || h.State == "absent") {
					r.wrongly("GetHomeByName of %s: %+v", t.name, h)
				}
				return err
			case 1:
				text, incomplete, err := c.GetUserRecordByName(ctx, t.name)
				if err == nil {
					if incomplete {
						r.wrongly("GetUserRecordByName of %s withholds from root", t.name)
					}
					r.judgeRecord("GetUserRecordByName", text, t, true)
				}
				return err
			case 2:
				list, err := c.ListHomes(ctx)
				seen := map[string]int{}
				for _, h := range list {
					seen[h.UserName]++
				}
				for _, t := range r.targets {
					if err == nil && seen[t.name] != 1 {
						r.wrongly("ListHomes has %s %d times", t.name, seen[t.name])
					}
				}
				return err
			default:
				_, err := c.GetHomeByName(ctx, "nobody-of-that-name")
				if err == nil {
					r.wrongly("GetHomeByName finds a home that is not there")
				}
				if fault.Is(err, fault.NoSuchHome) {
					return nil
				}
				return err
			}
		}()
		switch {
		case err == nil:
		case gone(err):
			r.excuse("a look-up over the bus", err)
		case fault.Is(err, fault.Timeout):
			r.excuse("a look-up over the bus", err) // the client's own limit
		default:
			r.wrongly("a look-up over the bus fails: %v", err)
		}
		if c != nil && g.IntN(20) == 0 {
			_ = c.Close()
			c = nil
		}
		r.sleep(g, 20*time.Millisecond, 400*time.Millisecond)
	}
}

// judgeRecord compares a record with what it has to say.
func (r *run) judgeRecord(what string, text []byte, t *target, privileged bool) {
	var rec struct {
		UserName   string                          `json:"userName"`
		RealName   string                          `json:"realName"`
		MemberOf   []string                        `json:"memberOf"`
		Privileged *struct{}                       `json:"privileged"`
		Binding    map[string]struct{ UID uint32 } `json:"binding"`
		Signature  []struct{}                      `json:"signature"`
		Secret     *struct{}                       `json:"secret"`
	}
	if err := json.Unmarshal(text, &rec); err != nil {
		r.wrongly("%s: %v in %q", what, err, text)
		return
	}
	uid := uint32(0)
	for _, b := range rec.Binding {
		uid = b.UID
	}
	if rec.UserName != t.name || rec.RealName != t.realName() || uid != t.uid || len(rec.MemberOf) != 1 || len(rec.Signature) != 1 ||
		(rec.Privileged != nil) != privileged || rec.Secret != nil {
		r.wrongly("%s of %s: %s", what, t.name, text)
	}
}

// varlink is one connection to the user database.
type varlink struct {
	c  *net.UnixConn
	in *bufio.Reader
}

// dial connects, as somebody without rights if stranger: the kernel tells the
// service the uid that this thread has now.
func dial(stranger bool) (*varlink, error) {
	if stranger {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		const nobody = 65534
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), nobody, ^uintptr(0)); e != 0 {
			return nil, e
		}
		defer func() { _, _, _ = unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0)) }()
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return &varlink{c, bufio.NewReaderSize(c, 64<<10)}, nil
}

type varlinkReply struct {
	Error      string
	Continues  bool
	Parameters struct {
		Record              json.RawMessage
		Incomplete          bool
		UserName, GroupName string
	}
}

// call returns all replies to one call.
func (v *varlink) call(method, params string, more bool) ([]varlinkReply, error) {
	_ = v.c.SetDeadline(time.Now().Add(answered))
	if _, err := fmt.Fprintf(v.c, "{\"method\":\"io.systemd.UserDatabase.%s\",\"parameters\":{\"service\":\"io.systemd.Home\"%s},\"more\":%v}\x00", method, params, more); err != nil {
		return nil, err
	}
	var out []varlinkReply
	for {
		text, err := v.in.ReadBytes(0)
		if err != nil {
			return nil, err
		}
		var a varlinkReply
		if err := json.Unmarshal(bytes.TrimSuffix(text, []byte{0}), &a); err != nil {
			return nil, fmt.Errorf("not a reply: %w: %q", err, text)
		}
		out = append(out, a)
		if !a.Continues {
			return out, nil
		}
	}
}

// askVarlink looks users and groups up as the name service does.
func (r *run) askVarlink(actor uint64, stranger bool) {
	g := r.rng(actor)
	var v *varlink
	defer func() {
		if v != nil {
			_ = v.c.Close()
		}
	}()
	for r.ctx.Err() == nil {
		err := func() (err error) {
			if v == nil {
				if v, err = dial(stranger); err != nil {
					return err
				}
			}
			r.calls.Add(1)
			t := r.targets[g.IntN(len(r.targets))]
			switch kind := g.IntN(6); kind {
			case 0, 1:
				ask := fmt.Sprintf(`,"userName":%q`, t.name)
				if kind == 1 {
					ask = fmt.Sprintf(`,"uid":%d`, t.uid)
				}
				a, err := v.call("GetUserRecord", ask, g.IntN(2) == 0)
				if err != nil {
					return err
				}
				if len(a) != 1 || a[0].Error != "" || a[0].Parameters.Incomplete != stranger {
					r.wrongly("GetUserRecord %s: %+v", ask, a)
					return nil
				}
				r.judgeRecord("GetUserRecord", a[0].Parameters.Record, t, !stranger)
			case 2:
				a, err := v.call("GetGroupRecord", fmt.Sprintf(`,"gid":%d`, t.uid), false)
				if err != nil {
					return err
				}
				if len(a) != 1 || a[0].Error != "" || !bytes.Contains(a[0].Parameters.Record, []byte(`"groupName":"`+t.name+`"`)) {
					r.wrongly("GetGroupRecord of %s: %+v", t.name, a)
				}
			case 3:
				a, err := v.call("GetUserRecord", "", true)
				if err != nil {
					return err
				}
				seen := map[string]int{}
				for _, one := range a {
					var rec struct{ UserName string }
					_ = json.Unmarshal(one.Parameters.Record, &rec)
					seen[rec.UserName]++
				}
				for _, t := range r.targets {
					if seen[t.name] != 1 {
						r.wrongly("an enumeration has %s %d times, %d replies, last error %q", t.name, seen[t.name], len(a), a[len(a)-1].Error)
					}
				}
			case 4:
				a, err := v.call("GetMemberships", `,"groupName":"audio"`, true)
				if err != nil {
					return err
				}
				if len(a) != len(r.targets) || a[0].Parameters.GroupName != "audio" {
					r.wrongly("%d memberships of a group that has %d: %+v", len(a), len(r.targets), a[0])
				}
			case 5:
				a, err := v.call("GetUserRecord", `,"userName":"nobody-of-that-name"`, false)
				if err != nil {
					return err
				}
				if len(a) != 1 || a[0].Error != "io.systemd.UserDatabase.NoRecordFound" {
					r.wrongly("a user that is not there: %+v", a)
				}
			}
			return nil
		}()
		var late net.Error
		switch {
		case err == nil:
		case errors.As(err, &late) && late.Timeout():
			r.wrongly("a user look-up is not answered")
		default:
			// Whatever ends a connection ends it between two replies or within
			// one; the service owes no more once it was killed.
			r.excuse("a user look-up", err)
		}
		if v != nil && (err != nil || g.IntN(20) == 0) {
			_ = v.c.Close()
			v = nil
		}
		r.sleep(g, 20*time.Millisecond, 400*time.Millisecond)
	}
}
