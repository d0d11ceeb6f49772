package holders

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearth/internal/testenv"
)

// The test program is its own child.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == Verb {
		switch {
		case os.Getuid() == 60302: // of a user who stops what runs as him
			time.Sleep(time.Minute)
		case os.Getuid() == 60303: // of one who answers in its place
			_, _ = os.Stdout.WriteString(`[{"pid":1,"command":"\u001b[2Jinit","path":"/` + strings.Repeat("x", 300) + `"}]`)
			os.Exit(0)
		}
		os.Exit(Child(os.Stdin, os.Stdout))
	}
	testenv.Main(m)
}

// sleeper starts a process of a user that stays until the test ends.
func sleeper(t *testing.T, uid uint32, dir string) int {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// program is a copy of the test program that any user may start.
func program(t *testing.T) (program, dir string) {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "holders")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program, dir = filepath.Join(base, "program"), filepath.Join(base, "home")
	if err := errors.Join(os.Chmod(base, 0o755), os.WriteFile(program, self, 0o755), os.Mkdir(dir, 0o755), os.Mkdir(dir+"/sub", 0o755)); err != nil {
		t.Fatal(err)
	}
	return program, dir
}

func TestOf(t *testing.T) {
	testenv.Need(t, "root")
	program, dir := program(t)
	mine := sleeper(t, 60301, dir+"/sub")
	sleeper(t, 60304, dir)       // somebody else's
	sleeper(t, 60301, dir+"/..") // not in it
	list, err := Of(program, 60301, 60301, dir)
	if err != nil || len(list) != 1 || list[0] != (Process{mine, "sleep", dir + "/sub"}) {
		t.Errorf("found %+v, %v, want sleep, %d", list, err, mine)
	}
	phrase, err := Who(program, 60305, 60305, dir)
	if err != nil || phrase != "other processes" {
		t.Errorf("of nobody's: %q, %v", phrase, err)
	}
}

func TestChildThatDoesNotAnswer(t *testing.T) {
	testenv.Need(t, "root")
	program, dir := program(t)
	begin := time.Now()
	phrase, err := Who(program, 60302, 60302, dir)
	if !errors.Is(err, os.ErrDeadlineExceeded) || phrase != "other processes" || time.Since(begin) > 10*atMost {
		t.Errorf("%q, %v after %v", phrase, err, time.Since(begin))
	}
}

func TestChildThatLies(t *testing.T) {
	testenv.Need(t, "root")
	program, dir := program(t)
	phrase, err := Who(program, 60303, 60303, dir)
	if err != nil || phrase != "?[2Jinit (1, in /"+strings.Repeat("x", maxText-1)+"…)" {
		t.Errorf("%q, %v", phrase, err)
	}
}

// TestUses finds what is open or mapped, in a stand-in for /proc.
func TestUses(t *testing.T) {
	proc := t.TempDir()
	make := func(pid string, links map[string]string, maps string) {
		at := filepath.Join(proc, pid)
		if err := errors.Join(os.MkdirAll(at+"/fd", 0o755), os.WriteFile(at+"/comm", []byte("p"+pid+"\n"), 0o600), os.WriteFile(at+"/maps", []byte(maps), 0o600)); err != nil {
			t.Fatal(err)
		}
		for name, to := range links {
			if err := os.Symlink(to, filepath.Join(at, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	make("10", map[string]string{"cwd": "/", "root": "/", "exe": "/bin/sh"}, "7f00-7f01 r--p 0 00:1 5    /usr/lib/libc.so\n")
	make("11", map[string]string{"cwd": "/home/anna", "exe": "/bin/sh"}, "")
	make("12", map[string]string{"cwd": "/home/ann"}, "")
	make("13", map[string]string{"cwd": "/", "fd/3": "/home/ann/notes (deleted)"}, "")
	make("14", map[string]string{"cwd": "/", "fd/3": "socket:[5]"}, "7f00-7f01 r--p 0 00:1 5    /home/ann/my lib.so\n")
	make("15", map[string]string{"cwd": "/home/ann"}, "")
	make("self", map[string]string{"cwd": "/home/ann"}, "")
	got := Phrase(Find(proc, "/home/ann", 15))
	if want := "p12 (12, in /home/ann), p13 (13, in /home/ann/notes (deleted)), p14 (14, in /home/ann/my lib.so)"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	list := Find(proc, "/", 0)
	if got := Phrase(append(list, list...)); !strings.HasSuffix(got, fmt.Sprintf("and %d more", 2*len(list)-maxNamed)) {
		t.Errorf("of many: %s", got)
	}
}
