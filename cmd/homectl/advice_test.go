package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/secret"
)

// TestWordsOnWeakPasswords: what is said of them, and that it never tells them.
func TestWordsOnWeakPasswords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "err")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := &command{err: out}
	said := func() string {
		text, err := os.ReadFile(path)
		if err != nil || out.Truncate(0) != nil {
			t.Fatal(err)
		}
		if _, err := out.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	p, err := secret.Copy([]byte("mustang"))
	if err != nil {
		t.Fatal(err)
	}
	k := &keyring{passwords: []*secret.Bytes{p}}
	defer k.close()
	c.adviseOn(p, "ann")
	if got := said(); !strings.Contains(got, "easy to guess") || strings.Contains(got, "mustang") {
		t.Errorf("advice: %q", got)
	}
	for _, policy := range []any{nil, true, "no"} {
		if c.warnOfWeak(map[string]any{"enforcePasswordPolicy": policy}, "ann", k); said() != "" {
			t.Errorf("a warning while the policy is %v", policy)
		}
	}
	c.warnOfWeak(map[string]any{"enforcePasswordPolicy": false}, "ann", k)
	want := "Specified password does not pass quality checks (Password too weak: The password is shorter than 8 characters), proceeding anyway.\n"
	if got := said(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
