package records

import (
	"hearth/internal/secret"
)

// RecoveryKeyType is the only type of recovery key with rules of its own.
const RecoveryKeyType = "modhex64"

// modhex are the sixteen letters that keyboards have in the same place.
const modhex = "cbdefghijklnrtuv"

const (
	recoveryDigits = 64
	recoveryLen    = recoveryDigits + 7 // eight groups, dashes between
)

// NormaliseRecoveryKey returns the canonical spelling of a recovery key, lower
// case in dashed groups of eight, which is what is hashed and what opens a
// keyslot. It returns nil for what is no recovery key. The caller closes the
// result.
func NormaliseRecoveryKey(p *secret.Bytes) (*secret.Bytes, error) {
	var key *secret.Bytes
	err := p.Use(func(b []byte) error {
		if len(b) != recoveryDigits && len(b) != recoveryLen {
			return nil
		}
		var out [recoveryLen]byte
		defer clear(out[:])
		n := 0
		for i, c := range b {
			if len(b) == recoveryLen && i%9 == 8 {
				if c != '-' {
					return nil
				}
				continue
			}
			if n%9 == 8 {
				out[n] = '-'
				n++
			}
			if c >= 'A' && c <= 'Z' {
				c += 'a' - 'A'
			}
			digit := false
			for j := range len(modhex) {
				digit = digit || modhex[j] == c
			}
			if !digit {
				return nil
			}
			out[n] = c
			n++
		}
		var err error
		key, err = secret.Copy(out[:])
		return err
	})
	return key, err
}

// NewRecoveryKey spells 32 random bytes as a recovery key. raw stays the
// caller's to wipe, the result is the caller's to close.
func NewRecoveryKey(raw []byte) (*secret.Bytes, error) {
	var out [recoveryLen]byte
	defer clear(out[:])
	n := 0
	for i, c := range raw[:32] {
		if i > 0 && i%4 == 0 {
			out[n] = '-'
			n++
		}
		out[n], out[n+1] = modhex[c>>4], modhex[c&15]
		n += 2
	}
	return secret.Copy(out[:])
}
