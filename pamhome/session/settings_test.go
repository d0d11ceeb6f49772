package session

import (
	"reflect"
	"strings"
	"testing"

	"hearth/records"
)

func view(t *testing.T, fields string) records.View {
	t.Helper()
	if !strings.Contains(fields, "disposition") {
		fields += `,"disposition":"regular"`
	}
	r, err := records.Parse([]byte(`{"userName":"ann","uid":60100`+fields+`}`), records.ClientReply)
	if err != nil {
		t.Fatal(err)
	}
	return r.View(records.Machine{})
}

func here(name string) bool { return !strings.HasPrefix(name, "x") }

// machine has all zones and locales that do not begin with x.
var machine = Machine{TimeZone: here, Locale: here, Kernel: All}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		fields string
		want   []string
		warn   int
	}{
		{``, nil, 0},
		{`,"environment":["FOO=bar","BAZ=a b"]`, []string{"FOO=bar", "BAZ=a b"}, 0},
		{`,"emailAddress":"a@x.test"`, []string{"EMAIL=a@x.test"}, 0},
		{`,"timeZone":"Europe/Berlin"`, []string{"TZ=:Europe/Berlin"}, 0},
		{`,"timeZone":"xEurope/Nowhere"`, nil, 1},
		{`,"preferredLanguage":"C.UTF-8"`, []string{"LANG=C.UTF-8"}, 0},
		{`,"preferredLanguage":"de_DE.UTF-8","additionalLanguages":["fr_FR.UTF-8"]`, []string{"LANG=de_DE.UTF-8", "LANGUAGE=de_DE.UTF-8:fr_FR.UTF-8"}, 0},
		{`,"preferredLanguage":"xx_XX.UTF-8","additionalLanguages":["fr_FR.UTF-8"]`, nil, 1},
	} {
		s := From(view(t, c.fields), Options{}, "login", false, machine)
		if !reflect.DeepEqual(s.Env, c.want) || len(s.Warnings) != c.warn {
			t.Errorf("%s: %q %q", c.fields, s.Env, s.Warnings)
		}
	}
}

func TestProcess(t *testing.T) {
	s := From(view(t, `,"umask":63,"niceLevel":5,"resourceLimits":{"RLIMIT_NOFILE":{"cur":10,"max":20},"RLIMIT_CPU":{"cur":1,"max":2}}`), Options{}, "login", false, machine)
	if s.Umask == nil || *s.Umask != 0o77 || s.Nice == nil || *s.Nice != 5 {
		t.Errorf("%+v", s)
	}
	if want := []ResourceLimit{{0, 1, 2}, {7, 10, 20}}; !reflect.DeepEqual(s.Limits, want) {
		t.Errorf("limits %v, want %v", s.Limits, want)
	}
	if s := From(view(t, ``), Options{}, "login", false, machine); s.Umask != nil || s.Nice != nil || s.Limits != nil {
		t.Errorf("an empty record changes %+v", s)
	}
}

func TestCapabilitySets(t *testing.T) {
	set := func(c Capabilities) *Capabilities { return &c }
	const kill, chown Capabilities = 1 << 5, 1
	for _, c := range []struct {
		name, fields      string
		o                 Options
		service           string
		seat              bool
		kernel            Capabilities
		ambient, bounding *Capabilities
	}{
		{"nothing", ``, Options{}, "sshd", false, All, nil, nil},
		{"a person at a seat", ``, Options{}, "login", true, All, set(WakeAlarm), nil},
		{"the service manager", ``, Options{}, "systemd-user", false, All, set(WakeAlarm), nil},
		{"not a person", `,"disposition":"system"`, Options{}, "login", true, All, nil, nil},
		{"option", ``, Options{Ambient: set(kill), Bounding: set(All &^ chown)}, "sshd", false, All, set(kill), set(All &^ chown)},
		{"record before option", `,"capabilityAmbientSet":["CAP_CHOWN"]`, Options{Ambient: set(kill)}, "sshd", true, All, set(chown), nil},
		{"ambient within bounding", `,"capabilityAmbientSet":["CAP_CHOWN","CAP_KILL"],"capabilityBoundingSet":["CAP_KILL"]`, Options{}, "sshd", false, All, set(kill), set(kill)},
		{"ambient within the kernel's", `,"capabilityAmbientSet":["CAP_CHOWN","CAP_KILL"]`, Options{}, "sshd", false, kill, set(kill), nil},
		{"empty option", ``, Options{Ambient: set(0)}, "login", true, All, nil, nil},
		{"full bounding", ``, Options{Bounding: set(All)}, "sshd", false, All, nil, nil},
		{"empty bounding", ``, Options{Bounding: set(0)}, "login", true, All, set(0), set(0)},
	} {
		m := machine
		m.Kernel = c.kernel
		s := From(view(t, c.fields), c.o, c.service, c.seat, m)
		if !reflect.DeepEqual(s.Ambient, c.ambient) || !reflect.DeepEqual(s.Bounding, c.bounding) {
			t.Errorf("%s: ambient %v, bounding %v", c.name, s.Ambient, s.Bounding)
		}
	}
}
