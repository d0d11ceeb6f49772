package stories

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// TestLinger boots with two users whose services run without a login.
func TestLinger(t *testing.T) {
	for _, suite := range []vmtest.Suite{vmtest.Forky, vmtest.Trixie} {
		t.Run(string(suite), func(t *testing.T) {
			t.Parallel()
			p := install(t, vmtest.Options{Suite: suite, Console: true})
			p.enable()
			p.linger(t)
		})
	}
}

// marks waits until a service of hers has run that many times.
func (p *product) marks(name, want string) {
	p.t.Helper()
	got := ""
	for range 120 {
		if got = strings.TrimSpace(p.Sh("wc -l </home/" + name + "/mark").Stdout); got == want {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
	p.t.Errorf("the service of %s ran %q times, want %s\n%s", name, got, want, p.Sh("homectl list; systemctl list-units 'user@*' 'homed*'; journalctl -b --no-pager | grep -E 'pam_home|user@|homed-linger|mark' | tail -30").Stdout)
}

func (p *product) linger(t *testing.T) {
	reboot := func(p *product) *vmtest.Typist {
		p.Poweroff()
		p.Restart()
		return p.Console()
	}
	// rootLogsIn on the console, where a password agent may still be.
	rootLogsIn := func(c *vmtest.Typist) {
		c.Expect(`login: $`, 90*time.Second)
		c.Send("root\n")
		c.Expect(`Password: $`, 30*time.Second)
		c.Send("hearth\n")
		c.Expect(`# `, 30*time.Second)
	}
	for _, name := range []string{"ann", "bea"} {
		p.create(name)
		if r := p.with(password, "activate "+name); r.Code != 0 {
			t.Fatal(r)
		}
		p.MustSh(`d=/home/` + name + `/.config/systemd/user; mkdir -p $d/default.target.wants
			printf '[Service]\nType=oneshot\nExecStart=/bin/sh -c "echo ran >>$HOME/mark"\n' >$d/mark.service
			ln -s ../mark.service $d/default.target.wants/; chown -R ` + name + `: /home/` + name + `/.config; loginctl enable-linger ` + name)
		p.marks(name, "1")
	}

	t.Run("answered on the console", func(t *testing.T) {
		p := &product{p.With(t), t}
		c := reboot(p)
		asked := map[string]int{}
		for range 3 {
			text := c.Expect(`(ann|bea): `, 90*time.Second)
			name := text[len(text)-5 : len(text)-2]
			asked[name]++
			if name == "ann" && asked["ann"] == 1 {
				c.Send("wrong\n")
				continue
			}
			c.Send(password + "\n")
		}
		if asked["ann"] != 2 || asked["bea"] != 1 {
			t.Errorf("asked %v", asked)
		}
		c.Expect(`login: $`, 90*time.Second)
		p.marks("ann", "2")
		p.marks("bea", "2")
		shown := c.Transcript()
		if n := len(regexp.MustCompile(`Password for home`).FindAllString(shown, -1)); n != 3 || strings.Count(shown, "Sorry, try again. Password for home of user ann:") != 1 {
			t.Errorf("the console shows:\n%s", shown)
		}
		if out := p.MustSh(`systemctl is-system-running --wait || systemctl --failed --no-legend
			systemctl show -P ActiveState systemd-ask-password-console.service`); out != "running\ninactive" {
			t.Errorf("after the boot: %s", out)
		}
		p.MustSh(`a=$(systemctl show -P ActiveEnterTimestampMonotonic homed-linger.service); b=$(systemctl show -P ActiveEnterTimestampMonotonic systemd-user-sessions.service); test 0 -lt $a -a $a -lt $b`)
	})

	t.Run("not answered", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh(`mkdir -p /etc/systemd/homed.conf.d; printf '[Home]\nLingerPromptSec=12\n' >/etc/systemd/homed.conf.d/linger.conf`)
		c := reboot(p)
		first := c.Expect(`(ann|bea): `, 90*time.Second)
		c.Send("\n") // not now
		second := c.Expect(`(ann|bea): `, 12*time.Second)
		if first[len(first)-5:] == second[len(second)-5:] {
			t.Errorf("after an empty answer it asked again for %s", second)
		}
		rootLogsIn(c)
		if out := p.MustSh(`systemctl show -P Result homed-linger.service; systemctl is-active homed-linger.service; systemctl --failed --no-legend --plain | grep -v ^user@ || :`); out != "success\nactive" {
			t.Errorf("the boot's question ended as: %s", out)
		}
		if out := p.MustSh(`journalctl -b --no-pager -o cat -t homed-linger`); strings.Count(out, "stays closed for now") != 2 {
			t.Errorf("the journal says:\n%s", out)
		}
		// What user@ asks now does not touch the console, and holds up nobody.
		if s := p.state("ann"); s != "inactive" {
			t.Errorf("ann is %s", s)
		}
		l := p.login("ann", password)
		p.marks("ann", "3")
		logout(l)
	})

	if p.SystemdVersion() >= 258 {
		t.Run("answered on Plymouth", func(t *testing.T) {
			needLong(t)
			p := &product{p.With(t), t}
			p.MustSh("tar -xf /usr/lib/hearth-guest/plymouth.tar -C / && systemctl daemon-reload; rm /etc/systemd/homed.conf.d/linger.conf")
			c := reboot(p)
			// Plymouth adds a colon, and shows the question anew with each key.
			asked := c.Expect(`(ann|bea)::`, 90*time.Second)
			c.Send(password + "\n")
			c.Expect(map[string]string{"ann": "bea", "bea": "ann"}[asked[len(asked)-5:len(asked)-2]]+`::`, 90*time.Second)
			c.Send(password + "\n")
			rootLogsIn(c)
			p.marks("ann", "4")
			p.marks("bea", "3")
			if out := p.MustSh(`systemctl is-system-running --wait || systemctl --failed --no-legend
				journalctl -b -o cat -u systemd-ask-password-plymouth.service | head -1; systemctl is-active homed-linger.service`); !strings.HasPrefix(out, "running\nStarted") || !strings.HasSuffix(out, "\nactive") {
				t.Errorf("after the boot: %s", out)
			}
		})
		return // who forwards the question is in TestUnits
	}
	t.Run("switched off", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("systemctl disable homed-linger.service; loginctl disable-linger bea")
		c := reboot(p)
		c.Expect(`login: $`, 60*time.Second)
		// Her manager asks, once she may log in.
		out := p.MustSh(`for i in $(seq 100); do grep -h ^Message= /run/systemd/ask-password/ask.* 2>/dev/null && exit; sleep .3; done`)
		if out != "Message=Password for home of user ann: " {
			t.Errorf("asked: %q\n%s", out, p.Sh("journalctl -b --no-pager | grep -E 'pam_home|user@|logind' | tail -20").Stdout)
		}
		p.Sh(`printf '+` + password + `' | socat -u - "UNIX-SENDTO:$(sed -n 's/^Socket=//p' /run/systemd/ask-password/ask.*)"`)
		p.marks("ann", "4")
		p.MustSh("! systemctl is-active homed-linger.service")
	})
}
