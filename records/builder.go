package records

import (
	"fmt"

	"hearth/internal/fault"
)

// A Builder puts a record together, field by field, and keeps their order. It
// takes strings, bools, ints, uints, []string and Objects; nil is JSON's null.
// The first mistake is kept and comes out of Record.
type Builder struct {
	doc *value
	err error
}

// An Object is a JSON object for a Builder.
type Object []Field

// A Field is one member of an Object.
type Field struct {
	Name  string
	Value any
}

// NewBuilder starts a record.
func NewBuilder(userName string) *Builder {
	return &Builder{doc: newObject(member{"userName", newText(userName)})}
}

// Edit starts from an existing record.
func (r *Record) Edit() *Builder { return &Builder{doc: r.doc} }

func (b *Builder) toValue(v any) *value {
	switch v := v.(type) {
	case nil:
		return &value{}
	case string:
		return newText(v)
	case bool:
		return newBool(v)
	case int:
		return newInteger(int64(v))
	case int64:
		return newInteger(v)
	case uint32:
		return newUnsigned(uint64(v))
	case uint64:
		return newUnsigned(v)
	case []string:
		return newTexts(v)
	case []Object:
		list := make([]*value, len(v))
		for i, o := range v {
			list[i] = b.toValue(o)
		}
		return newArray(list)
	case Object:
		o := newObject()
		for _, f := range v {
			o = o.with(f.Name, b.toValue(f.Value))
		}
		return o
	}
	if b.err == nil {
		b.err = fmt.Errorf("records: a field cannot hold a %T", v)
	}
	return &value{}
}

// set replaces a member where it stands, else adds it at the end.
func (v *value) set(key string, val *value) *value {
	out := newObject(append([]member(nil), v.members...)...)
	for i := range out.members {
		if out.members[i].key == key {
			out.members[i].value = val
			return out
		}
	}
	out.members = append(out.members, member{key, val})
	return out
}

// Set sets a field of the regular section.
func (b *Builder) Set(field string, v any) *Builder {
	b.doc = b.doc.set(field, b.toValue(v))
	return b
}

// Has reports whether the regular section has that field.
func (b *Builder) Has(field string) bool { return b.doc.get(field) != nil }

// SetPrivileged sets a field of the privileged section.
func (b *Builder) SetPrivileged(field string, v any) *Builder {
	p := b.doc.get("privileged")
	if !p.is(object) {
		p = newObject()
	}
	b.doc = b.doc.set("privileged", p.set(field, b.toValue(v)))
	return b
}

// AppendPrivileged adds an object to a list of the privileged section.
func (b *Builder) AppendPrivileged(field string, o Object) *Builder {
	var list []*value
	if old := b.doc.get("privileged").get(field); old.is(array) {
		list = append(list, old.list...)
	}
	p := b.doc.get("privileged")
	if !p.is(object) {
		p = newObject()
	}
	b.doc = b.doc.set("privileged", p.set(field, newArray(append(list, b.toValue(o)))))
	return b
}

// Append adds strings to a list of the regular section, those it has already
// left out.
func (b *Builder) Append(field string, items ...string) *Builder {
	return b.Set(field, unique(append(texts(b.doc.get(field)), items...)))
}

// SetPerMachine sets a field for one machine alone. All entries that name
// exactly this machine become one, at the end, together with an entry for all
// other machines if there is one: what is set here then wins over the rest.
func (b *Builder) SetPerMachine(machineID, field string, v any) *Builder {
	val := b.toValue(v)
	b.forMachine(machineID, func(own, others *value) (*value, *value) { return own.set(field, val), others })
	return b
}

// Drop removes a field from the regular and privileged section and from the
// entries for and against this machine.
func (b *Builder) Drop(machineID, field string) *Builder {
	b.doc = b.doc.without(field)
	if p := b.doc.get("privileged"); p.get(field) != nil {
		if p = p.without(field); len(p.members) == 0 {
			b.doc = b.doc.without("privileged")
		} else {
			b.doc = b.doc.set("privileged", p)
		}
	}
	if b.doc.get("perMachine") != nil {
		b.forMachine(machineID, func(own, others *value) (*value, *value) { return own.without(field), others.without(field) })
	}
	return b
}

// forMachine takes the entries for exactly this machine and for all machines
// but it out of perMachine, and puts what f makes of them at its end.
func (b *Builder) forMachine(machineID string, f func(own, others *value) (*value, *value)) {
	own, others := newObject(), newObject()
	var rest []*value
	if list := b.doc.get("perMachine"); list.is(array) {
		for _, e := range list.list {
			switch {
			case e.get("matchMachineId").textOr("") == machineID:
				own = own.merge(e.without("matchMachineId"))
			case e.get("matchNotMachineId").textOr("") == machineID:
				others = others.merge(e.without("matchNotMachineId"))
			default:
				rest = append(rest, e)
			}
		}
	}
	own, others = f(own, others)
	add := func(o *value, condition string) {
		if len(o.members) > 0 {
			rest = append(rest, newObject(append([]member{{condition, newText(machineID)}}, o.members...)...))
		}
	}
	add(own, "matchMachineId")
	add(others, "matchNotMachineId")
	if len(rest) == 0 {
		b.doc = b.doc.without("perMachine")
	} else {
		b.doc = b.doc.set("perMachine", newArray(rest))
	}
}

// Record returns the record. Fault: InvalidArgs for one that cannot be parsed
// again.
func (b *Builder) Record() (*Record, error) {
	if b.err != nil {
		return nil, fault.New(fault.InvalidArgs, "build user record", b.err)
	}
	return Parse(appendCompact(nil, b.doc), ClientReply)
}
