package records

import (
	"testing"

	"hearth/internal/secret"
)

func TestMergeSecrets(t *testing.T) {
	section := func(text string) *secret.Bytes {
		if text == "" {
			return nil
		}
		b, err := secret.Copy([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		return b
	}
	for _, c := range []struct{ fresh, old, want string }{
		{"", "", `{}`},
		{`{}`, `{"password":["a"]}`, `{"password":["a"]}`},
		{`{"password":["n"]}`, "", `{"password":["n"]}`},
		{`{"password":["n","b"],"tokenPin":["1"]}`, `{"password":["a","b"],"tokenPin":["2","1"],"fido2UserPresencePermitted":true}`,
			`{"password":["n","b","a"],"tokenPin":["1","2"],"fido2UserPresencePermitted":true}`},
	} {
		got, err := MergeSecrets(section(c.fresh), section(c.old))
		if err != nil {
			t.Fatal(err)
		}
		_ = got.Use(func(b []byte) error {
			if string(b) != c.want {
				t.Errorf("%s with %s: %s, want %s", c.fresh, c.old, b, c.want)
			}
			return nil
		})
		got.Close()
	}
	if _, err := MergeSecrets(section(`{}`), section(`[`)); err == nil {
		t.Error("what is no section was taken")
	}
}

func TestWithPasswords(t *testing.T) {
	r := mustParse(t, []byte(`{"userName":"ann","passwordChangeNow":true,"privileged":{"hashedPassword":["$old"],"x":1},`+
		`"perMachine":[{"matchMachineId":"00000000000000000000000000000001","passwordChangeNow":true,"y":2}]}`), HostFile)
	want := `{"userName":"ann","privileged":{"hashedPassword":["$new"],"x":1},"perMachine":[{"matchMachineId":"00000000000000000000000000000001","y":2}]}`
	if got := string(r.WithPasswords([]string{"$new"}).Compact()); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
