// Package journal sends structured log records to the system's journal, or as
// text to standard error where there is none. It knows the journal's native
// protocol (systemd's "Native Journal Protocol" document) and leaves what is
// worth logging to its callers.
package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is where the journal takes datagrams.
const Socket = "/run/systemd/journal/socket"

// The attributes that become journal fields of the same name. All others are
// appended to the message as key=value, so that they are seen where people
// read and cannot collide with the journal's own fields.
var fields = map[string]bool{"HOME_USER": true, "HOME_VERB": true, "HOME_STATE": true, "ERRNO": true}

// Options configure a Handler. The zero value but for Ident is the product's.
type Options struct {
	Ident  string       // SYSLOG_IDENTIFIER
	Socket string       // empty: Socket
	Stderr io.Writer    // where text goes without a journal; nil: os.Stderr
	Level  slog.Leveler // nil: slog.LevelInfo
}

// Handler is a slog.Handler. Each record is one datagram on an unconnected
// socket, so a journal that restarts is found again by the next record.
type Handler struct {
	o     Options
	out   *output
	attrs []slog.Attr // of WithAttrs, keys complete
	group string      // prefix of keys to come, "a.b."
}

// output is shared by all handlers that descend from one.
type output struct {
	mu   sync.Mutex
	conn *net.UnixConn
}

// New returns the logger of a program: records of level Info and above, under
// the given identifier.
func New(ident string) *slog.Logger { return slog.New(NewHandler(Options{Ident: ident})) }

// NewHandler returns a handler. It opens nothing before the first record.
func NewHandler(o Options) *Handler {
	if o.Socket == "" {
		o.Socket = Socket
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Level == nil {
		o.Level = slog.LevelInfo
	}
	return &Handler{o: o, out: &output{}}
}

// Enabled compares with the level of the options.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.o.Level.Level() }

// WithAttrs returns a handler whose records carry attrs too.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = h.attrs[:len(h.attrs):len(h.attrs)]
	for _, a := range attrs {
		c.attrs = flatten(c.attrs, h.group, a)
	}
	return &c
}

// WithGroup returns a handler that puts name and a dot before keys to come.
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.group = h.group + name + "."
	return &c
}

// flatten appends a, its groups opened, its value resolved (which is where a
// secret turns into its redaction).
func flatten(list []slog.Attr, prefix string, a slog.Attr) []slog.Attr {
	a.Value = a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return list
	}
	if a.Value.Kind() != slog.KindGroup {
		return append(list, slog.Attr{Key: prefix + a.Key, Value: a.Value})
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, m := range a.Value.Group() {
		list = flatten(list, prefix, m)
	}
	return list
}

// Handle sends one record. Without a journal it writes one line of text; an
// error is returned only if that fails too.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	attrs := h.attrs[:len(h.attrs):len(h.attrs)]
	r.Attrs(func(a slog.Attr) bool {
		attrs = flatten(attrs, h.group, a)
		return true
	})
	msg, named := split(r.Message, attrs)
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	if h.send(encode(h.o.Ident, r.Level, msg, named)) == nil {
		return nil
	}
	_, err := io.WriteString(h.o.Stderr, text(h.o.Ident, r.Level, r.Time, msg, named))
	return err
}

type field struct{ key, value string }

// split returns the message with the ordinary attributes appended, and the
// attributes that are journal fields. The last of a name wins. An error among
// the attributes whose chain holds an errno gives ERRNO, if nobody named it.
func split(msg string, attrs []slog.Attr) (string, []field) {
	var named []field
	var errno syscall.Errno
	var b strings.Builder
	b.WriteString(msg)
	for _, a := range attrs {
		v := a.Value.String()
		if err, ok := a.Value.Any().(error); ok && errno == 0 {
			_ = errors.As(err, &errno)
		}
		if fields[a.Key] {
			if e, ok := a.Value.Any().(syscall.Errno); ok {
				v = strconv.Itoa(int(e)) // the journal's convention is the number
			}
			named = set(named, a.Key, v)
			continue
		}
		b.WriteByte(' ')
		b.WriteString(a.Key)
		b.WriteByte('=')
		b.WriteString(quote(v))
	}
	if errno != 0 {
		known := false
		for _, f := range named {
			known = known || f.key == "ERRNO"
		}
		if !known {
			named = append(named, field{"ERRNO", strconv.Itoa(int(errno))})
		}
	}
	return b.String(), named
}

func set(list []field, key, value string) []field {
	for i := range list {
		if list[i].key == key {
			list[i].value = value
			return list
		}
	}
	return append(list, field{key, value})
}

// quote leaves plain words alone and makes anything that could pass for
// another attribute or another line one quoted word.
func quote(s string) string {
	for _, c := range s {
		if c <= ' ' || c == '"' || c == '=' || c == 0x7f || c == '\ufffd' {
			return strconv.Quote(s)
		}
	}
	if s == "" {
		return `""`
	}
	return s
}

// priority maps to the levels of syslog(3).
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	default:
		return 7
	}
}

// encode lays one entry out: NAME=value and a newline; or, where the value
// holds a newline, NAME, newline, its length as little endian u64, the value,
// newline.
func encode(ident string, l slog.Level, msg string, named []field) []byte {
	var b bytes.Buffer
	put := func(key, value string) {
		b.WriteString(key)
		if !strings.Contains(value, "\n") {
			b.WriteByte('=')
		} else {
			b.WriteByte('\n')
			_ = binary.Write(&b, binary.LittleEndian, uint64(len(value)))
		}
		b.WriteString(value)
		b.WriteByte('\n')
	}
	put("MESSAGE", msg)
	put("PRIORITY", strconv.Itoa(priority(l)))
	put("SYSLOG_IDENTIFIER", ident)
	for _, f := range named {
		put(f.key, f.value)
	}
	return b.Bytes()
}

func text(ident string, l slog.Level, at time.Time, msg string, named []field) string {
	var b strings.Builder
	if !at.IsZero() {
		b.WriteString(at.Format("15:04:05.000 "))
	}
	fmt.Fprintf(&b, "%s: %s: %s", ident, strings.ToLower(l.String()), strings.ReplaceAll(msg, "\n", "\\n"))
	for _, f := range named {
		b.WriteString(" " + f.key + "=" + quote(f.value))
	}
	b.WriteByte('\n')
	return b.String()
}

// send gives one entry to the journal, in a memfd if it is too large for a
// datagram.
func (h *Handler) send(entry []byte) error {
	if h.out.conn == nil {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
		if err != nil {
			return err
		}
		h.out.conn = conn
	}
	to := &net.UnixAddr{Name: h.o.Socket, Net: "unixgram"}
	_, err := h.out.conn.WriteToUnix(entry, to)
	if !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	fd, err := unix.MemfdCreate("journal-entry", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "journal-entry")
	defer func() { _ = f.Close() }()
	if _, err := f.Write(entry); err != nil {
		return err
	}
	// The journal maps it, and takes only what nobody can change any more.
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return err
	}
	_, _, err = h.out.conn.WriteMsgUnix(nil, unix.UnixRights(fd), to)
	return err
}
