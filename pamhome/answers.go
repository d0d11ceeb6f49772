package pamhome

import (
	"slices"
	"unicode/utf8"

	"hearth/internal/secret"
)

// answers is what is known of a home's secrets: the content of a record's
// secret section, with its members in the order in which they were learned.
type answers struct {
	passwords []*secret.Bytes // newest first
	pin       *secret.Bytes

	order []string
}

const (
	memberPassword     = "password"
	memberPIN          = "tokenPin"
	memberPath         = "pkcs11ProtectedAuthenticationPathPermitted"
	memberPresence     = "fido2UserPresencePermitted"
	memberVerification = "fido2UserVerificationPermitted"
)

func (a *answers) Close() {
	secret.CloseAll(a.passwords)
	a.pin.Close()
}

// has reports whether a member is known.
func (a *answers) has(member string) bool { return slices.Contains(a.order, member) }

func (a *answers) empty() bool { return len(a.order) == 0 }

func (a *answers) learn(member string) {
	if !a.has(member) {
		a.order = append(a.order, member)
	}
}

// tried reports whether p is one of the passwords, all of which go along with
// each call.
func (a *answers) tried(p *secret.Bytes) bool { return slices.ContainsFunc(a.passwords, p.Equal) }

// addPassword takes p over and puts it first.
func (a *answers) addPassword(p *secret.Bytes) {
	a.passwords = slices.DeleteFunc(a.passwords, func(o *secret.Bytes) bool {
		same := o.Equal(p)
		if same {
			o.Close()
		}
		return same
	})
	a.passwords = append([]*secret.Bytes{p}, a.passwords...)
	a.learn(memberPassword)
}

// setPIN takes p over. Only the newest PIN is ever sent: a token counts tries.
func (a *answers) setPIN(p *secret.Bytes) {
	a.pin.Close()
	a.pin = p
	a.learn(memberPIN)
}

func (a *answers) permit(member string) { a.learn(member) }

// newest returns the last password learned, nil if none; it stays a's.
func (a *answers) newest() *secret.Bytes {
	if len(a.passwords) == 0 {
		return nil
	}
	return a.passwords[0]
}

// encode returns the JSON object, the caller's to close. It is written into
// memory of its final size: growth would leave copies.
func (a *answers) encode() (*secret.Bytes, error) {
	n := 0
	if err := a.write(func(b []byte) { n += len(b) }); err != nil {
		return nil, err
	}
	out, err := secret.New(n)
	if err != nil {
		return nil, err
	}
	err = out.Use(func(dst []byte) error {
		return a.write(func(b []byte) { dst = dst[copy(dst, b):] })
	})
	if err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

func (a *answers) write(put func([]byte)) error {
	text := func(s string) { put([]byte(s)) }
	list := func(secrets ...*secret.Bytes) error {
		text("[")
		for i, s := range secrets {
			if i > 0 {
				text(",")
			}
			if err := s.Use(func(p []byte) error { writeString(p, put); return nil }); err != nil {
				return err
			}
		}
		text("]")
		return nil
	}
	text("{")
	for i, m := range a.order {
		if i > 0 {
			text(",")
		}
		text(`"` + m + `":`)
		var err error
		switch m {
		case memberPassword:
			err = list(a.passwords...)
		case memberPIN:
			err = list(a.pin)
		default:
			text("true")
		}
		if err != nil {
			return err
		}
	}
	text("}")
	return nil
}

// writeString writes a JSON string, piece by piece from p itself.
func writeString(p []byte, put func([]byte)) {
	const hex = "0123456789abcdef"
	put([]byte{'"'})
	for from := 0; from < len(p); {
		to := from
		for to < len(p) && p[to] >= 0x20 && p[to] != '"' && p[to] != '\\' {
			to++
		}
		put(p[from:to])
		if to < len(p) {
			switch c := p[to]; {
			case c == '"' || c == '\\':
				put([]byte{'\\', c})
			default:
				put([]byte{'\\', 'u', '0', '0', hex[c>>4], hex[c&15]})
			}
			to++
		}
		from = to
	}
	put([]byte{'"'})
}

// travels reports whether an answer can be sent in JSON.
func travels(s *secret.Bytes) bool {
	ok := false
	_ = s.Use(func(p []byte) error {
		ok = utf8.Valid(p)
		return nil
	})
	return ok
}
