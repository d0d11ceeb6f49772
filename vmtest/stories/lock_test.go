package stories

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// TestLock locks homes that are in use, looks for their keys, and lets those
// who wait in them go on.
func TestLock(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	p := install(t, vmtest.Options{Suite: vmtest.Forky})
	p.enable()
	for _, fs := range []struct{ user, fstype, size string }{{"ann", "ext4", "64M"}, {"bea", "btrfs", "280M"}} {
		t.Run(fs.fstype, func(t *testing.T) {
			p := &product{p.With(t), t}
			p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create %s --storage=luks --fs-type=%s --disk-size=%s %s", password, atMost, fs.user, fs.fstype, fs.size, cheap))
			p.lockStory(fs.user)
		})
	}
	t.Run("directory", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create dora --storage=directory --enforce-password-policy=no", password, atMost))
		p.ok("activate dora")
		p.says("lock dora", "Failed to lock home: Operation not supported on storage backend")
		p.MustSh(atMost + "homectl deactivate dora")
	})
	t.Run("lock-all", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.ok("activate bea")
		p.MustSh(fmt.Sprintf("PASSWORD='%s' SYSTEMD_PLEASE_SUSPEND_HOME=1 systemd-run --unit=sleeper -E PASSWORD -E SYSTEMD_PLEASE_SUSPEND_HOME homectl with ann -- sleep 1000", password))
		p.becomes("ann", "active")
		p.MustSh(atMost + "homectl lock-all")
		if got := p.state("ann") + " " + p.state("bea"); got != "locked active" {
			t.Errorf("ann and bea are %s", got)
		}
		// As bash has it when TAB is pressed, from the file that was installed.
		const press = `bash --norc -c '. /usr/local/share/bash-completion/completions/homectl
			COMP_LINE="$1 " COMP_POINT=$((${#1} + 1)); _homectl homectl "" ""; echo "${COMPREPLY[@]}"' bash `
		if got := p.MustSh(press + "'homectl unlock'; " + press + "'homectl deactivate'; " + press + "'homectl activate'"); got != "ann\nann bea\ndora" {
			t.Errorf("completed are %q", got)
		}
		p.ok("unlock ann")
		p.MustSh("systemctl stop sleeper.service")
		p.becomes("ann", "inactive")
		p.MustSh(atMost + "homectl deactivate bea")
	})
	t.Run("the machine sleeps", func(t *testing.T) {
		needLong(t)
		p := &product{p.With(t), t}
		if p.Runner() != "uml" {
			t.Skipf("no way to wake a guest of %s", p.Runner())
		}
		p.quickStop()
		p.create("zoe")
		p.create("yan")
		p.ok("activate yan")
		p.MustSh("sed -i 's/pam_home.so/& suspend=yes/' /etc/pam.d/common-*")
		l := p.login("zoe", password)
		if got := says(l, "echo dear zoe >letter; echo $SYSTEMD_HOME_SUSPEND"); got != "1\n" {
			t.Errorf("her session has SYSTEMD_HOME_SUSPEND=%s", got)
		}
		// The script of ours and systemd-sleep tell the service, then the kernel
		// is to sleep, which it never does where it waits for her home.
		p.MustSh("systemd-run --quiet --no-block --unit=lid systemctl suspend")
		p.sleepsAndWakes()
		if got := p.state("zoe") + " " + p.state("yan"); got != "locked active" {
			t.Errorf("after the sleep zoe and yan are %s", got)
		}
		if got := p.MustSh("for i in $(seq 100); do test -e /run/hearth-sync-on-suspend || break; sleep 0.2; done; cat /sys/power/sync_on_suspend"); got != "1" {
			t.Errorf("afterwards sync_on_suspend is %s", got)
		}
		if k := p.key("zoe"); !regexp.MustCompile(`^0{64}$`).MatchString(k) {
			t.Errorf("her key is %q", k)
		}
		if out := p.Sh("journalctl -b -o cat -t systemd-sleep -t '(sd-exec-strv)'").Stdout; strings.Contains(out, "failed") {
			t.Errorf("systemd-sleep says:\n%s", out)
		}
		l.Send("cat letter\n")
		if s, err := l.Terminal.Expect("dear zoe", 3*time.Second); err == nil {
			t.Errorf("her session goes on without a password: %s", s)
		}
		// Her screen is unlocked from outside, on the stack of the lock screen.
		p.MustSh("printf 'auth include common-auth\naccount include common-account\n' >/etc/pam.d/greeter")
		g := p.Terminal("pamtester", "greeter", "zoe", "authenticate", "acct_mgmt")
		g.Expect(`Password: ?$`, 40*time.Second)
		g.Send(password + "\n")
		if code := g.Wait(); code != 0 {
			t.Errorf("the lock screen: %s", g.Transcript())
		}
		l.Expect("dear zoe", 40*time.Second)
		if got := p.MustSh("systemctl show -P FreezerState user@$(id -u zoe).service"); got != "running" {
			t.Errorf("her manager is %s", got)
		}
		logout(l)
		p.becomes("zoe", "inactive")
		p.MustSh("sed -i 's/ suspend=yes//' /etc/pam.d/common-*; " + atMost + "homectl deactivate yan")
	})
	t.Run("hand over", func(t *testing.T) {
		p := &product{p.With(t), t}
		real := func(args string) {
			t.Helper()
			p.MustSh(fmt.Sprintf("PASSWORD='%s' %s /usr/bin/homectl %s", password, atMost, args))
		}
		// What ours locked and unlocked, the real daemon closes.
		p.ok("activate ann")
		p.ok("lock ann")
		p.ok("unlock ann")
		p.MustSh("systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
		real("deactivate ann")
		// What it locked, ours unlocks.
		real("activate ann")
		p.inSlice("ann")
		real("lock ann")
		p.MustSh("systemctl stop systemd-homed.service && systemctl enable --now homed.service")
		p.ownsBus("/usr/local/lib/hearth/homed")
		if s := p.state("ann"); s != "locked" {
			t.Errorf("what the real daemon locked is %s", s)
		}
		p.ok("unlock ann")
		p.frozen("ann", "running")
		p.MustSh("test -s /home/ann/letter && systemctl stop ticker-ann.service && " + atMost + "homectl deactivate ann")
		p.closed("ann")
	})
}

// sleepsAndWakes waits until the guest sleeps, and wakes it.
func (p *product) sleepsAndWakes() {
	p.t.Helper()
	stop := make(chan struct{})
	done := make(chan struct{})
	defer func() { close(stop); <-done }()
	go func() {
		defer close(done)
		// Nobody sees from inside when it sleeps. Woken too early, it falls
		// asleep, or goes on as it was.
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Second):
			}
			if asleep, err := p.Asleep(2 * time.Second); err != nil {
				p.t.Error(err)
				return
			} else if asleep {
				if err := p.Wake(); err != nil {
					p.t.Error(err)
				}
			}
		}
	}()
	p.MustSh("for i in $(seq 200); do journalctl -b -o cat -t systemd-sleep | grep -q 'System returned from sleep' && exit; sleep 0.5; done; journalctl -b -t systemd-sleep -t kernel | tail -20; exit 1")
}

// ok runs homectl with the right password.
func (p *product) ok(args string) {
	p.t.Helper()
	if r := p.with(password, args+" </dev/null"); r.Code != 0 {
		p.t.Fatal(r)
	}
}

// says demands a failure in these words.
func (p *product) says(args, want string) {
	p.t.Helper()
	if r := p.with(password, args+" </dev/null"); r.Code != 1 || !strings.Contains(r.Stderr, want) {
		p.t.Errorf("homectl %s: %v, want %q", args, r, want)
	}
}

// inSlice starts a process in the user's slice, outside of the home.
func (p *product) inSlice(user string) {
	p.t.Helper()
	p.MustSh(fmt.Sprintf("systemd-run --unit=ticker-%[1]s --slice=user-$(id -u %[1]s).slice sleep 1000", user))
}

// frozen demands a freezer state of the user's slice.
func (p *product) frozen(user, want string) {
	p.t.Helper()
	if got := strings.TrimSpace(p.MustSh("systemctl show --property=FreezerState --value user-$(id -u " + user + ").slice")); got != want {
		p.t.Errorf("the slice of %s is %s, want %s", user, got, want)
	}
}

// key returns the key field of a home's table.
func (p *product) key(user string) string {
	p.t.Helper()
	return strings.TrimSpace(p.MustSh("dmsetup table --showkeys home-" + user + " | cut -d' ' -f5"))
}

// closed checks that a home that still exists is closed.
func (p *product) closed(user string) {
	p.t.Helper()
	if left := strings.TrimSpace(p.Sh("dmsetup ls | grep home-" + user + "; findmnt -n -l -o TARGET | grep /home/" + user).Stdout); left != "" {
		p.t.Errorf("left open of %s:\n%s", user, left)
	}
}

func (p *product) lockStory(user string) {
	p.t.Helper()
	t := p.t
	p.says("lock "+user, "Failed to lock home: Home "+user+" is not active.")
	p.ok("activate " + user)
	p.says("unlock "+user, "Operation on home "+user+" failed: Home "+user+" is not locked.")
	// Large and without pattern: btrfs keeps what is small, or becomes small,
	// with its metadata, which does not leave the cache.
	p.MustSh("echo 'dear ann' >/home/" + user + "/letter && head -c 300000 /dev/urandom | tee /run/photo-" + user + " >/home/" + user + "/photo && sync && echo 3 >/proc/sys/vm/drop_caches")
	p.inSlice(user)
	if k := p.key(user); !strings.Contains(k, ":logon:cryptsetup:") {
		t.Errorf("the key of an active home is %q", k)
	}

	p.ok("lock " + user)
	if s := p.state(user); s != "locked" {
		t.Fatalf("after lock it is %s", s)
	}
	if k := p.key(user); !regexp.MustCompile(`^0{64}$`).MatchString(k) {
		t.Errorf("the key of a locked home is %q", k)
	}
	if got := p.MustSh("dmsetup info home-" + user); !strings.Contains(got, "SUSPENDED") {
		t.Errorf("dmsetup says %s", got)
	}
	p.frozen(user, "frozen")
	// Nothing but the end of the lock ends who reads now.
	p.MustSh("systemd-run --unit=reader-" + user + " sh -c 'cat /home/" + user + "/photo >/run/read-" + user + "'")
	time.Sleep(2 * time.Second)
	if r := p.Sh("systemctl is-active reader-" + user + "; wc -c </run/read-" + user); r.Stdout != "active\n0\n" {
		t.Errorf("a reader got %v", r)
	}
	p.says("lock "+user, "Failed to lock home: Home "+user+" is already locked.")
	for _, verb := range []string{"activate", "authenticate"} {
		p.says(verb+" "+user, "Operation on home "+user+" failed: Home "+user+" is currently locked.")
	}
	p.says("deactivate "+user, "Failed to deactivate user home: Home "+user+" is currently locked.")
	p.says("remove "+user, "Failed to remove home: Home "+user+" is currently locked.")
	if got := p.MustSh(atMost + "homectl inspect " + user + " && " + atMost + "getent passwd " + user); !strings.Contains(got, "State: locked") || !strings.Contains(got, ":/:") {
		t.Errorf("a locked home shows as %s", got)
	}
	p.MustSh(atMost + "homectl deactivate-all")
	if r := p.with("wrong", "unlock "+user+" </dev/null"); r.Code != 1 {
		t.Errorf("unlock with a wrong password: %v", r)
	}
	for _, how := range []string{"systemctl restart homed", "systemctl kill --signal=KILL homed; sleep 1; systemctl start homed"} {
		p.MustSh(how)
		if s := p.state(user); s != "locked" {
			t.Errorf("after %q it is %s", how, s)
		}
	}
	p.frozen(user, "frozen")

	p.ok("unlock " + user)
	if s := p.state(user); s != "active" {
		t.Errorf("after unlock it is %s", s)
	}
	if k := p.key(user); !strings.Contains(k, ":logon:cryptsetup:") {
		t.Errorf("the key of an unlocked home is %q", k)
	}
	p.frozen(user, "running")
	p.MustSh("for i in $(seq 50); do systemctl is-active -q reader-" + user + " || break; sleep 0.2; done; cmp /run/photo-" + user + " /run/read-" + user + " && echo more >>/home/" + user + "/letter")

	// The lock screen asks and acquires.
	p.ok("lock " + user)
	if got := p.with(password, "with "+user+" -- cat letter </dev/null"); got.Code != 0 || got.Stdout != "dear ann\nmore\n" {
		t.Errorf("acquired from locked: %v", got)
	}
	p.MustSh("systemctl stop ticker-" + user + ".service")
	p.becomes(user, "inactive")
	p.closed(user)
}
