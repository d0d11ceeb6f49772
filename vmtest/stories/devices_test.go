package stories

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"hearth/vmtest"
)

// homeType is the type of a partition that holds a home.
const homeType = "773f91ef-66d4-49b5-bd83-d683bf40ad16"

// TestDevices makes homes on disks and partitions, plugs them in and out, hands
// them to the real daemon and back, and takes homes in that come from elsewhere.
func TestDevices(t *testing.T) {
	t.Parallel()
	const images = "../../fixtures/systemd-262-images"
	recovery := home{set: "ext4-pbkdf2-recovery"}
	recovery.unpack(t, images)
	o := vmtest.Options{Suite: vmtest.Forky, Payload: []vmtest.Item{
		{Host: recovery.image, Guest: "/srv/" + recovery.file},
		{Host: filepath.Join(images, "local.public"), Guest: "/srv/fixtures.public"},
		{Host: filepath.Join(images, "fscrypt-v2/home-fs.ext4.img.xz"), Guest: "/srv/fscrypt.img.xz"},
	}}
	p := install(t, o)
	p.enable()
	part := func(name string, f func(*product)) {
		t.Run(name, func(t *testing.T) { f(&product{p.With(t), t}) })
	}
	part("disk", (*product).disks)
	part("whole disk", (*product).wholeDisk)
	part("partition", (*product).partition)
	part("resize", (*product).deviceSizes)
	part("btrfs", (*product).deviceBtrfs)
	if long() {
		part("xfs", (*product).deviceXFS)
	}
	part("allocation", (*product).allocation)
	part("recovery", (*product).recovery)
	part("tokens", (*product).tokens)
	part("other storage", (*product).otherStorage)
	part("adopt", func(p *product) { p.adoption(recovery, images) })
}

// disk makes a block device of a new file. It is pulled out by its name.
func (p *product) disk(file, options string) string {
	p.t.Helper()
	return strings.TrimSpace(p.MustSh(fmt.Sprintf("truncate -s 100M /srv/%[1]s && losetup -P -f --show %[2]s /srv/%[1]s", file, options)))
}

// pull takes a disk out and waits for what udev says of it.
func (p *product) pull(disk string) {
	p.t.Helper()
	p.MustSh("losetup -d " + disk + " && udevadm settle --timeout=30")
}

// onDisk makes a home on a device.
func (p *product) onDisk(name, device string) vmtest.Result {
	p.t.Helper()
	return p.Sh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create %s --storage=luks --fs-type=ext4 --image-path=%s %s", password, atMost, name, device, cheap))
}

// real runs homectl of systemd, against whoever has the bus.
func (p *product) real(args string) {
	p.t.Helper()
	p.MustSh(fmt.Sprintf("PASSWORD='%s' NEWPASSWORD='%[1]s' %s /usr/bin/homectl %s", password, atMost, args))
}

func (p *product) imagePath(name string) string {
	p.t.Helper()
	return strings.TrimSpace(p.MustSh("homectl inspect --json=short " + name + " | jq -r '.binding[].imagePath'"))
}

func (p *product) disks() {
	t := p.t
	a := p.disk("disk-a", "")
	if r := p.onDisk("ann", a); r.Code != 0 {
		t.Fatal(r, p.Sh("journalctl -u homed -n 40 --no-pager; lsblk -f; ls -l /dev/disk/by-uuid").Stdout)
	}
	if s := p.state("ann"); s != "inactive" {
		t.Errorf("a new home on a disk is %s", s)
	}
	path := p.imagePath("ann")
	if !strings.HasPrefix(path, "/dev/disk/by-uuid/") {
		t.Errorf("it is bound to %s", path)
	}
	p.MustSh(fmt.Sprintf(`sfdisk --verify %[1]s && test "$(readlink -f %[2]s)" = %[1]sp1 && test "$(blkid -p -o value -s LABEL %[1]sp1)" = ann
		sfdisk --json %[1]s | jq -e '.partitiontable.partitions | length == 1 and (.[0] | (.type | ascii_downcase) == "%[3]s" and .name == "ann")'`, a, path, homeType))
	for device, want := range map[string]string{a: "is not empty, PMBR, gpt was found on it", a + "p1": "not one for this home", "/srv": "already exists", "/dev/null": "already exists"} {
		if r := p.onDisk("zed", device); r.Code != 1 || !strings.Contains(r.Stderr, want) {
			t.Errorf("a home on %s: %v, want %q", device, r, want)
		}
	}

	p.ok("activate ann")
	p.MustSh("echo 'dear ann' >/home/ann/letter && dmsetup deps -o devname home-ann | grep -q '" + filepath.Base(a) + "p1' && findmnt -n -o OPTIONS /home/ann | grep -q discard")
	if r := p.onDisk("zed", a); r.Code != 1 || !strings.Contains(r.Stderr, "in use") {
		t.Errorf("a home on a disk in use: %v", r)
	}
	p.MustSh(atMost + "homectl deactivate ann")
	p.closed("ann")
	if r := p.Sh(fmt.Sprintf("PASSWORD='%s' NEWPASSWORD='%s-2' %s homectl passwd ann", password, password, atMost)); r.Code != 0 {
		t.Error(r)
	}
	if r := p.with(password, "activate ann </dev/null"); r.Code != 1 {
		t.Errorf("the former password: %v", r)
	}
	if r := p.Sh(fmt.Sprintf("PASSWORD='%s-2' NEWPASSWORD='%s' %s homectl passwd ann", password, password, atMost)); r.Code != 0 {
		t.Error(r)
	}

	// Out and in.
	p.pull(a)
	p.becomes("ann", "absent")
	p.says("activate ann", "plug in the necessary storage device")
	a = strings.TrimSpace(p.MustSh("losetup -P -f --show /srv/disk-a"))
	p.becomes("ann", "inactive")

	// The real daemon opens what ours made, and ours what it made.
	b := p.disk("disk-b", "")
	c := p.disk("disk-c", "-b 4096")
	if r := p.onDisk("cleo", c); r.Code != 0 {
		t.Fatal(r)
	}
	p.MustSh("systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
	for _, user := range []string{"ann", "cleo"} {
		p.real("activate " + user)
		p.MustSh("echo 'from theirs' >>/home/" + user + "/letter")
		p.real("deactivate " + user)
	}
	p.real("create bob --storage=luks --fs-type=ext4 --image-path=" + b + " " + cheap)
	p.real("activate bob")
	p.MustSh("echo 'dear bob' >/home/bob/letter")
	p.real("deactivate bob")
	layout := func(disk string) string {
		return p.MustSh("sfdisk --dump " + disk + " | sed -n '/^first-lba/,$ { s/uuid=[^,]*//; s/name=.*//; s:^/dev/[^ ]*::; p }'")
	}
	if theirs, ours := layout(b), layout(a); theirs != ours {
		t.Errorf("the real daemon lays a disk out as %s, ours as %s", theirs, ours)
	}
	p.MustSh("systemctl stop systemd-homed.service && systemctl enable --now homed.service")
	p.ownsBus("/usr/local/lib/hearth/homed")
	for user, letter := range map[string]string{"ann": "dear ann\nfrom theirs", "bob": "dear bob", "cleo": "from theirs"} {
		p.ok("activate " + user)
		if got := p.MustSh("cat /home/" + user + "/letter"); got != letter {
			t.Errorf("%s reads %q", user, got)
		}
		p.MustSh(atMost + "homectl deactivate " + user)
		p.closed(user)
	}

	// A disk without a record is found, and its record taken over.
	p.MustSh(atMost + "homectl unregister bob")
	if r := p.Sh(atMost + "homectl remove cleo"); r.Code != 0 || !strings.Contains(r.Stderr, "Nothing was erased on the device") {
		t.Errorf("remove: %v", r)
	}
	p.becomes("bob", "unfixated")
	p.becomes("cleo", "unfixated")
	p.MustSh("cryptsetup isLuks " + c + "p1")
	p.pull(c)
	p.becomes("cleo", "")
	p.MustSh("losetup -P -f /srv/disk-c -b 4096")
	p.becomes("cleo", "unfixated")
	p.MustSh(fmt.Sprintf(`%s busctl call org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager FixateHome ss cleo '{"password":["%s"]}'`, atMost, password))
	p.becomes("cleo", "inactive")
	if r := p.Sh(fmt.Sprintf(`busctl call org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager FixateHome ss cleo '{"password":["%s"]}'`, password)); r.Code == 0 || !strings.Contains(r.Stderr, "already fixated") {
		t.Errorf("fixated twice: %v", r)
	}
	for _, user := range []string{"bob", "cleo"} {
		p.ok("activate " + user)
		p.MustSh("test -s /home/" + user + "/letter && " + atMost + "homectl deactivate " + user)
	}
	if got := p.MustSh("busctl --json=short get-property org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager AutoLogin"); !strings.Contains(got, `["bob","seat0",`) {
		t.Errorf("logged in by themselves are %s", got)
	}
}

// wholeDisk opens a home by the path of its disk, with the partitions that the
// kernel shows and without.
func (p *product) wholeDisk() {
	d := p.disk("disk-e", "")
	if r := p.onDisk("eli", d); r.Code != 0 {
		p.t.Fatal(r)
	}
	p.MustSh("homectl inspect --json=short eli | jq -c 'del(.binding, .status, .signature) | .perMachine[].imagePath = \"/dev/loop30\" | .lastChangeUSec += 1' >/root/eli.json")
	p.pull(d)
	p.becomes("eli", "absent")
	p.MustSh(atMost + "homectl unregister eli && " + atMost + "homectl register /root/eli.json")
	for options, size := range map[string]string{"-P": "80M", "": "90M"} {
		p.MustSh("losetup " + options + " /dev/loop30 /srv/disk-e && udevadm settle --timeout=30")
		p.ok("resize eli " + size)
		p.MustSh("udevadm settle --timeout=30 && sfdisk --verify /dev/loop30 && sfdisk --json /dev/loop30 | jq -e '.partitiontable.partitions[0].size == " + strings.TrimSuffix(size, "M") + " * 2048'")
		p.ok("activate eli")
		p.MustSh("echo x >>/home/eli/x && " + atMost + "homectl deactivate eli")
		p.closed("eli")
		p.pull("/dev/loop30")
	}
	p.MustSh(atMost + "homectl unregister eli")
}

// partition uses one that somebody set aside.
func (p *product) partition() {
	d := p.disk("disk-d", "-b 4096")
	p.MustSh(fmt.Sprintf("printf 'size=60MiB, type=%s, name=dora\\ntype=%[1]s, name=\"other\"\\n' | sfdisk -q -X gpt %s && udevadm settle", homeType, d))
	if r := p.onDisk("zed", d+"p2"); r.Code != 1 || !strings.Contains(r.Stderr, "not one for this home") {
		p.t.Errorf("a home in another's partition: %v", r)
	}
	if r := p.onDisk("dora", d+"p1"); r.Code != 0 {
		p.t.Fatal(r, p.Sh("journalctl -u homed -n 40 --no-pager; lsblk -f; ls -l /dev/disk/by-uuid").Stdout)
	}
	p.ok("activate dora")
	p.MustSh("dmsetup table home-dora | grep -q sector_size:4096 && echo x >/home/dora/x && " + atMost + "homectl deactivate dora && sfdisk --verify " + d)
	p.closed("dora")
	// Neither end of it is free.
	p.says("resize dora 80M", "Not enough disk space for home dora")
	p.says("resize dora 54M", "cannot be made smaller")
	p.pull(d)
	p.becomes("dora", "absent")
}

// deviceSizes makes homes on disks larger and smaller.
func (p *product) deviceSizes() {
	t := p.t
	d := p.disk("disk-f", "")
	p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create finn --storage=luks --fs-type=ext4 --disk-size=60M --image-path=%s %s", password, atMost, d, cheap))
	is := func(mib int) {
		t.Helper()
		p.MustSh(fmt.Sprintf(`udevadm settle --timeout=30; sfdisk --verify %[1]s && test "$(blockdev --getsize64 %[1]sp1)" = $((%[2]d<<20)) &&
			sfdisk --json %[1]s | jq -e '.partitiontable.partitions | length == 1 and .[0].size == %[2]d * 2048'`, d, mib))
	}
	// The file system has the whole of it, but for the header.
	fills := func(mib int) {
		t.Helper()
		is(mib)
		p.MustSh(fmt.Sprintf(`test "$(blockdev --getsize64 /dev/mapper/home-finn)" = $((%d<<20)) && test "$(stat -f -c '%%b' /home/finn)" -gt $((%d*256))`, mib-16, (mib-16)*85/100))
	}
	is(60)
	p.MustSh(`test "$(stat -c '%a %U' /run/systemd/home/kdf-costs)" = '600 root'`)
	p.ok("activate finn")
	p.MustSh("head -c 8M /dev/urandom >/home/finn/noise && sha256sum /home/finn/noise >/srv/finn.sum")
	fills(60)
	p.ok("resize finn 80M")
	fills(80)
	p.says("resize finn 64M", "File systems of this type can only be shrunk offline")
	fills(80)
	p.MustSh("sha256sum -c /srv/finn.sum && " + atMost + "homectl deactivate finn")
	p.closed("finn")
	p.ok("resize finn 64M")
	p.becomes("finn", "inactive")
	is(64)
	p.MustSh("! head -c 16384 " + d + "p1 | grep -aq hearth-shrinking")
	p.ok("resize finn max")
	p.becomes("finn", "inactive")
	is(98)
	p.ok("activate finn")
	fills(98)
	p.MustSh("sha256sum -c /srv/finn.sum && " + atMost + "homectl deactivate finn")
	p.closed("finn")
	if long() {
		p.resizeCut(d)
	}

	p.pull(d)
	p.becomes("finn", "absent")
}

// larger makes a disk for file systems that need more room.
func (p *product) larger(file string) string {
	p.t.Helper()
	d := p.disk(file, "")
	p.MustSh("truncate -s 420M /srv/" + file + " && losetup -c " + d + " && udevadm settle --timeout=30")
	return d
}

// tableSays compares the size of the one partition, in the table and in the
// kernel, in MiB.
func (p *product) tableSays(disk string, least, most int) {
	p.t.Helper()
	p.MustSh(fmt.Sprintf(`udevadm settle --timeout=30; sfdisk --verify %[1]s >&2 && n=$(sfdisk --json %[1]s | jq '.partitiontable.partitions[0].size') &&
		test $((n * 512)) = "$(blockdev --getsize64 %[1]sp1)" && test $n -ge $((%[2]d * 2048)) -a $n -le $((%[3]d * 2048)) || { echo "it has $n sectors"; exit 1; }`, disk, least, most))
}

// deviceBtrfs makes a home of btrfs on a disk, which changes its size while it is
// in use, at the record's wish with each login and logout too.
func (p *product) deviceBtrfs() {
	t := p.t
	d := p.larger("disk-g")
	p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create gil --storage=luks --fs-type=btrfs --disk-size=300M --image-path=%s %s", password, atMost, d, cheap))
	p.tableSays(d, 300, 300)
	p.ok("activate gil")
	p.fill("gil")
	p.ok("resize gil 380M")
	p.tableSays(d, 380, 380)
	p.ok("resize gil 320M")
	p.tableSays(d, 320, 320)
	p.whole("gil")
	// Closed, by the real homectl.
	p.MustSh(atMost + "homectl deactivate gil")
	p.closed("gil")
	p.real("resize gil 360M")
	p.becomes("gil", "inactive")
	p.tableSays(d, 360, 360)
	p.ok("update gil --auto-resize-mode=shrink-and-grow")
	p.real("activate gil")
	p.tableSays(d, 360, 360)
	p.whole("gil")
	p.real("deactivate gil")
	p.closed("gil")
	p.tableSays(d, 272, 340)
	p.ok("activate gil")
	p.tableSays(d, 360, 360)
	p.whole("gil")
	p.MustSh(atMost + "homectl deactivate gil")
	p.closed("gil")
	if long() {
		// The real daemon cannot resize what is on a partition and not in use, and
		// refuses to open it where the record wants that.
		p.ok("update gil --auto-resize-mode=off")
		p.MustSh("systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
		p.real("activate gil")
		p.whole("gil")
		p.real("deactivate gil")
		p.MustSh("systemctl stop systemd-homed.service && systemctl enable --now homed.service")
		p.ownsBus("/usr/local/lib/hearth/homed")
		p.ok("activate gil")
		p.whole("gil")
		p.MustSh(atMost + "homectl deactivate gil")
		p.closed("gil")
	}
	p.MustSh("cryptsetup isLuks " + d + "p1")
	p.pull(d)
	p.becomes("gil", "absent")
	if r := p.Sh(atMost + "homectl unregister gil"); r.Code != 0 {
		t.Error(r)
	}
}

// deviceXFS makes a home of xfs on a disk, which only ever grows.
func (p *product) deviceXFS() {
	d := p.larger("disk-h")
	p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create hew --storage=luks --fs-type=xfs --disk-size=320M --image-path=%s %s", password, atMost, d, cheap))
	p.ok("activate hew")
	p.fill("hew")
	p.MustSh("test $(findmnt -n -o FSTYPE /home/hew) = xfs")
	p.ok("resize hew 340M")
	p.tableSays(d, 340, 340)
	p.says("resize hew 330M", "File systems of this type cannot be shrunk")
	p.MustSh(atMost + "homectl deactivate hew")
	p.closed("hew")
	p.real("resize hew max")
	p.becomes("hew", "inactive")
	p.tableSays(d, 418, 418)
	p.says("resize hew 330M", "File systems of this type cannot be shrunk")
	p.real("activate hew")
	p.whole("hew")
	p.MustSh("test $(stat -f -c '%b' /home/hew) -gt $((310*256))")
	p.real("deactivate hew")
	p.closed("hew")
	p.pull(d)
	p.becomes("hew", "absent")
	p.MustSh(atMost + "homectl unregister hew")
}

// resizeCut kills the worker while it shrinks finn's home, and hands what became
// of that to the real daemon.
func (p *product) resizeCut(d string) {
	p.t.Helper()
	p.MustSh(fmt.Sprintf("(PASSWORD='%s' homectl resize finn 60M >/dev/null 2>&1 &) ; timeout 30 sh -c 'until head -c 16384 %sp1 | grep -aq hearth-shrinking; do :; done' || { echo nobody shrank it; exit 1; }; systemctl kill -s KILL homed.service; sleep 1; systemctl restart homed.service", password, d))
	p.becomes("finn", "inactive")
	p.ok("activate finn")
	p.MustSh("sha256sum -c /srv/finn.sum && ! head -c 16384 " + d + "p1 | grep -aq hearth-shrinking && " + atMost + "homectl deactivate finn && sfdisk --verify " + d)
	p.closed("finn")
	p.MustSh("systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
	p.real("activate finn")
	p.MustSh("sha256sum -c /srv/finn.sum")
	p.real("deactivate finn")
	p.MustSh("systemctl stop systemd-homed.service && systemctl enable --now homed.service")
	p.ownsBus("/usr/local/lib/hearth/homed")
}

// adoption takes homes from elsewhere.
func (p *product) adoption(foreign home, images string) {
	t := p.t
	p.create("eve")
	p.ok("activate eve")
	p.MustSh("echo 'dear eve' >/home/eve/letter && " + atMost + "homectl deactivate eve && " + atMost + "homectl unregister eve && mv /home/eve.home /srv/")
	p.becomes("eve", "")
	p.says("adopt relative.home", "Failed to adopt home: Specified path is not absolute or not valid: relative.home")
	p.says("adopt /none.home", "Failed to adopt home: No such file or directory")
	p.says("adopt /etc/passwd", "Failed to adopt home: Unrecognized format of home directory: /etc/passwd")
	p.says("adopt", "Too few arguments.")
	if r := p.Sh("su -s /bin/sh nobody -c '" + atMost + "homectl adopt /srv/eve.home' </dev/null"); r.Code != 1 {
		t.Errorf("anybody adopts: %v", r)
	}
	p.ok("adopt /srv/eve.home")
	p.becomes("eve", "unfixated")
	p.ok("activate eve")
	p.MustSh("grep -q 'dear eve' /home/eve/letter && " + atMost + "homectl deactivate eve && systemctl restart homed")
	p.becomes("eve", "inactive")
	if got := p.imagePath("eve"); got != "/srv/eve.home" {
		t.Errorf("eve is at %s", got)
	}
	if r := p.with(password, "adopt /srv/eve.home"); r.Code != 0 || r.Stderr != "" {
		t.Errorf("adopted again: %v", r)
	}
	p.MustSh("cp /srv/eve.home /root/eve.home && cp /srv/eve.home /srv/daemon.home")
	for path, want := range map[string]string{"/root/eve.home": "the home of user eve is at '/srv/eve.home'", "/srv/daemon.home": "an account of the name daemon"} {
		if r := p.with(password, "adopt "+path); r.Code != 0 || !strings.Contains(r.Stderr, want) {
			t.Errorf("adopted although the name is taken: %v, want %q", r, want)
		}
	}

	// One from another machine, first without its key.
	key, err := os.ReadFile(filepath.Join(images, foreign.set, "recovery-key.txt"))
	if err != nil {
		t.Fatal(err)
	}
	user := foreign.user
	p.ok("adopt /srv/" + foreign.file)
	p.becomes(user, "unfixated")
	if r := p.with("fixture-pw-1", "activate "+user+" </dev/null"); r.Code != 1 || !strings.Contains(r.Stderr, "not signed by any known key") {
		t.Errorf("a home of unknown origin: %v", r)
	}
	p.becomes(user, "unfixated")
	p.closed(user)
	p.MustSh(atMost + "homectl add-signing-key /srv/fixtures.public")
	for _, k := range []string{strings.TrimSpace(string(key)), strings.ToUpper(strings.ReplaceAll(strings.TrimSpace(string(key)), "-", "")), "fixture-pw-1"} {
		if r := p.with(k, "activate "+user+" </dev/null"); r.Code != 0 {
			t.Errorf("with a known key and %q: %v", k, r)
			continue
		}
		p.MustSh(atMost + "homectl deactivate " + user)
	}
	p.closed(user)
}

// allocation looks at how much of the disk below an image holds, in use and out
// of it, as the record wants it; and at xfs.
func (p *product) allocation() {
	t := p.t
	held := func(user string) (all bool) {
		t.Helper()
		return strings.TrimSpace(p.MustSh("test $(($(stat -c %b /home/"+user+".home) * 512)) -ge $(stat -c %s /home/"+user+".home) && echo all || echo some")) == "all"
	}
	for _, c := range []struct {
		user, options string
		open, closed  bool // whether all of the image is allocated then
	}{
		{"fay", "--fs-type=ext4 --disk-size=64M", true, false},
		{"gus", "--fs-type=ext4 --disk-size=64M --luks-discard=yes", false, false},
		{"hal", "--fs-type=ext4 --disk-size=64M --luks-offline-discard=no", true, true},
		{"xena", "--fs-type=xfs --disk-size=320M", true, false},
	} {
		if r := p.Sh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create %s --storage=luks %s %s", password, atMost, c.user, c.options, cheap)); r.Code != 0 {
			t.Errorf("%s: %v", c.user, r)
			continue
		}
		if got := held(c.user); got != c.closed {
			t.Errorf("%s, new: all of it allocated is %v", c.options, got)
		}
		p.ok("activate " + c.user)
		if got := held(c.user); got != c.open {
			t.Errorf("%s, open: all of it allocated is %v", c.options, got)
		}
		// What is deleted goes back when the home is closed, if it may.
		p.MustSh(fmt.Sprintf("cd /home/%[1]s && head -c 20M /dev/urandom >big && echo 'dear %[1]s' >letter && sync && rm big; findmnt -n -o FSTYPE /home/%[1]s", c.user))
		p.MustSh(atMost + "homectl deactivate " + c.user)
		if got := held(c.user); got != c.closed {
			t.Errorf("%s, closed: all of it allocated is %v", c.options, got)
		}
		p.ok("activate " + c.user)
		p.MustSh(fmt.Sprintf("grep -q 'dear %[1]s' /home/%[1]s/letter && %[2]s homectl deactivate %[1]s && %[2]s homectl remove %[1]s", c.user, atMost))
		p.clean(c.user)
	}
}

// recovery makes recovery keys, opens homes with them, and has none left that
// should not.
func (p *product) recovery() {
	t := p.t
	activates := func(key string, want bool) {
		t.Helper()
		r := p.with(key, "activate rae </dev/null")
		if (r.Code == 0) != want {
			t.Errorf("with that key: %v, want it to open %v", r, want)
		}
		if r.Code == 0 {
			p.MustSh(atMost + "homectl deactivate rae")
		}
	}
	// opens asks cryptsetup.
	opens := func(key string, want bool) {
		t.Helper()
		r := p.Sh(fmt.Sprintf("L=$(losetup -r -o 1048576 -f --show /home/rae.home); printf %%s '%s' | cryptsetup open --test-passphrase --key-file=- $L; e=$?; losetup -d $L; exit $e", key))
		if (r.Code == 0) != want {
			t.Errorf("cryptsetup: %v, want it to open %v", r, want)
		}
	}
	made := func(r vmtest.Result) string {
		t.Helper()
		key := strings.TrimSuffix(r.Stdout, "\n")
		if r.Code != 0 || len(key) != 71 || !strings.Contains(r.Stderr, "A secret recovery key has been generated for this account:") {
			t.Fatal(r)
		}
		return key
	}
	first := made(p.Sh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create rae --storage=luks --fs-type=ext4 --disk-size=64M --recovery-key=yes --recovery-key-file=/root/rae.key %s", password, atMost, cheap)))
	if got := p.MustSh("stat -c %a /root/rae.key && cat /root/rae.key"); got != "600\n"+first {
		t.Errorf("the file has %q", got)
	}
	activates(first, true)
	activates(strings.ToUpper(strings.ReplaceAll(first, "-", "")), true)
	opens(first, true)

	// Nothing changes where a password is missing or wrong, or offline.
	for _, args := range []string{"PASSWORD=wrong homectl update rae --recovery-key=yes", "homectl update rae --no-ask-password --recovery-key=yes", "homectl update rae --offline --recovery-key=yes"} {
		if r := p.Sh("timeout 60 env " + args + " </dev/null"); r.Code != 1 || r.Stdout != "" {
			t.Errorf("%s: %v", args, r)
		}
	}
	activates(first, true)
	second := made(p.with(password, "update rae --recovery-key=yes </dev/null"))
	activates(first, false)
	opens(first, false)
	opens(second, true)
	opens(password, true)
	activates(password, true)

	// The real daemon opens the home with it too.
	p.MustSh("systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
	p.MustSh(fmt.Sprintf("PASSWORD='%s' %s /usr/bin/homectl activate rae && %[2]s /usr/bin/homectl deactivate rae", second, atMost))
	p.MustSh("systemctl stop systemd-homed.service && systemctl enable --now homed.service")
	p.ownsBus("/usr/local/lib/hearth/homed")

	// On an open home, and none in the end.
	p.ok("activate rae")
	third := made(p.with(password, "update rae --recovery-key=yes --real-name='Rae R' </dev/null"))
	p.MustSh(atMost + "homectl deactivate rae")
	activates(second, false)
	activates(third, true)
	p.ok("update rae --recovery-key=no")
	activates(third, false)
	opens(third, false)
	activates(password, true)
	if got := p.MustSh("homectl inspect --json=short rae | jq -c '[.realName, .recoveryKeyType, .privileged.recoveryKey]'"); got != `["Rae R",null,null]` {
		t.Errorf("the record has %s", got)
	}
	for _, key := range []string{first, second, third} {
		if r := p.Sh("journalctl -b | grep -c " + key); strings.TrimSpace(r.Stdout) != "0" {
			t.Errorf("the journal has a recovery key: %v", r)
		}
	}

	// While it is open, what is no secret changes without one.
	if r := p.Sh(atMost + "homectl update rae --no-ask-password --real-name=R </dev/null"); r.Code != 1 || !strings.Contains(r.Stderr, "No password was given") {
		t.Errorf("on a closed home: %v", r)
	}
	p.ok("activate rae")
	if r := p.Sh(atMost + "homectl update rae --real-name='Ms. Rae' </dev/null"); r.Code != 0 {
		t.Error(r)
	}
	p.MustSh("grep -q 'Ms. Rae' /home/rae/.identity")
	p.MustSh("systemctl restart homed")
	if r := p.Sh(atMost + "homectl update rae --no-ask-password --real-name=R </dev/null"); r.Code != 1 || !strings.Contains(r.Stderr, "No password was given") {
		t.Errorf("without the key in the service: %v", r)
	}
	p.MustSh(atMost + "homectl deactivate rae && " + atMost + "homectl remove rae")

	key := made(p.Sh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create rae --storage=directory --recovery-key=yes --enforce-password-policy=no", password, atMost)))
	activates(key, true)
	activates(made(p.with(password, "update rae --recovery-key=yes </dev/null")), true)
	activates(key, false)
	p.MustSh(atMost + "homectl remove rae")
}

// tokens opens a home that has security tokens with its password.
func (p *product) tokens() {
	t := p.t
	p.create("tod")
	const fields = "[.fido2HmacCredential, .pkcs11TokenUri, .privileged.fido2HmacSalt[0].salt, .privileged.pkcs11EncryptedKey[0].data]"
	p.MustSh(`homectl inspect --json=short tod | jq -c 'del(.binding, .status, .signature) | .lastChangeUSec += 1 | .fido2HmacCredential = ["Y3JlZA=="] | .pkcs11TokenUri = ["pkcs11:model=x"]
		| .privileged.hashedPassword[0] as $h | .privileged.fido2HmacSalt = [{credential: "Y3JlZA==", salt: "c2FsdA==", hashedPassword: ($h + "x"), up: true, uv: false, clientPin: true}]
		| .privileged.pkcs11EncryptedKey = [{uri: "pkcs11:model=x", data: "ZGF0YQ==", hashedPassword: ($h + "y")}]' >/root/tod.json`)
	p.ok("update tod --identity=/root/tod.json")
	want := `[["Y3JlZA=="],["pkcs11:model=x"],"c2FsdA==","ZGF0YQ=="]`
	has := func() {
		t.Helper()
		if got := p.MustSh("homectl inspect --json=short tod | jq -c '" + fields + "'"); got != want {
			t.Errorf("the record has %s", got)
		}
	}
	has()
	p.ok("activate tod")
	p.ok("update tod --real-name='Tod T'")
	p.MustSh("grep -q Y3JlZA== /home/tod/.identity && " + atMost + "homectl deactivate tod")
	has()
	// What the token would ask of the person comes first.
	if r := p.Sh("export PIN=1234 PASSWORD=wrong; " + atMost + "homectl activate tod </dev/null"); r.Code != 1 ||
		!regexp.MustCompile(`(?s)Please confirm presence on security token\..*configured security token not inserted`).MatchString(r.Stderr) {
		t.Errorf("a wrong password: %v", r)
	}
	if r := p.Sh(fmt.Sprintf("PASSWORD='%s' NEWPASSWORD='%[1]s-2' %s homectl passwd tod </dev/null", password, atMost)); r.Code != 1 || !strings.Contains(r.Stderr, "configured security token not inserted") {
		t.Errorf("a change without the tokens: %v", r)
	}
	p.ok("authenticate tod")
	has()
	p.MustSh(atMost + "homectl remove tod")
}

// otherStorage lists what is not opened here, and says so.
func (p *product) otherStorage() {
	t := p.t
	p.MustSh("unxz -k /srv/fscrypt.img.xz && mkdir -p /mnt/fscrypt && mount -o loop /srv/fscrypt.img /mnt/fscrypt")
	p.ok("adopt /mnt/fscrypt/fxfsc.homedir")
	p.becomes("fxfsc", "unfixated")
	if got := p.MustSh("homectl inspect --json=short fxfsc | jq -r '.binding[].storage'"); got != "fscrypt" {
		t.Errorf("it is taken for %s", got)
	}
	if r := p.with("fixture-pw-2", "activate fxfsc </dev/null"); r.Code != 1 || !strings.Contains(r.Stderr, "fscrypt") {
		t.Errorf("an encrypted directory: %v", r)
	}
	p.becomes("fxfsc", "unfixated")
	p.MustSh(`umount /mnt/fscrypt && printf '%s' '{"userName":"cif","disposition":"regular","storage":"cifs","cifsService":"//host/share","cifsUserName":"c","privileged":{"hashedPassword":["$5$rounds=1000$abcdefgh$ue35C0ITbth1b5zVUjrjm2mMmsmMKiodEeH2UV/Hq10"]}}' >/root/cif.json && ` + atMost + "homectl register /root/cif.json")
	if r := p.with("correct horse", "activate cif </dev/null"); r.Code != 1 || !strings.Contains(r.Stderr, "cifs") {
		t.Errorf("a home on a server: %v", r)
	}
	if got := p.MustSh("homectl inspect --json=short cif | jq -c '[.cifsService, .cifsUserName]'"); got != `["//host/share","c"]` {
		t.Errorf("the record has %s", got)
	}
	p.MustSh(atMost + "homectl unregister cif")
}
