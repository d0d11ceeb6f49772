// Package userdb is the daemon's front end for the system's user database: a
// varlink server through which the name service learns of users and groups. It
// knows the wire and the interfaces; which homes there are it asks of the
// manager, and what of a record an audience may see of records.Mask.
package userdb

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/manager"
	"hearth/records"
)

// Manager is what the front end needs of *manager.Manager.
type Manager interface {
	Ready() <-chan struct{}
	Lookup(context.Context, manager.Key) (manager.Info, error)
	List(context.Context) ([]manager.Info, error)
}

// Options say what to serve, and where.
type Options struct {
	Manager Manager
	// Socket is where to listen. Its base name is the name of the service
	// that clients must ask for.
	Socket string
	// Machine decides which parts of a record count.
	Machine records.Machine
	Version string
	Log     *slog.Logger
	// Level is what io.systemd.service reads and sets; nil is a fixed info.
	Level *slog.LevelVar
	// Environment is what GetEnvironment shows to root.
	Environment []string
}

const (
	// maxRequest bounds one request. The longest of ours holds two names.
	maxRequest = 64 << 10
	// maxConns and maxConnsPerUID bound the clients, as in the original.
	maxConns       = 4096
	maxConnsPerUID = 128
	// spare are the connections that are left for root when others have all
	// that they may have.
	spare = 256
	// maxWide is how many enumerations one user may have under way at once; what
	// is more waits. Each holds a list of all homes until its client has read it.
	maxWide = 4
	// batch is how much of an enumeration is made before it is sent.
	batch = 64 << 10
	// glanceFrom is how many calls that came together are answered by one look at
	// the homes.
	glanceFrom = 4
	// writeTimeout ends a connection whose client does not read an answer.
	writeTimeout = 30 * time.Second
)

type server struct {
	o       Options
	service string

	mu    sync.Mutex
	conns map[*net.UnixConn]bool
	users map[uint32]*user
}

// user is a uid that has connections.
type user struct {
	conns int
	wide  chan struct{} // holds an item for each enumeration under way
}

// Serve waits until the manager is ready, listens and answers until ctx ends,
// which is no error. A socket that is in the way is replaced at once, without
// a moment in which there is none.
func Serve(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Level == nil {
		o.Level = new(slog.LevelVar)
	}
	s := &server{o: o, service: filepath.Base(o.Socket), conns: map[*net.UnixConn]bool{}, users: map[uint32]*user{}}
	select {
	case <-o.Manager.Ready():
	case <-ctx.Done():
		return nil
	}
	l, remove, err := listen(o.Socket)
	if err != nil {
		return fmt.Errorf("listen for user look-ups: %w", err)
	}
	defer remove()
	var clients sync.WaitGroup
	defer clients.Wait()
	stop := context.AfterFunc(ctx, func() {
		_ = l.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			_ = c.Close()
		}
	})
	defer stop()
	defer l.Close()
	for {
		c, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ECONNABORTED):
			s.o.Log.Warn("a user look-up could not be accepted", "error", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return fmt.Errorf("accept user look-up: %w", err)
		}
		clients.Go(func() { s.client(ctx, c) })
	}
}

// listen binds beside the path and moves the socket over it. remove takes it
// away again, unless another server has put its own there meanwhile.
func listen(path string) (l *net.UnixListener, remove func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, nil, err
	}
	fresh := fmt.Sprintf("%s.%d~", path, os.Getpid())
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	l, err = net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	l.SetUnlinkOnClose(false)
	fail := func(err error) (*net.UnixListener, func(), error) {
		_ = l.Close()
		_ = os.Remove(fresh)
		return nil, nil, err
	}
	// Any user may look up any user.
	if err := os.Chmod(fresh, 0o666); err != nil {
		return fail(err)
	}
	// Readers of the database skip a service whose range cannot hold what they
	// look for. Kernels that refuse attributes on sockets only lose that.
	for name, value := range map[string]string{"user.userdb.uid": "1000-65533", "user.userdb.gid": "1000-65533", "user.varlink": "entrypoint"} {
		_ = unix.Setxattr(fresh, name, []byte(value), 0)
	}
	ours, err := os.Lstat(fresh)
	if err != nil {
		return fail(err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fail(err)
	}
	return l, func() {
		if now, err := os.Lstat(path); err == nil && os.SameFile(ours, now) {
			_ = os.Remove(path)
		}
	}, nil
}

func peerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// client answers one connection until it ends.
func (s *server) client(ctx context.Context, c *net.UnixConn) {
	defer c.Close()
	uid, err := peerUID(c)
	if err != nil {
		s.o.Log.Warn("the peer of a user look-up is unknown", "error", err)
		return
	}
	u := s.admit(ctx, c, uid)
	if u == nil {
		return
	}
	defer s.leave(c, uid)
	w, err := newWire(c)
	if err != nil {
		s.o.Log.Warn("a user look-up cannot be read", "error", err)
		return
	}
	s.converse(ctx, bufio.NewReaderSize(w, 4096), &replyWriter{c: w}, uid, u)
}

func (s *server) converse(ctx context.Context, in *bufio.Reader, out *replyWriter, uid uint32, u *user) {
	glance, left := ctx, 0 // for so many calls
	for {
		// What has been answered is sent before anything is waited for: calls that
		// came together get their answers together.
		if rest, _ := in.Peek(in.Buffered()); bytes.IndexByte(rest, 0) < 0 || len(out.text) >= batch {
			if out.flush() != nil {
				return
			}
			left = 0
			if cap(out.text) > batch/4 {
				out.text = nil // the connection may be idle for long
			}
		}
		text, err := readFrame(in)
		if left--; left < 0 {
			glance = ctx
			rest, _ := in.Peek(in.Buffered())
			if left = bytes.Count(rest, []byte{0}); left+1 >= glanceFrom {
				glance = manager.AtAGlance(ctx)
			}
		}
		if err == nil {
			var req *request
			if req, err = parseRequest(text); err == nil {
				err = s.respond(glance, out, uid, u, req)
				if req.wide() {
					left = 0 // it may have waited
				}
			}
		}
		if err != nil {
			// The protocol knows no answer to what is no request.
			_ = out.flush()
			return
		}
	}
}

// respond answers one request.
func (s *server) respond(ctx context.Context, out *replyWriter, uid uint32, u *user, req *request) error {
	wide := req.wide()
	if wide {
		// It may have to wait, and what it sends may be long.
		if err := out.flush(); err != nil {
			return err
		}
	}
	if uid != 0 && wide {
		select {
		case u.wide <- struct{}{}:
			defer func() { <-u.wide }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	replies := s.answer(ctx, uid, req)
	if ctx.Err() != nil || req.oneway {
		return ctx.Err()
	}
	if err := out.write(replies); err != nil || !wide {
		return err
	}
	return out.flush()
}

// admit counts a connection, or returns nil where there are too many.
func (s *server) admit(ctx context.Context, c *net.UnixConn, uid uint32) *user {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := maxConns
	if uid != 0 {
		most -= spare
	}
	u := s.users[uid]
	if u == nil {
		u = &user{wide: make(chan struct{}, maxWide)}
	}
	if ctx.Err() != nil || len(s.conns) >= most || u.conns >= maxConnsPerUID {
		return nil
	}
	s.conns[c] = true
	u.conns++
	s.users[uid] = u
	return u
}

func (s *server) leave(c *net.UnixConn, uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if s.users[uid].conns--; s.users[uid].conns == 0 {
		delete(s.users, uid)
	}
}

var errTooLong = errors.New("request is too long")

// readFrame returns one message without the NUL that ends it.
func readFrame(in *bufio.Reader) ([]byte, error) {
	var text []byte
	for {
		part, err := in.ReadSlice(0)
		text = append(text, part...)
		if len(text) > maxRequest {
			return nil, errTooLong
		}
		if err == nil {
			return text[:len(text)-1], nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}

// request is one varlink call.
type request struct {
	method       string
	params       []param // in the order given
	more, oneway bool
}

type param struct {
	name  string
	value any // string, json.Number, bool, nil, []any, map[string]any
}

var errNoRequest = errors.New("not a varlink request")

// parseRequest reads what the varlink protocol calls a method call. Anything
// that is none ends the connection.
func parseRequest(text []byte) (*request, error) {
	if r := parsePlain(text); r != nil {
		return r, nil
	}
	return parseAny(text)
}

func parseAny(text []byte) (*request, error) {
	r := &request{}
	var method, upgrade bool
	err := object(text, func(key string, d *json.Decoder) error {
		var raw any
		switch key {
		case "parameters":
			var params json.RawMessage
			if err := d.Decode(&params); err != nil {
				return err
			}
			return object(params, func(name string, d *json.Decoder) error {
				p := param{name: name}
				if err := d.Decode(&p.value); err != nil {
					return err
				}
				r.params = append(r.params, p)
				return nil
			})
		case "method", "more", "oneway", "upgrade":
			if err := d.Decode(&raw); err != nil {
				return err
			}
		default:
			return errNoRequest
		}
		var ok bool
		switch key {
		case "method":
			r.method, ok = raw.(string)
			method = true
		case "more":
			r.more, ok = raw.(bool)
		case "oneway":
			r.oneway, ok = raw.(bool)
		case "upgrade":
			upgrade, ok = raw.(bool)
		}
		if !ok {
			return errNoRequest
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !method || r.more && r.oneway || upgrade && (r.more || r.oneway) {
		return nil, errNoRequest
	}
	return r, nil
}

// object calls member for each member of a JSON object, in order, to decode
// its value.
func object(text []byte, member func(key string, d *json.Decoder) error) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errNoRequest
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok || seen[key] {
			return errNoRequest
		}
		seen[key] = true
		if err := member(key, d); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errNoRequest
	}
	return nil
}

// wide reports whether the answer may be about all homes.
func (r *request) wide() bool {
	if !strings.HasPrefix(r.method, "io.systemd.UserDatabase.") {
		return false
	}
	for _, p := range r.params {
		switch {
		case p.name == "uid", p.name == "gid", p.name == "userName":
			return false
		case p.name == "groupName" && !strings.HasSuffix(r.method, ".GetMemberships"):
			return false
		}
	}
	return true
}

// reply is one answer: parameters, or an error and perhaps its parameters.
// Parameters of the type func() any are made when they are sent.
type reply struct {
	Error      string `json:"error,omitempty"`
	Parameters any    `json:"parameters,omitempty"`
	Continues  bool   `json:"continues,omitempty"`
}

// appended are parameters that append their text to a buffer.
type appended func([]byte) []byte

// MarshalJSON implements json.Marshaler.
func (a appended) MarshalJSON() ([]byte, error) { return a(nil), nil }

// replyWriter sends replies, a batch at a time.
type replyWriter struct {
	c    io.Writer
	text []byte // to be sent
}

// write takes the replies to one call.
func (w *replyWriter) write(out []reply) error {
	for i, r := range out {
		r.Continues = i < len(out)-1
		if make, ok := r.Parameters.(func() any); ok {
			r.Parameters = make()
		}
		if err := w.add(&r); err != nil {
			return err
		}
		if len(w.text) >= batch {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// add appends the text of one reply.
func (w *replyWriter) add(r *reply) error {
	parameters, plain := r.Parameters.(appended)
	if !plain || r.Error != "" {
		b := bytes.NewBuffer(w.text)
		e := json.NewEncoder(b)
		e.SetEscapeHTML(false)
		if err := e.Encode(r); err != nil {
			return fmt.Errorf("encode reply: %w", err)
		}
		w.text = b.Bytes()
		w.text[len(w.text)-1] = 0 // instead of the line feed
		return nil
	}
	// What a record says is JSON already, and not short.
	w.text = parameters(append(w.text, `{"parameters":`...))
	if r.Continues {
		w.text = append(w.text, `,"continues":true`...)
	}
	w.text = append(w.text, "}\x00"...)
	return nil
}

// flush sends what there is.
func (w *replyWriter) flush() error {
	if len(w.text) == 0 {
		return nil
	}
	_, err := w.c.Write(w.text)
	w.text = w.text[:0]
	return err
}
