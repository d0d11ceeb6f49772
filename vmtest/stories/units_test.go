package stories

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// answerer is a password agent: it writes down the questions it sees, their
// Id= behind, and answers each with the next line of a file, if there is one.
const answerer = `#!/bin/bash
cd /run/systemd/ask-password || exit 1
declare -A seen
while :; do
	for f in ask.*; do
		[ -f "$f" ] && [ -z "${seen[$f]-}" ] || continue
		seen[$f]=1
		sed -n 's/^Message=/asked: /p; s/^Id=/    id: /p' "$f" >>/root/asked
		if read -r answer <&3; then printf %s "$answer" | socat -u - "UNIX-SENDTO:$(sed -n 's/^Socket=//p' "$f")"; fi
	done
	sleep 0.03
done 3</root/answers
`

// answering runs a script while an agent gives those answers, and returns the
// questions that were asked meanwhile, with what the script printed.
func (p *product) answering(answers []string, script string) (asked string, r vmtest.Result) {
	p.t.Helper()
	p.Put("/root/answers", []byte(strings.Join(answers, "\n")+"\n"), 0o600)
	if len(answers) == 0 {
		p.Put("/root/answers", nil, 0o600)
	}
	p.Put("/root/answerer", []byte(answerer), 0o755)
	p.MustSh("mkdir -p /run/systemd/ask-password; : >/root/asked; systemd-run -q --collect --unit=answerer /root/answerer")
	r = p.Sh(script)
	p.MustSh("systemctl stop answerer.service; ls /run/systemd/ask-password >>/root/asked")
	return p.MustSh("cat /root/asked"), r
}

const (
	question = "asked: Password for home of user ann: \n"
	again    = "asked: Sorry, try again. Password for home of user ann: \n"
	ourID    = "    id: home:ann\n"
)

// TestUnits opens homes for those whom nobody sits in front of, where the
// service manager forwards PAM's questions, and where it refuses them.
func TestUnits(t *testing.T) {
	for _, suite := range []vmtest.Suite{vmtest.Forky, vmtest.Trixie} {
		t.Run(string(suite), func(t *testing.T) {
			t.Parallel()
			p := install(t, vmtest.Options{Suite: suite})
			p.enable()
			p.create("ann")
			p.units()
		})
	}
}

func (p *product) units() {
	p.MustSh("mkdir -p /etc/systemd/logind.conf.d; printf '[Login]\\nUserStopDelaySec=1s\\n' >/etc/systemd/logind.conf.d/fast.conf; systemctl restart systemd-logind.service")
	forwards := p.SystemdVersion() >= 258
	// by is what shows a question of each kind: by its manager, or by us.
	by := func(questions ...string) string {
		if !forwards {
			for i := range questions {
				questions[i] += ourID
			}
		}
		return strings.TrimSuffix(strings.Join(questions, ""), "\n")
	}
	uid := strings.TrimSpace(p.MustSh("id -u ann"))
	start := "systemctl start user@" + uid + ".service; "
	look := "systemctl show -P ActiveState user@" + uid + "; tr '\\0' '\\n' </proc/$(systemctl show -P MainPID user@" + uid + ")/environ | grep -E '^(HOME|SHELL)='; "
	stop := func(t *testing.T, p *product) {
		t.Helper()
		p.MustSh("systemctl stop user@" + uid + ".service; systemctl reset-failed user@" + uid + ".service || :")
		p.becomes("ann", "inactive")
	}

	p.t.(*testing.T).Run("her manager is answered", func(t *testing.T) {
		p := &product{p.With(t), t}
		asked, r := p.answering([]string{"+wrong", "+" + password}, start+look)
		if asked != by(question, again) {
			t.Errorf("asked:\n%s", asked)
		}
		if !strings.Contains(r.Stdout, "active\n") || !strings.Contains(r.Stdout, "HOME=/home/ann\n") || strings.Contains(r.Stdout, "homeshell") {
			t.Errorf("her manager: %s\n%s", r, p.Sh("journalctl -b --no-pager | grep -E 'pam_home|user@' | tail -20").Stdout)
		}
		if s, c := p.state("ann"), p.classes("ann"); s != "active" || c != "manager" {
			t.Errorf("ann is %s, her sessions are %q", s, c)
		}
		stop(t, p)
	})

	p.t.(*testing.T).Run("somebody declines at once", func(t *testing.T) {
		p := &product{p.With(t), t}
		asked, r := p.answering([]string{"-", "-", "-"}, start+look)
		want := by(question)
		if forwards { // once in its account phase, once in its session phase
			want = by(question, question)
		}
		if asked != want {
			t.Errorf("asked:\n%s", asked)
		}
		if !strings.HasPrefix(r.Stdout, "failed\n") {
			t.Errorf("her manager without a home: %s", r)
		}
		stop(t, p)
		// A later login gets it, with its home.
		l := p.login("ann", password)
		l.Send("systemctl --user show -P Environment >/dev/null && systemctl --user show-environment | grep ^HOME=; echo done\n")
		l.Expect(`HOME=/home/ann[\r\n]+done`, 30*time.Second)
		logout(l)
		p.becomes("ann", "inactive")
	})

	p.t.(*testing.T).Run("its credentials", func(t *testing.T) {
		p := &product{p.With(t), t}
		unit := func(credential, value string) string {
			return fmt.Sprintf("mkdir -p /run/systemd/system/user@.service.d; printf '[Service]\\nSetCredential=%s:%s\\n' >/run/systemd/system/user@.service.d/home.conf; systemctl daemon-reload; ", credential, value)
		}
		for _, name := range []string{"pam.authtok.systemd-user", "home.password"} {
			asked, r := p.answering(nil, unit(name, password)+start+look)
			if asked != "" || !strings.Contains(r.Stdout, "HOME=/home/ann\n") {
				t.Errorf("%s: asked %q, %s\n%s", name, asked, r, p.Sh("journalctl -b --no-pager | grep -E 'pam_home|user@' | tail -20").Stdout)
			}
			stop(t, p)
		}
		p.MustSh("rm -r /run/systemd/system/user@.service.d; systemctl daemon-reload")
	})

	p.t.(*testing.T).Run("run0", func(t *testing.T) {
		p := &product{p.With(t), t}
		const class = `loginctl show-session -P Class $XDG_SESSION_ID`
		his := p.MustSh("useradd --create-home bob; run0 -u bob sh -c '" + class + "' </dev/null | cat") // of a user of the machine's own
		const command = `run0 -u ann sh -c 'echo "$HOME"; id -un; homectl inspect ann | sed -n "s/^ *State: //p"; ` + class + `'`
		asked, r := p.answering([]string{"+" + password}, "timeout 100 "+command+" </dev/null | cat")
		if asked != by(question) || strings.TrimSpace(r.Stdout) != "/home/ann\nann\nactive\n"+his || his != "background" {
			t.Errorf("without a terminal: asked\n%s\n%s", asked, r)
		}
		p.becomes("ann", "inactive")
		if !forwards {
			// This one brings no password agent of its own.
			asked, r := p.answering([]string{"+" + password}, "timeout 100 script -qefc \""+`run0 -u ann sh -c 'echo \$HOME; id -un'`+"\" /dev/null")
			if asked != by(question) || !regexp.MustCompile(`/home/ann[\r\n]+ann`).MatchString(r.Stdout) {
				t.Errorf("on a terminal: asked\n%s\n%s", asked, r)
			}
			p.becomes("ann", "inactive")
			return
		}
		l := p.Terminal("run0", "-u", "ann", "sh", "-c", "echo $HOME; id -un")
		l.Expect(`Password for home of user ann: ?`, 30*time.Second)
		l.Send(password + "\n")
		l.Expect(`/home/ann[\r\n]+ann`, 60*time.Second)
		if code := l.Wait(); code != 0 {
			t.Errorf("run0 ended with %d: %s", code, l.Transcript())
		}
		p.becomes("ann", "inactive")
	})

	p.t.(*testing.T).Run("homectl without a terminal", func(t *testing.T) {
		p := &product{p.With(t), t}
		const plain = "asked: Please enter password for user ann: \n" + ourID
		try := func(answers []string, code int, wantAsked, wantErr, script string) {
			t.Helper()
			began := time.Now()
			asked, r := p.answering(answers, script)
			if asked != strings.TrimSuffix(wantAsked, "\n") || r.Code != code || !strings.Contains(r.Stderr, wantErr) {
				t.Errorf("%s\nasked:\n%s\n%s", script, asked, r)
			}
			if took := time.Since(began); took > 40*time.Second {
				t.Errorf("%s took %v", script, took)
			}
		}
		const authenticate = "homectl authenticate ann </dev/null"
		try([]string{"+wrong", "+" + password}, 0, plain+plain, "waiting up to 60 s for a password agent", authenticate)
		try([]string{"-"}, 1, plain, "Failed to acquire password: Operation canceled", authenticate)
		try(nil, 1, "", "No password was given for user ann.", "homectl --no-ask-password authenticate ann </dev/null")
		try(nil, 1, "", "No password was given for user ann.", "PASSWORD=wrong "+authenticate)
		try(nil, 0, "", "", "systemd-run -q --wait --pipe -p SetCredential=home.password:"+password+" /usr/local/bin/"+authenticate)
		// What her programs left in her keyring opens her own home.
		try(nil, 0, "", "", `setpriv --reuid=ann --regid=ann --clear-groups keyctl session - sh -c 'keyctl link @u @s; printf %s `+password+` | keyctl padd user home-password @u >/dev/null; `+authenticate+`'`)
	})

	p.t.(*testing.T).Run("stacks by hand", func(t *testing.T) {
		p := &product{p.With(t), t}
		for name, prompts := range map[string]int{"recommended": 1, "manual": 2} {
			p.Put("/etc/pam.d/"+name, []byte(inDocs(t, "pam "+name)), 0o644)
			r := p.Sh("yes '" + password + "' | timeout 100 pamtester " + name + " ann authenticate acct_mgmt open_session close_session 2>&1")
			if r.Code != 0 || strings.Count(r.Stdout, "Password: ") != prompts {
				t.Errorf("%s: %s", name, r)
			}
			p.becomes("ann", "inactive")
		}
	})

	p.t.(*testing.T).Run("a screen locker of hers", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh(`printf 'auth include common-auth\naccount include common-account\n' >/etc/pam.d/locker`)
		l := p.login("ann", password)
		for pw, code := range map[string]int{password: 0, "wrong": 1} {
			// It gives one answer to every prompt.
			r := p.Sh("yes '" + pw + "' | timeout 60 setpriv --reuid=ann --regid=ann --clear-groups pamtester locker ann authenticate acct_mgmt")
			if r.Code != code {
				t.Errorf("with %q: %s", pw, r)
			}
		}
		logout(l)
		p.becomes("ann", "inactive")
	})
}

// inDocs returns what docs/pam.md shows under a name.
func inDocs(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(tree, "docs/pam.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```"+name+"\n")
	shown, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatalf("docs/pam.md does not show %q", name)
	}
	return shown
}
