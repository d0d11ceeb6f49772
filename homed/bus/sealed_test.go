package bus

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"hearth/homed/home1"
	"hearth/internal/busconn"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/records"
)

// dialAs is a client of another user's: the kernel notes the thread's uid.
func (r *rig) dialAs(t *testing.T, uid uint32) *busconn.Caller {
	t.Helper()
	var c *busconn.Caller
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its uid
		_, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0))
		if e != 0 {
			done <- e
			return
		}
		var err error
		c, err = busconn.Dial(r.address)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// outcome is what comes of a call: the error's name and text.
func outcome(t *testing.T, c *busconn.Caller, name, path, iface, member string, body ...any) string {
	t.Helper()
	call := c.Go(&dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldDestination: name, dbus.FieldPath: dbus.ObjectPath(path), dbus.FieldInterface: iface, dbus.FieldMember: member}, body)})
	select {
	case <-call.Done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s is not answered", member)
	}
	var d dbus.Error
	switch {
	case errors.As(call.Err, &d):
		return fmt.Sprint(d.Name, " ", d.Body)
	case call.Err != nil:
		t.Fatalf("%s: %v", member, call.Err)
	}
	for _, v := range call.Body {
		if fd, ok := v.(dbus.UnixFD); ok {
			_ = unix.Close(int(fd))
		}
	}
	return fmt.Sprintf("answer of %d values", len(call.Body))
}

// sealedFor returns the arguments of a call as the method of our own wants
// them.
func sealedFor(t *testing.T, member string, args []any) []any {
	t.Helper()
	out := append([]any{}, args...)
	for i, a := range home1.OwnManager.Method(member).In {
		if a.Type == "h" {
			f, err := secret.Sealed("test", []byte(args[i].(string)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			out[i] = dbus.UnixFD(f.Fd())
		}
	}
	return out
}

// TestSealedIsThePlainCall: whoever calls, with whatever text, gets the answer
// that the method of org.freedesktop.home1 gives, and polkit is asked the same.
func TestSealedIsThePlainCall(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	r.register(t, "ann", map[string]any{"uid": 60456})
	a := &authority{}
	r.polkit(t, a)
	files := map[string]dbus.UnixFD{}
	const right, wrong = `{"password":["geheim"]}`, `{"password":["falsch"]}`
	var calls [][]any
	for _, text := range []string{right, wrong, "{}", "", "[]", "x", `{"password":7}`} {
		for _, member := range []string{"ActivateHome", "ActivateHomeIfReferenced", "RealizeHome", "FixateHome", "AuthenticateHome", "UnlockHome"} {
			calls = append(calls, []any{member, "ann", text})
		}
		calls = append(calls, []any{"ResizeHome", "ann", uint64(1 << 30), text}, []any{"ChangePasswordHome", "ann", text, right},
			[]any{"ChangePasswordHome", "ann", right, text}, []any{"AcquireHome", "ann", text, false}, []any{"AcquireHome", "ghost", text, false})
	}
	for _, text := range []string{"{", `{"userName":"bob","binding":{}}`, `{"userName":"ghost","disposition":"regular","secret":[]}`,
		`{"userName":"ghost","disposition":"regular","secret":` + right + `}`} {
		calls = append(calls, []any{"UpdateHome", text}, []any{"UpdateHomeEx", text, files, uint64(0)}, []any{"UpdateHomeEx", text, files, uint64(6)},
			[]any{"CreateHomeEx", text, files, uint64(1)})
	}
	calls = append(calls, []any{"CreateHome", "{"}, []any{"CreateHome", `{"userName":"bob","binding":{}}`})
	seen := map[string]bool{}
	for _, uid := range []uint32{0, 1500, 60456} {
		c := r.dialAs(t, uid)
		for _, call := range calls {
			member, args := call[0].(string), call[1:]
			seen[member] = true
			a.asked = nil
			plain := outcome(t, c, home1.Name, home1.ManagerPath, home1.ManagerInterface, member, args...)
			asked := strings.Join(a.asked, "\n")
			a.asked = nil
			got := outcome(t, c, home1.OwnName, home1.OwnPath, home1.OwnInterface, member, sealedFor(t, member, args)...)
			// The text names the interface that was called.
			got = strings.ReplaceAll(got, home1.OwnInterface, home1.ManagerInterface)
			if got != plain || asked != strings.Join(a.asked, "\n") {
				t.Errorf("UID %d, %v: %s, plain %s; polkit was asked %q, plain %q", uid, call, got, plain, a.asked, asked)
			}
		}
	}
	for _, m := range home1.OwnManager.Methods {
		if !seen[m.Name] {
			t.Errorf("%s was not called", m.Name)
		}
	}
}

// TestSealedDescriptors: what is no sealed memfd with text is refused, at once,
// and none of it stays open.
func TestSealedDescriptors(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	r.register(t, "ann", nil)
	c := r.dialAs(t, 1500)
	const inv = "org.freedesktop.DBus.Error.InvalidArgs"
	keep := func(f *os.File, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return int(f.Fd())
	}
	memfd := func(size int64, seals int) int {
		t.Helper()
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		if _, err := unix.Write(fd, []byte("{}")); err != nil {
			t.Fatal(err)
		}
		if size > 0 {
			if err := unix.Ftruncate(fd, size); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = reader.Close(), writer.Close() }()
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(sockets[0]), unix.Close(sockets[1]) }()
	good := memfd(0, secret.Seals)
	reopened := func(fd, flags int) int {
		return keep(os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), flags, 0))
	}
	plainFile := t.TempDir() + "/file"
	if err := os.WriteFile(plainFile, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A file of the kind of file system that memfds are on.
	shm, err := os.CreateTemp("/dev/shm", "sealed")
	tmpfs := keep(shm, err)
	if err := os.Remove(shm.Name()); err != nil {
		t.Fatal(err)
	}
	noText, err := secret.Sealed("test", []byte("{\"password\":[\"\xff\"]}"))
	if err != nil {
		t.Fatal(err)
	}
	defer noText.Close()
	nul, err := secret.Sealed("test", []byte("{}\x00"))
	if err != nil {
		t.Fatal(err)
	}
	defer nul.Close()
	acquire := func(body ...any) string {
		t.Helper()
		return outcome(t, c, home1.OwnName, home1.OwnPath, home1.OwnInterface, "AcquireHome", body...)
	}
	unfits := map[string]int{
		"pipe": int(reader.Fd()), "pipe's other end": int(writer.Fd()), "socket": sockets[0],
		"directory": keep(os.Open(t.TempDir())), "file": keep(os.Open(plainFile)), "file of a tmpfs": tmpfs,
		"device": keep(os.Open("/dev/zero")), "O_PATH": reopened(good, unix.O_PATH),
		"memfd without seals": memfd(0, 0), "may be written": memfd(0, secret.Seals&^unix.F_SEAL_WRITE),
		"may shrink": memfd(0, secret.Seals&^unix.F_SEAL_SHRINK), "may grow": memfd(0, secret.Seals&^unix.F_SEAL_GROW),
		"may be sealed":          memfd(0, secret.Seals&^unix.F_SEAL_SEAL),
		"future writes alone":    memfd(0, secret.Seals&^unix.F_SEAL_WRITE|unix.F_SEAL_FUTURE_WRITE),
		"a terabyte":             memfd(1<<40, secret.Seals),
		"one byte more than may": memfd(maxSealed+1, secret.Seals),
		"NUL":                    int(nul.Fd()), "no UTF-8": int(noText.Fd()), "holes": memfd(1<<20, secret.Seals),
	}
	before := openFiles(t)
	for what, fd := range unfits {
		if got := acquire("ann", dbus.UnixFD(fd), false); !strings.HasPrefix(got, inv) || !strings.Contains(got, "sealed memfd") {
			t.Errorf("%s: %s", what, got)
		}
	}
	const absent = home1.Name + ".HomeAbsent"
	if got := acquire("ann", dbus.UnixFD(good), false); !strings.HasPrefix(got, absent) {
		t.Errorf("as it should be: %s", got)
	}
	// Where the descriptor stands is the sender's business.
	if _, err := unix.Seek(good, 0, 2); err != nil {
		t.Fatal(err)
	}
	if got := acquire("ann", dbus.UnixFD(good), false); !strings.HasPrefix(got, absent) {
		t.Errorf("read to its end before: %s", got)
	}
	if got := acquire("ann", "{}", false); !strings.HasPrefix(got, inv) {
		t.Errorf("a string: %s", got)
	}
	// What godbus does not write: indexes without descriptors, more descriptors
	// than indexes, one index twice.
	g := r.guest(t)
	raw := func(what, member, sig string, fds []int, want string, body ...any) {
		t.Helper()
		m := &dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: headers(map[dbus.HeaderField]any{
			dbus.FieldDestination: home1.OwnName, dbus.FieldPath: dbus.ObjectPath(home1.OwnPath), dbus.FieldInterface: home1.OwnInterface, dbus.FieldMember: member}, body)}
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.ParseSignatureMust(sig))
		if len(fds) > 0 {
			m.Headers[dbus.FieldUnixFDs] = dbus.MakeVariant(uint32(len(fds)))
		}
		got := g.send(t, m, fds)
		defer got.close()
		if got.typ != typeError || got.errName != want {
			t.Errorf("%s: answered %d %q, want %q", what, got.typ, got.errName, want)
		}
	}
	raw("no descriptor", "AcquireHome", "shb", nil, inv, "ann", uint32(0), false)
	raw("index beyond", "AcquireHome", "shb", []int{good}, inv, "ann", uint32(1), false)
	raw("largest index", "AcquireHome", "shb", []int{good}, inv, "ann", uint32(1<<32-1), false)
	raw("two descriptors", "AcquireHome", "shb", []int{good, int(reader.Fd())}, absent, "ann", uint32(0), false)
	raw("one index twice", "ChangePasswordHome", "shh", []int{good}, inv, "ann", uint32(0), uint32(0))
	settles(t, "descriptors are leaked", func() bool { return openFiles(t) <= before+1 }) // the guest's connection
}

// send sends a message as it is, and reads the answer. The message's signature
// may be another than its body's: an h is a u on the wire.
func (c *conn) send(t *testing.T, m *dbus.Message, fds []int) *message {
	t.Helper()
	const serial = 4711
	buf := encode(t, binary.LittleEndian, m)
	binary.LittleEndian.PutUint32(buf[8:], serial)
	if _, _, err := c.WriteMsgUnix(buf, unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	return c.answerTo(t, serial)
}

// TestTheBusSeesNoPassword: a monitor that sees every message of the bus finds
// no password in any, where a client of ours asks a service of ours; it finds it
// where the service is another.
func TestTheBusSeesNoPassword(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	r.register(t, "ann", nil)
	const password = "Zwetschgenkuchen"
	section, err := secret.Copy([]byte(`{"password":["` + password + `"]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer section.Close()
	record := []byte(`{"userName":"ann","disposition":"regular"}`)
	m := r.monitor(t)
	ctx := t.Context()
	for what, err := range map[string]error{
		"acquire":         func() error { _, err := r.client.AcquireHome(ctx, "ann", section, false); return err }(),
		"activate":        r.client.ActivateHome(ctx, "ann", section),
		"authenticate":    r.client.AuthenticateHome(ctx, "ann", section),
		"change password": r.client.ChangePasswordHome(ctx, "ann", section, section),
		"change, no old":  r.client.ChangePasswordHome(ctx, "ann", section, nil),
		"resize":          r.client.ResizeHome(ctx, "ann", 1<<30, section),
		"unlock":          r.client.UnlockHome(ctx, "ann", section),
		"update":          r.client.UpdateHome(ctx, "ann", record, section, nil, false),
		"create":          r.client.CreateHome(ctx, []byte(`{"userName":"ann","disposition":"regular"}`), section, nil),
	} {
		if err == nil || fault.Is(err, fault.UnknownMethod) || fault.Is(err, fault.ServiceUnknown) {
			t.Errorf("%s: %v", what, err)
		}
	}
	seen := m.until(t, r)
	if n := bytes.Count(seen, []byte(home1.OwnInterface)); n < 9 {
		t.Errorf("the monitor saw %d calls", n)
	}
	if bytes.Contains(seen, []byte(password)) {
		t.Error("the monitor saw the password")
	}
	// The same eyes see it in a plain call.
	outcome(t, r.dialAs(t, 0), home1.Name, home1.ManagerPath, home1.ManagerInterface, "AuthenticateHome", "ann", `{"password":["`+password+`"]}`)
	if seen := m.until(t, r); !bytes.Contains(seen, []byte(password)) {
		t.Error("the monitor sees no plain calls")
	}
}

// eyes are a connection that the bus shows every message.
type eyes struct {
	c     *conn
	marks int
}

func (r *rig) monitor(t *testing.T) *eyes {
	t.Helper()
	c := r.guest(t)
	body := []any{[]string{}, uint32(0)}
	serial, err := c.Send(&dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldDestination: driverName, dbus.FieldPath: dbus.ObjectPath(driverPath),
		dbus.FieldInterface: driverIface + ".Monitoring", dbus.FieldMember: "BecomeMonitor"}, body)})
	if err != nil {
		t.Fatal(err)
	}
	m := c.answerTo(t, serial)
	defer m.close()
	if m.typ != typeReply {
		t.Fatalf("no monitor: %s", m.errName)
	}
	return &eyes{c: c}
}

// until returns all that was on the bus up to now: it makes a mark of its own
// there and reads up to that.
func (e *eyes) until(t *testing.T, r *rig) []byte {
	t.Helper()
	e.marks++
	mark := fmt.Sprintf("mark%d", e.marks)
	if err := r.raw.Emit("/mark", "a.b."+mark); err != nil {
		t.Fatal(err)
	}
	var all []byte
	_ = e.c.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		buf, fds, err := e.c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		busconn.CloseAll(fds)
		all = append(all, buf...)
		if bytes.Contains(buf, []byte(mark)) {
			return all
		}
	}
}

// TestOwnName: the objects of our name answer under it alone, and those of home1
// stay what they are.
func TestOwnName(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	var owners [2]string
	for i, name := range []string{home1.Name, home1.OwnName} {
		if err := r.raw.BusObject().Call(driverIface+".GetNameOwner", 0, name).Store(&owners[i]); err != nil {
			t.Fatal(err)
		}
	}
	if owners[0] != owners[1] {
		t.Errorf("the names' owners are %q", owners)
	}
	introspect := func(name, path string) string {
		var text string
		if err := r.raw.Object(name, dbus.ObjectPath(path)).Call(home1.IntrospectableInterface+".Introspect", 0).Store(&text); err != nil {
			return errName(err)
		}
		return text
	}
	for _, c := range []struct{ name, path, want string }{
		{home1.Name, "/org", home1.Introspect(nil, []string{"freedesktop"})},
		{home1.Name, home1.ManagerPath, home1.Introspect([]*home1.Interface{home1.Manager}, []string{"home"})},
		{home1.Name, home1.OwnPath, "org.freedesktop.DBus.Error.UnknownObject"},
		{home1.OwnName, "/", home1.Introspect(nil, []string{"org"})},
		{home1.OwnName, "/org", home1.Introspect(nil, []string{"hearth"})},
		{home1.OwnName, "/org/hearth", home1.Introspect(nil, []string{"Home1"})},
		{home1.OwnName, home1.OwnPath, home1.Introspect([]*home1.Interface{home1.OwnManager}, nil)},
		{home1.OwnName, home1.ManagerPath, "org.freedesktop.DBus.Error.UnknownObject"},
		{home1.OwnName, home1.HomesPath, "org.freedesktop.DBus.Error.UnknownObject"},
	} {
		if got := introspect(c.name, c.path); got != c.want {
			t.Errorf("%s at %s:\n%s", c.path, c.name, got)
		}
	}
	c := r.dialAs(t, 0)
	for what, got := range map[string]string{
		"no method of it":         outcome(t, c, home1.OwnName, home1.OwnPath, home1.OwnInterface, "ListHomes"),
		"none of the other":       outcome(t, c, home1.OwnName, home1.OwnPath, home1.ManagerInterface, "ListHomes"),
		"none of it at the other": outcome(t, c, home1.Name, home1.ManagerPath, home1.OwnInterface, "AcquireHome", "ann", "{}", false),
	} {
		if !strings.HasPrefix(got, "org.freedesktop.DBus.Error.UnknownMethod") {
			t.Errorf("%s: %s", what, got)
		}
	}
}

// TestSealedWork: with the real worker, the right password is right in a memfd,
// a wrong one wrong and counted once, and who calls is told of the stages, in
// time, and nobody else.
func TestSealedWork(t *testing.T) {
	testenv.Need(t, "root")
	worker := t.TempDir() + "/homework"
	cmd := exec.Command("go", "build", "-o", worker, "../../cmd/homework")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := serveWith(t, worker)
	password, err := secret.Copy([]byte("geheim"))
	if err != nil {
		t.Fatal(err)
	}
	defer password.Close()
	hash, err := records.HashPassword(password, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const right, wrong = `{"password":["geheim"]}`, `{"password":["falsch"]}`
	signals := make(chan *dbus.Signal, 64)
	r.raw.Signal(signals)
	stranger, err := dbus.Connect(r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	overheard := make(chan *dbus.Signal, 64)
	stranger.Signal(overheard)
	for _, c := range []*dbus.Conn{r.raw, stranger} {
		if err := c.AddMatchSignal(dbus.WithMatchInterface(home1.OwnInterface)); err != nil {
			t.Fatal(err)
		}
	}
	record := `{"userName":"ann","disposition":"regular","storage":"directory","enforcePasswordPolicy":false,"privileged":{"hashedPassword":["` + hash + `"]},"secret":` + right + `}`
	own := r.raw.Object(home1.OwnName, home1.OwnPath)
	call := own.Call(home1.OwnInterface+".CreateHome", 0, sealedFor(t, "CreateHome", []any{record})...)
	if call.Err != nil {
		t.Fatal(call.Err)
	}
	var stages []string
	for len(signals) > 0 {
		s := <-signals
		if s.Name != home1.OwnInterface+".Progress" || s.Path != home1.OwnPath {
			continue
		}
		var user, stage string
		var serial uint32
		var done, total uint64
		if err := dbus.Store(s.Body, &user, &serial, &stage, &done, &total); err != nil {
			t.Fatal(err)
		}
		if user != "ann" || serial == 0 || total != 0 && done > total {
			t.Errorf("signal says %v", s.Body)
		}
		stages = append(stages, stage)
	}
	if !slices.Contains(stages, "populate") {
		t.Errorf("before the answer stages %q were told", stages)
	}
	if err := stranger.BusObject().Call(driverIface+".GetId", 0).Err; err != nil {
		t.Fatal(err)
	}
	for len(overheard) > 0 {
		if s := <-overheard; strings.HasPrefix(s.Name, home1.OwnInterface) {
			t.Errorf("a stranger is told %v", s)
		}
	}
	authenticate := func(text string) string {
		return errName(own.Call(home1.OwnInterface+".AuthenticateHome", 0, sealedFor(t, "AuthenticateHome", []any{"ann", text})...).Err)
	}
	for text, want := range map[string]string{right: "", "{}": home1.Name + ".BadPassword"} {
		if got := authenticate(text); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	// Of a client, a wrong password is one attempt.
	bad := func() float64 {
		t.Helper()
		text, _, err := r.client.GetUserRecordByName(t.Context(), "ann")
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Status map[string]map[string]any
		}
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		n, _ := doc.Status[machineID]["badAuthenticationCounter"].(float64)
		return n
	}
	falsch, err := secret.Copy([]byte(wrong))
	if err != nil {
		t.Fatal(err)
	}
	defer falsch.Close()
	before := bad()
	if err := r.client.AuthenticateHome(t.Context(), "ann", falsch); !fault.Is(err, fault.BadPassword) {
		t.Errorf("a wrong password: %v", err)
	}
	if after := bad(); after != before+1 {
		t.Errorf("attempts went from %v to %v", before, after)
	}
}
