package system_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// stage makes a build folder with every program, and returns a function that
// runs install.sh on it.
func stage(t *testing.T) (root string, run func(verb string, env ...string) (string, error)) {
	t.Helper()
	build, root := t.TempDir(), t.TempDir()
	for _, p := range []string{"bin/homed", "bin/homework", "bin/homectl", "bin/pamhome", "bin/homelinger", "pam_home.so"} {
		path := filepath.Join(build, p)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/share/pam-configs"), 0o755); err != nil {
		t.Fatal(err)
	}
	return root, func(verb string, env ...string) (string, error) {
		cmd := exec.Command("sh", "./install.sh", verb)
		cmd.Env = append(append(os.Environ(), "BUILD="+build, "DESTDIR="+root, "PREFIX=/usr/local"), env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

func files(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimPrefix(p, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(all)
	return all
}

func TestStagedInstall(t *testing.T) {
	root, run := stage(t)
	if out, err := run("install"); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	first := files(t, root)
	for _, want := range []string{
		"/usr/local/bin/homectl", "/usr/local/lib/hearth/homed", "/usr/local/lib/hearth/homework", "/usr/local/lib/hearth/pamhome",
		"/usr/local/lib/systemd/system/homed.service", "/usr/local/lib/systemd/system/homed-activate.service", "/usr/local/lib/systemd/homed.conf", "/usr/local/share/doc/hearth/sshd.conf",
		"/usr/local/lib/systemd/system/homed-linger.service", "/usr/local/lib/hearth/homelinger",
		"/usr/local/share/dbus-1/system-services/org.freedesktop.home1.service", "/etc/dbus-1/system.d/hearth-home1.conf",
		"/usr/share/polkit-1/actions/org.freedesktop.home1.policy", "/usr/share/pam-configs/hearth", "/usr/lib/systemd/system-sleep/hearth", "/etc/profile.d/70-hearth-shell.sh",
	} {
		if i := sort.SearchStrings(first, want); i == len(first) || first[i] != want {
			t.Errorf("%s is not installed", want)
		}
	}
	unit, err := os.ReadFile(filepath.Join(root, "usr/local/lib/systemd/system/homed.service"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(unit), "@PREFIX@") || !strings.Contains(string(unit), "ExecStart=/usr/local/lib/hearth/homed\n") {
		t.Errorf("the prefix is not filled in:\n%s", unit)
	}
	manifest, err := os.ReadFile(filepath.Join(root, "usr/local/lib/hearth/manifest"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(manifest), "divert ") {
		t.Error("a staged install diverts files of the machine that packs")
	}
	if got, want := strings.Count(string(manifest), "\n"), len(first)-1; got != want {
		t.Errorf("the manifest lists %d files, %d are there", got, want)
	}

	if out, err := run("install"); err != nil {
		t.Fatalf("second install: %v\n%s", err, out)
	}
	if second := files(t, root); strings.Join(first, "\n") != strings.Join(second, "\n") {
		t.Errorf("installing twice differs from installing once:\n%v\n%v", first, second)
	}

	foreign := filepath.Join(root, "usr/local/lib/systemd/system/other.service")
	if err := os.WriteFile(foreign, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := run("uninstall"); err != nil {
		t.Fatalf("uninstall: %v\n%s", err, out)
	}
	if left := files(t, root); len(left) != 1 || left[0] != strings.TrimPrefix(foreign, root) {
		t.Errorf("uninstall left or took too much: %v", left)
	}
	if out, err := run("uninstall"); err == nil || !strings.Contains(out, "nothing of ours is installed") {
		t.Errorf("a second uninstall says: %v %s", err, out)
	}
}

func TestInstallNeedsABuild(t *testing.T) {
	root, run := stage(t)
	out, err := run("install", "BUILD="+t.TempDir())
	if err == nil || !strings.Contains(out, "make build") {
		t.Errorf("without a build: %v %s", err, out)
	}
	if left := files(t, root); len(left) != 0 {
		t.Errorf("it installed %v all the same", left)
	}
}

// TestInstallTakesPlainPrefixes: a PREFIX that is /usr in other words would
// overwrite the files of a package.
func TestInstallTakesPlainPrefixes(t *testing.T) {
	root, run := stage(t)
	for _, prefix := range []string{"usr", "/", "//", "/usr/../usr", "//usr", "/usr/.", "/a b", "/a|b", "/a&b", "/a%b"} {
		if out, err := run("install", "PREFIX="+prefix); err == nil || !strings.Contains(out, "PREFIX must be") {
			t.Errorf("PREFIX=%s: %v %s", prefix, err, out)
		}
	}
	if left := files(t, root); len(left) != 0 {
		t.Errorf("it installed %v all the same", left)
	}
	if out, err := run("install", "PREFIX=/usr/"); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	for _, want := range []string{"usr/lib/systemd/system/homed.service", "usr/share/dbus-1/system.d/hearth-home1.conf"} {
		if _, err := os.Stat(filepath.Join(root, want)); err != nil {
			t.Error(err)
		}
	}
}

// TestOneTree: two trees would share the PAM module.
func TestOneTree(t *testing.T) {
	root, run := stage(t)
	if out, err := run("install"); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	before := files(t, root)
	for _, verb := range []string{"install", "uninstall"} {
		if out, err := run(verb, "PREFIX=/usr"); err == nil || !strings.Contains(out, "PREFIX=/usr/local") {
			t.Errorf("%s of a second tree: %v %s", verb, err, out)
		}
	}
	if after := files(t, root); strings.Join(before, "\n") != strings.Join(after, "\n") {
		t.Errorf("before:\n%v\nafter:\n%v", before, after)
	}
}

// TestInstallOutsideOfUsr: systemd and the bus must find their files.
func TestInstallOutsideOfUsr(t *testing.T) {
	root, run := stage(t)
	if out, err := run("install", "PREFIX=/opt/hearth"); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	unit, err := os.ReadFile(filepath.Join(root, "usr/local/lib/systemd/system/homed.service"))
	if err != nil || !strings.Contains(string(unit), "ExecStart=/opt/hearth/lib/hearth/homed\n") {
		t.Errorf("unit: %v\n%s", err, unit)
	}
	if _, err := os.Stat(filepath.Join(root, "usr/local/share/dbus-1/system-services/org.freedesktop.home1.service")); err != nil {
		t.Error(err)
	}
}

// TestBrokenInstall: what an install did before it broke off can be undone.
func TestBrokenInstall(t *testing.T) {
	root, run := stage(t)
	inTheWay := filepath.Join(root, "usr/local/lib/systemd")
	if err := os.MkdirAll(filepath.Dir(inTheWay), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(inTheWay, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := run("install"); err == nil {
		t.Fatalf("install over a file in place of a folder: %s", out)
	}
	if out, err := run("uninstall"); err != nil {
		t.Fatalf("uninstall: %v\n%s", err, out)
	}
	if left := files(t, root); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// TestShellExtra: what a session's credentials say is shown in its login shell,
// the welcome once, and nothing of it where systemd's own file does that.
func TestShellExtra(t *testing.T) {
	text, err := os.ReadFile("shell.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	theirs := filepath.Join(dir, "theirs.sh")
	file := filepath.Join(dir, "shell.sh")
	changed := strings.ReplaceAll(string(text), "/etc/profile.d/70-systemd-shell-extra.sh", theirs)
	if changed == string(text) {
		t.Fatal("it does not look for systemd's file")
	}
	if err := os.WriteFile(file, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	shows := func(prompt string, env ...string) string {
		t.Helper()
		cmd := exec.Command("sh", "-euc", prompt+`. "$0"; printf '[%s] %s' "${PS1-none}" "${SHELL_WELCOME-no welcome}"`, file)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	said := []string{"SHELL_PROMPT_PREFIX=pre>", "SHELL_PROMPT_SUFFIX=<post", "SHELL_WELCOME=hi %s there"}
	for _, c := range []struct {
		prompt string
		env    []string
		want   string
	}{
		{"PS1='$ '; ", said, "hi %s there\n[pre>$ <post] no welcome"},
		{"PS1='$ '; ", nil, "[$ ] no welcome"},
		{"unset PS1; ", said, "[none] hi %s there"}, // nobody sits there
	} {
		if got := shows(c.prompt, c.env...); got != c.want {
			t.Errorf("%s%v shows %q, want %q", c.prompt, c.env, got, c.want)
		}
	}
	if err := os.WriteFile(theirs, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := shows("PS1='$ '; ", said...); got != "[$ ] hi %s there" {
		t.Errorf("beside systemd's file: %q", got)
	}
}
