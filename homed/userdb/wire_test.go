package userdb

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ends are the two ends of a connection, the first one as a wire.
func ends(t *testing.T) (*wire, *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	near, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	w, err := newWire(near)
	if err != nil {
		t.Fatal(err)
	}
	return w, far
}

// TestWire: what is longer than the socket holds arrives whole, a wire waits for
// what comes, and tells its end.
func TestWire(t *testing.T) {
	w, far := ends(t)
	long := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	for range 2 {
		read := make(chan []byte)
		go func() {
			got := make([]byte, len(long))
			_, err := io.ReadFull(far, got)
			if err != nil {
				t.Error(err)
			}
			read <- got
		}()
		if n, err := w.Write(long); n != len(long) || err != nil {
			t.Fatalf("%d bytes written of %d: %v", n, len(long), err)
		}
		if !bytes.Equal(<-read, long) {
			t.Error("something else arrived")
		}
	}
	if w.slow {
		t.Error("it still believes that its reader is slow")
	}
	type result struct {
		text string
		err  error
	}
	got := make(chan result)
	read := func() {
		buf := make([]byte, 16)
		n, err := w.Read(buf)
		got <- result{string(buf[:n]), err}
	}
	go read()
	if _, err := far.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.text != "hello" || r.err != nil {
		t.Errorf("read %q, %v", r.text, r.err)
	}
	go read()
	_ = far.Close()
	if r := <-got; r.err != io.EOF {
		t.Errorf("at the end: %q, %v", r.text, r.err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("written to nobody: %v", err)
	}
	_ = w.conn.Close()
	if _, err := w.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read from what is closed: %v", err)
	}
}

// TestWireGivesUp on a reader that does not read, and one that was slow once is
// not held to that later.
func TestWireGivesUp(t *testing.T) {
	w, far := ends(t)
	for {
		w.writing = attempt{p: make([]byte, 1<<12)}
		var full bool
		if err := w.raw.Control(func(fd uintptr) { full = !w.writing.try(unix.SYS_WRITE, fd) }); err != nil {
			t.Fatal(err)
		}
		if full {
			break
		}
	}
	ended := make(chan error)
	go func() { _, err := w.Write([]byte("more")); ended <- err }()
	// Whoever waits has set the deadline before, which is drawn near here.
	for {
		_ = w.conn.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		select {
		case err := <-ended:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(50 * time.Millisecond):
			continue
		}
		break
	}
	go func() { _, _ = io.Copy(io.Discard, far) }()
	_ = w.conn.SetWriteDeadline(time.Time{})
	if _, err := w.Write(make([]byte, 1<<20)); err != nil {
		t.Errorf("later: %v", err)
	}
}
