package vmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"hearth/vmtest/wire"
)

// Terminal is a command on a terminal in a guest, and the hands at it.
type Terminal struct {
	call *call

	mu      sync.Mutex
	text    []byte        // everything that was shown
	seen    int           // how much of it Expect has passed
	changed chan struct{} // closed at each change, then replaced
	copyTo  io.Writer
	hands   io.Writer // what Send writes to, where the agent has no part
}

// DefaultSize is a terminal's size where none is given.
var DefaultSize = wire.Size{Cols: 80, Rows: 25}

// Terminal starts a command on a new terminal in the guest. env, NAME=VALUE,
// comes on top of what root has after logging in.
func (m *Machine) Terminal(size wire.Size, env []string, argv ...string) (*Terminal, error) {
	t := &Terminal{changed: make(chan struct{})}
	k, err := m.conn.start(wire.Request{Op: wire.OpRun, Argv: argv, Env: env, TTY: &size}, t.show)
	if err != nil {
		return nil, m.explain(err)
	}
	t.call = k
	return t, nil
}

func (t *Terminal) show(_ wire.Kind, p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if t.copyTo != nil {
		t.copyTo.Write(p)
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// Expect waits until the terminal has shown text that matches the regular
// expression, and returns what was shown since the last Expect up to the
// match's end. An error tells what was shown instead.
func (t *Terminal) Expect(re string, limit time.Duration) (string, error) {
	x, err := regexp.Compile(re)
	if err != nil {
		return "", err
	}
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	ended := false
	for {
		t.mu.Lock()
		fresh := t.text[t.seen:]
		if at := x.FindIndex(fresh); at != nil {
			text := string(fresh[:at[1]])
			t.seen += at[1]
			t.mu.Unlock()
			return text, nil
		}
		shown, changed := string(fresh), t.changed
		t.mu.Unlock()
		if ended {
			return shown, fmt.Errorf("the command ended and %q was not seen; terminal shows:\n%s", re, shown)
		}
		select {
		case <-changed:
		case <-t.call.done: // look once more: its last words came before
			ended = true
		case <-deadline.C:
			return shown, fmt.Errorf("%q was not seen within %v; terminal shows:\n%s", re, limit, shown)
		}
	}
}

// Send types s; a line ends with "\r" or "\n".
func (t *Terminal) Send(s string) error {
	if t.hands != nil {
		_, err := io.WriteString(t.hands, s)
		return err
	}
	return t.call.c.w.Bytes(wire.Stdin, t.call.id, []byte(s))
}

// Resize sets the terminal's size.
func (t *Terminal) Resize(size wire.Size) error {
	return t.call.c.w.JSON(wire.Resize, t.call.id, size)
}

// Wait returns the command's exit status once it has ended.
func (t *Terminal) Wait(ctx context.Context) (int, error) {
	r, err := t.call.wait(ctx)
	return r.Code, err
}

// Close kills the command if it still runs. It may be called twice.
func (t *Terminal) Close() error {
	select {
	case <-t.call.done:
		return nil
	default:
	}
	if err := t.call.signal(byte(unix.SIGKILL)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	_, err := t.call.wait(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// Mirror copies to w what the terminal has shown and will show.
func (t *Terminal) Mirror(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.Write(t.text)
	t.copyTo = w
}

// Transcript is everything that the terminal has shown.
func (t *Terminal) Transcript() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// Interactive gives the user's own terminal, in and out, to a command in the
// guest until it ends, and returns its exit status. It ends early with ctx, or
// when the user's terminal hangs up.
func (m *Machine) Interactive(ctx context.Context, in, out *os.File, argv ...string) (int, error) {
	fd := int(in.Fd())
	size := func() wire.Size {
		w, h, err := term.GetSize(fd)
		if err != nil || w <= 0 || h <= 0 {
			return DefaultSize
		}
		return wire.Size{Cols: uint16(w), Rows: uint16(h)}
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return 0, fmt.Errorf("take the terminal: %w", err)
	}
	defer term.Restore(fd, old)
	t := &Terminal{changed: make(chan struct{}), copyTo: out}
	s := size()
	k, err := m.conn.start(wire.Request{
		Op: wire.OpRun, Argv: argv, TTY: &s, Env: []string{"TERM=" + os.Getenv("TERM")},
	}, t.show)
	if err != nil {
		return 0, m.explain(err)
	}
	t.call = k
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, unix.SIGWINCH)
	defer signal.Stop(winch)
	go func() {
		for {
			select {
			case <-winch:
				t.Resize(size())
			case <-k.done:
				return
			}
		}
	}()
	go func() {
		buf := make([]byte, 1024)
		for {
			n, err := in.Read(buf)
			if n > 0 {
				t.Send(string(buf[:n]))
			}
			if err != nil {
				t.Close()
				return
			}
		}
	}()
	code, err := t.Wait(ctx)
	if ctx.Err() != nil {
		t.Close()
	}
	return code, err
}
