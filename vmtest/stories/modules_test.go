package stories

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearth/internal/testenv"
	"hearth/vmtest"
)

// A transaction is a login program's use of PAM, played by the same program
// that the shim's tests use (pamhome/shim/shimtest/testdata/host.c).
type transaction struct {
	name          string
	args          string // its options
	user          string
	calls         string
	service       string // "svc", or "options", where the module has some
	under         string // a program that runs the host
	before, after string // scripts around it
	sample        bool   // in every run, and with each module on the other's daemon
}

// The users are made by accounts. PW is the password, NEW another one.
var transactions = []transaction{
	{name: "right", args: "-a PW", user: "ann", calls: "auth acct setcred open env fds close fds", sample: true},
	{name: "wrong, right", args: "-a wrong -a PW -i tty=tty1", user: "ann", calls: "auth acct", sample: true},
	{name: "five wrong", args: "-a w1 -a w2 -a w3 -a w4 -a w5 -a w6", user: "ann", calls: "auth"},
	{name: "empty", args: "-a ''", user: "ann", calls: "auth"},
	{name: "no answer", args: "-a NULL", user: "ann", calls: "auth"},
	{name: "refused", args: "-r", user: "ann", calls: "auth"},
	{name: "all refused", args: "-R", user: "ann", calls: "auth acct"},
	{name: "no function", args: "-n", user: "ann", calls: "auth acct open"},
	{name: "account without terminal", args: "-r", user: "ann", calls: "acct open close"},
	{name: "account of cron", args: "-r -i tty=cron", user: "ann", calls: "acct"},
	{name: "account in X", args: "-r -i tty=:0", user: "ann", calls: "acct"},
	{name: "account with a display", args: "-r -i tty=tty1 -i xdisplay=:0", user: "ann", calls: "acct"},
	{name: "account of sshd", args: "-r -i tty=ssh", user: "ann", calls: "acct open env close", sample: true},
	{name: "account that asks", args: "-a PW -i tty=tty1", user: "ann", calls: "acct open env close", sample: true},
	{name: "session alone", args: "-a wrong -a PW -i tty=tty1", user: "ann", calls: "open env close"},
	{name: "suspend", args: "-a PW -e SYSTEMD_HOME_SUSPEND=1", user: "ann", calls: "auth open env close"},
	{name: "bad suspend", args: "-a PW -e SYSTEMD_HOME_SUSPEND=perhaps", user: "ann", calls: "auth open env close"},
	{name: "area", args: "-a PW", user: "ann%work", calls: "auth acct open env close"},
	{name: "no area", args: "-a PW", user: "ann%", calls: "auth env"},
	{name: "alias", args: "-a PW", user: "annie", calls: "auth acct open env close"},
	{name: "in a child", args: "-a PW -i tty=ssh", user: "ann", calls: "auth fork:acct open fork:close fds close fds"},
	{name: "root", user: "root", calls: "auth acct open close chau"},
	{name: "somebody else", user: "bob", calls: "auth acct open close chau"},
	{name: "strange name", user: "'../x y'", calls: "auth acct open close chau"},
	{name: "locked", args: "-r -i tty=ssh", user: "lea", calls: "acct", sample: true},
	{name: "not yet valid", args: "-r -i tty=ssh", user: "eva", calls: "acct", sample: true},
	{name: "no longer valid", args: "-r -i tty=ssh", user: "ida", calls: "acct", sample: true},
	{name: "change demanded", args: "-r -i tty=ssh", user: "una", calls: "acct", sample: true},
	{name: "password expired", args: "-r -i tty=ssh", user: "oda", calls: "acct", sample: true},
	{name: "expired and too young", args: "-r -i tty=ssh", user: "ute", calls: "acct", sample: true},
	{name: "expired for too long", args: "-r -i tty=ssh", user: "amy", calls: "acct", sample: true},
	{name: "expires soon", args: "-r -i tty=ssh", user: "mia", calls: "acct", sample: true},
	{name: "new password", args: "-a NEW -a NEW -a wrong -a PW", user: "pam", calls: "chau", sample: true},
	{name: "and back", args: "-a PW -a PW -a NEW", user: "pam", calls: "chau", sample: true},
	{name: "mismatch", args: "-a NEW -a other", user: "pam", calls: "chau"},
	{name: "no new password", args: "-a ''", user: "pam", calls: "chau"},
	{name: "no old password", args: "-a NEW -a NEW -a ''", user: "pam", calls: "chau"},
	{name: "change refused", args: "-r", user: "pam", calls: "chau"},
	{name: "same password", args: "-a PW -a PW -a PW", user: "pam", calls: "chau"},
	{name: "weak password", args: "-a abc -a abc -a PW", user: "pol", calls: "chau"},
	{name: "demanded, changed, checked", args: "-a PW -a NEW -a NEW -a PW -i tty=tty1", user: "ina", calls: "auth acct chau acct",
		before: "PASSWORD='" + password + "' " + atMost + "homectl update ina --password-change-now=yes </dev/null >/dev/null",
		after:  "PASSWORD='" + fresh + "' NEWPASSWORD='" + password + "' " + atMost + "homectl passwd ina </dev/null >/dev/null"},
	{name: "recovery key instead", args: `-a bad -a "$(cat /root/kim.key)"`, user: "kim", calls: "auth"},
	{name: "session without terminal", args: "-r", user: "ann", calls: "open env close"},
	{name: "session in X", args: "-r -i tty=:0", user: "ann", calls: "open env close"},
	{name: "session of cron", args: "-r -i tty=cron", user: "ann", calls: "open env close"},
	{name: "session with a display", args: "-r -i tty=pts/3 -i xdisplay=:0", user: "ann", calls: "open env close"},
	{name: "session without a home", args: "-r -i tty=pts/3", user: "ann", calls: "open env close"},
	{name: "second session", args: "-r", user: "ann", calls: "acct open env close", before: "PASSWORD='" + password + "' " + atMost + "homectl activate ann </dev/null >/dev/null"},
	{name: "options", args: "-a PW", user: "ann", calls: "auth acct open env close", service: "options"},
	{name: "environment before options", args: "-a PW -e SYSTEMD_HOME_SUSPEND=0", user: "ann", calls: "auth acct open env close", service: "options"},
	{name: "locked and change demanded", args: "-r -i tty=ssh", user: "pia", calls: "acct"},
	{name: "minimum age alone", args: "-r -i tty=ssh", user: "gil", calls: "acct"},
	{name: "no bus", args: "-a PW", user: "ann", calls: "auth acct open close chau", under: `unshare -m sh -c 'mount -t tmpfs none /run/dbus && exec "$@"' sh`},
	{name: "absent", args: "-a PW -i tty=tty1", user: "ann", calls: "auth acct open", before: "mv /home/ann.home /home/.away", after: "mv /home/.away /home/ann.home; sleep 1", sample: true},
}

// accounts makes the users of the transactions: ann's home is an image, the
// others' verdicts need no storage to be opened.
func (p *product) accounts() {
	p.t.Helper()
	p.keyed("ann", "--alias=annie --rate-limit-burst=1000")
	if long() {
		for name, options := range map[string]string{
			"pia": "--locked=yes --password-change-now=yes", "gil": "--password-change-min=1y", "ina": "", "kim": "--recovery-key=yes --recovery-key-file=/root/kim.key",
		} {
			p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create %s --storage=directory --enforce-password-policy=no %s", password, atMost, name, options))
		}
		p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create pol --storage=directory", password, atMost))
	}
	for name, options := range map[string]string{
		"lea": "--locked=yes", "eva": "--not-before=2099-01-01", "ida": "--not-after=2001-01-01", "una": "--password-change-now=yes", "pam": "",
		"oda": "--password-change-max=1us", "ute": "--password-change-max=1us --password-change-min=1y",
		"amy": "--password-change-max=1us --password-change-inactive=1us", "mia": "--password-change-max=1y --password-change-warn=1y",
	} {
		p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create %s --storage=directory --enforce-password-policy=no %s", password, atMost, name, options))
	}
}

// play plays the transactions with a module, and returns what each showed.
func (p *product) play(module string, all bool) transcript {
	p.t.Helper()
	script := "set -u; rm -rf /tmp/pam.d; mkdir /tmp/pam.d\n"
	for _, kind := range []string{"auth", "account", "session", "password"} {
		script += fmt.Sprintf("echo '%[1]s required %[2]s' >>/tmp/pam.d/svc; echo '%[1]s required %[2]s suspend=yes nonsense=1 debug=perhaps' >>/tmp/pam.d/options\n", kind, module)
	}
	for _, x := range transactions {
		if !all && !x.sample {
			continue
		}
		args := strings.NewReplacer("PW", password, "NEW", fresh).Replace(x.args)
		// A home that was just authenticated for stays open for a while.
		script += fmt.Sprintf("busctl -q call org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager DeactivateHome s ann 2>/dev/null\necho '### %s'\n%s\ntimeout 60 %s /tmp/host %s /tmp/pam.d %s %s %s || echo \"ended with $?\"\n%s\n", x.name, x.before, x.under, args, cmp.Or(x.service, "svc"), x.user, x.calls, x.after)
	}
	r := p.Do(vmtest.Command{Argv: []string{"bash", "-c", script}, Limit: 4 * time.Minute})
	if r.Code != 0 || r.Stderr != "" {
		p.t.Fatal(r)
	}
	// What else is open is the libraries' business.
	return cases(strings.NewReplacer("fd other cloexec\n", "", "fd other\n", "").Replace(r.Stdout))
}

// TestModules plays the same logins through our module with our daemon and
// through systemd's with systemd's, and through each module with the other's
// daemon: what a person sees and a program gets is the same but for the
// differences that the file lists. All of the transactions are played with
// HEARTH_TEST_LONG=1, else a sample.
func TestModules(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	host := filepath.Join(t.TempDir(), "host")
	if out, err := exec.Command("cc", "-O", "-o", host, "../../pamhome/shim/shimtest/testdata/host.c", "-lpam").CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	program, err := os.ReadFile(host)
	if err != nil {
		t.Fatal(err)
	}
	p := install(t, vmtest.Options{Suite: vmtest.Forky, Payload: []vmtest.Item{{Data: program, Guest: "/tmp/host", Mode: 0o755}}})
	p.enable()
	p.MustSh("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
	p.accounts()
	const theirModule, ourModule = "pam_systemd_home.so", "pam_home.so"
	all := long()
	ours := p.play(ourModule, all)
	crossed := map[string]transcript{" (their module, our daemon)": p.play(theirModule, false)}
	p.MustSh("systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
	p.ownsBus("/usr/lib/systemd/systemd-homed")
	theirs := p.play(theirModule, all)
	crossed[" (our module, their daemon)"] = p.play(ourModule, false)

	allowed := testenv.ReadDifferences(t, "testdata/TestModules/differences.txt")
	var names []string
	for _, x := range transactions {
		names = append(names, x.name)
	}
	compare(t, names, theirs, ours, allowed, "")
	for suffix, shown := range crossed {
		some := transcript{}
		for name := range shown {
			some[name] = theirs[name]
		}
		compare(t, names, some, shown, allowed, suffix)
	}
	if all {
		allowed.Unused(t)
		t.Logf("RESULT %d logins through both modules, differences that no row allows: %v", len(transactions), t.Failed())
	}
}
