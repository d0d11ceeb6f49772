package stories

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hearth/vmtest"
)

// TestHomesOfTheRealDaemon brings images, records and keys that the real
// systemd-homed 262 made, as a machine that changes over would have them.
func TestHomesOfTheRealDaemon(t *testing.T) {
	t.Parallel()
	changeOver(t, "../../fixtures/systemd-262-images", []home{
		{set: "ext4-pbkdf2-fresh", password: "fixture-pw-1"},
		{set: "btrfs-pbkdf2-used", password: "fixture-pw-2", holds: "hello.txt"},
		{set: "ext4-argon2id-realm", password: "fixture-pw-1"},
		{set: "ext4-pbkdf2-recovery", password: "fixture-pw-1"},
		{set: "ext4-cbc-essiv", password: "fixture-pw-1"},
		{set: "ext4-4k-aes256xts", password: "fixture-pw-1"},
		{set: "ext4-dirty", password: "fixture-pw-1", holds: "file"},
	})
}

// TestHomesOfTheRealDaemon257 does the same with homes of systemd 257, whose
// every file is listed with its digest.
func TestHomesOfTheRealDaemon257(t *testing.T) {
	t.Parallel()
	changeOver(t, "../../fixtures/systemd-257-images", []home{
		{set: "ext4-two-passwords", password: "fixture-pw-2"},
		{set: "ext4-rekeyed", password: "fixture-pw-2"},
	})
}

func changeOver(t *testing.T, images string, homes []home) {
	vmtest.Need(t)
	mid, err := os.ReadFile(filepath.Join(images, "machine-id"))
	if err != nil {
		t.Fatal(err)
	}
	o := vmtest.Options{Suite: vmtest.Forky, MachineID: strings.TrimSpace(string(mid))}
	// Git keeps no modes; the daemon insists on them.
	keep := func(from, name string, mode os.FileMode) {
		data, err := os.ReadFile(filepath.Join(images, from))
		if err != nil {
			t.Fatal(err)
		}
		o.Payload = append(o.Payload, vmtest.Item{Data: data, Guest: "/var/lib/systemd/home/" + name, Mode: mode})
	}
	keep("local.private", "local.private", 0o400)
	keep("local.public", "local.public", 0o444)
	for i := range homes {
		h := &homes[i]
		h.unpack(t, images)
		o.Payload = append(o.Payload, vmtest.Item{Host: h.image, Guest: "/home/" + h.file})
		keep(filepath.Join(h.set, "host.identity"), h.user+".identity", 0o600)
	}
	p := install(t, o)
	p.enable()
	for _, h := range homes {
		t.Run(h.set, func(t *testing.T) {
			p := &product{p.With(t), t}
			if r := p.with("wrong", "activate "+h.user+" </dev/null"); r.Code != 1 {
				t.Fatalf("a wrong password: %v", r)
			}
			if r := p.with(h.password, "activate "+h.user); r.Code != 0 {
				t.Fatal(r)
			}
			if h.tree != nil {
				p.Put("/tmp/tree", h.tree, 0o644)
				p.MustSh("cd /home/" + h.user + " && sed '/^--$/,$d' /tmp/tree | sha256sum -c --quiet")
			}
			if h.holds != "" {
				p.MustSh("test -s /home/" + h.user + "/" + h.holds)
			}
			if got := p.MustSh("stat -c '%U %a' /home/" + h.user + " /home/" + h.user + "/.identity"); got != h.user+" 700\n"+h.user+" 600" {
				t.Errorf("owners and modes are %q", got)
			}
			p.MustSh(atMost + "homectl deactivate " + h.user)
			if s := p.state(h.user); s != "inactive" {
				t.Errorf("after deactivation it is %s", s)
			}
		})
	}
}

type home struct {
	set, password, holds string
	user, file, image    string
	tree                 []byte // digests of the files, where the set has them
}

// unpack makes the image of a fixture; the folder ends with the test.
func (h *home) unpack(t *testing.T, images string) {
	t.Helper()
	packed, err := filepath.Glob(filepath.Join(images, h.set, "*.home.xz"))
	if err != nil || len(packed) != 1 {
		t.Fatalf("fixture %s has %d images: %v", h.set, len(packed), err)
	}
	h.file = strings.TrimSuffix(filepath.Base(packed[0]), ".xz")
	h.user, _, _ = strings.Cut(strings.TrimSuffix(h.file, ".home"), "@")
	h.image = filepath.Join(t.TempDir(), h.file)
	in, err := os.Open(packed[0])
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(h.image)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("xz", "--decompress", "--stdout")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
	if err := errors.Join(cmd.Run(), out.Close()); err != nil {
		t.Fatal(err)
	}
	if h.tree, err = os.ReadFile(filepath.Join(images, h.set, "tree.txt")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}
