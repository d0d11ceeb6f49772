package stories

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// TestPrograms: what lets people in beside login, su, sudo and sshd, with
// systemd 257. TestDoors has it with 262.
func TestPrograms(t *testing.T) {
	t.Parallel()
	needLong(t)
	p := install(t, vmtest.Options{Suite: vmtest.Trixie})
	p.enable()
	p.quickStop()
	p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create ann --alias=annie --storage=luks --fs-type=ext4 --disk-size=64M %s", password, atMost, cheap))
	p.bob()
	p.cron()
	p.programs()
	p.switching()
}

// bob is a user of the machine's own, who may become ann by sudo.
func (p *product) bob() {
	p.t.Helper()
	p.MustSh("useradd --create-home --shell /bin/bash bob && echo 'bob:bobs-password' | chpasswd && echo 'bob ALL=(ann) ALL' >/etc/sudoers.d/bob")
}

// cron starts the jobs that programs looks for: it wakes once a minute, so
// others go meanwhile. The home of bea is open, that of eve closed.
func (p *product) cron() {
	p.t.Helper()
	p.create("bea")
	p.MustSh("NEWPASSWORD='" + password + "' " + atMost + "homectl create eve --storage=directory --enforce-password-policy=no")
	if r := p.with(password, "activate bea"); r.Code != 0 {
		p.t.Fatal(r)
	}
	p.MustSh(`mkdir -p /run/systemd/system/cron.service.d /run/systemd/ask-password; printf '[Service]\nSetCredential=pam.authtok.cron:` + password + `\n' >/run/systemd/system/cron.service.d/home.conf; systemctl daemon-reload
		for user in eve bea bob; do crontab -u $user - <<'END'
* * * * * { echo "$(id -un) $HOME $(pwd) $(loginctl show-session -P Class $XDG_SESSION_ID) $(/usr/local/bin/homectl inspect --json=short $(id -un) 2>/dev/null | jq -r '.status[].state')"; } >/tmp/cron.$(id -un).new && mv /tmp/cron.$(id -un).new /tmp/cron.$(id -un)
END
		done; systemctl start cron.service`)
}

func (p *product) programs() {
	t := p.t.(*testing.T)

	t.Run("polkit", func(t *testing.T) {
		needLong(t)
		p := &product{p.With(t), t}
		p.MustSh(`mkdir -p /etc/polkit-1/rules.d; echo 'polkit.addAdminRule(function(action, subject) { return ["unix-user:ann"]; });' >/etc/polkit-1/rules.d/10-ann.rules; chmod -R a+rX /etc/polkit-1; systemctl restart polkit.service`)
		// Her home is closed, and nobody but her may allow it. Bob has logged in:
		// of whoever is in no session polkit finds no agent.
		l := p.Terminal("login", "-f", "bob")
		l.Expect(`bob@.*\$ ?$`, 40*time.Second)
		l.Send("PASSWORD='" + password + "' homectl authenticate bea; echo ENDED$?\n")
		l.Expect(`Authenticating as: ann[\s\S]*Password: ?$`, 40*time.Second)
		insist(t, l, "wrong", `Sorry, try again: ?$`)
		insist(t, l, password, `AUTHENTICATION COMPLETE`)
		l.Expect("ENDED0", 40*time.Second)
		logout(l)
		if out := p.MustSh("journalctl -b -o cat -t polkit-agent-helper-1"); !strings.Contains(out, "pam_home(polkit-1:auth): Home for user ann successfully acquired.") {
			t.Errorf("polkit's helper says:\n%s", out)
		}
		p.becomes("ann", "inactive")
	})

	t.Run("a display manager", func(t *testing.T) {
		needLong(t)
		p := &product{p.With(t), t}
		p.Put("/root/greetd.toml", []byte("[terminal]\nvt = \"none\"\n[default_session]\ncommand = \"env SHELL=/bin/sh script -qefc \\\"/usr/sbin/agreety --cmd '/bin/bash -i'\\\" /dev/null\"\nuser = \"_greetd\"\n"), 0o644)
		l := p.Terminal("greetd", "--config", "/root/greetd.toml")
		l.Expect(`login: ?$`, 40*time.Second)
		insist(t, l, "ann", `Password: ?$`)
		insist(t, l, "wrong", `Sorry, try again: ?$`)
		insist(t, l, password, `ann@.*\$ ?$`)
		if got, want := says(l, "echo $HOME $SHELL; pwd"), "/home/ann /bin/bash\n/home/ann\n"; got != want {
			t.Errorf("her session has\n%s", got)
		}
		if s := p.state("ann"); s != "active" {
			t.Errorf("ann is %s", s)
		}
		if c := p.classes("ann"); c != "manager user" {
			t.Errorf("her sessions are %q\n%s", c, p.Sh("loginctl; journalctl -b -n 60").Stdout)
		}
		// greetd hands no XDG_SESSION_CLASS on, so the login manager is asked.
		const session = `env | sed -n 's/^\(\(XDG\|SYSTEMD\)_[A-Z_]*\)=.*/\1/p' | sort; loginctl show-session -P Class $XDG_SESSION_ID`
		hers := says(l, session)
		l.Send("exit\n")
		l.Expect(`login: ?$`, 40*time.Second) // the greeter is back
		// Whom we have nothing to do with has the same of a session.
		insist(t, l, "bob", `Password: ?$`)
		insist(t, l, "bobs-password", `bob@.*\$ ?$`)
		if his := says(l, session); hers != "SYSTEMD_HOME\nSYSTEMD_HOME_SUSPEND\n"+his || !strings.HasSuffix(hers, "\nuser\n") {
			t.Errorf("her session has\n%shis has\n%s", hers, his)
		}
		l.Close()
		p.MustSh("pkill -x greetd || :")
		p.becomes("ann", "inactive")
	})

	t.Run("cron", func(t *testing.T) {
		p := &product{p.With(t), t}
		got, his := "", ""
		for end := time.Now().Add(130 * time.Second); (got == "" || his == "") && time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
			if strings.Contains(p.Sh("journalctl -b -t CRON -t cron").Stdout, "Permission denied") {
				got, his = strings.TrimSpace(p.Sh("cat /tmp/cron.bea").Stdout), strings.TrimSpace(p.Sh("cat /tmp/cron.bob").Stdout)
			}
		}
		// Like that of a plain user it is in no session: Debian has cron register none.
		if his != "bob /home/bob /home/bob" || got != "bea /home/bea /home/bea  active" {
			t.Errorf("the job in an open home says %q, that of a plain user %q", got, his)
		}
		// In a closed one it does not run at all, least of all in the root
		// directory; nobody is asked, and a credential of cron's is not hers.
		out := p.MustSh("test ! -e /tmp/cron.eve; ls /run/systemd/ask-password; systemctl stop cron.service; journalctl -b -o cat -t CRON -t cron")
		if strings.Contains(out, "(eve) CMD") || !strings.Contains(out, "Permission denied") || !strings.Contains(out, "pam_home(cron:session): Home of user eve is currently not active, please log in locally first.") {
			t.Errorf("cron says:\n%s", out)
		}
		if s := p.state("eve"); s != "inactive" {
			t.Errorf("eve is %s", s)
		}
	})
}

// switching is how one user becomes another.
func (p *product) switching() {
	t := p.t.(*testing.T)

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
}

// insist types a line until what is to come of it shows. These programs throw
// away what was typed before they read.
func insist(t testing.TB, l *vmtest.Typist, line, then string) {
	t.Helper()
	for try := 0; ; try++ {
		time.Sleep(500 * time.Millisecond)
		l.Send(line + "\n")
		if _, err := l.Terminal.Expect(then, 20*time.Second); err == nil {
			return
		} else if try == 3 {
			t.Fatal(err)
		}
	}
}
