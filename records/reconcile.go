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
	Record *Record
	// Header says who won against the copy in the LUKS2 header, Embedded who
	// won in the end against the one in the home; blobs follow the latter.
	Header, Embedded           Winner
	WriteHeader, WriteEmbedded bool
}

// Reconcile picks the record that counts from the host's, the LUKS2 header's
// (nil for other storage) and the one in the home. Its result is bound as the
// host's record is. Whoever calls verifies the signature of what won before
// acting on it, and decides whether the operation writes copies at all.
//
// Faults: OtherUser when a copy belongs to someone else, StaleRecord when the
// mode does not allow the winner, InvalidArgs for a copy with a binding.
func Reconcile(host, header, embedded *Record, m Mode) (Reconciled, error) {
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
		if at, out.Header, err = reconcile(host, header, mode); err != nil {
			return out, err
		}
		if out.Header == HostWon && m == Newer {
			m = NewerOrEqual
		}
	}
	var err error
	if out.Record, out.Embedded, err = reconcile(at, embedded, m); err != nil {
		return out, err
	}
	extract := out.Record.Embedded()
	out.WriteEmbedded = !extract.Equal(embedded)
	out.WriteHeader = header != nil && !extract.Equal(header)
	return out, nil
}

func reconcile(host, embedded *Record, m Mode) (*Record, Winner, error) {
	const op = "reconcile user records"
	if !host.SameUser(embedded) {
		return nil, 0, &fault.Error{Kind: fault.OtherUser, Op: op, Text: "Embedded home record not compatible with host record, refusing.",
			Err: errors.New("the records are of different users")}
	}
	if embedded.doc.get("binding") != nil || embedded.doc.get("secret") != nil {
		return nil, 0, fault.New(fault.InvalidArgs, op, errors.New("embedded record has a binding or secret section"))
	}
	age := compareChange(host, embedded)
	switch {
	case age > 0:
		return host.WithoutSecret(), HostWon, nil
	case age == 0 && !host.SameContent(embedded):
		return host.WithoutSecret(), HostWon, nil
	case age == 0 && m == Newer:
		return nil, 0, fault.New(fault.StaleRecord, op, errors.New("the record in the home is as new as the one given"))
	case age == 0:
		return host.WithoutSecret(), Identical, nil
	case m == NewerOrEqual:
		return nil, 0, fault.New(fault.StaleRecord, op, errors.New("the record in the home is newer than the one given"))
	}
	// An update that is older than what the home has falls through to here
	// as well: the home's record then counts, as with the real daemon.
	return embedded.WithoutSecret().WithBindingOf(host).withSection("status", nil), EmbeddedWon, nil
}
