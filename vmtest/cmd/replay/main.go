// Command replay makes, in a guest, the method calls that were captured from
// systemd-homed, and prints what came back. It reads a plan (a JSON list of
// steps) and writes one JSON line for each call. It knows nothing of what the
// answers should be; the stories compare.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

// A step of the plan is one of: a script, the end of the references held so
// far, waiting for the calls under way, or a call.
type step struct {
	Sh    string   `json:"sh,omitempty"`
	Drop  []string `json:"drop,omitempty"` // the cases that gave them; "all"
	Wait  bool     `json:"wait,omitempty"`
	Call  *call    `json:"call,omitempty"`
	Async bool     `json:"async,omitempty"` // go on while it is under way
	Clock int64    `json:"clock,omitempty"` // set the clock before, microseconds since 1970
	Blob  string   `json:"blob,omitempty"`  // the file whose descriptor the call passes
	Path  bool     `json:"path,omitempty"`  // opened with O_PATH
	Arg   string   `json:"arg,omitempty"`   // "N FILE": the Nth argument is what the file holds
	Limit int      `json:"limit,omitempty"` // seconds
	Flood int      `json:"flood,omitempty"` // make the call so often at once, for nobody
}

type call struct {
	Case      string            `json:"case"`
	Object    string            `json:"object"`
	Interface string            `json:"interface"`
	Member    string            `json:"member"`
	Signature string            `json:"signature"`
	Args      []json.RawMessage `json:"args"`
	CallerUID uint32            `json:"caller_uid"`
}

type result struct {
	N              int    `json:"n"` // of the step
	Error          string `json:"error,omitempty"`
	Message        string `json:"message,omitempty"`
	ReplySignature string `json:"reply_signature"`
	Reply          []any  `json:"reply"`
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "replay:", err)
		os.Exit(1)
	}
}

type player struct {
	mu   sync.Mutex // of out and held
	out  *json.Encoder
	held map[string][]*os.File
	wait sync.WaitGroup
}

func run(in io.Reader, out io.Writer) error {
	var plan []step
	d := json.NewDecoder(bufio.NewReader(in))
	if err := d.Decode(&plan); err != nil {
		return err
	}
	p := &player{out: json.NewEncoder(out), held: map[string][]*os.File{}}
	for n, s := range plan {
		if s.Clock != 0 {
			tv := syscall.NsecToTimeval(s.Clock * 1000)
			if err := syscall.Settimeofday(&tv); err != nil {
				return fmt.Errorf("set clock: %w", err)
			}
		}
		switch {
		case s.Sh != "":
			// A script that fails is seen in what the calls after it answer.
			cmd := exec.Command("bash", "-c", s.Sh)
			cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
			if err := cmd.Run(); err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", s.Sh, err)
			}
		case s.Wait:
			p.wait.Wait()
		case s.Drop != nil:
			p.drop(s.Drop)
		case s.Call != nil:
			if s.Flood > 0 {
				if err := p.flood(s); err != nil {
					return err
				}
				continue
			}
			if !s.Async {
				if err := p.play(n, s, nil); err != nil {
					return err
				}
				continue
			}
			sent := make(chan struct{})
			p.wait.Go(func() {
				if err := p.play(n, s, sent); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			})
			<-sent
		}
	}
	p.wait.Wait()
	return nil
}

// drop ends the references that cases gave.
func (p *player) drop(cases []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, files := range p.held {
		if !slices.Contains(cases, name) && !slices.Contains(cases, "all") {
			continue
		}
		for _, f := range files {
			_ = f.Close()
		}
		delete(p.held, name)
	}
}

// dial connects as a user: the bus reads the user of the thread that connects.
func dial(uid uint32, in func(*dbus.Message)) (*dbus.Conn, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	become := func(uid uint32) error {
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
			return e
		}
		return nil
	}
	if err := become(uid); err != nil {
		return nil, err
	}
	conn, err := dbus.Dial("unix:path=/run/dbus/system_bus_socket", dbus.WithIncomingInterceptor(in))
	if back := become(0); back != nil {
		return nil, errors.Join(err, back)
	}
	if err != nil {
		return nil, err
	}
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(int(uid)))}); err != nil {
		return nil, err
	}
	return conn, conn.Hello()
}

// play makes a call on a connection of its own; sent is closed when it is on
// its way.
func (p *player) play(n int, s step, sent chan struct{}) error {
	if sent != nil {
		defer func() {
			select {
			case <-sent:
			default:
				close(sent)
			}
		}()
	}
	var mu sync.Mutex
	signature := ""
	conn, err := dial(s.Call.CallerUID, func(m *dbus.Message) {
		if m.Type == dbus.TypeMethodReply {
			mu.Lock()
			defer mu.Unlock()
			signature = ""
			if v, ok := m.Headers[dbus.FieldSignature]; ok {
				signature = v.Value().(dbus.Signature).String()
			}
		}
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if s.Arg != "" {
		var at int
		var file string
		if _, err := fmt.Sscan(s.Arg, &at, &file); err != nil || at >= len(s.Call.Args) {
			return fmt.Errorf("step %d: no argument %q", n, s.Arg)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if s.Call.Args[at], err = json.Marshal(string(text)); err != nil {
			return err
		}
	}
	args, files, err := arguments(s)
	if err != nil {
		return fmt.Errorf("step %d, %s: %w", n, s.Call.Member, err)
	}
	limit := time.Duration(max(s.Limit, 1)) * time.Second
	if s.Limit == 0 {
		limit = 100 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c := conn.Object("org.freedesktop.home1", dbus.ObjectPath(s.Call.Object)).
		GoWithContext(ctx, s.Call.Interface+"."+s.Call.Member, 0, make(chan *dbus.Call, 1), args...)
	if sent != nil {
		close(sent)
	}
	<-c.Done
	for _, f := range files {
		_ = f.Close()
	}
	r := result{N: n}
	var named dbus.Error
	switch {
	case errors.As(c.Err, &named):
		r.Error = named.Name
		if len(named.Body) > 0 {
			r.Message, _ = named.Body[0].(string)
		}
	case c.Err != nil:
		r.Error, r.Message = "org.freedesktop.DBus.Error.NoReply", c.Err.Error()
	default:
		mu.Lock()
		r.ReplySignature = signature
		mu.Unlock()
		r.Reply = []any{}
		for _, v := range c.Body {
			r.Reply = append(r.Reply, p.plain(s.Call.Case, v))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Encode(r)
}

// flood makes a call many times on one connection and leaves the answers.
func (p *player) flood(s step) error {
	conn, err := dial(s.Call.CallerUID, func(*dbus.Message) {})
	if err != nil {
		return err
	}
	args, _, err := arguments(s)
	if err != nil {
		return err
	}
	object := conn.Object("org.freedesktop.home1", dbus.ObjectPath(s.Call.Object))
	calls := make(chan *dbus.Call, s.Flood)
	for range s.Flood {
		object.Go(s.Call.Interface+"."+s.Call.Member, 0, calls, args...)
	}
	// Calls of one connection are taken in their order: with this one's answer
	// all of them wait.
	if err := conn.Object("org.freedesktop.home1", "/org/freedesktop/home1").Call("org.freedesktop.DBus.Peer.Ping", 0).Err; err != nil {
		return err
	}
	p.wait.Go(func() {
		defer conn.Close()
		for range s.Flood {
			<-calls
		}
	})
	return nil
}

// arguments turns a call's arguments into what its signature says.
func arguments(s step) ([]any, []*os.File, error) {
	sig := s.Call.Signature
	var out []any
	var files []*os.File
	for i, raw := range s.Call.Args {
		if sig == "" {
			return nil, nil, fmt.Errorf("argument %d has no type", i)
		}
		var err error
		var v any
		text := string(bytes.Trim(raw, `"`))
		kind := sig[:1]
		switch {
		case kind == "s" || kind == "o":
			var str string
			err = json.Unmarshal(raw, &str)
			v = str
		case kind == "u":
			var n uint64
			n, err = strconv.ParseUint(text, 10, 32)
			v = uint32(n)
		case kind == "t":
			v, err = strconv.ParseUint(text, 10, 64)
		case kind == "b":
			v = text == "1" || text == "true"
		case kind == "v":
			var str string
			err = json.Unmarshal(raw, &str)
			v = dbus.MakeVariant(str)
		case strings.HasPrefix(sig, "a{sh}"):
			kind = "a{sh}"
			var names map[string]string
			if err = json.Unmarshal(raw, &names); err != nil {
				break
			}
			m := map[string]dbus.UnixFD{}
			for name := range names {
				flags := os.O_RDONLY
				if s.Path {
					flags = 0x200000 // O_PATH
				}
				var f *os.File
				if f, err = os.OpenFile(s.Blob, flags, 0); err != nil {
					break
				}
				files = append(files, f)
				m[name] = dbus.UnixFD(f.Fd())
			}
			v = m
		default:
			err = fmt.Errorf("no such type: %s", sig)
		}
		if err != nil {
			return nil, nil, err
		}
		sig = sig[len(kind):]
		out = append(out, v)
	}
	return out, files, nil
}

// plain is a value as the captures print it; descriptors are kept open, they
// may be references.
func (p *player) plain(name string, v any) any {
	switch v := v.(type) {
	case dbus.Variant:
		return p.plain(name, v.Value())
	case dbus.UnixFD:
		p.mu.Lock()
		p.held[name] = append(p.held[name], os.NewFile(uintptr(v), "reference"))
		p.mu.Unlock()
		return "<fd>"
	case []any:
		out := []any{}
		for _, e := range v {
			out = append(out, p.plain(name, e))
		}
		return out
	case [][]any:
		out := []any{}
		for _, e := range v {
			out = append(out, p.plain(name, e))
		}
		return out
	case map[string]dbus.Variant:
		out := map[string]any{}
		for k, e := range v {
			out[k] = p.plain(name, e)
		}
		return out
	case map[dbus.ObjectPath]map[string]map[string]dbus.Variant:
		out := map[string]any{}
		for path, is := range v {
			m := map[string]any{}
			for i, props := range is {
				m[i] = p.plain(name, props)
			}
			out[string(path)] = m
		}
		return out
	}
	return v
}
