package fsops

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/testenv"
)

// TestShrinkExt4: what was shrunk passes a check that may not ask. The steps are
// those after which resize2fs alone leaves a resize inode that does not.
func TestShrinkExt4(t *testing.T) {
	testenv.Need(t, "root", "loop", "mount", "ext4", "mkfs.ext4", "fsck.ext4", "resize2fs")
	const mib = 1 << 20
	dir := testenv.Scratch(t)
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "at")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(at, 0o700))
	must(os.WriteFile(image, nil, 0o600))
	must(os.Truncate(image, 46*mib))
	must(MakeFS(t.Context(), MkfsOptions{Type: "ext4", Node: image, Label: "ann", UUID: "11111111-1111-4111-8111-111111111111"}))
	mounted := func(f func()) {
		t.Helper()
		must(run(t.Context(), "/bin/mount", "-o", "loop", image, at))
		f()
		must(unix.Unmount(at, 0))
		for range 100 { // the loop device goes a moment later
			if len(testenv.LoopsBelow(dir)) == 0 {
				break
			}
			unix.Sync()
		}
	}
	files := map[string][]byte{}
	mounted(func() {
		for n := range 12 {
			b := make([]byte, 700_000)
			_, _ = rand.Read(b)
			name := filepath.Join(at, fmt.Sprint("f", n))
			must(os.WriteFile(name, b, 0o600))
			files[name] = b
		}
		for _, n := range []int{2, 5, 8} {
			name := filepath.Join(at, fmt.Sprint("f", n))
			must(os.Remove(name))
			delete(files, name)
		}
	})
	size := func() int64 {
		t.Helper()
		f, err := os.Open(image)
		must(err)
		defer func() { _ = f.Close() }()
		n, err := Span("ext4", nil, f)
		must(err)
		return n
	}
	must(os.Truncate(image, 62*mib))
	if out, err := exec.Command("resize2fs", image).CombinedOutput(); err != nil || size() != 62*mib {
		t.Fatalf("resize2fs: %v, %d bytes\n%s", err, size(), out)
	}
	mounted(func() {})
	for _, n := range []int64{42 * mib, 40 * mib} {
		must(ShrinkExt4(t.Context(), image, n))
		if size() != n {
			t.Errorf("%d bytes, want %d", size(), n)
		}
		must(os.Truncate(image, n))
		if out, err := exec.Command("e2fsck", "-f", "-p", image).CombinedOutput(); err != nil {
			t.Errorf("at %d bytes: %v\n%s", n, err, out)
		}
	}
	if err := ShrinkExt4(t.Context(), image, 6*mib); !fault.Is(err, fault.BadHomeSize) || size() != 40*mib {
		t.Errorf("to less than the files: %v, %d bytes", err, size())
	}
	mounted(func() {
		for name, want := range files {
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s is not what it was (%v)", name, err)
			}
		}
	})
}
