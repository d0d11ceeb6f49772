package stories

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"hearth/vmtest"
)

// quirks are the peculiarities of systemd-homed 262 that docs/quirks.md counts
// and that can be seen from outside: a script that says what came of it, and
// what it says with our daemon and with the real one. U is a user that the
// script may make; b calls a method, st says the state of the home.
var quirks = []struct {
	id, script, ours, theirs string // patterns
}{
	{"Q2", `mk; on; b AcquireHome ssb $U '{}' false >/dev/null; sleep 2; st; off`, `(?m)^active`, `(?m)^inactive`},
	{"Q4", `mk; on; systemd-run --quiet -p Type=exec --unit=q4-$U --working-directory=/home/$U sleep 1000
		b DeactivateHome s $U >/dev/null; st; b ActivateHome ss $U "$S" && echo answered; systemctl stop q4-$U; off`,
		`(?s)lingering.*answered`, `(?s)lingering.*timed out`},
	{"Q5", `mkluks; on; b LockHome s $U; b AcquireHome ssb $U '{}' false >/dev/null; b ReleaseHome s $U; b UnlockHome ss $U "$S"; off`,
		`currently locked`, `timed out`},
	{"Q7", `mkdir /home/$U@example.org.homedir; sleep 2; st; rmdir /home/$U@example.org.homedir`, `unfixated`, `No home for user`},
	{"Q8", `mkdir /home/$U.homedir; sleep 2; st; b AuthenticateHome ss $U "$S" >/dev/null; st; rm -r /home/$U.homedir`,
		`(?s)unfixated\n.*\nunfixated`, `(?s)unfixated\n.*\ninactive`},
	{"Q9", `mk; r=$(homectl inspect -j $U | jq -c --arg p "$P" --argjson t $(date +%s%6N) 'del(.binding, .status, .signature) + {aliases: ["also-me"], lastChangeUSec: $t, secret: {password: [$p]}}')
		b UpdateHome s "$r" && echo changed; b ActivateHome ss $U "$S" && echo active; off`,
		`(?s)Aliases of an existing home cannot be changed.*active`, `(?s)changed.*Remote address changed`},
	{"Q12", `b CreateHome s '{"userName":"'$U'","disposition":"regular","privileged":{"hashedPassword":["$y$j9T$x$y"]}}'`, `Required key not available`, `Required key not available`},
	{"Q13", `b ActivateHome ss root '{'; mk; b AuthenticateHome ss $U '{"password":'`, `(?s)No home for user root.*1:`, `Success`},
	{"Q14", `busctl call org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.DBus.Introspectable Introspect | grep -o 'name=.\{1,3\}der'`, `der`, `der`},
	{"Q17", `mk; b AcquireHome ssb $U '{}' false >/dev/null; ls /run/systemd/home/$U.dont-suspend`, `cannot access`, `(?m)^/run/`},
	{"Q20", `mk; on; systemd-run --quiet --unit=q20-$U holdref RefHome $U; sleep 3; systemctl restart systemd-homed.service; st; systemctl stop q20-$U; sleep 8; st; off`,
		`^active\ninactive$`, `^active\nactive$`},
	{"Q24", `mk --rate-limit-burst=4; for i in 1 2 3 4 5; do runuser -u daemon -- busctl --timeout=60 call $M AcquireHome ssb $U '{}' false >/dev/null 2>&1; done; b AuthenticateHome ss $U "$S" && echo came in`,
		`came in`, `Too many login attempts`},
	// Last: the real daemon does not recover from this one.
	{"Q19", `mkluks; on; b LockHome s $U; systemctl restart systemd-homed.service; st`, `(?m)^locked`, `(?m)^active`},
}

// TestQuirks does the same with our daemon and with the real one: what is the
// same stays so, and what we mend is seen to differ. In between it does a
// sample of the steps of TestSameScript.
func TestQuirks(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	p := install(t, vmtest.Options{Suite: vmtest.Forky, Payload: []vmtest.Item{tool(t, "holdref")}})
	p.enable()
	p.quirks("o", func(i int) string { return quirks[i].ours })
	// Nothing of a locked home can be deleted.
	p.MustSh("busctl call " + manager + `UnlockHome ss oq19 '{"password":["` + password + `"]}'`)
	if p.SystemdVersion() == 262 {
		p.MustSh("useradd -u 1500 plain; rm -rf /home/plain")
		p.sameSteps(stepSample(t), stepDifferences(t))
	} else {
		p.MustSh(wipe + "systemctl disable homed.service; systemctl daemon-reload; systemctl start systemd-homed.service")
		p.ownsBus("/usr/lib/systemd/systemd-homed")
	}
	p.quirks("t", func(i int) string { return quirks[i].theirs })
}

func (p *product) quirks(side string, want func(int) string) {
	p.t.Helper()
	for i, q := range quirks {
		script := fmt.Sprintf(`exec 2>&1
			M="%s"; U=%s; P='%s'; S='{"password":["'$P'"]}'
			b() { timeout 60 busctl --timeout=12 call $M "$@"; }
			st() { b GetHomeByName s $U | sed 's/^usussso [0-9]* "\([a-z-]*\)".*/\1/'; }
			mk() { NEWPASSWORD=$P timeout 60 homectl create $U %s "$@"; }
			mkluks() { NEWPASSWORD=$P timeout 60 homectl create $U --storage=luks --fs-type=ext4 --disk-size=64M %s; }
			on() { PASSWORD=$P timeout 60 homectl activate $U; }
			off() { b DeactivateHome s $U >/dev/null 2>&1; }
			%s`, strings.TrimSpace(manager), side+strings.ToLower(q.id), password, cheapDir, cheap, q.script)
		r := p.Sh(script)
		if !regexp.MustCompile(want(i)).MatchString(strings.TrimSpace(r.Stdout)) {
			p.t.Errorf("%s, %s: want %q, got\n%s", q.id, map[string]string{"o": "ours", "t": "the real daemon"}[side], want(i), r.Stdout)
		}
	}
}
