package main

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"hearth/internal/secret"
	"hearth/records"
)

func TestEnrolRecovery(t *testing.T) {
	old := map[string]any{"type": "modhex64", "hashedPassword": "$y$old"}
	record := map[string]any{"userName": "ann", "privileged": map[string]any{"hashedPassword": []any{"$y$pw"}, "recoveryKey": []any{old}}, "recoveryKeyType": []any{"modhex64"}}
	// The option replaces what is there.
	a := newAssembly()
	a.reset("recoveryKey", "recoveryKeyType")
	if err := a.apply(record, "0123456789abcdef0123456789abcdef"); err != nil {
		t.Fatal(err)
	}
	if hasRecovery(record) {
		t.Error("the former key is still listed")
	}
	key, err := (&command{hash: records.HashPassword}).enrolRecovery(record, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	if canonical, err := records.NormaliseRecoveryKey(key); err != nil || !canonical.Equal(key) {
		t.Errorf("it is not spelled as such: %v", err)
	} else {
		canonical.Close()
	}
	priv := record["privileged"].(map[string]any)
	keys := priv["recoveryKey"].([]any)
	types := record["recoveryKeyType"].([]any)
	if len(keys) != 1 || len(types) != 1 || types[0] != "modhex64" || len(priv["hashedPassword"].([]any)) != 1 {
		t.Fatalf("record %v", record)
	}
	if ok, err := records.CheckHash(keys[0].(map[string]any)["hashedPassword"].(string), key); !ok || err != nil {
		t.Errorf("the hash is another's: %v", err)
	}
	text, err := encode(record)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := records.Parse(text, records.ClientCreate); err != nil {
		t.Errorf("the record is none any more: %v", err)
	}
}

func TestRecoveryOptions(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--recovery-key-file=/tmp/x"}, "--recovery-key-file= requires --recovery-key=yes."},
		{[]string{"--recovery-key=no", "--recovery-key-file=/tmp/x"}, "--recovery-key-file= requires --recovery-key=yes."},
		{[]string{"--recovery-key=yes", "--recovery-key-file=/tmp/x"}, ""},
		{[]string{"--recovery-key=no"}, ""},
	} {
		cmd := &command{program: "homectl", assembly: newAssembly()}
		if _, err := parse("homectl", allOptions(), c.args, cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.recovery.check(); (err == nil) != (c.want == "") || err != nil && err.Error() != c.want {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}

// TestShowRecovery gives a pipe nothing but the key, and replaces no file.
func TestShowRecovery(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	key, err := secret.Copy([]byte("the-key"))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	t.Setenv("TERM", "dumb")
	c := &command{out: file("out"), err: file("err"), recovery: recovery{file: filepath.Join(dir, "key")}}
	for range 2 {
		if err := c.showRecovery(key); err != nil {
			t.Fatal(err)
		}
	}
	if got := read("out"); got != "the-key\nthe-key\n" {
		t.Errorf("standard output is %q", got)
	}
	if got := read("err"); regexp.MustCompile("the-key").MatchString(got) || !regexp.MustCompile("(?m)^A secret recovery key has been generated for this account:$").MatchString(got) ||
		!regexp.MustCompile("Failed to write recovery key file '.*/key', ignoring: File exists").MatchString(got) {
		t.Errorf("standard error is %q", got)
	}
	if got := read("key"); got != "the-key\n" {
		t.Errorf("the file has %q", got)
	}
	if info, err := os.Stat(filepath.Join(dir, "key")); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file has %v, %v", info, err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := writeRecovery(filepath.Join(dir, "link"), key); err == nil {
		t.Error("a link was followed")
	}
}
