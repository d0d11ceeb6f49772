package fsops

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const uuid = "3f9d4f1c-7a52-4d2c-9d5b-0e8f4f6f9a10"

func TestCutLabel(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"ann", 16, "ann"},
		{"sixteen-bytes-ok", 16, "sixteen-bytes-ok"},
		{"seventeen-bytes-x", 16, "seventeen-bytes-"},
		{"fifteen-bytes--ü", 16, "fifteen-bytes--"},
		{"fourteen-bytesü-", 16, "fourteen-bytesü"},
		{"grüße-in-€uro", 12, "grüße-in-"},
		{"", 12, ""},
	} {
		if got := cut(c.in, c.n); got != c.want {
			t.Errorf("cut(%q, %d) = %q, want %q", c.in, c.n, got, c.want)
		}
	}
}

func TestMkfsWords(t *testing.T) {
	for _, c := range []struct {
		o    MkfsOptions
		want string
	}{
		{MkfsOptions{Type: "ext4", Node: "/dev/dm-1", Label: "a-very-long-user-name", UUID: uuid},
			"-L a-very-long-user -U UUID -I 256 -m 0 -E nodiscard,lazy_itable_init=1,hash_seed=UUID -b 4096 -T default -q /dev/dm-1"},
		{MkfsOptions{Type: "ext4", Node: "/dev/dm-1", Label: "ann", UUID: uuid, Discard: true, Extra: []string{"1000"}},
			"-L ann -U UUID -I 256 -m 0 -E discard,lazy_itable_init=1,hash_seed=UUID -b 4096 -T default -q /dev/dm-1 1000"},
		{MkfsOptions{Type: "btrfs", Node: "/dev/dm-1", Label: "a-very-long-user-name", UUID: uuid},
			"-L a-very-long-user-name -U UUID --nodiscard -q /dev/dm-1"},
		{MkfsOptions{Type: "xfs", Node: "/dev/dm-1", Label: "a-very-long-user-name", UUID: uuid, Discard: true},
			"-L a-very-long- -m uuid=UUID -m reflink=1 -q /dev/dm-1"},
	} {
		args, err := c.o.args()
		if got := strings.ReplaceAll(strings.Join(args, " "), uuid, "UUID"); err != nil || got != c.want {
			t.Errorf("got  %s, %v\nwant %s", got, err, c.want)
		}
	}
	if err := MakeFS(t.Context(), MkfsOptions{Type: "vfat"}); !fault.Is(err, fault.NotSupported) {
		t.Errorf("vfat: %v", err)
	}
}

func TestMountOptions(t *testing.T) {
	const rel = unix.MS_RELATIME
	for _, c := range []struct {
		fstype  string
		discard bool
		extra   string
		data    string
		flags   uintptr
	}{
		{"ext4", false, "", "noquota,user_xattr,nodiscard", rel},
		{"btrfs", true, "", "compress=zstd:1,noacl,user_subvol_rm_allowed,discard", rel},
		{"xfs", false, "noatime,ro", "noquota,nodiscard", unix.MS_NOATIME | unix.MS_RDONLY},
		{"ext4", false, "noatime, relatime,,commit=60", "noquota,user_xattr,nodiscard,commit=60", rel},
		{"ext4", false, "x-systemd.automount,nofail,nosuid,suid,strictatime", "noquota,user_xattr,nodiscard", unix.MS_STRICTATIME},
		{"ext4", false, `context="a,ro",noexec`, `noquota,user_xattr,nodiscard,context="a,ro"`, rel | unix.MS_NOEXEC},
	} {
		if data, flags := MountOptions(c.fstype, c.discard, c.extra); data != c.data || flags != c.flags {
			t.Errorf("%s %v %q: %q %#x, want %q %#x", c.fstype, c.discard, c.extra, data, flags, c.data, c.flags)
		}
	}
}

// made makes a file system in a file with the tool itself.
func made(t *testing.T, fstype string) string {
	t.Helper()
	testenv.Need(t, "mkfs."+fstype)
	path := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, MinimumSize(fstype)); err != nil {
		t.Fatal(err)
	}
	if err := MakeFS(t.Context(), MkfsOptions{Type: fstype, Node: path, Label: "ann", UUID: uuid}); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMakeAndProbe(t *testing.T) {
	for _, fstype := range []string{"ext4", "btrfs", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			f, err := os.Open(made(t, fstype))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			if got, id, err := Probe(f); err != nil || got != fstype || id != uuid {
				t.Errorf("probe says %q %q, %v", got, id, err)
			}
		})
	}
}

func TestProbeRefuses(t *testing.T) {
	both := make([]byte, 70000)
	copy(both, "XFSB")
	copy(both[65536+0x40:], "_BHRfS_M")
	ext3 := make([]byte, 70000)
	binary.LittleEndian.PutUint16(ext3[1024+0x38:], ext4Magic)
	for what, b := range map[string][]byte{"nothing": make([]byte, 70000), "two": both, "ext3": ext3, "short": make([]byte, 10)} {
		if _, _, err := Probe(bytes.NewReader(b)); !fault.Is(err, fault.NotAnImage) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestCheck breaks clean file systems and lets e2fsck have its say.
func TestCheck(t *testing.T) {
	testenv.Need(t, "mkfs.ext4", "fsck.ext4")
	patch := func(path string, at int64, b []byte, sum bool) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		super := make([]byte, ext4Size)
		if _, err := f.ReadAt(super, ext4At); err != nil {
			t.Fatal(err)
		}
		copy(super[at:], b)
		if sum {
			binary.LittleEndian.PutUint32(super[0x3FC:], ^crc32.Checksum(super[:0x3FC], crc32.MakeTable(crc32.Castagnoli)))
		}
		if _, err := f.WriteAt(super, ext4At); err != nil {
			t.Fatal(err)
		}
	}
	clean := func(path string, at time.Time) bool {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		ok, err := ext4Clean(f, at)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	now := time.Now()
	path := made(t, "ext4")
	if !clean(path, now) {
		t.Fatal("a new file system is not clean")
	}
	if err := Check(t.Context(), "ext4", path); err != nil {
		t.Error(err)
	}

	for _, c := range []struct {
		what string
		at   int64
		b    []byte
		sum  bool // right checksum
	}{
		{"not unmounted", 0x3A, []byte{0, 0}, true},
		{"errors found", 0x3A, []byte{3, 0}, true},
		{"bad checksum", 0x3FC, []byte{1, 2, 3, 4}, false},
		{"mounted often", 0x34, []byte{9, 0, 9, 0}, true},
	} {
		path := made(t, "ext4")
		patch(path, c.at, c.b, c.sum)
		if clean(path, now) {
			t.Errorf("%s: passes for clean", c.what)
		}
		if err := Check(t.Context(), "ext4", path); err != nil {
			t.Errorf("%s: e2fsck did not repair it: %v", c.what, err)
		}
		// A superblock that is not one at all is nothing e2fsck mends
		// without asking; the kernel refuses to mount it.
		if clean(path, now) != c.sum {
			t.Errorf("%s: clean after e2fsck: %v", c.what, !c.sum)
		}
	}

	patch(path, 0x40, []byte{0, 0, 0, 0, 100, 0, 0, 0}, true) // each 100 s
	if !clean(path, time.Unix(99, 0)) || clean(path, time.Unix(100, 0)) {
		t.Error("the check interval is wrong")
	}

	// The first group's inode table in ruins: preening gives up.
	wrecked := made(t, "ext4")
	patch(wrecked, 0x3A, []byte{0, 0}, true)
	f, err := os.OpenFile(wrecked, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 8<<20), 4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Check(t.Context(), "ext4", wrecked); !fault.Is(err, fault.IOError) {
		t.Errorf("wrecked: %v", err)
	}
}

func TestRunSaysWhatTheToolSaid(t *testing.T) {
	testenv.Need(t, "sh")
	err := run(t.Context(), "/bin/sh", "-c", "echo some; echo words >&2; exit 3")
	if err == nil || err.Error() != "sh: exit status 3: some words" {
		t.Errorf("error is %v", err)
	}
	t.Setenv("HOMED_TEST_LEAK", "1")
	if err := run(t.Context(), "/bin/sh", "-c", `[ -z "$HOMED_TEST_LEAK" ] && read x; [ $? = 1 ]`); err != nil {
		t.Errorf("environment or input: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	err = run(ctx, "/bin/sh", "-c", "sleep 60 & wait")
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 30*time.Second {
		t.Errorf("cancelled after %v: %v", time.Since(start), err)
	}
}

func TestSkeletonAndOwner(t *testing.T) {
	testenv.Need(t, "root")
	ctx := t.Context()
	base := testenv.Scratch(t)
	skel, home := filepath.Join(base, "skel"), filepath.Join(base, "home")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(skel, "bin", "deep"), 0o755))
	must(os.MkdirAll(filepath.Join(home, "bin"), 0o700))
	must(os.WriteFile(filepath.Join(home, "bin", "own"), []byte("kept"), 0o600))
	must(os.WriteFile(filepath.Join(home, ".profile"), []byte("to be replaced"), 0o600))
	must(os.Symlink("/etc/passwd", filepath.Join(home, ".rc")))
	must(os.WriteFile(filepath.Join(skel, ".profile"), []byte("umask 077\n"), 0o644))
	must(os.WriteFile(filepath.Join(skel, ".rc"), []byte("rc\n"), 0o640))
	must(os.WriteFile(filepath.Join(skel, "bin", "tool"), []byte("#!/bin/sh\n"), 0o755))
	must(os.Symlink("bin/tool", filepath.Join(skel, "link")))
	must(unix.Mkfifo(filepath.Join(skel, "pipe"), 0o600))
	must(unix.Mknod(filepath.Join(skel, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	old := time.Date(2020, 2, 3, 4, 5, 6, 7000, time.UTC)
	must(os.Chtimes(filepath.Join(skel, "bin", "tool"), old, old))
	must(os.Chtimes(filepath.Join(skel, "bin"), old, old))
	attr := unix.Setxattr(filepath.Join(skel, ".profile"), "user.note", []byte("hi"), 0) == nil

	link := filepath.Join(base, "skel-link")
	must(os.Symlink(skel, link))
	to, err := os.Open(home)
	must(err)
	defer func() { _ = to.Close() }()
	must(CopySkeleton(ctx, filepath.Join(base, "none"), to, 60100, 60100))
	must(CopySkeleton(ctx, link, to, 60100, 60101))

	for name, want := range map[string]os.FileMode{
		".profile": 0o644, ".rc": 0o640, "bin": 0o755 | os.ModeDir, "bin/deep": 0o755 | os.ModeDir, "bin/tool": 0o755,
		"link": 0o777 | os.ModeSymlink, "pipe": 0o600 | os.ModeNamedPipe,
	} {
		st, err := os.Lstat(filepath.Join(home, name))
		must(err)
		if st.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, st.Mode(), want)
		}
		var u unix.Stat_t
		must(unix.Lstat(filepath.Join(home, name), &u))
		if u.Uid != 60100 || u.Gid != 60101 {
			t.Errorf("%s belongs to %d:%d", name, u.Uid, u.Gid)
		}
		if strings.HasPrefix(name, "bin") && name != "bin/deep" && !st.ModTime().Equal(old) {
			t.Errorf("%s is of %v", name, st.ModTime())
		}
	}
	if got, err := os.ReadFile(filepath.Join(home, ".profile")); err != nil || string(got) != "umask 077\n" {
		t.Errorf(".profile holds %q, %v", got, err)
	}
	if got, err := os.ReadFile(filepath.Join(home, "bin", "own")); err != nil || string(got) != "kept" {
		t.Errorf("what was there holds %q, %v", got, err)
	}
	if _, err := os.Lstat(filepath.Join(home, "null")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a device node was copied: %v", err)
	}
	var note [8]byte
	if n, err := unix.Getxattr(filepath.Join(home, ".profile"), "user.note", note[:]); attr && (err != nil || string(note[:n]) != "hi") {
		t.Errorf("user attribute %q, %v", note[:n], err)
	}

	// Owner.
	outside := filepath.Join(base, "outside")
	must(os.WriteFile(outside, nil, 0o600))
	must(os.Symlink(outside, filepath.Join(home, "out")))
	must(os.Chmod(filepath.Join(home, "bin", "tool"), 0o755|os.ModeSetuid))
	must(ChownTree(ctx, to, 60200, 60200))
	for _, name := range []string{"", "bin", "bin/own", "bin/tool", "out", "pipe"} {
		var u unix.Stat_t
		must(unix.Lstat(filepath.Join(home, name), &u))
		if u.Uid != 60200 || u.Gid != 60200 || u.Mode&unix.S_ISUID != 0 {
			t.Errorf("%q belongs to %d:%d, mode %o", name, u.Uid, u.Gid, u.Mode)
		}
	}
	var u unix.Stat_t
	must(unix.Stat(outside, &u))
	if u.Uid != 0 {
		t.Errorf("a symlink was followed: %d", u.Uid)
	}
	// The top decides: what looks right is left alone.
	must(os.Chown(filepath.Join(home, "bin"), 0, 0))
	must(ChownTree(ctx, to, 60200, 60200))
	must(unix.Lstat(filepath.Join(home, "bin"), &u))
	if u.Uid != 0 {
		t.Error("a tree that is right at its top was walked")
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := ChownTree(cancelled, to, 60300, 60300); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	must(unix.Fstat(int(to.Fd()), &u))
	if u.Uid != 60200 {
		t.Error("an interrupted walk changed the top")
	}
}

func TestSubvolume(t *testing.T) {
	testenv.Need(t, "root", "loop", "btrfs", "mkfs.btrfs", "mount")
	img := made(t, "btrfs")
	dir := testenv.Scratch(t)
	if err := os.Mkdir(dir+"/m", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), "/bin/mount", "-o", "loop", img, dir+"/m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir+"/m", 0) }()
	m, err := os.Open(dir + "/m")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := MakeSubvolume(m, "ann"); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/m/ann", &st); err != nil || st.Ino != 256 {
		t.Errorf("inode %d, %v", st.Ino, err)
	}
	if err := MakeSubvolume(m, "a/b"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a path as a name: %v", err)
	}
}
