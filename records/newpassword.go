package records

import "hearth/internal/secret"

// MergeSecrets joins what a password change brings: the secret section with
// the new passwords goes before that with the old ones, what is in both counts
// once. Either may be nil. The caller closes the result. Fault: InvalidArgs.
func MergeSecrets(fresh, old *secret.Bytes) (*secret.Bytes, error) {
	s, err := ParseSecrets(fresh)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	o, err := ParseSecrets(old)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	for _, l := range []struct{ to, from *[]*secret.Bytes }{{&s.Passwords, &o.Passwords}, {&s.TokenPins, &o.TokenPins}} {
		for _, p := range *l.from {
			*l.to = addUnique(*l.to, p)
		}
		*l.from = nil
	}
	s.PathPermitted = s.PathPermitted || o.PathPermitted
	s.PresencePermitted = s.PresencePermitted || o.PresencePermitted
	s.VerificationPermitted = s.VerificationPermitted || o.VerificationPermitted
	return s.Encode()
}

// WithPasswords returns the record with those hashes as its only passwords, and
// without the demand to change them, on whatever machine. It has to be signed
// again.
func (r *Record) WithPasswords(hashes []string) *Record {
	const demand = "passwordChangeNow"
	b := r.Edit().SetPrivileged("hashedPassword", hashes)
	doc := b.doc.without(demand)
	if list := doc.get("perMachine"); list.is(array) {
		entries := make([]*value, 0, len(list.list))
		for _, e := range list.list {
			if e.is(object) {
				e = e.without(demand)
			}
			entries = append(entries, e)
		}
		doc = doc.set("perMachine", newArray(entries))
	}
	return &Record{doc}
}
