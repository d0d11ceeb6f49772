package records

import (
	"errors"
	"slices"

	"hearth/internal/fault"
)

// Touched returns the record as changed at the time now, in microseconds since
// 1970; password says that the password was changed too. It has to be signed
// again. Fault: RecordMismatch when the record says it is not older than now,
// as then other copies would not notice the change.
func (r *Record) Touched(now uint64, password bool) (*Record, error) {
	l := layers{{regular, r.doc}}
	for _, f := range []string{"lastChangeUSec", "lastPasswordChangeUSec"} {
		if n := l.u64(f); n != nil && *n >= now {
			return nil, fault.New(fault.RecordMismatch, "note change in user record", errors.New(f+" is not older than the present"))
		}
	}
	doc := r.doc.set("lastChangeUSec", newUnsigned(now))
	if password {
		doc = doc.set("lastPasswordChangeUSec", newUnsigned(now))
	}
	return &Record{doc}, nil
}

// CheckUpdate checks that next may follow the record in use, by user and by
// age. Other aliases are refused too: nothing could bring them to all copies of
// a record at once. Its signature is the caller's to check. Faults:
// RecordMismatch, RecordDowngrade.
func (r *Record) CheckUpdate(next *Record) error {
	const op = "check updated user record"
	if !r.SameUser(next) {
		return fault.Newf(fault.RecordMismatch, op, "Updated user record is not compatible with existing one.")
	}
	switch age := compareChange(next, r); {
	case age < 0:
		return fault.Newf(fault.RecordDowngrade, op, "Refusing to update to older home record.")
	case !slices.Equal(slices.Sorted(slices.Values(r.Aliases())), slices.Sorted(slices.Values(next.Aliases()))):
		return fault.Newf(fault.RecordMismatch, op, "Aliases of an existing home cannot be changed.")
	case age == 0 && !r.SameContent(next):
		return fault.Newf(fault.RecordMismatch, op, "Home record different but timestamp remained the same, refusing.")
	}
	return nil
}
