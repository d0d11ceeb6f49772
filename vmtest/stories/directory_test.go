package stories

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// TestHomesInDirectories: homes that are a directory or a subvolume of the
// host open at login and close after it, go to the real systemd-homed and come
// back; one that the real one made opens too.
func TestHomesInDirectories(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	const images = "../../fixtures/systemd-262-images"
	fixture := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(images, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	p := install(t, vmtest.Options{
		Suite: vmtest.Forky, MachineID: strings.TrimSpace(string(fixture("machine-id"))),
		Payload: []vmtest.Item{
			{Data: fixture("local.private"), Guest: "/var/lib/systemd/home/local.private", Mode: 0o400},
			{Data: fixture("local.public"), Guest: "/var/lib/systemd/home/local.public", Mode: 0o444},
			{Data: fixture("directory/host.identity"), Guest: "/var/lib/systemd/home/fxdir.identity", Mode: 0o600},
			{Data: fixture("directory/fxdir.homedir.tar"), Guest: "/root/fxdir.tar", Mode: 0o600},
		},
	})
	p.MustSh(`tar -xpf /root/fxdir.tar --numeric-owner -C /home
		truncate -s 512M /pool.img && mkfs.btrfs -q /pool.img && mkdir /pool && mount -o loop /pool.img /pool
		truncate -s 64M /quota.img && mkfs.ext4 -q -O quota -E quotatype=usrquota /quota.img && mkdir /quota && mount -o loop,usrquota /quota.img /quota`)
	p.enable()

	t.Run("dora gets a home in a directory, sam in a subvolume", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("NEWPASSWORD='" + password + "' " + atMost + "homectl create dora --storage=directory " + cheap)
		p.MustSh("NEWPASSWORD='" + password + "' " + atMost + "homectl create sam --storage=subvolume --image-path=/pool/sam.homedir --disk-size=32M " + cheap)
		if got := p.MustSh("stat -c '%U %a %F' /home/dora.homedir; stat -c '%u %a %i' /pool/sam.homedir"); got != "dora 700 directory\n65534 700 256" {
			t.Errorf("the areas are %q", got)
		}
		if out := p.MustSh("homectl inspect dora"); !strings.Contains(out, "Storage: directory") {
			t.Errorf("inspect shows:\n%s", out)
		}
		p.MustSh("btrfs qgroup show -r --raw /pool | grep -w 33554432")
	})

	for _, name := range []string{"dora", "sam"} {
		t.Run(name+" logs in, writes and leaves", func(t *testing.T) {
			p := &product{p.With(t), t}
			l := p.login(name, password)
			l.Send("echo 'kept for " + name + "' > note; findmnt -n -o TARGET --target .; stat -c %U note .\n")
			l.Expect(`/home/`+name+`[\r\n]+`+name+`[\r\n]+`+name+`[\r\n]`, 20*time.Second)
			if name == "sam" {
				l.Send("dd if=/dev/urandom of=big bs=1M count=64 conv=fsync; rm -f big\n")
				l.Expect(`(?i)quota exceeded`, 60*time.Second)
			}
			logout(l)
			p.becomes(name, "inactive")
			p.MustSh("! mountpoint -q /home/" + name + "; test ! -e /home/" + name + "/note")
		})
	}

	t.Run("a quota bounds what tom writes", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("NEWPASSWORD='" + password + "' " + atMost + "homectl create tom --storage=directory --image-path=/quota/tom.homedir --disk-size=8M " + cheap)
		if r := p.with(password, "activate tom"); r.Code != 0 {
			t.Fatal(r)
		}
		if r := p.Sh("runuser -u tom -- dd if=/dev/zero of=/home/tom/big bs=1M count=16 conv=fsync"); r.Code == 0 || !strings.Contains(r.Stderr, "quota exceeded") {
			t.Errorf("writing more than the size: %v", r)
		}
		p.MustSh(atMost + "homectl deactivate tom && " + atMost + "homectl remove tom")
		p.clean("tom")
	})

	t.Run("a wrong password opens nothing", func(t *testing.T) {
		p := &product{p.With(t), t}
		if r := p.with("not-her-password", "activate dora </dev/null"); r.Code != 1 {
			t.Error(r)
		}
		p.MustSh("! mountpoint -q /home/dora")
	})

	t.Run("sam gets a larger quota, dora none", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.ok("activate sam")
		p.ok("resize sam 48M")
		p.MustSh("btrfs qgroup show -r --raw /pool | grep -w 50331648")
		if got := p.MustSh("homectl inspect sam --json=short | jq '[.status[] | .diskSize == 50331648, .diskUsage > 0, .diskUsage + .diskFree == .diskSize]' -c"); strings.TrimSpace(got) != "[true,true,true]" {
			t.Errorf("inspect shows %s: %s", got, p.MustSh("homectl inspect sam --json=short | jq -c .status"))
		}
		p.MustSh(atMost + "homectl deactivate sam")
		p.ok("resize sam 32M")
		p.MustSh("btrfs qgroup show -r --raw /pool | grep -w 33554432")
		p.says("resize dora 32M", "Operation on home dora failed: Operation not supported on file system")
	})

	t.Run("what the real daemon made opens", func(t *testing.T) {
		p := &product{p.With(t), t}
		if r := p.with("fixture-pw-1", "activate fxdir"); r.Code != 0 {
			t.Fatal(r)
		}
		if got := p.MustSh("stat -c '%U %a' /home/fxdir /home/fxdir/.identity /home/fxdir/.bashrc"); got != "fxdir 700\nfxdir 600\nfxdir 644" {
			t.Errorf("owners and modes are %q", got)
		}
		p.MustSh(atMost + "homectl deactivate fxdir")
	})

	t.Run("the real daemon opens what ours made, and back", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("pam-auth-update --disable hearth hearth-password; systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
		p.ownsBus("/usr/lib/systemd/systemd-homed")
		for _, name := range []string{"dora", "sam"} {
			if r := p.Sh("PASSWORD='" + password + "' " + atMost + "/usr/bin/homectl activate " + name); r.Code != 0 {
				t.Fatal(r)
			}
			if got := p.MustSh("cat /home/" + name + "/note"); got != "kept for "+name {
				t.Errorf("the note reads %q", got)
			}
			p.MustSh("echo theirs > /home/" + name + "/theirs; chown " + name + ": /home/" + name + "/theirs; " + atMost + "/usr/bin/homectl deactivate " + name)
		}
		p.MustSh("systemctl stop systemd-homed.service && systemctl enable --now homed.service")
		p.ownsBus("/usr/local/lib/hearth/homed")
		for _, name := range []string{"dora", "sam"} {
			if r := p.with(password, "activate "+name); r.Code != 0 {
				t.Fatal(r)
			}
			if got := p.MustSh("stat -c %U /home/" + name + "/theirs; cat /home/" + name + "/theirs"); got != name+"\ntheirs" {
				t.Errorf("what the real daemon's session left reads %q", got)
			}
			p.MustSh(atMost + "homectl deactivate " + name)
		}
	})

	t.Run("a home without a record is found and adopted", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("systemctl stop homed.service; rm /var/lib/systemd/home/dora.identity; systemctl start homed.service")
		if s := p.state("dora"); s != "unfixated" {
			t.Fatalf("without its record dora is %s", s)
		}
		if r := p.with(password, "activate dora"); r.Code != 0 {
			t.Fatal(r)
		}
		if got := p.MustSh("stat -c %U /home/dora /home/dora/note"); got != "dora\ndora" {
			t.Errorf("owners are %q", got)
		}
		p.MustSh(atMost + "homectl deactivate dora")
	})

	t.Run("homes are removed whole", func(t *testing.T) {
		p := &product{p.With(t), t}
		for _, name := range []string{"dora", "sam"} {
			p.MustSh(atMost + "homectl remove " + name)
			p.clean(name)
		}
		p.MustSh("test ! -e /home/dora.homedir; test ! -e /pool/sam.homedir; ! btrfs subvolume list /pool | grep .")
	})

	t.Run("a home of the default storage is encrypted", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("NEWPASSWORD='" + password + "' " + atMost + "homectl create eve --fs-type=ext4 --disk-size=64M " + cheap)
		p.MustSh("test -f /home/eve.home; " + atMost + "homectl remove eve")
	})
}
