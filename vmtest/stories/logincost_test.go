package stories

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/vmtest"
)

// A loginStep is one PAM call, and who makes it when.
type loginStep struct{ name, user, calls, before string }

// loginSteps go from what costs nothing to a whole login: a name that no home can
// have costs our module its helper and nobody else anything; an unknown user,
// a connection to the bus and one call of it on top.
var loginSteps = []loginStep{
	{"no name of a home", "a.b", "auth", ""},
	{"unknown user", "nosuch", "auth", ""},
	{"active", "ann", "auth acct open close", "busctl -q call org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager ActivateHome ss ann '{\"password\":[\"" + password + "\"]}' 2>/dev/null"},
	{"inactive", "ann", "auth acct open close", "busctl -q call org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager DeactivateHome s ann 2>/dev/null"},
}

const rounds = 3 // of one module, the other twice, and the first again

// measure plays the steps with each module and adds up what each call took, in
// microseconds, under "module, step, call".
func (p *product) measure(took map[string][]float64, label string, modules []string) {
	p.t.Helper()
	script := "set -u; rm -rf /tmp/pam.d; mkdir /tmp/pam.d\n"
	for _, module := range modules {
		for _, kind := range []string{"auth", "account", "session", "password"} {
			script += fmt.Sprintf("echo '%s required %s' >>/tmp/pam.d/%s\n", kind, module, strings.TrimSuffix(module, ".so"))
		}
	}
	turn := slices.Concat(modules, modules)
	slices.Reverse(turn[len(modules):])
	script += fmt.Sprintf("for round in $(seq %d); do\n", rounds)
	for _, module := range turn {
		service := strings.TrimSuffix(module, ".so")
		for _, s := range loginSteps {
			// udev has done its part before the clock starts.
			script += fmt.Sprintf("%s\nudevadm settle\necho '### %s, %s, %s'\ntimeout 60 /tmp/host -a '%s' -i tty=tty1 /tmp/pam.d %s %s clock %s clock\n",
				s.before, label, service, s.name, password, service, s.user, strings.ReplaceAll(s.calls, " ", " clock "))
		}
	}
	script += "done\n"
	r := p.Do(vmtest.Command{Argv: []string{"bash", "-c", script}, Limit: 6 * time.Minute})
	if r.Code != 0 {
		p.t.Fatal(r)
	}
	for part := range strings.SplitSeq(r.Stdout, "### ") {
		name, text, _ := strings.Cut(part, "\n")
		before, call := 0.0, ""
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			switch {
			case len(f) == 3 && f[0] == "clock":
				now, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					p.t.Fatal(err)
				}
				if call != "" {
					took[name+", "+call] = append(took[name+", "+call], now-before)
				}
				before = now
			case len(f) > 2 && f[1] == "=":
				call = f[0]
				if known := strings.HasSuffix(name, "active"); known && f[2] != "PAM_SUCCESS" && !strings.Contains(name, "permit") {
					p.t.Errorf("%s: %s", name, line)
				}
			}
		}
	}
}

// TestLoginCost measures what a login costs with our module and with
// systemd's, each on both daemons, and logs the table of docs/performance.md.
// What it measures is no reason to fail.
func TestLoginCost(t *testing.T) {
	if os.Getenv("HEARTH_BENCH") != "1" {
		t.Skip("set HEARTH_BENCH=1")
	}
	vmtest.Need(t)
	host := filepath.Join(t.TempDir(), "host")
	if out, err := exec.Command("cc", "-O", "-o", host, "../../pamhome/shim/shimtest/testdata/host.c", "-lpam").CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	program, err := os.ReadFile(host)
	if err != nil {
		t.Fatal(err)
	}
	p := install(t, vmtest.Options{Suite: vmtest.Forky, Payload: []vmtest.Item{{Data: program, Guest: "/tmp/host", Mode: 0o755}}})
	p.enable()
	p.MustSh(fmt.Sprintf("NEWPASSWORD='%s' %s homectl create ann --storage=directory --enforce-password-policy=no --rate-limit-burst=100000", password, atMost))
	modules := []string{"pam_systemd_home.so", "pam_home.so"}
	took := map[string][]float64{}
	p.measure(took, "ours", append([]string{"pam_permit.so"}, modules...))
	p.MustSh("systemctl stop homed.service && systemctl disable homed.service && systemctl daemon-reload && systemctl start systemd-homed.service")
	p.ownsBus("/usr/lib/systemd/systemd-homed")
	p.measure(took, "theirs", modules)

	median := func(key string) float64 {
		list := slices.Clone(took[key])
		slices.Sort(list)
		if len(list) == 0 {
			return 0
		}
		return list[len(list)/2] / 1000
	}
	var b strings.Builder
	b.WriteString("| ms | systemd's module on its daemon | ours on it | ratio | systemd's module on our daemon | ours on it | ratio |\n|---|---|---|---|---|---|---|\n")
	for _, s := range loginSteps {
		for _, call := range strings.Fields(s.calls) {
			fmt.Fprintf(&b, "| %s, %s |", s.name, call)
			for _, daemon := range []string{"theirs", "ours"} {
				a, o := median(daemon+", pam_systemd_home, "+s.name+", "+call), median(daemon+", pam_home, "+s.name+", "+call)
				fmt.Fprintf(&b, " %.1f | %.1f | %.2f |", a, o, o/max(a, 0.001))
			}
			b.WriteString("\n")
		}
	}
	const none, unknown = ", pam_home, no name of a home, auth", ", pam_home, unknown user, auth"
	fmt.Fprintf(&b, "\nNo module at all: %.1f ms. Our helper: %.1f ms. Bus and one call: ours %.1f, systemd's module %.1f ms.\n",
		median("ours, pam_permit, unknown user, auth"), median("theirs"+none), median("theirs"+unknown)-median("theirs"+none),
		median("theirs, pam_systemd_home, unknown user, auth"))
	t.Logf("%d runs of each module and daemon\n%s", 2*rounds, b.String())
}
