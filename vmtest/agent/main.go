// Command agent is the harness's hand inside a guest: it runs commands, types
// at terminals and copies files for the host, over the second serial line. It
// knows the requests of vmtest/wire and nothing of what is being tested.
package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"hearth/vmtest/wire"
)

func main() {
	path := "/dev/ttyS1"
	if len(os.Args) > 1 {
		path = os.Args[1]
	}
	fmt.Fprintln(os.Stderr, "agent:", serve(path))
	os.Exit(1)
}

// serve speaks on the serial line until that hangs up, and says why.
func serve(path string) error {
	// A plain blocking descriptor: a read on it costs one system call, where
	// the poller would cost three.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if err := raw(fd); err != nil {
		return fmt.Errorf("set %s raw: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	w := wire.NewWriter(f)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	if err := w.Magic(); err != nil {
		return err
	}
	if err := w.JSON(wire.Hello, 0, wire.Greeting{Kernel: unix.ByteSliceToString(u.Release[:])}); err != nil {
		return err
	}
	a := &agent{w: w, open: map[uint32]*channel{}}
	r := wire.NewReader(&line{f: f, w: w})
	for {
		fr, err := r.Next()
		if err != nil {
			return err
		}
		a.handle(fr)
	}
}

// raw makes the line carry all eight bits of every byte, unchanged.
func raw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB|unix.CRTSCTS) | unix.CS8 | unix.CREAD | unix.CLOCAL
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// line reads off the serial line and tells the host how much there is room for
// again.
type line struct {
	f     *os.File
	w     *wire.Writer
	taken int
}

func (l *line) Read(p []byte) (int, error) {
	n, err := l.f.Read(p)
	if l.taken += n; l.taken >= wire.LineStep {
		if err := l.w.Frame(wire.Taken, 0, binary.BigEndian.AppendUint32(nil, uint32(l.taken))); err != nil {
			return n, err
		}
		l.taken = 0
	}
	return n, err
}

type agent struct {
	w    *wire.Writer
	mu   sync.Mutex
	open map[uint32]*channel
}

// channel is one request under way.
type channel struct {
	a     *agent
	id    uint32
	stdin queue

	mu    sync.Mutex
	group int      // process group, 0 until there is one
	tty   *os.File // the master side, nil without a terminal
}

func (a *agent) handle(f wire.Frame) {
	if f.Kind == wire.Start {
		c := &channel{a: a, id: f.Channel}
		c.stdin.cond.L = &c.stdin.mu
		a.mu.Lock()
		a.open[f.Channel] = c
		a.mu.Unlock()
		go c.serve(f.Payload)
		return
	}
	a.mu.Lock()
	c := a.open[f.Channel]
	a.mu.Unlock()
	if c == nil { // it ended while this frame was on its way
		return
	}
	switch f.Kind {
	case wire.Stdin:
		c.stdin.push(f.Payload)
	case wire.StdinEnd:
		c.stdin.end()
	case wire.Signal:
		if len(f.Payload) == 1 {
			c.signal(unix.Signal(f.Payload[0]))
		}
	case wire.Resize:
		var s wire.Size
		if json.Unmarshal(f.Payload, &s) == nil {
			c.resize(s)
		}
	}
}

func (c *channel) serve(request []byte) {
	var q wire.Request
	var res wire.Result
	err := json.Unmarshal(request, &q)
	if err == nil {
		switch q.Op {
		case wire.OpRun:
			res, err = c.run(q)
		case wire.OpWrite:
			err = c.write(q)
		case wire.OpRead:
			err = c.read(q)
		default:
			err = fmt.Errorf("unknown operation %q", q.Op)
		}
	}
	if err != nil {
		res.Error = err.Error()
	}
	c.stdin.close()
	c.a.mu.Lock()
	delete(c.a.open, c.id)
	c.a.mu.Unlock()
	c.a.w.JSON(wire.Exit, c.id, res) // a broken line ends the agent at its next read
}

// output sends what is written to it as frames of one kind.
type output struct {
	c *channel
	k wire.Kind
}

func (o output) Write(p []byte) (int, error) {
	if err := o.c.a.w.Bytes(o.k, o.c.id, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *channel) run(q wire.Request) (wire.Result, error) {
	if len(q.Argv) == 0 {
		return wire.Result{}, errors.New("no command")
	}
	cmd := exec.Command(q.Argv[0], q.Argv[1:]...)
	cmd.Env = append(environment(), q.Env...)
	if cmd.Dir = q.Dir; q.Dir == "" {
		cmd.Dir = "/root"
	}
	// A daemon that a script leaves behind keeps the pipes open; the script's
	// own output is in them when it exits, so a moment is enough.
	cmd.WaitDelay = time.Second

	exited := make(chan struct{})
	var drained chan struct{}
	if q.TTY != nil {
		m, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: q.TTY.Cols, Rows: q.TTY.Rows})
		if err != nil {
			return wire.Result{}, err
		}
		defer m.Close()
		c.started(cmd.Process.Pid, m)
		go c.feed(m, func() { m.Write([]byte{4}) })
		drained = make(chan struct{})
		go func() {
			show(output{c, wire.Stdout}, m, exited)
			close(drained)
		}()
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Stdout, cmd.Stderr = output{c, wire.Stdout}, output{c, wire.Stderr}
		in, err := cmd.StdinPipe()
		if err != nil {
			return wire.Result{}, err
		}
		if err := cmd.Start(); err != nil {
			return wire.Result{}, err
		}
		c.started(cmd.Process.Pid, nil)
		go c.feed(in, func() { in.Close() })
	}

	var res wire.Result
	var mu sync.Mutex
	if q.Limit > 0 {
		t := time.AfterFunc(time.Duration(q.Limit)*time.Millisecond, func() {
			mu.Lock()
			res.Expired = true
			mu.Unlock()
			c.signal(unix.SIGKILL)
		})
		defer t.Stop()
	}
	err := cmd.Wait()
	close(exited)
	if drained != nil {
		select {
		case <-drained:
		case <-time.After(cmd.WaitDelay):
		}
	}
	c.started(0, nil)
	mu.Lock()
	defer mu.Unlock()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		return res, err
	}
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		res.Signal = int(ws.Signal())
		res.Code = 128 + res.Signal
	} else {
		res.Code = ws.ExitStatus()
	}
	return res, nil
}

// show copies what a terminal shows. Reading fails with EIO while no process
// has it open: at the end, but also when login hangs it up to be alone on it
// and opens it again.
func show(to io.Writer, terminal *os.File, exited <-chan struct{}) {
	for {
		_, err := io.Copy(to, terminal)
		if !errors.Is(err, unix.EIO) {
			return
		}
		select {
		case <-exited:
			io.Copy(to, terminal)
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// environment is what root finds after logging in. The agent's own, a
// service's, would tell programs that they are one.
func environment() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/bash", "LANG=C.UTF-8", "TERM=dumb",
	}
}

func (c *channel) started(group int, tty *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.group, c.tty = group, tty
}

func (c *channel) signal(s unix.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.group > 0 {
		unix.Kill(-c.group, s)
	}
}

func (c *channel) resize(s wire.Size) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tty != nil {
		pty.Setsize(c.tty, &pty.Winsize{Cols: s.Cols, Rows: s.Rows})
	}
}

// feed carries standard input to w, acknowledging what was taken.
func (c *channel) feed(w io.Writer, end func()) {
	for {
		p, ok := c.stdin.pop()
		if !ok {
			end()
			return
		}
		_, err := w.Write(p) // a process that does not read its input loses it
		c.ack(len(p))
		if err != nil {
			c.drop()
			return
		}
	}
}

// drop swallows the rest of the input, so that the host's window opens again.
func (c *channel) drop() {
	for {
		p, ok := c.stdin.pop()
		if !ok {
			return
		}
		c.ack(len(p))
	}
}

func (c *channel) ack(n int) {
	c.a.w.Frame(wire.Ack, c.id, binary.BigEndian.AppendUint32(nil, uint32(n)))
}

func (c *channel) write(q wire.Request) error {
	if err := os.MkdirAll(filepath.Dir(q.Path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(q.Path), ".agent-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	for {
		p, ok := c.stdin.pop()
		if !ok {
			break
		}
		if _, err := f.Write(p); err != nil {
			c.drop()
			return err
		}
		c.ack(len(p))
	}
	if err := unix.Fchmod(int(f.Fd()), q.Mode); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), q.Path)
}

func (c *channel) read(q wire.Request) error {
	f, err := os.Open(q.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(output{c, wire.Stdout}, f)
	return err
}

// queue is a channel's standard input; the host's window bounds it.
type queue struct {
	mu     sync.Mutex
	cond   sync.Cond
	chunks [][]byte
	ended  bool
}

func (q *queue) push(p []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.chunks = append(q.chunks, p)
	q.cond.Signal()
}

func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.cond.Broadcast()
}

// close ends the queue and forgets what is in it.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.chunks, q.ended = nil, true
	q.cond.Broadcast()
}

func (q *queue) pop() ([]byte, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.chunks) == 0 && !q.ended {
		q.cond.Wait()
	}
	if len(q.chunks) == 0 {
		return nil, false
	}
	p := q.chunks[0]
	q.chunks = q.chunks[1:]
	return p, true
}
