package bus

import (
	"encoding/binary"
	"fmt"
	"math"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"hearth/internal/busconn"
)

// We decode ourselves, and leave encoding to godbus, because a decoded string
// of godbus is a copy of a password that nobody can wipe. Here arguments are
// slices of the receive buffer. The wire format is that of the D-Bus
// specification; busconn has what frames a message.
const (
	maxArray = 1 << 26 // the protocol's limit
	maxDepth = 64
)

const (
	typeCall   = 1
	typeReply  = 2
	typeError  = 3
	typeSignal = 4

	flagNoReply     = 1
	flagInteractive = 4
)

const (
	fieldPath = 1 + iota
	fieldInterface
	fieldMember
	fieldErrorName
	fieldReplySerial
	fieldDestination
	fieldSender
	fieldSignature
	fieldUnixFDs
)

var errMalformed = busconn.ErrMalformed

// message is one received message. It owns its buffer and descriptors.
type message struct {
	buf   []byte // the whole message
	body  []byte // the end of buf
	order binary.ByteOrder

	typ, flags byte
	serial     uint32

	path, iface, member, errName string
	replySerial                  uint32
	sender, sig, dest            string

	nfds uint32
	fds  []int // not yet claimed ones are >= 0
}

// parse reads the header of a whole message. The message takes buf and fds
// over, also when it fails: its close closes them.
func parse(buf []byte, fds []int) (*message, error) {
	m := &message{buf: buf, fds: fds}
	if len(buf) < busconn.PrefixLen {
		return m, errMalformed
	}
	total, body, err := busconn.Frame(buf)
	if err != nil {
		return m, err
	}
	if total != len(buf) {
		return m, errMalformed
	}
	m.order, _ = busconn.Order(buf[0])
	m.typ, m.flags = buf[1], buf[2]
	m.serial = m.order.Uint32(buf[8:])
	m.body = buf[body:]
	if m.serial == 0 {
		return m, fmt.Errorf("serial 0: %w", errMalformed)
	}
	end := busconn.PrefixLen + int(m.order.Uint32(buf[12:]))
	r := &reader{p: buf[:end], pos: busconn.PrefixLen, order: m.order}
	for r.err == nil && r.pos < end {
		m.field(r)
	}
	if r.err != nil {
		return m, r.err
	}
	switch m.typ {
	case typeCall:
		if m.path == "" || m.member == "" {
			return m, fmt.Errorf("call without path or member: %w", errMalformed)
		}
	case typeReply, typeError:
		if m.replySerial == 0 {
			return m, fmt.Errorf("reply to nothing: %w", errMalformed)
		}
	}
	if m.sig == "" && len(m.body) != 0 {
		return m, fmt.Errorf("body without signature: %w", errMalformed)
	}
	if int(m.nfds) != len(m.fds) {
		return m, fmt.Errorf("%d descriptors announced, %d received: %w", m.nfds, len(m.fds), errMalformed)
	}
	return m, nil
}

// field reads one header field. Fields that we do not know are skipped, as the
// specification asks.
func (m *message) field(r *reader) {
	r.align(8)
	code := r.u8()
	sig := r.signature()
	want := map[byte]string{fieldPath: "o", fieldInterface: "s", fieldMember: "s", fieldErrorName: "s", fieldReplySerial: "u",
		fieldDestination: "s", fieldSender: "s", fieldSignature: "g", fieldUnixFDs: "u"}[code]
	if want == "" {
		if rest := r.skip(sig, 1); rest != "" {
			r.fail("field of several types")
		}
		return
	}
	if sig != want {
		r.fail("field of the wrong type")
		return
	}
	switch code {
	case fieldPath:
		m.path = r.path()
	case fieldInterface:
		m.iface = string(r.str())
	case fieldMember:
		m.member = string(r.str())
	case fieldErrorName:
		m.errName = string(r.str())
	case fieldReplySerial:
		m.replySerial = r.u32()
	case fieldDestination:
		m.dest = string(r.str())
	case fieldSender:
		m.sender = string(r.str())
	case fieldSignature:
		m.sig = r.signature()
	case fieldUnixFDs:
		m.nfds = r.u32()
	}
}

// close wipes the buffer and closes every descriptor that nobody claimed.
func (m *message) close() {
	clear(m.buf)
	for i, fd := range m.fds {
		if fd >= 0 {
			_ = unix.Close(fd)
			m.fds[i] = -1
		}
	}
}

// arguments decodes the body. Its types are those of our method tables: s
// becomes a []byte over the receive buffer, u uint32, t uint64, b bool, o
// string, v a variant, h a handle, a{sh} a blobs. Descriptors stay the message's.
func (m *message) arguments() ([]any, error) {
	r := &reader{p: m.body, order: m.order}
	var out []any
	for sig := m.sig; sig != "" && r.err == nil; {
		one, rest, err := split(sig)
		if err != nil {
			return nil, err
		}
		out = append(out, r.value(one, len(m.fds)))
		sig = rest
	}
	if r.err != nil {
		return nil, r.err
	}
	if r.pos != len(r.p) {
		return nil, fmt.Errorf("%d bytes left over: %w", len(r.p)-r.pos, errMalformed)
	}
	return out, nil
}

// variant is a value together with its type. The value is nil for types that
// no property of ours has.
type variant struct {
	sig   string
	value any
}

// blobs maps file names to indexes into the message's descriptors.
type blobs map[string]int

// reader decodes from a buffer. After the first fault it returns zero values.
type reader struct {
	p     []byte
	pos   int
	order binary.ByteOrder
	err   error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s: %w", what, errMalformed)
	}
	r.pos = len(r.p)
}

// take returns the next n bytes, nil after a fault.
func (r *reader) take(n int) []byte {
	if r.err == nil && (n < 0 || n > len(r.p)-r.pos) {
		r.fail("cut short")
	}
	if r.err != nil {
		return nil
	}
	b := r.p[r.pos : r.pos+n : r.pos+n]
	r.pos += n
	return b
}

func (r *reader) align(n int) {
	pad := (r.pos+n-1)&^(n-1) - r.pos
	for _, b := range r.take(pad) {
		if b != 0 {
			r.fail("padding that is not zero")
			return
		}
	}
}

func (r *reader) u8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u32() uint32 {
	r.align(4)
	if b := r.take(4); b != nil {
		return r.order.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	r.align(8)
	if b := r.take(8); b != nil {
		return r.order.Uint64(b)
	}
	return 0
}

// text returns n bytes and the NUL behind them.
func (r *reader) text(n uint32) []byte {
	if n > math.MaxInt32 {
		r.fail("string too long")
	}
	b := r.take(int(n) + 1)
	if b == nil {
		return nil
	}
	if b[n] != 0 {
		r.fail("string without end")
		return nil
	}
	b = b[:n:n]
	for _, c := range b {
		if c == 0 {
			r.fail("NUL within a string")
			return nil
		}
	}
	return b
}

func (r *reader) str() []byte {
	b := r.text(r.u32())
	if !utf8.Valid(b) {
		r.fail("string that is no UTF-8")
		return nil
	}
	return b
}

func (r *reader) path() string {
	p := string(r.str())
	if r.err == nil && !validPath(p) {
		r.fail("object path")
		return ""
	}
	return p
}

func (r *reader) signature() string { return string(r.text(uint32(r.u8()))) }

func (r *reader) boolean() bool {
	v := r.u32()
	if v > 1 {
		r.fail("boolean")
	}
	return v == 1
}

// array reads an array's length and returns where it ends.
func (r *reader) array(elem int) int {
	n := r.u32()
	if n > maxArray {
		r.fail("array too long")
	}
	r.align(elem)
	if r.err == nil && int(n) > len(r.p)-r.pos {
		r.fail("array cut short")
	}
	return r.pos + int(n)
}

func (r *reader) value(sig string, nfds int) any {
	switch sig {
	case "s":
		return r.str()
	case "u":
		return r.u32()
	case "t":
		return r.u64()
	case "b":
		return r.boolean()
	case "o":
		return r.path()
	case "h":
		index := r.u32()
		if int64(index) >= int64(nfds) {
			r.fail("descriptor")
			return handle(0)
		}
		return handle(index)
	case "a{sh}":
		out := blobs{}
		for end := r.array(8); r.err == nil && r.pos < end; {
			r.align(8)
			name, index := string(r.str()), r.u32()
			if _, twice := out[name]; twice || int64(index) >= int64(nfds) {
				r.fail("descriptor")
			}
			out[name] = int(index)
		}
		return out
	case "v":
		v := variant{sig: r.signature()}
		if v.sig == "s" {
			v.value = r.str()
		} else if rest := r.skip(v.sig, 1); rest != "" {
			r.fail("variant of several types")
		}
		return v
	}
	r.fail("type " + sig + " that no method takes")
	return nil
}

// skip passes over one value of the first type in sig and returns the types
// behind it.
func (r *reader) skip(sig string, depth int) string {
	one, rest, err := split(sig)
	if err != nil || depth > maxDepth {
		r.fail("signature")
		return ""
	}
	switch one[0] {
	case 'y':
		r.u8()
	case 'n', 'q':
		r.align(2)
		r.take(2)
	case 'b', 'i', 'u', 'h':
		r.u32()
	case 'x', 't', 'd':
		r.u64()
	case 's', 'o':
		r.str()
	case 'g':
		r.signature()
	case 'v':
		if after := r.skip(r.signature(), depth+1); after != "" {
			r.fail("variant of several types")
		}
	case '(':
		r.members(one, depth)
	case 'a':
		end := r.array(alignment(one[1]))
		for r.err == nil && r.pos < end {
			if one[1] == '{' { // an entry is no complete type by itself
				r.members(one[1:], depth)
			} else {
				r.skip(one[1:], depth+1)
			}
		}
		if r.err == nil && r.pos != end {
			r.fail("array")
		}
	}
	return rest
}

// members passes over what is between the brackets of sig.
func (r *reader) members(sig string, depth int) {
	r.align(8)
	for in := sig[1 : len(sig)-1]; in != "" && r.err == nil; {
		in = r.skip(in, depth+1)
	}
}

func alignment(t byte) int {
	switch t {
	case 'y', 'g', 'v':
		return 1
	case 'n', 'q':
		return 2
	case 'x', 't', 'd', '(', '{':
		return 8
	}
	return 4
}

// split cuts the first complete type off a signature.
func split(sig string) (one, rest string, err error) {
	n := complete(sig, 0)
	if n < 0 {
		return "", "", fmt.Errorf("signature: %w", errMalformed)
	}
	return sig[:n], sig[n:], nil
}

// complete returns the length of the first complete type in sig, or -1.
func complete(sig string, depth int) int {
	if sig == "" || depth > maxDepth {
		return -1
	}
	switch sig[0] {
	case 'y', 'b', 'n', 'q', 'i', 'u', 'x', 't', 'd', 's', 'o', 'g', 'h', 'v':
		return 1
	case 'a':
		if len(sig) > 1 && sig[1] == '{' {
			// The key is one basic type, the value one type of any kind.
			if len(sig) < 5 || sig[2] == 'v' || complete(sig[2:], depth) != 1 {
				return -1
			}
			n := complete(sig[3:], depth+2)
			if n < 0 || 3+n >= len(sig) || sig[3+n] != '}' {
				return -1
			}
			return 4 + n
		}
		if n := complete(sig[1:], depth+1); n > 0 {
			return 1 + n
		}
	case '(':
		i := 1
		for i < len(sig) && sig[i] != ')' {
			n := complete(sig[i:], depth+1)
			if n < 0 {
				return -1
			}
			i += n
		}
		if i > 1 && i < len(sig) {
			return i + 1
		}
	}
	return -1
}

// validPath holds a text to the rule for object paths.
func validPath(p string) bool {
	if p == "/" {
		return true
	}
	if p == "" || p[0] != '/' || p[len(p)-1] == '/' {
		return false
	}
	for i := 1; i < len(p); i++ {
		c := p[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		case c == '/' && p[i-1] != '/':
		default:
			return false
		}
	}
	return true
}
