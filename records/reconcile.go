package records

import (
	"errors"

	"hearth/internal/fault"
)

// A Mode says which of two records of different age is welcome.
type Mode int

const (
	Any          Mode = iota // activate, authenticate: the newer one, wherever it is
	NewerOrEqual             // passwd, resize: the host's may not be older
	Newer                    // update: the host's is newer, that is the update
)

// A Winner says which copy counts from now on.
type Winner int

const (
	Identical Winner = iota
	HostWon
	EmbeddedWon
)

func (w Winner) String() string {
	switch w {
	case HostWon:
		return "host version was newer"
	case EmbeddedWon:
		return "embedded version was newer"
	}
	return "host and embedded version were identical"
}

// Reconciled is the record that counts, and what is to be done about the
// copies in the home.
type Reconciled struct {
	Record Verified
	// Header says who won against the copy in the LUKS2 header, Embedded who
	// won in the end against the one in the home; blobs follow the latter.
	Header, Embedded           Winner
	WriteHeader, WriteEmbedded bool
}

// Reconcile picks the record that counts from the host's, the LUKS2 header's
// (nil for other storage) and the one in the home. Its result is bound as the
// host's record is, and vouched for: a copy that is newer has to be signed by a
// key of k, one that is not newer only loses. A home that was just found has no
// record of its own yet, so that any copy is newer. Whether the operation writes
// copies at all is for the caller to decide.
//
// Faults: OtherUser when a copy belongs to someone else, StaleRecord when the
// mode does not allow the winner, InvalidArgs for a copy with a binding,
// BadSignature when nobody vouches for the winner.
func (k *Keys) Reconcile(host Subject, header, embedded *Record, m Mode) (Reconciled, error) {
	var out Reconciled
	at := host
	if header != nil {
		mode := m
		if mode == Newer {
			// That the header has the update already is no reason to refuse:
			// the last try may have come that far.
			mode = NewerOrEqual
		}
		var err error
		if at, out.Header, err = k.reconcile(host, header, mode); err != nil {
			return out, err
		}
		if out.Header == HostWon && m == Newer {
			m = NewerOrEqual
		}
	}
	var err error
	if out.Record, out.Embedded, err = k.reconcile(at, embedded, m); err != nil {
		return out, err
	}
	extract := out.Record.Embedded()
	out.WriteEmbedded = !extract.Equal(embedded)
	out.WriteHeader = header != nil && !extract.Equal(header)
	return out, nil
}

// Judge refuses a copy of a record that would rule although nobody vouches for
// it, before anything that it belongs to is trusted. Faults as for Reconcile.
func (k *Keys) Judge(host Subject, copied *Record) error {
	_, _, err := k.reconcile(host, copied, Any)
	return err
}

func (k *Keys) reconcile(subject Subject, embedded *Record, m Mode) (Verified, Winner, error) {
	const op = "reconcile user records"
	host := subject.Record()
	refuse := func(err *fault.Error) (Verified, Winner, error) { return Verified{}, 0, err }
	if !host.SameUser(embedded) {
		return refuse(&fault.Error{Kind: fault.OtherUser, Op: op, Text: "Embedded home record not compatible with host record, refusing.",
			Err: errors.New("the records are of different users")})
	}
	if embedded.doc.get("binding") != nil || embedded.doc.get("secret") != nil {
		return refuse(fault.New(fault.InvalidArgs, op, errors.New("embedded record has a binding or secret section")))
	}
	age := compareChange(host, embedded)
	known, ok := subject.(Verified)
	if !ok || known.vouched() != nil {
		age = -1
	}
	switch {
	case age > 0:
		return known, HostWon, nil
	case age == 0 && !host.SameContent(embedded):
		return known, HostWon, nil
	case age == 0 && m == Newer:
		return refuse(fault.New(fault.StaleRecord, op, errors.New("the record in the home is as new as the one given")))
	case age == 0:
		return known, Identical, nil
	case m == NewerOrEqual:
		return refuse(fault.New(fault.StaleRecord, op, errors.New("the record in the home is newer than the one given")))
	}
	// An update that is older than what the home has falls through to here
	// as well: the home's record then counts, as with the real daemon.
	//
	// Copies are stored in normal form. Most signatures hold for the same lists
	// in other orders too, in which they could mean something else.
	stored := embedded.Embedded()
	won, err := k.Vouch(&Record{normal(stored.doc, true)})
	if err != nil {
		won, err = k.Vouch(stored)
	}
	if err != nil {
		return Verified{}, 0, err
	}
	return won.WithBindingOf(subject), EmbeddedWon, nil
}
