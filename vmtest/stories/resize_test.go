package stories

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// TestResize changes the size of homes, open and closed, ours by the real
// systemd-homed and its by ours, and cuts a resize off.
func TestResize(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	p := install(t, vmtest.Options{Suite: vmtest.Forky})
	p.enable()
	const create = "NEWPASSWORD='" + password + "' " + atMost
	p.MustSh(create + "homectl create ann --storage=luks --fs-type=ext4 --disk-size=64M " + cheap)
	p.MustSh(create + "homectl create bea --storage=luks --fs-type=btrfs --disk-size=300M --auto-resize-mode=off " + cheap)

	t.Run("ext4", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.ok("activate ann")
		p.fill("ann")
		p.ok("resize ann 96M")
		p.sized("ann", 96)
		p.says("resize ann 64M", "Operation on home ann failed: File systems of this type can only be shrunk offline")
		p.MustSh(atMost + "homectl deactivate ann")
		p.ok("resize ann 80M")
		p.sized("ann", 80)
		p.sound("ann")
		p.ok("activate ann")
		p.whole("ann")
		// By the record, in two steps.
		p.ok("update ann --disk-size=100M --real-name=Ann")
		p.sized("ann", 100)
		if r := p.with(password, "update ann --disk-size=60M"); r.Code != 1 || !strings.Contains(r.Stderr, `Try again with "homectl resize ann"`) {
			t.Errorf("an update that cannot resize: %v", r)
		}
		p.MustSh(atMost + "homectl deactivate ann")
		p.ok("resize ann")
		p.sized("ann", 60)
		p.sound("ann")
	})
	t.Run("btrfs", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.ok("activate bea")
		p.fill("bea")
		p.ok("resize bea 400M")
		p.sized("bea", 400)
		p.ok("resize bea 320M")
		p.sized("bea", 320)
		p.whole("bea")
		// The real homectl as a client.
		p.MustSh("PASSWORD='" + password + "' " + atMost + "/usr/bin/homectl resize bea 380M")
		p.sized("bea", 380)
		p.MustSh(atMost + "homectl deactivate bea")
		p.ok("resize bea min")
		if n := p.size("bea"); n < 274 || n > 330 {
			t.Errorf("the smallest image has %d MiB", n)
		}
		p.ok("resize bea 350M")
		p.sized("bea", 350)
		p.sound("bea")
	})
	t.Run("rebalance", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("homectl rebalance 2>&1 | grep 'No homes needed rebalancing.'")
		p.MustSh(create + "homectl create dan --storage=luks --fs-type=btrfs --disk-size=300M --rebalance-weight=50 " + cheap)
		p.ok("activate dan")
		p.fill("dan")
		for end := time.Now().Add(60 * time.Second); p.size("dan") == 300; time.Sleep(time.Second) {
			if time.Now().After(end) {
				t.Fatal("dan got no more space by itself")
			}
		}
		p.MustSh(atMost + "homectl rebalance 2>&1 | grep 'Completed rebalancing.'")
		p.whole("dan")
		if got := p.MustSh("jq -c '[.perMachine[].rebalanceWeight]' /var/lib/systemd/home/dan.identity"); strings.TrimSpace(got) != "[50]" {
			t.Errorf("dan has weight %s", got)
		}
		p.MustSh(atMost + "homectl deactivate dan")
		p.sound("dan")
		p.MustSh(atMost + "homectl remove dan")
	})
	t.Run("cut off", func(t *testing.T) {
		p := &product{p.With(t), t}
		for _, c := range []struct{ user, size, after string }{{"ann", "110M", "0.2"}, {"bea", "310M", "0.5"}} {
			p.MustSh(fmt.Sprintf("(PASSWORD='%s' homectl resize %s %s >/dev/null 2>&1 &) ; sleep %s; systemctl kill -s KILL homed.service; sleep 1; systemctl restart homed.service", password, c.user, c.size, c.after))
			l := p.login(c.user, password)
			l.Send("ls | head\n")
			p.whole(c.user)
			logout(l)
			p.becomes(c.user, "inactive")
			p.sound(c.user)
		}
	})
	t.Run("hand over", func(t *testing.T) {
		p := &product{p.With(t), t}
		real := func(args string) {
			t.Helper()
			p.MustSh(fmt.Sprintf("PASSWORD='%[1]s' NEWPASSWORD='%[1]s' %[2]s /usr/bin/homectl %[3]s", password, atMost, args))
		}
		p.ok("resize ann 80M")
		p.ok("resize bea 350M")
		p.MustSh("systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
		real("activate ann")
		p.whole("ann")
		real("resize ann 100M")
		p.sized("ann", 100)
		real("deactivate ann")
		real("resize ann 72M")
		p.MustSh(fmt.Sprintf("PASSWORD='%s' NEWPASSWORD='%s' %s /usr/bin/homectl passwd ann", password, fresh, atMost))
		real("resize bea 330M")
		real("activate bea")
		real("resize bea 420M")
		p.whole("bea")
		real("deactivate bea")
		real("create carl --storage=luks --fs-type=btrfs --disk-size=300M --auto-resize-mode=off --luks-pbkdf-type=pbkdf2 --luks-pbkdf-time-cost=1ms --enforce-password-policy=no")
		p.MustSh("systemctl stop systemd-homed.service; systemctl enable homed.service && systemctl restart homed.service")
		p.refused("ann", password)
		if r := p.passwd("ann", fresh, password); r.Code != 0 {
			t.Errorf("the password that the real daemon set: %v", r)
		}
		p.refused("ann", fresh)
		for _, c := range []struct {
			user string
			has  int
		}{{"ann", 72}, {"bea", 420}} {
			p.sized(c.user, c.has)
			p.ok("activate " + c.user)
			p.whole(c.user)
			p.MustSh(atMost + "homectl deactivate " + c.user)
		}
		p.ok("resize ann 90M")
		p.ok("resize carl 340M")
		p.sized("carl", 340)
		p.ok("activate carl")
		p.fill("carl")
		p.ok("resize carl 310M")
		p.sized("carl", 310)
		p.whole("carl")
		p.MustSh(atMost + "homectl deactivate carl")
		for _, u := range []string{"ann", "bea", "carl"} {
			p.sound(u)
		}
	})
}

// fill puts files into an open home, and notes their digests.
func (p *product) fill(user string) {
	p.t.Helper()
	p.MustSh(fmt.Sprintf("cd /home/%[1]s && for i in $(seq 12); do head -c 700000 /dev/urandom >f$i; done; rm f2 f5 f8; chown %[1]s: f*; sha256sum f* >/root/%[1]s.sums", user))
}

// whole checks that they are all there.
func (p *product) whole(user string) {
	p.t.Helper()
	p.MustSh(fmt.Sprintf("cd /home/%[1]s && sha256sum -c --quiet /root/%[1]s.sums", user))
}

// size is that of an image in MiB.
func (p *product) size(user string) int {
	p.t.Helper()
	var n int
	text := p.MustSh("stat -c %s /home/" + user + ".home")
	if _, err := fmt.Sscan(text, &n); err != nil {
		p.t.Fatalf("%q: %v", text, err)
	}
	return n >> 20
}

// sized checks an image's size, and where it is open that its file system
// makes use of it.
func (p *product) sized(user string, mib int) {
	p.t.Helper()
	if n := p.size(user); n != mib {
		p.t.Errorf("the image of %s has %d MiB, want %d", user, n, mib)
	}
	if p.state(user) != "active" {
		return
	}
	var n int
	text := p.MustSh("stat -f -c '%b*%S/1048576' /home/" + user + " | sed 's/.*/echo $((&))/' | sh")
	if _, err := fmt.Sscan(text, &n); err != nil || n < mib*8/10-18 || n > mib-18 {
		p.t.Errorf("the file system of %s has %q MiB in an image of %d", user, text, mib)
	}
}

// sound has other programs judge a closed image.
func (p *product) sound(user string) {
	p.t.Helper()
	p.MustSh(fmt.Sprintf(`image=/home/%[1]s.home
		sfdisk --verify $image 2>&1 | grep -q 'No errors detected' || { sfdisk --verify $image; exit 1; }
		! getfattr -n user.home-resize $image 2>/dev/null
		set -- $(sfdisk --json $image | jq '.partitiontable.partitions[0] | .start*512, .size*512')
		loop=$(losetup --find --show --offset $1 --sizelimit $2 $image)
		printf '%%s' '%[2]s' | cryptsetup open --key-file=- $loop check
		case $(blkid -o value -s TYPE /dev/mapper/check) in
		ext4) e2fsck -fn /dev/mapper/check ;;
		btrfs) btrfs check --readonly /dev/mapper/check ;;
		*) false ;;
		esac; code=$?
		cryptsetup close check; losetup -d $loop; exit $code`, user, password))

}
