package userdb

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/testenv"
	"hearth/records"
)

// What any process may send to the socket. docs/hostile.md is the list.

// startMany serves n homes or a few more.
func startMany(t *testing.T, n int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "userdb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var many shelf
	for few := homes(t, captures(t)); len(many) < n; {
		many = append(many, few...)
	}
	socket := filepath.Join(dir, "io.systemd.Home")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, Options{Manager: many, Socket: socket, Machine: records.Machine{ID: machine}, Log: slog.New(slog.DiscardHandler)})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve does not end")
		}
	})
	for range 500 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no socket")
	return ""
}

// dialAs connects as another user: the kernel notes the thread's uid.
func dialAs(t *testing.T, socket string, uid uint32) net.Conn {
	t.Helper()
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its uid
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
			done <- result{nil, e}
			return
		}
		c, err := net.Dial("unix", socket)
		done <- result{c, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.c.Close() })
	return r.c
}

const ping = `{"method":"io.systemd.service.Ping"}` + "\x00"

// pings reports whether a connection is answered; that it was closed is no.
func pings(t *testing.T, c net.Conn) bool {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err := io.WriteString(c, ping)
	if err == nil {
		var text string
		if text, err = bufio.NewReader(c).ReadString(0); err == nil {
			return text == "{}\x00"
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("no answer")
	}
	return false
}

// TestConnectionsOfOneUser: half-open ones are kept, up to a number, and cost
// others nothing.
func TestConnectionsOfOneUser(t *testing.T) {
	testenv.Need(t, "root")
	socket := startMany(t, 3)
	var all []net.Conn
	for range maxConnsPerUID {
		c := dialAs(t, socket, 1500)
		// Once it was answered it is counted.
		if !pings(t, c) {
			t.Fatalf("connection %d of the user is not served", len(all))
		}
		if _, err := io.WriteString(c, ping[:10]); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if pings(t, dialAs(t, socket, 1500)) {
		t.Error("one user has as many connections as he likes")
	}
	for _, uid := range []uint32{0, 1501} {
		if !pings(t, dialAs(t, socket, uid)) {
			t.Errorf("UID %d is not served beside them", uid)
		}
	}
	// A slow one is a client like any other.
	for i := 10; i < len(ping); i++ {
		if _, err := io.WriteString(all[0], ping[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := bufio.NewReader(all[0]).ReadString(0); err != nil || text != "{}\x00" {
		t.Errorf("a slow client is answered %q, %v", text, err)
	}
	_ = all[1].Close()
	for end := time.Now().Add(10 * time.Second); !pings(t, dialAs(t, socket, 1500)); {
		if time.Now().After(end) {
			t.Fatal("the place of one that left is not given out again")
		}
	}
}

// TestWhatEndsAConnection: each of these does, and nothing else.
func TestWhatEndsAConnection(t *testing.T) {
	socket := startMany(t, 3)
	goroutines := runtime.NumGoroutine()
	for what, text := range map[string]string{
		"a megabyte without end":   strings.Repeat("x", 1<<20+1),
		"a long request":           `{"method":"` + strings.Repeat("x", maxRequest) + `"}` + "\x00",
		"zeros":                    strings.Repeat("\x00", 1<<16),
		"garbage":                  "\xff\xfe\x01garbage\x00",
		"deep parameters":          `{"method":"a.b","parameters":{"x":` + strings.Repeat("[", 60000) + "\x00",
		"another top-level key":    `{"method":"io.systemd.service.Ping","evil":1}` + "\x00",
		"a key twice":              `{"method":"io.systemd.service.Ping","method":"io.systemd.service.Ping"}` + "\x00",
		"parameters that are none": `{"method":"io.systemd.service.Ping","parameters":[]}` + "\x00",
	} {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, text) // it may be closed before all is written
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %d bytes of an answer, %v", what, n, err)
		}
		_ = c.Close()
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 1000 {
		if _, err := io.WriteString(c, `{"method":"io.systemd.service.Ping","oneway":true}`+"\x00"); err != nil {
			t.Fatal(err)
		}
	}
	if !pings(t, c) {
		t.Error("no answer after a thousand calls that want none")
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines+1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
		}
	}
}

// TestEnumerationsNobodyReads: a user asks for all homes on every connection
// that is to be had, many times, and reads nothing.
func TestEnumerationsNobodyReads(t *testing.T) {
	testenv.Need(t, "root")
	const count = 5000
	socket := startMany(t, count)
	heap := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	ask := `{"method":"io.systemd.UserDatabase.GetUserRecord","parameters":{"service":"io.systemd.Home"},"more":true}` + "\x00"
	var first net.Conn
	for range 100 {
		c := dialAs(t, socket, 1500)
		if first == nil {
			first = c
		}
		if _, err := io.WriteString(c, strings.Repeat(ask, 100)); err != nil {
			t.Fatal(err)
		}
	}
	// Others are answered meanwhile, by name and with all.
	other := dialAs(t, socket, 1501)
	_ = other.SetDeadline(time.Now().Add(60 * time.Second))
	in := bufio.NewReader(other)
	if _, err := io.WriteString(other, ask); err != nil {
		t.Fatal(err)
	}
	if n := replyCount(t, in); n < count {
		t.Errorf("another user gets %d replies, want %d", n, count)
	}
	if now := heap(); now > before+64<<20 {
		t.Errorf("%d MiB more are in use", (now-before)>>20)
	}
	// Whose turn it is may still read it all.
	_ = first.SetDeadline(time.Now().Add(60 * time.Second))
	if n := replyCount(t, bufio.NewReader(first)); n < count {
		t.Errorf("he gets %d replies, want %d", n, count)
	}
}

// replyCount reads the replies to one call.
func replyCount(t *testing.T, in *bufio.Reader) int {
	t.Helper()
	for n := 1; ; n++ {
		text, err := in.ReadString(0)
		if err != nil {
			t.Fatalf("after %d replies: %v", n, err)
		}
		if !strings.Contains(text, `"continues":true`) {
			return n
		}
	}
}
