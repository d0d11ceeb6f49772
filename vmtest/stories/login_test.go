package stories

import (
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

const note = "what only ann may read 4711"

// TestHomeAtLogin is the main job: a home is made, opens when its owner logs
// in, closes when she leaves, and the real systemd-homed takes it from there.
func TestHomeAtLogin(t *testing.T) {
	t.Parallel()
	p := install(t, vmtest.Options{Suite: vmtest.Forky})
	p.enable()
	ordinaryDay(t, p)

	t.Run("over SSH with her password", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("systemctl start ssh.service")
		l := p.Terminal("ssh", "-o", "StrictHostKeyChecking=no", "-o", "PubkeyAuthentication=no", "ann@localhost")
		l.Expect(`(?i)password: ?$`, 30*time.Second)
		l.Send(password + "\n")
		l.Expect(`ann@.*\$ ?$`, 60*time.Second)
		l.Send("cat note; pwd\n")
		l.Expect(note+`[\r\n]+/home/ann[\r\n]`, 20*time.Second)
		logout(l)
		p.becomes("ann", "inactive")
	})

	t.Run("a crash of the daemon leaves the home open", func(t *testing.T) {
		p := &product{p.With(t), t}
		if r := p.with(password, "activate ann"); r.Code != 0 {
			t.Fatal(r)
		}
		pid := p.MustSh("systemctl show -P MainPID homed.service")
		p.MustSh("systemctl kill -s KILL homed.service")
		p.startedAnew(pid)
		if s := p.state("ann"); s != "active" {
			t.Errorf("after the crash ann is %s", s)
		}
		p.MustSh(atMost + "homectl deactivate ann")
		if s := p.state("ann"); s != "inactive" {
			t.Errorf("after deactivation ann is %s", s)
		}
	})

	t.Run("the real daemon opens what ours made, and back", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("pam-auth-update --disable hearth hearth-password; systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
		p.ownsBus("/usr/lib/systemd/systemd-homed")
		if out := p.MustSh("/usr/bin/homectl list"); !strings.Contains(out, "ann ") {
			t.Fatalf("the real daemon does not know ann:\n%s", out)
		}
		if r := p.Sh("PASSWORD='" + password + "' " + atMost + "/usr/bin/homectl activate ann"); r.Code != 0 {
			t.Fatal(r)
		}
		if got := p.MustSh("cat /home/ann/note"); got != note {
			t.Errorf("the note reads %q", got)
		}
		p.MustSh("echo theirs > /home/ann/theirs; chown ann: /home/ann/theirs; " + atMost + "/usr/bin/homectl deactivate ann")
		p.MustSh("systemctl stop systemd-homed.service && systemctl enable --now homed.service")
		p.ownsBus("/usr/local/lib/hearth/homed")
		if r := p.with(password, "activate ann"); r.Code != 0 {
			t.Fatal(r)
		}
		if got := p.MustSh("stat -c %U /home/ann/theirs; cat /home/ann/theirs"); got != "ann\ntheirs" {
			t.Errorf("what the real daemon's session left reads %q", got)
		}
		p.MustSh(atMost + "homectl deactivate ann")
	})

	t.Run("cryptsetup alone opens it, as README says", func(t *testing.T) {
		p := &product{p.With(t), t}
		got := p.MustSh(`set -e
			loop=$(losetup --find --show --offset 1048576 --sizelimit $(( $(stat -c %s /home/ann.home) - 2097152 )) /home/ann.home)
			printf %s '` + password + `' | cryptsetup open --key-file=- $loop rescue
			mount /dev/mapper/rescue /mnt; cat /mnt/ann/note
			umount /mnt; cryptsetup close rescue; losetup --detach $loop`)
		if got != note {
			t.Errorf("the note reads %q", got)
		}
		if s := p.state("ann"); s != "inactive" {
			t.Errorf("after that ann is %s", s)
		}
	})

	t.Run("a home is removed whole", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh(atMost + "homectl remove ann")
		p.clean("ann")
		if r := p.Sh("getent passwd ann"); r.Code == 0 {
			t.Errorf("ann is still a user: %s", r.Stdout)
		}
	})

	t.Run("uninstall takes exactly ours away", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh(inGuest + "/cmd/homed/system/install.sh uninstall")
		p.MustSh("test ! -e /usr/local/bin/homectl && test ! -e /usr/local/lib/hearth && test ! -e /usr/share/pam-configs/hearth")
		p.MustSh("! dpkg-divert --list | grep -q home1; dpkg --verify systemd-homed")
		p.MustSh("systemctl start systemd-homed.service")
		p.ownsBus("/usr/lib/systemd/systemd-homed")
	})
}

// TestHomeAtLoginTrixie is the ordinary day with systemd 257.
func TestHomeAtLoginTrixie(t *testing.T) {
	t.Parallel()
	p := install(t, vmtest.Options{Suite: vmtest.Trixie})
	p.enable()
	ordinaryDay(t, p)

	t.Run("over SSH with a key", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.sshd()
		p.keyed("bea", "")
		l := p.byKey("bea")
		if c := p.classes("bea"); c != "manager user" {
			t.Errorf("her sessions are %q", c)
		}
		if got := says(l, "echo $HOME $SHELL $XDG_SESSION_CLASS; pwd"); got != "/home/bea /bin/bash user\n/home/bea\n" {
			t.Errorf("her session has %s", got)
		}
		logout(l)
		p.becomes("bea", "inactive")
	})
}

func ordinaryDay(t *testing.T, p *product) {
	t.Run("ann gets a home", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.create("ann")
		if out := p.MustSh("homectl list"); !strings.Contains(out, "inactive") || !strings.Contains(out, "1 home areas listed.") {
			t.Errorf("list shows:\n%s", out)
		}
		if out := p.MustSh("homectl inspect ann"); !strings.Contains(out, "Storage: luks (strong encryption)") || !strings.Contains(out, "Login OK: yes") {
			t.Errorf("inspect shows:\n%s", out)
		}
		if out := p.MustSh("getent passwd ann"); !strings.HasPrefix(out, "ann:x:60") {
			t.Errorf("getent passwd shows %q", out)
		}
		// cryptsetup is the judge of the header.
		p.MustSh("dd if=/home/ann.home of=/header bs=1M skip=1 count=16 status=none && cryptsetup luksDump --dump-json-metadata /header >/dev/null && printf %s '" + password + "' | cryptsetup open --test-passphrase --key-file=- /header; rm /header")
	})

	t.Run("ann logs in, writes and leaves", func(t *testing.T) {
		p := &product{p.With(t), t}
		l := p.login("ann", password)
		l.Send("echo '" + note + "' > note; findmnt -n -o TARGET --target .; id -un; pwd\n")
		l.Expect(`/home/ann[\r\n]+ann[\r\n]+/home/ann[\r\n]`, 20*time.Second)
		if s := p.state("ann"); s != "active" {
			t.Errorf("while ann is logged in her home is %s", s)
		}
		logout(l)
		p.becomes("ann", "inactive")
		p.MustSh("! mountpoint -q /home/ann; test ! -e /home/ann/note; test ! -e /dev/mapper/home-ann; ! grep -c '" + note + "' /home/ann.home")
	})

	t.Run("a wrong password opens nothing", func(t *testing.T) {
		p := &product{p.With(t), t}
		l := p.Terminal("login", "ann")
		l.Expect(`Password: ?$`, 30*time.Second)
		l.Send("not-her-password\n")
		l.Expect(`(?i)incorrect|not sufficient|try again`, 30*time.Second)
		l.Close()
		p.becomes("ann", "inactive")
		p.MustSh("test ! -e /dev/mapper/home-ann; ! getfattr -n user.home-dirty /home/ann.home 2>/dev/null")
	})

	t.Run("the file is there at the next login", func(t *testing.T) {
		p := &product{p.With(t), t}
		l := p.login("ann", password)
		l.Send("cat note\n")
		l.Expect(note, 20*time.Second)
		logout(l)
		p.becomes("ann", "inactive")
	})
}
