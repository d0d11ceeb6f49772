package fsops

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/testenv"
)

// TestChownLeavesForeignLinksAlone: in a home that is a directory of the host,
// a name may lead to an inode that others own, put there as a hard link. The
// owner has the walk started at will, by a sticky bit on the top directory.
func TestChownLeavesForeignLinksAlone(t *testing.T) {
	testenv.Need(t, "root")
	base := testenv.Scratch(t)
	home := filepath.Join(base, "home")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const uid = 60100
	must(os.MkdirAll(filepath.Join(home, "sub"), 0o700))
	own, root, shared := filepath.Join(home, "own"), filepath.Join(base, "root"), filepath.Join(base, "shared")
	for path, owner := range map[string]int{own: uid, root: 0, shared: 60101, filepath.Join(home, "lone"): 0} {
		must(os.WriteFile(path, nil, 0o600))
		must(os.Chown(path, owner, owner))
		must(unix.Chmod(path, 0o4755))
	}
	must(os.Link(own, filepath.Join(home, "sub", "own")))
	must(os.Link(root, filepath.Join(home, "sub", "root")))
	must(os.Link(shared, filepath.Join(home, "shared")))
	owner := func(path string, want, mode uint32) {
		t.Helper()
		var st unix.Stat_t
		must(unix.Lstat(path, &st))
		if st.Uid != want || st.Mode&0o7777 != mode {
			t.Errorf("%s belongs to %d with mode %#o, want %d with %#o", filepath.Base(path), st.Uid, st.Mode&0o7777, want, mode)
		}
	}
	chown := func(uid uint32) {
		t.Helper()
		to, err := os.Open(home)
		must(err)
		defer func() { _ = to.Close() }()
		must(ChownTree(t.Context(), to, uid, uid))
	}
	must(os.Chown(home, uid, uid))
	must(unix.Chmod(home, 0o1700))
	chown(uid)
	owner(home, uid, 0o700)
	owner(own, uid, 0o755)
	owner(filepath.Join(home, "lone"), uid, 0o755)
	owner(root, 0, 0o4755)
	owner(shared, 60101, 0o4755)

	// A home that comes from another uid takes its own linked files along.
	chown(60200)
	owner(own, 60200, 0o755)
	owner(root, 0, 0o4755)
	owner(shared, 60101, 0o4755)
}

// TestDeepAndWideTrees: how deep and how wide a home is, is its owner's choice;
// what the walk remembers of it must not grow with the square of the depth.
func TestDeepAndWideTrees(t *testing.T) {
	testenv.Need(t, "root")
	base := testenv.Scratch(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const depth, width = 400, 2*batch + 1
	must(os.Mkdir(filepath.Join(base, "home"), 0o700))
	top, err := os.Open(filepath.Join(base, "home"))
	must(err)
	defer func() { _ = top.Close() }()
	for i := range width {
		must(unix.Mkdirat(int(top.Fd()), fmt.Sprint("wide", i), 0o700))
	}
	name := strings.Repeat("d", 200)
	at := top
	for range depth {
		must(unix.Mkdirat(int(at.Fd()), name, 0o700))
		next, err := openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(err)
		if n := len(next.Name()); n > nameKept+len(name)+1 {
			t.Fatalf("a name of %d bytes", n)
		}
		if at != top {
			_ = at.Close()
		}
		at = next
	}
	must(ChownTree(t.Context(), top, 60100, 60100))
	var st unix.Stat_t
	must(unix.Fstat(int(at.Fd()), &st))
	_ = at.Close()
	if st.Uid != 60100 {
		t.Errorf("the deepest directory belongs to %d", st.Uid)
	}
	for i := range width {
		must(unix.Fstatat(int(top.Fd()), fmt.Sprint("wide", i), &st, unix.AT_SYMLINK_NOFOLLOW))
		if st.Uid != 60100 {
			t.Fatalf("entry %d belongs to %d", i, st.Uid)
		}
	}
	parent, err := os.Open(base)
	must(err)
	defer func() { _ = parent.Close() }()
	must(RemoveTree(t.Context(), parent, "home"))
	if _, err := os.Lstat(filepath.Join(base, "home")); !os.IsNotExist(err) {
		t.Errorf("after the removal: %v", err)
	}
}
