package stories

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// TestScarce lets what the service needs run out, one thing after the other:
// whose home is there gets in, changes record and password, and what cannot be
// done says why. With enough again all goes on as before. What logs in waits
// for the login manager, and is left to the long tests.
func TestScarce(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	p := install(t, vmtest.Options{Suite: vmtest.Forky, Payload: []vmtest.Item{tool(t, "hostile")}})
	// Each on a file system of its own, which keeps nothing for root.
	p.MustSh(`systemctl stop systemd-homed.service homed.service 2>/dev/null; umask 077
		for d in records references; do truncate -s 4M /$d.img; mkfs.ext4 -q -m 0 -N 64 /$d.img; done
		mkdir -p /var/lib/systemd/home /run/systemd/home && mount -o loop /records.img /var/lib/systemd/home && mount -o loop /references.img /run/systemd/home && rmdir /run/systemd/home/lost+found`)
	p.enable()
	for _, home := range []string{"ann --storage=luks --fs-type=ext4 --disk-size=64M " + cheap, "bob " + cheapDir} {
		p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create %s --rate-limit-burst=1000", password, atMost, home))
	}
	for _, s := range []struct {
		name string
		long bool
		f    func(*product)
	}{
		{"a hostile client", false, hostileClient},
		{"descriptors", false, scarceDescriptors},
		{"room for records", false, func(p *product) { p.scarceRoom("/var/lib/systemd/home", scarceRecords) }},
		{"room for references", true, func(p *product) { p.scarceRoom("/run/systemd/home", scarceReferences) }},
		{"room in the home", true, scarceHome},
	} {
		if s.long && !long() {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			p := &product{p.With(t), t}
			pid := p.MustSh("systemctl show -P MainPID homed.service")
			files := p.openFiles()
			s.f(p)
			if now := p.MustSh("systemctl show -P MainPID homed.service"); now != pid {
				t.Errorf("the service ended: process %s became %s", pid, now)
			}
			p.worksAgain()
			// Pollers and a connection may have come; a leak is one for each call.
			if now := p.openFiles(); now > files+4 {
				t.Errorf("%d open files, %d before", now, files)
			}
		})
	}
	t.Run("nothing is lost", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("systemctl restart homed.service")
		for _, user := range []string{"ann", "bob"} {
			if s := p.state(user); s != "inactive" {
				t.Errorf("%s is %s", user, s)
			}
		}
		if out := p.MustSh("homectl inspect -j bob | jq -c '[.realName,.niceLevel]'"); strings.TrimSpace(out) != `["Nr. 1",1]` {
			t.Errorf("after a restart bob is %s", out)
		}
		p.worksAgain()
	})
}

func (p *product) openFiles() int {
	p.t.Helper()
	var n int
	if _, err := fmt.Sscan(p.MustSh("ls /proc/$(systemctl show -P MainPID homed.service)/fd | wc -l"), &n); err != nil {
		p.t.Fatal(err)
	}
	return n
}

// worksAgain lets bob in, or with the long tests makes a home, lets everybody in
// and removes it.
func (p *product) worksAgain() {
	p.t.Helper()
	if !long() {
		p.ok("with bob -- test -s /home/bob/.identity")
		p.becomes("bob", "inactive")
		return
	}
	p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create cleo %s", password, atMost, cheapDir))
	for _, user := range []string{"ann", "bob", "cleo"} {
		p.ok("with " + user + " -- test -s /home/" + user + "/.identity")
		p.becomes(user, "inactive")
	}
	p.MustSh(atMost + "homectl remove cleo")
}

// noCleo demands that no home can be made, in these words, and that nothing of
// it is left.
func (p *product) noCleo(want string) {
	p.t.Helper()
	r := p.Sh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create cleo %s", password, atMost, cheapDir))
	if r.Code != 1 || !strings.Contains(r.Stderr, want) {
		p.t.Errorf("want exit status 1 and %q: %v", want, r)
	}
	p.denied(p.call("GetHomeByName s cleo"), "No home for user cleo known")
	if r := p.Sh("getent passwd cleo"); r.Code == 0 {
		p.t.Errorf("cleo became a user: %s", r.Stdout)
	}
	p.clean("cleo")
}

func scarceDescriptors(p *product) {
	limit := func(n string) {
		p.t.Helper()
		p.MustSh("prlimit --nofile=" + n + " --pid $(systemctl show -P MainPID homed.service)")
	}
	was := strings.TrimSpace(p.MustSh("prlimit --nofile --noheadings --raw -o SOFT,HARD --pid $(systemctl show -P MainPID homed.service) | tr -s ' ' :"))
	hard := was[strings.Index(was, ":")+1:]
	p.MustSh("homectl list") // whatever is opened once
	limit("4:" + hard)
	// Not what asks the name service, which waits for us to take its call.
	for _, what := range []string{"with ann -- true", "activate bob", "create cleo " + cheapDir} {
		if r := p.Sh(fmt.Sprintf("PASSWORD='%s' NEWPASSWORD='%[1]s' %s homectl --no-ask-password %s", password, atMost, what)); r.Code != 1 || strings.Contains(r.Stderr, "incorrect") {
			p.t.Errorf("%s, with no descriptor left: %v", what, r)
		}
	}
	for range 3 {
		if out := p.MustSh("homectl list --no-legend"); strings.Count(out, "inactive") != 2 {
			p.t.Errorf("the list is\n%s", out)
		}
	}
	p.denied(p.call("GetHomeByName s cleo"), "No home for user cleo known")
	limit(was)
	p.MustSh("getent passwd ann bob")
	p.clean("cleo")
}

// scarceRoom calls f while a file system is full to the last block and the last
// file.
func (p *product) scarceRoom(dir string, f func(*product)) {
	p.t.Helper()
	p.MustSh("i=0; while touch " + dir + "/.filler$i 2>/dev/null; do i=$((i+1)); done; cat /dev/zero >>" + dir + "/.filler0 2>/dev/null || :; ! touch " + dir + "/.more 2>/dev/null")
	f(p)
	p.MustSh("rm " + dir + "/.filler*")
}

func scarceRecords(p *product) {
	t := p.t
	p.noCleo("Not enough disk space for home cleo")
	p.denied(p.Sh("homectl inspect -E bob | jq -c '.userName=\"dan\"|del(.signature)' | "+atMost+"homectl register -"), "")
	users := []string{"bob"}
	if long() {
		users = append(users, "ann")
		l := p.login("ann", password)
		defer func() {
			logout(l)
			p.becomes("ann", "inactive")
		}()
	}
	for i := range 2 {
		name := fmt.Sprintf("Nr. %d", i)
		for _, user := range users {
			p.ok("update " + user + " --real-name='" + name + "'")
			p.MustSh(atMost + "homectl update " + user + " --offline --nice=" + fmt.Sprint(i))
			p.MustSh(fmt.Sprintf("PASSWORD='%s' NEWPASSWORD='%s' %s homectl passwd %s && PASSWORD='%[2]s' NEWPASSWORD='%[1]s' %[3]s homectl passwd %[4]s", password, fresh, atMost, user))
			if out := p.MustSh("jq -c '[.realName,.niceLevel]' /var/lib/systemd/home/" + user + ".identity"); strings.TrimSpace(out) != fmt.Sprintf("[%q,%d]", name, i) {
				t.Errorf("on the disk %s is %s", user, out)
			}
		}
	}
	if log := p.MustSh("journalctl -q -o cat -u homed.service -n 200"); !strings.Contains(log, "the disk has no room for the record") {
		t.Errorf("the journal does not say so:\n%s", log)
	}
}

func scarceReferences(p *product) {
	l := p.login("ann", password)
	l2 := p.login("ann", password)
	logout(l)
	time.Sleep(6 * time.Second) // longer than the end of a short reference waits
	if s := p.state("ann"); s != "active" {
		p.t.Errorf("with a login left ann is %s", s)
	}
	logout(l2)
	p.becomes("ann", "inactive")
	p.ok("with bob -- true")
	p.becomes("bob", "inactive")
}

func scarceHome(p *product) {
	p.ok("activate ann")
	p.MustSh("runuser -u ann -- sh -c 'cat /dev/zero >/home/ann/filler' 2>/dev/null || :; ! runuser -u ann -- sh -c 'echo x >/home/ann/more' 2>/dev/null")
	p.ok("update ann --real-name='Full House'")
	p.MustSh(fmt.Sprintf("PASSWORD='%s' NEWPASSWORD='%s' %s homectl passwd ann", password, fresh, atMost))
	p.MustSh("homectl deactivate ann")
	if r := p.with(password, "--no-ask-password activate ann"); r.Code != 1 {
		p.t.Errorf("with the old password: %v", r)
	}
	l := p.login("ann", fresh)
	l.Send("rm filler more; exit\n")
	l.Wait()
	p.becomes("ann", "inactive")
	p.MustSh(fmt.Sprintf("PASSWORD='%s' NEWPASSWORD='%s' %s homectl passwd ann", fresh, password, atMost))
	p.ok("with ann -- grep -q 'Full House' /home/ann/.identity")
	p.becomes("ann", "inactive")
}

// hostileClient has somebody without rights do what no client does, and looks
// what is left of it.
func hostileClient(p *product) {
	t := p.t
	r := p.Sh("timeout 300 setpriv --reuid=65534 --regid=65534 --clear-groups hostile bob")
	if r.Code != 0 {
		t.Errorf("%v", r)
	}
	if text := p.Sh("journalctl -q -u homed.service | grep -E 'panic|goroutine [0-9]+ \\[' | head").Stdout; text != "" {
		t.Errorf("the service panicked:\n%s", text)
	}
	var kib int
	if _, err := fmt.Sscan(p.MustSh("awk '/^VmRSS/{print $2}' /proc/$(systemctl show -P MainPID homed.service)/status"), &kib); err != nil || kib > 200<<10 {
		t.Errorf("it has %d KiB of memory, %v", kib, err)
	}
}
