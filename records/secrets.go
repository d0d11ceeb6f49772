package records

import (
	"errors"
	"slices"
	"unicode/utf8"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// CutSecret takes the secret section out of a record's text before a JSON
// decoder sees it. rest is the text without it and shares text's memory, whose
// former end is wiped; section is the section's JSON value, the caller's to
// close, nil if there was none.
//
// A text that is not the JSON of an object, or holds two secret sections, is
// wiped as a whole. Fault: InvalidArgs.
func CutSecret(text []byte) (rest []byte, section *secret.Bytes, err error) {
	rest, section, err = cutSecret(text)
	if err != nil {
		clear(text)
		section.Close()
		return nil, nil, invalidJSON(err)
	}
	return rest, section, nil
}

func invalidJSON(err error) error {
	e := fault.New(fault.InvalidArgs, "read JSON", err)
	var at *SyntaxError
	if errors.As(err, &at) {
		e.Text = "Failed to parse JSON identity record at " + at.Error()
	} else if errors.Is(err, errDuplicate) {
		e.Text = "Name not unique on network"
	}
	return e
}

// cutSecret does the cutting and leaves wiping on failure to its caller.
func cutSecret(in []byte) (rest []byte, section *secret.Bytes, err error) {
	s := &scanner{in: in}
	s.space()
	if s.peek() != '{' {
		return nil, nil, s.fail("object expected")
	}
	value, cut := span{}, span{}
	found, before, after := false, -1, -1 // end of the member before, start of the one after
	err = s.elements('}', func() error {
		start := s.pos
		key, err := s.stringToken()
		if err != nil {
			return err
		}
		if err := s.colon(); err != nil {
			return err
		}
		from := s.pos
		if err := s.skip(1); err != nil {
			return err
		}
		switch {
		case !keyIs(key, "secret"):
			if !found {
				before = s.pos
			} else if after < 0 {
				after = start
			}
		case found:
			return errDuplicate
		default:
			found = true
			value, cut = span{from, s.pos}, span{start, s.pos}
		}
		return nil
	})
	if err == nil {
		s.space()
		if s.pos != len(in) {
			err = s.fail("data after the end")
		}
	}
	if err != nil || !found {
		return in, nil, err
	}
	// One comma goes with the member.
	if before >= 0 {
		cut.from = before
	} else if after >= 0 {
		cut.to = after
	}
	if section, err = secret.Take(in[value.from:value.to]); err != nil {
		return nil, nil, err
	}
	n := cut.from + copy(in[cut.from:], in[cut.to:])
	clear(in[n:])
	return in[:n], section, nil
}

type span struct{ from, to int }

// keyIs compares a key as it stands between its quotes with a name.
func keyIs(raw []byte, name string) bool {
	if unescape(nil, raw) != len(name) {
		return false
	}
	buf := make([]byte, len(name))
	unescape(buf, raw)
	return string(buf) == name
}

// maxSecrets bounds a list of passwords: each takes a page of locked memory and
// a slow hash per hash of the record.
const maxSecrets = 256

// Secrets is what someone offers to authenticate with: the secret section,
// taken apart. Whoever makes one closes it; the passwords in it stay its own.
type Secrets struct {
	Passwords []*secret.Bytes
	TokenPins []*secret.Bytes
	// What the person agreed to: typing the PIN on the token's own pad,
	// touching the token, letting it verify them.
	PathPermitted, PresencePermitted, VerificationPermitted bool

	denied    [3]bool         // per flag: it was given, as false
	canonical []*secret.Bytes // per password its spelling as a recovery key, or nil
	cache     *HashCache
}

// Places says where each of the passwords is among those of s, -1 for those that
// are not.
func (s *Secrets) Places(passwords []*secret.Bytes) []int {
	places := make([]int, len(passwords))
	for i, p := range passwords {
		places[i] = slices.IndexFunc(s.Passwords, p.Equal)
	}
	return places
}

// Remember has s bring c wherever no cache is given: an operation has one.
func (s *Secrets) Remember(c *HashCache) { s.cache = c }

// ParseSecrets reads a secret section, a JSON object. nil is an empty one.
// Fields that are not known or of a wrong type are ignored. section stays the
// caller's. Fault: InvalidArgs for what is no JSON object.
func ParseSecrets(section *secret.Bytes) (*Secrets, error) {
	s := &Secrets{}
	if section == nil {
		return s, nil
	}
	if err := section.Use(s.parse); err != nil {
		s.Close()
		return nil, invalidJSON(err)
	}
	return s, nil
}

func (s *Secrets) parse(in []byte) error {
	scan := &scanner{in: in}
	scan.space()
	if scan.peek() != '{' {
		return scan.fail("object expected")
	}
	// A field given twice counts the first time.
	seen := map[string]bool{}
	err := scan.elements('}', func() error {
		key, err := scan.stringToken()
		if err != nil {
			return err
		}
		if err := scan.colon(); err != nil {
			return err
		}
		from := scan.pos
		if err := scan.skip(1); err != nil {
			return err
		}
		for _, name := range []string{"password", "tokenPin", "pkcs11Pin",
			"pkcs11ProtectedAuthenticationPathPermitted", "fido2UserPresencePermitted", "fido2UserVerificationPermitted"} {
			if keyIs(key, name) && !seen[name] {
				seen[name] = true
				return s.set(name, in[from:scan.pos])
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	scan.space()
	if scan.pos != len(in) {
		return scan.fail("data after the end")
	}
	return nil
}

var flagNames = [3]string{"pkcs11ProtectedAuthenticationPathPermitted", "fido2UserPresencePermitted", "fido2UserVerificationPermitted"}

// flags are in the order of flagNames.
func (s *Secrets) flags() [3]*bool {
	return [3]*bool{&s.PathPermitted, &s.PresencePermitted, &s.VerificationPermitted}
}

// set reads one known field from the text of its value.
func (s *Secrets) set(name string, text []byte) error {
	if i := slices.Index(flagNames[:], name); i >= 0 {
		*s.flags()[i], s.denied[i] = text[0] == 't', text[0] == 'f'
		return nil
	}
	list := &s.TokenPins
	if name == "password" {
		list = &s.Passwords
	}
	read, err := secretTexts(text)
	for _, p := range read {
		*list = addUnique(*list, p)
	}
	return err
}

// addUnique takes p over: into the list, or away if it is there already.
func addUnique(list []*secret.Bytes, p *secret.Bytes) []*secret.Bytes {
	for _, o := range list {
		if o.Equal(p) {
			p.Close()
			return list
		}
	}
	return append(list, p)
}

// secretTexts reads a text, or a list of nothing but texts. Anything else
// counts as unset. The text has been scanned once already.
func secretTexts(in []byte) ([]*secret.Bytes, error) {
	scan := &scanner{in: in}
	var out []*secret.Bytes
	usable := true
	one := func() error {
		if scan.peek() != '"' {
			usable = false
			return scan.skip(1)
		}
		if len(out) == maxSecrets {
			return scan.fail("too many secrets")
		}
		raw, err := scan.stringToken()
		if err != nil {
			return err
		}
		p, err := secret.New(unescape(nil, raw))
		if err != nil {
			return err
		}
		out = append(out, p)
		return p.Use(func(b []byte) error { unescape(b, raw); return nil })
	}
	var err error
	if scan.peek() == '[' {
		err = scan.elements(']', one)
	} else {
		err = one()
	}
	if err != nil || !usable {
		secret.CloseAll(out)
		return nil, err
	}
	return out, nil
}

// StopOn makes evaluations of hashes give up, with fault.Timeout, once stop is
// closed.
func (s *Secrets) StopOn(stop <-chan struct{}) {
	if s.cache == nil {
		s.cache = NewHashCache()
	}
	s.cache.StopOn(stop)
}

// Close wipes everything. It may be called twice and on nil.
func (s *Secrets) Close() {
	if s == nil {
		return
	}
	secret.CloseAll(s.Passwords)
	secret.CloseAll(s.TokenPins)
	secret.CloseAll(s.canonical)
	*s = Secrets{}
}

// Empty reports whether nothing at all is offered.
func (s *Secrets) Empty() bool {
	return s == nil || len(s.Passwords)+len(s.TokenPins) == 0 && !s.PathPermitted && !s.PresencePermitted && !s.VerificationPermitted
}

// Candidates returns what may open a keyslot: every password as typed, and in
// its canonical spelling if it is a recovery key. The caller closes them.
func (s *Secrets) Candidates() ([]*secret.Bytes, error) {
	if s == nil {
		return nil, nil
	}
	canonical, err := s.recoveryKeys()
	if err != nil {
		return nil, err
	}
	var out []*secret.Bytes
	for i, p := range s.Passwords {
		for _, q := range []*secret.Bytes{p, canonical[i]} {
			if q == nil {
				continue
			}
			c, err := q.Clone()
			if err != nil {
				secret.CloseAll(out)
				return nil, err
			}
			out = addUnique(out, c)
		}
	}
	return out, nil
}

// recoveryKeys returns, per password, its canonical spelling or nil. They stay
// the Secrets' own.
func (s *Secrets) recoveryKeys() ([]*secret.Bytes, error) {
	for len(s.canonical) < len(s.Passwords) {
		key, err := NormaliseRecoveryKey(s.Passwords[len(s.canonical)])
		if err != nil {
			return nil, err
		}
		s.canonical = append(s.canonical, key)
	}
	return s.canonical, nil
}

// EncodeSecrets writes a secret section with those passwords. The caller
// closes the result. Fault: InvalidArgs for a password that JSON cannot hold:
// one with a NUL or that is not UTF-8.
func EncodeSecrets(passwords []*secret.Bytes) (*secret.Bytes, error) {
	s := &Secrets{Passwords: passwords}
	return s.Encode()
}

// Encode writes the secret section. The caller closes the result. Fault:
// InvalidArgs for a password or PIN with a NUL or that is not UTF-8.
func (s *Secrets) Encode() (*secret.Bytes, error) {
	// The first round only measures: a buffer that grows leaves copies.
	n, err := s.encode(nil)
	if err != nil {
		return nil, err
	}
	out, err := secret.New(n)
	if err != nil {
		return nil, err
	}
	if err := out.Use(func(b []byte) error { _, err := s.encode(b); return err }); err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

func (s *Secrets) encode(dst []byte) (n int, err error) {
	put := func(part []byte) {
		if dst != nil {
			copy(dst[n:], part)
		}
		n += len(part)
	}
	comma := "{"
	key := func(name string) {
		put([]byte(comma + `"` + name + `":`))
		comma = ","
	}
	for _, list := range []struct {
		name  string
		items []*secret.Bytes
	}{{"password", s.Passwords}, {"tokenPin", s.TokenPins}} {
		if len(list.items) == 0 {
			continue
		}
		key(list.name)
		for i, p := range list.items {
			put([]byte{"[,"[min(i, 1)], '"'})
			if err := p.Use(func(b []byte) error { return putEscaped(put, b) }); err != nil {
				return 0, err
			}
			put([]byte{'"'})
		}
		put([]byte{']'})
	}
	for _, flag := range []struct {
		name string
		set  bool
	}{{"pkcs11ProtectedAuthenticationPathPermitted", s.PathPermitted}, {"fido2UserPresencePermitted", s.PresencePermitted},
		{"fido2UserVerificationPermitted", s.VerificationPermitted}} {
		if flag.set {
			key(flag.name)
			put([]byte("true"))
		}
	}
	if n == 0 {
		put([]byte{'{'})
	}
	put([]byte{'}'})
	return n, nil
}

func putEscaped(put func([]byte), p []byte) error {
	if !utf8.Valid(p) {
		return fault.Newf(fault.InvalidArgs, "encode secrets", "Password is not valid UTF-8")
	}
	for i, c := range p {
		switch esc, n := escape(c); {
		case c == 0:
			return fault.Newf(fault.InvalidArgs, "encode secrets", "Password contains a NUL byte")
		case c == 0x7f:
			// Not allowed as it is, though the record's texts hold it nowhere.
			put([]byte(`\u007f`))
		case n > 0:
			put(esc[:n])
		default:
			put(p[i : i+1])
		}
	}
	return nil
}
