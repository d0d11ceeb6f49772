package blobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/steps"
	"hearth/internal/testenv"
	"hearth/records"
)

// replacesIn has the test program replace the blob directory there, followed by
// the test.
const replacesIn = "HEARTH_TEST_REPLACES_IN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(replacesIn); dir != "" {
		if err := replaceFollowed(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testenv.Main(m)
}

func replaceFollowed(dir string) error {
	if err := steps.Ask(); err != nil {
		return err
	}
	parent, err := os.Open(dir)
	if err != nil {
		return err
	}
	from, err := os.Open(filepath.Join(dir, "from"))
	if err != nil {
		return err
	}
	at := Directory{Parent: parent, Name: "ann", UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Mode: 0o755}
	m := records.Manifest{"avatar": hash("new"), "login-background": hash("other")}
	s, err := Stage(context.Background(), at, fmt.Sprintf(".#ann%d", os.Getpid()), m, In(from), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return s.Commit(context.Background())
}

// TestSteps: a directory comes into its place as a power cut demands, and killed
// before any step of it there is the former one or the new one, whole.
func TestSteps(t *testing.T) {
	testenv.Need(t, "steps")
	for _, former := range []string{"avatar old", ""} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "from"), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "from"), "avatar", "new")
		write(t, filepath.Join(dir, "from"), "login-background", "other")
		ann := filepath.Join(dir, "ann")
		replace := func(before func(steps.Step) bool) error {
			t.Helper()
			if err := os.RemoveAll(ann); err != nil {
				t.Fatal(err)
			}
			if former != "" {
				if err := os.Mkdir(ann, 0o755); err != nil {
					t.Fatal(err)
				}
				write(t, ann, "avatar", "old")
			}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), replacesIn+"="+dir)
			cmd.Stderr = t.Output()
			return steps.Run(cmd, before)
		}
		// holds is what the directory has, with the avatar's text.
		holds := func() string {
			t.Helper()
			if _, err := os.Stat(ann); err != nil {
				return ""
			}
			text, err := os.ReadFile(filepath.Join(ann, "avatar"))
			if err != nil {
				return err.Error()
			}
			return list(t, ann) + " " + string(text)
		}
		n := 0
		o := &steps.Order{Of: func(p string) bool { return p == ann }}
		if err := replace(func(s steps.Step) bool { n++; return o.Step(s) }); err != nil {
			t.Fatal(err)
		}
		o.End()
		if len(o.Faults) != 0 || len(o.Renames) == 0 || holds() != "avatar login-background new" {
			t.Errorf("renamed %q, holds %s; not in order: %q", o.Renames, holds(), o.Faults)
		}
		seen := map[string]int{}
		for last := 1; last <= n; last++ {
			i := 0
			if err := replace(func(steps.Step) bool { i++; return i != last }); err == nil {
				t.Errorf("step %d of %d: it was not killed", last, n)
			}
			seen[holds()]++
		}
		if seen[former] == 0 || seen["avatar login-background new"] == 0 || len(seen) != 2 {
			t.Errorf("killed before each of %d steps it leaves %v", n, seen)
		}
		t.Logf("%d steps: %v", n, seen)
	}
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func target(t *testing.T, parent string) Directory {
	return Directory{Parent: open(t, parent), Name: "ann", UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Mode: 0o755}
}

// TestEnemy: of what a user may put into the directory, only what the signed
// manifest says arrives.
func TestEnemy(t *testing.T) {
	from, parent := t.TempDir(), t.TempDir()
	write(t, from, "avatar", "picture")
	write(t, from, "changed", "other picture")
	write(t, from, "unnamed", "not in the manifest")
	write(t, from, "zz", "last")
	if err := os.Symlink("/etc/shadow", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(from, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(from, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	shadow, _ := os.ReadFile("/etc/shadow")
	m := records.Manifest{"avatar": hash("picture"), "changed": hash("picture"), "link": hash(string(shadow)), "pipe": hash(""), "dir": hash(""), "absent": hash(""), "zz": hash("last")}
	var log bytes.Buffer
	s, err := Stage(t.Context(), target(t, parent), ".#ann1", m, In(open(t, from)), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, parent); got != ".#ann1" {
		t.Errorf("before Commit there is %s", got)
	}
	if err := s.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := list(t, filepath.Join(parent, "ann")); got != "avatar zz" {
		t.Errorf("arrived: %s\n%s", got, &log)
	}
	if n := strings.Count(log.String(), "is left out"); n != 5 {
		t.Errorf("%d blobs were said to be left out\n%s", n, &log)
	}
	dir, err := os.Stat(filepath.Join(parent, "ann"))
	file, ferr := os.Stat(filepath.Join(parent, "ann/avatar"))
	if err != nil || ferr != nil || dir.Mode().Perm() != 0o755 || file.Mode().Perm() != 0o644 {
		t.Errorf("modes %v %v, %v %v", dir, file, err, ferr)
	}
}

func TestTooLarge(t *testing.T) {
	from, parent := t.TempDir(), t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		write(t, from, name, "")
		if err := os.Truncate(filepath.Join(from, name), records.MaxBlobBytes/2); err != nil {
			t.Fatal(err)
		}
	}
	half := hash(strings.Repeat("\x00", records.MaxBlobBytes/2))
	write(t, from, "d", "small")
	m := records.Manifest{"a": half, "b": half, "c": half, "d": hash("small")}
	s, err := Stage(t.Context(), target(t, parent), ".#ann1", m, In(open(t, from)), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, filepath.Join(parent, ".#ann1")); got != "a b" {
		t.Errorf("arrived: %s", got)
	}
	if err := s.Abandon(); err != nil || list(t, parent) != "" {
		t.Errorf("%v, left: %s", err, list(t, parent))
	}
}

// TestReplace: whatever bears the name makes room in one step.
func TestReplace(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"nothing":   func(string) error { return nil },
		"directory": func(p string) error { return os.MkdirAll(filepath.Join(p, "old"), 0o700) },
		"file":      func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"link":      func(p string) error { return os.Symlink("/etc", p) },
	} {
		parent := t.TempDir()
		if err := make(filepath.Join(parent, "ann")); err != nil {
			t.Fatal(err)
		}
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteString("picture"); err != nil { // its position is at the end
			t.Fatal(err)
		}
		m := records.Manifest{"avatar": hash("picture")}
		s, err := Stage(t.Context(), target(t, parent), ".#ann1", m, Of(map[string]*os.File{"avatar": file}), slog.New(slog.DiscardHandler))
		if err == nil {
			err = s.Commit(t.Context())
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := list(t, parent); got != "ann" {
			t.Errorf("%s: the parent has %s", name, got)
		}
		dir, err := Open(open(t, parent), "ann")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !Complete(dir, m) || Complete(dir, records.Manifest{"avatar": "", "x": ""}) || list(t, filepath.Join(parent, "ann")) != "avatar" {
			t.Errorf("%s: it holds %s", name, list(t, filepath.Join(parent, "ann")))
		}
		_ = dir.Close()
		_ = file.Close()
	}
}

func TestOpen(t *testing.T) {
	parent := t.TempDir()
	write(t, parent, "file", "")
	if err := os.Symlink("/etc", filepath.Join(parent, "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "link", "absent"} {
		if f, err := Open(open(t, parent), name); !os.IsNotExist(err) {
			t.Errorf("%s: %v %v", name, f, err)
		}
	}
	if !slices.Equal([]string{"file", "link"}, strings.Fields(list(t, parent))) {
		t.Error("looking changed something")
	}
}
