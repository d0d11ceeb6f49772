package bus

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	driverName  = "org.freedesktop.DBus"
	driverPath  = "/org/freedesktop/DBus"
	driverIface = "org.freedesktop.DBus"
)

// conn is a connection to a bus. One goroutine reads; sending is for all.
type conn struct {
	sock *net.UnixConn
	oob  []byte

	mu     sync.Mutex // guards what follows, and the order of what is sent
	serial uint32
}

// dialUnix connects to the first address that answers. Of the transports of
// the D-Bus specification a system bus uses unix: alone.
func dialUnix(address string) (*net.UnixConn, error) {
	var errs []error
	for _, a := range strings.Split(address, ";") {
		name, err := socketName(a)
		if err == nil {
			var s *net.UnixConn
			if s, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: name, Net: "unix"}); err == nil {
				return s, nil
			}
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func socketName(address string) (string, error) {
	keys, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return "", fmt.Errorf("bus address %q: not a unix socket", address)
	}
	for _, kv := range strings.Split(keys, ",") {
		k, v, _ := strings.Cut(kv, "=")
		if k != "path" && k != "abstract" {
			continue
		}
		v, err := dbus.UnescapeBusAddressValue(v)
		if err != nil {
			return "", fmt.Errorf("bus address %q: %w", address, err)
		}
		if k == "abstract" {
			v = "@" + v
		}
		return v, nil
	}
	return "", fmt.Errorf("bus address %q: no path", address)
}

// connect dials, authenticates and takes descriptors into the bargain. It does
// not say Hello, since the answer is the reader's.
func connect(address string) (*conn, error) {
	sock, err := dialUnix(address)
	if err != nil {
		return nil, fmt.Errorf("connect to the bus: %w", err)
	}
	c := &conn{sock: sock, oob: make([]byte, unix.CmsgSpace(253*4)+unix.CmsgSpace(4))}
	if err := c.authenticate(); err != nil {
		_ = sock.Close()
		return nil, fmt.Errorf("authenticate on the bus: %w", err)
	}
	return c, nil
}

// authenticate speaks the client half of the specification's "Authentication
// Protocol" with the mechanism EXTERNAL: the bus knows our uid from the socket.
func (c *conn) authenticate() error {
	// The server sends nothing after its last answer until BEGIN, so nothing
	// of the message stream is lost in this buffer.
	in := bufio.NewReaderSize(io.LimitReader(c.sock, 4096), 512)
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	for _, step := range []struct{ say, expect string }{
		{"\x00AUTH EXTERNAL " + uid, "OK "},
		{"NEGOTIATE_UNIX_FD", "AGREE_UNIX_FD"},
	} {
		if _, err := io.WriteString(c.sock, step.say+"\r\n"); err != nil {
			return err
		}
		line, err := in.ReadBytes('\n')
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(line, []byte(step.expect)) {
			return fmt.Errorf("the bus answers %q", bytes.TrimSpace(line))
		}
	}
	_, err := io.WriteString(c.sock, "BEGIN\r\n")
	return err
}

func (c *conn) Close() error { return c.sock.Close() }

// read returns the next message, which the caller closes. A message that the
// bus framed well and filled badly is returned together with errMalformed; any
// other error ends the connection.
func (c *conn) read() (*message, error) {
	// Exactly one message is read at a time, so nothing of it stays in a
	// buffer that is not its own, and descriptors that arrive belong to it.
	var fds []int
	prefix := make([]byte, prefixLen)
	if err := c.fill(prefix, &fds); err != nil {
		closeAll(fds)
		return nil, err
	}
	total, _, err := frame(prefix)
	if err != nil {
		closeAll(fds)
		return nil, fmt.Errorf("read message: %v", err)
	}
	buf := make([]byte, total)
	copy(buf, prefix)
	if err := c.fill(buf[prefixLen:], &fds); err != nil {
		clear(buf)
		closeAll(fds)
		return nil, err
	}
	return parse(buf, fds)
}

func (c *conn) fill(p []byte, fds *[]int) error {
	for len(p) > 0 {
		n, oobn, _, _, err := c.sock.ReadMsgUnix(p, c.oob)
		if n <= 0 && err == nil {
			err = io.EOF
		}
		if err != nil {
			return err
		}
		p = p[n:]
		if oobn == 0 {
			continue
		}
		// Where the kernel had to drop descriptors, the count does not fit
		// the header's, and parse says so.
		scms, err := unix.ParseSocketControlMessage(c.oob[:oobn])
		if err != nil {
			return err
		}
		for i := range scms {
			if got, err := unix.ParseUnixRights(&scms[i]); err == nil {
				*fds = append(*fds, got...)
			}
		}
	}
	return nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// send encodes and writes m and returns its serial. Descriptors in the body
// stay the caller's.
func (c *conn) send(m *dbus.Message) (uint32, error) {
	n, err := m.CountFds()
	if err != nil {
		return 0, fmt.Errorf("encode message: %w", err)
	}
	if n > 0 {
		m.Headers[dbus.FieldUnixFDs] = dbus.MakeVariant(uint32(n))
	}
	var b bytes.Buffer
	fds, err := m.EncodeToWithFDs(&b, binary.LittleEndian)
	if err != nil {
		return 0, fmt.Errorf("encode message: %w", err)
	}
	buf := b.Bytes()
	// Records in replies hold password hashes.
	defer clear(buf)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	if c.serial == 0 {
		c.serial = 1
	}
	// godbus keeps the serial to itself; see the table in message.go.
	binary.LittleEndian.PutUint32(buf[8:], c.serial)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	written, _, err := c.sock.WriteMsgUnix(buf, oob, nil)
	if err == nil && written < len(buf) {
		_, err = c.sock.Write(buf[written:])
	}
	if err != nil {
		return 0, fmt.Errorf("write message: %w", err)
	}
	return c.serial, nil
}

// headers builds a message's header fields; empty values are left out.
func headers(fields map[dbus.HeaderField]any, body []any) map[dbus.HeaderField]dbus.Variant {
	out := map[dbus.HeaderField]dbus.Variant{}
	for k, v := range fields {
		if s, ok := v.(string); ok && s == "" {
			continue
		}
		out[k] = dbus.MakeVariant(v)
	}
	if len(body) > 0 {
		out[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	return out
}

// callDriver sends a call to the bus itself.
func (c *conn) callDriver(member string, body ...any) (uint32, error) {
	return c.send(&dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldDestination: driverName,
		dbus.FieldPath:        dbus.ObjectPath(driverPath),
		dbus.FieldInterface:   driverIface,
		dbus.FieldMember:      member,
	}, body)})
}

// reply answers m with the values of body.
func (c *conn) reply(m *message, body []any) error {
	_, err := c.send(&dbus.Message{Type: dbus.TypeMethodReply, Flags: dbus.FlagNoReplyExpected, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldDestination: m.sender,
		dbus.FieldReplySerial: m.serial,
	}, body)})
	return err
}

// maxText bounds the text of an error, which may quote the caller.
const maxText = 1024

// refuse answers m with an error.
func (c *conn) refuse(m *message, name, text string) error {
	body := []any{strings.ToValidUTF8(text[:min(len(text), maxText)], "?")}
	_, err := c.send(&dbus.Message{Type: dbus.TypeError, Flags: dbus.FlagNoReplyExpected, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldDestination: m.sender,
		dbus.FieldErrorName:   name,
		dbus.FieldReplySerial: m.serial,
	}, body)})
	return err
}

// emit broadcasts a signal.
func (c *conn) emit(path, iface, member string, body ...any) error {
	_, err := c.send(&dbus.Message{Type: dbus.TypeSignal, Flags: dbus.FlagNoReplyExpected, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldPath:      dbus.ObjectPath(path),
		dbus.FieldInterface: iface,
		dbus.FieldMember:    member,
	}, body)})
	return err
}
