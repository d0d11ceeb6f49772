// Package busconn is a connection to a message bus, made for what strangers may
// send us: it reads one whole message at a time together with its descriptors,
// so that whoever gets it can close them, and sends one at a time and wipes
// what it sent. What a message says it leaves to others; godbus encodes and
// decodes.
//
// godbus's own connections are not for that: any local user may send a signal
// to any connection, and the descriptors in it stay open.
package busconn

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

// SystemBus is where the system bus is unless the environment says otherwise.
const SystemBus = "unix:path=/run/dbus/system_bus_socket;unix:path=/var/run/dbus/system_bus_socket"

// The wire format is that of the D-Bus specification, "Message Protocol":
//
//	0   byte   endianness, 'l' or 'B'
//	1   byte   type
//	2   byte   flags
//	3   byte   protocol version, 1
//	4   uint32 length of the body
//	8   uint32 serial, not 0
//	12  uint32 length of the header fields: array of (byte code, variant)
//	16  header fields, padded to 8
//	    body
const (
	// PrefixLen is the length of what says how long a message is.
	PrefixLen = 16
	// maxMessage is the protocol's limit. A bus has the whole message before
	// it passes any of it on, and a system bus stops at 32 MiB, so the length
	// in the prefix is no promise that we would have to distrust.
	maxMessage = 1 << 27
	// maxArray is the protocol's limit too, and that of the header fields: an
	// object path has no other, and whoever sends a long one must not end our
	// connection.
	maxArray = 1 << 26
)

// ErrMalformed is in the chain of errors about messages that break the rules.
var ErrMalformed = errors.New("malformed message")

// Order returns the byte order that a message's first byte announces.
func Order(mark byte) (binary.ByteOrder, error) {
	switch mark {
	case 'l':
		return binary.LittleEndian, nil
	case 'B':
		return binary.BigEndian, nil
	}
	return nil, fmt.Errorf("byte order %#x: %w", mark, ErrMalformed)
}

// Frame returns the sizes that the prefix announces: the whole message and
// where its body begins.
func Frame(prefix []byte) (total, body int, err error) {
	order, err := Order(prefix[0])
	if err != nil {
		return 0, 0, err
	}
	if prefix[3] != 1 {
		return 0, 0, fmt.Errorf("protocol version %d: %w", prefix[3], ErrMalformed)
	}
	fields, length := order.Uint32(prefix[12:]), order.Uint32(prefix[4:])
	if fields > maxArray || length > maxMessage {
		return 0, 0, fmt.Errorf("%d bytes of header, %d of body: %w", fields, length, ErrMalformed)
	}
	body = PrefixLen + (int(fields)+7)&^7
	total = body + int(length)
	if total > maxMessage {
		return 0, 0, fmt.Errorf("%d bytes: %w", total, ErrMalformed)
	}
	return total, body, nil
}

// Conn is a connection. One goroutine reads; sending is for all.
type Conn struct {
	*net.UnixConn
	oob []byte

	mu     sync.Mutex // guards what follows, and the order of what is sent
	serial uint32
}

// New makes a connection of a socket on which all is said but messages.
func New(sock *net.UnixConn) *Conn {
	return &Conn{UnixConn: sock, oob: make([]byte, unix.CmsgSpace(253*4)+unix.CmsgSpace(4))}
}

// DialUnix connects to the first address that answers. Of the transports of
// the D-Bus specification a system bus uses unix: alone.
func DialUnix(address string) (*net.UnixConn, error) {
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

// Connect dials, authenticates and takes descriptors into the bargain. It does
// not say Hello, since the answer is the reader's.
func Connect(address string) (*Conn, error) {
	sock, err := DialUnix(address)
	if err != nil {
		return nil, fmt.Errorf("connect to the bus: %w", err)
	}
	c := New(sock)
	if err := c.authenticate(); err != nil {
		_ = sock.Close()
		return nil, fmt.Errorf("authenticate on the bus: %w", err)
	}
	return c, nil
}

// authenticate speaks the client half of the specification's "Authentication
// Protocol" with the mechanism EXTERNAL: the bus knows our uid from the socket.
func (c *Conn) authenticate() error {
	// The server sends nothing after its last answer until BEGIN, so nothing
	// of the message stream is lost in this buffer.
	in := bufio.NewReaderSize(io.LimitReader(c.UnixConn, 4096), 512)
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	for _, step := range []struct{ say, expect string }{
		{"\x00AUTH EXTERNAL " + uid, "OK "},
		{"NEGOTIATE_UNIX_FD", "AGREE_UNIX_FD"},
	} {
		if _, err := io.WriteString(c.UnixConn, step.say+"\r\n"); err != nil {
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
	_, err := io.WriteString(c.UnixConn, "BEGIN\r\n")
	return err
}

// Receive returns the next message, whole and not looked at beyond its prefix,
// and the descriptors that came along, which the caller closes. Where the
// kernel had to drop some, they are fewer than the header says. An error ends
// the connection.
func (c *Conn) Receive() (buf []byte, fds []int, err error) {
	// Exactly one message is read at a time, so nothing of it stays in a
	// buffer that is not its own, and descriptors that arrive belong to it.
	prefix := make([]byte, PrefixLen)
	if err := c.fill(prefix, &fds); err != nil {
		CloseAll(fds)
		return nil, nil, err
	}
	total, _, err := Frame(prefix)
	if err != nil {
		CloseAll(fds)
		return nil, nil, fmt.Errorf("read message: %v", err)
	}
	buf = make([]byte, total)
	copy(buf, prefix)
	if err := c.fill(buf[PrefixLen:], &fds); err != nil {
		clear(buf)
		CloseAll(fds)
		return nil, nil, err
	}
	return buf, fds, nil
}

func (c *Conn) fill(p []byte, fds *[]int) error {
	for len(p) > 0 {
		n, oobn, _, _, err := c.ReadMsgUnix(p, c.oob)
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

// CloseAll closes descriptors that nobody wants.
func CloseAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Send encodes and writes m and returns the serial that it has got by then. Descriptors in the body
// stay the caller's.
func (c *Conn) Send(m *dbus.Message) (uint32, error) {
	return c.SendThen(m, func(uint32) {})
}

// SendThen is Send that calls f with the serial before anybody can answer.
func (c *Conn) SendThen(m *dbus.Message, f func(serial uint32)) (uint32, error) {
	// godbus counts by encoding all of it, so only what may hold any is counted.
	if sig, ok := m.Headers[dbus.FieldSignature].Value().(dbus.Signature); ok && strings.ContainsAny(sig.String(), "hv") {
		n, err := m.CountFds()
		if err != nil {
			return 0, fmt.Errorf("encode message: %w", err)
		}
		if n > 0 {
			m.Headers[dbus.FieldUnixFDs] = dbus.MakeVariant(uint32(n))
		}
	}
	var b bytes.Buffer
	fds, err := m.EncodeToWithFDs(&b, binary.LittleEndian)
	// Records in replies hold password hashes, calls may hold passwords.
	defer func() { clear(b.Bytes()) }()
	if err != nil {
		return 0, fmt.Errorf("encode message: %w", err)
	}
	buf := b.Bytes()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	if c.serial == 0 {
		c.serial = 1
	}
	// godbus keeps the serial to itself; see the table above.
	binary.LittleEndian.PutUint32(buf[8:], c.serial)
	f(c.serial)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	written, _, err := c.WriteMsgUnix(buf, oob, nil)
	if err == nil && written < len(buf) {
		_, err = c.Write(buf[written:])
	}
	if err != nil {
		return c.serial, fmt.Errorf("write message: %w", err)
	}
	return c.serial, nil
}
