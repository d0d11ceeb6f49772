package stories

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/internal/testenv"
	"hearth/vmtest"
)

const busFixtures = "../../fixtures/systemd-262-bus"

// A busCall is a call as captured, with what came back.
type busCall struct {
	Case      string            `json:"case"`
	Object    string            `json:"object"`
	Interface string            `json:"interface"`
	Member    string            `json:"member"`
	Signature string            `json:"signature"`
	Args      []json.RawMessage `json:"args"`
	CallerUID uint32            `json:"caller_uid"`
	Seconds   float64           `json:"seconds"`
	busAnswer
}

type busAnswer struct {
	Error          string `json:"error"`
	Message        string `json:"message"`
	ReplySignature string `json:"reply_signature"`
	Reply          []any  `json:"reply"`
}

// busFile reads a file of captures; a case that was called again has its
// number behind its name.
func busFile(t testing.TB, name string) []busCall {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(busFixtures, "calls", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var out []busCall
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for i := range out {
		n := out[i].Case
		seen[n]++
		if seen[n] > 1 {
			out[i].Case = fmt.Sprintf("%s#%d", n, seen[n])
		}
	}
	return out
}

// A planStep is what vmtest/cmd/replay reads.
type planStep struct {
	Sh    string   `json:"sh,omitempty"`
	Drop  []string `json:"drop,omitempty"`
	Wait  bool     `json:"wait,omitempty"`
	Call  *busCall `json:"call,omitempty"`
	Async bool     `json:"async,omitempty"`
	Clock int64    `json:"clock,omitempty"`
	Blob  string   `json:"blob,omitempty"`
	Path  bool     `json:"path,omitempty"`
	Arg   string   `json:"arg,omitempty"`
	Limit int      `json:"limit,omitempty"`
	Flood int      `json:"flood,omitempty"`
}

// capturePlan is what happened around the calls and was not captured, and what
// is said of cases beforehand. Lines of plan.txt:
//
//	== FILE               the captures that follow
//	sh CASE SCRIPT        before the case
//	drop CASE CASE...     before the case the references that the others gave end; "all" are all
//	start CASE CASE       the first is called where the second is, and not waited for
//	wait CASE             before the case all that is under way ends
//	blob CASE PATH        whose descriptor the case passes
//	opath CASE            it is opened with O_PATH
//	arg CASE N FILE       the Nth argument, from 0, is what the guest's file holds then
//	flood CASE N          before the case it is called N times, for nobody
//	limit CASE SECONDS    how long an answer is waited for
//	allowed CASE | answer of ours | id in the specification | why
//	instead CASE | words in the answer | ours instead | id in the specification | why
//	text CASE | words of ours | why (the error has the same name: bus.md 22 leaves its words free)
//	skip CASE | why it cannot be replayed mechanically
type capturePlan struct {
	sh            map[string][]string
	drop          map[string][]string
	start         map[string][]string
	started       map[string]bool
	wait, opath   map[string]bool
	blob, arg     map[string]string
	limit, flood  map[string]int
	allowed, text map[string]string
	instead       map[string][2]string
	skip          map[string]string
}

func readPlans(t testing.TB) (files []string, plans map[string]*capturePlan) {
	t.Helper()
	text, err := os.ReadFile("testdata/TestCaptures/plan.txt")
	if err != nil {
		t.Fatal(err)
	}
	plans = map[string]*capturePlan{}
	var p *capturePlan
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(line, " ")
		name, more, _ := strings.Cut(rest, " ")
		switch verb {
		case "", "#":
		case "==":
			p = &capturePlan{sh: map[string][]string{}, drop: map[string][]string{}, start: map[string][]string{}, started: map[string]bool{}, wait: map[string]bool{},
				opath: map[string]bool{}, blob: map[string]string{}, arg: map[string]string{}, limit: map[string]int{}, flood: map[string]int{}, allowed: map[string]string{}, text: map[string]string{}, instead: map[string][2]string{}, skip: map[string]string{}}
			plans[name] = p
			files = append(files, name)
		case "sh":
			p.sh[name] = append(p.sh[name], more)
		case "drop":
			p.drop[name] = append(p.drop[name], strings.Fields(more)...)
		case "start":
			p.start[more] = append(p.start[more], name)
			p.started[name] = true
		case "wait":
			p.wait[name] = true
		case "opath":
			p.opath[name] = true
		case "blob":
			p.blob[name] = more
		case "arg":
			p.arg[name] = more
		case "flood":
			n, err := strconv.Atoi(more)
			if err != nil {
				t.Fatalf("bad line: %s", line)
			}
			p.flood[name] = n
		case "limit":
			n, err := strconv.Atoi(more)
			if err != nil {
				t.Fatalf("bad line: %s", line)
			}
			p.limit[name] = n
		case "allowed":
			f := strings.Split(rest, " | ")
			if len(f) != 4 || !regexp.MustCompile(`^[QPDHN]\d+$`).MatchString(f[2]) || f[3] == "" {
				t.Fatalf("bad line: %s", line)
			}
			p.allowed[f[0]] = f[1]
		case "instead":
			f := strings.Split(rest, " | ")
			if len(f) != 5 || !regexp.MustCompile(`^[QPDHN]\d+$`).MatchString(f[3]) || f[4] == "" {
				t.Fatalf("bad line: %s", line)
			}
			p.instead[f[0]] = [2]string{f[1], f[2]}
		case "text":
			f := strings.Split(rest, " | ")
			if len(f) != 3 || f[2] == "" {
				t.Fatalf("bad line: %s", line)
			}
			p.text[f[0]] = f[1]
		case "skip":
			f := strings.Split(rest, " | ")
			if len(f) != 2 || f[1] == "" {
				t.Fatalf("bad line: %s", line)
			}
			p.skip[f[0]] = f[1]
		default:
			t.Fatalf("bad line: %s", line)
		}
	}
	return files, plans
}

// steps makes of a file's calls what is to be done, in order.
func (p *capturePlan) steps(calls []busCall) []planStep {
	index := map[string]*busCall{}
	for i := range calls {
		index[calls[i].Case] = &calls[i]
	}
	// The clock follows the capture's, as its records say the time.
	first := math.Inf(1)
	for i := range calls {
		if at := changed(&calls[i]); at > 0 {
			first = min(first, at)
		}
	}
	out := []planStep{{Clock: int64((first - 5) * 1e6)}}
	var stamp, guess float64
	add := func(c *busCall, async bool) {
		s := planStep{Call: c, Async: async, Blob: cmp.Or(p.blob[c.Case], "/tmp/blob"), Path: p.opath[c.Case], Arg: p.arg[c.Case], Limit: p.limit[c.Case]}
		if p.skip[c.Case] != "" {
			return
		}
		guess += c.Seconds
		if at := changed(c); at > stamp {
			stamp, guess = at, at
			s.Clock = int64(at * 1e6)
		} else if (strings.HasPrefix(c.Member, "ChangePassword") || strings.HasPrefix(c.Member, "Resize")) && guess-stamp > 1 {
			s.Clock = int64(guess * 1e6)
		}
		out = append(out, s)
	}
	for i := range calls {
		c := &calls[i]
		if p.wait[c.Case] {
			out = append(out, planStep{Wait: true})
		}
		if d := p.drop[c.Case]; d != nil {
			out = append(out, planStep{Drop: d})
		}
		for _, s := range p.sh[c.Case] {
			out = append(out, planStep{Sh: s})
		}
		for _, name := range p.start[c.Case] {
			add(index[name], true)
		}
		if n := p.flood[c.Case]; n > 0 {
			out = append(out, planStep{Call: c, Flood: n})
		}
		if !p.started[c.Case] {
			add(c, false)
		}
	}
	return out
}

// changed is when a call's record says that it was changed, in seconds.
func changed(c *busCall) float64 {
	for _, raw := range c.Args {
		var text string
		if json.Unmarshal(raw, &text) != nil {
			continue
		}
		var r struct {
			LastChangeUSec float64 `json:"lastChangeUSec"`
		}
		if json.Unmarshal([]byte(text), &r) == nil && r.LastChangeUSec > 1e15 && r.LastChangeUSec < 2e15 {
			return r.LastChangeUSec / 1e6
		}
	}
	return 0
}

// in is an answer in one line, without what differs from run to run.
func (a busAnswer) in() string {
	if a.Error != "" {
		text := a.Message
		if a.Error == "org.freedesktop.DBus.Error.NoReply" {
			text = ""
		}
		text = regexp.MustCompile(`again in \d+s!`).ReplaceAllString(text, "again in Ns!")
		text = regexp.MustCompile(`\d+ matched rules; .*`).ReplaceAllString(text, "matched rules")
		return strings.TrimSpace(a.Error + " " + text)
	}
	v := settled("", a.Reply)
	if lists, ok := v.([]any); ok && len(lists) == 1 && a.ReplySignature == "a(susussso)" {
		// bus.md 4: in no order.
		if homes, ok := lists[0].([]any); ok {
			slices.SortFunc(homes, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err.Error()
	}
	return a.ReplySignature + " " + strings.TrimSpace(b.String())
}

var attributes = regexp.MustCompile(`(?: [a-z]+="[^"]*")+`)

var volatile = regexp.MustCompile(`(USec|Counter|UUID|Uuid|rateLimitCount)$|^(data|key|diskSize|diskUsage|diskFree|diskCeiling|diskFloor|hashedPassword|avatar|partitionUuid|luksUuid|fileSystemUuid)$`)

// settled takes out of a value what differs from run to run: times, sizes of
// the disk, signatures, identities; records are read as JSON.
func settled(key string, v any) any {
	if volatile.MatchString(key) {
		return "…"
	}
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if k == "diskUsage" || k == "diskFree" {
				continue // only where the file system keeps quota
			}
			out[regexp.MustCompile(`^[0-9a-f]{32}$`).ReplaceAllString(k, "MID")] = settled(k, e)
		}
		return out
	case []any:
		out := []any{}
		for _, e := range v {
			out = append(out, settled("", e))
		}
		return out
	case string:
		if strings.HasPrefix(v, "{") {
			var r any
			if json.Unmarshal([]byte(v), &r) == nil {
				return settled("", r)
			}
		}
		if strings.HasPrefix(v, "<!DOCTYPE") {
			// The same as XML. TestIntrospectionEqualsTheOriginal compares the rest.
			v = regexp.MustCompile(`>\s*</(method|signal|property|interface)>`).ReplaceAllString(v, "/>")
			return attributes.ReplaceAllStringFunc(v, func(all string) string {
				list := attribute.FindAllString(all, -1)
				slices.Sort(list)
				return strings.Join(list, "")
			})
		}
		if strings.HasPrefix(v, "-----BEGIN") {
			return "PEM"
		}
		v = regexp.MustCompile(`^[0-9a-f]{32}$`).ReplaceAllString(v, "MID")
		v = regexp.MustCompile(`/by-uuid/[0-9a-f-]{36}$`).ReplaceAllString(v, "/by-uuid/UUID")
		return regexp.MustCompile(`^/usr/.*/(systemd-home-fallback-shell|homeshell)$`).ReplaceAllString(v, "FALLBACK-SHELL")
	}
	return v
}

// captureSample is what every run replays.
var captureSample = []string{"05-autologin-restart-deactivateall"}

// userdbctlCaptures compares what userdbctl says of two homes with what it said
// of the same with systemd-homed.
func userdbctlCaptures(p *product) {
	t := p.t
	p.MustSh(fmt.Sprintf(`export TZ=UTC; P='%s'; hc() { timeout 60 /usr/bin/homectl --no-ask-password "$@"; }
		NEWPASSWORD=$P hc create hal --storage=directory --rate-limit-burst=100000 --rate-limit-interval=1s --real-name=Hal --alias=halias -G audio --ssh-authorized-keys='ssh-ed25519 AAAA hal@x' --password-hint=hinty
		PASSWORD=$P hc update halias --location=Z; PASSWORD=$P hc authenticate halias`, password))
	createMax := fmt.Sprintf(`P='%s'
		NEWPASSWORD=$P timeout 60 /usr/bin/homectl create max --storage=directory -c 'Max Mustermann' -G audio,video --shell=/bin/sh --email-address=max@example.com --location=Berlin --birth-date=1980-05-17 --icon-name=max --timezone=Europe/Berlin --language=de_DE.UTF-8,en_US.UTF-8 --alias=maxe,maxi --nice=3 --umask=027 --access-mode=0750 --rlimit=NOFILE=1024:4096 --tasks-max=300 --memory-high=1G --memory-max=2G --cpu-weight=200 --io-weight=300 --tmp-limit=1G --dev-shm-limit=20%% --capability-bounding-set=~cap_sys_module --capability-ambient-set=cap_wake_alarm --not-before=2020-01-01 --not-after=2040-01-01 --password-hint=dog --enforce-password-policy=yes --password-change-min=1h --password-change-max=100d --password-change-warn=7d --password-change-inactive=30d --drop-caches=yes --auto-resize-mode=grow --rebalance-weight=200 --nosuid=no --nodev=yes --noexec=yes --stop-delay=30s --kill-processes=yes --auto-login=no --session-launcher=gnome --session-type=wayland --default-area=work '--ssh-authorized-keys=ssh-ed25519 AAA m@x' --recovery-key=yes --cifs-user-name=maxc --cifs-domain=WG --locked=no --password-change-now=no --setenv=EDITOR=vi --rate-limit-burst=100000 --rate-limit-interval=1s >/dev/null`, password)
	text, err := os.ReadFile("../../fixtures/systemd-262-homectl/transcripts.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := transcript{}, transcript{}
	var names []string
	play := func(c userdbctlCall) {
		q := ""
		for _, a := range c.Argv {
			q += " '" + a + "'"
		}
		r := p.Do(vmtest.Command{Argv: []string{"bash", "-c", "export TZ=UTC LC_ALL=C.UTF-8; timeout 60 runuser -u " + c.User + " --" + q}, Stdin: strings.NewReader(c.Stdin)})
		names = append(names, c.ID)
		theirs[c.ID] = userdbLines(c.Stdout, c.Stderr, c.RC)
		ours[c.ID] = userdbLines(r.Stdout, r.Stderr, r.Code)
	}
	var later []userdbctlCall
	d := json.NewDecoder(bytes.NewReader(text))
	for d.More() {
		var c userdbctlCall
		if err := d.Decode(&c); err != nil {
			t.Fatal(err)
		}
		switch {
		case len(c.Argv) == 0 || c.Argv[0] != "userdbctl":
		case slices.Contains(c.Argv, "max"):
			later = append(later, c) // in another boot
		default:
			play(c)
		}
	}
	p.MustSh(createMax)
	for _, c := range later {
		play(c)
	}
	if len(names) != 22 {
		t.Errorf("%d captures of userdbctl, want 22", len(names))
	}
	compare(t, names, theirs, ours, &testenv.Differences{}, "")
}

// varlinkctl lets the real client read what we serve of the homes that
// userdbctlCaptures made.
func varlinkctl(p *product) {
	const socket = "/run/systemd/userdb/io.systemd.Home"
	out := p.MustSh("timeout 30 varlinkctl call -j --more " + socket + ` io.systemd.UserDatabase.GetUserRecord '{"service":"io.systemd.Home"}'`)
	for _, want := range []string{`"userName":"hal"`, `"userName":"max"`} {
		if !strings.Contains(strings.ReplaceAll(out, " ", ""), want) {
			p.t.Errorf("no %s in %s", want, out)
		}
	}
	if out := p.MustSh("timeout 30 varlinkctl introspect " + socket + " io.systemd.UserDatabase"); !strings.Contains(out, "GetMemberships") {
		p.t.Errorf("introspection is %s", out)
	}
	p.denied(p.Sh("timeout 30 varlinkctl call "+socket+` io.systemd.UserDatabase.GetUserRecord '{"service":"io.systemd.Home","userName":"nosuch"}'`), "NoRecordFound")
}

type userdbctlCall struct {
	ID, Stdin, Stdout, Stderr, User string
	Argv                            []string
	RC                              int
}

// userdbLines takes out of what userdbctl printed the users of the machine that
// are no homes, and what differs from run to run.
func userdbLines(out, err string, code int) []string {
	var lines []string
	var record any
	if json.Unmarshal([]byte(out), &record) == nil {
		// The order of members says nothing.
		text, jerr := json.MarshalIndent(settled("", record), "", "\t")
		return append(strings.Split(string(text), "\n"), err, fmt.Sprint("status ", code, jerr))
	}
	table := strings.HasPrefix(strings.TrimSpace(out), "NAME") || strings.Contains(out, "SERVICE ")
	classic := regexp.MustCompile(`^[a-z0-9_-]+:x:`)
	for line := range strings.Lines(out + err) {
		line = strings.TrimRight(line, " \n")
		if table {
			f := strings.Fields(line)
			if len(f) == 0 || f[0] != "hal" && f[0] != "io.systemd.Home" {
				continue
			}
			line = strings.Join(f, " ")
		}
		if classic.MatchString(line) && !strings.HasPrefix(line, "hal:") {
			continue
		}
		if strings.Contains(line, "Disk Usage:") || strings.Contains(line, "Disk Free:") {
			continue // only where the file system keeps quota
		}
		for _, n := range normal {
			line = n.from.ReplaceAllString(line, n.to)
		}
		line = regexp.MustCompile(`(Good Auth\.|Bad Auth\.|Disk Size|"?(goodAuthenticationCounter|rateLimitCount|diskSize|diskFloor)"?) ?: .*`).ReplaceAllString(line, "$1: N")
		line = regexp.MustCompile(`"[0-9a-f]{32}"`).ReplaceAllString(line, `"MID"`)
		lines = append(lines, line)
	}
	return append(lines, fmt.Sprint("status ", code))
}

// TestErrorsObserved: every error that was seen is the answer to a call that
// TestCaptures makes again or says why not.
func TestErrorsObserved(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(busFixtures, "errors-observed.json"))
	if err != nil {
		t.Fatal(err)
	}
	var seen map[string][]struct{ Member, Message, Case string }
	if err := json.Unmarshal(text, &seen); err != nil {
		t.Fatal(err)
	}
	files, plans := readPlans(t)
	answers := map[string][]busCall{}
	for _, f := range files {
		calls := busFile(t, f)
		for _, c := range calls {
			name, _, _ := strings.Cut(c.Case, "#")
			answers[f+"#"+name] = append(answers[f+"#"+name], c)
		}
		for what, names := range map[string][]string{"allowed": slices.Collect(maps.Keys(plans[f].allowed)), "text": slices.Collect(maps.Keys(plans[f].text)), "skip": slices.Collect(maps.Keys(plans[f].skip)), "start": slices.Collect(maps.Keys(plans[f].started)), "sh": slices.Collect(maps.Keys(plans[f].sh)), "drop": slices.Collect(maps.Keys(plans[f].drop)), "instead": slices.Collect(maps.Keys(plans[f].instead))} {
			for _, n := range names {
				if !slices.ContainsFunc(calls, func(c busCall) bool { return c.Case == n }) {
					t.Errorf("plan.txt, %s: %s speaks of %s, which is no case", f, what, n)
				}
			}
		}
	}
	if len(files) != 11 || len(seen) != 51 {
		t.Errorf("%d files with calls and %d errors, want 11 and 51", len(files), len(seen))
	}
	for name, list := range seen {
		for _, e := range list {
			if !slices.ContainsFunc(answers[e.Case], func(c busCall) bool { return c.Error == name && c.Member == e.Member && c.Message == e.Message }) {
				t.Errorf("%s of %s in %s: no such call", name, e.Member, e.Case)
			}
		}
	}
}

// TestCaptures makes again, in order, every call that was captured from
// systemd-homed 262, and what happened between them, and compares the answers:
// each case is equal, or a line of plan.txt says what ours answers and by what
// right, or why it cannot be made again. All files are played with
// HEARTH_TEST_LONG=1.
func TestCaptures(t *testing.T) {
	t.Parallel()
	files, plans := readPlans(t)
	vmtest.Need(t)
	program := filepath.Join(t.TempDir(), "replay")
	cmd := exec.Command("go", "build", "-o", program, "../cmd/replay")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build replay: %v\n%s", err, text)
	}
	p := install(t, vmtest.Options{Suite: vmtest.Forky, Payload: []vmtest.Item{{Host: program, Guest: "/usr/local/bin/replay"}}})
	if v := p.SystemdVersion(); v != 262 {
		t.Skipf("systemd here is %d: what was captured is 262", v)
	}
	// The machine of the captures.
	p.MustSh(`groupadd -g 1700 grpx; useradd -u 1500 -M plain; usermod -a -G grpx plain; for f in /usr/lib/systemd/system/systemd-homed.service; do test -e $f; done; printf GIF89a >/tmp/blob`)
	unit, worker := "homed.service", "/usr/local/lib/hearth/homework"
	if os.Getenv("HEARTH_TEST_PEER") == "1" { // is the plan right?
		unit, worker = "systemd-homed.service", "/usr/lib/systemd/systemd-homework"
	} else {
		p.MustSh("systemctl enable homed.service")
	}
	// Where the plan says so a worker stops before it does anything, for what has
	// to happen meanwhile: ours may be done before anything else looks.
	p.MustSh("mv " + worker + " " + worker + ".real")
	p.Put(worker, []byte("#!/bin/sh\n[ ! -e /run/hold ] || kill -STOP $$\nexec "+worker+".real \"$@\"\n"), 0o755)
	p.Put("/usr/local/bin/held", []byte(`#!/bin/sh
# held [SIGNAL]: wait until a worker has stopped; send it a signal, and have no
# other stop.
timeout 60 sh -c 'until pgrep -r T homewor >/dev/null; do sleep 0.02; done' || exit 1
[ $# = 0 ] || { rm /run/hold; pkill -"$1" -r T homewor; }
`), 0o755)
	equal, other, skipped := 0, 0, 0
	for _, file := range files {
		only := os.Getenv("HEARTH_TEST_STEPS")
		if only != "" && !strings.Contains(only, file[:2]) || only == "" && !long() && !slices.Contains(captureSample, file) {
			continue
		}
		p.MustSh(`timeout 60 homectl deactivate-all || :; systemctl stop systemd-homed.service homed.service || :; losetup -D; systemctl stop fsbusy flocked lingers || :; rm -rf /var/lib/systemd/home/* /var/cache/systemd/home/* /run/systemd/home /home/* /home/.[a-z]* /root/fill* /root/*.img /srv/* /etc/polkit-1/rules.d/*
			rm -f /etc/systemd/homed.conf; systemctl reset-failed || :; systemctl restart ` + unit)
		t.Run(file, func(t *testing.T) {
			p := &product{p.With(t), t}
			calls, plan := busFile(t, file), plans[file]
			steps := plan.steps(calls)
			text, err := json.Marshal(steps)
			if err != nil {
				t.Fatal(err)
			}
			p.Put("/tmp/plan.json", text, 0o644)
			r := p.Do(vmtest.Command{Argv: []string{"bash", "-c", `busctl --json=short --match="type='signal',sender='org.freedesktop.home1'" monitor >/tmp/signals 2>/tmp/monitor & pid=$!
				for i in $(seq 50); do grep -q Monitoring /tmp/monitor && break; sleep 0.1; done
				replay </tmp/plan.json; code=$?; sleep 1; kill $pid; exit $code`}, Limit: 8 * time.Minute})
			if r.Code != 0 || r.Expired {
				t.Fatal(r)
			}
			if r.Stderr != "" {
				t.Log(r.Stderr)
			}
			answers := map[string]busAnswer{}
			d := json.NewDecoder(strings.NewReader(r.Stdout))
			for d.More() {
				var a struct {
					N int `json:"n"`
					busAnswer
				}
				if err := d.Decode(&a); err != nil {
					t.Fatal(err)
				}
				answers[steps[a.N].Call.Case] = a.busAnswer
			}
			compareSignals(t, file, []byte(p.MustSh("cat /tmp/signals")))
			for _, c := range calls {
				if plan.skip[c.Case] != "" {
					skipped++
					continue
				}
				a, ok := answers[c.Case]
				got, want := a.in(), c.in()
				allowed, may := plan.allowed[c.Case]
				if words, ok := plan.text[c.Case]; ok {
					allowed, may = c.Error+" "+words, true
				}
				if words, ok := plan.instead[c.Case]; ok {
					if allowed, may = strings.Replace(want, words[0], words[1], 1), true; allowed == want {
						t.Errorf("%s does not say %s", c.Case, words[0])
					}
				}
				switch {
				case !ok:
					t.Errorf("%s: no answer", c.Case)
				case got == want && may:
					t.Errorf("%s: equal, and a line allows it to differ", c.Case)
				case got == want:
					equal++
				case got == allowed:
					other++
				default:
					n := 0
					for n < min(len(got), len(want)) && got[n] == want[n] {
						n++
					}
					if n = max(0, n-80); len(got)+len(want) < 600 {
						n = 0
					}
					t.Errorf("%s:\n\t%s\nwant\t%s", c.Case, got[n:], want[n:])
				}
			}
		})
	}
	only := os.Getenv("HEARTH_TEST_STEPS")
	if only == "" || strings.Contains(only, "userdbctl") {
		t.Run("userdbctl", func(t *testing.T) { userdbctlCaptures(&product{p.With(t), t}) })
	}
	if only == "" || strings.Contains(only, "userdbctl") {
		t.Run("varlinkctl", func(t *testing.T) { varlinkctl(&product{p.With(t), t}) })
	}
	t.Logf("RESULT %d captured calls are equal, %d are allowed to differ, %d cannot be made again", equal, other, skipped)
}
