package records

import (
	"strings"
	"testing"

	"hearth/internal/fault"
)

// TestBounds: each bound of validation, from both sides.
func TestBounds(t *testing.T) {
	list := func(n int) string { return `[` + strings.TrimSuffix(strings.Repeat(`"A=b",`, n), ",") + `]` }
	for _, c := range []struct{ field, good, bad string }{
		{"umask", `511`, `512`}, {"umask", `"777"`, `"1000"`},
		{"accessMode", `4095`, `4096`}, {"accessMode", `"7777"`, `"10000"`},
		{"niceLevel", `-20`, `-21`}, {"niceLevel", `19`, `20`},
		{"cpuWeight", `1`, `0`}, {"ioWeight", `10000`, `10001`},
		{"rebalanceWeight", `10000`, `10001`}, {"rebalanceWeight", `0`, `-1`},
		{"tasksMax", `18446744073709551614`, `18446744073709551615`}, {"memoryMax", `1`, `0`},
		{"uid", `4294967294`, `4294967295`}, {"uid", `65534`, `65535`}, {"gid", `65536`, `65535`},
		{"environment", list(16384), list(16385)},
		{"tmpLimitScale", `4294967295`, `4294967296`},
		{"preferredLanguage", `"` + strings.Repeat("a", 127) + `"`, `"` + strings.Repeat("a", 128) + `"`},
		{"defaultArea", `"` + strings.Repeat("a", 255) + `"`, `"` + strings.Repeat("a", 256) + `"`},
		{"realm", `"` + strings.Repeat("a", 63) + `.x"`, `"` + strings.Repeat("a", 64) + `.x"`},
		{"realm", `"` + strings.Repeat("abcdefghi.", 25) + `abc"`, `"` + strings.Repeat("abcdefghi.", 25) + `abcd"`},
		{"blobManifest", `{"a":"` + strings.Repeat("0", 64) + `"}`, `{"a":"` + strings.Repeat("0", 63) + `"}`},
	} {
		for value, want := range map[string]fault.Kind{c.good: "", c.bad: fault.InvalidArgs} {
			text := `{"userName":"ann","` + c.field + `":` + value + `}`
			if _, err := Parse([]byte(text), BusCreate); fault.KindOf(err) != want {
				t.Errorf("%.80s: %v", text, err)
			}
		}
	}
	if !ValidName(strings.Repeat("a", 31)) || ValidName(strings.Repeat("a", 32)) {
		t.Error("length of names")
	}
	for n, ok := range map[int]bool{2047: true, 2048: false} {
		text := `{"userName":"ann","x":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}`
		if _, err := Parse([]byte(text), HostFile); (err == nil) != ok {
			t.Errorf("%d lists in the record: %v", n, err)
		}
	}
	for n, ok := range map[int]bool{maxSecrets: true, maxSecrets + 1: false} {
		s, err := ParseSecrets(sec(t, `{"password":[`+strings.TrimSuffix(strings.Repeat(`"p",`, n), ",")+`]}`))
		if (err == nil) != ok {
			t.Errorf("%d passwords: %v", n, err)
		}
		s.Close()
	}
}

func TestAccountBounds(t *testing.T) {
	v := View{NotBeforeUSec: num(10), NotAfterUSec: num(20)}
	for now, want := range map[uint64]Blocked{9: NotYetValid, 10: NotBlocked, 20: NotBlocked, 21: NoLongerValid} {
		if got := v.Blocked(now); got != want {
			t.Errorf("at %d: %v", now, got)
		}
	}
	v = View{RateLimitIntervalUSec: 100, RateLimitBurst: 2}
	var c Counters
	for i, want := range []bool{true, true, false} {
		after, _, ok := c.Attempt(v, uint64(10+i))
		if ok != want {
			t.Errorf("attempt %d: %v", i, ok)
		}
		c = after
	}
}

// TestSectionsByContext: what each context does with each section that not all
// records have.
func TestSectionsByContext(t *testing.T) {
	const keep, strip, refuse = "keeps", "strips", "refuses"
	for c, want := range map[Context][3]string{ // binding, status, signature
		HostFile:     {keep, keep, keep},
		WorkerInput:  {keep, keep, keep},
		WorkerOutput: {keep, keep, keep},
		EmbeddedFile: {refuse, refuse, keep},
		BusCreate:    {refuse, refuse, keep},
		BusUpdate:    {refuse, refuse, keep},
		BusRegister:  {strip, strip, keep},
		ClientReply:  {keep, keep, keep},
		ClientCreate: {strip, strip, strip},
		ClientKeep:   {strip, strip, keep},
	} {
		all := map[string]string{`"privileged":{}`: keep, `"perMachine":[]`: keep, `"secret":{}`: refuse,
			`"binding":{}`: want[0], `"status":{}`: want[1], `"signature":[]`: want[2]}
		for section, want := range all {
			r, err := Parse([]byte(`{"userName":"ann",`+section+`}`), c)
			got := refuse
			if err == nil && len(r.doc.members) == 2 {
				got = keep
			} else if err == nil {
				got = strip
			}
			if got != want {
				t.Errorf("context %d %s %s", c, got, section)
			}
		}
	}
	r := mustParse(t, []byte(`{"userName":"ann","signature":[],"privileged":{}}`), HostFile)
	if r.HasSignature() {
		t.Error("no signatures are a signature")
	}
	// No parser lets a secret section in; Mask holds it back all the same.
	r = &Record{r.doc.with("secret", newObject()).with("perMachine", newArray(nil)).with("binding", newObject()).with("status", newObject())}
	for trusted, want := range map[bool]string{
		true:  `{"userName":"ann","signature":[],"privileged":{},"perMachine":[],"binding":{},"status":{}}`,
		false: `{"userName":"ann","signature":[],"perMachine":[],"binding":{},"status":{}}`,
	} {
		if m, incomplete := r.Mask(trusted); incomplete == trusted || string(m.Compact()) != want {
			t.Errorf("trusted %v: %s, incomplete %v", trusted, m.Compact(), incomplete)
		}
	}
	if m, incomplete := mustParse(t, []byte(`{"userName":"ann"}`), HostFile).Mask(false); incomplete {
		t.Errorf("nothing was held back of %s", m.Compact())
	}
}
