package stories

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/internal/testenv"
	"hearth/vmtest"
)

// A visit is one person, or one unit, at one door. With argv somebody sits at
// a terminal: each question gets the next answer, and at a shell's prompt they
// look around and leave. Without, the script runs while an agent answers.
type visit struct {
	name, user    string
	argv          []string
	script        string
	answers       []string
	look          string // typed at the shell
	before, after string
	keep          bool // what the visit before left in the user's keyring
}

const (
	unanswered = "\x00" // let a question be, and wait for what comes of it
	around     = `echo $HOME $SHELL $SYSTEMD_HOME $SYSTEMD_HOME_SUSPEND; echo class $XDG_SESSION_CLASS $XDG_SESSION_TYPE $XDG_RUNTIME_DIR "${DBUS_SESSION_BUS_ADDRESS-no bus}" "${XDG_AREA-no area}" "${XDG_SESSION_INCOMPLETE-complete}" "${GREETING-no greeting}"; pwd; ps -o args= -p $$; sed 's/.*-slice//' /proc/self/cgroup; keyctl show @u | grep -c home-password`
	withKey    = "ssh -o PreferredAuthentications=publickey "
	opened     = "PASSWORD='" + password + "' " + atMost + "homectl activate ann </dev/null >/dev/null"
	closed     = atMost + "homectl deactivate ann || :" // where nobody's leaving did
)

// withKeys are the rows 08 and 09 of the acceptance list, where somebody has a
// key and a terminal.
var withKeys = []visit{
	{name: "a key", argv: []string{"ssh", "ann@localhost"}, answers: []string{password}, look: around},
	{name: "a key, again at once", argv: []string{"ssh", "ann@localhost"}, answers: []string{password}, look: "pwd", keep: true},
	{name: "a key, wrong, right", argv: []string{"ssh", "ann@localhost"}, answers: []string{"wrong", password}, look: around},
	{name: "a key, nothing, right", argv: []string{"ssh", "ann@localhost"}, answers: []string{"", password}, look: "pwd"},
	{name: "a key, Ctrl-D", argv: []string{"ssh", "ann@localhost"}, answers: []string{"\x04"}},
	{name: "a key, Ctrl-C", argv: []string{"ssh", "ann@localhost"}, answers: []string{"\x03"}},
	{name: "a key, six wrong", argv: []string{"ssh", "ann@localhost"}, answers: []string{"w1", "w2", "w3", "w4", "w5", "w6", "\x04"}},
	{name: "a key, a command on a terminal", argv: []string{"ssh", "-t", "ann@localhost", "pwd; exit 7"}, answers: []string{password}},
	{name: "a key and an alias", argv: []string{"ssh", "annie@localhost"}, answers: []string{password}, look: around},
	{name: "a key, default area", user: "bea", argv: []string{"ssh", "bea@localhost"}, answers: []string{password}, look: around},
	{name: "a key, open", argv: []string{"ssh", "ann@localhost"}, look: around, before: opened, after: closed},
	{name: "a key, locked", argv: []string{"ssh", "ann@localhost"}, answers: []string{password}, look: around, before: opened + "; homectl lock ann", after: closed},
	{name: "a key, locked account", user: "lea", argv: []string{"ssh", "-o", "LogLevel=INFO", "lea@localhost"}, answers: []string{password}},
}

// overSSH are the rest of these rows. @SHELL@ is the side's own shell of closed
// homes.
var overSSH = []visit{
	{name: "no terminal", script: withKey + "ann@localhost true"},
	{name: "no terminal, open", script: withKey + "ann@localhost 'pwd; id -un; echo $XDG_SESSION_CLASS'", before: opened, after: closed},
	{name: "scp of old", script: "scp -O /etc/hostname ann@localhost:x"},
	{name: "scp", script: "scp /etc/hostname ann@localhost:x"},
	{name: "sftp", script: "echo pwd | sftp -b - ann@localhost"},
	{name: "sftp inside of sshd", script: "printf 'pwd\nput /etc/hostname x\n' | sftp -b - bea@localhost", user: "bea",
		before: "printf 'Match User bea\n  ForceCommand internal-sftp\n' >/etc/ssh/sshd_config.d/internal.conf; systemctl reload ssh.service",
		after:  "rm /etc/ssh/sshd_config.d/internal.conf; systemctl reload ssh.service"},
	{name: "password", argv: []string{"ssh", "-o", "PreferredAuthentications=password", "ann@localhost"}, answers: []string{password}, look: around},
	{name: "password, wrong, right", argv: []string{"ssh", "-o", "PreferredAuthentications=password", "ann@localhost"}, answers: []string{"wrong", password}, look: "pwd"},
	{name: "password, open", argv: []string{"ssh", "-o", "PreferredAuthentications=password", "ann@localhost"}, answers: []string{password}, look: "pwd", before: opened, after: closed},
	{name: "password, locked", argv: []string{"ssh", "-o", "PreferredAuthentications=password", "ann@localhost"}, answers: []string{password}, look: "pwd", before: opened + "; homectl lock ann", after: closed},
	{name: "password and an alias", argv: []string{"ssh", "-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1", "annie@localhost"}, answers: []string{password}, look: around},
	{name: "password, locked account", user: "lea", argv: []string{"ssh", "-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1", "lea@localhost"}, answers: []string{password}},
	{name: "keyboard-interactive", argv: []string{"ssh", "-o", "PreferredAuthentications=keyboard-interactive", "ann@localhost"}, answers: []string{password, password}, look: around},
	{name: "keyboard-interactive, wrong, right", argv: []string{"ssh", "-o", "PreferredAuthentications=keyboard-interactive", "ann@localhost"}, answers: []string{"wrong", password, password}, look: "pwd"},
	{name: "keyboard-interactive, open", argv: []string{"ssh", "-o", "PreferredAuthentications=keyboard-interactive", "ann@localhost"}, answers: []string{password}, look: "pwd", before: opened, after: closed},
	{name: "keyboard-interactive, locked", argv: []string{"ssh", "-o", "PreferredAuthentications=keyboard-interactive", "ann@localhost"}, answers: []string{password, password}, look: "pwd", before: opened + "; homectl lock ann", after: closed},
	{name: "the shell by hand", script: "PASSWORD='" + password + "' setpriv --reuid=ann --regid=ann --clear-groups @SHELL@"},
	{name: "its calls by hand", script: `busctl call org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager ActivateHomeIfReferenced ss ann '{"password":["` + password + `"]}'`},
}

// byManager are the rows 10 and 14 U07, and 11 but for the boot: nobody sits in front
// of these.
var byManager = []visit{
	{name: "user@, answered", script: herManager, answers: []string{"+" + password}},
	{name: "user@, wrong, wrong, right", script: herManager, answers: []string{"+wrong", "+wrong", "+" + password}},
	{name: "user@, an empty answer", script: herManager, answers: []string{"+", "-", "-"}},
	{name: "user@, declined", script: herManager, answers: []string{"-", "-", "-"}},
	{name: "user@, nobody", script: herManager},
	{name: "user@, five wrong", script: herManager, answers: []string{"+w1", "+w2", "+w3", "+w4", "+w5", "-", "-"}},
	{name: "user@, open", script: herManager, before: opened},
	{name: "user@, its credential", script: herManager, before: credential(password), after: noCredential},
	{name: "user@, a wrong credential", script: herManager, answers: []string{"-", "-"}, before: credential("wrong"), after: noCredential},
	{name: "user@, locked account", user: "lea", script: herManager, answers: []string{"+" + password, "-"}},
	{name: "user@, started on a terminal", argv: []string{"sh", "-c", "systemctl start user@$(id -u ann).service; homectl inspect ann | grep State:; systemctl stop user@$(id -u ann).service"}, answers: []string{password}},
	{name: "lingering, switched on", script: `loginctl enable-linger ann; for i in $(seq 100); do systemctl is-active -q user@$(id -u ann).service && break; sleep .3; done
		homectl inspect ann | grep State:; loginctl disable-linger ann`, answers: []string{"+" + password}},
}

// byJobs are run0 of row 12, cron of row 11, and row 14 U01.
var byJobs = []visit{
	{name: "run0, answered", script: zero(""), answers: []string{"+" + password}},
	{name: "run0, nobody", script: zero("")},
	{name: "run0, open", script: zero(""), before: opened},
	{name: "run0, its credential", script: zero("--property=SetCredential=pam.authtok.systemd-run0:" + password)},
	{name: "run0, locked account", user: "lea", script: "run0 -u lea pwd | cat", answers: []string{"+" + password, "-"}},
	{name: "run0 on a terminal", argv: zeroes, answers: []string{password}},
	{name: "run0 on a terminal, wrong, right", argv: zeroes, answers: []string{"wrong", password}},
	{name: "run0 on a terminal, Ctrl-D", argv: zeroes, answers: []string{"\x04", unanswered}},
	{name: "cron", script: cronJob},
	{name: "cron, open", script: cronJob, before: opened},
	{name: "a locker of hers", before: opened, after: closed, script: "printf 'auth include common-auth\naccount include common-account\n' >/etc/pam.d/locker; " +
		"for p in '" + password + "' wrong; do yes $p | timeout 60 setpriv --reuid=ann --regid=ann --clear-groups pamtester locker ann authenticate acct_mgmt; echo rc $?; done"},
}

const (
	inside = `echo "$HOME $SHELL class $XDG_SESSION_CLASS $XDG_SESSION_TYPE $XDG_RUNTIME_DIR"; pwd; id -un; /usr/local/bin/homectl inspect ann 2>/dev/null | grep State:`
	// herManager starts her service manager, tells what came of it, and which of
	// its processes keeps the home.
	herManager = `U=user@$(id -u @OWNER@).service; systemctl start $U 2>/dev/null; echo rc $?; systemctl show -P ActiveState -P Result $U; echo is $(homectl inspect @OWNER@ | grep State:), sessions: $(loginctl list-sessions --json=short | jq -r '.[] | .class'); pid=$(systemctl show -P MainPID $U)
		if [ "$pid" != 0 ]; then tr '\0' '\n' </proc/$pid/environ | grep -E '^(HOME|SHELL|SYSTEMD_HOME.*|XDG_AREA|XDG_SESSION_CLASS)=' | sort
			for p in $pid $(pgrep -P $pid); do echo "$(cat /proc/$p/comm) holds $(ls -l /proc/$p/fd | sed -n 's|.*/run/systemd/home/||p')"; done; fi
		systemctl stop $U; systemctl reset-failed $U 2>/dev/null || :`
	noCredential = `rm -r /run/systemd/system/user@.service.d; systemctl daemon-reload`
	cronJob      = `rm -f /tmp/cron.job; printf '* * * * * { id -un; echo $HOME; pwd; } >/tmp/cron.new && mv /tmp/cron.new /tmp/cron.job\n' | crontab -u ann -
		since=$(date +%s); systemctl start cron.service
		for i in $(seq 300); do if [ -e /tmp/cron.job ] || journalctl -b -t CRON -t cron --since @$since | grep -q 'Permission denied'; then break; fi; sleep .25; done
		systemctl stop cron.service; crontab -r -u ann; cat /tmp/cron.job 2>/dev/null || echo no job`
)

func credential(value string) string {
	return `mkdir -p /run/systemd/system/user@.service.d; printf '[Service]\nSetCredential=pam.authtok.systemd-user:` + value + `\n' >/run/systemd/system/user@.service.d/home.conf; systemctl daemon-reload`
}

var zeroes = []string{"run0", "-u", "ann", "bash", "-c", inside}

// zero is run0 without a terminal.
func zero(options string) string {
	return "timeout 120 run0 " + options + " -u ann bash -c '" + inside + "' | cat"
}

// byPrograms are the rows 06 D11 and 12: one user becomes another.
var byPrograms = []visit{
	{name: "login", argv: []string{"login", "ann"}, answers: []string{password}, look: around},
	{name: "login, wrong, right", argv: []string{"login", "ann"}, answers: []string{"wrong", password}, look: "pwd"},
	{name: "login, nothing", argv: []string{"login", "ann"}, answers: []string{"", "", ""}},
	{name: "login, six wrong", argv: []string{"login", "ann"}, answers: []string{"w1", "w2", "w3", "w4", "w5", "w6"}},
	{name: "login, open", argv: []string{"login", "ann"}, answers: []string{password}, look: around, before: opened, after: closed},
	{name: "login, locked", argv: []string{"login", "ann"}, answers: []string{password}, look: "pwd", before: opened + "; homectl lock ann", after: closed},
	{name: "login with an alias", argv: []string{"login", "annie"}, answers: []string{password}, look: around},
	{name: "login with an area", user: "bea", argv: []string{"login", "bea%job"}, answers: []string{password}, look: around},
	{name: "login, default area", user: "bea", argv: []string{"login", "bea"}, answers: []string{password}, look: around},
	{name: "login, no area", user: "bea", argv: []string{"login", "bea%"}, answers: []string{password}, look: around},
	{name: "login, locked account", user: "lea", argv: []string{"login", "lea"}, answers: []string{password}},
	{name: "login, change demanded", user: "una", argv: []string{"login", "una"}, answers: []string{password, fresh, fresh, password}, look: "pwd",
		before: "PASSWORD='" + password + "' " + atMost + "homectl update una --password-change-now=yes </dev/null",
		after:  "PASSWORD='" + fresh + "' NEWPASSWORD='" + password + "' " + atMost + "homectl passwd una </dev/null || :"},
	{name: "su", argv: []string{"su", "-", "ann"}, answers: []string{password}, look: around},
	{name: "su, open", argv: []string{"su", "-", "ann"}, answers: []string{password}, look: around, before: opened, after: closed},
	{name: "su of another to an alias", argv: []string{"su", "bob", "-c", "exec su - annie"}, answers: []string{password}, look: around},
	{name: "su of another, wrong", argv: []string{"su", "bob", "-c", "exec su - ann"}, answers: []string{"w1", "w2", "w3", "w4", "w5", "w6"}},
	{name: "sudo of root", argv: []string{"sudo", "-u", "ann", "-i"}, answers: []string{password}, look: around},
	{name: "sudo of another", argv: []string{"setpriv", "--reuid=bob", "--regid=bob", "--clear-groups", "sudo", "-u", "ann", "sh", "-c", "cd; pwd; " + inside}, answers: []string{"bobs-password", password}},
	{name: "sudo without a terminal", script: "sudo -u ann sh -c 'pwd; echo $HOME'"},
	{name: "sudo, open", argv: []string{"sudo", "-u", "ann", "-i"}, look: around, before: opened, after: closed},
	{name: "sudo of hers", argv: []string{"setpriv", "--reuid=ann", "--regid=ann", "--clear-groups", "sudo", "id", "-un"}, answers: []string{"wrong", password}, before: opened, after: closed},
	{name: "passwd", user: "una", argv: []string{"passwd", "una"}, answers: []string{fresh, fresh, password}},
	{name: "passwd, and back by herself", user: "una", argv: []string{"setpriv", "--reuid=una", "--regid=una", "--clear-groups", "passwd"}, answers: []string{password, password, fresh}},
}

var (
	escapes = regexp.MustCompile(`\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]`)
	// The terminal prompt of systemd's programs: a hint that goes with the
	// first key, and a sign for each character.
	hint  = strings.NewReplacer("(press TAB for no echo) ", "", "🔐 ", "", "•", "", "\b", "", "\r", "")
	asks  = `(?i)(password|again|retype|login)[^\r\n]*:[ ]?(\x1b\[[0-9;?]*[a-zA-Z])*(\(press TAB for no echo\) ?)?(\x1b\[[0-9;?]*[a-zA-Z])*$`
	numbs = regexp.MustCompile(`\b60[0-9]{3}\b|\([0-9]+\)|session-c?[0-9]+`)
)

// plain takes from what a terminal showed the noise, and what differs by chance.
func plain(text string) []string {
	text = hint.Replace(escapes.ReplaceAllString(text, ""))
	text = numbs.ReplaceAllStringFunc(text, func(s string) string {
		switch s[0] {
		case '6':
			return "UID"
		case '(':
			return "(PID)"
		}
		return "session-N"
	})
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// sit has somebody sit at a terminal and returns what that showed.
func (p *product) sit(v visit) []string {
	p.t.Helper()
	l := p.Terminal(v.argv...)
	defer l.Close()
	var shown []string
	answers := v.answers
	const shell = `[$#] ?$`
	for {
		text, err := l.Terminal.Expect(`(`+asks+`)|(`+shell+`)`, 90*time.Second)
		shown = append(shown, plain(text)...)
		if err != nil {
			break
		}
		if regexp.MustCompile(shell).MatchString(text) {
			shown = append(shown[:len(shown)-1], "a shell") // its prompt has the machine's name
			shown = append(shown, "is "+strings.TrimSuffix(p.inspected(v.user), ", "))
			l.Send("echo BEG''IN; " + v.look + "; echo END''OF\n")
			text, err := l.Terminal.Expect(`ENDOF\r`, 40*time.Second)
			text = text[max(0, strings.LastIndex(text, "BEGIN")):]
			shown = append(shown, plain(strings.TrimSuffix(strings.TrimPrefix(text, "BEGIN"), "ENDOF\r"))...)
			if err != nil {
				return append(shown, "hangs")
			}
			l.Send("exit\n")
			break
		}
		if len(answers) == 0 {
			return append(shown, "asks once more")
		}
		if len(answers) == len(v.answers) {
			shown = append(shown, "is "+strings.TrimSuffix(p.inspected(v.user), ", "))
		}
		if answers[0] != unanswered {
			time.Sleep(time.Second) // systemd's programs empty the line before they read
			l.Send(answers[0])
			if len(answers[0]) != 1 || answers[0][0] >= ' ' {
				l.Send("\r")
			}
		}
		answers = answers[1:]
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), 90*time.Second)
	defer cancel()
	code, err := l.Terminal.Wait(ctx)
	if err != nil {
		return append(shown, "does not end")
	}
	return append(shown, fmt.Sprintf("ended %d", code))
}

// visits plays them, and returns what each showed.
func (p *product) visits(list []visit) transcript {
	p.t.Helper()
	all := transcript{}
	for _, v := range list {
		v.user = cmp.Or(v.user, "ann")
		if !v.keep {
			p.MustSh("setpriv --reuid=" + v.user + " --regid=" + v.user + " --clear-groups keyctl clear @u")
		}
		if v.before != "" {
			p.MustSh(v.before)
		}
		before := "is " + strings.TrimSuffix(p.inspected(v.user), ", ")
		began := time.Now()
		var shown []string
		if v.argv != nil {
			shown = p.sit(v)
		} else {
			asked, r := p.answering(v.answers, "exec </dev/null; "+strings.ReplaceAll(v.script, "@OWNER@", v.user))
			shown = append(plain(asked), plain(r.Stdout)...)
			shown = append(append(shown, plain(r.Stderr)...), fmt.Sprintf("ended %d", r.Code))
		}
		// What it left behind: the last one out closes the home.
		gone := func(yes func() bool) bool {
			for end := time.Now().Add(25 * time.Second); !yes(); time.Sleep(250 * time.Millisecond) {
				if time.Now().After(end) {
					return false
				}
			}
			return true
		}
		if !gone(func() bool { return p.classes(v.user) == "" }) {
			shown = append(shown, "leaves sessions: "+p.classes(v.user))
			p.MustSh("loginctl terminate-user " + v.user)
		}
		if v.after != "" {
			p.MustSh(v.after)
		}
		left := "closes"
		if !gone(func() bool { return p.state(v.user) == "inactive" }) {
			left = "stays " + p.state(v.user)
			p.with(password, "unlock "+v.user+"; homectl deactivate "+v.user)
		}
		shown = append(shown, left)
		all[v.name] = append([]string{before}, shown...)
		p.t.Logf("%s (%.0f s):\n\t%s", v.name, time.Since(began).Seconds(), strings.Join(shown, "\n\t"))
	}
	return all
}

// TestSameDoors has the same people at the same doors with ours and with
// systemd's daemon, module and shell, in one boot: what they see, where they
// come out and what is left behind is the same but for the differences that
// the files list.
func TestSameDoors(t *testing.T) {
	needLong(t)
	for _, part := range []struct {
		name   string
		visits []visit
	}{{"keys", withKeys}, {"ssh", overSSH}, {"manager", byManager}, {"jobs", byJobs}, {"programs", byPrograms}} {
		t.Run(part.name, func(t *testing.T) {
			p := install(t, vmtest.Options{Suite: vmtest.Forky})
			if v := p.SystemdVersion(); v != 262 {
				t.Fatalf("the lists of differences are those of systemd 262, this is %d", v)
			}
			p.enable()
			p.people()
			play := func(shell string) transcript {
				list := append([]visit(nil), part.visits...)
				for i := range list {
					list[i].script = strings.ReplaceAll(list[i].script, "@SHELL@", shell)
				}
				return p.visits(list)
			}
			ours := play("/usr/local/lib/hearth/homeshell")
			p.theirs()
			theirs := play("/usr/bin/systemd-home-fallback-shell")

			var names []string
			for _, v := range part.visits {
				names = append(names, v.name)
			}
			allowed := testenv.ReadDifferences(t, "testdata/TestSameDoors/"+part.name+".txt")
			compare(t, names, theirs, ours, allowed, "")
			allowed.Unused(t)
		})
	}
}

// people makes those who come to the doors: the homes of ann and bea are
// images, lea's account is locked, una changes her password, bob is the
// machine's own.
func (p *product) people() {
	p.t.Helper()
	p.MustSh("cp /etc/ssh/sshd_config.d/20-systemd-userdb.conf /var/tmp/")
	p.sshd()
	p.bob()
	p.MustSh(`rm -rf /etc/motd /etc/update-motd.d /run/motd*; sed -i '/pam_lastlog\|pam_motd\|pam_mail/d' /etc/pam.d/sshd /etc/pam.d/login
		cd /etc/systemd/user && printf '[Socket]\nListenStream=%%t/bus\n[Install]\nWantedBy=sockets.target\n' >testbus.socket
		printf '[Service]\nExecStart=sleep inf\n' >testbus.service && systemctl --global enable testbus.socket
		echo 'ann ALL=(root) ALL' >/etc/sudoers.d/ann`)
	p.keyed("ann", "--alias=annie --setenv=GREETING=hello --rate-limit-burst=1000")
	p.keyed("bea", "--default-area=job --rate-limit-burst=1000")
	if r := p.with(password, "activate bea"); r.Code != 0 {
		p.t.Fatal(r)
	}
	p.MustSh(`install -d -o bea -g bea /home/bea/Areas/job && ` + atMost + `homectl deactivate bea
		for user in una "lea --locked=yes --ssh-authorized-keys=@$(echo ~root)/.ssh/id_ed25519.pub"; do
			NEWPASSWORD='` + password + `' ` + atMost + `homectl create $user --storage=directory --enforce-password-policy=no --rate-limit-burst=1000
		done`)
}

// theirs puts systemd-homed, its module, its shell and its source of keys in
// the place of ours.
func (p *product) theirs() {
	p.t.Helper()
	p.MustSh(`pam-auth-update --disable hearth hearth-password 2>/dev/null || pam-auth-update --remove hearth hearth-password
		systemctl disable homed-linger.service; systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl enable systemd-homed.service && systemctl start systemd-homed.service
		pam-auth-update --enable systemd-homed; grep -q pam_systemd_home.so /etc/pam.d/common-auth; ! grep -q pam_home.so /etc/pam.d/common-*
		rm /etc/ssh/sshd_config.d/hearth.conf; cp /var/tmp/20-systemd-userdb.conf /etc/ssh/sshd_config.d/; systemctl restart ssh.service`)
	p.ownsBus("/usr/lib/systemd/systemd-homed")
}
