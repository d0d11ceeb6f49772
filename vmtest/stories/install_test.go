package stories

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hearth/vmtest"
)

// links lists what says which units are enabled, and under which names.
const links = `find /etc/systemd/system -type l -printf '%p -> %l\n' | sort; `

// repack makes a package file of the installed systemd-homed, which no guest
// can download.
const repack = `rm -rf /root/pkg; mkdir -p /root/pkg/DEBIAN; cd /root/pkg
	dpkg -L systemd-homed | while read -r f; do
		if [ -L "$f" ] || [ ! -d "$f" ]; then mkdir -p ".$(dirname "$f")"; if [ -e "$f" ] || [ -L "$f" ]; then cp -a "$f" ".$f"; fi; fi
	done
	dpkg-query -s systemd-homed | sed '/^Status:/d; /^Conffiles:/,/^[A-Z]/{/^Conffiles:/d; /^ /d}' > DEBIAN/control
	for s in preinst postinst prerm postrm conffiles triggers; do
		if [ -e /var/lib/dpkg/info/systemd-homed.$s ]; then cp -p /var/lib/dpkg/info/systemd-homed.$s DEBIAN/$s; fi
	done
	dpkg-deb --build /root/pkg /root/systemd-homed.deb >/dev/null`

// usrBuild is the payload of a build with PREFIX=/usr, whose PAM module has
// another path compiled in. It lies in inGuest/usr.
func usrBuild(t testing.TB) []vmtest.Item {
	t.Helper()
	out := t.TempDir()
	shim := exec.Command("make", "-C", filepath.Join(tree, "pamhome/shim"), "OUT="+out, "HELPER=/usr/lib/hearth/pamhome")
	if text, err := shim.CombinedOutput(); err != nil {
		t.Fatalf("build the PAM module: %v\n%s", err, text)
	}
	prefix := filepath.Join(out, "prefix")
	if err := os.WriteFile(prefix, []byte("/usr\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return []vmtest.Item{
		{Host: filepath.Join(tree, "build/bin"), Guest: inGuest + "/usr/bin"},
		{Host: filepath.Join(out, "pam_home.so"), Guest: inGuest + "/usr/pam_home.so"},
		{Host: prefix, Guest: inGuest + "/usr/prefix"},
	}
}

// TestInstallBesidePackage puts ours where the package of systemd-homed has
// its own files, and takes it away again.
func TestInstallBesidePackage(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	g := vmtest.Boot(t, vmtest.Options{Suite: vmtest.Forky, Payload: append(payload(t), usrBuild(t)...)})
	p := &product{g, t}
	const (
		setUp = inGuest + "/cmd/homed/system/install.sh "
		usr   = "BUILD=" + inGuest + "/usr PREFIX=/usr " + setUp
		real  = "/usr/lib/systemd/systemd-homed"
		ours  = "/usr/lib/hearth/homed"
		// The guest image leaves documents out.
		verify   = "dpkg --verify systemd-homed | grep -vE '/usr/share/(doc|man)' || :; "
		pristine = verify + "dpkg-divert --list | grep local || :"
	)
	p.MustSh(repack)
	p.MustSh("systemctl enable --now systemd-homed.service; pam-auth-update --disable systemd-homed")
	p.ownsBus(real)
	before := p.MustSh(links + pristine)

	t.Run("ours takes the place of a running one", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh(usr + "install")
		p.MustSh("systemctl enable homed.service && systemctl restart homed.service && pam-auth-update --enable hearth hearth-password")
		p.ownsBus(ours)
		if out := p.MustSh(verify); out != "" {
			t.Errorf("files of the package were changed:\n%s", out)
		}
		p.MustSh("/usr/bin/homectl --version | grep -q hearth; ! /usr/bin/homectl.distrib --version | grep -q hearth")
		all := "find / -xdev -newer /root/systemd-homed.deb -type f -path '/usr/*'; sort /usr/lib/hearth/manifest; dpkg-divert --list | grep local"
		once := p.MustSh(all)
		if strings.Count(once, "local diversion") != 4 {
			t.Errorf("diverted is:\n%s", once)
		}
		p.MustSh(usr + "install")
		if twice := p.MustSh(all); once != twice {
			t.Errorf("installed once:\n%s\ninstalled twice:\n%s", once, twice)
		}
	})

	t.Run("one tree at a time", func(t *testing.T) {
		p := &product{p.With(t), t}
		if r := p.Sh(setUp + "install"); r.Code == 0 || !strings.Contains(r.Stderr, "PREFIX=/usr") {
			t.Errorf("a second tree beside the first: %s", r)
		}
		p.MustSh("test ! -e /usr/local/lib/hearth")
	})

	t.Run("the bus starts it", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("systemctl stop homed.service; ! systemctl is-active homed.service")
		p.MustSh(atMost + "homectl list")
		p.ownsBus(ours)
	})

	t.Run("an upgrade of the package passes by", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("dpkg -i /root/systemd-homed.deb")
		p.MustSh("/usr/bin/homectl --version | grep -q hearth; systemctl daemon-reload; systemctl restart systemd-homed.service")
		p.ownsBus(ours)
		if out := p.MustSh(verify); out != "" {
			t.Errorf("files of the package were changed:\n%s", out)
		}
		p.MustSh("pam-auth-update --disable systemd-homed")
	})

	t.Run("records come from files", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh(`echo '{"userName":"rita","disposition":"regular","storage":"directory"}' | homectl register`)
		if s := p.state("rita"); s != "absent" {
			t.Errorf("rita is %s", s)
		}
		p.MustSh("homectl unregister rita")
		p.MustSh(`echo '{"userName":"ida","realName":"Ida","secret":{"password":["` + password + `"]},"privileged":{"hashedPassword":["'$(perl -e 'print crypt($ARGV[0], q($6$abcdefgh$))' '` + password + `')'"]}}' >/root/ida
			` + atMost + `homectl create --identity=/root/ida --storage=luks --fs-type=ext4 --disk-size=64M ` + cheap)
		if out := p.MustSh("homectl inspect ida; homectl remove ida"); !strings.Contains(out, "Real Name: Ida") {
			t.Errorf("ida is\n%s", out)
		}
	})

	t.Run("a shutdown closes what is open", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.create("ann")
		if r := p.with(password, "activate ann"); r.Code != 0 {
			t.Fatal(r)
		}
		p.MustSh("echo kept > /home/ann/kept; getfattr -n user.home-dirty /home/ann.home")
		p.Poweroff()
		p.Restart()
		p.MustSh("! getfattr -n user.home-dirty /home/ann.home 2>/dev/null")
		p.ownsBus(ours)
		if s := p.state("ann"); s != "inactive" {
			t.Errorf("after the boot ann is %s", s)
		}
		if r := p.with(password, "activate ann"); r.Code != 0 {
			t.Fatal(r)
		}
		p.MustSh("grep kept /home/ann/kept")
		if out := p.MustSh("systemctl --failed --no-legend | grep -v getty@ || :"); out != "" {
			t.Errorf("failed units:\n%s", out)
		}
	})

	t.Run("uninstall waits for open homes, then gives all back", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("NEWPASSWORD='" + password + "' " + atMost + "homectl create dora --storage=directory " + cheap)
		if r := p.with(password, "activate dora"); r.Code != 0 {
			t.Fatal(r)
		}
		for _, name := range []string{"ann", "dora"} {
			r := p.Sh(usr + "uninstall")
			if r.Code == 0 || !strings.Contains(r.Stderr, "homes are active: ") || !strings.Contains(r.Stderr, name+" ") {
				t.Errorf("uninstall with %s's home open: %s", name, r)
			}
			p.ownsBus(ours)
			p.MustSh(atMost + "homectl deactivate " + name + " && " + atMost + "homectl remove " + name)
		}
		p.MustSh(usr + "uninstall")
		if after := p.MustSh(links + pristine); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if left := p.MustSh("find /usr /etc -xdev \\( -name '*hearth*' -o -name 'homed*.service' -o -name pam_home.so -o -name '*.distrib' \\) | grep -vE 'hearth-(guest|agent|payload)|modules-load.d/hearth.conf' || :"); left != "" {
			t.Errorf("left behind:\n%s", left)
		}
		p.MustSh("! grep -r pam_home.so /etc/pam.d")
		p.MustSh(atMost + "/usr/bin/homectl list")
		p.ownsBus(real)
	})

	t.Run("a machine without the package", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("systemctl stop systemd-homed.service; dpkg --purge systemd-homed")
		p.MustSh(setUp + "install && systemctl enable --now homed.service")
		p.ownsBus("/usr/local/lib/hearth/homed")
		p.MustSh("systemctl stop homed.service; " + atMost + "homectl list")
		p.ownsBus("/usr/local/lib/hearth/homed")
	})

	t.Run("the package comes later", func(t *testing.T) {
		p := &product{p.With(t), t}
		p.MustSh("dpkg -i /root/systemd-homed.deb")
		if out := p.MustSh(verify); out != "" {
			t.Errorf("files of the package were changed:\n%s", out)
		}
		p.MustSh("systemctl daemon-reload; systemctl restart homed.service")
		p.ownsBus("/usr/local/lib/hearth/homed")
		if out := p.MustSh(setUp + "uninstall 2>/dev/null"); !strings.Contains(out, "systemctl enable --now systemd-homed.service") {
			t.Errorf("nothing is said of the package's unit, which nobody enabled: %s", out)
		}
		p.MustSh("systemctl enable --now systemd-homed.service; " + atMost + "/usr/bin/homectl list")
		p.ownsBus(real)
		if after := p.MustSh(pristine); after != "" {
			t.Errorf("after uninstall:\n%s", after)
		}
	})
}
