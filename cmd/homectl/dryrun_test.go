package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/secret"
)

// rehearsed runs homectl with no bus to talk to.
func rehearsed(t *testing.T, args ...string) (status int, out, err string) {
	t.Helper()
	dir := t.TempDir()
	machine := filepath.Join(dir, "machine-id")
	if err := os.WriteFile(machine, []byte(testMachine+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(dir, "none"))
	t.Setenv("NEWPASSWORD", "Corr3ct-Horse-9-Batt")
	c := &command{
		program: "homectl", assembly: newAssembly(), legend: true, machine: machine,
		in: open("in"), out: open("out"), err: open("err"),
		hash: func(*secret.Bytes, io.Reader) (string, error) { return "$y$secret", nil },
	}
	status = c.run(context.Background(), args)
	text := func(f *os.File) string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return status, text(c.out), text(c.err)
}

func TestDryRunHidesSecrets(t *testing.T) {
	status, out, err := rehearsed(t, "--dry-run", "create", "zoe", "--real-name=Zoe", "--recovery-key=yes")
	var record map[string]any
	if e := json.Unmarshal([]byte(out), &record); e != nil || status != 0 {
		t.Fatalf("status %d, %v\n%s%s", status, e, out, err)
	}
	if record["realName"] != "Zoe" || record["userName"] != "zoe" {
		t.Errorf("the record is %s", out)
	}
	for _, s := range []string{"Corr3ct", "$y$secret", "password\" :"} {
		if strings.Contains(out+err, s) {
			t.Errorf("%q is shown:\n%s%s", s, out, err)
		}
	}
	if !strings.Contains(err, "Nothing was changed") {
		t.Errorf("nothing says that nothing happened: %s", err)
	}
}

func TestDryRunRefusedWhereItCannotTell(t *testing.T) {
	for _, v := range verbs() {
		args := append([]string{"--dry-run", v.name}, strings.Fields(strings.Repeat("x ", v.min))...)
		if v.name == "create" || v.name == "update" || v.group == "" {
			continue
		}
		status, _, err := rehearsed(t, args...)
		reads := strings.HasPrefix(err, "Failed to connect to system scope bus")
		if refused := strings.Contains(err, "leave out --dry-run"); status == 0 || refused == reads {
			t.Errorf("%s: status %d, %s", v.name, status, err)
		}
		if reads && !strings.HasPrefix(v.name, "list") && !strings.HasPrefix(v.name, "get") && v.name != "inspect" && v.name != "ssh-authorized-keys" {
			t.Errorf("%s would have been done", v.name)
		}
	}
}

func TestDifferences(t *testing.T) {
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := &command{out: out}
	former := map[string]any{
		"realName": "Zoe", "shell": "/bin/sh", "umask": json.Number("18"),
		"privileged": map[string]any{"hashedPassword": []any{"$y$a"}},
	}
	record := map[string]any{
		"realName": "Zo\x1bë", "umask": uint64(18), "nice": 1,
		"privileged": map[string]any{"hashedPassword": []any{"$y$b"}},
	}
	redact(former)
	redact(record)
	c.differences(former, record)
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	const want = `+ "nice":1
- "realName":"Zoe"
+ "realName":"Zo\u001bë"
- "shell":"/bin/sh"
`
	if string(text) != want {
		t.Errorf("got\n%swant\n%s", text, want)
	}
}
