package stories

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

const fresh = "N3w-Saddle-7-Stapl"

// TestPasswd changes passwords and records, at rest and in use, and lets the
// real daemon open what came of it.
func TestPasswd(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	p := install(t, vmtest.Options{Suite: vmtest.Forky})
	p.enable()
	for _, fs := range []struct{ user, fstype, size string }{{"ann", "ext4", "64M"}, {"bea", "btrfs", "280M"}} {
		t.Run(fs.fstype, func(t *testing.T) {
			p := &product{p.With(t), t}
			p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create %s --storage=luks --fs-type=%s --disk-size=%s %s", password, atMost, fs.user, fs.fstype, fs.size, cheap))
			p.rekey(fs.user)
		})
	}
	t.Run("PAM", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("pam-auth-update --enable hearth hearth-password")
		l := p.Terminal("passwd", "ann")
		for _, answer := range []struct{ question, text string }{
			{`(?i)new password: ?$`, password}, {`(?i)retype.*: ?$`, password}, {`(?i)password.*: ?$`, fresh},
		} {
			l.Expect(answer.question, 30*time.Second)
			l.Send(answer.text + "\n")
		}
		if code := l.Wait(); code != 0 {
			t.Errorf("passwd ended with %d: %s", code, l.Transcript())
		}
		p.opens("ann", password)
		if r := p.passwd("ann", password, fresh); r.Code != 0 {
			t.Fatal(r)
		}
	})
	t.Run("weak passwords", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.weakPasswords()
	})
	t.Run("hand over", func(t *testing.T) {
		p := &product{p.With(t), t}
		registered := p.registerAll("../../fixtures/systemd-262/records")
		p.realOpens("ann", "bea")
		p.realAccepts(append(registered, "ann", "bea"))
	})
}

// weakPasswords are refused by the rules of the machine, or only warned of.
func (p *product) weakPasswords() {
	p.t.Helper()
	const directory = "homectl create dan --storage=directory"
	weak := func(rules, command, want string, code int) {
		p.t.Helper()
		r := p.Sh("printf '" + rules + "' >/etc/security/pwquality.conf; " + command + " </dev/null")
		if r.Code != code || !strings.Contains(r.Stderr, want) {
			p.t.Errorf("with %q: %v, want %q", rules, r, want)
		}
	}
	weak("", "NEWPASSWORD=short "+atMost+directory, "Password too weak: The password is shorter than 8 characters", 1)
	weak("minlen = 40\\n", "NEWPASSWORD='"+password+"' "+atMost+directory, "The password is shorter than 40 characters", 1)
	if left := p.Sh("homectl inspect dan; ls -d /home/dan*"); left.Code == 0 {
		p.t.Errorf("a refused home is there: %v", left)
	}
	p.MustSh(": >/etc/security/pwquality.conf; NEWPASSWORD='" + password + "' " + atMost + directory)
	weak("badwords = saddle\\n", fmt.Sprintf("PASSWORD='%s' NEWPASSWORD='My-Saddle-88' %s homectl passwd dan", password, atMost), "forbidden words", 1)
	p.MustSh(atMost + "homectl remove dan")
	weak("", "NEWPASSWORD=short "+atMost+directory+" --enforce-password-policy=no", "(Password too weak: The password is shorter than 8 characters), proceeding anyway.", 0)
	p.MustSh(atMost + "homectl remove dan")
}

// registerAll has ours sign and keep the records that the real daemon was once
// given, the unusual ones among them, and returns whose they are.
func (p *product) registerAll(records string) []string {
	p.t.Helper()
	inputs, err := filepath.Glob(filepath.Join(records, "*", "input.json"))
	if err != nil || len(inputs) < 25 {
		p.t.Fatalf("%d records: %v", len(inputs), err)
	}
	var names []string
	for _, path := range inputs {
		name := filepath.Base(filepath.Dir(path))
		text, err := os.ReadFile(path)
		if err != nil {
			p.t.Fatal(err)
		}
		switch name {
		case "foreignu", "objarray", "realint", "sanat":
			continue // signed by nobody we know; what nobody can sign in a stable way
		}
		p.Put("/tmp/"+name+".json", text, 0o600)
		if r := p.Sh(atMost + "homectl register /tmp/" + name + ".json"); r.Code != 0 {
			p.t.Errorf("register %s: %v", name, r)
			continue
		}
		names = append(names, name)
	}
	return names
}

// realAccepts checks what the real daemon says of our signatures when it starts.
func (p *product) realAccepts(names []string) {
	p.t.Helper()
	p.MustSh("journalctl --sync; systemctl restart systemd-homed.service && busctl call org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager ListHomes >/dev/null")
	said := p.MustSh("journalctl --sync; journalctl -b -u systemd-homed.service -o cat -I")
	for _, name := range names {
		if !strings.Contains(said, name+".identity is signed only by us, accepting.") {
			p.t.Errorf("the real daemon does not take our signature of %s", name)
		}
	}
	if strings.Contains(said, ".identity is not signed") || p.t.Failed() {
		p.t.Errorf("it says:\n%s", said)
	}
}

// passwd changes a password without a terminal.
func (p *product) passwd(user, old, next string) vmtest.Result {
	return p.Sh(fmt.Sprintf("PASSWORD='%s' NEWPASSWORD='%s' %s homectl passwd %s </dev/null", old, next, atMost, user))
}

// slots counts the keyslots of an inactive home.
func (p *product) slots(user string) string {
	p.t.Helper()
	return strings.TrimSpace(p.MustSh(fmt.Sprintf(`l=$(losetup --find --show --offset 1048576 /home/%s.home) && cryptsetup luksDump $l | grep -cE '^  [0-9]+: luks2$'; losetup -d $l`, user)))
}

func (p *product) opens(user, pw string) {
	p.t.Helper()
	if r := p.with(pw, "activate "+user+" </dev/null"); r.Code != 0 {
		p.t.Fatal(r)
	}
	p.MustSh(atMost + "homectl deactivate " + user)
}

func (p *product) refused(user, pw string) {
	p.t.Helper()
	if r := p.with(pw, "authenticate "+user+" </dev/null"); r.Code != 1 {
		p.t.Errorf("%s still opens %s: %v", pw, user, r)
	}
}

func (p *product) rekey(user string) {
	p.t.Helper()
	// At rest.
	if r := p.passwd(user, "wrong", fresh); r.Code != 1 {
		p.t.Errorf("with a wrong old password: %v", r)
	}
	if r := p.passwd(user, password, fresh); r.Code != 0 {
		p.t.Fatal(r)
	}
	p.refused(user, password)
	p.opens(user, fresh)
	if n := p.slots(user); n != "1" {
		p.t.Errorf("%s keyslots", n)
	}

	// In use, as its user: the prompts come in the order of what one knows.
	if r := p.with(fresh, "activate "+user); r.Code != 0 {
		p.t.Fatal(r)
	}
	l := p.Terminal("setpriv", "--reuid="+user, "--regid="+user, "--clear-groups", "homectl", "passwd", user)
	for _, answer := range []struct{ question, text string }{
		{"current password", fresh}, {"new password", password}, {"repeat", password},
	} {
		l.Expect(answer.question, 30*time.Second)
		l.Send(answer.text + "\n")
	}
	if code := l.Wait(); code != 0 {
		p.t.Errorf("homectl passwd ended with %d: %s", code, l.Transcript())
	}
	p.MustSh("echo kept >/home/" + user + "/kept")
	p.MustSh(atMost + "homectl deactivate " + user)
	p.refused(user, fresh)

	// The record, active and not.
	if r := p.with(password, "update "+user+" --real-name='At Rest'"); r.Code != 0 {
		p.t.Fatal(r)
	}
	if r := p.with("wrong", "update "+user+" --real-name=Nobody </dev/null"); r.Code != 1 {
		p.t.Errorf("update with a wrong password: %v", r)
	}
	if r := p.with(password, "activate "+user); r.Code != 0 {
		p.t.Fatal(r)
	}
	p.MustSh("grep -q 'At Rest' /home/" + user + "/.identity && test -s /home/" + user + "/kept && ! grep -q '" + password + "' /var/lib/systemd/home/" + user + ".identity")
	if r := p.with(password, "update "+user+" --real-name='In Use'"); r.Code != 0 {
		p.t.Fatal(r)
	}
	p.MustSh("grep -q 'In Use' /home/" + user + "/.identity")
	p.MustSh(atMost + "homectl deactivate " + user)
	p.MustSh(atMost + "homectl update --offline " + user + " --real-name='Far Away' </dev/null")
	p.opens(user, password)
	if got := p.MustSh("getent passwd " + user); !strings.Contains(got, "Far Away") {
		p.t.Errorf("after the offline update: %s", got)
	}
	if r := p.passwd(user, password, fresh); r.Code != 0 {
		p.t.Fatal(r)
	}
}

// realOpens hands the homes to systemd-homed, which takes the new password and
// not the old one.
func (p *product) realOpens(users ...string) {
	p.t.Helper()
	p.MustSh("systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
	for _, user := range users {
		// Its homectl goes on asking, so the time limit ends it.
		if r := p.Sh(fmt.Sprintf("PASSWORD='%s' timeout 15 /usr/bin/homectl activate --no-ask-password %s </dev/null", password, user)); r.Code == 0 || !strings.Contains(r.Stderr, "Password incorrect") {
			p.t.Errorf("the real daemon on %s with the old password: %v", user, r)
		}
		p.MustSh(fmt.Sprintf("PASSWORD='%s' %s /usr/bin/homectl activate %s", fresh, atMost, user))
		p.MustSh("test -s /home/" + user + "/kept && " + atMost + "/usr/bin/homectl deactivate " + user)
	}
}
