package stories

import (
	"fmt"
	"strings"
	"testing"

	"hearth/vmtest"
)

// TestBlobs keeps pictures beside a record: ours makes them, changes them, the
// real homectl changes them, the home carries them, and the real daemon has
// them too.
func TestBlobs(t *testing.T) {
	t.Parallel()
	p := install(t, vmtest.Options{Suite: vmtest.Forky})
	p.enable()
	p.MustSh(`mkdir /root/b /root/e; echo avatar1 >/root/b/avatar; echo extra >/root/b/extra; echo avatar2 >/root/avatar2; echo back >/root/back
		echo x >/root/b/.hidden; mkfifo /root/b/pipe; head -c 70000000 /dev/zero >/root/huge`)
	host, embedded := "/var/cache/systemd/home/ann", "/home/ann/.identity-blob"
	files := func(dir string) string {
		return strings.Join(strings.Fields(p.MustSh("cd "+dir+" && for f in $(ls -A); do echo $f:$(cat $f):$(stat -c %a:%U $f); done")), " ")
	}
	manifest := func() string {
		return strings.TrimSpace(p.MustSh(`homectl inspect --json=short ann | jq -r '.blobManifest // {} | to_entries[] | .key + ":" + .value[:8]' | paste -sd' '`))
	}
	check := func(t *testing.T, when, dir, want string) {
		t.Helper()
		if got := files(dir); got != want {
			t.Errorf("%s %s has %q, want %q", when, dir, got, want)
		}
	}

	t.Run("create", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create ann --storage=luks --fs-type=ext4 --disk-size=64M %s --blob=/root/b", password, atMost, cheap))
		check(t, "after create", host, "avatar:avatar1:644:root extra:extra:644:root")
		if got := manifest(); strings.Count(got, ":") != 2 {
			t.Errorf("manifest %s", got)
		}
		p.MustSh("test $(stat -c %a:%U " + host + ") = 755:root")
		p.ok("activate ann")
		check(t, "in the home", embedded, "avatar:avatar1:644:ann extra:extra:644:ann")
		p.MustSh("test $(stat -c %a:%U " + embedded + ") = 700:ann")
	})
	t.Run("update", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.ok("update ann --avatar=/root/avatar2 --blob=extra= --login-background=/root/back")
		want := "avatar:avatar2:644:%[1]s login-background:back:644:%[1]s"
		check(t, "after update", host, fmt.Sprintf(want, "root"))
		check(t, "after update", embedded, fmt.Sprintf(want, "ann"))
		p.ok("update ann --real-name=Ann")
		check(t, "after another update", host, fmt.Sprintf(want, "root"))
		if r := p.with(password, "update ann --avatar=/root/huge"); r.Code == 0 || !strings.Contains(r.Stderr, "File too large") {
			t.Errorf("a huge picture: %v", r)
		}
		for args, text := range map[string]string{"--avatar=/root/b": "Provided blob is not a regular file: /root/b", "-b =/root/back": "Can't parse blob file assignment: =/root/back", "-b .hid=/root/back": "Invalid blob filename: .hid"} {
			if r := p.with(password, "update ann "+args); r.Code != 1 || !strings.Contains(r.Stderr, text) {
				t.Errorf("%s: %v", args, r)
			}
		}
	})
	t.Run("the real homectl", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh(fmt.Sprintf("PASSWORD='%s' %s /usr/bin/homectl update ann --blob=extra=/root/b/extra", password, atMost))
		check(t, "after its update", host, "avatar:avatar2:644:root extra:extra:644:root login-background:back:644:root")
		p.MustSh(fmt.Sprintf("PASSWORD='%s' %s /usr/bin/homectl update ann --offline --blob=/root/e --avatar=/root/avatar2", password, atMost))
		check(t, "after its offline update", host, "avatar:avatar2:644:root")
		p.MustSh(atMost + "homectl deactivate ann")
		p.ok("activate ann")
		check(t, "after the next activation", embedded, "avatar:avatar2:644:ann")
	})
	t.Run("what a user puts there", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh(`(cd ` + embedded + ` && rm avatar && ln -s /etc/shadow avatar && cp /etc/passwd extra && mkfifo pipe && chown -h ann: *)
			rm -r ` + host + `; ` + atMost + ` homectl deactivate ann`)
		p.ok("activate ann")
		if got := p.Sh("ls -A " + host + "; cat " + host + "/*").Stdout; strings.Contains(got, "root:") {
			t.Errorf("from the home came %s", got)
		}
		p.ok("update ann --avatar=/root/avatar2")
		check(t, "after an update", embedded, "avatar:avatar2:644:ann")
		// The cache is lost: the home has the pictures.
		p.MustSh("rm -r " + host + "; " + atMost + "homectl deactivate ann")
		p.ok("activate ann")
		check(t, "from the home", host, "avatar:avatar2:644:root")
		p.MustSh(atMost + "homectl deactivate ann")
	})
	t.Run("hand over", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
		real := func(args string) {
			t.Helper()
			p.MustSh(fmt.Sprintf("PASSWORD='%s' %s /usr/bin/homectl %s", password, atMost, args))
		}
		real("activate ann")
		check(t, "with the real daemon", host, "avatar:avatar2:644:root")
		real("update ann --avatar=/root/b/avatar --login-background=/root/back")
		real("deactivate ann")
		p.MustSh("systemctl stop systemd-homed.service && systemctl enable --now homed.service")
		p.ownsBus("/usr/local/lib/hearth/homed")
		p.ok("activate ann")
		check(t, "after the real daemon", embedded, "avatar:avatar1:644:ann login-background:back:644:ann")
		p.MustSh(atMost + "homectl deactivate ann; " + atMost + "homectl remove ann; test ! -e " + host)
	})
}
