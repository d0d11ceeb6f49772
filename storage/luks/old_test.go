package luks

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/storage"
	"hearth/storage/loop"
	"hearth/storage/luks2"
	"hearth/storage/storagetest"
)

// tool runs a program with input and returns what it printed.
func tool(t *testing.T, input, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// TestOldHome opens, changes and resizes a home as systemd 247 laid them out: a
// partition up to the last usable sector, Argon2i, an ext4 of blocks of 1024
// bytes, and files that belong to the user on the disk. Other programs make it.
func TestOldHome(t *testing.T) {
	testenv.Need(t, "root", "loop", "dm-crypt", "ext4", "mkfs.ext4", "cryptsetup", "sfdisk", "resize2fs")
	const size, start, tail = 64 * mib, 2048, 33
	w := storagetest.New(t, storagetest.Kind{Storage: "luks", Backend: Backend{}, Image: true, Remains: remains, Fields: map[string]any{
		"fileSystemType": "ext4", "autoResizeMode": "off", "luksPbkdfType": "argon2i", "luksPbkdfForceIterations": 4, "luksPbkdfMemoryCost": 1 << 20,
	}})
	signed, err := w.Sign(w.Record)
	if err != nil {
		t.Fatal(err)
	}
	w.Record = signed.Record()
	image := w.View().ImagePath
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		t.Fatal(err)
	}
	sectors := size/512 - start - tail
	tool(t, "label: gpt\nstart="+strconv.Itoa(start)+", size="+strconv.Itoa(sectors)+", type=773f91ef-66d4-49b5-bd83-d683bf40ad16, name="+w.User+"\n", "sfdisk", "-q", image)
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := loop.Attach(t.Context(), f, loop.Config{Offset: start * 512, SizeLimit: int64(sectors) * 512})
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	tool(t, storagetest.Password, "cryptsetup", "luksFormat", "-q", "--type=luks2", "--key-file=-", "--pbkdf=argon2i", "--pbkdf-force-iterations=4", "--pbkdf-memory=1024",
		"--pbkdf-parallel=1", "--cipher=aes-xts-plain64", "--key-size=256", "--sector-size=512", "--label="+w.User, "--subsystem=systemd-home", l.Path)
	part := window{file: l.File, size: int64(sectors) * 512}
	h, err := luks2.Read(part, part.size)
	if err != nil {
		t.Fatal(err)
	}
	password, err := secret.Copy([]byte(storagetest.Password))
	if err != nil {
		t.Fatal(err)
	}
	defer password.Close()
	key, _, err := h.Unlock(part, []*secret.Bytes{password})
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	if err := h.SetHomedToken(part, key, w.Record.Embedded().Compact()); err != nil {
		t.Fatal(err)
	}
	name, at := "old-"+w.User, t.TempDir()
	tool(t, storagetest.Password, "cryptsetup", "open", "--key-file=-", l.Path, name)
	node := "/dev/mapper/" + name
	tool(t, "", "mkfs.ext4", "-q", "-b", "1024", "-L", "old", node)
	if err := unix.Mount(node, at, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(at, w.User)
	err = os.Mkdir(top, 0o700)
	for file, text := range map[string]string{".identity": string(w.Record.Embedded().Compact()), "letter": "dear ann"} {
		path := filepath.Join(top, file)
		err = errors.Join(err, os.WriteFile(path, []byte(text), 0o600), os.Chown(path, storagetest.UID, storagetest.UID))
	}
	err = errors.Join(err, os.Chown(top, storagetest.UID, storagetest.UID), unix.Unmount(at, 0))
	tool(t, "", "cryptsetup", "close", name)
	if err = errors.Join(err, l.Detach(t.Context())); err != nil {
		t.Fatal(err)
	}

	same := func(when string) {
		t.Helper()
		if text, err := os.ReadFile(filepath.Join(w.Home(), "letter")); err != nil || string(text) != "dear ann" {
			t.Errorf("%s: %q, %v", when, text, err)
		}
		for _, path := range []string{w.Home(), filepath.Join(w.Home(), "letter"), filepath.Join(w.Home(), ".identity")} {
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil || st.Uid != storagetest.UID {
				t.Errorf("%s: %s belongs to %d, %v", when, path, st.Uid, err)
			}
		}
	}
	w.Must(t, storage.Activate, storagetest.Password)
	same("open")
	for _, to := range []int{80 * mib, 56 * mib} {
		if to < size {
			w.Must(t, storage.Deactivate, "")
		}
		wants(t, w, to)
		w.Must(t, storage.Resize, storagetest.Password)
		if to < size {
			w.Must(t, storage.Activate, storagetest.Password)
		}
		if n := imageSizeOf(t, w); n > to || n < to-mib {
			t.Errorf("resized to %d, the image has %d bytes", to, n)
		}
		same("resized")
	}
	w.Must(t, storage.Deactivate, "")
	sound(t, w)
	w.Idle(t)
}
