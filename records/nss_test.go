package records

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestAccounts: what getent printed of each record's user, by nss-systemd.
func TestAccounts(t *testing.T) {
	m := machine(t)
	n := 0
	for _, path := range fixtureFiles(t, "nss.txt") {
		lines := strings.Split(string(read(t, path)), "\n")
		v := mustParse(t, read(t, filepath.Dir(path), "inspect-full.json"), ClientReply).View(m)
		a, s := v.Account(), v.Shadow()
		if got := fmt.Sprintf("%s:x:%d:%d:%s:%s:%s", a.Name, a.UID, a.GID, a.RealName, a.Directory, a.Shell); got != lines[0] {
			t.Errorf("%s is %s", lines[0], got)
		}
		day := func(n int64) string {
			if n < 0 {
				return ""
			}
			return fmt.Sprint(n)
		}
		got := strings.Join([]string{a.Name, s.Hash, day(s.LastChange), day(s.Min), day(s.Max), day(s.Warning), day(s.Inactive), day(s.Expire), ""}, ":")
		if got != lines[1] {
			t.Errorf("%s is %s", lines[1], got)
		}
		n++
	}
	if n != 40 {
		t.Errorf("%d accounts", n)
	}
}

func TestAccountRules(t *testing.T) {
	for text, want := range map[string]Account{
		`"shell":"/bin/sh"`: {Directory: "/home/ann", Shell: "/bin/sh"},
		`"status":{"` + here.ID + `":{"useFallback":true,"fallbackShell":"/f","fallbackHomeDirectory":"/d"}}`:                   {Directory: "/d", Shell: "/f", FallbackDirectory: true, FallbackShell: true},
		`"status":{"` + here.ID + `":{"useFallback":false,"fallbackShell":"/f","fallbackHomeDirectory":"/d"}}`:                  {Directory: "/home/ann", Shell: "/bin/bash"},
		`"status":{"` + here.ID + `":{"useFallback":true}}`:                                                                     {Directory: "/home/ann", Shell: "/bin/bash"},
		`"shell":"/bin/false","status":{"` + here.ID + `":{"useFallback":true,"fallbackShell":"/f"}}`:                           {Directory: "/home/ann", Shell: "/bin/false", FallbackShell: true},
		`"shell":"/sbin/true","status":{"` + here.ID + `":{"useFallback":true,"fallbackShell":"/f"}}`:                           {Directory: "/home/ann", Shell: "/f", FallbackShell: true},
		`"fallbackShell":"/f","perMachine":[{"matchHostname":"vm","fallbackShell":"/f","useFallback":true}],"useFallback":true`: {Directory: "/home/ann", Shell: "/bin/bash"},
	} {
		want.Name, want.RealName, want.UID, want.GID = "ann", "ann", 60100, 60100
		v := mustParse(t, []byte(`{"userName":"ann","uid":60100,`+text+`}`), HostFile).View(here)
		if got := v.Account(); got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
	none := Shadow{Hash: "!*", LastChange: -1, Min: -1, Max: -1, Warning: -1, Inactive: -1, Expire: -1}
	with := func(f func(*Shadow)) Shadow { s := none; f(&s); return s }
	for text, want := range map[string]Shadow{
		`"x":1`:                                        none,
		`"lastPasswordChangeUSec":0`:                   with(func(s *Shadow) { s.LastChange = 1 }),
		`"lastPasswordChangeUSec":172800000000`:        with(func(s *Shadow) { s.LastChange = 2 }),
		`"lastPasswordChangeUSec":172799999999`:        with(func(s *Shadow) { s.LastChange = 1 }),
		`"locked":true,"notAfterUSec":864000000000`:    with(func(s *Shadow) { s.Expire = 1 }),
		`"locked":false,"notAfterUSec":864000000000`:   with(func(s *Shadow) { s.Expire = 10 }),
		`"notAfterUSec":0`:                             with(func(s *Shadow) { s.Expire = 1 }),
		`"notAfterUSec":18446744073709551615`:          none,
		`"privileged":{"hashedPassword":["$6$a","b"]}`: with(func(s *Shadow) { s.Hash = "$6$a" }),
		`"passwordChangeInactiveUSec":86400000000`:     with(func(s *Shadow) { s.Inactive = 1 }),
	} {
		v := mustParse(t, []byte(`{"userName":"ann",`+text+`}`), HostFile).View(here)
		if got := v.Shadow(); got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}
