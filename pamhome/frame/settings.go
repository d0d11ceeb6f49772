package frame

import (
	"fmt"

	"golang.org/x/sys/unix"
)

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
// Limits are those of a process, so they are set from here.
func (c *Conn) Apply(a Apply) (Failed, Code) {
	r := c.ask(TypeApply, TypeAck, nil, func(b *builder) {
		if a.Umask != nil {
			b.u32(1, *a.Umask)
		}
		if a.Nice != nil {
			b.u32(2, uint32(*a.Nice))
		}
		if a.Ambient != nil {
			b.u64(4, *a.Ambient)
		}
		if a.Bounding != nil {
			b.u64(5, *a.Bounding)
		}
	})
	if c.Err() != nil { // nobody is there to be changed
		return r.failed, r.code
	}
	for _, l := range a.Limits {
		if err := setLimit(c.host, l); err != nil {
			r.failed |= FailedLimit
			r.code = SystemErr
		}
	}
	return r.failed, r.code
}

// setLimit changes a limit of a process. Without the power to raise the hard
// limit it is the nearest that the hard limit allows.
func setLimit(pid int, l Limit) error {
	want := unix.Rlimit{Cur: min(l.Soft, l.Hard), Max: l.Hard}
	err := unix.Prlimit(pid, int(l.Number), &want, nil)
	if err != unix.EPERM {
		return err
	}
	var have unix.Rlimit
	if err := unix.Prlimit(pid, int(l.Number), nil, &have); err != nil {
		return err
	}
	want.Max = min(want.Max, have.Max)
	want.Cur = min(want.Cur, want.Max)
	return unix.Prlimit(pid, int(l.Number), &want, nil)
}

// MaxTTYWrite is the longest mark that WriteTTY takes, in bytes.
const MaxTTYWrite = 512

const keyTTY = "hearth-tty-fd"

// WriteTTY writes to the login program's terminal: standard output while the
// session opens, the same terminal when it closes, by when the login program
// may have closed its own. Without one it does nothing. Nobody counts on the
// text, so a terminal that takes no more loses it.
func (c *Conn) WriteTTY(p []byte) Code {
	v, code := c.Load(keyTTY)
	if v.File == nil {
		return code
	}
	defer func() { _ = v.File.Close() }()
	if c.phase == OpenSession {
		if code := c.StoreFile(keyTTY, v.File); code != Success {
			return code
		}
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", v.File.Fd()), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Success
	}
	defer func() { _ = unix.Close(fd) }()
	_, _ = unix.Write(fd, p)
	return Success
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
