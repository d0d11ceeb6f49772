package bus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"hearth/internal/busconn"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
)

// What anybody may send us over the bus, and what becomes of it. docs/hostile.md
// is the list.

// guest is a client that sends what it likes.
func (r *rig) guest(t *testing.T) *conn {
	t.Helper()
	c, err := connect(r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	hello, err := c.callDriver("Hello")
	if err != nil {
		t.Fatal(err)
	}
	c.answerTo(t, hello).close()
	return c
}

// answerTo reads until the answer to a call is there.
func (c *conn) answerTo(t *testing.T, serial uint32) *message {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		m, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		if m.replySerial == serial {
			return m
		}
		m.close()
	}
}

// message encodes a call, and says how many descriptors come along.
func rawCall(t *testing.T, serial uint32, nfds int, member string, body ...any) []byte {
	t.Helper()
	m := aCall(member, body...)
	delete(m.Headers, dbus.FieldSender)
	if nfds > 0 {
		m.Headers[dbus.FieldUnixFDs] = dbus.MakeVariant(uint32(nfds))
	}
	buf := encode(t, binary.LittleEndian, m)
	binary.LittleEndian.PutUint32(buf[8:], serial)
	return buf
}

// settles waits until something is so.
func settles(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestDescriptorsNobodyAskedFor come with a call that has no use for them.
func TestDescriptorsNobodyAskedFor(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	r.register(t, "ann", nil)
	g := r.guest(t)
	before := openFiles(t)
	for i := range 50 {
		serial := uint32(100 + i)
		if _, _, err := g.WriteMsgUnix(rawCall(t, serial, 3, "GetHomeByName", "ann"), unix.UnixRights(0, 1, 2), nil); err != nil {
			t.Fatal(err)
		}
		m := g.answerTo(t, serial)
		if m.typ != typeReply {
			t.Errorf("answered %s", m.errName)
		}
		m.close()
	}
	settles(t, "descriptors are leaked", func() bool { return openFiles(t) <= before })
}

// TestAThousandCallsInOneGo are answered in their order.
func TestAThousandCallsInOneGo(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	r.register(t, "ann", nil)
	g := r.guest(t)
	var all bytes.Buffer
	const calls = 1000
	for i := range calls {
		serial := uint32(100 + i)
		switch i % 4 {
		case 0:
			all.Write(rawCall(t, serial, 0, "ListHomes"))
		case 1:
			all.Write(rawCall(t, serial, 0, "GetHomeByName", "ghost"))
		case 2:
			all.Write(rawCall(t, serial, 0, "Frobnicate", uint32(1)))
		case 3:
			all.Write(rawCall(t, serial, 0, "GetUserRecordByName", "ann"))
		}
	}
	go func() { _, _ = g.Write(all.Bytes()) }()
	for i := range calls {
		m := g.answerTo(t, uint32(100+i))
		if ok := m.typ == typeReply; ok != (i%4 == 0 || i%4 == 3) {
			t.Fatalf("call %d is answered %d, %s", i, m.typ, m.errName)
		}
		m.close()
	}
}

// TestWhoNeverReads asks much and takes no answer. The bus keeps the answers up
// to a limit; we keep none, and others are served.
func TestWhoNeverReads(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	r.register(t, "ann", map[string]any{"realName": strings.Repeat("x", 60000)})
	g := r.guest(t)
	heap := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	var all bytes.Buffer
	for i := range 3000 {
		all.Write(rawCall(t, uint32(100+i), 0, []string{"ListHomes", "GetUserRecordByName"}[i%2], [][]any{nil, {"ann"}}[i%2]...))
	}
	_ = g.SetWriteDeadline(time.Now().Add(20 * time.Second))
	if _, err := g.Write(all.Bytes()); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := r.client.GetHomeByName(t.Context(), "ann"); err != nil {
			t.Fatalf("others are not served: %v", err)
		}
	}
	settles(t, "memory is kept for who never reads", func() bool { return heap() < before+32<<20 })
}

// TestManyClients come at once, ask, and leave without waiting.
func TestManyClients(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	r.register(t, "ann", nil)
	before, goroutines := openFiles(t), runtime.NumGoroutine()
	for range 100 {
		g, err := connect(r.address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.callDriver("Hello"); err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			if _, err := g.Write(rawCall(t, uint32(100+i), 0, "AcquireHome", "ann", "{}", false)); err != nil {
				t.Fatal(err)
			}
		}
		_ = g.Close()
	}
	if _, err := r.client.GetHomeByName(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	settles(t, "descriptors are leaked", func() bool { return openFiles(t) <= before })
	settles(t, "goroutines are leaked", func() bool { return runtime.NumGoroutine() <= goroutines+2 })
}

// TestARecordOfAMegabyte is a record like any other.
func TestARecordOfAMegabyte(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	long := strings.Repeat("x", 1<<20)
	r.register(t, "ann", map[string]any{"foreign": long})
	text, _, err := r.client.GetUserRecordByName(t.Context(), "ann")
	if err != nil || !bytes.Contains(text, []byte(long)) {
		t.Errorf("a record of a megabyte comes back as %d bytes, %v", len(text), err)
	}
	deep := strings.Repeat("[", 1<<20)
	if err := r.client.RegisterHome(t.Context(), []byte(`{"userName":"bob","x":`+deep+`}`)); fault.KindOf(err) != fault.InvalidArgs {
		t.Errorf("a deep record: %v", err)
	}
	password, err := secret.Copy([]byte(`{"password":["` + strings.Repeat("y", 200<<10) + `"]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer password.Close()
	if err := r.client.AuthenticateHome(t.Context(), "ann", password); fault.KindOf(err) != fault.InvalidArgs && fault.KindOf(err) != fault.HomeAbsent {
		t.Errorf("a long password: %v", err)
	}
}

// TestOneUserDoesNotTakeAll: what polkit has not answered yet of one user
// leaves room for others.
func TestOneUserDoesNotTakeAll(t *testing.T) {
	l := &ledger{}
	const mallory, ann = 1000, 1001
	n := 0
	for ; l.take(100) && l.takeFor(mallory, 100); n++ {
	}
	l.give(100) // the one that was refused
	if n != maxCalls/share {
		t.Errorf("one user may have %d calls", n)
	}
	if !l.take(100) || !l.takeFor(ann, 100) || !l.takeFor(0, 100) {
		t.Error("others may have none")
	}
	const large = 8 << 20
	for n = 0; l.takeFor(ann, large); n++ {
	}
	if n != maxLargeCalls/share/large {
		t.Errorf("one user may have %d large calls", n)
	}
	for n = 0; l.takeBlobs(mallory); n++ {
	}
	if n != maxBlobCalls || !l.takeBlobs(ann) {
		t.Errorf("one user may have %d calls with files, or others none", n)
	}
	l.giveBlobs(ann)
	for range maxBlobCalls {
		l.giveBlobs(mallory)
	}
	for range maxCalls / share {
		l.giveFor(mallory, 100)
	}
	l.giveFor(ann, 100)
	for range maxLargeCalls / share / large {
		l.giveFor(ann, large)
	}
	if len(l.users) != 0 || l.blobs != 0 {
		t.Errorf("users are remembered: %+v", l.users)
	}
}

// TestHalfAMessage: the bus passes whole messages; were one cut short, reading
// ends, and what came along is closed.
func TestHalfAMessage(t *testing.T) {
	whole := encode(t, binary.LittleEndian, aCall("ActivateHome", "ann", "{}"))
	for _, cut := range []int{1, busconn.PrefixLen - 1, busconn.PrefixLen, busconn.PrefixLen + 1, len(whole) - 1} {
		ours, theirs := socketPair(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := theirs.WriteMsgUnix(whole[:cut], unix.UnixRights(int(w.Fd())), nil); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		c := &conn{busconn.New(ours)}
		got := make(chan error, 1)
		go func() {
			m, err := c.read()
			if m != nil {
				m.close()
			}
			got <- err
		}()
		select {
		case err := <-got:
			t.Errorf("%d bytes are taken for a message: %v", cut, err)
		case <-time.After(50 * time.Millisecond):
		}
		_ = theirs.Close()
		if err := <-got; err == nil || errors.Is(err, errMalformed) {
			t.Errorf("%d bytes and the end: %v", cut, err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%d bytes: the descriptor is still open", cut)
		}
		_ = r.Close()
	}
}

func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = ends[i].Close() })
	}
	return ends[0], ends[1]
}

// TestFloodsOfHeaderFields: unknown ones are passed over, and the announced
// sizes are held to.
func TestFloodsOfHeaderFields(t *testing.T) {
	var fields bytes.Buffer
	for range 200_000 {
		fields.Write([]byte{200, 1, 'y', 0, 7, 0, 0, 0}) // field 200, a byte
	}
	for _, f := range []struct {
		code byte
		text string
	}{{fieldMember, "Ping"}} {
		fields.Write([]byte{f.code, 1, 's', 0})
		_ = binary.Write(&fields, binary.LittleEndian, uint32(len(f.text)))
		fields.WriteString(f.text + "\x00")
		for fields.Len()%8 != 0 {
			fields.WriteByte(0)
		}
	}
	fields.Write([]byte{fieldPath, 1, 'o', 0, 1, 0, 0, 0, '/', 0})
	head := []byte{'l', typeCall, 0, 1, 0, 0, 0, 0, 9, 0, 0, 0}
	head = binary.LittleEndian.AppendUint32(head, uint32(fields.Len()))
	head = append(head, fields.Bytes()...)
	for len(head)%8 != 0 {
		head = append(head, 0)
	}
	m, err := parse(head, nil)
	if err != nil || m.member != "Ping" || m.path != "/" {
		t.Errorf("%v: %q %q", err, m.member, m.path)
	}
	for what, prefix := range map[string][]byte{
		"a header of 4 GiB":         {'l', 1, 0, 1, 0, 0, 0, 0, 9, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		"a body of 4 GiB":           {'l', 1, 0, 1, 0xff, 0xff, 0xff, 0xff, 9, 0, 0, 0, 0, 0, 0, 0},
		"more than 128 MiB in sum":  {'l', 1, 0, 1, 0, 0, 0, 8, 9, 0, 0, 0, 8, 0, 0, 0},
		"another protocol version":  {'l', 1, 0, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0},
		"a byte order nobody knows": {'x', 1, 0, 1, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0},
	} {
		if total, _, err := busconn.Frame(prefix); err == nil {
			t.Errorf("%s: a message of %d bytes", what, total)
		}
	}
	// Nested without end: neither stack nor time is used up.
	for _, sig := range []string{strings.Repeat("a", 255), strings.Repeat("(", 255), "a{" + strings.Repeat("a{s", 80), strings.Repeat("v", 255)} {
		if n := complete(sig, 0); n > 1 {
			t.Errorf("signature %q is complete at %d", sig, n)
		}
	}
	variants := bytes.Repeat([]byte{1, 'v', 0}, 100_000)
	r := &reader{p: variants, order: binary.LittleEndian}
	if r.skip("v", 0); r.err == nil {
		t.Error("variants in variants have no bound")
	}
}

// TestNoDescriptorsLeft: with the table of descriptors full, what needs one is
// refused, what needs none is answered, and all is well once there are some.
func TestNoDescriptorsLeft(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	r.register(t, "ann", nil)
	g := r.guest(t)
	before := openFiles(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var filler []int
	lowered := false
	restore := func() {
		busconn.CloseAll(filler)
		filler = nil
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}
	defer restore()
	for {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			break
		}
		filler = append(filler, fd)
		if !lowered {
			// A few numbers below it may be free.
			low := limit
			low.Cur = uint64(fd) + 20
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
				t.Fatal(err)
			}
			lowered = true
		}
	}
	if _, err := r.client.GetHomeByName(t.Context(), "ann"); err != nil {
		t.Errorf("a look-up: %v", err)
	}
	if ref, err := r.client.RefHomeUnrestricted(t.Context(), "ann", false); err == nil {
		t.Error("a reference was given")
		_ = ref.Close()
	}
	if _, _, err := g.WriteMsgUnix(rawCall(t, 100, 3, "GetHomeByName", "ann"), unix.UnixRights(0, 1, 2), nil); err != nil {
		t.Fatal(err)
	}
	m := g.answerTo(t, 100)
	if m.errName != fault.LimitsExceeded.BusName() {
		t.Errorf("a call whose descriptors did not arrive is answered %d, %q", m.typ, m.errName)
	}
	m.close()
	restore()
	ref, err := r.client.RefHomeUnrestricted(t.Context(), "ann", false)
	if err != nil {
		t.Fatalf("afterwards: %v", err)
	}
	if err := r.client.ReleaseHome(t.Context(), "ann"); !fault.Is(err, fault.HomeBusy) {
		t.Errorf("a release while it is referenced: %v", err)
	}
	_ = ref.Close()
	settles(t, "descriptors are leaked", func() bool {
		_ = r.client.ReleaseHome(t.Context(), "ann")
		return openFiles(t) <= before
	})
}
