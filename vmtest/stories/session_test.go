package stories

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// probe writes down what a session is like, without what differs from one to
// the next.
const probe = `#!/bin/bash
{
	echo "umask $(umask) nice $(ps -o ni= -p $$ | tr -d ' ') files $(ulimit -Sn) $(ulimit -Hn)"
	grep -E '^Cap(Inh|Bnd|Amb)' /proc/self/status
	sed "s/session-[^.]*/session-ID/" /proc/self/cgroup
	env | grep -E '^(FOO|EMAIL|TZ|LANG|LANGUAGE|HOME|SHELL_PROMPT_PREFIX|XDG_[A-Z_]*|DBUS_SESSION_BUS_ADDRESS)=' | sed "s/^XDG_SESSION_ID=.*/XDG_SESSION_ID=ID/" | sort
	loginctl show-session "$XDG_SESSION_ID" -p Class -p Type -p Service -p Remote -p Seat -p VTNr -p Active -p State | sort
	systemctl show "session-$XDG_SESSION_ID.scope" -p MemoryMax -p TasksMax -p CPUWeight -p IOWeight -p RuntimeMaxUSec | sort
	systemctl show "user-$(id -u).slice" -p TasksMax -p MemoryMax | sort
	systemctl is-active "user@$(id -u).service"
	echo "devices: $(grep -i device "/run/systemd/sessions/$XDG_SESSION_ID")"
} >"/tmp/probe.$1" 2>&1
sync
`

// identity is a record with all that a session is set up by.
const identity = `{"userName":"ann","storage":"luks","fileSystemType":"ext4","diskSize":67108864,"enforcePasswordPolicy":false,
"luksPbkdfType":"pbkdf2","luksPbkdfTimeCostUSec":1000,"umask":23,"niceLevel":5,"resourceLimits":{"RLIMIT_NOFILE":{"cur":2048,"max":4096}},
"environment":["FOO=a b"],"emailAddress":"a@x.test","timeZone":"Europe/Berlin","preferredLanguage":"C.UTF-8",
"capabilityAmbientSet":["CAP_WAKE_ALARM"],"capabilityBoundingSet":["CAP_WAKE_ALARM","CAP_KILL","CAP_SETUID","CAP_SETGID","CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_FOWNER"],"tasksMax":500}`

// TestSession: a login whose session our module registers and sets up is as
// one by pam_systemd, with systemd 262 and 257.
func TestSession(t *testing.T) {
	t.Parallel()
	session(t, vmtest.Forky)
}

func TestSessionTrixie(t *testing.T) {
	t.Parallel()
	session(t, vmtest.Trixie)
}

func session(t *testing.T, suite vmtest.Suite) {
	vmtest.Need(t)
	module := filepath.Join(t.TempDir(), "limits.so")
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", module, "testdata/limits.c").CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	p := install(t, vmtest.Options{Suite: suite, Payload: []vmtest.Item{{Host: module, Guest: "/opt/limits.so"}}})
	p.enable()
	p.MustSh("cat >/root/ann.json <<'EOF'\n" + identity + "\nEOF\nNEWPASSWORD='" + password + "' " + atMost + "homectl create --identity=/root/ann.json")
	p.MustSh("cat >/usr/local/bin/probe <<'EOF'\n" + probe + "EOF\nchmod +x /usr/local/bin/probe; cp /etc/pam.d/common-session /root/; grep -q pam_systemd.so /etc/pam.d/common-session")

	look := func(p *product, name string) string {
		t.Helper()
		l := p.login("ann", password)
		l.Send("probe " + name + "; echo looked\n")
		l.Expect(`looked[\r\n]`, 30*time.Second)
		who := p.MustSh("loginctl --no-legend list-sessions | grep ' ann '")
		logout(l)
		p.becomes("ann", "inactive")
		if left := p.Sh("loginctl --no-legend list-sessions | grep ' ann '").Stdout; left != "" {
			t.Errorf("%s: after the logout there is still %s", name, left)
		}
		t.Logf("%s: %s", name, who)
		return p.MustSh("cat /tmp/probe." + name)
	}
	// lines puts what stands before pam_systemd, or for it, into the stack.
	lines := func(edit string) {
		p.MustSh("cp /root/common-session /etc/pam.d/common-session; sed -i -E '" + edit + "' /etc/pam.d/common-session")
	}

	t.Run("as pam_systemd", func(t *testing.T) {
		p := &product{p.With(t), t}
		if p.SystemdVersion() >= 260 {
			p.MustSh("echo XDG_SESSION_EXTRA_DEVICE_ACCESS=render:kvm >/root/devices; sed -i '1i session required pam_env.so envfile=/root/devices' /root/common-session; cp /root/common-session /etc/pam.d/")
		}
		theirs := look(p, "theirs")
		lines(`s|^session.*pam_systemd.so.*|session optional pam_home.so register debug|`)
		ours := look(p, "ours")
		if theirs != ours {
			t.Errorf("pam_systemd makes\n%s\nours makes\n%s\n%s", theirs, ours, p.Sh("journalctl -b --no-pager -n 60 -t login").Stdout)
		}
		for _, want := range []string{
			"umask 0027 nice 5 files 2048 4096", "CapInh:\t0000000800000000", "FOO=a b", "EMAIL=a@x.test", "TZ=:Europe/Berlin", "LANG=C.UTF-8",
			"Class=user", "Type=tty", "Service=login", "XDG_SESSION_CLASS=user", "session-ID.scope", "TasksMax=500",
		} {
			if !strings.Contains(ours, want) {
				t.Errorf("no %q in\n%s", want, ours)
			}
		}
		if p.SystemdVersion() >= 260 && (!strings.Contains(ours, "XDG_SESSION_EXTRA_DEVICE_ACCESS=render:kvm\n") || !regexp.MustCompile(`devices: .*render.*kvm`).MatchString(ours)) {
			t.Errorf("no extra devices in\n%s", ours)
		}
	})

	t.Run("limits of an earlier module", func(t *testing.T) {
		p := &product{p.With(t), t}
		lines(`s|^session.*pam_systemd.so.*|session optional /opt/limits.so\nsession optional pam_home.so register|`)
		ours := look(p, "limited")
		for _, want := range []string{"MemoryMax=209715200", "TasksMax=50", "CPUWeight=100", "IOWeight=340", "RuntimeMaxUSec=1h"} {
			if !strings.Contains(ours, want+"\n") {
				t.Errorf("no %s in\n%s", want, ours)
			}
		}
	})

	if suite == vmtest.Trixie {
		return // the rest asks nothing of the login manager
	}
	t.Run("settings beside a registration", func(t *testing.T) {
		p := &product{p.With(t), t}
		// pam_systemd cannot be kept from reading the record: the umask that a
		// module behind it sets tells who came last.
		lines(`s|^(session.*pam_systemd.so.*)|\1\nsession optional pam_umask.so umask=0002\nsession optional pam_home.so settings|`)
		ours := look(p, "settings")
		if !strings.Contains(ours, "umask 0027 nice 10 ") || !strings.Contains(ours, "XDG_SESSION_ID=ID") {
			t.Errorf("with settings:\n%s", ours)
		}
	})

	t.Run("beside pam_systemd nothing counts twice", func(t *testing.T) {
		p := &product{p.With(t), t}
		lines(`s|^(session.*pam_systemd.so.*)|\1\nsession optional pam_home.so register|`)
		if ours := look(p, "both"); !strings.Contains(ours, " nice 5 ") {
			t.Errorf("after pam_systemd:\n%s", ours)
		}
	})
}
