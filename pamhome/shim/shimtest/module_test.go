package shimtest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"hearth/internal/testenv"
)

// TestReference: the descriptor is the login program's, close-on-exec, and
// goes with close_session.
func TestReference(t *testing.T) {
	b := scripted(t, "")
	expect(t, b.script("ref", "svc", "ann", "auth", "fds", "close", "fds", "close"),
		result("auth", "SUCCESS"), "fd fifo cloexec", "fds end", result("close", "SUCCESS"), "fds end", result("close", "SUCCESS"))
	expect(t, b.script("held", "svc", "ann", "auth", "acct"),
		result("auth", "SUCCESS"), "  conv n=1 TEXT_INFO       'held 3'", result("acct", "SUCCESS"))
	// A forked child has its own copy, and ending there leaves the parent's.
	expect(t, b.script("ref", "svc", "ann", "auth", "fork:close", "fds"),
		result("auth", "SUCCESS"), result("close", "SUCCESS"), "fd fifo cloexec", "fds end")
	// A child that closed all and reused the number keeps what it opened.
	out := b.script("ref", "svc", "ann", "auth", "fork:end")
	if n := strings.Count(out, "fd other"); n != 8 {
		t.Errorf("%d of 8 foreign descriptors survive pam_end\n%s", n, out)
	}
}

// TestInterlock: no word of the helper lets anybody in without the home.
func TestInterlock(t *testing.T) {
	b := scripted(t, "")
	for _, s := range []string{"no-ref", "dropped"} {
		expect(t, b.script(s, "svc", "ann", "auth", "acct"), result("auth", "AUTHINFO_UNAVAIL"), result("acct", "SERVICE_ERR"))
	}
	expect(t, b.script("no-ref-change", "svc", "ann", "acct"), result("acct", "SERVICE_ERR"))
	for _, s := range []string{"result-1", "result-28", "result-30", "result-31", "result--1"} {
		expect(t, b.script(s, "svc", "ann", "auth", "fds"), result("auth", "AUTHINFO_UNAVAIL"), "fds end")
	}
}

// breaches are scripts that depart from the tables of frames.
var breaches = []string{
	"short", "length", "flags", "type", "missing", "twice", "half", "too-long", "huge", "nul", "style", "empty-conv",
	"key", "key-no-name", "key-long", "limit", "store-fd-key", "mark-state", "no-text", "text-and-fd", "env-name", "env-digit",
	"fd-conv", "two-fds", "six-fds", "no-fd", "not-fifo", "not-memfd", "memfd-open", "memfd-nul", "memfd-big", "answer",
	"prompt-64k", "number-size", "user-long", "priority", "logs", "convs", "loads", "refs", "stores", "two-requests",
	// a helper that is gone
	"exit", "exit-ref", "killed", "killed-request", "killed-answer", "killed-conv",
}

// TestBreach: every departure from the tables ends the call as if there were
// no helper, in each phase, and takes along what it brought.
func TestBreach(t *testing.T) {
	b := scripted(t, "")
	for _, s := range breaches {
		out := b.script(s, "-a", "x", "svc", "ann", "auth", "fds")
		if !strings.HasSuffix(out, result("auth", "AUTHINFO_UNAVAIL")+"\nfds end\n") {
			t.Errorf("%s:\n%s", s, out)
		}
	}
	for _, s := range []string{"apply-umask", "apply-twice", "apply-caps", "lookup-empty", "tty-write", "tty-drop", "load-session", "store-tty"} {
		b.service("svc", "settings script="+s)
		if out := b.login("svc", "ann", "open", "fds"); !strings.Contains(out, result("open", "SUCCESS")+"\nfds end\n") {
			t.Errorf("%s:\n%s", s, out)
		}
	}
	// What only a session may ask for.
	for _, s := range []string{"apply", "lookup", "tty", "session-ref", "limit"} {
		expect(t, b.script(s, "svc", "ann", "auth", "fds"), result("auth", "AUTHINFO_UNAVAIL"), "fds end")
	}
	for op, code := range map[string]string{"acct": "SERVICE_ERR", "open": "SUCCESS", "chau": "AUTHTOK_ERR"} {
		expect(t, b.script("type", "svc", "ann", op), result(op, code))
		expect(t, b.script("exit", "svc", "ann", op), result(op, code))
	}
	// Of ours, a session that cannot be opened must say so.
	b.service("two", "script=ref")
	expect(t, b.script("exit-ref", "svc", "ann", "auth", "fds"), result("auth", "AUTHINFO_UNAVAIL"), "fds end")
	// Storing a reference is not for close, nor a token for account.
	expect(t, b.script("token", "-a", "pw", "svc", "ann", "acct"),
		"  conv n=1 PROMPT_ECHO_OFF 'Password: ' -> 'pw'",
		"  conv n=1 TEXT_INFO       'answer 0104000000000000000202000000"+"7077'",
		result("acct", "SERVICE_ERR"))
}

func TestNoHelper(t *testing.T) {
	b := build(t, "/nowhere/pamhome", "")
	b.service("svc", "")
	expect(t, b.login("svc", "ann", "setcred", "auth", "acct", "open", "close", "chau"),
		result("setcred", "SUCCESS"), result("auth", "AUTHINFO_UNAVAIL"), result("acct", "SERVICE_ERR"),
		result("open", "SUCCESS"), result("close", "SUCCESS"), result("chau", "AUTHTOK_ERR"))
	// Names that are nobody's home cost no process.
	users := []string{"root", "nobody", "0day", "-x", "ä", strings.Repeat("a", 1025)}
	for first := 1; first < 256; first++ {
		if c := byte(first); (c|0x20 < 'a' || c|0x20 > 'z') && c != '_' {
			users = append(users, string([]byte{c}), string([]byte{c, 'a'}))
		}
	}
	args := []string{"svc", "ann"}
	for _, user := range users[6:] {
		args = append(args, "user="+user, "auth")
	}
	if out := b.login(append(args, "fds")...); strings.Count(out, "auth = PAM_USER_UNKNOWN") != len(users)-6 || !strings.HasSuffix(out, "\nfds end\n") {
		t.Errorf("of %d names some are not refused:\n%q", len(users)-6, out)
	}
	for _, user := range users[:6] {
		out := b.login("svc", user, "auth", "acct", "open", "chau")
		if strings.Count(out, "USER_UNKNOWN") != 3 || strings.Count(out, "SUCCESS") != 1 {
			t.Errorf("%s:\n%s", user, out)
		}
	}
	b.service("long", strings.Repeat("x", 900)+" "+strings.Repeat("y ", 40))
	expect(t, b.login("long", "ann", "auth"), result("auth", "AUTHINFO_UNAVAIL"))
}

// TestSilence: a helper that does not speak, stands still, or never ends holds
// nobody for longer than the limits, here shortened.
func TestSilence(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	b := scripted(t, "-DFIRST_MS=3000 -DSILENCE_MS=1500 -DCALL_MS=6000")
	for _, s := range []string{"mute", "mute-later", "stopped", "chatter"} {
		begin := time.Now()
		out := b.script(s, "svc", "ann", "auth", "fds")
		if !strings.HasSuffix(out, result("auth", "AUTHINFO_UNAVAIL")+"\nfds end\n") {
			t.Errorf("%s:\n%s", s, out)
		}
		if d := time.Since(begin); d < time.Second || d > 20*time.Second {
			t.Errorf("%s took %v", s, d)
		}
	}
}

// TestTrueLimits waits for the limits as they are built in.
func TestTrueLimits(t *testing.T) {
	if os.Getenv("HEARTH_TEST_LONG") != "1" {
		t.Skip("set HEARTH_TEST_LONG=1 or run make test-long")
	}
	for script, limit := range map[string]time.Duration{"mute": 30 * time.Second, "stopped": 30 * time.Second, "mute-later": 200 * time.Second} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			b := scripted(t, "")
			begin := time.Now()
			expect := result("auth", "AUTHINFO_UNAVAIL") + "\nfds end\n"
			if out := b.script(script, "svc", "ann", "auth", "fds"); !strings.HasSuffix(out, expect) {
				t.Errorf("printed\n%s", out)
			}
			if d := time.Since(begin); d < limit || d > limit+20*time.Second {
				t.Errorf("took %v, the limit is %v", d, limit)
			} else {
				t.Logf("RESULT helper %s: the login goes on after %v", script, d.Round(time.Second))
			}
		})
	}
}

// TestHost: whatever the login program does with its signals, descriptors and
// ids, the helper starts, and it notices nothing of it.
func TestHost(t *testing.T) {
	b := scripted(t, "")
	for _, how := range []string{"sigchld-handler", "sigchld-ignore", "sigchld-block"} {
		expect(t, b.script("ref", "svc", "ann", how, "auth", "acct", "children"),
			result("auth", "SUCCESS"), result("acct", "SUCCESS"), "children: handler 0, pending 0, left 0")
	}
	expect(t, b.script("ref", "svc", "ann", "close012", "auth", "fds"), result("auth", "SUCCESS"), "fd fifo cloexec", "fds end")
	expect(t, b.script("ref", "svc", "ann", "fork:auth", "auth"), result("auth", "SUCCESS"), result("auth", "SUCCESS"))
	expect(t, b.script("ref", "svc", "ann", "threads"), "threads end")
	expect(t, b.script("ref", "svc", "ann", "loop=200", "fds"), "fds end")
	if err := os.WriteFile(b.path("none"), []byte("auth required pam_permit.so\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	expect(t, b.login("none", "ann", "dlopen=1000:"+b.module, "fds"), "dlopen: left 0", "fds end")
	for _, phase := range []struct{ op, code string }{{"acct", "SUCCESS"}, {"open", "SUCCESS"}, {"close", "SUCCESS"}, {"auth", "SUCCESS"}, {"setcred", "SUCCESS"}, {"chau", "AUTHTOK_ERR"}} {
		expect(t, b.script("ref", "svc", "ann", "auth", "fork:"+phase.op, "fds"), result("auth", "SUCCESS"), result(phase.op, phase.code), "fd fifo cloexec", "fds end")
	}

	out := b.script("identity", "-i", "tty=ssh", "svc", "ann", "auth")
	for _, want := range []string{"cwd /, leader true, argv [", "umask 77", "'env []'"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "SECRET_OF_THE_HOST") {
		t.Errorf("the helper sees the login program's environment:\n%s", out)
	}
}

func TestHostAsRoot(t *testing.T) {
	testenv.Need(t, "root")
	b := scripted(t, "")
	// A daemon that took the user's id for the files and kept root's beside.
	expect(t, b.script("identity", "svc", "ann", "setuid=65534", "auth"), result("auth", "AUTHINFO_UNAVAIL"))
	expect(t, b.script("ref", "svc", "ann", "auth", "setuid=65534", "close", "fds"), result("auth", "SUCCESS"), result("close", "SUCCESS"), "fds end")
	// A set-user-ID program of root's lends the helper root's ids.
	out := b.script("identity", "svc", "ann", "ruid=65534", "auth")
	if !strings.Contains(out, "'uid 0/0 gid 0/0'") {
		t.Errorf("the helper is\n%s", out)
	}
	// Small limits are the login program's, not the helper's. Without the
	// power to raise a hard limit there is no helper.
	want := "AUTHINFO_UNAVAIL"
	if mayRaiseLimits(t) {
		want = "SUCCESS"
	}
	expect(t, b.script("ref", "svc", "ann", "small", "auth"), result("auth", want))
	expect(t, b.script("ref", "svc", "ann", "noproc", "auth"), result("auth", "AUTHINFO_UNAVAIL"))
}

// TestStart: what the helper is told.
func TestStart(t *testing.T) {
	b := scripted(t, "")
	b.service("svc", "script=start debug")
	out := b.login("-i", "tty=ssh", "-i", "rhost=192.0.2.7", "-i", "authtok=tok", "-e", "XDG_SEAT=seat0", "-e", "FOO=1", "-e", "DISPLAY=:0", "svc", "ann", "acct")
	var got []string
	for line := range strings.Lines(out) {
		if _, text, ok := strings.Cut(line, "TEXT_INFO       '"); ok {
			got = append(got, strings.TrimSuffix(text, "'\n"))
		}
	}
	want := []string{"1 0100", "2 02", "3 00000000", "4 script=start", "4 debug", "5 svc", "6 ann", "7 ssh", "9 192.0.2.7", "13 01",
		"14 XDG_SEAT=seat0", "14 DISPLAY=:0", "15 TERM=xterm", "15 LANG=C", "22 00"}
	have := map[string]bool{}
	for _, l := range got {
		have[l] = true
	}
	for _, w := range want {
		if !have[w] {
			t.Errorf("START lacks %q", w)
		}
	}
	for _, l := range got {
		if strings.HasPrefix(l, "11 ") || strings.Contains(l, "FOO") || strings.Contains(l, "SECRET") || strings.Contains(l, "PATH") {
			t.Errorf("START has %q", l)
		}
	}
	if out := b.login("-n", "svc", "ann", "acct"); out != result("acct", "SERVICE_ERR")+"\n" && out != result("acct", "AUTH_ERR")+"\n" {
		t.Errorf("without conversation:\n%s", out)
	}
}

// TestValues: texts, marks and big records on the handle.
func TestValues(t *testing.T) {
	b := scripted(t, "")
	expect(t, b.script("big", "svc", "ann", "auth", "acct"),
		result("auth", "SUCCESS"), "  conv n=1 TEXT_INFO       'kind 1, 700000 bytes'", result("acct", "AUTH_ERR"))
	// After the mark the helper is not started any more.
	expect(t, b.script("mark", "svc", "ann", "auth", "acct", "open"),
		result("auth", "USER_UNKNOWN"), result("acct", "USER_UNKNOWN"), result("open", "SUCCESS"))
	expect(t, b.script("env", "-e", "HOME=/old", "svc", "ann", "auth", "env"), result("auth", "AUTH_ERR"), "env HOME=/x", "env end")
	expect(t, b.script("token", "-a", "NULL", "svc", "ann", "auth"),
		"  conv n=1 PROMPT_ECHO_OFF 'Password: ' -> 'NULL'", "  conv n=1 TEXT_INFO       'answer 010400000000000000'",
		"auth = PAM_AUTH_ERR PAM_USER='ann2'")
	// Nor does a conversation function that gives no room for an answer.
	expect(t, b.script("token", "-a", "NOTHING", "svc", "ann", "auth"),
		"  conv n=1 PROMPT_ECHO_OFF 'Password: ' -> 'NOTHING'", "  conv n=1 TEXT_INFO       'answer 010400000000000000'",
		"auth = PAM_AUTH_ERR PAM_USER='ann2'")
	out := b.script("new-token", "-a", "n", "-a", "n", "svc", "ann", "chau")
	for _, want := range []string{"'New password: ' -> 'n'", "'Retype new password: ' -> 'n'", "'token 01040000000000000002010000006e'", result("chau", "SUCCESS")} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// TestPhases: each frame counts in its phases only, and each phase ends with
// its own result when one does not.
func TestPhases(t *testing.T) {
	b := scripted(t, "")
	failure := map[string]string{"auth": "AUTHINFO_UNAVAIL", "acct": "SERVICE_ERR", "open": "SUCCESS", "close": "SUCCESS", "chau": "AUTHTOK_ERR"}
	allowed := map[string]string{
		"CONV": "auth acct open close chau", "GET_TOKEN": "chau", "SET_TOKEN": "auth", "SET_USER": "auth acct open chau",
		"PUTENV": "auth acct open", "LOAD": "auth acct open close chau", "STORE": "auth acct open chau", "STORE_FD": "auth acct open",
		"DROP": "auth acct open close chau", "APPLY": "open", "TTY_WRITE": "", "LOOKUP": "open", "LOG": "auth acct open close chau",
	}
	args := []string{"-a", "n", "svc", "ann"}
	var want []string
	for name, phases := range allowed {
		service := strings.ToLower(name) // as libpam does
		b.service(service, "settings script=only-"+name)
		for op, code := range failure {
			if slices.Contains(strings.Fields(phases), op) {
				code = "AUTH_ERR"
			}
			// A handle each: libpam remembers how opening a session went.
			args = append(args, "service="+service, op)
			want = append(want, fmt.Sprintf("%s: %s", name, result(op, code)))
		}
	}
	b.service("svc", "")
	// The last handle keeps what it has until there is another one.
	args = append(args, "service=svc", "fds")
	var got []string
	for line := range strings.Lines(b.login(args...)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "conv ") {
			got = append(got, line)
		}
	}
	if len(got) != len(want)+1 || got[len(want)] != "fds end" {
		t.Fatalf("%d lines, want %d: %q", len(got), len(want)+1, got)
	}
	for i, w := range want {
		if _, line, _ := strings.Cut(w, ": "); line != got[i] {
			t.Errorf("%s, got %s", w, got[i])
		}
	}
	expect(t, b.script("after-result", "svc", "ann", "auth", "fds"), result("auth", "SUCCESS"), "fd fifo cloexec", "fds end")
}

// everything runs every breach, and every hook as it should be, in one login
// program.
func everything(b *bench) []string {
	for i := range 8 {
		b.service(fmt.Sprint("ok", i), "settings script="+[]string{"ref", "held", "big", "mark", "env", "token", "new-token", "tty"}[i])
	}
	args := []string{"-a", "x", "-a", "n", "-a", "n", b.dir, "ok0", "ann"}
	for _, s := range breaches {
		b.service(s, "script="+s)
		args = append(args, "service="+s, "auth")
	}
	for i := range 8 {
		args = append(args, fmt.Sprint("service=ok", i), "auth", "acct", "setcred", "open", "close", "chau")
	}
	return append(args, "service=ok0", "fds")
}

func everyBreach(t *testing.T, out string) {
	t.Helper()
	if n := strings.Count(out, "auth = PAM_AUTHINFO_UNAVAIL"); n < len(breaches) || !strings.HasSuffix(out, "\nfds end\n") || strings.Contains(out, "fd fifo") {
		t.Errorf("%d of %d breaches end the call\n%s", n, len(breaches), out)
	}
}

// TestSanitizers: nothing of it reads, writes or loses memory that it should
// not, says gcc.
func TestSanitizers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	b := scripted(t, "-fsanitize=address,undefined -fno-sanitize-recover=all")
	cmd := exec.Command(b.host, everything(b)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "ASAN_OPTIONS=detect_leaks=1"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
		return
	}
	everyBreach(t, string(out))
}

// TestLeaks: a thousand logins leave nothing in the login program.
func TestLeaks(t *testing.T) {
	testenv.Need(t, "valgrind")
	if testing.Short() {
		t.Skip("takes seconds")
	}
	b := scripted(t, "")
	b.service("svc", "script=ref")
	cmd := exec.Command("valgrind", "-q", "--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite",
		"--error-exitcode=42", "--child-silent-after-fork=yes", b.host, b.dir, "svc", "ann", "loop=1000", "auth", "close", "fds")
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	cmd = exec.Command("valgrind", append(slices.Clone(cmd.Args[1:6]), append([]string{b.host}, everything(b)...)...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	everyBreach(t, string(out))
}

// mayRaiseLimits reports whether we have CAP_SYS_RESOURCE.
func mayRaiseLimits(t *testing.T) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// TestProfile: in Debian's stacks the module asks before pam_unix, and leaves
// passwords to it: pam_unix below another module no longer asks for the new
// one, so a local user could not change it.
func TestProfile(t *testing.T) {
	testenv.Need(t, "pam-auth-update")
	root := t.TempDir()
	copyTo := func(from, to string) {
		data, err := os.ReadFile(from)
		if err == nil {
			if err = os.MkdirAll(filepath.Dir(filepath.Join(root, to)), 0o755); err == nil {
				err = os.WriteFile(filepath.Join(root, to), data, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	copyTo("../hearth.pam-config", "usr/share/pam-configs/hearth")
	copyTo("../hearth-password.pam-config", "usr/share/pam-configs/hearth-password")
	copyTo("/usr/share/pam-configs/unix", "usr/share/pam-configs/unix")
	stacks := []string{"auth", "account", "password", "session", "session-noninteractive"}
	for _, s := range stacks {
		copyTo("/usr/share/pam/common-"+s, "etc/pam.d/common-"+s)
	}
	if err := os.MkdirAll(filepath.Join(root, "var/lib/pam"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("pam-auth-update", "--root", root, "--force", "--package")
	// What it is told goes into debconf's database, which has no --root.
	copyTo("/var/cache/debconf/config.dat", "config.dat")
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"DEBCONF_DB_REPLACE=File{"+filepath.Join(root, "config.dat")+"}")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pam-auth-update: %v\n%s", err, out)
	}
	for _, s := range stacks {
		data, err := os.ReadFile(filepath.Join(root, "etc/pam.d/common-"+s))
		if err != nil {
			t.Fatal(err)
		}
		ours, unixs := strings.Index(string(data), "pam_home.so"), strings.Index(string(data), "pam_unix.so")
		if ours < 0 || unixs < 0 || (ours < unixs) == (s == "password") {
			t.Errorf("common-%s:\n%s", s, data)
		}
		if s == "password" && strings.Contains(string(data), "use_authtok") {
			t.Errorf("a local user cannot change the password:\n%s", data)
		}
	}
}

// ownNice is the nice level of the tests, to which a record's is added.
func ownNice(t *testing.T) int {
	t.Helper()
	n, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	return 20 - n
}

// TestApply: what a session changes in the login process.
func TestApply(t *testing.T) {
	b := scripted(t, "")
	expect(t, b.script("apply", "svc", "ann", "open"),
		"  conv n=1 TEXT_INFO       'failed 00000000'",
		"  conv n=1 TEXT_INFO       'Umask: 0027'",
		fmt.Sprintf("  conv n=1 TEXT_INFO       'nice %d'", min(3+ownNice(t), 19)),
		result("open", "SUCCESS"))
	expect(t, b.script("lookup", "svc", "ann", "open"),
		"  conv n=1 TEXT_INFO       'root: 00000000 uid 00000000 gid 00000000 home /root'",
		"  conv n=1 TEXT_INFO       'no-such-user: 0a000000'", result("open", "SUCCESS"))
}

func TestApplyAsRoot(t *testing.T) {
	testenv.Need(t, "root")
	b := scripted(t, "")
	expect(t, b.script("capabilities", "svc", "ann", "open"),
		"  conv n=1 TEXT_INFO       'failed 00000000'",
		"  conv n=1 TEXT_INFO       'CapInh: 0000000800000001'",
		"  conv n=1 TEXT_INFO       'CapAmb: 0000000800000001'",
		"  conv n=1 TEXT_INFO       'bounding true'",
		"  conv n=1 TEXT_INFO       'effective true'",
		result("open", "SUCCESS"))
}

// TestTerminal: the mark goes onto the terminal of standard output, also when
// the login program has closed that in between.
func TestTerminal(t *testing.T) {
	b := scripted(t, "")
	b.service("svc", "settings script=tty")
	expect(t, b.login("svc", "ann", "open", "close"), result("open", "SUCCESS"), result("close", "SUCCESS"))
	cmd := exec.Command(b.host, b.dir, "svc", "ann", "open", "close012", "close")
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	terminal, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = terminal.Close() }()
	out, _ := io.ReadAll(terminal) // ends with EIO
	_ = cmd.Wait()
	if text := string(out); strings.Count(text, "<mark 3>") != 1 || strings.Count(text, "<mark 4>") != 1 {
		t.Errorf("the terminal shows %q", text)
	}
}

// TestSize: what runs inside login programs stays small enough to be read in
// one sitting: a thousand lines of code, without comments and blank lines.
func TestSize(t *testing.T) {
	files, err := filepath.Glob("../*.c")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	lines := 0
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(comment.ReplaceAllString(string(data), "")) {
			if strings.TrimSpace(line) != "" {
				lines++
			}
			if len(line) > 160 {
				t.Errorf("%s: a line of %d bytes", name, len(line))
			}
		}
	}
	t.Logf("%d lines", lines)
	if lines >= 1000 {
		t.Errorf("%d lines of C", lines)
	}
}

var comment = regexp.MustCompile(`(?s)/\*.*?\*/`)
