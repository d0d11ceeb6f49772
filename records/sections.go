package records

import (
	"errors"
	"fmt"
	"slices"

	"hearth/internal/fault"
)

// A section is a set of parts of a record.
type section uint

const (
	regular section = 1 << iota
	privileged
	perMachine
	binding
	status
	signature
	secretSection
)

// special are the sections that are one top-level member each; every other
// member belongs to the regular section.
var special = []struct {
	bit section
	key string
}{
	{privileged, "privileged"},
	{secretSection, "secret"},
	{binding, "binding"},
	{perMachine, "perMachine"},
	{status, "status"},
	{signature, "signature"},
}

func sectionOf(key string) section {
	for _, s := range special {
		if s.key == key {
			return s.bit
		}
	}
	return regular
}

// A Context says where a record comes from, and with that which sections it
// may hold and how strictly its fields are read.
type Context int

const (
	HostFile     Context = iota // NAME.identity on the host
	WorkerInput                 // what the daemon gives a worker
	WorkerOutput                // what a worker gives back
	EmbeddedFile                // ~/.identity, the token in the LUKS2 header
	BusCreate                   // CreateHome: the only one that refuses bad fields
	BusUpdate                   // UpdateHome, Update
	BusRegister                 // RegisterHome
	ClientReply                 // what clients get from the daemon
	ClientCreate                // identity file given to "homectl create"
	ClientKeep                  // the same with --seize=no: keeps the signature
)

type mask struct {
	allow, strip section
	strict       bool
	given        bool       // by somebody, to be kept
	bad          fault.Kind // when a section is missing or not allowed
}

// most is how many bytes a record may have, as text and in a file.
func (m mask) most() int {
	if m.given {
		return MaxFile / 2
	}
	return MaxFile
}

const (
	signedParts = regular | privileged | perMachine
	allParts    = signedParts | binding | status | signature
)

// The secret section is in no mask: CutSecret takes it out of the text before
// a parser sees it, whatever the context does with it afterwards.
var masks = map[Context]mask{
	HostFile:     {allow: allParts, bad: fault.Inconsistent},
	WorkerInput:  {allow: allParts, bad: fault.Inconsistent},
	WorkerOutput: {allow: allParts, bad: fault.Inconsistent},
	EmbeddedFile: {allow: signedParts | signature, bad: fault.Inconsistent},
	BusCreate:    {allow: signedParts | signature, strict: true, given: true, bad: fault.InvalidArgs},
	BusUpdate:    {allow: signedParts | signature, given: true, bad: fault.InvalidArgs},
	BusRegister:  {allow: signedParts | signature, strip: binding | status, given: true, bad: fault.InvalidArgs},
	ClientReply:  {allow: allParts, bad: fault.InvalidArgs},
	ClientCreate: {allow: signedParts, strip: binding | status | signature, bad: fault.InvalidArgs},
	ClientKeep:   {allow: signedParts | signature, strip: binding | status, bad: fault.InvalidArgs},
}

// A Record is one user record. It is never changed: what looks like a change
// returns another Record.
type Record struct {
	doc *value
}

// MaxFile bounds a record by the bytes of its file, which has a tab for each
// level before each line: a text of a few hundred KiB, nested deeply, would
// fill a disk. What comes over the bus may take half of it, so that with a
// signature, binding and status it can be read again.
const MaxFile = 16 << 20

const notARecord = "JSON data is not a valid identity record"

// Parse reads a record's text. Cut the secret section out of it first
// (CutSecret): a text that still holds one is refused.
//
// Faults: InvalidArgs for text that is not JSON, for a key given twice and
// for a record without a user name; WrongMedium for numbers that cannot be
// signed; for a section that is missing or has no place here, and for a record
// beyond MaxFile, Inconsistent in files and InvalidArgs on the bus. BusCreate
// also checks every known field of the regular and privileged sections
// (InvalidArgs); Validate checks the rest.
func Parse(text []byte, c Context) (*Record, error) {
	const op = "parse user record"
	if n := masks[c].most(); len(text) > n {
		return nil, &fault.Error{Kind: masks[c].bad, Op: op, Text: notARecord, Err: fmt.Errorf("%d bytes, more than %d", len(text), n)}
	}
	doc, err := parseDocument(text)
	if err != nil {
		var at *SyntaxError
		e := fault.New(fault.InvalidArgs, op, err)
		if errors.As(err, &at) {
			e.Text = fmt.Sprintf("Failed to parse JSON identity record at %d:%d: %s", at.Line, at.Column, at.What)
		}
		return nil, e
	}
	if doc, err = load(doc, len(text), masks[c]); err != nil {
		return nil, err
	}
	r := &Record{doc}
	if !fields["userName"].valid(doc.get("userName")) {
		return nil, &fault.Error{Kind: fault.InvalidArgs, Op: op, Text: notARecord, Err: errors.New("no user name")}
	}
	if masks[c].strict {
		if err := r.checkFields(nil); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// load applies a mask to a document that was made of a text of that length.
func load(doc *value, length int, m mask) (*value, error) {
	const op = "check sections of user record"
	if !doc.is(object) {
		return nil, &fault.Error{Kind: m.bad, Op: op, Text: notARecord, Err: errors.New("not an object")}
	}
	// Before anything is stripped, so that a section given twice cannot hide.
	if err := signableErr(hasNormalForm(doc)); err != nil {
		return nil, err
	}
	most := m.most()
	// Two bytes of text and more become a line of at most its tabs and a number.
	if length*(depth(doc)+32) > most {
		if n := fileSize(doc, 0); n > most {
			return nil, &fault.Error{Kind: m.bad, Op: op, Text: notARecord, Err: fmt.Errorf("%d bytes in a file, more than %d", n, most)}
		}
	}
	for _, s := range special {
		if m.strip&s.bit != 0 {
			doc = doc.without(s.key)
		} else if doc.get(s.key) != nil && m.allow&s.bit == 0 {
			return nil, &fault.Error{Kind: m.bad, Op: op, Text: notARecord, Err: fmt.Errorf("contains %s field, which is not allowed here", s.key)}
		}
	}
	if !slices.ContainsFunc(doc.members, func(m member) bool { return sectionOf(m.key) == regular }) {
		return nil, &fault.Error{Kind: m.bad, Op: op, Text: notARecord, Err: errors.New("no regular section")}
	}
	return doc, nil
}

// signableErr gives the failures of hasNormalForm the texts that clients know.
func signableErr(err error) error {
	const op = "normalise user record"
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errReal):
		return fault.New(fault.WrongMedium, op, err)
	default:
		return &fault.Error{Kind: fault.InvalidArgs, Op: op, Text: "Name not unique on network", Err: err}
	}
}

// normal returns the normal form of a document that Parse let in.
func normal(doc *value, pairs bool) *value {
	n, err := normalise(doc, pairs)
	if err != nil {
		panic("records: a record without normal form came to be: " + err.Error())
	}
	return n
}

// Compact returns the text for the bus, the worker and the LUKS2 token:
// members as they came, no white space, no newline.
func (r *Record) Compact() []byte { return compact(r.doc) }

// Pretty returns the text for files: normalised, indented, with a newline at
// the end.
func (r *Record) Pretty() []byte {
	return append(appendPretty(nil, normal(r.doc, true), 0), '\n')
}

// PrettyAsIs returns the indented text with a newline at the end and members
// as they came: what clients show.
func (r *Record) PrettyAsIs() []byte { return append(appendPretty(nil, r.doc, 0), '\n') }

// keep returns the record with those sections only.
func (r *Record) keep(s section) *Record {
	out := newObject()
	for _, m := range r.doc.members {
		if sectionOf(m.key)&s != 0 {
			out.members = append(out.members, m)
		}
	}
	return &Record{out}
}

// WithoutSecret returns the record without a secret section.
func (r *Record) WithoutSecret() *Record { return r.keep(allParts) }

// Embedded returns the copy that travels with the home: without binding,
// status and secret.
func (r *Record) Embedded() *Record { return r.keep(signedParts | signature) }

// Signable returns what a signature covers.
func (r *Record) Signable() *Record { return r.keep(signedParts) }

// HasSignature reports whether there is at least one signature, whoever made it.
func (r *Record) HasSignature() bool {
	s := r.doc.get("signature")
	return s.is(array) && len(s.list) > 0
}

// Equal reports whether two records say the same in every section.
func (r *Record) Equal(o *Record) bool { return equal(r.doc, o.doc) }

// SameContent reports whether two records say the same in the sections that a
// signature covers.
func (r *Record) SameContent(o *Record) bool { return equal(r.Signable().doc, o.Signable().doc) }

// withSection returns the record with that section set to v, or removed when
// v is nil.
func (r *Record) withSection(key string, v *value) *Record { return &Record{r.doc.with(key, v)} }

// WithBindingOf returns the record with the whole binding section of o, and
// without any when o has none.
func (r *Record) WithBindingOf(o *Record) *Record {
	return r.withSection("binding", o.doc.get("binding"))
}

// WithStatusOf returns the record with the whole status section of o, and
// without any when o has none.
func (r *Record) WithStatusOf(o *Record) *Record {
	return r.withSection("status", o.doc.get("status"))
}

// WithoutSignature returns the record unsigned.
func (r *Record) WithoutSignature() *Record { return r.keep(allParts &^ signature) }
