package stories

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// TestDoors: every door of a machine opens a home, refuses with its reason,
// and closes the home behind the last one out.
func TestDoors(t *testing.T) {
	t.Parallel()
	p := install(t, vmtest.Options{Suite: vmtest.Forky})
	p.enable()
	p.sshd()
	p.keyed("ann", "--alias=annie")
	for name, options := range map[string]string{
		"lea": "--locked=yes --ssh-authorized-keys=@/root/.ssh/id_ed25519.pub", "una": "--password-change-now=yes",
		"mia": "--password-change-max=1y --password-change-warn=1y", "rat": "--rate-limit-burst=1 --rate-limit-interval=10min",
	} {
		p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create %s --storage=directory --enforce-password-policy=no %s", password, atMost, name, options))
	}
	p.MustSh("useradd --create-home --shell /bin/bash bob && echo 'bob:bobs-password' | chpasswd && echo 'bob ALL=(ann) ALL' >/etc/sudoers.d/bob")

	p.cron()
	p.programs()

	t.Run("su", func(t *testing.T) {
		p := &product{p.With(t), t}
		for _, c := range []struct {
			argv    []string
			classes string // of the sessions that she has then
		}{
			{[]string{"su", "-", "ann"}, "manager user"},         // root is not asked who it is, but the home needs the password
			{[]string{"su", "bob", "-c", "exec su - annie"}, ""}, // within the session of bob
		} {
			argv := c.argv
			l := p.Terminal(argv...)
			l.Expect(`Password: ?$`, 30*time.Second)
			l.Send(password + "\n")
			l.Expect(`ann@.*\$ ?$`, 60*time.Second)
			if got := says(l, "id -un; echo $HOME $SHELL $SYSTEMD_HOME; pwd"); got != "ann\n/home/ann /bin/bash 1\n/home/ann\n" {
				t.Errorf("%v: her shell has %s", argv, got)
			}
			if s, classes := p.state("ann"), p.classes("ann"); s != "active" || classes != c.classes {
				t.Errorf("%v: ann is %s, her sessions are %q", argv, s, classes)
			}
			logout(l)
			p.becomes("ann", "inactive")
			if classes := p.classes("ann"); classes != "" {
				t.Errorf("%v: after that her sessions are %q", argv, classes)
			}
		}
	})

	t.Run("sudo", func(t *testing.T) {
		p := &product{p.With(t), t}
		l := p.Terminal("setpriv", "--reuid=bob", "--regid=bob", "--clear-groups", "sudo", "-u", "ann", "-i")
		l.Expect(`for bob: ?$`, 30*time.Second)
		l.Send("bobs-password\n")
		l.Expect(`assword.*: ?$`, 30*time.Second)
		l.Send(password + "\n")
		l.Expect(`\$ ?$`, 60*time.Second)
		// sudo looks the home directory up before the home is open.
		if got := says(l, "id -un; echo $HOME $SHELL; pwd"); got != "ann\n/home/ann /bin/bash\n/home/ann\n" {
			t.Errorf("her shell has %s", got)
		}
		if s, c := p.state("ann"), p.classes("ann"); s != "active" || c != "manager user" {
			t.Errorf("ann is %s, her sessions are %q", s, c)
		}
		logout(l)
		p.becomes("ann", "inactive")
	})

	t.Run("five wrong passwords", func(t *testing.T) {
		p := &product{p.With(t), t}
		l := p.Terminal("login", "ann")
		for n := range 5 {
			l.Expect(`(Password|Sorry, try again): ?$`, 40*time.Second)
			l.Send(fmt.Sprintf("wrong%d\n", n))
		}
		l.Expect("Too many unsuccessful login attempts for user ann, refusing.", 40*time.Second)
		if s, err := l.Terminal.Expect(`assword: ?$`, 5*time.Second); err == nil {
			t.Errorf("somebody else asks once more: %s", s)
		}
		l.Close()
		p.becomes("ann", "inactive")
	})

	t.Run("a locked account", func(t *testing.T) {
		p := &product{p.With(t), t}
		l := p.Terminal("login", "lea")
		l.Expect(`Password: ?$`, 30*time.Second)
		l.Send(password + "\n")
		l.Expect("User record is blocked, prohibiting access.", 30*time.Second)
		if s, _ := l.Terminal.Expect(`\$ ?$`, 3*time.Second); strings.Contains(s, "administrator") || strings.Contains(s, "$") {
			t.Errorf("somebody else has a say: %s", s)
		}
		l.Close()
		r := p.Sh(atMost + "ssh -o BatchMode=yes -o LogLevel=INFO lea@localhost true")
		if r.Code == 0 || !strings.Contains(r.Stderr, "User record is blocked, prohibiting access.") {
			t.Errorf("over SSH: %v", r)
		}
	})

	t.Run("a password that must be changed", func(t *testing.T) {
		p := &product{p.With(t), t}
		l := p.Terminal("login", "una")
		for _, answer := range []struct{ question, text string }{
			{`Password: ?$`, password}, {`Password change required\.[\s\S]*ew password: ?$`, fresh}, {`(?i)retype.*: ?$`, fresh},
		} {
			l.Expect(answer.question, 40*time.Second)
			l.Send(answer.text + "\n")
		}
		l.Expect(`Password: ?$`, 60*time.Second) // the old one: libpam has wiped it
		l.Send(password + "\n")
		l.Expect(`una@.*\$ ?$`, 60*time.Second)
		logout(l)
		p.becomes("una", "inactive")
		p.refused("una", password)
		logout(p.login("una", fresh))
	})

	t.Run("a password that expires soon", func(t *testing.T) {
		p := &product{p.With(t), t}
		l := p.login("mia", password)
		if !strings.Contains(l.Transcript(), "Password will expire soon, please change.") {
			t.Errorf("no warning:\n%s", l.Transcript())
		}
		logout(l)
	})

	t.Run("too many logins", func(t *testing.T) {
		p := &product{p.With(t), t}
		// The last login that is allowed is one.
		logout(p.login("rat", password))
		p.becomes("rat", "inactive")
		l := p.Terminal("login", "rat")
		s, err := l.Terminal.Expect("Too frequent login attempts for user rat, try again later.", 30*time.Second)
		if err != nil {
			t.Errorf("%q %v", s, err)
		}
		l.Close()
	})

	t.Run("an area, and the options of the module", func(t *testing.T) {
		p := &product{p.With(t), t}
		if r := p.with(password, "activate ann"); r.Code != 0 {
			t.Fatal(r)
		}
		p.MustSh("install -d -o ann -g ann /home/ann/Areas/work && " + atMost + "homectl deactivate ann")
		p.MustSh("sed -i 's/pam_home.so/& suspend=yes debug/' /etc/pam.d/common-auth /etc/pam.d/common-account /etc/pam.d/common-session")
		l := p.Terminal("login", "ann%work")
		l.Expect(`Password: ?$`, 30*time.Second)
		l.Send(password + "\n")
		l.Expect(`ann@.*\$ ?$`, 60*time.Second)
		if got := says(l, "echo $HOME $XDG_AREA $SYSTEMD_HOME_SUSPEND; ls /run/systemd/home"); !strings.HasPrefix(got, "/home/ann/Areas/work work 1\n") || !strings.Contains(got, "ann.please-suspend") {
			t.Errorf("her session has %s", got)
		}
		if out := p.Sh("journalctl -b -o short | grep 'pam_home(login:'").Stdout; !strings.Contains(out, "pam_home(login:auth): authenticating") {
			t.Errorf("debug logs:\n%s", out)
		}
		logout(l)
		p.becomes("ann", "inactive")
	})
}
