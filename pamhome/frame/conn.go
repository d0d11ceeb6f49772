package frame

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"hearth/internal/secret"
)

// Style is how a message is shown (security/_pam_types.h).
type Style uint8

// The styles of a conversation.
const (
	EchoOff Style = 1
	EchoOn  Style = 2
	Error   Style = 3
	Info    Style = 4
)

// ValueKind says what lies under a key of the PAM handle.
type ValueKind uint8

// The kinds of value.
const (
	Nothing ValueKind = 0
	Text    ValueKind = 1
	Mark    ValueKind = 2 // "not ours"
	Held    ValueKind = 3 // a descriptor that keeps a home active
)

// Value is what lies under a key.
type Value struct {
	Kind ValueKind
	Text []byte
	File *os.File // the terminal, where that was asked for; the caller's to close
}

// reply is the answer to a request, copied out of the packet.
type reply struct {
	typ    Type
	code   Code
	secret *secret.Bytes
	value  Value
	failed Failed
	passwd Passwd
}

// Conn is the helper's end. Its requests may come from one goroutine at a
// time; Log may be called from any. A request on a connection that ended
// returns SystemErr: the caller need not look, since Done tells and no result
// of it reaches anybody.
type Conn struct {
	sock *os.File
	fd   int
	out  *secret.Bytes

	phase Phase
	host  int // process id of the login program, -1: we see another one by it

	send    sync.Mutex // one packet at a time, and the buffer
	replies chan reply

	mu     sync.Mutex
	asked  Type // type of the answer due, 0: none
	err    error
	done   chan struct{}
	reader chan struct{}
}

// New takes over sock, a connected SOCK_SEQPACKET socket, reads START from it
// and keeps reading until the end. The caller closes both results.
func New(sock *os.File) (*Conn, *Start, error) {
	out, err := secret.New(MaxPacket)
	if err != nil {
		_ = sock.Close()
		return nil, nil, err
	}
	in, err := secret.New(MaxPacket)
	if err != nil {
		out.Close()
		_ = sock.Close()
		return nil, nil, err
	}
	c := &Conn{
		sock: sock, fd: int(sock.Fd()), out: out,
		replies: make(chan reply, 1), done: make(chan struct{}), reader: make(chan struct{}),
	}
	var s *Start
	err = c.receive(in, func(p *packet, file *os.File) error {
		var err error
		s, err = readStart(p, file)
		return err
	})
	if err != nil {
		in.Close()
		close(c.reader)
		c.Close()
		return nil, nil, fmt.Errorf("read START: %w", err)
	}
	if c.phase, c.host = s.Phase, -1; c.phase == OpenSession {
		c.host = s.hostPID() // only a session's settings need it
	}
	go func() {
		defer close(c.reader)
		defer in.Close()
		for {
			if err := c.receive(in, c.answer); err != nil {
				c.end(err)
				return
			}
		}
	}()
	return c, s, nil
}

// Done is closed when the other side went away or broke the protocol.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, nil while it has not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and wipes its buffers.
func (c *Conn) Close() {
	_ = unix.Shutdown(c.fd, unix.SHUT_RDWR) // wakes the reader
	<-c.reader
	c.end(io.EOF)
	select {
	case r := <-c.replies:
		r.secret.Close()
		if r.value.File != nil {
			_ = r.value.File.Close()
		}
	default:
	}
	c.send.Lock()
	defer c.send.Unlock()
	_ = c.sock.Close()
	c.out.Close()
}

func (c *Conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		close(c.done)
	}
}

// receive reads one packet into the locked buffer and lends it to f, which
// takes the descriptor over, if there is one.
func (c *Conn) receive(in *secret.Bytes, f func(*packet, *os.File) error) error {
	return in.Use(func(buf []byte) error {
		// Room for more than the one that is allowed: what does not fit would
		// be dropped by the kernel, unseen.
		oob := make([]byte, unix.CmsgSpace(4*4))
		var n, oobn, flags int
		var err error
		for {
			n, oobn, flags, _, err = unix.Recvmsg(c.fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
			if err != unix.EINTR {
				break
			}
		}
		if err != nil {
			return os.NewSyscallError("recvmsg", err)
		}
		defer clear(buf[:n])
		files, err := descriptors(oob[:oobn])
		drop := func() {
			for _, f := range files {
				_ = f.Close()
			}
		}
		switch {
		case err != nil:
			drop()
			return err
		case n == 0:
			drop()
			return io.EOF
		case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
			drop()
			return breach("truncated packet")
		}
		p, err := parse(buf[:n])
		if err != nil {
			drop()
			return err
		}
		var file *os.File
		if len(files) == 1 && (p.typ == TypeStart || p.typ == TypeValue) {
			file, files = files[0], nil
		}
		if len(files) > 0 {
			drop()
			return breach("unasked descriptor with frame %d", p.typ)
		}
		return f(p, file)
	})
}

func descriptors(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, breach("control part: %v", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "frame"))
		}
	}
	return files, nil
}

// answer hands a reply to whoever asked.
func (c *Conn) answer(p *packet, file *os.File) error {
	if file != nil {
		defer func() {
			if file != nil {
				_ = file.Close()
			}
		}()
	}
	c.mu.Lock()
	due := c.asked
	c.asked = 0
	c.mu.Unlock()
	if due == 0 || p.typ != due {
		return breach("frame %d, which nobody asked for", p.typ)
	}
	r := reply{typ: p.typ, code: p.code(1)}
	var err error
	switch p.typ {
	case TypeAnswer, TypeToken:
		r.secret, err = takeSecret(p.get(2))
	case TypeValue:
		if r.value, err = value(p, file); r.value.File != nil {
			file = nil
		}
	case TypeAck:
		r.failed = Failed(p.number(2))
	case TypePasswd:
		r.passwd = passwd(p)
	}
	if err != nil {
		return err
	}
	c.replies <- r
	return nil
}

func value(p *packet, file *os.File) (Value, error) {
	v := Value{Kind: ValueKind(p.number(2))}
	text := p.get(3)
	switch {
	case v.Kind > Held:
		return v, breach("value of kind %d", v.Kind)
	case v.Kind != Text && text != nil, v.Kind < Text && file != nil, v.Kind == Mark && file != nil,
		v.Kind == Text && (text != nil) == (file != nil):
		return v, breach("value of kind %d with or without text", v.Kind)
	case v.Kind == Held:
		v.File = file
		return v, nil
	case file != nil:
		var err error
		v.Text, err = readMemfd(file)
		return v, err
	}
	v.Text = append([]byte(nil), text...)
	return v, nil
}

const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

func readMemfd(f *os.File) ([]byte, error) {
	have, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || have&seals != seals {
		return nil, breach("big value is not sealed")
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > MaxMemfd {
		return nil, breach("value of %d bytes", info.Size())
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if strings.IndexByte(string(b), 0) >= 0 {
		return nil, breach("value holds NUL")
	}
	return b, nil
}

func writeMemfd(b []byte) (*os.File, error) {
	if len(b) > MaxMemfd {
		return nil, fmt.Errorf("value of %d bytes", len(b))
	}
	fd, err := unix.MemfdCreate("hearth", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "frame")
	if _, err = f.Write(b); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// write builds a packet in the locked buffer and sends it.
func (c *Conn) write(t Type, file *os.File, build func(*builder)) error {
	c.send.Lock()
	defer c.send.Unlock()
	return c.out.Use(func(buf []byte) error {
		b := begin(buf, t)
		defer func() { clear(buf[:b.n]) }()
		build(b)
		p := b.done()
		if p == nil {
			return fmt.Errorf("frame %d is too long", t)
		}
		var oob []byte
		if file != nil {
			oob = unix.UnixRights(int(file.Fd()))
		}
		for {
			err := unix.Sendmsg(c.fd, p, oob, nil, unix.MSG_NOSIGNAL)
			if err == unix.EINTR || err == syscall.EAGAIN {
				continue
			}
			return os.NewSyscallError("sendmsg", err)
		}
	})
}

// ask sends a request and waits for its answer.
func (c *Conn) ask(t, want Type, file *os.File, build func(*builder)) reply {
	ended := reply{code: SystemErr}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return ended
	}
	c.asked = want
	c.mu.Unlock()
	if err := c.write(t, file, build); err != nil {
		c.end(err)
		return ended
	}
	select {
	case r := <-c.replies:
		return r
	case <-c.done:
		return ended
	}
}

// Converse makes one call of the login program's conversation function. The
// secret is nil where it gave none, and is the caller's to close. Text beyond
// MaxPrompt bytes is cut.
func (c *Conn) Converse(style Style, text string) (*secret.Bytes, Code) {
	r := c.ask(TypeConv, TypeAnswer, nil, func(b *builder) { b.u8(1, uint8(style)).text(2, clip(text, MaxPrompt)) })
	return r.secret, r.code
}

// NewToken asks libpam for the new password: what an earlier module left, or
// the user's answer to libpam's own prompt. verify makes it ask again and
// compare; prompt then names the base text, "" is libpam's own.
func (c *Conn) NewToken(verify bool, prompt string) (*secret.Bytes, Code) {
	r := c.ask(TypeGetToken, TypeToken, nil, func(b *builder) {
		b.u8(1, 1).flag(2, verify)
		if prompt != "" {
			b.text(3, prompt)
		}
	})
	return r.secret, r.code
}

// SetToken sets PAM_AUTHTOK. s is borrowed.
func (c *Conn) SetToken(s *secret.Bytes) Code {
	code := BufErr
	_ = s.Use(func(p []byte) error {
		code = c.ask(TypeSetToken, TypeAck, nil, func(b *builder) { b.u8(1, 1).put(2, p) }).code
		return nil
	})
	return code
}

// SetUser sets PAM_USER.
func (c *Conn) SetUser(name string) Code { return c.text(TypeSetUser, name) }

// PutEnv sets "K=V", or unsets "K", in the PAM environment.
func (c *Conn) PutEnv(kv string) Code { return c.text(TypePutEnv, kv) }

func (c *Conn) text(t Type, s string) Code {
	return c.ask(t, TypeAck, nil, func(b *builder) { b.text(1, s) }).code
}

// Load reads what lies under a key of the PAM handle.
func (c *Conn) Load(key string) (Value, Code) {
	r := c.ask(TypeLoad, TypeValue, nil, func(b *builder) { b.text(1, key) })
	return r.value, r.code
}

// Store puts a text under a key.
func (c *Conn) Store(key string, text []byte) Code {
	if len(text) <= MaxInline {
		return c.ask(TypeStore, TypeAck, nil, func(b *builder) { b.text(1, key).u8(2, uint8(Text)).put(3, text) }).code
	}
	f, err := writeMemfd(text)
	if err != nil {
		return BufErr
	}
	defer func() { _ = f.Close() }()
	return c.ask(TypeStore, TypeAck, f, func(b *builder) { b.text(1, key).u8(2, uint8(Text)) }).code
}

// StoreMark puts the mark "not ours" under a key.
func (c *Conn) StoreMark(key string) Code {
	return c.ask(TypeStore, TypeAck, nil, func(b *builder) { b.text(1, key).u8(2, uint8(Mark)) }).code
}

// StoreFile gives the login program a copy of f, which stays the caller's.
func (c *Conn) StoreFile(key string, f *os.File) Code {
	return c.ask(TypeStoreFD, TypeAck, f, func(b *builder) { b.text(1, key) }).code
}

// Drop removes what lies under a key.
func (c *Conn) Drop(key string) Code { return c.text(TypeDrop, key) }

// Log writes one line to the system's log under the login program's name.
// priority is syslog's, 0 to 7. The line never holds a secret.
func (c *Conn) Log(priority int, line string) {
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, line)
	_ = c.write(TypeLog, nil, func(b *builder) { b.u8(1, uint8(priority)).text(2, clip(line, MaxLog)) })
}

// Result ends the call.
func (c *Conn) Result(code Code) error {
	return c.write(TypeResult, nil, func(b *builder) { b.code(1, code) })
}

// clip cuts a text to n bytes, at the end of a character.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}
