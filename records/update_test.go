package records

import (
	"crypto/rand"
	"slices"
	"testing"

	"hearth/internal/secret"
)

func parsedSecrets(t testing.TB, text string) *Secrets {
	t.Helper()
	s, err := ParseSecrets(sec(t, text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestMergeSecrets(t *testing.T) {
	for _, c := range []struct{ newer, older, want string }{
		{`{"password":["n","b"]}`, `{"password":["o","b"],"tokenPin":"1"}`, `{"password":["n","b","o"],"tokenPin":["1"]}`},
		{`{}`, `{"password":"o","fido2UserPresencePermitted":true}`, `{"password":["o"],"fido2UserPresencePermitted":true}`},
		{`{"fido2UserPresencePermitted":false}`, `{"fido2UserPresencePermitted":true}`, `{}`},
		{`{"fido2UserPresencePermitted":true}`, `{"fido2UserPresencePermitted":false}`, `{"fido2UserPresencePermitted":true}`},
		{`{"fido2UserPresencePermitted":1}`, `{"fido2UserPresencePermitted":true}`, `{"fido2UserPresencePermitted":true}`},
	} {
		got, err := MergeSecrets(parsedSecrets(t, c.newer), parsedSecrets(t, c.older))
		if err != nil {
			t.Fatal(err)
		}
		text, err := got.Encode()
		got.Close()
		if err != nil || plain(t, text) != c.want {
			t.Errorf("%s over %s: %s, %v", c.newer, c.older, plain(t, text), err)
		}
		text.Close()
	}
	if s, err := MergeSecrets(nil, nil); err != nil || !s.Empty() {
		t.Errorf("nothing and nothing: %v, %v", s, err)
	}
}

func TestWithPasswords(t *testing.T) {
	r := mustParse(t, []byte(`{"userName":"ann","passwordChangeNow":true,"privileged":{"passwordHint":"h","hashedPassword":["$6$old"]}}`), HostFile)
	if same, err := r.WithPasswords(nil, rand.Reader); err != nil || same != r {
		t.Errorf("no passwords: %v, %v", same, err)
	}
	a, b := sec(t, "one"), sec(t, "two")
	got, err := r.WithPasswords([]*secret.Bytes{a, b}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	v := got.View(machine(t))
	if len(v.HashedPasswords) != 2 || v.PasswordChangeNow || v.Login.PasswordHint != "h" {
		t.Fatalf("%s", got.Compact())
	}
	for i, p := range []*secret.Bytes{a, b} {
		if ok, err := CheckHash(v.HashedPasswords[i], p); !ok || err != nil {
			t.Errorf("hash %d does not fit its password", i)
		}
	}
}

func TestWithoutPasswordChangeNow(t *testing.T) {
	for in, want := range map[string]string{
		`{"userName":"a"}`: `{"userName":"a"}`,
		`{"userName":"a","passwordChangeNow":true,"perMachine":[{"matchMachineId":"x","passwordChangeNow":false}]}`:  `{"userName":"a"}`,
		`{"userName":"a","perMachine":[{"matchHostname":"x"},{"matchHostname":"y","passwordChangeNow":true,"z":1}]}`: `{"userName":"a","perMachine":[{"matchHostname":"x"},{"matchHostname":"y","z":1}]}`,
		`{"userName":"a","perMachine":[{"matchNotMachineId":"x","passwordChangeNow":true}]}`:                         `{"userName":"a","perMachine":[{"matchNotMachineId":"x"}]}`,
		`{"userName":"a","perMachine":5}`: `{"userName":"a","perMachine":5}`,
	} {
		if got := string(mustParse(t, []byte(in), HostFile).WithoutPasswordChangeNow().Compact()); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestWithDiskSize(t *testing.T) {
	m := Machine{ID: "7b6d211e38bf4d19a4e598844d94367b", Hostname: "vm"}
	const id, set = `"matchMachineId":"7b6d211e38bf4d19a4e598844d94367b"`, `"diskSize":9,"rebalanceWeight":0`
	const added = `{"matchMachineId":["7b6d211e38bf4d19a4e598844d94367b"],` + set + `}`
	for in, want := range map[string]string{
		``:                             added,
		`{"matchMachineId":"x","y":1}`: `{"matchMachineId":"x","y":1},` + added,
		// As the real daemon edits its own.
		`{"diskSize":67108864,"fileSystemType":"ext4",` + id + `,"rebalanceWeight":1,"storage":"luks"}`: `{"diskSize":9,"fileSystemType":"ext4",` + id + `,"rebalanceWeight":0,"storage":"luks"}`,
		`{"matchMachineId":["7b6d211e38bf4d19a4e598844d94367b"],"y":1}`:                                 `{"matchMachineId":["7b6d211e38bf4d19a4e598844d94367b"],"y":1,` + set + `}`,
		// The last of its kind; others stand between without harm.
		`{` + id + `,"y":1},{` + id + `},{"matchMachineId":"x"}`: `{` + id + `,"y":1},{` + id + `,` + set + `},{"matchMachineId":"x"}`,
		// What comes later would win.
		`{` + id + `},{"matchHostname":"other"}`:                                   `{` + id + `},{"matchHostname":"other"},` + added,
		`{` + id + `},{"matchMachineId":["x","7b6d211e38bf4d19a4e598844d94367b"]}`: `{` + id + `},{"matchMachineId":["x","7b6d211e38bf4d19a4e598844d94367b"]},` + added,
		`{` + id + `},{"matchMachineId":"x","matchHostname":"vm"}`:                 `{` + id + `},{"matchMachineId":"x","matchHostname":"vm"},` + added,
	} {
		got := mustParse(t, []byte(`{"userName":"a","diskSize":1,"perMachine":[`+in+`]}`), HostFile).WithDiskSize(m, 9)
		if text := string(got.Compact()); text != `{"userName":"a","diskSize":1,"perMachine":[`+want+`]}` {
			t.Errorf("%s:\n%s\nwant %s", in, text, want)
		}
		if v := got.View(m); v.DiskSize == nil || *v.DiskSize != 9 || v.RebalanceWeight != 0 {
			t.Errorf("%s: the size does not count", in)
		}
	}
	bare := mustParse(t, []byte(`{"userName":"a"}`), HostFile)
	if got := string(bare.WithRebalanceWeight(m, nil).WithRebalanceWeight(m, num(7)).Compact()); got != `{"userName":"a","perMachine":[{"matchMachineId":["7b6d211e38bf4d19a4e598844d94367b"],"rebalanceWeight":7}]}` {
		t.Error(got)
	}
	if got := string(bare.WithRebalanceWeight(m, nil).Compact()); got != `{"userName":"a","perMachine":[{"matchMachineId":["7b6d211e38bf4d19a4e598844d94367b"],"rebalanceWeight":null}]}` {
		t.Error(got)
	}
}

func TestSelfModifiable(t *testing.T) {
	m := machine(t)
	entry := `{"matchMachineId":"` + m.ID + `","shell":"/bin/sh","storage":"luks"}`
	base := `"userName":"ann","disposition":"regular","uid":60100,"realName":"Ann","blobManifest":{"avatar":"a","x":"b"},` +
		`"privileged":{"hashedPassword":["h"],"x":1}`
	with := func(s string) *Record { return mustParse(t, []byte(s), HostFile) }
	now := with(`{` + base + `,"perMachine":[` + entry + `,{"matchMachineId":"x","shell":"/bin/sh"}],"binding":{"y":{}},"signature":[]}`)
	for _, c := range []struct {
		next string
		want bool
	}{
		{`{` + base + `,"perMachine":[` + entry + `,{"matchMachineId":"x","shell":"/bin/sh"}]}`, true},
		{`{"userName":"ann","disposition":"regular","uid":60100,"lastChangeUSec":9,"blobManifest":{"x":"b"},"privileged":{"x":1,"recoveryKey":[]},"perMachine":[{"matchMachineId":"` + m.ID + `","storage":"luks"},{"matchMachineId":"x","shell":"/bin/sh"}]}`, true},
		{`{` + base + `,"perMachine":[` + entry + `,{"matchMachineId":"x","shell":"/bin/other"}]}`, false},
		{`{` + base + `,"perMachine":[` + entry + `]}`, false},
		{`{` + base + `,"memberOf":["wheel"],"perMachine":[` + entry + `,{"matchMachineId":"x","shell":"/bin/sh"}]}`, false},
		{`{` + base + `,"selfModifiableFields":["memberOf"],"memberOf":["wheel"],"perMachine":[` + entry + `,{"matchMachineId":"x","shell":"/bin/sh"}]}`, false},
		{`{` + base + `,"perMachine":[{"matchMachineId":"` + m.ID + `","storage":"luks","uid":0},{"matchMachineId":"x","shell":"/bin/sh"}]}`, false},
	} {
		if got := SelfModifiable(now, with(c.next), m); got != c.want {
			t.Errorf("%s: %v", c.next, got)
		}
	}
	// Every field on the lists, and none beside them.
	bare := with(`{"userName":"ann","disposition":"regular"}`)
	for name := range fields {
		if name == "userName" || name == "disposition" {
			continue
		}
		regular := with(`{"userName":"ann","disposition":"regular","` + name + `":"?"}`)
		if got := SelfModifiable(bare, regular, m); got != slices.Contains(SelfModifiableFields, name) {
			t.Errorf("%s: %v", name, got)
		}
		privileged := with(`{"userName":"ann","disposition":"regular","privileged":{"` + name + `":"?"}}`)
		if got := SelfModifiable(bare, privileged, m); got != slices.Contains(SelfModifiablePrivileged, name) {
			t.Errorf("privileged %s: %v", name, got)
		}
	}
	if len(SelfModifiableFields) != 18 || len(SelfModifiableBlobs) != 2 || len(SelfModifiablePrivileged) != 6 {
		t.Error("the lists have changed")
	}
	// A list of its own replaces the default; other dispositions have none.
	own := with(`{"userName":"ann","disposition":"regular","selfModifiableFields":["memberOf"]}`)
	if !SelfModifiable(own, with(`{"userName":"ann","disposition":"regular","selfModifiableFields":["memberOf"],"memberOf":["x"]}`), m) ||
		SelfModifiable(own, with(`{"userName":"ann","disposition":"regular","selfModifiableFields":["memberOf"],"realName":"x"}`), m) {
		t.Error("the record's own list does not count")
	}
	if SelfModifiable(with(`{"userName":"ann","disposition":"system"}`), with(`{"userName":"ann","disposition":"system","realName":"x"}`), m) {
		t.Error("a system user may change itself")
	}
}

func TestCountersStopAtTheirEnd(t *testing.T) {
	for _, n := range []uint64{1<<64 - 3, 1<<64 - 2, 1<<64 - 1} {
		c := Counters{Good: n, Bad: n}
		if c.Succeeded(1).Good != 1<<64-2 || c.Failed(1).Bad != 1<<64-2 {
			t.Errorf("%d: %d, %d", n, c.Succeeded(1).Good, c.Failed(1).Bad)
		}
	}
}

// TestPostdated: a record from the future is noticed by whoever brings it, not
// by whoever comes after.
func TestPostdated(t *testing.T) {
	dated := func(fields string) *Record {
		return mustParse(t, []byte(`{"userName":"ann"`+fields+`}`), BusUpdate)
	}
	for _, c := range []struct {
		current, next string
		want          bool
	}{
		{``, ``, false},
		{``, `,"lastChangeUSec":100`, false},
		{``, `,"lastChangeUSec":101`, true},
		{``, `,"lastChangeUSec":"18446744073709551615"`, true},
		{``, `,"lastPasswordChangeUSec":101`, true},
		{`,"lastPasswordChangeUSec":50`, `,"lastChangeUSec":100,"lastPasswordChangeUSec":100`, false},
		{`,"lastChangeUSec":200`, `,"lastChangeUSec":200`, false},
		{`,"lastChangeUSec":200`, `,"lastChangeUSec":201`, true},
		{`,"lastChangeUSec":200`, `,"lastChangeUSec":200,"lastPasswordChangeUSec":200`, true},
		{`,"lastChangeUSec":200`, `,"lastChangeUSec":199`, true},
	} {
		if Postdated(dated(c.current), dated(c.next), 100) != c.want {
			t.Errorf("{%s} after {%s} at 100: want %v", c.next, c.current, c.want)
		}
	}
}
