package stories

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/internal/secret"
	"hearth/records"
	"hearth/vmtest"
)

const (
	real     = "timeout 60 /usr/bin/homectl " // systemd's
	manager  = "org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager "
	cheapDir = "--storage=directory --enforce-password-policy=no"
)

// TestBus is about what other programs ask the daemon for: keys, references,
// and the rights to do so. The real homectl and busctl do the asking.
func TestBus(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	p := install(t, vmtest.Options{Suite: vmtest.Forky, Payload: []vmtest.Item{tool(t, "holdref")}})
	p.enable()
	for _, s := range []struct {
		name string
		f    func(*product)
	}{
		{"keys that sign records", signingKeys},
		{"references", references},
		{"what the bus sees", busSees},
		{"who keeps a home busy", busyHome},
		{"polkit", polkitRules},
		{"guessing", guessing},
		{"reload, watchdog, sandbox", service},
	} {
		t.Run(s.name, func(t *testing.T) { s.f(&product{p.With(t), t}) })
	}
}

// tool builds a program of vmtest/cmd, for the guest's /usr/local/bin.
func tool(t testing.TB, name string) vmtest.Item {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", "build", "-o", program, "../cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, text)
	}
	return vmtest.Item{Host: program, Guest: "/usr/local/bin/" + name}
}

// call calls a method of the manager with busctl.
func (p *product) call(args string) vmtest.Result {
	return p.Sh(atMost + "busctl call " + manager + args)
}

// denied checks that a result is a failure with a text.
func (p *product) denied(r vmtest.Result, text string) {
	p.t.Helper()
	if r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, text) {
		p.t.Errorf("want the failure %q: %v", text, r)
	}
}

// hold has a reference taken by a unit, which is stopped to end it.
func (p *product) hold(unit, method, user string) {
	p.t.Helper()
	p.MustSh(fmt.Sprintf(`rm -f /tmp/%[1]s; systemd-run --quiet --unit=%[1]s -p StandardOutput=file:/tmp/%[1]s -p StandardError=inherit holdref %[2]s %[3]s
		for i in $(seq 100); do grep -q held /tmp/%[1]s && exit 0; sleep 0.1; done; cat /tmp/%[1]s; exit 1`, unit, method, user))
}

// startedAnew waits until another process than pid is the daemon.
func (p *product) startedAnew(pid string) {
	p.t.Helper()
	p.MustSh("for i in $(seq 120); do now=$(systemctl show -P MainPID homed.service); [ $now != 0 ] && [ $now != " + pid + " ] && systemctl -q is-active homed.service && exit 0; sleep 0.5; done; systemctl status homed.service; exit 1")
}

func signingKeys(p *product) {
	t := p.t
	private, public, err := records.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := records.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	defer signer.Close()
	pw, err := secret.Copy([]byte(password))
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close()
	hash, err := records.HashPassword(pw, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.Put("/tmp/other.public", public, 0o644)
	for _, name := range []string{"kim", "lou", "max", "ned"} {
		r, err := records.NewBuilder(name).Set("disposition", "regular").Set("storage", "directory").Set("enforcePasswordPolicy", false).
			Set("lastChangeUSec", uint64(time.Now().UnixMicro())).Set("lastPasswordChangeUSec", uint64(time.Now().UnixMicro())).
			SetPrivileged("hashedPassword", []string{hash}).Record()
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign(r)
		if err != nil {
			t.Fatal(err)
		}
		p.Put("/tmp/"+name+".json", signed.Record().Compact(), 0o644)
	}
	const strange = "is signed by a key we don't recognize"
	p.denied(p.Sh("homectl register /tmp/kim.json"), strange)
	p.denied(p.Sh(real+"register /tmp/kim.json"), strange)
	p.MustSh(real + "add-signing-key /tmp/other.public")
	for _, homectl := range []string{"homectl ", real} {
		if got := p.MustSh(homectl + "get-signing-key other.public"); got+"\n" != string(public) {
			t.Errorf("%s prints the key as %q", homectl, got)
		}
		p.denied(p.Sh(homectl+"add-signing-key /tmp/other.public"), "Public key name already exists: other.public")
		p.denied(p.Sh(homectl+"add-signing-key --key-name=x.public /tmp/other.public"), "Public key already exists: x.public")
		p.denied(p.Sh(homectl+"remove-signing-key local.public"), "Refusing to remove local key.")
		p.denied(p.Sh(homectl+"get-signing-key foo"), "Failed to get signing key 'foo': No key with name: foo")
	}
	if ours, theirs := p.MustSh("homectl list-signing-keys"), p.MustSh(real+"list-signing-keys"); ours != theirs {
		t.Errorf("the keys as ours lists them:\n%s\nand as the real homectl does:\n%s", ours, theirs)
	}
	if ours, theirs := p.MustSh("homectl list-signing-keys --json=short"), p.MustSh(real+"list-signing-keys --json=short"); ours != theirs {
		t.Errorf("as JSON:\n%s\nand\n%s", ours, theirs)
	}
	// Registered, then realized.
	p.MustSh(real + "register /tmp/kim.json")
	if s := p.state("kim"); s != "absent" && s != "inactive" {
		t.Errorf("a registered record is %s", s)
	}
	p.denied(p.call(`RealizeHome ss kim '{"password":["wrong"]}'`), "Password for home kim is incorrect")
	p.denied(p.call(`RealizeHome ss kim '{}'`), "")
	p.MustSh("test ! -e /home/kim.homedir && busctl call " + manager + "RealizeHome ss kim '{\"password\":[\"" + password + "\"]}'")
	p.denied(p.call(`RealizeHome ss kim '{"password":["`+password+`"]}'`), "Selected home image of user kim already exists")
	p.MustSh("PASSWORD='" + password + "' " + real + "activate kim && test -f /home/kim/.identity && homectl deactivate kim")
	p.denied(p.Sh("PASSWORD='"+password+"' NEWPASSWORD=another-Pw-99 "+atMost+"homectl passwd kim"), "Home kim is signed and cannot be modified locally")
	// Created from an identity that another machine signed.
	p.MustSh("PASSWORD='" + password + "' " + atMost + "homectl create --identity=/tmp/lou.json --seize=no </dev/null")
	p.MustSh("PASSWORD='" + password + "' NEWPASSWORD='" + password + "' " + real + "create --identity=/tmp/max.json --seize=no </dev/null")
	for _, n := range []string{"lou", "max"} {
		if got := p.MustSh("homectl inspect -j " + n + " | jq '.status[].signedLocally'"); got != "false" {
			t.Errorf("%s is signed locally: %s", n, got)
		}
	}
	p.MustSh("PASSWORD='" + password + "' homectl activate lou && homectl deactivate lou")

	p.MustSh("homectl remove-signing-key other.public && test ! -e /var/lib/systemd/home/other.public")
	p.denied(p.Sh("homectl register /tmp/ned.json"), strange)
	if s := p.state("kim"); s != "inactive" {
		t.Errorf("a home whose key was removed is %s", s)
	}
	p.MustSh("systemctl restart homed.service")
	for _, n := range []string{"kim", "lou", "max"} {
		if s := p.state(n); s != "unfixated" {
			t.Errorf("after a restart %s is %s", n, s)
		}
	}
	p.denied(p.with(password, "activate kim"), "is not signed by any known key, refusing")
	p.MustSh("homectl add-signing-key --key-name=again.public </tmp/other.public")
	p.ok("activate kim")
	p.MustSh("homectl deactivate kim")
	p.MustSh("busctl call " + manager + "FixateHome ss max '{\"password\":[\"" + password + "\"]}'")
	if s := p.state("max"); s != "inactive" {
		t.Errorf("a home that was fixated is %s", s)
	}
	p.MustSh("homectl remove kim lou max && homectl remove-signing-key again.public")
}

func references(p *product) {
	t := p.t
	p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create ann %s", password, atMost, cheapDir))
	secret := `'{"password":["` + password + `"]}'`
	p.denied(p.Sh(atMost+"holdref RefHome ann"), "Home ann not active.")
	p.denied(p.call("ActivateHomeIfReferenced ss ann "+secret), "not referenced")
	p.hold("early", "RefHomeUnrestricted", "ann")
	p.denied(p.call("ReleaseHome s ann"), "Home ann is currently referenced.")
	p.MustSh("busctl call " + manager + "ActivateHomeIfReferenced ss ann " + secret)
	p.hold("late", "RefHome", "ann")
	p.MustSh("systemctl stop early.service && sleep 1")
	if s := p.state("ann"); s != "active" {
		t.Errorf("with one reference left ann is %s", s)
	}
	p.denied(p.call("ReleaseHome s ann"), "Home ann is currently referenced.")

	// Over a restart, and over the end of the holder while nobody looks.
	p.MustSh("systemctl restart homed.service")
	if s := p.state("ann"); s != "active" {
		t.Errorf("after a restart ann is %s", s)
	}
	p.denied(p.call("ReleaseHome s ann"), "Home ann is currently referenced.")
	p.MustSh("systemctl stop late.service")
	p.becomes("ann", "inactive")
	p.ok("activate ann")
	p.hold("later", "RefHome", "ann")
	p.MustSh("systemctl stop homed.service && systemctl stop later.service && systemctl start homed.service")
	p.becomes("ann", "inactive")

	// An upgrade under an open session.
	l := p.login("ann", password)
	pid := p.MustSh("systemctl show -P MainPID homed.service")
	p.MustSh(inGuest + "/cmd/homed/system/install.sh install && systemctl restart homed.service")
	if now := p.MustSh("systemctl show -P MainPID homed.service"); now == pid {
		t.Error("the daemon was not restarted")
	}
	l.Send("echo still here >note; cat note; pwd\n")
	l.Expect(`still here[\r\n]+/home/ann[\r\n]`, 20*time.Second)
	// A second login after the restart, on top of the first.
	l2 := p.login("ann", password)
	logout(l)
	p.MustSh("sleep 6")
	if s := p.state("ann"); s != "active" {
		t.Errorf("with the second login open ann is %s", s)
	}
	logout(l2)
	p.becomes("ann", "inactive")

	r := p.Sh("PASSWORD='" + password + "' " + atMost + "homectl with ann -- sh -c 'test -s /home/ann/note && exit 7'")
	if r.Code != 7 {
		t.Errorf("homectl with: %v", r)
	}
	p.becomes("ann", "inactive")
	p.MustSh("PASSWORD='" + password + "' " + real + "with ann -- cat /home/ann/note")
	p.becomes("ann", "inactive")
}

func busyHome(p *product) {
	t := p.t
	p.ok("activate ann")
	p.MustSh("systemd-run --quiet --unit=mine --uid=ann --working-directory=/home/ann sleep 1000; systemd-run --quiet --unit=roots --working-directory=/home/ann sleep 1000")
	pid := p.MustSh("systemctl show -P MainPID mine.service")
	who := "sleep (" + pid + ", in /home/ann)"
	p.denied(p.call("DeactivateHome s ann"), "Home ann is currently being used by "+who+".")
	if log := p.MustSh("journalctl -q -o cat HOME_USER=ann -n 20"); !strings.Contains(log, "in use by "+who) {
		t.Errorf("the journal does not name it:\n%s", log)
	}
	p.MustSh("systemctl stop mine.service")
	p.denied(p.call("DeactivateHome s ann"), "Home ann is currently being used by other processes.")
	if s := p.state("ann"); s != "lingering" {
		t.Errorf("it is %s", s)
	}
	p.MustSh("systemctl stop roots.service")
	p.becomes("ann", "inactive")
}

// busSees looks at the system bus with root's eyes, through a monitor, while
// ann's password is used: by our programs, who hand it over in memfds, and by
// systemd's homectl, who knows the strings alone.
func busSees(p *product) {
	t := p.t
	p.MustSh(`systemd-run --quiet --unit=eyes -p StandardOutput=file:/tmp/eyes -p StandardError=file:/tmp/eyes.err busctl monitor
		for i in $(seq 100); do grep -q Monitoring /tmp/eyes /tmp/eyes.err && exit 0; sleep 0.1; done; cat /tmp/eyes.err; exit 1`)
	defer p.Sh("systemctl stop eyes.service; rm -f /tmp/eyes /tmp/eyes.err")
	// all waits until what was on the bus is seen.
	all := func(mark string) {
		t.Helper()
		p.Sh(atMost + "busctl call " + manager + "GetHomeByName s " + mark)
		p.MustSh("for i in $(seq 100); do grep -q '" + mark + "' /tmp/eyes && exit 0; sleep 0.1; done; tail -n 50 /tmp/eyes; exit 1")
	}
	calls := func(iface, member string) string {
		t.Helper()
		return strings.TrimSpace(p.MustSh("grep -cE 'Interface=" + iface + " +Member=" + member + "$' /tmp/eyes || :"))
	}
	own, plain := "org.hearth.Home1.Manager", "org.freedesktop.home1.Manager"
	p.with(password, "authenticate ann")
	if r := p.Sh("PASSWORD='" + password + "' timeout 60 runuser -u ann -- homectl authenticate ann </dev/null"); r.Code != 0 {
		t.Errorf("her own homectl: %v", r)
	}
	logout(p.login("ann", password))
	all("first-mark")
	if n := calls(own, "AuthenticateHome"); n != "2" {
		t.Errorf("%s calls of our AuthenticateHome", n)
	}
	if n := calls(own, "AcquireHome"); n != "1" {
		t.Errorf("%s calls of our AcquireHome", n)
	}
	if out := p.MustSh("grep -F -B20 '" + password + "' /tmp/eyes || :"); out != "" {
		t.Errorf("the bus saw the password:\n%s", out)
	}
	if r := p.Sh("PASSWORD='" + password + "' " + real + "authenticate ann </dev/null"); r.Code != 0 {
		t.Errorf("systemd's homectl: %v", r)
	}
	all("second-mark")
	if n := calls(plain, "AuthenticateHome"); n == "0" || p.Sh("grep -qF '"+password+"' /tmp/eyes").Code != 0 {
		t.Errorf("%s plain calls of AuthenticateHome, or the monitor does not show what is in them", n)
	}
	p.becomes("ann", "inactive")
}

func polkitRules(p *product) {
	t := p.t
	uid := p.MustSh("id -u ann")
	p.MustSh(`useradd -m mallory
		cat >/etc/polkit-1/rules.d/10-story.rules <<'END'
polkit.addRule(function(action, subject) {
	if (action.id.indexOf("org.freedesktop.home1.") != 0) return polkit.Result.NOT_HANDLED;
	if (action.id == "org.freedesktop.home1.update-home-by-owner" && subject.user == action.lookup("username") && action.lookup("uid") == "` + uid + `") return polkit.Result.YES;
	if (action.id == "org.freedesktop.home1.remove-home" && action.lookup("username") == "spare") return polkit.Result.YES;
	if (action.id == "org.freedesktop.home1.passwd-home") return polkit.Result.NO;
	return polkit.Result.NOT_HANDLED;
});
END
		systemctl restart polkit.service; sleep 1`)
	p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create spare %s", password, atMost, cheapDir))
	as := func(user, cmd string) vmtest.Result {
		return p.Sh("PASSWORD='" + password + "' timeout 60 runuser -u " + user + " -- " + cmd + " </dev/null")
	}
	// What is her own to change, and what is not.
	for _, homectl := range []string{"homectl", "/usr/bin/homectl"} {
		if r := as("ann", homectl+" update ann --real-name=By-"+filepath.Base(filepath.Dir(homectl))); r.Code != 0 {
			t.Errorf("the owner's own change: %v", r)
		}
		p.denied(as("ann", homectl+" --no-ask-password update ann --nice=5"), "nteractive authentication")
	}
	if got := p.MustSh("homectl inspect -j ann | jq -c '[.realName, .nice]'"); got != `["By-bin",null]` {
		t.Errorf("the record has %s", got)
	}
	// A stranger.
	for _, c := range []struct{ call, want string }{
		{"RemoveHome s ann", "nteractive authentication"},
		{"UpdateHome s '{\"userName\":\"ann\",\"realName\":\"Mallory\"}'", "nteractive authentication"},
		{"ChangePasswordHome sss ann '{\"password\":[\"x\"]}' '{}'", "denied"},
		{"DeactivateHome s ann", "denied"},
		{"LockAllHomes", "denied"},
		{"AdoptHome st /home/x.home 0", "denied"}, // by the bus's own policy, as there
		{"AddSigningKey sst x.public y 0", "nteractive authentication"},
		{"RemoveHome s spare", ""},
	} {
		r := as("mallory", "busctl --allow-interactive-authorization=false call "+manager+c.call)
		if c.want == "" && r.Code != 0 {
			t.Errorf("%s: %v", c.call, r)
		} else if c.want != "" {
			p.denied(r, c.want)
		}
	}
	p.clean("spare")
	// The guest has nobody to ask.
	for _, homectl := range []string{"homectl", "/usr/bin/homectl"} {
		p.denied(as("mallory", homectl+" remove ann"), "nteractive authentication")
	}
	p.MustSh("rm /etc/polkit-1/rules.d/10-story.rules; systemctl restart polkit.service")
}

// guessing: a stranger's wrong passwords keep nobody else waiting or out.
func guessing(p *product) {
	t := p.t
	out := p.MustSh(`for i in $(seq 10); do runuser -u mallory -- busctl --timeout=300 call ` + manager + `AcquireHome ssb ann '{"password":["wrong"]}' false >/tmp/guess.$i 2>&1 & done
		PASSWORD='` + password + `' timeout 300 homectl with ann -- echo came in
		wait; cat /tmp/guess.* | sed 's/ in [0-9]*s!//' | sort | uniq -c`)
	for _, want := range []string{`came in`, ` 8 .*incorrect or not sufficient`, ` 2 .*Too many login attempts`} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	p.becomes("ann", "inactive")
	p.ok("authenticate ann")
	if got := p.MustSh("homectl inspect -j ann | jq '.status[].badAuthenticationCounter'"); got != "8" {
		t.Errorf("the record counts %s wrong passwords", got)
	}
}

func service(p *product) {
	t := p.t
	p.MustSh("mkdir -p /etc/systemd/homed.conf.d && printf '[Home]\\nDefaultStorage=directory\\n' >/etc/systemd/homed.conf.d/story.conf && systemctl reload homed.service")
	p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create cleo --enforce-password-policy=no && test -d /home/cleo.homedir", password, atMost))
	p.MustSh("rm /etc/systemd/homed.conf.d/story.conf && homectl remove cleo && systemctl is-active homed.service")

	// The watchdog: who answers lives, who does not is started anew, and what
	// was open stays open.
	p.MustSh("mkdir -p /run/systemd/system/homed.service.d && printf '[Service]\\nWatchdogSec=6s\\n' >/run/systemd/system/homed.service.d/story.conf && systemctl daemon-reload && systemctl restart homed.service")
	pid := p.MustSh("systemctl show -P MainPID homed.service")
	p.ok("activate ann")
	p.MustSh("sleep 8")
	if now := p.MustSh("systemctl show -P MainPID homed.service"); now != pid {
		t.Errorf("a daemon that answers was ended: %s, then %s\n%s", pid, now, p.MustSh("journalctl -q -u homed.service -n 30"))
	}
	p.MustSh("kill -STOP " + pid)
	p.startedAnew(pid)
	if s := p.state("ann"); s != "active" {
		t.Errorf("after the watchdog ann is %s", s)
	}
	p.MustSh("homectl deactivate ann && homectl remove ann")
	p.clean("ann")

	score := func(unit string) string {
		out := p.MustSh("systemd-analyze security --no-pager --offline=true " + unit + " 2>/dev/null | tail -n 1")
		m := regexp.MustCompile(`: ([0-9.]+) `).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("no score in %q", out)
		}
		return m[1]
	}
	ours, theirs := score("$(systemctl show -P FragmentPath homed.service)"), score("/usr/lib/systemd/system/systemd-homed.service")
	t.Logf("exposure: ours %s, systemd-homed's %s", ours, theirs)
	if len(ours) == len(theirs) && ours > theirs || len(ours) > len(theirs) {
		t.Errorf("ours is exposed %s, systemd-homed %s", ours, theirs)
	}
}
