package bus

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/internal/secret"
)

// handle is an argument of type h: an index into the message's descriptors.
type handle int

// maxSealed is how long a text in a memfd may be, in bytes: as long as one that
// comes through a system bus.
const maxSealed = 32 << 20

// unseal puts the texts of sealed memfds in the place of their descriptors, and
// closes those. From there on the call is what it would be with strings. It is
// done before anybody is asked anything, so that calls that wait hold no
// descriptor. Faults: InvalidArgs, LimitsExceeded.
func (s *server) unseal(c *call) error {
	for i, a := range c.args {
		h, ok := a.(handle)
		if !ok {
			continue
		}
		fd := c.msg.fds[h]
		if fd < 0 {
			return unfitSealed(errors.New("descriptor was used before"))
		}
		c.msg.fds[h] = -1
		text, err := s.readSealed(c, fd)
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
		c.args[i] = text
	}
	return nil
}

func unfitSealed(why error) error {
	f := fault.Newf(fault.InvalidArgs, "read sealed memfd", "A sealed memfd with text was expected.")
	f.Err = why
	return f
}

// readSealed reads what a stranger's descriptor holds. It counts as large calls
// do, and is wiped when the call is answered.
func (s *server) readSealed(c *call, fd int) ([]byte, error) {
	// Seals first: only memfds have them all, and the question never reaches a
	// file system that might keep us waiting. Seals are final, so size and
	// content cannot change below our hands.
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || seals&secret.Seals != secret.Seals {
		return nil, unfitSealed(errors.Join(errors.New("not sealed"), err))
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxSealed {
		return nil, unfitSealed(errors.Join(errors.New("not a file of acceptable size"), err))
	}
	size := int(st.Size)
	if !s.held.take(size) {
		return nil, fault.New(fault.LimitsExceeded, "read sealed memfd", nil)
	}
	c.done = append(c.done, func() { s.held.give(size) })
	if !s.held.takeFor(c.uid, size) {
		return nil, fault.New(fault.LimitsExceeded, "read sealed memfd", fmt.Errorf("UID %d has too many", c.uid))
	}
	c.done = append(c.done, func() { s.held.giveFor(c.uid, size) })
	text := make([]byte, size)
	c.done = append(c.done, func() { clear(text) })
	// Not read: where the descriptor stands is the sender's to move.
	for n := 0; n < size; {
		k, err := unix.Pread(fd, text[n:], int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || k == 0 {
			return nil, unfitSealed(errors.Join(errors.New("cannot be read"), err))
		}
		n += k
	}
	// The rule for strings on the bus.
	if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
		return nil, unfitSealed(errors.New("no UTF-8, or NUL within"))
	}
	return text, nil
}

// progress tells the caller how far its call is. That it is gone is no failure.
func (s *server) progress(c *call) func(stage string, done, total uint64) {
	to, serial, user := c.msg.sender, c.msg.serial, c.user
	return func(stage string, done, total uint64) {
		_ = s.conn.tell(to, home1.OwnPath, home1.OwnInterface, "Progress", user, serial, stage, done, total)
	}
}

// handles is how many descriptors a call of the method brings as arguments.
func handles(m *home1.Method) int {
	n := 0
	for _, a := range m.In {
		if a.Type == "h" {
			n++
		}
	}
	return n
}

// resolveOwn finds an object of those that answer under our own name. Fault:
// UnknownObject.
func resolveOwn(path string) (*node, error) {
	switch path {
	case "/":
		return &node{children: fixed("org")}, nil
	case "/org":
		return &node{children: fixed("hearth")}, nil
	case "/org/hearth":
		return &node{children: fixed("Home1")}, nil
	case home1.OwnPath:
		return &node{own: []*home1.Interface{home1.OwnManager}, children: fixed()}, nil
	}
	return nil, fault.Newf(fault.UnknownObject, "find object", "Unknown object '%s'.", path)
}
