package stories

import (
	"strings"
	"testing"

	"hearth/vmtest"
)

// TestFailuresLeaveNothing shows what users see when things go wrong, and that
// nothing stays behind.
func TestFailuresLeaveNothing(t *testing.T) {
	t.Parallel()
	p := install(t, vmtest.Options{Suite: vmtest.Forky})
	// A file system for homes that is soon full.
	p.MustSh("fallocate -l 160M /small && mkfs.ext4 -q -m 0 /small && mount -o loop /small /home")
	p.enable()
	p.create("ann")

	fails := func(t *testing.T, r vmtest.Result, want string) {
		t.Helper()
		if r.Code != 1 || !strings.Contains(r.Stderr, want) {
			t.Errorf("want exit status 1 and %q, got %v", want, r)
		}
		if strings.Contains(r.Stdout+r.Stderr, password) {
			t.Error("the password is in the output")
		}
	}

	t.Run("wrong password", func(t *testing.T) {
		p := &product{p.With(t), t}
		r := p.with("wrong", "authenticate ann </dev/null")
		fails(t, r, "Password incorrect or not sufficient")
		r = p.with("wrong", "activate ann </dev/null")
		fails(t, r, "Password incorrect or not sufficient")
		p.MustSh("test ! -e /dev/mapper/home-ann; ! losetup -l -n -O BACK-FILE | grep ann; ! getfattr -n user.home-dirty /home/ann.home 2>/dev/null")
	})

	t.Run("absent image", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("mv /home/ann.home /home/elsewhere")
		if s := p.state("ann"); s != "absent" {
			t.Errorf("without its image ann is %s", s)
		}
		fails(t, p.with(password, "activate ann"), "Home of user ann is currently absent")
		p.MustSh("mv /home/elsewhere /home/ann.home")
		if s := p.state("ann"); s != "inactive" {
			t.Errorf("with its image back ann is %s", s)
		}
	})

	t.Run("unknown home", func(t *testing.T) {
		p := &product{p.With(t), t}
		fails(t, p.with(password, "activate bob"), "No home for user bob known")
	})

	t.Run("rewritten record", func(t *testing.T) {
		p := &product{p.With(t), t}
		before := p.MustSh("id ann")
		for _, edit := range []string{
			`jq '.memberOf = ["root"]'`,
			`jq '.memberOf = ["root"] | del(.signature)'`,
			`jq '.memberOf = ["root"] | .lastChangeUSec += 1'`,
			`jq '.memberOf = ["root"] | .uid = 0 | .lastChangeUSec += 1 | del(.signature)'`,
			`jq 'del(.signature, .privileged) | .locked = true | .lastChangeUSec += 1'`,
			"tr a b",
			"head -c 0",
		} {
			if r := p.with(password, "activate ann"); r.Code != 0 {
				t.Fatalf("before %s: %v", edit, r)
			}
			p.MustSh(`cd /home/ann && cp .identity /tmp/before && ` + edit + ` </tmp/before >.identity && cd / && homectl deactivate ann`)
			// It rules nothing, shuts nobody out, and is written anew.
			if r := p.with(password, "activate ann"); r.Code != 0 {
				t.Fatalf("%s: %v", edit, r)
			}
			p.MustSh("cmp /tmp/before /home/ann/.identity && homectl deactivate ann")
			fails(t, p.with("wrong", "activate ann </dev/null"), "not sufficient")
			if after := p.MustSh("id ann"); after != before {
				t.Errorf("%s: ann was %s and is %s", edit, before, after)
			}
		}
	})

	t.Run("full disk", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh(`fallocate -l $(( $(stat -f -c '%a*%S' /home) - 5*1024*1024 )) /home/filler; sync; df -m --output=avail /home`)
		r := p.Sh("NEWPASSWORD='" + password + "' " + atMost + "homectl create bob --storage=luks --fs-type=ext4 --disk-size=64M " + cheap)
		fails(t, r, "Not enough disk space for home bob")
		p.clean("bob")
		if r := p.Sh("getent passwd bob"); r.Code == 0 {
			t.Errorf("bob became a user: %s", r.Stdout)
		}
		l := p.login("ann", password)
		logout(l)
		p.becomes("ann", "inactive")
	})

	t.Run("nothing of a password in the journal", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("! journalctl -b -o export --no-pager | grep -F '" + password + "'")
	})
}
