package main

import (
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args, rest, wrong string
	}{
		{"create ann --storage=luks -c Ann --disk-size 5G", "create ann", ""},
		{"list --no-legend -j", "list", ""},
		{"-PG audio create x", "create x", ""},
		{"with ann -- ls -l", "with ann ls -l", ""},
		{"--stor=luks inspect -", "inspect -", ""},
		{"--bogus", "", "homectl: unrecognized option '--bogus'"},
		{"--=x", "", "homectl: unrecognized option '--'"},
		{"-Z", "", "homectl: unrecognized option '-Z'"},
		{"--real x", "", "homectl: option '--real' is ambiguous; possibilities: --real-name, --realm"},
		{"--offline=1", "", "homectl: option '--offline' doesn't allow an argument"},
		{"--nice=x", "", "Failed to parse nice level 'x': Invalid argument"},
		{"--nice=-21", "", "Failed to parse nice level '-21': Numerical result out of range"},
		{"list -c", "", "homectl: option '-c' requires an argument"},
		{"--json=maybe", "", "Unknown argument to --json= switch: maybe"},
		{"--uid=0", "", "UID 0 is in system range, refusing."},
		{"--uid=01", "", "Failed to parse UID '01'."},
		{"--shell=bash", "", "Shell 'bash' not valid."},
		{"--recovery-key=maybe create zoe", "", "Failed to parse --recovery-key= argument: maybe"},
		{"--fido2-device=auto", "", "Option --fido2-device is not available yet."},
		{"--birth-date 1990-01-01", "1990-01-01", ""},
		{"--luks-sector-size=1000", "", "Sector size not power of 2: 1000"},
		{"--rlimit=NOFILE=9:5", "", "Failed to parse resource limit value: 9:5"},
		{"--rlimit=LIMIT_NOFILE=9", "", "Unknown resource limit type: LIMIT_NOFILE"},
		{"-E -E -E", "", "Specifying -E more than twice is not supported."},
	} {
		cmd := &command{program: "homectl", assembly: newAssembly(), in: os.Stdin, out: os.Stdout, err: os.Stderr}
		rest, err := parse("homectl", allOptions(), strings.Fields(c.args), cmd)
		if c.wrong != "" {
			if err == nil || err.Error() != c.wrong {
				t.Errorf("%s: error %v, want %q", c.args, err, c.wrong)
			}
			continue
		}
		if err != nil || strings.Join(rest, " ") != c.rest {
			t.Errorf("%s: left %v, error %v; want %q", c.args, rest, err, c.rest)
		}
	}
}

func TestNearest(t *testing.T) {
	var known []string
	for _, v := range verbs() {
		if v.group != "" {
			known = append(known, v.name)
		}
	}
	for word, want := range map[string]string{"frob": "list", "lst": "list", "creat": "create", "prompt": "adopt", "frobnicate": "", "recovery-key": ""} {
		if got := nearest(word, known); got != want {
			t.Errorf("%s: %q, want %q", word, got, want)
		}
	}
}

func TestNumbers(t *testing.T) {
	sizes := map[string]uint64{"64M": 64 << 20, "1G 512M": 1610612736, "1.5K": 1536, "17": 17, "3B": 3, "0": 0}
	for s, want := range sizes {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("size %q is %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "G", "5X", "5g", "5 GiB", "512M 1G", "-1", "99999999999G", "1.M"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("size %q is accepted as %d", s, got)
		}
	}
	shares := map[string]uint64{"10%": 429496730, "12.5%": 536870912, "20%": 858993459, "50%": 2147483648, "100%": 4294967295, "125‰": 536870912}
	for s, want := range shares {
		if got, ok := parsePercent(s); !ok || got != want {
			t.Errorf("share %q is %d, want %d", s, got, want)
		}
	}
	for _, s := range []string{"101%", "1.234%", "%", "5"} {
		if _, ok := parsePercent(s); ok {
			t.Errorf("share %q is accepted", s)
		}
	}
	spans := map[string]uint64{"90": 90e6, "1min 30s": 90e6, "1.5h": 5400e6, "500ms": 500e3, "1M": 2629800e6, "1m": 60e6, "infinity": math.MaxUint64, ".5": 500e3}
	for s, want := range spans {
		if got, err := parseSpan(s); err != nil || got != want {
			t.Errorf("span %q is %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "3.", "-5", "5 fortnights"} {
		if got, err := parseSpan(s); err == nil {
			t.Errorf("span %q is accepted as %d", s, got)
		}
	}
}

func TestTimestamp(t *testing.T) {
	now := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"2020-01-01":                 time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		"2020-01-01 12:30":           time.Date(2020, 1, 1, 12, 30, 0, 0, time.UTC),
		"2020-01-01T12:30:15 UTC":    time.Date(2020, 1, 1, 12, 30, 15, 0, time.UTC),
		"Wed 2020-01-01 00:00:00":    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		"2020-01-01 00:00:00 +01:00": time.Date(2019, 12, 31, 23, 0, 0, 0, time.UTC),
		"now":                        now,
		"tomorrow":                   time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC),
		"+1h":                        now.Add(time.Hour),
		"2h ago":                     now.Add(-2 * time.Hour),
		"@1577836800":                time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		"12:30":                      time.Date(2026, 11, 22, 12, 30, 0, 0, time.UTC),
		"2020-01-01 12:00:00.5":      time.Date(2020, 1, 1, 12, 0, 0, 5e8, time.UTC),
	} {
		if got, err := parseTimestamp(s, now, time.UTC); err != nil || got != uint64(want.UnixMicro()) {
			t.Errorf("%q is %d, %v; want %d", s, got, err, want.UnixMicro())
		}
	}
	for _, s := range []string{"0", "", "Mon 2020-01-01", "2020-13-01", "yesterdayish", "@0"} {
		if got, err := parseTimestamp(s, now, time.UTC); err == nil {
			t.Errorf("%q is accepted as %d", s, got)
		}
	}
}

// TestAssembly follows options into the record they make.
func TestAssembly(t *testing.T) {
	const mid = "0123456789abcdef0123456789abcdef"
	for _, c := range []struct{ name, args, before, after string }{
		{"fields go to their buckets", "-c Ann --disk-size=64M --password-hint=cat --rlimit=NOFILE=5:infinity -G b,a", `{"userName":"ann"}`,
			`{"userName":"ann","realName":"Ann","memberOf":["a","b"],"privileged":{"passwordHint":"cat"},"perMachine":[{"diskSize":67108864,"rebalanceWeight":0,"resourceLimits":{"RLIMIT_NOFILE":{"cur":5,"max":null}},"matchMachineId":"` + mid + `"}]}`},
		{"an empty value resets", "--real-name= --disk-size=", `{"realName":"x","perMachine":[{"diskSize":1,"matchMachineId":"` + mid + `"},{"storage":"luks","matchHostname":"h"}]}`,
			`{"perMachine":[{"storage":"luks","matchHostname":"h"}]}`},
		{"match redirects what can be", "-A --storage=luks -N --shell=/bin/sh", `{}`, `{"storage":"luks","perMachine":[{"shell":"/bin/sh","matchNotMachineId":"` + mid + `"}]}`},
		{"a share replaces a size", "--disk-size=64M --disk-size=50%", `{}`, `{"perMachine":[{"diskSizeRelative":2147483648,"rebalanceWeight":0,"matchMachineId":"` + mid + `"}]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := &command{program: "homectl", assembly: newAssembly()}
			if _, err := parse("homectl", allOptions(), strings.Fields(c.args), cmd); err != nil {
				t.Fatal(err)
			}
			var record map[string]any
			if err := json.Unmarshal([]byte(c.before), &record); err != nil {
				t.Fatal(err)
			}
			if err := cmd.assembly.apply(record, mid); err != nil {
				t.Fatal(err)
			}
			got, err := encode(record)
			if err != nil {
				t.Fatal(err)
			}
			var a, b any
			if json.Unmarshal(got, &a) != nil || json.Unmarshal([]byte(c.after), &b) != nil {
				t.Fatal("not JSON")
			}
			x, _ := json.Marshal(a)
			y, _ := json.Marshal(b)
			if string(x) != string(y) {
				t.Errorf("got  %s\nwant %s", x, y)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[31mb\x07\u009bc"); got != "a�[31mb��c" {
		t.Errorf("%q", got)
	}
}
