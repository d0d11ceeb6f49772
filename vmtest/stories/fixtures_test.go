package stories

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hearth/vmtest"
)

// A recipe is how the real daemon makes a set of fixtures.
type recipe struct {
	set, user, options string
	realm              string
	// then is what is done with the new home; it may leave an image behind as it
	// is to be kept.
	then     string
	password string // afterwards
	sector   int
}

const fast = "--luks-pbkdf-type=pbkdf2 --luks-pbkdf-time-cost=1ms "

// recipes are those of fixtures/systemd-262-images that take no other machine.
var recipes = []recipe{
	{set: "ext4-pbkdf2-fresh", user: "fxext", options: fast + "--fs-type=ext4"},
	{set: "btrfs-pbkdf2-used", user: "fxbtr", options: fast + "--fs-type=btrfs", password: "fixture-pw-2", then: `
		homectl activate fxbtr; mkdir /home/fxbtr/d; echo hello >/home/fxbtr/hello.txt; ln -s ../hello.txt /home/fxbtr/d/link; homectl deactivate fxbtr
		NEWPASSWORD=fixture-pw-2 homectl passwd fxbtr; PASSWORD=fixture-pw-2 homectl update fxbtr --real-name=Used`},
	{set: "ext4-argon2id-realm", user: "fxrealm", realm: "@example.com",
		options: "--realm=example.com --fs-type=ext4 --luks-pbkdf-type=argon2id --luks-pbkdf-time-cost=1ms --luks-pbkdf-memory-cost=32M --luks-pbkdf-parallel-threads=1"},
	{set: "ext4-pbkdf2-recovery", user: "fxrec", options: fast + "--fs-type=ext4 --recovery-key=yes"},
	{set: "ext4-4k-aes256xts", user: "fxbig", options: "--luks-pbkdf-type=pbkdf2 --luks-pbkdf-force-iterations=1000 --fs-type=ext4 --luks-sector-size=4096 --luks-volume-key-size=64", sector: 4096},
	{set: "ext4-cbc-essiv", user: "fxcbc", options: fast + "--fs-type=ext4 --luks-cipher=aes --luks-cipher-mode=cbc-essiv:sha256 --luks-volume-key-size=32 --luks-pbkdf-hash-algorithm=sha256"},
	{set: "ext4-dirty", user: "fxdirty", options: fast + "--fs-type=ext4", then: `
		homectl activate fxdirty; echo x >/home/fxdirty/file; sync -f /home/fxdirty; cp --sparse=always /home/fxdirty.home "$kept"; homectl deactivate fxdirty`},
	{set: "btrfs-default", user: "fxdef"},
}

// TestMakeFixtures has the real daemon make home images and puts them into the
// directory $HEARTH_FIXTURES, laid out as those in fixtures. Ours opens each, as
// they were packed. (257 puts the partitions of 4096-byte sectors elsewhere.)
func TestMakeFixtures(t *testing.T) {
	dir := os.Getenv("HEARTH_FIXTURES")
	if dir == "" {
		t.Skip("run make fixtures")
	}
	p := install(t, vmtest.Options{Suite: vmtest.Forky})
	// A journal on dm-crypt is 4 MiB that no packer makes smaller.
	p.MustSh(`systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload
		mkdir -p /run/systemd/system/systemd-homed.service.d /srv/out && cat >/run/systemd/system/systemd-homed.service.d/fixtures.conf <<'END'
[Service]
Environment="SYSTEMD_HOME_MKFS_OPTIONS_EXT4=-O ^has_journal"
END
		systemctl daemon-reload && systemctl restart systemd-homed.service`)
	for _, r := range recipes {
		if r.password == "" {
			r.password = "fixture-pw-1"
		}
		p.MustSh(r.script())
	}
	p.MustSh(`cd /home && NEWPASSWORD=fixture-pw-1 timeout 60 /usr/bin/homectl create fxdir --storage=directory --enforce-password-policy=no
		mkdir /srv/out/directory && tar --numeric-owner -cf /srv/out/directory/fxdir.homedir.tar fxdir.homedir && cp /var/lib/systemd/home/fxdir.identity /srv/out/directory/host.identity
		cp /var/lib/systemd/home/local.public /var/lib/systemd/home/local.private /etc/machine-id /srv/out/`)
	made := p.MustSh("/usr/bin/homectl --version | head -n 1; cryptsetup --version; uname -r; mkfs.ext4 -V 2>&1 | head -n 1; mkfs.btrfs --version | head -n 1")

	p.MustSh("systemctl stop systemd-homed.service; systemctl enable homed.service && systemctl restart homed.service")
	p.ownsBus("/usr/local/lib/hearth/homed")
	for _, r := range recipes {
		pw := "fixture-pw-1"
		if r.password != "" {
			pw = r.password
		}
		p.MustSh(fmt.Sprintf("xz -dkc /srv/out/%s/%s.home.xz >/home/%[2]s.home", r.set, r.user+r.realm))
		if got := p.with("wrong", "activate "+r.user+" </dev/null"); got.Code != 1 {
			t.Errorf("%s: a wrong password: %v", r.set, got)
		}
		if got := p.with(pw, "activate "+r.user+" </dev/null"); got.Code != 0 {
			t.Fatalf("%s: %v", r.set, got)
		}
		p.MustSh(atMost + "homectl deactivate " + r.user)
		p.closed(r.user)
	}

	out := filepath.Join(dir, fmt.Sprintf("systemd-%d-images", p.SystemdVersion()))
	if err := os.MkdirAll(out, 0o755); err != nil {
		t.Fatal(err)
	}
	p.MustSh("tar -C /srv/out -cf /srv/out.tar .")
	cmd := exec.Command("tar", "-C", out, "--no-same-owner", "-xf", "-")
	cmd.Stdin = strings.NewReader(string(p.Get("/srv/out.tar")))
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v\n%s", err, text)
	}
	if err := os.WriteFile(filepath.Join(out, "README.md"), []byte(readme(made)), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("made %s", out)
}

// script makes a home and packs it. What no keyslot uses of the keyslots area,
// random bytes that nobody reads, becomes zeros; the image is opened afterwards.
func (r recipe) script() string {
	return fmt.Sprintf(`set -eu
		export PASSWORD=fixture-pw-1 NEWPASSWORD=fixture-pw-1
		homectl() { timeout 120 /usr/bin/homectl "$@"; }
		out=/srv/out/%[1]s kept=/srv/kept.home; mkdir $out; rm -f $kept
		homectl create %[2]s --storage=luks --disk-size=min --luks-discard=yes --enforce-password-policy=no %[3]s >/srv/said
		grep -oE '([cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8}' /srv/said >$out/recovery-key.txt || rm $out/recovery-key.txt
		%[5]s
		image=$out/%[2]s%[4]s.home
		test -e $kept || cp --sparse=always /home/%[2]s%[4]s.home $kept
		mv $kept $image
		cp /var/lib/systemd/home/%[2]s.identity $out/host.identity
		loop=$(losetup -f --show -b %[7]d -o 1048576 $image)
		cryptsetup luksDump $loop >$out/luksDump.txt
		cryptsetup luksDump --dump-json-metadata $loop >$out/luks-metadata.json
		from=8388608
		for slot in $(jq -r '[.keyslots[].area | (.offset | tonumber)] | sort[]' $out/luks-metadata.json) 16777216; do
			test $slot -eq $from || dd if=/dev/zero of=$loop bs=4096 seek=$((from / 4096)) count=$(((slot - from) / 4096)) conv=notrunc status=none
			used=$(jq ".keyslots[] | select(.area.offset == \"$slot\") | .area.key_size * 4000" $out/luks-metadata.json)
			from=$((slot + (${used:-0} + 4095) / 4096 * 4096))
		done
		printf %%s '%[6]s' | cryptsetup open --test-passphrase --key-file=- $loop
		losetup -d $loop
		fallocate --dig-holes $image
		sha256sum <$image | cut -d' ' -f1 >$out/image.sha256
		xz -T1 $image`, r.set, r.user, r.options, r.realm, r.then, r.password, max(r.sector, 512))
}

func readme(made string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Home images made by the real systemd-homed

By "make fixtures", with

    %s

and SYSTEMD_HOME_MKFS_OPTIONS_EXT4="-O ^has_journal". What no keyslot uses of the keyslots area was set to zero, so that the images
compress. Files are as in fixtures/systemd-262-images, without token-record.json.

| set | user | password | created with, beside --disk-size=min --luks-discard=yes |
|---|---|---|---|
`, strings.ReplaceAll(made, "\n", "\n    "))
	for _, r := range recipes {
		pw := "fixture-pw-1"
		if r.password != "" {
			pw = r.password
		}
		fmt.Fprintf(&b, "| %s | %s%s | %s | `%s` |\n", r.set, r.user, r.realm, pw, r.options)
	}
	b.WriteString("| directory | fxdir | fixture-pw-1 | `--storage=directory` |\n")
	return b.String()
}
