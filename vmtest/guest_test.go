package vmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestGuest(t *testing.T) {
	Need(t)
	t.Parallel()
	dir := t.TempDir()
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(rand.Uint32())
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), big, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("big", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	const id = "0123456789abcdef0123456789abcdef"
	guest := Boot(t, Options{
		MachineID: id,
		Payload: []Item{
			{Host: dir, Guest: "/srv/payload"},
			{Guest: "/lib/systemd/system/early.service", Data: []byte("[Service]\nType=oneshot\nExecStart=/bin/true\n")},
		},
		Disable: []string{"dbus-org.freedesktop.network1.service", "ldconfig.service"},
	})

	t.Run("exit status and both outputs", func(t *testing.T) {
		g := guest.With(t)
		r := g.Sh("echo out; echo err >&2; exit 7")
		if r.Code != 7 || r.Stdout != "out\n" || r.Stderr != "err\n" {
			t.Errorf("got %v", r)
		}
		if r := g.Sh("kill -TERM $$"); r.Code != 128+int(unix.SIGTERM) {
			t.Errorf("a signal gives status %d", r.Code)
		}
		if _, err := g.Exec(t.Context(), Command{Argv: []string{"/no/such/program"}}); err == nil {
			t.Error("a missing program is no error")
		}
	})
	t.Run("time limit", func(t *testing.T) {
		g := guest.With(t)
		began := time.Now()
		r := g.Do(Command{Argv: []string{"sh", "-c", "echo begun; sleep 100 & sleep 100"}, Limit: time.Second})
		if !r.Expired || r.Code != 128+int(unix.SIGKILL) || r.Stdout != "begun\n" || time.Since(began) > 20*time.Second {
			t.Errorf("after %v: %v", time.Since(began), r)
		}
	})
	t.Run("a caller that leaves", func(t *testing.T) {
		g := guest.With(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.Exec(ctx, Command{Argv: []string{"sleep", "4321"}}); err == nil {
			t.Error("no error")
		}
		if r := g.Run("pgrep", "-f", "sleep 432[1]"); r.Code != 1 {
			t.Errorf("its command goes on: %v", r)
		}
	})
	t.Run("a daemon left behind holds nobody up", func(t *testing.T) {
		if r := guest.With(t).Sh("sleep 1000 & echo left"); r.Stdout != "left\n" || r.Code != 0 {
			t.Errorf("got %v", r)
		}
	})
	t.Run("standard input", func(t *testing.T) {
		g := guest.With(t)
		r := g.Do(Command{Argv: []string{"sha256sum"}, Stdin: bytes.NewReader(big)})
		if want := fmt.Sprintf("%x  -\n", sha256.Sum256(big)); r.Stdout != want {
			t.Errorf("got %v, want %s", r, want)
		}
		if r := g.Do(Command{Argv: []string{"true"}, Stdin: bytes.NewReader(big)}); r.Code != 0 {
			t.Errorf("a program that does not read: %v", r)
		}
	})
	t.Run("fifty megabytes of output", func(t *testing.T) {
		if guest.Runner() != "uml" {
			t.Skip("the serial line of QEMU takes minutes for it")
		}
		began := time.Now()
		r := guest.With(t).Sh("yes 0123456789abcde | head -c 52428800")
		if len(r.Stdout) != 50<<20 || strings.Trim(r.Stdout, "0123456789abcde\n") != "" {
			t.Errorf("got %d bytes", len(r.Stdout))
		}
		t.Logf("%.1f MB/s", 50/time.Since(began).Seconds())
	})
	t.Run("at once", func(t *testing.T) {
		g := guest.With(t)
		flood := make(chan Result)
		go func() {
			r, _ := g.Exec(context.Background(), Command{Argv: []string{"head", "-c", "5000000", "/dev/urandom"}})
			flood <- r
		}()
		for i := range 5 {
			if r := g.Run("echo", fmt.Sprint(i)); r.Stdout != fmt.Sprintln(i) {
				t.Errorf("got %v", r)
			}
		}
		if r := <-flood; len(r.Stdout) != 5000000 {
			t.Errorf("the flood is %d bytes", len(r.Stdout))
		}
	})
	t.Run("files", func(t *testing.T) {
		g := guest.With(t)
		g.Put("/srv/new/file", big, 0o604)
		if !bytes.Equal(g.Get("/srv/new/file"), big) {
			t.Error("the copy differs")
		}
		if got := g.MustSh("stat -c '%a %U %s' /srv/new/file"); got != "604 root 3145728" {
			t.Errorf("stat says %s", got)
		}
	})
	t.Run("payload", func(t *testing.T) {
		g := guest.With(t)
		if !bytes.Equal(g.Get("/srv/payload/link"), big) {
			t.Error("the payload differs")
		}
		if got := g.MustSh("stat -c '%a %U:%G' /srv/payload/big; readlink /lib /srv/payload/link; systemctl start early"); got != "640 root:root\nusr/lib\nbig" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		g := guest.With(t)
		c := g.Terminal("bash", "--norc")
		c.Expect(`[#$] $`, 20*time.Second)
		c.Send("stty size; tty\n")
		c.Expect(`25 80\r\n/dev/pts/\d+\r\n`, 20*time.Second)
		c.Send("read -rsp 'Secret: ' x; echo \"[$x]\"\n")
		c.Expect(`Secret: $`, 20*time.Second)
		c.Send("opén\n")
		c.Expect(`\[opén\]`, 20*time.Second)
		c.Send("exit 5\n")
		if code := c.Wait(); code != 5 {
			t.Errorf("exit status %d; terminal shows:\n%s", code, c.Transcript())
		}
		if strings.Count(c.Transcript(), "opén") != 1 {
			t.Errorf("the terminal echoes a secret:\n%s", c.Transcript())
		}
	})
	t.Run("login", func(t *testing.T) {
		c := guest.With(t).Terminal("login", "root")
		c.Expect(`Password: `, 30*time.Second)
		c.Send("hearth\n")
		c.Expect(`# $`, 30*time.Second)
		c.Send("loginctl --no-legend list-sessions; exit\n")
		c.Expect(`root`, 30*time.Second)
		c.Wait()
	})
	t.Run("ready for homes", func(t *testing.T) {
		g := guest.With(t)
		if got := g.MustSh("cat /etc/machine-id"); got != id {
			t.Errorf("machine id %s", got)
		}
		g.MustSh("lsmod | grep -q ^dm_crypt; lsmod | grep -q ^loop; test -c /dev/mapper/control; test -c /dev/loop-control")
		if got := g.MustSh("busctl call org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager ListHomes"); got != "a(susussso) 0" {
			t.Errorf("ListHomes: %s", got)
		}
		if g.SystemdVersion() < 262 {
			t.Errorf("systemd %d", g.SystemdVersion())
		}
		if got := g.MustSh("systemctl is-enabled ldconfig.service || true"); !strings.HasPrefix(got, "masked") {
			t.Errorf("a disabled unit is %s", got)
		}
		t.Logf("systemd %d, up after %.1f s", g.SystemdVersion(), g.BootSeconds())
	})
	t.Run("the journal", func(t *testing.T) {
		g := guest.With(t)
		g.MustSh("logger -t hearthtest hello from the test; journalctl --sync")
		text, err := g.Journal(t.Context())
		if err != nil || !strings.Contains(text, "hello from the test") {
			t.Errorf("%v; %d bytes", err, len(text))
		}
	})
	t.Run("a power cut", func(t *testing.T) {
		g := guest.With(t)
		g.MustSh("rm /srv/payload/link; echo kept >/srv/kept; sync; echo lost >/srv/lost")
		g.Crash()
		if _, err := g.Exec(t.Context(), Command{Argv: []string{"true"}}); err == nil {
			t.Error("commands run without power")
		}
		g.Restart()
		if got := g.MustSh("cat /srv/kept; cat /etc/machine-id; ls /srv/payload"); got != "kept\n"+id+"\nbig" {
			t.Errorf("after the restart: %s", got)
		}
	})
	t.Run("shutdown", func(t *testing.T) {
		g := guest.With(t)
		g.MustSh("echo unsynced >/srv/unsynced")
		g.Poweroff()
		g.Restart()
		if got := g.MustSh("cat /srv/unsynced"); got != "unsynced" {
			t.Errorf("got %s", got)
		}
	})
}

func TestSuites(t *testing.T) {
	Need(t)
	t.Parallel()
	for _, s := range Suites {
		t.Run(string(s), func(t *testing.T) {
			t.Parallel()
			g := Boot(t, Options{Suite: s})
			want := map[Suite]int{Trixie: 257, Forky: 262}[s]
			if v := g.SystemdVersion(); v != want {
				t.Skipf("systemd is %d, no longer %d", v, want)
			}
			g.MustSh("test -x /usr/lib/systemd/systemd-homed; homectl list --no-legend; command -v pamtester expect jq strace cryptsetup mkfs.btrfs mkfs.xfs sshd xz")
			// A guest has no screen: its getty there gives up sooner or later.
			if got := g.MustSh("systemctl --failed --no-legend --plain | grep -v '^getty@tty1' || :"); got != "" {
				t.Errorf("failed units:\n%s", got)
			}
		})
	}
}

// TestConsole logs in where questions are asked at boot, before any agent of
// ours could carry them.
func TestConsole(t *testing.T) {
	Need(t)
	t.Parallel()
	g := Boot(t, Options{Console: true})
	if g.Runner() == "tcg" {
		t.Skip("takes minutes under emulation")
	}
	c := g.Console()
	c.Expect(`hearth login: $`, 2*time.Minute)
	c.Send("root\n")
	c.Expect(`Password: $`, 30*time.Second)
	c.Send("hearth\n")
	c.Expect(`# `, 30*time.Second)
	c.Send("echo here is $(tty)\n")
	c.Expect(`here is /dev/ttyS0`, 30*time.Second)
	if got := g.MustSh("loginctl --no-legend list-sessions | wc -l"); got == "0" {
		t.Error("the console's session is not there")
	}
}
