package stories

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// TestChaos has many clients ask many things of a service that is killed every
// few seconds. A sample runs with the guest tests, five minutes with the long
// ones; HEARTH_CHAOS_SEED repeats a run, as far as the machine does the same.
func TestChaos(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	p := install(t, vmtest.Options{Suite: vmtest.Forky, Payload: []vmtest.Item{tool(t, "chaos")}})
	// The limit on starts is against services that cannot start.
	p.MustSh(`mkdir -p /etc/systemd/system/homed.service.d && printf '[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=100ms\n' >/etc/systemd/system/homed.service.d/chaos.conf && systemctl daemon-reload`)
	p.enable()
	args := []string{"chaos", "-duration=20s"}
	if long() {
		args = []string{"chaos", "-duration=5m"}
	}
	if seed := os.Getenv("HEARTH_CHAOS_SEED"); seed != "" {
		args = append(args, "-seed="+seed)
	}
	var said strings.Builder
	r := p.Do(vmtest.Command{Argv: args, Stdout: io.MultiWriter(&said, t.Output()), Limit: 15 * time.Minute})
	if r.Code != 0 || !strings.Contains(said.String(), "RESULT chaos") {
		t.Errorf("%v", r)
	}
	if text := p.Sh("journalctl -q -u homed.service | grep -E 'panic|goroutine [0-9]+ \\[' | head").Stdout; text != "" {
		t.Errorf("the service panicked:\n%s", text)
	}
}
