package stories

import (
	"fmt"
	"regexp"
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
		"lea": "--locked=yes --ssh-authorized-keys=@/root/.ssh/id_ed25519.pub", "una": "--password-change-now=yes", "exa": "--password-change-max=1s",
		"mia": "--password-change-max=1y --password-change-warn=1y", "rat": "--rate-limit-burst=1 --rate-limit-interval=10min",
	} {
		p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create %s --storage=directory --enforce-password-policy=no %s", password, atMost, name, options))
	}
	p.bob()
	p.cron()
	p.programs()

	p.switching()

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

	for name, why := range map[string]string{"una": "Password change required.", "exa": "Password expired, change required."} {
		t.Run("a password that must be changed: "+why, func(t *testing.T) {
			p := &product{p.With(t), t}
			l := p.Terminal("login", name)
			for _, answer := range []struct{ question, text string }{
				{`Password: ?$`, password}, {regexp.QuoteMeta(why) + `[\s\S]*ew password: ?$`, fresh}, {`(?i)retype.*: ?$`, fresh},
			} {
				l.Expect(answer.question, 40*time.Second)
				l.Send(answer.text + "\n")
			}
			l.Expect(`Password: ?$`, 60*time.Second) // the old one: libpam has wiped it
			l.Send(password + "\n")
			l.Expect(name+`@.*\$ ?$`, 60*time.Second)
			logout(l)
			p.becomes(name, "inactive")
			p.refused(name, password)
			if name != "exa" { // hers has expired again
				logout(p.login(name, fresh))
			}
		})
	}

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
