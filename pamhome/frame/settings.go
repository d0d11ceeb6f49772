package frame

import "encoding/binary"

// Apply is what only the login process can change about itself. A nil pointer
// leaves a thing as it is.
type Apply struct {
	Umask             *uint32
	Nice              *int32 // relative
	Limits            []Limit
	Ambient, Bounding *uint64
}

// Limit is one resource limit by its number in setrlimit(2); 2^64-1 is
// infinity.
type Limit struct {
	Number     uint32
	Soft, Hard uint64
}

// Failed says which steps of an Apply did not succeed.
type Failed uint32

// The steps. Setting a umask cannot fail.
const (
	FailedNice     Failed = 2
	FailedLimit    Failed = 4
	FailedAmbient  Failed = 8
	FailedBounding Failed = 16
)

// Apply changes the login process, each step although the one before failed.
func (c *Conn) Apply(a Apply) (Failed, Code) {
	r := c.ask(TypeApply, TypeAck, nil, func(b *builder) {
		if a.Umask != nil {
			b.u32(1, *a.Umask)
		}
		if a.Nice != nil {
			b.u32(2, uint32(*a.Nice))
		}
		for _, l := range a.Limits {
			p := binary.LittleEndian.AppendUint32(nil, l.Number)
			p = binary.LittleEndian.AppendUint64(p, l.Soft)
			b.put(3, binary.LittleEndian.AppendUint64(p, l.Hard))
		}
		if a.Ambient != nil {
			b.u64(4, *a.Ambient)
		}
		if a.Bounding != nil {
			b.u64(5, *a.Bounding)
		}
	})
	return r.failed, r.code
}

// MaxTTYWrite is the longest mark that WriteTTY takes, in bytes.
const MaxTTYWrite = 512

// WriteTTY writes to the login program's terminal: standard output while the
// session opens, the same terminal when it closes. Without one it does
// nothing.
func (c *Conn) WriteTTY(p []byte) Code {
	return c.ask(TypeTTYWrite, TypeAck, nil, func(b *builder) { b.put(1, p) }).code
}

// Passwd is a user as the login program's libraries know it.
type Passwd struct {
	UID, GID    uint32
	Home, Shell string
}

// Lookup asks for a user by name, by way of the modules of nsswitch.conf.
func (c *Conn) Lookup(name string) (Passwd, Code) {
	r := c.ask(TypeLookup, TypePasswd, nil, func(b *builder) { b.text(1, name) })
	return r.passwd, r.code
}

func passwd(p *packet) Passwd {
	return Passwd{UID: uint32(p.number(2)), GID: uint32(p.number(3)), Home: string(p.get(4)), Shell: string(p.get(5))}
}
