package shimtest

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/testenv"
	"hearth/pamhome"
)

// helperEnv makes the test binary the helper: a script in between sets it,
// because the module starts the helper with an empty environment.
const helperEnv = "SHIMTEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		os.Exit(actHelper())
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	_ = os.Chmod(dir, 0o755)
	buildRoot = dir
	return m.Run()
}

// A bench is a module, a login program, and a directory of PAM services.
type bench struct {
	t                 *testing.T
	dir, module, host string
}

var (
	buildMutex sync.Mutex
	built      = map[string]string{} // what was asked for -> directory
	buildRoot  string
)

// build makes the module with that helper, and a login program. defs are more
// macros of the module. What one test built the next one takes.
func build(t *testing.T, helper, defs string) *bench {
	t.Helper()
	testenv.Need(t, "cc", "make")
	if _, err := os.Stat("/usr/include/security/pam_appl.h"); err != nil {
		testenv.Need(t, "the headers of libpam")
	}
	buildMutex.Lock()
	defer buildMutex.Unlock()
	key := helper + " " + defs
	dir := built[key]
	if dir == "" {
		dir = filepath.Join(buildRoot, fmt.Sprint(len(built)))
		out, err := exec.Command("make", "-s", "-C", "..", "OUT="+dir, "HELPER="+helper, "DEFS="+defs).CombinedOutput()
		if err != nil {
			if strings.Contains(string(out), "asan") {
				testenv.Need(t, "the libraries of gcc's sanitizers")
			}
			t.Fatalf("make: %v\n%s", err, out)
		}
		args := []string{"-Wall", "-Wextra", "-Werror", "-O1", "-g", "-pthread", "-o", filepath.Join(dir, "host"), "testdata/host.c", "-lpam"}
		for _, def := range strings.Fields(defs) {
			if strings.HasPrefix(def, "-fsanitize") {
				args = append(args, def) // its library comes before all others
			}
		}
		out, err = exec.Command("cc", args...).CombinedOutput()
		if err != nil {
			if strings.Contains(string(out), "pam_start_confdir") {
				testenv.Need(t, "libpam with pam_start_confdir")
			}
			t.Fatalf("cc: %v\n%s", err, out)
		}
		built[key] = dir
	}
	b := &bench{t, t.TempDir(), filepath.Join(dir, "pam_home.so"), filepath.Join(dir, "host")}
	// For login programs that give up root.
	for d := b.dir; d != "/"; d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o755)
		if d == os.TempDir() {
			break
		}
	}
	return b
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// service writes a PAM service with our module alone and the options given.
func (b *bench) service(name, args string) {
	b.t.Helper()
	text := ""
	for _, kind := range []string{"auth", "account", "session", "password"} {
		text += fmt.Sprintf("%s required %s %s\n", kind, b.module, args)
	}
	if err := os.WriteFile(b.path(name), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// login runs the login program and returns what it printed.
func (b *bench) login(args ...string) string {
	b.t.Helper()
	i := 0
	for i < len(args) && strings.HasPrefix(args[i], "-") && args[i] != "-" {
		i++
		if !slices.Contains([]string{"-r", "-R", "-n"}, args[i-1]) {
			i++
		}
	}
	args = slices.Insert(args, i, b.dir)
	cmd := exec.Command(b.host, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=C", "SECRET_OF_THE_HOST=1", "TERM=xterm"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.t.Errorf("host %v: %v", args, err)
	}
	return string(out)
}

// scripted builds a module whose helper is this test binary.
func scripted(t *testing.T, defs string) *bench {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	helper := filepath.Join(buildRoot, "helper")
	text := fmt.Sprintf("#!/bin/sh\n%s=1 exec %s\n", helperEnv, self)
	if err := os.WriteFile(helper, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return build(t, helper, defs)
}

func (b *bench) script(name string, args ...string) string {
	b.t.Helper()
	b.service("svc", "script="+name)
	return b.login(args...)
}

func expect(t *testing.T, out string, lines ...string) {
	t.Helper()
	want := strings.Join(lines, "\n") + "\n"
	if out != want {
		t.Errorf("printed\n%swant\n%s", out, want)
	}
}

func result(op, code string) string { return fmt.Sprintf("%s = PAM_%s PAM_USER='ann'", op, code) }

// raw is the helper's end without package frame, to say what that never says.
type raw struct{ in []byte }

func (r *raw) receive() []byte {
	r.in = make([]byte, 65536)
	n, _, err := unix.Recvfrom(3, r.in, 0)
	if err != nil || n == 0 {
		os.Exit(0)
	}
	return r.in[:n]
}

func packet(typ uint16, fields ...[]byte) []byte {
	var body []byte
	for _, f := range fields {
		body = append(body, f...)
	}
	p := binary.LittleEndian.AppendUint16(nil, typ)
	p = append(p, 0, 0)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(body)))
	return append(p, body...)
}

func field(tag byte, data any) []byte {
	var b []byte
	switch d := data.(type) {
	case string:
		b = []byte(d)
	case byte:
		b = []byte{d}
	case int:
		b = binary.LittleEndian.AppendUint32(nil, uint32(int32(d)))
	case uint64:
		b = binary.LittleEndian.AppendUint64(nil, d)
	}
	f := binary.LittleEndian.AppendUint32([]byte{tag}, uint32(len(b)))
	return append(f, b...)
}

func (r *raw) send(p []byte, fds ...int) {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(3, p, oob, nil, unix.MSG_NOSIGNAL); err != nil {
		os.Exit(3)
	}
}

func (r *raw) result(code int) { r.send(packet(29, field(1, code))) }

func (r *raw) info(format string, args ...any) {
	r.send(packet(16, field(1, byte(4)), field(2, fmt.Sprintf(format, args...))))
	r.receive()
}

// fifo is a reference as the service gives it.
func fifo() int {
	name := filepath.Join(os.TempDir(), fmt.Sprintf("ref-%d", os.Getpid()))
	_ = unix.Mkfifo(name, 0o600)
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	_ = os.Remove(name)
	if err != nil {
		os.Exit(4)
	}
	return fd
}

const refKey = "hearth-home-fd-ann"

func (r *raw) storeRef() {
	r.send(packet(23, field(1, refKey)), fifo())
	r.receive()
}

const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

func (r *raw) storeMemfd(data string, with int) {
	fd, _ := unix.MemfdCreate("x", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	_, _ = unix.Write(fd, []byte(data))
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, with)
	r.send(packet(22, text(1, "systemd-user-record-ann"), field(2, byte(1))), fd)
}

func die() {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

func text(tag byte, s string) []byte { return field(tag, s) }

// scripts are the ways in which a helper behaves.
var scripts = map[string]func(r *raw, phase byte){
	"ref": func(r *raw, phase byte) {
		if phase != 4 {
			r.storeRef()
		} else {
			r.send(packet(24, field(1, refKey)))
			r.receive()
		}
		r.result(0)
	},
	"held": func(r *raw, phase byte) {
		if phase == 1 {
			r.storeRef()
		} else {
			r.send(packet(21, field(1, refKey)))
			v := r.receive()
			r.info("held %d", v[len(v)-1])
		}
		r.result(0)
	},
	"no-ref":        func(r *raw, _ byte) { r.result(0) },
	"no-ref-change": func(r *raw, _ byte) { r.result(12) },
	"dropped": func(r *raw, _ byte) {
		r.storeRef()
		r.send(packet(24, field(1, refKey)))
		r.receive()
		r.result(0)
	},
	// Killed with nothing said, with a request not answered, with an answer not
	// read, in the middle of the conversation.
	"killed":         func(r *raw, _ byte) { die() },
	"killed-request": func(r *raw, _ byte) { r.send(packet(21, text(1, refKey))); die() },
	"killed-answer":  func(r *raw, _ byte) { r.storeRef(); r.send(packet(21, text(1, refKey))); r.receive(); die() },
	"killed-conv":    func(r *raw, _ byte) { r.send(packet(16, field(1, byte(1)), text(2, "slow"))); die() },
	// What comes after the result is dropped unread.
	"after-result": func(r *raw, _ byte) {
		r.storeRef()
		r.send(packet(28, field(1, byte(7)), text(2, "one, two")))
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		r.result(0)
		r.send(packet(77))
		r.send(packet(29, field(1, 7)), fifo())
	},
	"result-1":  func(r *raw, _ byte) { r.storeRef(); r.result(1) },
	"result-28": func(r *raw, _ byte) { r.storeRef(); r.result(28) },
	"result-30": func(r *raw, _ byte) { r.storeRef(); r.result(30) },
	"result-31": func(r *raw, _ byte) { r.storeRef(); r.result(31) },
	"result--1": func(r *raw, _ byte) { r.storeRef(); r.result(-1) },
	"exit":      func(r *raw, _ byte) {},
	"exit-ref":  func(r *raw, _ byte) { r.storeRef() },
	"mute":      func(r *raw, _ byte) { r.receive() },
	"mute-later": func(r *raw, _ byte) {
		r.info("hello")
		r.receive()
	},
	"stopped": func(r *raw, _ byte) {
		// Nobody else ends a stopped process once the login program is gone.
		_ = exec.Command("/bin/sh", "-c", fmt.Sprintf("sleep 60; kill -KILL %d", os.Getpid())).Start()
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
	},
	"chatter": func(r *raw, _ byte) {
		for {
			r.info("still here")
			time.Sleep(50 * time.Millisecond)
		}
	},

	"short":        func(r *raw, _ byte) { r.send([]byte{29, 0, 0}) },
	"length":       func(r *raw, _ byte) { r.send(append(packet(29, field(1, 7)), 0)) },
	"flags":        func(r *raw, _ byte) { p := packet(29, field(1, 7)); p[2] = 1; r.send(p) },
	"type":         func(r *raw, _ byte) { r.send(packet(77)) },
	"missing":      func(r *raw, _ byte) { r.send(packet(29)) },
	"twice":        func(r *raw, _ byte) { r.send(packet(29, field(1, 7), field(1, 7))) },
	"half":         func(r *raw, _ byte) { r.send(packet(29, field(1, 7)[:6])) },
	"too-long":     func(r *raw, _ byte) { r.send(packet(28, field(1, byte(6)), text(2, strings.Repeat("x", 2049)))) },
	"huge":         func(r *raw, _ byte) { r.send(packet(28, field(1, byte(6)), text(2, strings.Repeat("x", 65536)))) },
	"nul":          func(r *raw, _ byte) { r.send(packet(19, text(1, "a\x00b"))) },
	"style":        func(r *raw, _ byte) { r.send(packet(16, field(1, byte(5)), text(2, "x"))) },
	"empty-conv":   func(r *raw, _ byte) { r.send(packet(16, field(1, byte(4)), text(2, ""))) },
	"key":          func(r *raw, _ byte) { r.send(packet(21, text(1, "unix_passwd"))) },
	"key-no-name":  func(r *raw, _ byte) { r.send(packet(21, text(1, "hearth-home-fd-"))) },
	"limit":        func(r *raw, _ byte) { r.send(packet(21, text(1, "systemd.memory_max"))) },
	"store-fd-key": func(r *raw, _ byte) { r.send(packet(22, text(1, refKey), field(2, byte(1)), text(3, "x"))) },
	"mark-state":   func(r *raw, _ byte) { r.send(packet(22, text(1, "hearth-home-state-ann"), field(2, byte(2)))) },
	"no-text":      func(r *raw, _ byte) { r.send(packet(22, text(1, "hearth-home-state-ann"), field(2, byte(1)))) },
	"env-name":     func(r *raw, _ byte) { r.send(packet(20, text(1, "LD_PRELOAD=x"))) },
	"env-digit":    func(r *raw, _ byte) { r.send(packet(20, text(1, "1=x"))) },
	"fd-conv":      func(r *raw, _ byte) { r.send(packet(16, field(1, byte(4)), text(2, "x")), fifo()) },
	"two-fds":      func(r *raw, _ byte) { r.send(packet(23, text(1, refKey)), fifo(), fifo()) },
	"no-fd":        func(r *raw, _ byte) { r.send(packet(23, text(1, refKey))) },
	"not-fifo":     func(r *raw, _ byte) { r.send(packet(23, text(1, refKey)), 0) },
	"not-memfd":    func(r *raw, _ byte) { r.send(packet(22, text(1, "hearth-home-state-ann"), field(2, byte(1))), fifo()) },
	"six-fds":      func(r *raw, _ byte) { r.send(packet(23, text(1, refKey)), 0, 0, 0, 0, 0, 0) },
	"prompt-64k":   func(r *raw, _ byte) { r.send(packet(16, field(1, byte(1)), text(2, strings.Repeat("x", 65536-8-11)))) },
	"memfd-open":   func(r *raw, _ byte) { r.storeMemfd("{}", 0) },
	"memfd-nul":    func(r *raw, _ byte) { r.storeMemfd("a\x00b", seals) },
	"memfd-big":    func(r *raw, _ byte) { r.storeMemfd(strings.Repeat("x", 4<<20+1), seals) },
	"text-and-fd": func(r *raw, _ byte) {
		r.send(packet(22, text(1, "hearth-home-state-ann"), field(2, byte(1)), text(3, "x")), fifo())
	},
	"number-size": func(r *raw, _ byte) { r.send(packet(29, field(1, byte(7)))) },
	"user-long":   func(r *raw, _ byte) { r.send(packet(19, text(1, strings.Repeat("x", 1025)))) },
	"priority":    func(r *raw, _ byte) { r.send(packet(28, field(1, byte(8)), text(2, "x"))) },
	"key-long":    func(r *raw, _ byte) { r.send(packet(21, text(1, refKey+strings.Repeat("x", 256)))) },
	"answer":      func(r *raw, _ byte) { r.send(packet(2, field(1, 0))) },

	"apply-umask":  func(r *raw, _ byte) { r.send(packet(25, field(1, 0o1000))) },
	"apply-twice":  func(r *raw, _ byte) { r.send(packet(25, field(1, 0), field(1, 0))) },
	"apply-caps":   func(r *raw, _ byte) { r.send(packet(25, field(4, 1))) },
	"lookup-empty": func(r *raw, _ byte) { r.send(packet(27, text(1, ""))) },
	"tty-write":    func(r *raw, _ byte) { r.send(packet(26, text(1, "x"))) },
	"tty-drop":     func(r *raw, _ byte) { r.send(packet(24, text(1, "hearth-tty-fd2"))) },
	"load-session": func(r *raw, _ byte) { r.send(packet(21, text(1, "hearth-session-fd"))) },
	"store-tty":    func(r *raw, _ byte) { r.send(packet(23, text(1, "hearth-tty-fd")), fifo()) },
	"session-ref": func(r *raw, _ byte) {
		// A session is no home.
		r.send(packet(23, text(1, "hearth-session-fd")), fifo())
		r.receive()
		r.result(0)
	},
	"apply": func(r *raw, _ byte) {
		pid := binary.LittleEndian.Uint32(fieldOf(r.in, 16))
		r.send(packet(25, field(1, 0o27), field(2, 3)))
		a := r.receive()
		r.info("failed %x", a[len(a)-4:])
		r.info("%s", statusOf(pid, "Umask:"))
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(stat), ") ")
		r.info("nice %s", strings.Fields(rest)[16])
		r.result(0)
	},
	"capabilities": func(r *raw, _ byte) {
		pid := binary.LittleEndian.Uint32(fieldOf(r.in, 16))
		all := uint64(pamhome.OwnBounding())
		r.send(packet(25, field(4, uint64(1)<<35|1), field(5, all&^(1<<21))))
		a := r.receive()
		r.info("failed %x", a[len(a)-4:])
		for _, key := range []string{"CapInh:", "CapAmb:"} {
			r.info("%s", statusOf(pid, key))
		}
		r.info("bounding %v", statusOf(pid, "CapBnd:") == fmt.Sprintf("CapBnd: %016x", all&^(1<<21)))
		r.info("effective %v", statusOf(pid, "CapEff:") == fmt.Sprintf("CapEff: %016x", all))
		r.result(0)
	},
	"lookup": func(r *raw, _ byte) {
		for _, name := range []string{"root", "no-such-user"} {
			r.send(packet(27, text(1, name)))
			a := r.receive()
			line := fmt.Sprintf("%s: %x", name, fieldOf(a, 1))
			if len(fieldsOf(a, 2)) > 0 {
				line += fmt.Sprintf(" uid %x gid %x home %s", fieldOf(a, 2), fieldOf(a, 3), fieldOf(a, 4))
			}
			r.info("%s", line)
		}
		r.result(0)
	},
	"tty": func(r *raw, phase byte) {
		const key = "hearth-tty-fd"
		r.send(packet(21, text(1, key)))
		buf, oob := make([]byte, 65536), make([]byte, 64)
		n, oobn, _, _, _ := unix.Recvmsg(3, buf, oob, 0)
		if buf[n-1] == 3 {
			m, _ := unix.ParseSocketControlMessage(oob[:oobn])
			fds, _ := unix.ParseUnixRights(&m[0])
			if phase == 3 {
				r.send(packet(23, text(1, key)), fds[0])
				r.receive()
			}
			tty, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fds[0]), os.O_WRONLY|unix.O_NOCTTY, 0)
			if err != nil {
				os.Exit(6)
			}
			fmt.Fprintf(tty, "<mark %d>", phase)
		}
		r.result(0)
	},
	"two-requests": func(r *raw, _ byte) {
		// Both are there before the first is answered: the login program
		// takes its time over the first.
		r.send(packet(16, field(1, byte(1)), text(2, "slow")))
		r.send(packet(21, text(1, refKey)))
		r.receive()
		r.storeRef()
		r.result(0)
	},
	"logs": func(r *raw, _ byte) {
		for range 300 {
			r.send(packet(28, field(1, byte(7)), text(2, "x")))
		}
	},
	"convs": func(r *raw, _ byte) {
		for range 65 {
			r.info("x")
		}
	},
	"loads": func(r *raw, _ byte) {
		for range 1001 {
			r.send(packet(21, text(1, refKey)))
			r.receive()
		}
	},
	"stores": func(r *raw, _ byte) {
		for range 65 {
			r.send(packet(22, text(1, "hearth-home-state-ann"), field(2, byte(1)), text(3, "x")))
			r.receive()
		}
	},
	"refs": func(r *raw, _ byte) {
		for range 9 {
			r.storeRef()
		}
	},

	"identity": func(r *raw, phase byte) {
		cwd, _ := os.Getwd()
		sid, _ := unix.Getsid(0)
		r.info("uid %d/%d gid %d/%d", os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid())
		r.info("cwd %s, leader %v, argv %v, umask %o", cwd, sid == os.Getpid(), os.Args, unix.Umask(0))
		var env []string
		for _, e := range os.Environ() {
			if name, _, _ := strings.Cut(e, "="); name != "PWD" && name != helperEnv && name != "OLDPWD" && name != "_" && name != "SHLVL" {
				env = append(env, e)
			}
		}
		r.info("env %v", env)
		r.result(7)
	},
	"big": func(r *raw, phase byte) {
		if phase == 1 {
			fd, _ := unix.MemfdCreate("x", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
			_, _ = unix.Write(fd, []byte(strings.Repeat("record ", 100000)))
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
			r.send(packet(22, text(1, "systemd-user-record-ann"), field(2, byte(1))), fd)
			r.receive()
			r.storeRef()
			r.result(0)
			return
		}
		r.send(packet(21, text(1, "systemd-user-record-ann")))
		buf, oob := make([]byte, 65536), make([]byte, 64)
		n, oobn, _, _, _ := unix.Recvmsg(3, buf, oob, 0)
		m, _ := unix.ParseSocketControlMessage(oob[:oobn])
		fds, _ := unix.ParseUnixRights(&m[0])
		var st unix.Stat_t
		_ = unix.Fstat(fds[0], &st)
		r.info("kind %d, %d bytes", buf[n-1], st.Size)
		r.result(7)
	},
	"start": func(r *raw, _ byte) {
		var lines []string
		for b := r.in[8:]; len(b) >= 5; {
			n := binary.LittleEndian.Uint32(b[1:])
			tag, data := b[0], b[5:5+n]
			b = b[5+n:]
			switch {
			case tag >= 4 && tag <= 15 && tag != 13:
				lines = append(lines, fmt.Sprintf("%d %s", tag, data))
			case tag != 16 && tag != 17:
				lines = append(lines, fmt.Sprintf("%d %x", tag, data))
			}
		}
		for _, l := range lines {
			r.info("%s", l)
		}
		r.result(7)
	},
	"mark": func(r *raw, _ byte) {
		r.send(packet(22, text(1, "systemd-home-user-record-ann"), field(2, byte(2))))
		r.receive()
		r.result(10)
	},
	"token": func(r *raw, _ byte) {
		r.send(packet(16, field(1, byte(1)), text(2, "Password: ")))
		a := r.receive()
		r.info("answer %x", a[8:])
		r.send(packet(18, field(1, byte(1)), text(2, "tok")))
		r.receive()
		r.send(packet(19, text(1, "ann2")))
		r.receive()
		r.result(7)
	},
	"new-token": func(r *raw, _ byte) {
		r.send(packet(17, field(1, byte(1)), field(2, byte(0))))
		a := r.receive()
		r.info("token %x", a[8:])
		r.send(packet(17, field(1, byte(1)), field(2, byte(1)), text(3, "new password: ")))
		a = r.receive()
		r.info("token %x", a[8:])
		r.result(0)
	},
	"env": func(r *raw, phase byte) {
		for _, kv := range []string{"XDG_AREA=a b", "HOME=/x", "XDG_AREA"} {
			r.send(packet(20, text(1, kv)))
			r.receive()
		}
		r.result(7)
	},
}

// wellFormed is one packet of every type.
var wellFormed = map[string][]byte{
	"CONV":      packet(16, field(1, byte(4)), text(2, "hello")),
	"GET_TOKEN": packet(17, field(1, byte(1)), field(2, byte(0))),
	"SET_TOKEN": packet(18, field(1, byte(1)), text(2, "tok")),
	"SET_USER":  packet(19, text(1, "ann")),
	"PUTENV":    packet(20, text(1, "XDG_AREA=x")),
	"LOAD":      packet(21, text(1, "hearth-home-state-ann")),
	"STORE":     packet(22, text(1, "hearth-home-state-ann"), field(2, byte(1)), text(3, "x")),
	"STORE_FD":  packet(23, text(1, refKey)),
	"DROP":      packet(24, text(1, "hearth-home-state-ann")),
	"APPLY":     packet(25),
	"TTY_WRITE": packet(26, text(1, "x")),
	"LOOKUP":    packet(27, text(1, "root")),
	"LOG":       packet(28, field(1, byte(7)), text(2, "x")),
}

// only sends one of them, and a result that is a refusal.
func (r *raw) only(name string) {
	var fds []int
	if name == "STORE_FD" {
		fds = []int{fifo()}
	}
	r.send(wellFormed[name], fds...)
	if name != "LOG" {
		r.receive()
	}
	r.result(7)
}

// fieldsOf returns the fields of a frame of the shim that have a tag.
func fieldsOf(start []byte, tag byte) (list []string) {
	for b := start[8:]; len(b) >= 5; {
		n := binary.LittleEndian.Uint32(b[1:])
		if b[0] == tag {
			list = append(list, string(b[5:5+n]))
		}
		b = b[5+n:]
	}
	return list
}

func fieldOf(start []byte, tag byte) []byte { return []byte(fieldsOf(start, tag)[0]) }

func statusOf(pid uint32, key string) string {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, key) {
			return strings.Join(strings.Fields(line), " ")
		}
	}
	return ""
}

// actHelper runs the script that the module line names.
func actHelper() int {
	runtime.LockOSThread()
	r := &raw{}
	start := r.receive()
	phase := fieldOf(start, 2)[0]
	name := ""
	for _, arg := range fieldsOf(start, 4) {
		if s, ok := strings.CutPrefix(arg, "script="); ok {
			name = s
		}
	}
	f := scripts[name]
	if n, ok := strings.CutPrefix(name, "only-"); ok {
		f = func(r *raw, _ byte) { r.only(n) }
	}
	if f == nil {
		return 5
	}
	f(r, phase)
	return 0
}
