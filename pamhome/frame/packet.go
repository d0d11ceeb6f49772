package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds of the wire. What is larger travels as a memfd or not at all.
const (
	MaxPacket = 65536
	MaxInline = 48 << 10 // largest value inside a packet
	MaxMemfd  = 4 << 20  // largest value beside it
	MaxPrompt = 4096
	MaxLog    = 2048
	header    = 8
)

// ErrBreach is wrapped by every error that means that the other side does not
// speak this protocol. There is no answer to it but to end the connection.
var ErrBreach = errors.New("breach of the frame protocol")

func breach(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrBreach}, args...)...)
}

// Type says what a frame is.
type Type uint16

// The frames: to 5 from the shim, from 16 from the helper.
const (
	TypeStart  Type = 1
	TypeAnswer Type = 2
	TypeToken  Type = 3
	TypeAck    Type = 4
	TypeValue  Type = 5
	TypePasswd Type = 6

	TypeConv     Type = 16
	TypeGetToken Type = 17
	TypeSetToken Type = 18
	TypeSetUser  Type = 19
	TypePutEnv   Type = 20
	TypeLoad     Type = 21
	TypeStore    Type = 22
	TypeStoreFD  Type = 23
	TypeDrop     Type = 24
	TypeApply    Type = 25
	TypeLookup   Type = 27
	TypeLog      Type = 28
	TypeResult   Type = 29
)

type kind uint8

const (
	kText   kind = iota // no NUL; secrets too
	kU8                 // the integers have exactly their size
	kFlag               // u8, 0 or 1
	kU16                //
	kU32                //
	kI32                //
	kU64                //
	secretK             // text that is wiped and never shown
)

func (k kind) size() int {
	switch k {
	case kU8, kFlag:
		return 1
	case kU16:
		return 2
	case kU32, kI32:
		return 4
	case kU64:
		return 8
	}
	return -1
}

type field struct {
	tag  uint8
	kind kind
	need bool
	rep  bool
}

// tables holds the fields of every frame: pam_home.so's side has the same.
var tables = map[Type][]field{
	TypeStart: {
		{1, kU16, true, false}, {2, kU8, true, false}, {3, kU32, true, false}, {4, kText, false, true},
		{5, kText, false, false}, {6, kText, false, false}, {7, kText, false, false}, {8, kText, false, false},
		{9, kText, false, false}, {10, kText, false, false}, {11, secretK, false, false}, {12, secretK, false, false},
		{13, kFlag, true, false}, {14, kText, false, true}, {15, kText, false, true},
		{16, kU32, true, false}, {17, kU32, true, false}, {18, kU32, true, false}, {19, kU32, true, false},
		{20, kU32, true, false}, {21, kU32, true, false}, {22, kFlag, true, false},
	},
	TypeAnswer:   {{1, kI32, true, false}, {2, secretK, false, false}},
	TypeToken:    {{1, kI32, true, false}, {2, secretK, false, false}},
	TypeAck:      {{1, kI32, true, false}, {2, kU32, false, false}},
	TypeValue:    {{1, kI32, true, false}, {2, kU8, true, false}, {3, kText, false, false}},
	TypePasswd:   {{1, kI32, true, false}, {2, kU32, false, false}, {3, kU32, false, false}, {4, kText, false, false}, {5, kText, false, false}},
	TypeConv:     {{1, kU8, true, false}, {2, kText, true, false}},
	TypeGetToken: {{1, kU8, true, false}, {2, kFlag, true, false}, {3, kText, false, false}},
	TypeSetToken: {{1, kU8, true, false}, {2, secretK, true, false}},
	TypeSetUser:  {{1, kText, true, false}},
	TypePutEnv:   {{1, kText, true, false}},
	TypeLoad:     {{1, kText, true, false}},
	TypeStore:    {{1, kText, true, false}, {2, kU8, true, false}, {3, kText, false, false}},
	TypeStoreFD:  {{1, kText, true, false}},
	TypeDrop:     {{1, kText, true, false}},
	TypeApply: {
		{1, kU32, false, false}, {2, kI32, false, false}, {4, kU64, false, false}, {5, kU64, false, false},
	},
	TypeLookup: {{1, kText, true, false}},
	TypeLog:    {{1, kU8, true, false}, {2, kText, true, false}},
	TypeResult: {{1, kI32, true, false}},
}

func lookup(t Type, tag uint8) *field {
	for i := range tables[t] {
		if tables[t][i].tag == tag {
			return &tables[t][i]
		}
	}
	return nil
}

// part is one field of a packet; its bytes are the packet's.
type part struct {
	tag  uint8
	data []byte
}

// packet is a parsed frame. It lives as long as the buffer it was parsed from.
type packet struct {
	typ   Type
	parts []part
}

// parse checks a packet against the tables. Unknown tags are left out.
func parse(b []byte) (*packet, error) {
	if len(b) < header || len(b) > MaxPacket {
		return nil, breach("packet of %d bytes", len(b))
	}
	p := &packet{typ: Type(binary.LittleEndian.Uint16(b))}
	table, ok := tables[p.typ]
	switch {
	case !ok:
		return nil, breach("frame type %d", p.typ)
	case binary.LittleEndian.Uint16(b[2:]) != 0:
		return nil, breach("flags set")
	case binary.LittleEndian.Uint32(b[4:]) != uint32(len(b)-header):
		return nil, breach("length does not fit the packet")
	}
	for b = b[header:]; len(b) > 0; {
		if len(b) < 5 {
			return nil, breach("half a field")
		}
		tag, n := b[0], binary.LittleEndian.Uint32(b[1:])
		b = b[5:]
		if uint64(n) > uint64(len(b)) {
			return nil, breach("field %d is longer than the packet", tag)
		}
		data := b[:n:n]
		b = b[n:]
		f := lookup(p.typ, tag)
		if f == nil {
			continue
		}
		if !f.rep && p.get(tag) != nil {
			return nil, breach("field %d twice", tag)
		}
		if size := f.kind.size(); size >= 0 && size != len(data) {
			return nil, breach("field %d has %d bytes", tag, len(data))
		} else if size < 0 && bytes.IndexByte(data, 0) >= 0 {
			return nil, breach("field %d holds NUL", tag)
		}
		if f.kind == kFlag && data[0] > 1 {
			return nil, breach("flag %d is %d", tag, data[0])
		}
		p.parts = append(p.parts, part{tag, data})
	}
	for _, f := range table {
		if f.need && p.get(f.tag) == nil {
			return nil, breach("field %d is missing", f.tag)
		}
	}
	return p, nil
}

// get returns the bytes of a field, nil if it is absent: an empty field is not
// nil.
func (p *packet) get(tag uint8) []byte {
	for i := range p.parts {
		if p.parts[i].tag == tag {
			return p.parts[i].data
		}
	}
	return nil
}

// number returns an integer field; 0 if it is absent.
func (p *packet) number(tag uint8) uint64 {
	var b [8]byte
	copy(b[:], p.get(tag))
	return binary.LittleEndian.Uint64(b[:])
}

func (p *packet) code(tag uint8) Code { return Code(int32(uint32(p.number(tag)))) }

// text returns an optional text; nil if it is absent.
func (p *packet) text(tag uint8) *string {
	b := p.get(tag)
	if b == nil {
		return nil
	}
	s := string(b)
	return &s
}

func (p *packet) texts(tag uint8) []string {
	var list []string
	for _, f := range p.parts {
		if f.tag == tag {
			list = append(list, string(f.data))
		}
	}
	return list
}

// dump shows a packet in a test's output, secrets by their length only.
func (p *packet) dump() string {
	s := fmt.Sprintf("%d", p.typ)
	for _, f := range p.parts {
		switch k := lookup(p.typ, f.tag).kind; {
		case k == secretK:
			s += fmt.Sprintf(" %d=secret(%d)", f.tag, len(f.data))
		case k == kText:
			s += fmt.Sprintf(" %d=%q", f.tag, f.data)
		default:
			s += fmt.Sprintf(" %d=%d", f.tag, p.number(f.tag))
		}
	}
	return s
}

// builder writes a frame into a buffer of MaxPacket bytes that it is lent.
type builder struct {
	buf  []byte
	n    int
	full bool
}

func begin(buf []byte, t Type) *builder {
	b := &builder{buf: buf, n: header}
	binary.LittleEndian.PutUint16(buf, uint16(t))
	binary.LittleEndian.PutUint16(buf[2:], 0)
	return b
}

func (b *builder) put(tag uint8, data []byte) *builder {
	if b.full || len(data) > len(b.buf)-b.n-5 {
		b.full = true
		return b
	}
	b.buf[b.n] = tag
	binary.LittleEndian.PutUint32(b.buf[b.n+1:], uint32(len(data)))
	copy(b.buf[b.n+5:], data)
	b.n += 5 + len(data)
	return b
}

func (b *builder) text(tag uint8, s string) *builder { return b.put(tag, []byte(s)) }

func (b *builder) u8(tag, v uint8) *builder { return b.put(tag, []byte{v}) }

func (b *builder) flag(tag uint8, v bool) *builder {
	if v {
		return b.u8(tag, 1)
	}
	return b.u8(tag, 0)
}

func (b *builder) u32(tag uint8, v uint32) *builder {
	return b.put(tag, binary.LittleEndian.AppendUint32(nil, v))
}

func (b *builder) u64(tag uint8, v uint64) *builder {
	return b.put(tag, binary.LittleEndian.AppendUint64(nil, v))
}

func (b *builder) code(tag uint8, c Code) *builder {
	return b.u32(tag, uint32(int32(c)))
}

// done returns the packet, nil if it would be too long.
func (b *builder) done() []byte {
	if b.full {
		return nil
	}
	binary.LittleEndian.PutUint32(b.buf[4:], uint32(b.n-header))
	return b.buf[:b.n]
}
