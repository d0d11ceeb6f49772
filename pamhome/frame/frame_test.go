package frame

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"hearth/internal/secret"
)

// A shim is the other end, played by the test byte by byte.
type shim struct {
	t  *testing.T
	fd int
}

func pair(t *testing.T) (*shim, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fds[0]) })
	// A helper that does not speak fails the test, it does not hang it.
	tv := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	return &shim{t, fds[0]}, os.NewFile(uintptr(fds[1]), "helper")
}

func (s *shim) send(p []byte, files ...*os.File) {
	s.t.Helper()
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(s.fd, p, oob, nil, unix.MSG_NOSIGNAL); err != nil {
		s.t.Fatal(err)
	}
}

// answer sends p once a request came. The channel is closed when it is done.
func (s *shim) answer(p []byte, files ...*os.File) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.receive()
		s.send(p, files...)
	}()
	return done
}

func (s *shim) receive() ([]byte, []*os.File) {
	s.t.Helper()
	buf, oob := make([]byte, MaxPacket), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(s.fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		s.t.Fatal(err)
	}
	files, err := descriptors(oob[:oobn])
	if err != nil {
		s.t.Fatal(err)
	}
	return buf[:n], files
}

// unhex reads bytes written with blanks for the eye and "text" in quotes.
func unhex(t *testing.T, s string) []byte {
	t.Helper()
	var out []byte
	for i, part := range strings.Split(s, `"`) {
		if i%2 == 1 {
			out = append(out, part...)
			continue
		}
		b, err := hex.DecodeString(strings.Join(strings.Fields(part), ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

func frameOf(t *testing.T, typ Type, body string) []byte {
	t.Helper()
	b := unhex(t, body)
	p := binary.LittleEndian.AppendUint16(nil, uint16(typ))
	p = binary.LittleEndian.AppendUint16(p, 0)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(b)))
	return append(p, b...)
}

const minimalStart = `01 02000000 0100  02 01000000 01  03 04000000 00800000
 0d 01000000 01  10 04000000 2a000000  11 04000000 01000000
 12 04000000 00000000 13 04000000 00000000 14 04000000 00000000 15 04000000 00000000
 16 01000000 00`

// started returns both ends after a START for the authenticate phase.
func started(t *testing.T) (*shim, *Conn) {
	t.Helper()
	s, sock := pair(t)
	s.send(frameOf(t, TypeStart, minimalStart))
	c, start, err := New(sock)
	if err != nil {
		t.Fatal(err)
	}
	start.Close()
	t.Cleanup(c.Close)
	return s, c
}

func TestStart(t *testing.T) {
	s, sock := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close(); _ = w.Close() }()
	s.send(frameOf(t, TypeStart, minimalStart+`
 04 0b000000 "suspend=yes" 04 05000000 "debug" 06 03000000 "ann" 07 00000000
 0b 05000000 "right" 0e 06000000 "TERM=x" 0f 06000000 "LANG=C" 63 01000000 ff`), r)
	c, start, err := New(sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer start.Close()
	if start.Phase != Authenticate || start.Flags != 0x8000 || start.PID != 42 || start.PPID != 1 || !start.Conversation || start.Secure {
		t.Errorf("numbers: %+v", start)
	}
	if len(start.Args) != 2 || start.Args[0] != "suspend=yes" || *start.User != "ann" {
		t.Errorf("texts: %+v", start)
	}
	if start.Service != nil || start.TTY == nil || *start.TTY != "" {
		t.Error("an absent item and an empty one are not told apart")
	}
	if start.Host == nil {
		t.Error("the pidfd is lost")
	}
	if v, ok := start.Env("TERM"); v != "x" || !ok {
		t.Errorf("TERM is %q", v)
	}
	if start.OldAuthTok != nil {
		t.Error("an old token from nowhere")
	}
	want, _ := secret.Copy([]byte("right"))
	defer want.Close()
	if !start.AuthTok.Equal(want) {
		t.Error("the token is not the one sent")
	}
}

// TestRequests pins the bytes of each request and what its answer becomes.
func TestRequests(t *testing.T) {
	s, c := started(t)
	token, _ := secret.Copy([]byte("pw"))
	defer token.Close()
	fifo, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = fifo.Close(); _ = w.Close() }()
	const ok = `01 04000000 00000000`
	for _, tc := range []struct {
		name   string
		call   func() Code
		typ    Type
		bytes  string
		answer Type
		reply  string
		want   Code
		file   bool
	}{
		{"conv", func() Code {
			got, code := c.Converse(EchoOff, "Password: ")
			defer got.Close()
			if !got.Equal(token) {
				t.Error("the answer is not the one typed")
			}
			return code
		}, TypeConv, `01 01000000 01 02 0a000000 "Password: "`, TypeAnswer, ok + `02 02000000 "pw"`, Success, false},
		{"conv without answer", func() Code {
			got, code := c.Converse(Error, "No.")
			if got != nil {
				t.Error("an answer from nowhere")
			}
			return code
		}, TypeConv, `01 01000000 03 02 03000000 "No."`, TypeAnswer, ok, Success, false},
		{"conv refused", func() Code { _, code := c.Converse(Info, "x"); return code },
			TypeConv, `01 01000000 04 02 01000000 "x"`, TypeAnswer, `01 04000000 13000000`, ConvErr, false},
		{"new token", func() Code { _, code := c.NewToken(true, "p"); return code },
			TypeGetToken, `01 01000000 01 02 01000000 01 03 01000000 "p"`, TypeToken, `01 04000000 18000000`, TryAgain, false},
		{"set token", func() Code { return c.SetToken(token) },
			TypeSetToken, `01 01000000 01 02 02000000 "pw"`, TypeAck, ok, Success, false},
		{"set user", func() Code { return c.SetUser("ann") }, TypeSetUser, `01 03000000 "ann"`, TypeAck, ok, Success, false},
		{"putenv", func() Code { return c.PutEnv("A=b") }, TypePutEnv, `01 03000000 "A=b"`, TypeAck, `01 04000000 1d000000`, BadItem, false},
		{"load", func() Code {
			v, code := c.Load("k")
			if v.Kind != Text || string(v.Text) != "{}" {
				t.Errorf("value %+v", v)
			}
			return code
		}, TypeLoad, `01 01000000 "k"`, TypeValue, ok + `02 01000000 01 03 02000000 "{}"`, Success, false},
		{"load held", func() Code {
			v, code := c.Load("k")
			if v.Kind != Held {
				t.Errorf("value %+v", v)
			}
			return code
		}, TypeLoad, `01 01000000 "k"`, TypeValue, ok + `02 01000000 03`, Success, false},
		{"store", func() Code { return c.Store("k", []byte("{}")) },
			TypeStore, `01 01000000 "k" 02 01000000 01 03 02000000 "{}"`, TypeAck, ok, Success, false},
		{"store mark", func() Code { return c.StoreMark("k") },
			TypeStore, `01 01000000 "k" 02 01000000 02`, TypeAck, ok, Success, false},
		{"store big", func() Code { return c.Store("k", bytes.Repeat([]byte("x"), MaxInline+1)) },
			TypeStore, `01 01000000 "k" 02 01000000 01`, TypeAck, ok, Success, true},
		{"store file", func() Code { return c.StoreFile("k", fifo) }, TypeStoreFD, `01 01000000 "k"`, TypeAck, ok, Success, true},
		{"apply", func() Code {
			mask, nice, bounding := uint32(0o27), int32(-5), uint64(1)<<40
			failed, code := c.Apply(Apply{Umask: &mask, Nice: &nice, Bounding: &bounding})
			if failed != FailedNice|FailedBounding {
				t.Errorf("failed %d", failed)
			}
			return code
		}, TypeApply, `01 04000000 17000000 02 04000000 fbffffff 05 08000000 0000000000010000`,
			TypeAck, `01 04000000 04000000 02 04000000 12000000`, SystemErr, false},
		{"look up", func() Code {
			pw, code := c.Lookup("ann")
			if pw != (Passwd{60100, 60101, "/h", "/s"}) {
				t.Errorf("%+v", pw)
			}
			return code
		}, TypeLookup, `01 03000000 "ann"`, TypePasswd, ok + `02 04000000 c4ea0000 03 04000000 c5ea0000 04 02000000 "/h" 05 02000000 "/s"`, Success, false},
		{"look up nobody", func() Code { _, code := c.Lookup("x"); return code },
			TypeLookup, `01 01000000 "x"`, TypePasswd, `01 04000000 0a000000`, UserUnknown, false},
		{"drop", func() Code { return c.Drop("k") }, TypeDrop, `01 01000000 "k"`, TypeAck, ok, Success, false},
	} {
		got := make(chan Code, 1)
		go func() { got <- tc.call() }()
		p, files := s.receive()
		if want := frameOf(t, tc.typ, tc.bytes); !bytes.Equal(p, want) {
			t.Errorf("%s: sent\n%x, want\n%x", tc.name, p, want)
		}
		if tc.file != (len(files) == 1) {
			t.Errorf("%s: %d descriptors", tc.name, len(files))
		}
		for _, f := range files {
			_ = f.Close()
		}
		s.send(frameOf(t, tc.answer, tc.reply))
		if code := <-got; code != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, code, tc.want)
		}
	}

	c.Log(6, "line\nof two")
	if p, _ := s.receive(); !bytes.Equal(p, frameOf(t, TypeLog, `01 01000000 06 02 0b000000 "line of two"`)) {
		t.Errorf("log: %x", p)
	}
	if err := c.Result(PermDenied); err != nil {
		t.Error(err)
	}
	if p, _ := s.receive(); !bytes.Equal(p, frameOf(t, TypeResult, `01 04000000 06000000`)) {
		t.Errorf("result: %x", p)
	}
}

// TestLimits: limits are those of the process that START names; each is tried
// although the one before failed.
func TestLimits(t *testing.T) {
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	s, c := started(t)
	c.host = child.Process.Pid
	sent := s.answer(frameOf(t, TypeAck, `01 04000000 00000000 02 04000000 00000000`))
	failed, code := c.Apply(Apply{Limits: []Limit{
		{unix.RLIMIT_NOFILE, 100, 200}, {99, 1, 1}, {unix.RLIMIT_CPU, 1000, 500}, {unix.RLIMIT_CORE, 7, 1<<64 - 1},
	}})
	<-sent
	if failed != FailedLimit || code != SystemErr {
		t.Errorf("failed %d: %v", failed, code)
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/limits", child.Process.Pid))
	var lines []string
	for line := range strings.Lines(string(text)) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	for _, want := range []string{"Max cpu time 500 500 seconds", "Max open files 100 200 files"} {
		if !slices.Contains(lines, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	// A process id that means another process here is nobody's.
	fd, err := unix.PidfdOpen(child.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	start := &Start{PID: uint32(child.Process.Pid), Host: os.NewFile(uintptr(fd), "pidfd")}
	defer start.Close()
	if pid := start.hostPID(); pid != child.Process.Pid {
		t.Errorf("the login program is %d", pid)
	}
	start.PID++
	if pid := start.hostPID(); pid != -1 {
		t.Errorf("a stranger is %d", pid)
	}
	var own unix.Rlimit
	if err := unix.Prlimit(child.Process.Pid, unix.RLIMIT_CORE, nil, &own); err != nil || own.Cur != 7 {
		t.Errorf("core: %+v, %v", own, err)
	}
}

// TestWriteTTY: the terminal is asked for, kept while the session opens, and
// written to; what is no terminal any more loses the text.
func TestWriteTTY(t *testing.T) {
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = master.Close(); _ = tty.Close() }()
	const load = `01 0d000000 "hearth-tty-fd"`
	for _, phase := range []Phase{OpenSession, CloseSession} {
		s, c := started(t)
		c.phase = phase
		got := make(chan Code, 1)
		go func() { got <- c.WriteTTY([]byte("mark\n")) }()
		if p, _ := s.receive(); !bytes.Equal(p, frameOf(t, TypeLoad, load)) {
			t.Errorf("sent %x", p)
		}
		s.send(frameOf(t, TypeValue, `01 04000000 00000000 02 01000000 03`), tty)
		if phase == OpenSession {
			p, files := s.receive()
			if !bytes.Equal(p, frameOf(t, TypeStoreFD, load)) || len(files) != 1 {
				t.Errorf("sent %x with %d descriptors", p, len(files))
			}
			for _, f := range files {
				_ = f.Close()
			}
			s.send(frameOf(t, TypeAck, `01 04000000 00000000`))
		}
		if code := <-got; code != Success {
			t.Errorf("phase %d: %v", phase, code)
		}
		// A terminal may hand out the text and the end of its line one by one.
		buf := make([]byte, len("mark\r\n"))
		if n, err := io.ReadFull(master, buf); err != nil || string(buf) != "mark\r\n" {
			t.Errorf("the terminal shows %q, %v", buf[:n], err)
		}
	}
	s, c := started(t)
	sent := s.answer(frameOf(t, TypeValue, `01 04000000 00000000 02 01000000 00`))
	if code := c.WriteTTY([]byte("x")); code != Success {
		t.Error(code)
	}
	<-sent
}

// TestBigValue reads a value that travels beside its packet.
func TestBigValue(t *testing.T) {
	text := bytes.Repeat([]byte("record "), 100000)
	for _, tc := range []struct {
		name string
		file func() (*os.File, error)
		ok   bool
	}{
		{"sealed", func() (*os.File, error) { return writeMemfd(text) }, true},
		{"not sealed", func() (*os.File, error) { return os.CreateTemp(t.TempDir(), "") }, false},
		{"with NUL", func() (*os.File, error) { return writeMemfd([]byte{'a', 0}) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, c := started(t)
			f, err := tc.file()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			sent := s.answer(frameOf(t, TypeValue, `01 04000000 00000000 02 01000000 01`), f)
			v, code := c.Load("k")
			<-sent
			if got := code == Success && bytes.Equal(v.Text, text); got != tc.ok {
				t.Errorf("read: %v (%v), want %v", got, code, tc.ok)
			}
			if !tc.ok && !errors.Is(c.Err(), ErrBreach) {
				t.Errorf("not a breach: %v", c.Err())
			}
		})
	}
}

// TestBreach sends what the other side never sends.
func TestBreach(t *testing.T) {
	ack := frameOf(t, TypeAck, `01 04000000 00000000`)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	for _, tc := range []struct {
		name  string
		bytes []byte
		files []*os.File
	}{
		{"short header", ack[:7], nil},
		{"wrong length", append(bytes.Clone(ack), 0), nil},
		{"flags", append([]byte{4, 0, 1}, ack[3:]...), nil},
		{"unknown type", frameOf(t, 99, ``), nil},
		{"half a field", frameOf(t, TypeAck, `01 04000000 0000`), nil},
		{"wrong size", frameOf(t, TypeAck, `01 02000000 0000`), nil},
		{"missing", frameOf(t, TypeAck, ``), nil},
		{"twice", frameOf(t, TypeAck, `01 04000000 00000000 01 04000000 00000000`), nil},
		{"another answer", frameOf(t, TypeAnswer, `01 04000000 00000000`), nil},
		{"a second START", frameOf(t, TypeStart, minimalStart), nil},
		{"descriptor", ack, []*os.File{null}},
		{"two descriptors", ack, []*os.File{null, null}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, c := started(t)
			sent := s.answer(tc.bytes, tc.files...)
			if code := c.Drop("k"); code != SystemErr {
				t.Errorf("answered with %v", code)
			}
			<-sent
			if !errors.Is(c.Err(), ErrBreach) {
				t.Errorf("not a breach: %v", c.Err())
			}
			if code := c.Drop("k"); code != SystemErr {
				t.Errorf("goes on with %v", code)
			}
		})
	}
	t.Run("unasked", func(t *testing.T) {
		s, c := started(t)
		s.send(ack)
		select {
		case <-c.Done():
		case <-time.After(5 * time.Second):
			t.Error("an answer that nobody asked for was accepted")
		}
	})
	for name, body := range map[string]string{
		"version 2":        strings.Replace(minimalStart, "0100", "0200", 1),
		"no phase":         strings.Replace(minimalStart, "02 01000000 01", "02 01000000 00", 1),
		"token in account": strings.Replace(minimalStart, "02 01000000 01", "02 01000000 02", 1) + `0b 01000000 "x"`,
		"NUL in a text":    minimalStart + `06 01000000 00`,
	} {
		s, sock := pair(t)
		s.send(frameOf(t, TypeStart, body))
		if _, _, err := New(sock); !errors.Is(err, ErrBreach) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostGone: whoever waits for an answer is woken.
func TestHostGone(t *testing.T) {
	s, c := started(t)
	go func() {
		s.receive()
		_ = unix.Shutdown(s.fd, unix.SHUT_RDWR)
	}()
	if _, code := c.Converse(EchoOff, "x"); code != SystemErr {
		t.Errorf("answered with %v", code)
	}
	<-c.Done()
}

// TestDump: what a failing test prints holds no secret.
func TestDump(t *testing.T) {
	p, err := parse(frameOf(t, TypeSetToken, `01 01000000 01 02 06000000 "hidden"`))
	if err != nil {
		t.Fatal(err)
	}
	if s := p.dump(); s != "18 1=1 2=secret(6)" {
		t.Errorf("dump is %q", s)
	}
}

// FuzzParse: no packet panics, and what is accepted is the same when written
// and read again.
func FuzzParse(f *testing.F) {
	seed := func(typ Type, body string) {
		t := &testing.T{}
		f.Add(frameOf(t, typ, body))
	}
	seed(TypeStart, minimalStart)
	seed(TypeAnswer, `01 04000000 00000000 02 02000000 "pw"`)
	seed(TypeValue, `01 04000000 00000000 02 01000000 01 03 02000000 "{}"`)
	seed(TypeAck, `01 04000000 00000000 02 04000000 01000000 63 01000000 00`)
	seed(TypeStore, `01 01000000 "k" 02 01000000 01 03 02000000 "{}"`)
	seed(TypeLog, `01 01000000 06 02 04000000 "line"`)
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := parse(in)
		if err != nil {
			return
		}
		b := begin(make([]byte, MaxPacket), p.typ)
		for _, part := range p.parts {
			b.put(part.tag, part.data)
		}
		again, err := parse(b.done())
		if err != nil {
			t.Fatalf("%s: written and not read: %v", p.dump(), err)
		}
		if p.dump() != again.dump() {
			t.Errorf("%s became %s", p.dump(), again.dump())
		}
	})
}
