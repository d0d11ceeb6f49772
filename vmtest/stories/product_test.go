package stories

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

const (
	tree     = "../.." // of the checkout, built
	inGuest  = "/opt/hearth"
	password = "Corr3ct-Horse-9-Batt"
	// cheap makes a home whose key derivation costs nothing.
	cheap = "--luks-pbkdf-type=pbkdf2 --luks-pbkdf-time-cost=1ms --enforce-password-policy=no"
	// atMost bounds what must not hang.
	atMost = "timeout 60 "
)

// product is a guest with ours installed as an administrator would.
type product struct {
	*vmtest.Guest
	t testing.TB
}

// payload is what "make build" left, and what "make install" copies.
func payload(t testing.TB) []vmtest.Item {
	t.Helper()
	if _, err := os.Stat(filepath.Join(tree, "build/bin/homed")); err != nil {
		t.Fatal("not built yet: run 'make build' first")
	}
	var items []vmtest.Item
	for _, p := range []string{"build/bin", "build/pam_home.so", "build/prefix", "cmd/homed/system", "pamhome/shim/hearth.pam-config", "pamhome/shim/hearth-password.pam-config", "docs/man"} {
		if _, err := os.Stat(filepath.Join(tree, p)); err == nil {
			items = append(items, vmtest.Item{Host: filepath.Join(tree, p), Guest: filepath.Join(inGuest, p)})
		}
	}
	return items
}

// install boots a guest and installs ours in it, beside the real one.
func install(t testing.TB, o vmtest.Options) *product {
	t.Helper()
	vmtest.Need(t)
	o.Payload = append(payload(t), o.Payload...)
	g := vmtest.Boot(t, o)
	p := &product{g, t}
	if o.Console { // the harness does not wait for more than a hand in the guest
		g.Console().Expect(`login: $`, 2*time.Minute)
	}
	g.MustSh(`pam-auth-update --disable systemd-homed 2>/dev/null || pam-auth-update --remove systemd-homed || :
		systemctl stop systemd-homed.service systemd-homed-activate.service || :`)
	g.MustSh(inGuest + "/cmd/homed/system/install.sh install")
	return p
}

// enable starts ours, in place of a running systemd-homed, and puts its module
// into the PAM stacks. (Stopping the activation unit of 257 starts its daemon.)
func (p *product) enable() {
	p.t.Helper()
	p.MustSh("systemctl enable homed.service && systemctl restart homed.service && pam-auth-update --enable hearth hearth-password")
	p.ownsBus("/usr/local/lib/hearth/homed")
}

// ownsBus checks which program answers as org.freedesktop.home1.
func (p *product) ownsBus(program string) {
	p.t.Helper()
	exe := strings.TrimSpace(p.MustSh(`readlink /proc/$(busctl --json=short call org.freedesktop.DBus / org.freedesktop.DBus GetConnectionUnixProcessID s org.freedesktop.home1 | jq '.data[0]')/exe`))
	if exe != program {
		p.t.Errorf("org.freedesktop.home1 belongs to %s, want %s", exe, program)
	}
}

// create makes an ext4 home of the smallest size.
func (p *product) create(name string) {
	p.t.Helper()
	p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create %s --storage=luks --fs-type=ext4 --disk-size=64M %s", password, atMost, name, cheap))
}

// with runs homectl with a password and a time limit.
func (p *product) with(pw, args string) vmtest.Result {
	return p.Sh(fmt.Sprintf("PASSWORD='%s' %s homectl %s", pw, atMost, args))
}

func (p *product) state(name string) string {
	p.t.Helper()
	return strings.TrimSpace(p.MustSh("homectl list --json=short | jq -r '.[] | select(.name==\"" + name + "\") | .state'"))
}

// inspected is the state by homectl inspect, and the classes of her sessions:
// what shows of a home that somebody is in.
func (p *product) inspected(name string) string {
	p.t.Helper()
	return p.MustSh("homectl inspect --json=short "+name+" | jq -r '.status[].state'") + ", " + p.classes(name)
}

// becomes waits for a state of a home: logind keeps the user's service manager
// for ten seconds after the last session.
func (p *product) becomes(name, state string) {
	p.t.Helper()
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(500 * time.Millisecond) {
		got := p.state(name)
		if got == state {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s is %s, want %s\n%s", name, got, state, p.Sh("loginctl; ps -u "+name+" -o pid,args; findmnt -l | grep home").Stdout)
		}
	}
}

// login types a name's password at a login prompt and returns the shell.
func (p *product) login(name, pw string) *vmtest.Typist {
	p.t.Helper()
	l := p.Terminal("login", name)
	l.Expect(`Password: ?$`, 30*time.Second)
	l.Send(pw + "\n")
	l.Expect(regexp.QuoteMeta(name)+`@.*\$ ?$`, 60*time.Second)
	return l
}

func logout(l *vmtest.Typist) {
	l.Send("exit\n")
	l.Wait()
}

// clean checks that nothing of a home is left in kernel and file system.
func (p *product) clean(name string) {
	p.t.Helper()
	left := p.Sh(fmt.Sprintf(`ls -d /home/%[1]s.home /home/.#* /home/%[1]s /dev/mapper/home-%[1]s /var/lib/systemd/home/%[1]s.identity /var/cache/systemd/home/%[1]s 2>/dev/null
		dmsetup ls 2>/dev/null | grep 'home-%[1]s'; losetup -l -n -O BACK-FILE | grep '/home/'; findmnt -n -l -o TARGET | grep -E '/home/%[1]s|user-home-mount'`, name)).Stdout
	if strings.TrimSpace(left) != "" {
		p.t.Errorf("left behind of %s:\n%s", name, left)
	}
}
