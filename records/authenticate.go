package records

import (
	"errors"
	"slices"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// Authenticate checks what s offers against the hashes of the record. strict
// says whether a record without any way to authenticate is refused. c spares
// evaluating a hash twice; nil uses the one that s brings.
//
// Faults: BadPasswordAndNoToken where a token could have helped, or what that
// token would first ask of the person (TokenPresenceNeeded, TokenVerifyNeeded,
// TokenPinNeeded), BadPassword, BadRecoveryKey where only a recovery key can
// help, HomeCantAuthenticate,
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
	case a.cards || len(a.tokens) > 0:
		return fault.New(a.wanted(), op, nil)
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
	cards     bool     // there are keys on PKCS#11 tokens
	tokens    []*value // the salts of FIDO2 tokens
	offered   *Secrets // may be nil
	passwords []*secret.Bytes
	canonical []*secret.Bytes
	cache     *HashCache
}

func newMatcher(r *Record, s *Secrets, c *HashCache) (*matcher, error) {
	p := layers{{privileged, r.doc.get("privileged")}}
	a := &matcher{
		hashes:   p.texts("hashedPassword"),
		recovery: p.entries("recoveryKey"),
		cards:    p.hasEntries("pkcs11EncryptedKey"),
		tokens:   p.entries("fido2HmacSalt"),
		offered:  s,
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

// demand is what a FIDO2 token is missing: that the person allows what the token
// will ask of them, in the order in which it does, or only the token itself.
// Clients of systemd-homed know that the first comes before any token is looked
// for, and give it. No token can be spoken to here, so it ends with the last.
func (a *matcher) demand(salt *value) fault.Kind {
	asks := func(name string) bool { v := salt.get(name); return v.is(boolean) && v.num == 1 }
	switch s := a.offered; {
	case asks("up") && (s == nil || !s.PresencePermitted):
		return fault.TokenPresenceNeeded
	case asks("uv") && (s == nil || !s.VerificationPermitted):
		return fault.TokenVerifyNeeded
	case asks("clientPin") && (s == nil || len(s.TokenPins) == 0):
		return fault.TokenPinNeeded
	}
	return fault.BadPasswordAndNoToken
}

// wanted is the first that any of the tokens is missing.
func (a *matcher) wanted() fault.Kind {
	var all []fault.Kind
	for _, salt := range a.tokens {
		all = append(all, a.demand(salt))
	}
	for _, k := range []fault.Kind{fault.TokenPresenceNeeded, fault.TokenVerifyNeeded, fault.TokenPinNeeded} {
		if slices.Contains(all, k) {
			return k
		}
	}
	return fault.BadPasswordAndNoToken
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
	switch {
	case a.cards:
		return nil, fault.New(fault.BadPasswordAndNoToken, op, nil)
	case len(a.tokens) > 0:
		return nil, fault.New(a.demand(a.tokens[0]), op, nil)
	}
	return out, nil
}

// RequirePlaintexts checks that for every password, recovery key and token of
// the record what opens it is at hand: a home is made with a keyslot for each.
// Faults: InvalidArgs for a record without password, KeyUnavailable when no
// password is offered, BadPassword, BadRecoveryKey, BadPasswordAndNoToken and what
// comes before it with Authenticate, BadSignature for a zero record.
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
