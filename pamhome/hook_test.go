package pamhome

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/pamhome/frame"
)

// annRecord is a home that only a password opens, with more members of the
// regular section and of its status on this machine.
func annRecord(regular, status string) string {
	return fmt.Sprintf(`{"userName":"ann","disposition":"regular","aliases":["anna"],"uid":60400,"gid":60400%s,
"privileged":{"hashedPassword":["$6$x$y"]},
"status":{%q:{"state":"inactive","useFallback":true,"fallbackShell":"/usr/lib/hearth/homeshell","fallbackHomeDirectory":"/"%s}}}`,
		regular, machineID, status)
}

func annLogin(t *testing.T, answers ...string) *login {
	l := newLogin(t, "ann")
	l.answers = answers
	l.bus.record = annRecord("", "")
	return l
}

func (l *login) expect(op string, want frame.Code) {
	l.t.Helper()
	if got := l.run(op, 0); got != want {
		l.t.Errorf("%s = %v, want %v\n%s\n%s", op, got, want, strings.Join(l.lines, "\n"), strings.Join(l.logs, "\n"))
	}
	l.authTok = ""
}

func (l *login) count(part string) int {
	n := 0
	for _, s := range slices.Concat(l.lines, l.logs) {
		if strings.Contains(s, part) {
			n++
		}
	}
	return n
}

func (l *login) wants(n int, part string) {
	l.t.Helper()
	if got := l.count(part); got != n {
		l.t.Errorf("%q %d times, want %d\n%s\n%s", part, got, n, strings.Join(l.lines, "\n"), strings.Join(l.logs, "\n"))
	}
}

// TestLogin is a login with a password from prompt to logout.
func TestLogin(t *testing.T) {
	l := annLogin(t, "right")
	l.expect("auth", frame.Success)
	// The answer to a call without password is known, so there is none (P7).
	l.wants(1, "AcquireHome")
	l.wants(1, `AcquireHome("ann", {"password":["right"]}, please_suspend=false) -> ok`)
	l.expect("acct", frame.Success)
	l.expect("setcred", frame.Success)
	l.expect("open", frame.Success)
	if got := l.envLine(); got != "  PAM env: SYSTEMD_HOME=1 SYSTEMD_HOME_SUSPEND=0" {
		t.Error(got)
	}
	for key, v := range l.data {
		if strings.Contains(string(v.Text), "$6$") {
			t.Errorf("%s holds a password hash", key)
		}
	}
	// The only reference is the login's: when it closes it, the home knows.
	l.expect("close", frame.Success)
	l.wants(1, `ReleaseHome("ann") -> ok`)
	_ = l.bus.reader.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := l.bus.reader.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("somebody still holds the home: %v", err)
	}
	l.expect("close", frame.Success)
	l.wants(1, "ReleaseHome")
}

func TestToken(t *testing.T) {
	l := annLogin(t, "right")
	if got := l.run("auth", 0); got != frame.Success || l.authTok != "right" {
		t.Errorf("%v, the token for later modules is %q", got, l.authTok)
	}
}

// TestWrongPasswords: five answers are asked for and all five are tried (P1).
func TestWrongPasswords(t *testing.T) {
	l := annLogin(t, "w1", "w2", "w3", "w4", "w5", "w6")
	l.bus.script = slices.Repeat([]string{"BadPassword"}, 9)
	l.expect("auth", frame.MaxTries)
	l.wants(5, "AcquireHome")
	l.wants(1, `{"password":["w5","w4","w3","w2","w1"]}`)
	l.wants(4, "Password incorrect or not sufficient for authentication of user ann.")
	l.wants(1, "Too many unsuccessful login attempts for user ann, refusing.")
	if len(l.refs) != 0 {
		t.Error("a reference without a password")
	}
}

// TestSSHAnswersAlike: OpenSSH answers each question of one try with the same
// password. It is tried once, and OpenSSH may ask its person again.
func TestSSHAnswersAlike(t *testing.T) {
	l := annLogin(t, "wrong", "wrong", "wrong", "wrong", "wrong")
	l.items["service"], l.items["tty"] = "sshd", "ssh"
	l.bus.script = slices.Repeat([]string{"BadPassword"}, 9)
	l.expect("auth", frame.AuthErr)
	l.wants(1, "AcquireHome")
	// Who is asked one by one has five.
	l = annLogin(t, "w1", "w2", "w3", "w4", "w5", "w6")
	l.items["service"], l.items["tty"] = "sshd", "ssh"
	l.bus.script = slices.Repeat([]string{"BadPassword"}, 9)
	l.expect("auth", frame.MaxTries)
	l.wants(5, "AcquireHome")
	// A person at a terminal may well type the same again.
	l = annLogin(t, "wrong", "wrong", "wrong", "wrong", "wrong")
	l.bus.script = slices.Repeat([]string{"BadPassword"}, 9)
	l.expect("auth", frame.MaxTries)
	l.wants(5, "AcquireHome")
}

func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		name    string
		answers []string
		want    frame.Code
		lines   int
	}{
		{"empty", []string{""}, frame.AuthTokErr, 1},
		{"missing", []string{"NULL"}, frame.AuthTokErr, 1},
		{"refused", nil, frame.ConvErr, 1},
	} {
		l := annLogin(t, tc.answers...)
		l.expect("auth", tc.want)
		l.wants(tc.lines, "  conv ")
		l.wants(0, "AcquireHome")
	}
	// What no JSON can carry counts as rejected, without a call.
	l := annLogin(t, "\xff", "right")
	l.expect("auth", frame.Success)
	l.wants(1, "AcquireHome")
	l.wants(1, "Password incorrect")
	l = annLogin(t, "\xff", "\xfe", "\xff", "\xff", "\xff", "right")
	l.expect("auth", frame.MaxTries)
	l.wants(0, "AcquireHome")
}

func TestNames(t *testing.T) {
	names := []string{"0day", "a.b", "1234", "ann@nowhere", "-", strings.Repeat("a", 32), "ann%..", "ä", "a b"}
	for c := 1; c < 256; c++ {
		if b := byte(c); !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-%", rune(b)) {
			names = append(names, "ann"+string([]byte{b}), "an"+string([]byte{b})+"n")
		}
	}
	for _, name := range names {
		l := annLogin(t)
		l.user = name
		l.expect("auth", frame.UserUnknown)
		l.expect("open", frame.Success)
		if l.user != name || len(l.lines) != 0 {
			t.Errorf("%q: something was done: %q %v", name, l.user, l.lines)
		}
	}
}

// TestNotOurs: the service is asked once, then the handle remembers.
func TestNotOurs(t *testing.T) {
	l := annLogin(t)
	l.bus.lookup = fault.New(fault.NoSuchHome, "look up", nil)
	l.expect("auth", frame.UserUnknown)
	l.bus.lookup = errors.New("asked again")
	l.expect("acct", frame.UserUnknown)
	l.expect("open", frame.Success)
	l.expect("close", frame.Success)
	l.expect("chau", frame.UserUnknown)
}

// TestUnavailable: without a service or a bus other users log in as ever, and
// the service is asked again after a while (P8, P23).
func TestUnavailable(t *testing.T) {
	l := annLogin(t, "right")
	now := time.Now()
	l.now = func() time.Time { return now }
	l.bus.dial = fault.New(fault.ServiceUnknown, "connect", nil)
	l.expect("auth", frame.UserUnknown)
	l.bus.dial = nil
	now = now.Add(4 * time.Second)
	l.expect("auth", frame.UserUnknown)
	now = now.Add(2 * time.Second)
	l.expect("auth", frame.Success)

	l = annLogin(t)
	l.bus.lookup = fault.New(fault.Timeout, "look up", nil)
	l.expect("auth", frame.ServiceErr)
	l.expect("open", frame.ServiceErr)
}

// TestAbsent: told before any prompt, whatever the login could do later.
func TestAbsent(t *testing.T) {
	const line = "Home of user ann is currently absent, please plug in the necessary storage device or backing file system."
	l := annLogin(t, "right")
	l.bus.record = strings.Replace(annRecord("", ""), "inactive", "absent", 1)
	l.bus.script = []string{"HomeAbsent"}
	l.expect("auth", frame.PermDenied)
	l.wants(1, line)
	l.wants(0, "Password:")

	l = annLogin(t)
	l.items["tty"] = "ssh"
	l.bus.ref = []string{"HomeAbsent"}
	l.expect("acct", frame.PermDenied)
	l.wants(1, line)
}

// TestInactive: account of a home that nobody opened and cannot ask.
func TestInactive(t *testing.T) {
	for _, tc := range []struct {
		tty, display string
		want         frame.Code
	}{
		{"-", "", frame.PermDenied},
		{"ssh", "", frame.Success},
		{"", "", frame.Success},
		{"/dev/pts/3", "", frame.Success},
		{"/dev/pts/3", ":0", frame.PermDenied},
		{":0", "", frame.PermDenied},
		{"cron", "", frame.PermDenied},
	} {
		l := annLogin(t)
		l.refuse = true
		if tc.tty != "-" {
			l.items["tty"] = tc.tty
		}
		if tc.display != "" {
			l.items["xdisplay"] = tc.display
		}
		l.bus.ref = []string{"HomeNotActive"}
		l.expect("acct", tc.want)
		l.wants(0, "AcquireHome")
		if tc.want == frame.Success {
			l.wants(1, "RefHomeUnrestricted")
			if got := l.envLine(); got != "  PAM env: XDG_SESSION_INCOMPLETE=1" {
				t.Errorf("%+v: %s", tc, got)
			}
		} else {
			l.wants(1, "Home of user ann is currently not active, please log in locally first.")
		}
	}
}

// TestOpenUnlocks: a session without authentication asks, activates, and
// corrects what the program was told of the inactive home (P20, P25).
func TestOpenUnlocks(t *testing.T) {
	l := annLogin(t, "wrong", "right")
	l.items["tty"] = "/dev/pts/3"
	l.bus.ref = []string{"HomeNotActive"}
	l.bus.script = []string{"BadPassword"}
	l.hostEnv = []string{"HOME=/", "SHELL=/bin/sh"}
	l.env = []string{"SHELL=/usr/lib/hearth/homeshell"}
	l.bus.opened = strings.NewReplacer("inactive", "active", `"useFallback":true`, `"useFallback":false`).Replace(annRecord(`,"shell":"/bin/zsh"`, ""))
	l.expect("open", frame.Success)
	if got := l.envLine(); got != "  PAM env: HOME=/home/ann SHELL=/bin/zsh SYSTEMD_HOME=1 SYSTEMD_HOME_SUSPEND=0" {
		t.Error(got)
	}
}

// TestSSHAlias: OpenSSH gives up when the name changes while it
// authenticates; the account hook changes it (P3).
func TestSSHAlias(t *testing.T) {
	l := annLogin(t, "right")
	l.user = "anna%work"
	l.items["service"], l.items["tty"] = "sshd", "ssh"
	l.expect("auth", frame.Success)
	if l.user != "anna%work" {
		t.Errorf("authenticate changed the name to %q", l.user)
	}
	l.expect("acct", frame.Success)
	if l.user != "ann" {
		t.Errorf("account left the name as %q", l.user)
	}
	l.wants(1, "AcquireHome")
	l.wants(0, "RefHome")
	if got := l.envLine(); got != "  PAM env: XDG_AREA=work" {
		t.Error(got)
	}
}

func TestRelease(t *testing.T) {
	l := annLogin(t, "right")
	l.expect("auth", frame.Success)
	l.bus.ref = []string{"HomeBusy"}
	l.expect("close", frame.Success)
	l.wants(1, "<5>Not deactivating home directory of ann, as it is still used.")
}

func TestOptions(t *testing.T) {
	l := annLogin(t, "right")
	l.args = []string{"suspend=maybe", "debug=maybe", "bogus", "class=user", "ask-password=no"}
	l.env = []string{"SYSTEMD_HOME_SUSPEND=bogus"}
	l.expect("auth", frame.Success)
	l.wants(1, "<4>Failed to parse suspend= argument, ignoring: maybe")
	l.wants(1, "<4>Failed to parse debug= argument, ignoring: maybe")
	l.wants(1, "<4>Unknown parameter 'bogus', ignoring.")
	l.wants(1, "<4>Failed to parse $SYSTEMD_HOME_SUSPEND, ignoring: bogus")
	l.wants(4, "ignoring")
	l.wants(0, "<7>")
	for _, tc := range []struct {
		env, host, arg string
		want           bool
	}{
		{"1", "", "", true}, {"", "Yes", "", true}, {"0", "1", "", false}, {"1", "", "suspend=no", false}, {"0", "", "suspend=ON", true},
	} {
		l := annLogin(t, "right")
		l.args = nil
		if tc.arg != "" {
			l.args = []string{tc.arg}
		}
		if tc.env != "" {
			l.env = []string{"SYSTEMD_HOME_SUSPEND=" + tc.env}
		}
		if tc.host != "" {
			l.hostEnv = []string{"SYSTEMD_HOME_SUSPEND=" + tc.host}
		}
		l.expect("auth", frame.Success)
		l.wants(1, fmt.Sprintf("please_suspend=%v", tc.want))
	}
}

// TestVerdicts goes through the account rules, as the fixtures have them.
func TestVerdicts(t *testing.T) {
	now := time.UnixMicro(1_700_000_000_000_000)
	at := func(d time.Duration) string { return fmt.Sprint(now.Add(d).UnixMicro()) }
	const day = 24 * time.Hour
	usec := func(d time.Duration) string { return fmt.Sprint(d.Microseconds()) }
	for _, tc := range []struct {
		name, regular, status string
		line                  string
		want                  frame.Code
	}{
		{"good", "", "", "", frame.Success},
		{"locked", `,"locked":true,"passwordChangeNow":true`, "", "User record is blocked, prohibiting access.", frame.AcctExpired},
		{"not yet", `,"notBeforeUSec":` + at(time.Second), "", "User record is not valid yet, prohibiting access.", frame.AcctExpired},
		{"no longer", `,"notAfterUSec":` + at(-time.Second), "", "User record is not valid anymore, prohibiting access.", frame.AcctExpired},
		{"clock", `,"lastChangeUSec":` + at(day), "", "", frame.Success},
		{"change now", `,"passwordChangeNow":true`, "", "Password change required.", frame.NewAuthTokReqd},
		{"expired", `,"lastPasswordChangeUSec":` + at(-10*day) + `,"passwordChangeMaxUSec":` + usec(9*day), "",
			"Password expired, change required.", frame.NewAuthTokReqd},
		{"expired, too young", `,"lastPasswordChangeUSec":` + at(-10*day) + `,"passwordChangeMaxUSec":` + usec(9*day) + `,"passwordChangeMinUSec":` + usec(20*day), "",
			"Password is expired, but can't change, refusing login.", frame.AuthTokExpired},
		{"dead", `,"lastPasswordChangeUSec":` + at(-10*day) + `,"passwordChangeMaxUSec":` + usec(day) + `,"passwordChangeInactiveUSec":` + usec(day), "",
			"Password is expired, but can't change, refusing login.", frame.AuthTokExpired},
		{"warn", `,"lastPasswordChangeUSec":` + at(-8*day) + `,"passwordChangeMaxUSec":` + usec(9*day) + `,"passwordChangeWarnUSec":` + usec(2*day), "",
			"Password will expire soon, please change.", frame.Success},
		{"no timestamp", `,"passwordChangeMinUSec":` + usec(day), "", "User record not valid, prohibiting access.", frame.AuthTokExpired},
		{"rate", `,"rateLimitIntervalUSec":600000000,"rateLimitBurst":2`, `,"rateLimitBeginUSec":` + at(-time.Second) + `,"rateLimitCount":2`,
			"Too many logins, try again in 9min 59s.", frame.MaxTries},
		{"rate over", `,"rateLimitIntervalUSec":600000000,"rateLimitBurst":2`, `,"rateLimitBeginUSec":` + at(-time.Hour) + `,"rateLimitCount":2`,
			"", frame.Success},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := annLogin(t)
			l.now = func() time.Time { return now }
			l.bus.record = annRecord(tc.regular, tc.status)
			l.expect("acct", tc.want)
			if tc.line != "" {
				l.wants(1, "ERROR_MSG       '"+tc.line+"'")
				l.wants(1, "  conv ")
			} else {
				l.wants(0, "  conv ")
			}
		})
	}
	// The login that used up the last slot gets in (P6); and while the limit
	// is hit, the service is asked before the person (P7).
	l := annLogin(t, "right")
	l.now = func() time.Time { return now }
	l.bus.record = annRecord(`,"rateLimitBurst":2`, `,"rateLimitBeginUSec":`+at(-time.Second)+`,"rateLimitCount":2`)
	l.bus.script = []string{"AuthenticationLimitHit"}
	l.expect("auth", frame.MaxTries)
	l.wants(0, "Password:")
	l.bus.script = []string{"BadPassword"}
	l.expect("auth", frame.Success)
	l.expect("acct", frame.Success)
}

func TestChangePassword(t *testing.T) {
	l := annLogin(t, "new", "new", "old")
	l.bus.script = []string{"BadPassword"}
	if got := l.run("chau", prelim); got != frame.Success || l.count("ChangePasswordHome") != 0 {
		t.Errorf("the first pass: %v\n%s", got, strings.Join(l.lines, "\n"))
	}
	l.expect("chau", frame.Success)
	l.wants(1, `ChangePasswordHome("ann", new={"password":["new"]}, old={"password":["old"]}) -> ok`)
	if _, ok := l.data[keyHomeRecord+"ann"]; ok {
		t.Error("the old record is still cached (P5)")
	}

	l = annLogin(t, "new", "new")
	l.bus.script = []string{"LowPasswordQuality"}
	l.expect("chau", frame.ServiceErr)
	l.wants(1, "ERROR_MSG       'fake error LowPasswordQuality'")

	l = annLogin(t, "new", "other")
	l.expect("chau", frame.TryAgain)
	l = annLogin(t, "")
	l.expect("chau", frame.AuthTokErr)
}

// TestSecretJSON: what is sent is the JSON of what was typed.
func TestSecretJSON(t *testing.T) {
	for _, p := range []string{"plain", `a"b\c`, "tab\tand\x01", "ünï", ""} {
		var a answers
		b, err := secret.Copy([]byte(p))
		if err != nil {
			t.Fatal(err)
		}
		a.addPassword(b)
		a.permit(memberPresence)
		out, err := a.encode()
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Password []string `json:"password"`
			Presence bool     `json:"fido2UserPresencePermitted"`
		}
		if err := json.Unmarshal([]byte(text(out)), &got); err != nil || len(got.Password) != 1 || got.Password[0] != p || !got.Presence {
			t.Errorf("%q became %s: %v", p, text(out), err)
		}
		out.Close()
		a.Close()
	}
}
