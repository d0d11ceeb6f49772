package records

import (
	"io"
	"slices"

	"hearth/internal/secret"
)

// MergeSecrets returns what both offer, of passwords and PINs the newer ones
// first. What the newer one says of permissions counts, the older one where it
// says nothing. Both stay the callers', the result is closed by whoever asked;
// nil stands for no secrets.
func MergeSecrets(newer, older *Secrets) (*Secrets, error) {
	out := &Secrets{}
	for _, s := range []*Secrets{newer, older} {
		if s == nil {
			continue
		}
		for _, l := range []struct {
			to   *[]*secret.Bytes
			from []*secret.Bytes
		}{{&out.Passwords, s.Passwords}, {&out.TokenPins, s.TokenPins}} {
			for _, p := range l.from {
				c, err := p.Clone()
				if err != nil {
					out.Close()
					return nil, err
				}
				*l.to = addUnique(*l.to, c)
			}
		}
		theirs := s.flags()
		for i, mine := range out.flags() {
			if !*mine && !out.denied[i] {
				*mine, out.denied[i] = *theirs[i], s.denied[i]
			}
		}
	}
	return out, nil
}

// WithPasswords returns the record with the hashes of these passwords and no
// others, and without the demand to change the password. No passwords leave the
// record as it is. Each hash takes tens of milliseconds; the salts are from
// rand. The record has to be touched and signed again.
func (r *Record) WithPasswords(passwords []*secret.Bytes, rand io.Reader) (*Record, error) {
	if len(passwords) == 0 {
		return r, nil
	}
	hashes := make([]string, 0, len(passwords))
	for _, p := range passwords {
		h, err := HashPassword(p, rand)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, h)
	}
	p := r.doc.get("privileged")
	if !p.is(object) {
		p = newObject()
	}
	out := &Record{r.doc.set("privileged", p.set("hashedPassword", newTexts(hashes)))}
	return out.WithoutPasswordChangeNow(), nil
}

// WithoutPasswordChangeNow returns the record without the demand to change the
// password, on any machine. Entries of perMachine that said nothing else go.
func (r *Record) WithoutPasswordChangeNow() *Record {
	const name = "passwordChangeNow"
	doc := r.doc.without(name)
	entries := doc.get("perMachine")
	if !entries.is(array) {
		return &Record{doc}
	}
	var kept []*value
	for _, e := range entries.list {
		if e.get(name) != nil {
			e = e.without(name)
			if len(e.without("matchMachineId", "matchHostname").members) == 0 {
				continue
			}
		}
		kept = append(kept, e)
	}
	if len(kept) == 0 {
		return &Record{doc.without("perMachine")}
	}
	return &Record{doc.set("perMachine", newArray(kept))}
}

// WithDiskSize returns the record with that size in bytes for machine m alone,
// and out of rebalancing there: whoever asks for a size wants to keep it.
func (r *Record) WithDiskSize(m Machine, size uint64) *Record {
	return r.forMachine(m, member{"diskSize", newUnsigned(size)}, member{"rebalanceWeight", newUnsigned(0)})
}

// WithRebalanceWeight returns the record with that weight for machine m alone;
// nil stands for no weight of its own.
func (r *Record) WithRebalanceWeight(m Machine, weight *uint64) *Record {
	v := &value{}
	if weight != nil {
		v = newUnsigned(*weight)
	}
	return r.forMachine(m, member{"rebalanceWeight", v})
}

// forMachine sets fields in the last entry of perMachine that is for exactly
// machine m. Where there is none, or a later one counts on m too and could
// override it, an entry is added at the end. The form of the entry's condition
// stays: other daemons look for it in the same way.
func (r *Record) forMachine(m Machine, set ...member) *Record {
	var list []*value
	if entries := r.doc.get("perMachine"); entries.is(array) {
		list = slices.Clone(entries.list)
	}
	place := -1
	for i, e := range list {
		switch ids := e.get("matchMachineId"); {
		case ids.is(text) && ids.str == m.ID, ids.is(array) && len(ids.list) == 1 && ids.list[0].textOr("") == m.ID:
			place = i
		case ids == nil, m.matches(e):
			place = -1
		}
	}
	if place < 0 {
		place = len(list)
		list = append(list, newObject(member{"matchMachineId", newTexts([]string{m.ID})}))
	}
	for _, s := range set {
		list[place] = list[place].set(s.key, s.value)
	}
	return &Record{r.doc.set("perMachine", newArray(list))}
}

// SelfModifiable reports whether next differs from current only where
// current lets its owner change things. Signatures, binding and status play no
// part.
func SelfModifiable(current, next *Record, m Machine) bool {
	l := current.layers(m)
	list := func(name string, unset []string) []string {
		if own := l.texts(name); own != nil {
			return own
		}
		if current.View(m).Disposition != "regular" {
			return nil
		}
		return unset
	}
	own := ownFields{
		list("selfModifiableFields", SelfModifiableFields),
		list("selfModifiableBlobs", SelfModifiableBlobs),
		list("selfModifiablePrivileged", SelfModifiablePrivileged),
	}
	return equal(own.without(current.Signable().doc, m), own.without(next.Signable().doc, m))
}

// Postdated reports whether next says, and current does not, that something was
// changed later than now, in microseconds since 1970. No change could follow
// such a record until then: not even one that locks the account.
func Postdated(current, next *Record, now uint64) bool {
	was, is := layers{{regular, current.doc}}, layers{{regular, next.doc}}
	return slices.ContainsFunc([]string{"lastChangeUSec", "lastPasswordChangeUSec"}, func(name string) bool {
		n := is.u64Or(name, 0)
		return n > now && n != was.u64Or(name, 0)
	})
}

// ownFields are the fields, blobs and privileged fields that their owner may
// change.
type ownFields struct{ fields, blobs, privileged []string }

// without returns what of a document is not the owner's to change.
func (o ownFields) without(doc *value, m Machine) *value {
	doc = o.strip(doc)
	if p := doc.get("privileged"); p.is(object) {
		doc = withoutEmpty(doc, "privileged", p.without(o.privileged...))
	}
	entries := doc.get("perMachine")
	if !entries.is(array) {
		return doc
	}
	rest := newArray(nil)
	for _, e := range entries.list {
		// A condition is no field: what is for other machines is not the
		// owner's, whatever becomes of it.
		if e.is(object) && m.matches(e) {
			if e = o.strip(e); len(e.members) == 0 {
				continue
			}
		}
		rest.list = append(rest.list, e)
	}
	return withoutEmpty(doc, "perMachine", rest)
}

func (o ownFields) strip(obj *value) *value {
	obj = obj.without(o.fields...)
	if b := obj.get("blobManifest"); b.is(object) {
		obj = withoutEmpty(obj, "blobManifest", b.without(o.blobs...))
	}
	return obj
}

// withoutEmpty sets a member, or removes it when nothing is left of it.
func withoutEmpty(obj *value, key string, v *value) *value {
	if len(v.members)+len(v.list) == 0 {
		return obj.without(key)
	}
	return obj.set(key, v)
}
