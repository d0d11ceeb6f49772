package subvolume

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/testenv"
	"hearth/storage"
	"hearth/storage/fsops"
	"hearth/storage/presence"
	"hearth/storage/storagetest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func kind(fstype string) storagetest.Kind {
	return storagetest.Kind{
		Storage: "subvolume", Backend: Backend{}, FileSystem: fstype,
		Needs: []string{"loop", "mount", fstype, "mkfs." + fstype},
	}
}

// TestSuite: on ext4 there is nothing but the fallback.
func TestSuite(t *testing.T) {
	for _, fstype := range []string{"btrfs", "ext4"} {
		t.Run(fstype, func(t *testing.T) { storagetest.Run(t, kind(fstype)) })
	}
}

func btrfs(t *testing.T, fields map[string]any) *storagetest.World {
	t.Helper()
	testenv.Need(t, "root", "loop", "mount", "btrfs", "mkfs.btrfs")
	k := kind("btrfs")
	k.Fields = fields
	return storagetest.New(t, k)
}

// TestOnDisk looks at a closed home from outside, as another system would.
func TestOnDisk(t *testing.T) {
	for fstype, want := range map[string]uint32{"btrfs": storage.NeutralOwner, "ext4": storagetest.UID} {
		t.Run(fstype, func(t *testing.T) {
			testenv.Need(t, "root", "loop", "mount", fstype, "mkfs."+fstype)
			w := storagetest.New(t, kind(fstype))
			w.Must(t, storage.Create, storagetest.Password)
			image := w.View().ImagePath
			top, err := os.Open(image)
			if err != nil {
				t.Fatal(err)
			}
			is, err := fsops.IsSubvolume(top)
			if cerr := top.Close(); is != (fstype == "btrfs") || err != nil || cerr != nil {
				t.Errorf("a subvolume: %v, %v, %v", is, err, cerr)
			}
			for _, name := range []string{".", ".identity", ".profile"} {
				var st unix.Stat_t
				if err := unix.Lstat(filepath.Join(image, name), &st); err != nil || st.Uid != want || st.Gid != want {
					t.Errorf("%s belongs to %d:%d on the disk, %v", name, st.Uid, st.Gid, err)
				}
			}
			if info, err := os.Stat(image); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("mode of the area: %v, %v", info.Mode(), err)
			}
			w.Must(t, storage.Activate, storagetest.Password)
			if b, _ := w.Record.Binding(storagetest.Machine.ID); b.FileSystemType != fstype {
				t.Errorf("binding after activation: %+v", b)
			}
		})
	}
}

// TestNested removes a home in which its user made subvolumes, one of them
// read-only, with another one inside.
func TestNested(t *testing.T) {
	w := btrfs(t, nil)
	testenv.Need(t, "btrfs")
	w.Must(t, storage.Create, storagetest.Password)
	w.Must(t, storage.Activate, storagetest.Password)
	for _, args := range [][]string{
		{"subvolume", "create", "d/a"}, {"subvolume", "create", "d/a/b"}, {"subvolume", "create", "d/a/b/c"},
		{"subvolume", "snapshot", "d/a", "s"}, {"property", "set", "d/a/b", "ro", "true"},
	} {
		if err := os.MkdirAll(filepath.Join(w.Home(), "d"), 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("btrfs", args...)
		cmd.Dir = w.Home()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("btrfs %q: %v\n%s", args, err, out)
		}
	}
	w.Must(t, storage.Deactivate, "")
	w.Must(t, storage.Remove, "")
	out, err := exec.Command("btrfs", "subvolume", "list", w.Root).CombinedOutput()
	if err != nil || len(out) != 0 {
		t.Errorf("subvolumes after remove: %v\n%s", err, out)
	}
	if _, err := os.Lstat(w.View().ImagePath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after remove: %v", err)
	}
}

// TestQuota: the size bounds what the user can write, and the limit goes with
// the home.
func TestQuota(t *testing.T) {
	w := btrfs(t, map[string]any{"diskSize": 16 << 20})
	w.Must(t, storage.Create, storagetest.Password)
	if strings.Contains(w.Log.String(), "not limited") {
		t.Fatal(w.Log)
	}
	limits := func() string {
		out, err := exec.Command("btrfs", "qgroup", "show", "-r", "--raw", w.Root).CombinedOutput()
		if err != nil {
			t.Fatalf("btrfs qgroup show: %v\n%s", err, out)
		}
		return string(out)
	}
	if got := limits(); !strings.Contains(got, "16777216") {
		t.Errorf("no limit was set:\n%s", got)
	}
	w.Must(t, storage.Activate, storagetest.Password)
	if said := w.Overfill(t, "big", 64); !strings.Contains(said, "quota exceeded") {
		t.Errorf("writing more than the size: %q", said)
	}
	for _, open := range []bool{true, false} {
		size := 48 << 20
		if !open {
			w.Must(t, storage.Deactivate, "")
			size = 32 << 20
		}
		w.Record = w.With(t, map[string]any{"diskSize": size, "lastChangeUSec": w.Record.LastChangeUSec() + 1})
		w.Must(t, storage.Resize, storagetest.Password)
		unix.Sync()
		used, limit, ok, err := presence.Quota(w.View().ImagePath, storagetest.UID)
		if err != nil || !ok || limit != uint64(size) || used < 10<<20 || used > 17<<20 {
			t.Errorf("resized, open %v: %d of %d, %v, %v", open, used, limit, ok, err)
		}
		if got := limits(); !strings.Contains(got, fmt.Sprint(size)) {
			t.Errorf("the limit is not %d:\n%s", size, got)
		}
	}
	w.Record = w.With(t, map[string]any{"diskSize": 16 << 20, "lastChangeUSec": w.Record.LastChangeUSec() + 1})
	w.Must(t, storage.Resize, storagetest.Password)
	w.Must(t, storage.Remove, "")
	if got := limits(); strings.Contains(got, "16777216") {
		// The kernel drops it when the blocks are gone; ours may be too early.
		if !strings.Contains(w.Log.String(), "qgroup of the subvolume stays") {
			t.Errorf("the limit is left and nobody was told:\n%s", got)
		}
	}
}
