package stories

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

const (
	shellAsks  = `Please enter password for user ann: $`
	noTerminal = "Home of user ann is not active and there is no terminal to ask on; log in with a terminal first."
)

// sshd starts the guest's sshd with ours as the source of keys, and gives root
// a key to log in with.
func (p *product) sshd() {
	p.t.Helper()
	p.MustSh(`rm /etc/ssh/sshd_config.d/20-systemd-userdb.conf; cp /usr/local/share/doc/hearth/sshd.conf /etc/ssh/sshd_config.d/hearth.conf
		printf 'PerSourcePenalties no\nKbdInteractiveAuthentication yes\n' >/etc/ssh/sshd_config.d/test.conf
		ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
		cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
		printf 'StrictHostKeyChecking no\nLogLevel ERROR\n' >/root/.ssh/config
		systemctl start ssh.service`)
	p.quickStop()
}

// quickStop has logind stop a user's services soon after the last logout, so
// that a story need not wait for a home to close.
func (p *product) quickStop() {
	p.t.Helper()
	p.MustSh(`mkdir -p /etc/systemd/logind.conf.d; printf '[Login]\nUserStopDelaySec=1\n' >/etc/systemd/logind.conf.d/test.conf; systemctl restart systemd-logind.service`)
}

// keyed makes a home whose owner logs in with root's key.
func (p *product) keyed(name, options string) {
	p.t.Helper()
	p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create %s --storage=luks --fs-type=ext4 --disk-size=64M --ssh-authorized-keys=@/root/.ssh/id_ed25519.pub %s %s",
		password, atMost, name, options, cheap))
}

// classes lists the classes of a user's sessions.
func (p *product) classes(name string) string {
	p.t.Helper()
	return strings.Join(strings.Fields(p.MustSh("loginctl list-sessions --json=short | jq -r '.[] | select(.user==\""+name+"\") | .class' | sort")), " ")
}

// says types a line at a shell and returns what comes of it. The quotes keep
// the marks out of the echo of what is typed.
func says(l *vmtest.Typist, line string) string {
	l.Send("echo BEG''IN; " + line + "; echo END''OF\n")
	s := strings.ReplaceAll(l.Expect(`ENDOF\r`, 30*time.Second), "\r", "")
	return strings.TrimSuffix(s[strings.LastIndex(s, "BEGIN\n")+len("BEGIN\n"):], "ENDOF")
}

// TestSSH: logins over the network into homes that are closed.
func TestSSH(t *testing.T) {
	t.Parallel()
	p := install(t, vmtest.Options{Suite: vmtest.Forky})
	p.enable()
	p.sshd()
	// A user bus, as most systems have one.
	p.MustSh(`cd /etc/systemd/user && printf '[Socket]\nListenStream=%%t/bus\n[Install]\nWantedBy=sockets.target\n' >testbus.socket
		printf '[Service]\nExecStart=sleep inf\n' >testbus.service && systemctl --global enable testbus.socket`)
	p.keyed("ann", "--alias=annie --setenv=GREETING=hello --email-address=ann@example.org --timezone=UTC")
	p.keyed("bea", "--default-area=work")

	t.Run("keys come from the record", func(t *testing.T) {
		p := &product{p.With(t), t}
		for _, cmd := range []string{"homectl ssh-authorized-keys ann", "homectl ssh-authorized-keys annie", "userdbctl ssh-authorized-keys ann"} {
			if got := p.MustSh(atMost + cmd); got != p.MustSh("cat /root/.ssh/id_ed25519.pub") {
				t.Errorf("%s prints %q", cmd, got)
			}
		}
		if got := p.MustSh(atMost + "homectl ssh-authorized-keys root"); got != "" {
			t.Errorf("keys of root: %q", got)
		}
		if r := p.Sh("setpriv --reuid=daemon --clear-groups homectl ssh-authorized-keys ann"); r.Code != 1 || r.Stdout != "" {
			t.Errorf("keys for anybody: %v", r)
		}
	})

	t.Run("commands over a closed home", func(t *testing.T) {
		p := &product{p.With(t), t}
		timed := func(cmd string) (vmtest.Result, int) {
			t.Helper()
			r := p.Sh("begin=$(date +%s%N); timeout 20 " + cmd + " >/dev/null; echo $(( ($(date +%s%N) - begin) / 1000000 ))")
			var ms int
			if _, err := fmt.Sscan(r.Stdout, &ms); err != nil {
				t.Fatal(r)
			}
			return r, ms
		}
		// What a login takes anyway, on a machine as busy as it is.
		_, usual := timed("ssh root@localhost true")
		type refused struct{ cmd, says string }
		commands := []refused{
			{"ssh ann@localhost true", noTerminal},
			{"ssh ann@localhost git-upload-pack x", noTerminal},
			{"scp -O /etc/motd ann@localhost:x", noTerminal + "\nlost connection"},
			// sshd shows nobody what a subsystem says.
			{"scp /etc/motd ann@localhost:x", "scp: Connection closed"},
			{"echo put /etc/motd | sftp -b - ann@localhost", "Connection closed"},
		}
		if long() {
			// These two add lines of their own behind it.
			commands = append(commands, refused{"git clone -q ann@localhost:repo /tmp/clone0", noTerminal}, refused{"rsync -a /etc/motd ann@localhost:", noTerminal})
		}
		for _, c := range commands {
			r, ms := timed(c.cmd)
			if ms > usual+3000 {
				t.Errorf("%s took %d ms, a login of root %d ms", c.cmd, ms, usual)
			}
			said := strings.TrimSpace(strings.ReplaceAll(r.Stderr, "\r", ""))
			if first, _, _ := strings.Cut(said, "\n"); said != c.says && (first != c.says || !strings.HasPrefix(c.cmd, "git ") && !strings.HasPrefix(c.cmd, "rsync ")) {
				t.Errorf("%s says:\n%s", c.cmd, r.Stderr)
			}
		}
		if s := p.state("ann"); s != "inactive" {
			t.Errorf("ann is %s", s)
		}
		if out := p.Sh("journalctl -b -u homed | grep activating").Stdout; out != "" {
			t.Errorf("a worker was started although nobody could be asked:\n%s", out)
		}
	})

	t.Run("the sftp server inside of sshd", func(t *testing.T) {
		needLong(t)
		p := &product{p.With(t), t}
		// It starts no shell, so nobody says why the home is not there.
		config := "/etc/ssh/sshd_config.d/internal.conf"
		p.MustSh("printf 'Match User ann\n  ForceCommand internal-sftp\n' >" + config + " && systemctl reload ssh.service")
		r := p.Sh("printf 'pwd\nput /etc/motd x\n' | " + atMost + "sftp -b - ann@localhost")
		if !strings.Contains(r.Stdout, "Remote working directory: /\n") || r.Code == 0 || !strings.Contains(r.Stderr, "Permission denied") {
			t.Errorf("over a closed home: %v", r)
		}
		p.MustSh("rm " + config + " && systemctl reload ssh.service && test ! -e /x")
		p.becomes("ann", "inactive")
	})

	t.Run("with a key, and the password in the shell", func(t *testing.T) {
		p := &product{p.With(t), t}
		l := p.Terminal("ssh", "ann@localhost")
		l.Expect(shellAsks, 30*time.Second)
		if c := p.classes("ann"); c != "user-incomplete" {
			t.Errorf("before the password her session is %q", c)
		}
		if s := p.state("ann"); s != "inactive" {
			t.Errorf("before the password ann is %s", s)
		}
		l.Send("wrong\n")
		l.Expect("Password incorrect or not sufficient, please try again."+`\s+`+shellAsks, 30*time.Second)
		l.Send(password + "\n")
		l.Expect(`ann@.*\$ ?$`, 60*time.Second)
		if c := p.classes("ann"); c != "manager user" {
			t.Errorf("with her home open her sessions are %q", c)
		}
		if s := p.state("ann"); s != "active" {
			t.Errorf("with her shell running ann is %s", s)
		}
		uid := p.MustSh("id -u ann")
		got := says(l, `echo $HOME $SHELL $XDG_SESSION_CLASS $XDG_RUNTIME_DIR $DBUS_SESSION_BUS_ADDRESS $GREETING $EMAIL $TZ "${XDG_SESSION_INCOMPLETE-no}" "${XDG_AREA-no}" "${PASSWORD-no}"; pwd; ps -o args= -p $$; cat /proc/self/cgroup`)
		want := fmt.Sprintf("/home/ann /bin/bash user /run/user/%[1]s unix:path=/run/user/%[1]s/bus hello ann@example.org :UTC no no no\n/home/ann\n-bash\n0::/user.slice/user-%[1]s.slice/session-", uid)
		if !strings.HasPrefix(got, want) {
			t.Errorf("her session has\n%s\nwant\n%s", got, want)
		}
		if got := says(l, "systemctl --user is-active default.target; keyctl show @u; keyctl show @s"); !strings.HasPrefix(got, "active\n") || strings.Contains(got, "home-password") {
			t.Errorf("her services, or her keyring:\n%s", got)
		}

		// Whoever comes now is not asked.
		if got := p.MustSh(atMost + "ssh ann@localhost 'echo $HOME $SHELL $XDG_SESSION_CLASS; umask'"); !strings.HasPrefix(got, "/home/ann /bin/bash user\n") {
			t.Errorf("a second session has %s", got)
		}
		p.MustSh(`cd /tmp && for n in 1 2 3; do head -c 50000 /dev/urandom >up$n; done
			` + atMost + `scp -q up1 ann@localhost: && ` + atMost + `scp -q -O up2 ann@localhost: && echo put up3 | ` + atMost + `sftp -q -b - ann@localhost >/dev/null
			for n in 1 2 3; do cmp up$n /home/ann/up$n; test "$(stat -c %U /home/ann/up$n)" = ann; done`)
		if long() {
			p.MustSh(`cd /tmp && mkdir tree && cp up? tree && ` + atMost + `rsync -a tree ann@localhost: && ` + atMost + `rsync -a ann@localhost:tree/ back && diff -r tree back && test "$(stat -c %U /home/ann/tree/up1)" = ann
			` + atMost + `ssh ann@localhost git init -q --bare repo && cd tree && git init -q -b main && git add . && git -c user.name=a -c user.email=a@x.test commit -q -m one
			` + atMost + `git push -q ann@localhost:repo main && ` + atMost + `git clone -q -b main ann@localhost:repo /tmp/clone && diff -r -x .git /tmp/tree /tmp/clone && test "$(stat -c %U /home/ann/repo/refs/heads/main)" = ann`)
		}
		logout(l)
		p.becomes("ann", "inactive")
		if c := p.classes("ann"); c != "" {
			t.Errorf("after the logout her sessions are %q", c)
		}
		p.MustSh("test ! -e /home/ann/up1")
	})

	t.Run("a command with a terminal", func(t *testing.T) {
		p := &product{p.With(t), t}
		l := p.Terminal("ssh", "-t", "annie@localhost", "pwd; exit 7")
		l.Expect(shellAsks, 30*time.Second)
		l.Send(password + "\n")
		l.Expect(`[\r\n]/home/ann[\r\n]`, 60*time.Second)
		if code := l.Wait(); code != 7 {
			t.Errorf("exit status %d", code)
		}
		p.becomes("ann", "inactive")
	})

	t.Run("answers that open nothing", func(t *testing.T) {
		p := &product{p.With(t), t}
		l := p.Terminal("ssh", "ann@localhost")
		for n := range 5 {
			l.Expect(shellAsks, 30*time.Second)
			l.Send(fmt.Sprintf("wrong%d\n", n))
		}
		l.Expect("Too many unsuccessful login attempts for user ann, refusing.", 30*time.Second)
		if code := l.Wait(); code != 1 {
			t.Errorf("five wrong passwords: exit status %d", code)
		}
		l = p.Terminal("ssh", "ann@localhost")
		l.Expect(shellAsks, 30*time.Second)
		l.Send("\x04")
		l.Expect("Failed to acquire password: Operation canceled", 20*time.Second)
		if code := l.Wait(); code != 1 {
			t.Errorf("an end of file: exit status %d", code)
		}
		// The line breaks while the question is open: nothing may stay.
		l = p.Terminal("ssh", "ann@localhost")
		l.Expect(shellAsks, 30*time.Second)
		l.Close()
		p.MustSh(`for n in $(seq 40); do loginctl list-sessions --no-legend | grep -q ' ann ' || break; sleep 0.25; done
			! loginctl list-sessions --no-legend | grep ' ann '; ! pgrep -u ann; ! fuser /run/systemd/home/ann.* 2>/dev/null`)
		if r := p.Sh("PASSWORD='" + password + "' setpriv --reuid=ann --regid=ann --clear-groups /usr/local/lib/hearth/homeshell"); r.Code != 1 || r.Stderr != "Called without reference on home taken, can't operate.\n" {
			t.Errorf("by hand: %v", r)
		}
		if s := p.state("ann"); s != "inactive" {
			t.Errorf("ann is %s", s)
		}
	})

	t.Run("with the password", func(t *testing.T) {
		p := &product{p.With(t), t}
		for _, method := range []string{"password", "keyboard-interactive"} {
			l := p.Terminal("ssh", "-o", "PreferredAuthentications="+method, "-o", "PubkeyAuthentication=no", "annie@localhost")
			l.Expect(`(?i)password: ?$`, 30*time.Second)
			asked := 1
			if method == "password" { // which is one answer to all that is asked
				l.Send("mistyped\n")
				l.Expect(`please try again\.\s+.*password: ?$`, 60*time.Second)
				asked++
			}
			l.Send(password + "\n")
			l.Expect(`ann@.*\$ ?$`, 60*time.Second) // annie is an alias of hers
			if n := len(regexp.MustCompile(`(?i)password`).FindAllString(l.Transcript(), -1)); n != asked {
				t.Errorf("%s: asked %d times:\n%s", method, n, l.Transcript())
			}
			if got := says(l, "echo $HOME $SHELL $XDG_SESSION_CLASS; pwd"); got != "/home/ann /bin/bash user\n/home/ann\n" {
				t.Errorf("%s: her session has %s", method, got)
			}
			logout(l)
			p.becomes("ann", "inactive")
		}
	})

	t.Run("into an area", func(t *testing.T) {
		p := &product{p.With(t), t}
		if r := p.with(password, "activate bea"); r.Code != 0 {
			t.Fatal(r)
		}
		p.MustSh("install -d -o bea -g bea /home/bea/Areas/work && " + atMost + "homectl deactivate bea")
		l := p.Terminal("ssh", "bea@localhost")
		l.Expect(`for user bea: $`, 30*time.Second)
		l.Send(password + "\n")
		l.Expect(`bea@.*\$ ?$`, 60*time.Second)
		uid := p.MustSh("id -u bea")
		if got, want := says(l, "echo $HOME $XDG_AREA $XDG_RUNTIME_DIR; pwd; stat -c '%U %a' $XDG_RUNTIME_DIR"), fmt.Sprintf("/home/bea/Areas/work work /run/user/%s/Areas/work\n/home/bea/Areas/work\nbea 755\n", uid); got != want {
			t.Errorf("her session has\n%s\nwant\n%s", got, want)
		}
		logout(l)
		p.becomes("bea", "inactive")
	})

	t.Run("a locked home", func(t *testing.T) {
		p := &product{p.With(t), t}
		first := p.byKey("ann")
		lock := func() {
			t.Helper()
			p.MustSh(atMost + "homectl lock ann")
			if s := p.state("ann"); s != "locked" {
				t.Fatalf("ann is %s", s)
			}
		}
		resumed := func(how string) {
			t.Helper()
			if got := says(first, "pwd"); got != "/home/ann\n" {
				t.Errorf("unlocked %s, her first session says %q", how, got)
			}
		}
		lock()
		second := p.byKey("ann")
		resumed("by the shell of a key login")
		logout(second)
		lock()
		third := p.Terminal("ssh", "-o", "PubkeyAuthentication=no", "ann@localhost")
		third.Expect(`(?i)password: ?$`, 30*time.Second)
		third.Send(password + "\n")
		third.Expect(`ann@.*\$ ?$`, 60*time.Second)
		resumed("by a password login")
		logout(third)
		logout(first)
		p.becomes("ann", "inactive")
	})

	t.Run("the original's shell on our daemon, ours on the original's", func(t *testing.T) {
		p := &product{p.With(t), t}
		const ours = "/usr/local/lib/hearth/homeshell"
		p.MustSh("mv " + ours + " /tmp/homeshell; printf '#!/bin/sh\\nexec /usr/bin/systemd-home-fallback-shell \"$@\"\\n' >" + ours + "; chmod 755 " + ours)
		logout(p.byKey("ann"))
		p.becomes("ann", "inactive")
		// What the original's leaves in the user's keyring, ours finds.
		p.MustSh("mv /tmp/homeshell " + ours + "; " + atMost + "ssh ann@localhost true")
		p.becomes("ann", "inactive")
		p.MustSh(`setpriv --reuid=ann --regid=ann --clear-groups keyctl clear @u
			systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service
			mount --bind ` + ours + ` /usr/bin/systemd-home-fallback-shell`)
		p.ownsBus("/usr/lib/systemd/systemd-homed")
		l := p.byKey("ann")
		if got := says(l, "echo $HOME $SHELL $XDG_SESSION_CLASS; pwd"); got != "/home/ann /bin/bash user\n/home/ann\n" {
			t.Errorf("her session has %s", got)
		}
		logout(l)
		p.becomes("ann", "inactive")
	})
}

// byKey logs in with root's key and gives the password to whatever asks for it
// in place of a shell.
func (p *product) byKey(name string) *vmtest.Typist {
	p.t.Helper()
	l := p.Terminal("ssh", name+"@localhost")
	l.Expect(`Please enter password for user `+name+`:`, 40*time.Second)
	time.Sleep(time.Second) // the original's empties the line before it reads
	l.Send(password + "\r")
	l.Expect(name+`@.*\$ ?$`, 60*time.Second)
	return l
}
