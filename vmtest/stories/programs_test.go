package stories

import (
	"strings"
	"testing"
	"time"
)

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
		for user in eve bea; do crontab -u $user - <<'END'
* * * * * { echo "$(id -un) $HOME $(pwd)"; } >/tmp/cron.$(id -un).new && mv /tmp/cron.$(id -un).new /tmp/cron.$(id -un)
END
		done; systemctl start cron.service`)
}

// programs are what lets people in beside login, su, sudo and sshd.
func (p *product) programs() {
	t := p.t.(*testing.T)

	t.Run("cron", func(t *testing.T) {
		p := &product{p.With(t), t}
		got := ""
		for end := time.Now().Add(130 * time.Second); got == "" && time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
			if strings.Contains(p.Sh("journalctl -b -t CRON -t cron").Stdout, "Permission denied") {
				got = strings.TrimSpace(p.Sh("cat /tmp/cron.bea").Stdout)
			}
		}
		if got != "bea /home/bea /home/bea" {
			t.Errorf("the job in an open home says %q", got)
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
