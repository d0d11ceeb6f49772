package records

import (
	"errors"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// Authenticate checks what s offers against the hashes of the record. strict
// says whether a record without any way to authenticate is refused. c spares
// evaluating a hash twice; nil uses the one that s brings.
//
// Faults: BadPasswordAndNoToken where a token could have helped, BadPassword,
// BadRecoveryKey where only a recovery key can help, HomeCantAuthenticate,
// LimitsExceeded where hashes and secrets would take a minute and more,
// BadSignature for a zero record.
func Authenticate(v Verified, s *Secrets, strict bool, c *HashCache) error {
	if err := v.vouched(); err != nil {
		return err
	}
	return fit(v.Record(), s, strict, c)
}

// RefusedBy says what a copy of a record objects to in s, by the rules and
// faults of a strict Authenticate. That it does not object lets nobody in:
// nobody vouches for it.
func RefusedBy(r *Record, s *Secrets, c *HashCache) error { return fit(r, s, true, c) }

func fit(r *Record, s *Secrets, strict bool, c *HashCache) error {
	const op = "authenticate"
	a, err := newMatcher(r, s, c)
	if err != nil {
		return err
	}
	for _, h := range a.hashes {
		p, err := a.password(h)
		if p != nil || err != nil {
			return err
		}
	}
	for _, k := range a.recovery {
		p, err := a.recoveryKey(k)
		if p != nil || err != nil {
			return err
		}
	}
	switch {
	case a.tokens:
		return fault.New(fault.BadPasswordAndNoToken, op, nil)
	case len(a.hashes) > 0:
		return fault.New(fault.BadPassword, op, nil)
	case len(a.recovery) > 0:
		return fault.New(fault.BadRecoveryKey, op, nil)
	case strict:
		return fault.New(fault.HomeCantAuthenticate, op, nil)
	}
	return nil
}

// matcher finds what fits a record's hashes among the secrets offered.
type matcher struct {
	hashes    []string
	recovery  []*value
	tokens    bool
	passwords []*secret.Bytes
	canonical []*secret.Bytes
	cache     *HashCache
}

func newMatcher(r *Record, s *Secrets, c *HashCache) (*matcher, error) {
	p := layers{{privileged, r.doc.get("privileged")}}
	a := &matcher{
		hashes:   p.texts("hashedPassword"),
		recovery: p.entries("recoveryKey"),
		tokens:   p.hasEntries("pkcs11EncryptedKey") || p.hasEntries("fido2HmacSalt"),
		cache:    c,
	}
	if s != nil {
		var err error
		if a.canonical, err = s.recoveryKeys(); err != nil {
			return nil, err
		}
		a.passwords = s.Passwords
		if a.cache == nil {
			if s.cache == nil {
				s.cache = NewHashCache()
			}
			a.cache = s.cache
		}
	}
	if a.cache == nil {
		a.cache = NewHashCache()
	}
	return a, nil
}

// password returns the password that fits a hash, nil if there is none.
func (a *matcher) password(stored string) (*secret.Bytes, error) {
	for _, p := range a.cache.likelyFirst(stored, a.passwords) {
		if ok, err := a.cache.check(stored, p); ok || err != nil {
			return p, err
		}
	}
	return nil, nil
}

// recoveryKey returns what fits an entry of recoveryKey: for the type we know
// in its canonical spelling, for others as typed.
func (a *matcher) recoveryKey(entry *value) (*secret.Bytes, error) {
	offered := a.passwords
	if entry.get("type").textOr("") == RecoveryKeyType {
		offered = a.canonical
	}
	for _, p := range offered {
		if p == nil {
			continue
		}
		if ok, err := a.cache.check(entry.get("hashedPassword").str, p); ok || err != nil {
			return p, err
		}
	}
	return nil, nil
}

// plaintexts returns, borrowed, what fits each hash of the record in the
// record's order.
func plaintexts(v Verified, s *Secrets) ([]*secret.Bytes, error) {
	const op = "match secrets with the record"
	if err := v.vouched(); err != nil {
		return nil, err
	}
	a, err := newMatcher(v.Record(), s, nil)
	if err != nil {
		return nil, err
	}
	if len(a.hashes) == 0 {
		return nil, fault.New(fault.InvalidArgs, op, errors.New("record has no hashed password"))
	}
	var out []*secret.Bytes
	for _, h := range a.hashes {
		p, err := a.password(h)
		if err != nil {
			return nil, err
		}
		if p == nil {
			// Nothing offered at all reads differently to a person.
			if len(a.passwords) == 0 {
				return nil, fault.New(fault.KeyUnavailable, op, nil)
			}
			return nil, fault.New(fault.BadPassword, op, nil)
		}
		out = append(out, p)
	}
	for _, k := range a.recovery {
		p, err := a.recoveryKey(k)
		if err != nil {
			return nil, err
		}
		if p == nil {
			return nil, fault.New(fault.BadRecoveryKey, op, nil)
		}
		out = append(out, p)
	}
	if a.tokens {
		return nil, fault.New(fault.BadPasswordAndNoToken, op, nil)
	}
	return out, nil
}

// RequirePlaintexts checks that for every password, recovery key and token of
// the record what opens it is at hand: a home is made with a keyslot for each.
// Faults: InvalidArgs for a record without password, KeyUnavailable when no
// password is offered, BadPassword, BadRecoveryKey, BadPasswordAndNoToken,
// BadSignature for a zero record.
func RequirePlaintexts(v Verified, s *Secrets) error {
	_, err := plaintexts(v, s)
	return err
}

// EffectivePassphrases returns the keyslot passphrases in the record's order:
// the password of each hash, then the canonical spelling of each recovery
// key. The caller closes them. Faults as for RequirePlaintexts.
func (v Verified) EffectivePassphrases(s *Secrets) ([]*secret.Bytes, error) {
	borrowed, err := plaintexts(v, s)
	if err != nil {
		return nil, err
	}
	var out []*secret.Bytes
	for _, p := range borrowed {
		c, err := p.Clone()
		if err != nil {
			secret.CloseAll(out)
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}
