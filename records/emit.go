package records

import (
	"strconv"
)

// appendCompact writes v without any white space, members in their order.
func appendCompact(dst []byte, v *value) []byte {
	switch v.kind {
	case array:
		dst = append(dst, '[')
		for i, e := range v.list {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendCompact(dst, e)
		}
		return append(dst, ']')
	case object:
		dst = append(dst, '{')
		for i, m := range v.members {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendString(dst, m.key)
			dst = append(dst, ':')
			dst = appendCompact(dst, m.value)
		}
		return append(dst, '}')
	}
	return appendScalar(dst, v)
}

// appendPretty writes v with one tab per level, as systemd stores records.
func appendPretty(dst []byte, v *value, level int) []byte {
	line := func(n int) {
		dst = append(dst, '\n')
		for range n {
			dst = append(dst, '\t')
		}
	}
	switch {
	case v.kind == array && len(v.list) > 0:
		for i, e := range v.list {
			dst = append(dst, "[,"[min(i, 1)])
			line(level + 1)
			dst = appendPretty(dst, e, level+1)
		}
		line(level)
		return append(dst, ']')
	case v.kind == object && len(v.members) > 0:
		for i, m := range v.members {
			dst = append(dst, "{,"[min(i, 1)])
			line(level + 1)
			dst = appendString(dst, m.key)
			dst = append(dst, " : "...)
			dst = appendPretty(dst, m.value, level+1)
		}
		line(level)
		return append(dst, '}')
	}
	return appendCompact(dst, v)
}

func appendScalar(dst []byte, v *value) []byte {
	switch v.kind {
	case boolean:
		return strconv.AppendBool(dst, v.num != 0)
	case integer:
		return strconv.AppendInt(dst, int64(v.num), 10)
	case unsigned:
		return strconv.AppendUint(dst, v.num, 10)
	case real:
		// The signed bytes depend on these 21 digits.
		return strconv.AppendFloat(dst, v.float(), 'e', 21, 64)
	case text:
		return appendString(dst, v.str)
	}
	return append(dst, "null"...)
}

const hexDigits = "0123456789abcdef"

// appendString escapes what JSON demands and nothing else: signatures cover
// the bytes.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' {
			esc, n := escape(c)
			dst = append(append(dst, s[from:i]...), esc[:n]...)
			from = i + 1
		}
	}
	return append(append(dst, s[from:]...), '"')
}

// length is about how many bytes v takes in compact form: a buffer of that
// size rarely grows.
func length(v *value) int {
	n := len(v.str) + 6
	for _, e := range v.list {
		n += length(e)
	}
	for _, m := range v.members {
		n += len(m.key) + 4 + length(m.value)
	}
	return n
}

// fileSize is how many bytes appendPretty makes of v.
func fileSize(v *value, level int) int {
	var scratch [32]byte
	switch {
	case v.kind == text:
		return stringSize(v.str)
	case v.kind != array && v.kind != object:
		return len(appendScalar(scratch[:0], v))
	case len(v.list)+len(v.members) == 0:
		return len("{}")
	}
	const line = len(",\n\t")
	n := len("\n}") + level
	for _, e := range v.list {
		n += line + level + fileSize(e, level+1)
	}
	for _, m := range v.members {
		n += line + level + stringSize(m.key) + len(" : ") + fileSize(m.value, level+1)
	}
	return n
}

// depth is how deeply v is nested: 0 for what holds nothing.
func depth(v *value) int {
	d := 0
	for _, e := range v.list {
		d = max(d, 1+depth(e))
	}
	for _, m := range v.members {
		d = max(d, 1+depth(m.value))
	}
	return d
}

func stringSize(s string) int {
	n := len(s) + 2
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' {
			_, e := escape(c)
			n += e - 1
		}
	}
	return n
}

// compact writes v into a buffer of its own.
func compact(v *value) []byte { return appendCompact(make([]byte, 0, length(v)), v) }

// escape returns the escape sequence of c and its length, 0 if c stands for
// itself.
func escape(c byte) (esc [6]byte, n int) {
	short := func(e byte) ([6]byte, int) { return [6]byte{'\\', e}, 2 }
	switch c {
	case '"', '\\':
		return short(c)
	case '\b':
		return short('b')
	case '\f':
		return short('f')
	case '\n':
		return short('n')
	case '\r':
		return short('r')
	case '\t':
		return short('t')
	}
	if c < 0x20 {
		return [6]byte{'\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15]}, 6
	}
	return esc, 0
}
