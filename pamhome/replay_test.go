package pamhome

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/testenv"
)

// A trace is one PAM transaction of a fixture.
type trace struct {
	name    string
	user    string
	service string
	items   map[string]string
	refuse  bool
	lines   []string
}

var head = regexp.MustCompile(`^\$ pamtrace service=(\S+) user=(.*?)(?: items=(\S+))?( conv=refuse-prompts)?$`)

func readTraces(t *testing.T, file string) []trace {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var list []trace
	name := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "### "):
			name = line[4:]
		case strings.HasPrefix(line, "$ "):
			m := head.FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("cannot read %q", line)
			}
			tr := trace{name: name, service: m[1], user: m[2], items: map[string]string{}, refuse: m[4] != ""}
			for _, kv := range strings.Split(m[3], ",") {
				if k, v, ok := strings.Cut(kv, "="); ok {
					tr.items[k] = v
				}
			}
			list = append(list, tr)
		case line == "" || len(list) == 0 || strings.HasPrefix(line, "#"):
		default:
			list[len(list)-1].lines = append(list[len(list)-1].lines, line)
		}
	}
	return list
}

var (
	answerLine = regexp.MustCompile(`^  conv .* -> '(.*)'$`)
	resultLine = regexp.MustCompile(`^(\w+) += PAM_(\w+) \(\d+\) +\[.*\] PAM_USER='(.*)'$`)
	busLine    = regexp.MustCompile(`^    bus: (\w+)\(.*\) -> (\w+)$`)
)

// play runs a trace with our hooks and returns it as the fixture writes it:
// conversation and results, environment, bus calls.
func (tr trace) play(t *testing.T) []string {
	l := newLogin(t, tr.user)
	l.items = tr.items
	l.items["service"] = tr.service
	l.refuse = tr.refuse
	var ops [][]string
	for _, line := range tr.lines {
		if m := answerLine.FindStringSubmatch(line); m != nil {
			l.answers = append(l.answers, m[1])
		} else if m := resultLine.FindStringSubmatch(line); m != nil {
			ops = append(ops, m[1:])
		} else if m := busLine.FindStringSubmatch(line); m != nil {
			switch m[1] {
			case "AcquireHome", "ChangePasswordHome":
				l.bus.script = append(l.bus.script, m[2])
			case "RefHome", "ReleaseHome":
				l.bus.ref = append(l.bus.ref, m[2])
			}
		}
	}
	if tr.service == "hometest2" { // pam_unix stands before and asks
		l.authTok, _ = l.prompt("Password: ")
	}
	for i, op := range ops {
		// Like sudo: the application switches to root and back.
		if i > 0 && (op[2] == "root" || ops[i-1][2] == "root") {
			l.user = op[2]
		}
		got := l.run(op[0], 0x4000*btoi(op[0] == "chau"))
		if op[0] == "chau" && got == 0 {
			got = l.run("chau", 0x2000)
		}
		l.authTok = "" // libpam wipes it
		l.say("%s = PAM_%v PAM_USER='%s'", op[0], got, l.user)
	}
	var out, bus []string
	for _, line := range l.lines {
		if strings.HasPrefix(line, "    bus:") {
			bus = append(bus, line)
		} else {
			out = append(out, line)
		}
	}
	return append(append(out, l.envLine()), bus...)
}

func btoi(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// TestReplay holds our hooks against what the original does for every error.
func TestReplay(t *testing.T) {
	allowed := testenv.ReadDifferences(t, "testdata/differences.txt")
	for _, tr := range readTraces(t, "testdata/systemd-262/02-every-error.txt") {
		t.Run(tr.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				var want []string
				for _, line := range tr.lines {
					if m := resultLine.FindStringSubmatch(line); m != nil {
						line = m[1] + " = PAM_" + m[2] + " PAM_USER='" + m[3] + "'"
					}
					want = append(want, line)
				}
				id, _, _ := strings.Cut(tr.name, " ")
				got := tr.play(t)
				for _, d := range testenv.Diff(want, got) {
					if !allowed.Take(id, d) {
						t.Errorf("difference: %s", d)
					}
				}
				if t.Failed() {
					t.Logf("theirs:\n%s\nours:\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
				}
				if id == "G10" && time.Since(begin) < 3*time.Second {
					t.Error("a busy home is not waited for")
				}
			})
		})
	}
	allowed.Unused(t)
}
