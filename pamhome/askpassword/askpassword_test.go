package askpassword

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/secret"
	"hearth/internal/testenv"
)

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ask")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "q")
}

// request waits for a question and returns its keys.
func request(t *testing.T, dir string) (string, map[string]string) {
	t.Helper()
	for range 500 {
		if names, _ := filepath.Glob(filepath.Join(dir, "ask.*")); len(names) == 1 {
			text, err := os.ReadFile(names[0])
			if err != nil {
				t.Fatal(err)
			}
			keys := map[string]string{}
			for line := range strings.Lines(string(text)) {
				k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
				keys[k] = v
			}
			return names[0], keys
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no question was asked")
	return "", nil
}

type result struct {
	list []*secret.Bytes
	err  error
}

func ask(ctx context.Context, dir string, r Request) chan result {
	done := make(chan result, 1)
	go func() {
		list, err := Ask(ctx, dir, r)
		done <- result{list, err}
	}()
	return done
}

func send(t *testing.T, socket string, datagrams ...string) {
	t.Helper()
	c, err := net.Dial("unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, d := range datagrams {
		if _, err := c.Write([]byte(d)); err != nil {
			t.Fatal(err)
		}
	}
}

func text(s *secret.Bytes) string {
	var text string
	_ = s.Use(func(p []byte) error { text = string(p); return nil })
	return text
}

func empty(t *testing.T, dir string) {
	t.Helper()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAnswer(t *testing.T) {
	dir := shortDir(t)
	done := ask(t.Context(), dir, ForHome("ann", "Password", true, time.Minute))
	file, keys := request(t, dir)
	if keys["Message"] != "Sorry, try again. Password for home of user ann: " || keys["Id"] != "home:ann" ||
		keys["AcceptCached"] != "0" || keys["Echo"] != "0" || keys["Silent"] != "0" {
		t.Errorf("the question is %v", keys)
	}
	if st, err := os.Stat(file); err != nil || st.Mode() != 0o644 {
		t.Errorf("mode of the question: %v %v", st.Mode(), err)
	}
	if st, err := os.Stat(keys["Socket"]); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v %v", st.Mode(), err)
	}
	// Noise does not end it; the first answer does.
	send(t, keys["Socket"], "", "x", "+"+strings.Repeat("a", 2049), "+one\x00two\x00")
	r := <-done
	defer secret.CloseAll(r.list)
	if r.err != nil || len(r.list) != 2 || text(r.list[0]) != "one" || text(r.list[1]) != "two" {
		t.Errorf("answer %v, %v", r.list, r.err)
	}
	empty(t, dir)
}

func TestEnds(t *testing.T) {
	for name, c := range map[string]struct {
		limit time.Duration
		act   func(t *testing.T, socket string, cancel func())
		want  error
	}{
		"declined": {time.Minute, func(t *testing.T, socket string, _ func()) { send(t, socket, "-") }, ErrDeclined},
		"expired":  {50 * time.Millisecond, func(*testing.T, string, func()) {}, ErrExpired},
		"canceled": {0, func(_ *testing.T, _ string, cancel func()) { cancel() }, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := ask(ctx, dir, Request{Message: "q", Limit: c.limit})
			_, keys := request(t, dir)
			c.act(t, keys["Socket"], cancel)
			if r := <-done; !errors.Is(r.err, c.want) || r.list != nil {
				t.Errorf("got %v, %v; want %v", r.list, r.err, c.want)
			}
			empty(t, dir)
		})
	}
}

// TestFiles: descriptors that come with an answer do not stay open.
func TestFiles(t *testing.T) {
	dir := shortDir(t)
	done := ask(t.Context(), dir, Request{Message: "q", Limit: time.Minute})
	_, keys := request(t, dir)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendmsg(fd, []byte("+x"), unix.UnixRights(int(w.Fd())), &unix.SockaddrUnix{Name: keys["Socket"]}, 0); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fd)
	w.Close()
	res := <-done
	secret.CloseAll(res.list)
	if res.err != nil {
		t.Fatal(res.err)
	}
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("the other end is still open")
	}
}

// TestSweep: the next question takes away what a killed program left, and
// nothing else.
func TestSweep(t *testing.T) {
	dir := shortDir(t)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	listener := func(name string) net.PacketConn {
		c, err := net.ListenPacket("unixgram", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	listener("sck.dead").Close()
	defer listener("sck.live").Close()
	for name, c := range map[string]struct {
		pid    int
		socket string
	}{
		"ask.dead": {gone.Process.Pid, dir + "//sck.dead"}, "ask.alive": {os.Getpid(), dir + "/sck.dead"},
		"ask.listens": {gone.Process.Pid, dir + "/sck.live"}, "ask.far": {gone.Process.Pid, "/nowhere/sck"}, "ask.none": {},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), fmt.Appendf(nil, "[Ask]\nPID=%d\nSocket=%s\n", c.pid, c.socket), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = Ask(t.Context(), dir, Request{Message: "q", Limit: time.Millisecond})
	left, _ := os.ReadDir(dir)
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "ask.alive ask.far ask.listens ask.none sck.live" {
		t.Errorf("left: %s", got)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("[Ask]\nPID=1211\nSocket=/run/systemd/ask-password//sck.48c6fd672d8a26e9\nAcceptCached=1\n")
	f.Add("PID=-1\nSocket=\n")
	f.Fuzz(func(t *testing.T, text string) {
		if _, socket := parseRequest(text); strings.Contains(socket, "/../") {
			t.Fatalf("%q leads to %q", text, socket)
		}
	})
}

func TestNowhereToAsk(t *testing.T) {
	dir := shortDir(t)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Ask(t.Context(), dir, Request{Message: "q"}); err == nil {
		t.Error("asked where anybody may write")
	}
	link := dir + "l"
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if _, err := Ask(t.Context(), link, Request{Message: "q"}); err == nil {
		t.Error("asked through a link")
	}
	if _, err := Ask(t.Context(), shortDir(t), Request{Message: "a\nSocket=/tmp/x"}); !errors.Is(err, errUnsafe) {
		t.Errorf("a message of two lines: %v", err)
	}
}

func TestForHomeIsOneSafeLine(t *testing.T) {
	r := ForHome("a\nb\u202ec"+strings.Repeat("é", 200), "Password", false, 0)
	if len(r.Message) > maxMessage || strings.ContainsAny(r.Message, "\n\u202e") {
		t.Errorf("%q", r.Message)
	}
	if _, err := r.encode(1, "/s", 0); err != nil {
		t.Error(err)
	}
}

func FuzzEncode(f *testing.F) {
	f.Add("Password: ", "user-home", "home:ann")
	f.Add("a\nSocket=/x", "", "")
	f.Add("\xff", "\x7f", "\u0085")
	f.Fuzz(func(t *testing.T, message, icon, id string) {
		b, err := Request{Message: message, Icon: icon, ID: id}.encode(1, "/run/s", 7)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for line := range strings.Lines(string(b)) {
			k, _, _ := strings.Cut(line, "=")
			if seen[k] {
				t.Errorf("%q twice in %q", k, b)
			}
			seen[k] = true
		}
		for k := range seen {
			switch k {
			case "[Ask]\n", "PID", "Socket", "AcceptCached", "Echo", "NotAfter", "Silent", "Message", "Icon", "Id":
			default:
				t.Errorf("line %q in %q", k, b)
			}
		}
	})
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{"", "-", "-x", "+", "+\x00", "+a", "+a\x00", "+a\x00b", "+a\x00\x00", "x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		list, v, err := readReply(p)
		defer secret.CloseAll(list)
		if err != nil {
			t.Fatal(err)
		}
		if (v == answersIt) != (len(list) > 0) || (v == answersIt) != (len(p) > 0 && p[0] == '+') {
			t.Fatalf("%q: %d secrets, verdict %d", p, len(list), v)
		}
		if v != answersIt {
			return
		}
		var parts []string
		for _, s := range list {
			parts = append(parts, text(s))
		}
		joined := "+" + strings.Join(parts, "\x00")
		if joined != string(p) && joined+"\x00" != string(p) {
			t.Fatalf("%q became %q", p, joined)
		}
	})
}

// sendAs sends a datagram as another user, and as whom it says it is sent
// where that is given.
func sendAs(uid int, socket, datagram string, claim *unix.Ucred) error {
	done := make(chan error)
	go func() {
		// A thread of its own, which ends with the goroutine.
		runtime.LockOSThread()
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			done <- e
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = unix.Close(fd) }()
		var oob []byte
		if claim != nil {
			oob = unix.UnixCredentials(claim)
		}
		done <- unix.Sendmsg(fd, []byte(datagram), oob, &unix.SockaddrUnix{Name: socket}, 0)
	}()
	return <-done
}

// TestForeign: another user's answer does not arrive, and is none where it
// does; taking the question away does not take the answer.
func TestForeign(t *testing.T) {
	testenv.Need(t, "root")
	dir := shortDir(t)
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	done := ask(t.Context(), dir, Request{Message: "q", Limit: time.Minute})
	file, keys := request(t, dir)
	if err := sendAs(nobody, keys["Socket"], "+evil", nil); err != unix.EACCES {
		t.Errorf("another user sends: %v", err)
	}
	if err := os.Chmod(keys["Socket"], 0o666); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"+evil", "-"} {
		if err := sendAs(nobody, keys["Socket"], d, nil); err != nil {
			t.Errorf("send %q: %v", d, err)
		}
	}
	if err := sendAs(nobody, keys["Socket"], "+evil", &unix.Ucred{Pid: int32(os.Getpid())}); err != unix.EPERM {
		t.Errorf("another user claims to be root: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	send(t, keys["Socket"], "+good")
	r := <-done
	defer secret.CloseAll(r.list)
	if r.err != nil || len(r.list) != 1 || text(r.list[0]) != "good" {
		t.Errorf("answer %v, %v", r.list, r.err)
	}
	empty(t, dir)
}
