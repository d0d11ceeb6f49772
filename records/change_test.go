package records

import (
	"strings"
	"testing"

	"hearth/internal/fault"
)

func TestTouched(t *testing.T) {
	r := mustParse(t, []byte(`{"userName":"ann","lastChangeUSec":5,"x":1}`), HostFile)
	for _, c := range []struct {
		now      uint64
		password bool
		want     string
	}{
		{6, false, `{"userName":"ann","lastChangeUSec":6,"x":1}`},
		{7, true, `{"userName":"ann","lastChangeUSec":7,"x":1,"lastPasswordChangeUSec":7}`},
		{5, false, ""},
	} {
		got, err := r.Touched(c.now, c.password)
		if c.want == "" {
			if !fault.Is(err, fault.RecordMismatch) {
				t.Errorf("at %d: %v", c.now, err)
			}
		} else if err != nil || string(got.Compact()) != c.want {
			t.Errorf("at %d: %s, %v", c.now, got.Compact(), err)
		}
	}
}

func TestCheckUpdate(t *testing.T) {
	now := mustParse(t, []byte(`{"userName":"ann","lastChangeUSec":5,"binding":{}}`), HostFile)
	for text, want := range map[string]fault.Kind{
		`{"userName":"ann","lastChangeUSec":6}`:                  "",
		`{"userName":"ann","lastChangeUSec":5}`:                  "",
		`{"userName":"ann","lastChangeUSec":5,"x":1}`:            fault.RecordMismatch,
		`{"userName":"ann","lastChangeUSec":4}`:                  fault.RecordDowngrade,
		`{"userName":"ann"}`:                                     fault.RecordDowngrade,
		`{"userName":"ann","realm":"x","lastChangeUSec":6}`:      fault.RecordMismatch,
		`{"userName":"bob","lastChangeUSec":6}`:                  fault.RecordMismatch,
		`{"userName":"ann","lastChangeUSec":6,"aliases":["al"]}`: fault.RecordMismatch,
		`{"userName":"ann","lastChangeUSec":6,"aliases":[]}`:     "",
	} {
		if err := now.CheckUpdate(mustParse(t, []byte(text), BusUpdate)); fault.KindOf(err) != want {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestIgnored(t *testing.T) {
	m := machine(t)
	got := strings.Join(host(t, "badfieldsu").Ignored(m), "\n")
	// The fields of which the real daemon says the same.
	for _, f := range []string{"cpuWeight", "emailAddress", "environment", "luksDiscard", "niceLevel", "preferredLanguage", "rebalanceWeight", "resourceLimits",
		"shell", "storage", "tasksMax", "timeZone", "umask", "uuid"} {
		if !strings.Contains(got, f+":") {
			t.Errorf("%s is taken for good", f)
		}
	}
	if n := strings.Count(got, "\n") + 1; n != 14 {
		t.Errorf("%d fields are ignored, 14 expected:\n%s", n, got)
	}
	if got := host(t, "allfields").Ignored(m); len(got) != 1 || !strings.HasPrefix(got[0], "x-example.com-pm:") {
		t.Errorf("allfields: %v", got)
	}
}

func TestUnstableOrder(t *testing.T) {
	for name, want := range map[string]bool{"objarray": true, "dirmin": false, "pairsort": false} {
		if got := host(t, name).UnstableOrder(); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
