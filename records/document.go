package records

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// maxDepth is how deeply arrays and objects may be nested.
const maxDepth = 2048

// maxValues is how many values a document may hold. Two bytes of text become
// one of eighty, and texts of many megabytes come from anybody.
const maxValues = 1 << 18

type kind uint8

const (
	null kind = iota
	boolean
	integer  // below zero
	unsigned // zero and above
	real
	text
	array
	object
)

// A value is one parsed JSON value. Values are never changed once they are
// part of a Record, so records share them freely.
type value struct {
	kind    kind
	num     uint64 // boolean: 0 or 1; integer: two's complement; real: its bits
	str     string
	list    []*value
	members []member
}

type member struct {
	key   string
	value *value
}

func newText(s string) *value      { return &value{kind: text, str: s} }
func newUnsigned(n uint64) *value  { return &value{kind: unsigned, num: n} }
func newReal(f float64) *value     { return &value{kind: real, num: math.Float64bits(f)} }
func newArray(l []*value) *value   { return &value{kind: array, list: l} }
func newObject(m ...member) *value { return &value{kind: object, members: m} }
func (v *value) float() float64    { return math.Float64frombits(v.num) }
func (v *value) is(k kind) bool    { return v != nil && v.kind == k }
func (v *value) textOr(s string) string {
	if v.is(text) {
		return v.str
	}
	return s
}

func newInteger(n int64) *value {
	if n >= 0 {
		return newUnsigned(uint64(n))
	}
	return &value{kind: integer, num: uint64(n)}
}

func newBool(b bool) *value {
	v := &value{kind: boolean}
	if b {
		v.num = 1
	}
	return v
}

func newTexts(list []string) *value {
	l := make([]*value, len(list))
	for i, s := range list {
		l[i] = newText(s)
	}
	return newArray(l)
}

// get returns the first member of that name, or nil; nil too when v is no
// object.
func (v *value) get(key string) *value {
	if v == nil || v.kind != object {
		return nil
	}
	for i := range v.members {
		if v.members[i].key == key {
			return v.members[i].value
		}
	}
	return nil
}

// with returns the object with that member at its end, or without it when val
// is nil. v may be nil or no object at all, which counts as an empty one.
func (v *value) with(key string, val *value) *value {
	out := newObject()
	if v.is(object) {
		out.members = make([]member, 0, len(v.members)+1)
		for _, m := range v.members {
			if m.key != key {
				out.members = append(out.members, m)
			}
		}
	}
	if val != nil {
		out.members = append(out.members, member{key, val})
	}
	return out
}

func (v *value) without(keys ...string) *value {
	out := v
	for _, k := range keys {
		if out.get(k) != nil {
			out = out.with(k, nil)
		}
	}
	return out
}

// merge returns the object with all members of o put in, the replaced and the
// new ones last.
func (v *value) merge(o *value) *value {
	out := v
	if !out.is(object) {
		out = newObject()
	}
	for _, m := range o.members {
		out = out.with(m.key, m.value)
	}
	return out
}

// canonical returns kind and bits by which numbers compare: a real that is
// integral and fits is the same as the integer.
func (v *value) canonical() (kind, uint64) {
	if v.kind != real {
		return v.kind, v.num
	}
	f := v.float()
	if f != math.Trunc(f) {
		return real, v.num
	}
	switch {
	case f >= 0 && f < 1<<64:
		return unsigned, uint64(f)
	case f < 0 && f >= -1<<63:
		return integer, uint64(int64(f))
	}
	return real, v.num
}

// equal compares as "the same record" does: members in any order, elements in
// theirs, numbers by value. Neither side may hold duplicate keys.
func equal(a, b *value) bool {
	if a == nil || b == nil {
		return a == b
	}
	if a == b {
		return true
	}
	ak, an := a.canonical()
	bk, bn := b.canonical()
	if ak != bk {
		return false
	}
	switch ak {
	case text:
		return a.str == b.str
	case array:
		if len(a.list) != len(b.list) {
			return false
		}
		for i := range a.list {
			if !equal(a.list[i], b.list[i]) {
				return false
			}
		}
		return true
	case object:
		if len(a.members) != len(b.members) {
			return false
		}
		index := make(map[string]*value, len(b.members))
		for _, m := range b.members {
			index[m.key] = m.value
		}
		for _, m := range a.members {
			if o, ok := index[m.key]; !ok || !equal(m.value, o) {
				return false
			}
		}
		return true
	}
	return an == bn
}

// A SyntaxError says where a text stops being JSON that records accept. It
// quotes nothing of the text, which may hold secrets.
type SyntaxError struct {
	Line, Column int // from 1, in bytes
	What         string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%d:%d: %s", e.Line, e.Column, e.What)
}

// A scanner walks JSON text. It decodes nothing by itself, so that the code
// that looks for secrets shares the grammar with the parser without ever
// making a string of one.
type scanner struct {
	in     []byte
	pos    int
	values int // that were made
}

func (s *scanner) fail(what string) error {
	e := &SyntaxError{Line: 1, Column: 1, What: what}
	for _, c := range s.in[:min(s.pos, len(s.in))] {
		e.Column++
		if c == '\n' {
			e.Line++
			e.Column = 1
		}
	}
	return e
}

func (s *scanner) peek() byte {
	if s.pos < len(s.in) {
		return s.in[s.pos]
	}
	return 0
}

func (s *scanner) space() {
	for s.pos < len(s.in) {
		switch s.in[s.pos] {
		case ' ', '\t', '\r', '\n':
			s.pos++
		default:
			return
		}
	}
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
		r <<= 4
		switch {
		case c >= '0' && c <= '9':
			r |= rune(c - '0')
		case c >= 'a' && c <= 'f':
			r |= rune(c-'a') + 10
		case c >= 'A' && c <= 'F':
			r |= rune(c-'A') + 10
		default:
			return 0, false
		}
	}
	return r, true
}

// stringToken steps over a string and returns what stands between its quotes,
// which unescape then decodes.
func (s *scanner) stringToken() ([]byte, error) {
	if s.peek() != '"' {
		return nil, s.fail("string expected")
	}
	s.pos++
	start := s.pos
	for s.pos < len(s.in) {
		c := s.in[s.pos]
		switch {
		case c == '"':
			s.pos++
			return s.in[start : s.pos-1], nil
		case c < 0x20 || c == 0x7f:
			return nil, s.fail("control character in string")
		case c == '\\':
			if s.pos+1 >= len(s.in) {
				return nil, s.fail("unfinished escape")
			}
			switch s.in[s.pos+1] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
				s.pos += 2
			case 'u':
				r, ok := hex4(s.in[s.pos+2:])
				if !ok || r == 0 {
					return nil, s.fail("bad escape")
				}
				n := 6
				if r >= 0xd800 && r < 0xe000 {
					rest := s.in[s.pos+6:]
					if r >= 0xdc00 || len(rest) < 6 || rest[0] != '\\' || rest[1] != 'u' {
						return nil, s.fail("surrogate without its pair")
					}
					low, ok := hex4(rest[2:])
					if !ok || low < 0xdc00 || low > 0xdfff {
						return nil, s.fail("surrogate without its pair")
					}
					n = 12
				}
				s.pos += n
			default:
				return nil, s.fail("bad escape")
			}
		case c < utf8.RuneSelf:
			s.pos++
		default:
			r, n := utf8.DecodeRune(s.in[s.pos:])
			if r == utf8.RuneError && n <= 1 {
				return nil, s.fail("malformed UTF-8")
			}
			s.pos += n
		}
	}
	return nil, s.fail("unfinished string")
}

// unescape decodes what stringToken returned into dst and returns the number
// of bytes. With a nil dst it only counts. dst must be long enough: decoding
// never lengthens.
func unescape(dst, raw []byte) int {
	n := 0
	put := func(b ...byte) {
		if dst != nil {
			copy(dst[n:], b)
		}
		n += len(b)
	}
	for i := 0; i < len(raw); {
		c := raw[i]
		if c != '\\' {
			put(c)
			i++
			continue
		}
		i += 2
		switch c = raw[i-1]; c {
		case 'b':
			put('\b')
		case 'f':
			put('\f')
		case 'n':
			put('\n')
		case 'r':
			put('\r')
		case 't':
			put('\t')
		case 'u':
			r, _ := hex4(raw[i:])
			i += 4
			if r >= 0xd800 && r < 0xdc00 {
				low, _ := hex4(raw[i+2:])
				r = 0x10000 + (r-0xd800)<<10 + (low - 0xdc00)
				i += 6
			}
			var buf [utf8.UTFMax]byte
			k := utf8.EncodeRune(buf[:], r)
			put(buf[:k]...)
			clear(buf[:])
		default:
			put(c)
		}
	}
	return n
}

// numberToken steps over a number and says whether it has neither fraction
// nor exponent.
func (s *scanner) numberToken() (raw []byte, whole bool, err error) {
	start := s.pos
	digits := func() int {
		n := s.pos
		for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
			s.pos++
		}
		return s.pos - n
	}
	if s.peek() == '-' {
		s.pos++
	}
	if s.peek() == '0' {
		s.pos++
		if c := s.peek(); c >= '0' && c <= '9' {
			return nil, false, s.fail("leading zero")
		}
	} else if digits() == 0 {
		return nil, false, s.fail("value expected")
	}
	whole = true
	if s.peek() == '.' {
		whole = false
		s.pos++
		if digits() == 0 {
			return nil, false, s.fail("digit expected")
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		whole = false
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		if digits() == 0 {
			return nil, false, s.fail("digit expected")
		}
	}
	return s.in[start:s.pos], whole, nil
}

// The literals are the same value wherever they stand: values do not change.
var (
	valueTrue  = newBool(true)
	valueFalse = newBool(false)
	valueNull  = &value{}
)

func (s *scanner) literal() (*value, error) {
	word, v := "null", valueNull
	switch s.peek() {
	case 't':
		word, v = "true", valueTrue
	case 'f':
		word, v = "false", valueFalse
	}
	if rest := s.in[s.pos:]; len(rest) < len(word) || string(rest[:len(word)]) != word {
		return nil, s.fail("value expected")
	}
	s.pos += len(word)
	return v, nil
}

// elements walks the inside of an array or object whose opening bracket is
// next, calling each at the start of every element.
func (s *scanner) elements(closing byte, each func() error) error {
	s.pos++
	s.space()
	if s.peek() == closing {
		s.pos++
		return nil
	}
	for {
		if err := each(); err != nil {
			return err
		}
		s.space()
		switch s.peek() {
		case ',':
			s.pos++
			s.space()
		case closing:
			s.pos++
			return nil
		default:
			return s.fail("comma or closing bracket expected")
		}
	}
}

// colon steps from a key to its value.
func (s *scanner) colon() error {
	s.space()
	if s.peek() != ':' {
		return s.fail("colon expected")
	}
	s.pos++
	s.space()
	return nil
}

// skip steps over one value, as strict as the parser, and builds nothing.
func (s *scanner) skip(depth int) error {
	switch c := s.peek(); {
	case c == '"':
		_, err := s.stringToken()
		return err
	case c == '[', c == '{':
		if depth >= maxDepth {
			return s.fail("nested too deeply")
		}
		closing := byte(']')
		if c == '{' {
			closing = '}'
		}
		return s.elements(closing, func() error {
			if c == '{' {
				if _, err := s.stringToken(); err != nil {
					return err
				}
				if err := s.colon(); err != nil {
					return err
				}
			}
			return s.skip(depth + 1)
		})
	case c == '-', c >= '0' && c <= '9':
		raw, whole, err := s.numberToken()
		if err == nil {
			_, err = s.number(raw, whole)
		}
		return err
	}
	_, err := s.literal()
	return err
}

func (s *scanner) number(raw []byte, whole bool) (*value, error) {
	if whole {
		if raw[0] == '-' {
			if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
				return newInteger(n), nil
			}
		} else if n, err := strconv.ParseUint(string(raw), 10, 64); err == nil {
			return newUnsigned(n), nil
		}
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil {
		return nil, s.fail("number out of range")
	}
	return newReal(f), nil
}

// words are what stands in nearly every record: one copy serves all.
var words = make(map[string]string, 180)

func init() {
	for _, w := range []string{"privileged", "secret", "binding", "perMachine", "status", "signature", "data", "key", "type", RecoveryKeyType,
		"regular", "luks", "directory", "subvolume", "ext4", "btrfs", "aes", "xts-plain64", "pbkdf2", "argon2id", "sha512", Service} {
		words[w] = w
	}
}

// str decodes a string token. DEL cannot be written in a way that may be read
// again, so it is refused even in its escaped form.
func (s *scanner) str() (string, error) {
	raw, err := s.stringToken()
	if err != nil {
		return "", err
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		if word, ok := words[string(raw)]; ok {
			return word, nil
		}
		return string(raw), nil
	}
	buf := make([]byte, unescape(nil, raw))
	unescape(buf, raw)
	for _, c := range buf {
		if c == 0x7f {
			return "", s.fail("control character in string")
		}
	}
	return string(buf), nil
}

func exact[T any](list []T) []T {
	if len(list) == cap(list) {
		return list
	}
	return append(make([]T, 0, len(list)), list...)
}

func (s *scanner) value(depth int) (*value, error) {
	if s.values++; s.values > maxValues {
		return nil, s.fail("too many values")
	}
	switch c := s.peek(); {
	case c == '"':
		str, err := s.str()
		if err != nil {
			return nil, err
		}
		return newText(str), nil
	case c == '[', c == '{':
		if depth >= maxDepth {
			return nil, s.fail("nested too deeply")
		}
		v, closing := newArray(nil), byte(']')
		if c == '{' {
			v, closing = newObject(), '}'
		}
		err := s.elements(closing, func() error {
			var key string
			if c == '{' {
				var err error
				if key, err = s.str(); err != nil {
					return err
				}
				if err = s.colon(); err != nil {
					return err
				}
			}
			e, err := s.value(depth + 1)
			if err != nil {
				return err
			}
			if c == '{' {
				v.members = append(v.members, member{key, e})
			} else {
				v.list = append(v.list, e)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		// Records are kept for long; what appending left over is not.
		v.list, v.members = exact(v.list), exact(v.members)
		return v, nil
	case c == '-', c >= '0' && c <= '9':
		raw, whole, err := s.numberToken()
		if err != nil {
			return nil, err
		}
		return s.number(raw, whole)
	}
	return s.literal()
}

// parseDocument parses one JSON value that fills the text. Its errors are
// *SyntaxError. Duplicate keys are left to normalise.
func parseDocument(in []byte) (*value, error) {
	s := &scanner{in: in}
	s.space()
	v, err := s.value(0)
	if err != nil {
		return nil, err
	}
	s.space()
	if s.pos != len(in) {
		return nil, s.fail("data after the end")
	}
	return v, nil
}
