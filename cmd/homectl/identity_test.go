package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/records"
)

func identity(t *testing.T, text string) *command {
	t.Helper()
	path := filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return &command{identity: path, assembly: newAssembly()}
}

func TestReadIdentity(t *testing.T) {
	for _, c := range []struct{ text, name, password string }{
		{`{"userName":"ida","uid":18446744073709551615}`, "ida", ""},
		{`{"userName":"ida","secret":{"password":["geheim"]},"realName":"Ida"}`, "ida", "geheim"},
		{`{"secret":{"password":["geheim"]},"userName":"ida"}`, "ida", "geheim"},
	} {
		record, section, err := identity(t, c.text).readIdentity()
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		defer section.Close()
		if record["userName"] != c.name || record["secret"] != nil {
			t.Errorf("%s reads %v", c.text, record)
		}
		if (section != nil) != (c.password != "") {
			t.Errorf("%s: has a secret section: %v", c.text, section != nil)
			continue
		}
		if section == nil {
			continue
		}
		s, err := records.ParseSecrets(section)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if len(s.Passwords) != 1 || !s.Passwords[0].Equal(hide(t, c.password)) {
			t.Errorf("%s: the password is another one", c.text)
		}
		s.Close()
	}
	for text, want := range map[string]string{
		"{bad":     "Failed to parse identity at 1:2: ",
		"[]":       "Failed to parse identity at 1:1: ",
		" \n":      "Failed to parse identity at 0:0: No data available",
		`{"a":1}}`: "Failed to parse identity at 1:8: ",
	} {
		_, section, err := identity(t, text).readIdentity()
		section.Close()
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "JSON identity record") {
			t.Errorf("%q: error %v, want %s", text, err, want)
		}
	}
}

func TestCreateName(t *testing.T) {
	for arg, want := range map[string]string{
		"zoe": "zoe", "zoe@example.com": "zoe@example.com", "_x": "_x", "root": "root", // that these are taken, the daemon knows
		"zoe@": "", "@example.com": "", "root@example.com": "", "systemd-x@example.com": "", "_x@example.com": "", "zoe@a b": "", "0zoe": "", "x y": "",
	} {
		record := map[string]any{}
		err := (&command{assembly: newAssembly()}).name(record, []string{arg})
		got, _ := record["userName"].(string)
		if realm, ok := record["realm"].(string); ok {
			got += "@" + realm
		}
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, error %v; want %q", arg, got, err, want)
		}
	}
}
