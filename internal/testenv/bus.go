package testenv

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// BusUsers are uids that the bus of Bus knows beside those of the host, if the
// test runs as root: dbus-daemon turns away a uid that has no account.
var BusUsers = []uint32{1500, 60456}

// Bus starts a message bus of the test's own, open to every user, and returns
// its D-Bus address. It hardly limits calls that wait for an answer. It ends with
// the test. What the daemon prints goes to the test's log when the test fails.
func Bus(t testing.TB) string {
	t.Helper()
	Need(t, "dbus-daemon")
	// Not t.TempDir: its name is long, and a socket path has 107 bytes.
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "bus.conf")
	text := fmt.Sprintf(`<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
 <type>session</type>
 <listen>unix:path=%s</listen>
 <auth>EXTERNAL</auth>
 <limit name="max_replies_per_connection">50000</limit>
 <policy context="default">
  <allow user="*"/>
  <allow own="*"/>
  <allow send_destination="*" eavesdrop="true"/>
  <allow eavesdrop="true"/>
 </policy>
</busconfig>
`, filepath.Join(dir, "socket"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"dbus-daemon", "--config-file=" + conf, "--nofork", "--nopidfile", "--print-address"}
	cmd := exec.Command(args[0], args[1:]...)
	if root() == nil {
		accounts, err := os.ReadFile("/etc/passwd")
		if err != nil {
			t.Fatal(err)
		}
		for _, uid := range BusUsers {
			accounts = fmt.Appendf(accounts, "test%d:x:%d:%d::/:/bin/sh\n", uid, uid, uid)
		}
		passwd := filepath.Join(dir, "passwd")
		if err := os.WriteFile(passwd, accounts, 0o644); err != nil {
			t.Fatal(err)
		}
		// In a mount namespace of its own; the runtime makes it private.
		cmd = exec.Command("sh", append([]string{"-c", `mount --bind "$0" /etc/passwd; exec "$@"`, passwd}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("dbus-daemon: %s", stderr.String())
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon printed no address: %v", err)
	}
	return strings.TrimSpace(line)
}
