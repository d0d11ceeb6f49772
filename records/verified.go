package records

import (
	"errors"
	"fmt"

	"hearth/internal/fault"
)

// A Subject is whose home it is, in the form that this machine acts by: a
// Verified record, or a Found one. A plain Record is neither. It may be shown,
// compared and judged, and it grants nothing: what hands out a uid, a group, a
// directory, a limit or a way in takes a Subject or a Verified.
type Subject interface {
	// Record returns the document, to be written, sent or shown.
	Record() *Record
	// View returns what the record means on machine m.
	View(m Machine) View
	// Counters returns what was counted on that machine.
	Counters(machineID string) Counters
	// SignedLocally says whether this machine's key alone signed the record;
	// nil where nobody signed it.
	SignedLocally() *bool

	bound(machineID string, b Binding) Subject
	counted(machineID string, c Counters) Subject
	pack() Subject
}

// Verified is a record whose signed sections a key vouches for that counts
// here. Only Keys and Signer make one. The zero value vouches for nothing and
// nobody.
type Verified struct {
	held
	verdict Verdict
}

// Found is the record of a home of which this machine knows no more than what
// it found and decided itself: the name, and its own binding. It has neither
// passwords nor groups.
type Found struct{ held }

// held is the record of a subject: as a document, or as the text of one where it
// is to be kept for long. The parsed document takes three times the memory.
type held struct {
	record *Record
	text   string
}

// nobody stands for the record of a zero Verified or Found.
var nobody = &Record{newObject()}

// ErrUnsigned is what Vouch's error wraps for a record without a signature.
var ErrUnsigned = errors.New("the record is not signed")

// Vouch returns the record as one that a key vouches for. What its signature
// does not cover, binding and status, is the caller's to vouch for: the
// contexts of Parse let them in from this machine's own files only. Faults:
// BadSignature, Inconsistent for a signature section that cannot be read.
func (k *Keys) Vouch(r *Record) (Verified, error) {
	const op = "judge signature of user record"
	verdict, err := k.Verify(r)
	if err != nil {
		return Verified{}, err
	}
	switch verdict {
	case SignedByUs, SignedByUsToo, SignedByOther:
		return Verified{whole(r.WithoutSecret()), verdict}, nil
	case Unsigned:
		return Verified{}, &fault.Error{Kind: fault.BadSignature, Op: op, Err: ErrUnsigned,
			Text: fmt.Sprintf("User record %s is not signed at all, refusing.", r.UserName())}
	}
	return Verified{}, fault.Newf(fault.BadSignature, op, "User record %s is not signed by any known key, refusing.", r.UserName())
}

// FoundAs returns what is left of a record that nobody vouches for: its name,
// and what that machine bound to it.
func (r *Record) FoundAs(machineID string) Found {
	doc := newObject(member{"userName", newText(r.UserName())})
	if realm := r.Realm(); realm != "" {
		doc = doc.with("realm", newText(realm))
	}
	doc = doc.with("disposition", newText("regular"))
	if b := r.doc.get("binding").get(machineID); b.is(object) {
		doc = doc.with("binding", newObject(member{machineID, b}))
	}
	return Found{whole(&Record{doc})}
}

// Subject returns the record as Verified where a key vouches for it, else as
// Found.
func (k *Keys) Subject(r *Record, machineID string) Subject {
	if v, err := k.Vouch(r); err == nil {
		return v
	}
	return r.FoundAs(machineID)
}

// Bind returns the subject bound to a machine: what is set in b replaces what
// the existing binding says, the rest of it stays.
func Bind[S Subject](s S, machineID string, b Binding) S { return s.bound(machineID, b).(S) }

// Count returns the subject with those counters.
func Count[S Subject](s S, machineID string, c Counters) S { return s.counted(machineID, c).(S) }

// Attempt counts an attempt to authenticate at the time now, in microseconds.
// When too many were made ok is false and next says when the next may be made.
func Attempt[S Subject](s S, m Machine, now uint64) (after S, next uint64, ok bool) {
	c, next, ok := s.Counters(m.ID).Attempt(s.View(m), now)
	return Count(s, m.ID, c), next, ok
}

// Pack returns the same subject in a form that takes little memory, and in which
// each look at its record parses it anew.
func Pack[S Subject](s S) S { return s.pack().(S) }

func whole(r *Record) held { return held{record: r} }

// Record returns the document.
func (h held) Record() *Record {
	switch {
	case h.record != nil:
		return h.record
	case h.text == "":
		return nobody
	}
	doc, err := parseDocument([]byte(h.text))
	if err != nil {
		panic("records: a packed record cannot be read: " + err.Error())
	}
	return &Record{doc}
}

// packed leaves a document as it is that could not be read again: this machine
// may have added to a record that was as large as one may be.
func (h held) packed() held {
	if h.record == nil {
		return h
	}
	text := h.record.Compact()
	if doc, err := parseDocument(text); err != nil || !equal(doc, h.record.doc) {
		return h
	}
	return held{text: string(text)}
}

func (h held) empty() bool { return h.record == nil && h.text == "" }

func (v Verified) View(m Machine) View                { return v.Record().View(m) }
func (v Verified) Counters(machineID string) Counters { return v.Record().Counters(machineID) }

// Embedded returns the copy that travels with the home.
func (v Verified) Embedded() *Record { return v.Record().Embedded() }

// Verdict says who signed the record; Unsigned for the zero value.
func (v Verified) Verdict() Verdict { return v.verdict }

// vouched keeps a zero value from granting anything.
func (v Verified) vouched() error {
	if v.empty() || v.verdict == Unsigned {
		return fault.New(fault.BadSignature, "use user record", ErrUnsigned)
	}
	return nil
}

func (v Verified) SignedLocally() *bool {
	ours := v.verdict == SignedByUs
	return &ours
}

// WithBindingOf returns the record with the whole binding section of s.
func (v Verified) WithBindingOf(s Subject) Verified {
	return Verified{whole(v.Record().WithBindingOf(s.Record())), v.verdict}
}

// WithStatusOf returns the record with the whole status section of s.
func (v Verified) WithStatusOf(s Subject) Verified {
	return Verified{whole(v.Record().WithStatusOf(s.Record())), v.verdict}
}

func (v Verified) bound(machineID string, b Binding) Subject {
	return Verified{whole(v.Record().WithBinding(machineID, b)), v.verdict}
}

func (v Verified) counted(machineID string, c Counters) Subject {
	return Verified{whole(v.Record().WithCounters(machineID, c)), v.verdict}
}

func (f Found) View(m Machine) View                { return f.Record().View(m) }
func (f Found) Counters(machineID string) Counters { return f.Record().Counters(machineID) }
func (f Found) SignedLocally() *bool               { return nil }

func (f Found) bound(machineID string, b Binding) Subject {
	return Found{whole(f.Record().WithBinding(machineID, b))}
}

func (f Found) counted(machineID string, c Counters) Subject {
	return Found{whole(f.Record().WithCounters(machineID, c))}
}

func (v Verified) pack() Subject { return Verified{v.packed(), v.verdict} }
func (f Found) pack() Subject    { return Found{f.packed()} }
