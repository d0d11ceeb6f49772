package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/secret"
)

func passwords(k *keyring) string {
	var all []string
	for _, p := range k.passwords {
		_ = p.Use(func(b []byte) error { all = append(all, string(b)); return nil })
	}
	return strings.Join(all, " ")
}

// TestHarvest: what the caller passes is found in the environment, then in the
// unit's credentials, once, and closes the way to questions without a terminal.
func TestHarvest(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	harvest := func() (string, bool) {
		t.Helper()
		c := &command{}
		k, err := c.harvest(t.Context(), "somebody else")
		defer k.close()
		if err != nil {
			t.Fatal(err)
		}
		return passwords(k), c.passed
	}
	if got, passed := harvest(); got != "" || passed {
		t.Errorf("of nothing: %q %v", got, passed)
	}
	put("home.password", "one\x00two")
	put("home.recovery-key", "key\x00")
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if got, passed := harvest(); got != "one two key" || !passed {
		t.Errorf("of credentials: %q %v", got, passed)
	}
	t.Setenv("PASSWORD", "three")
	if got, passed := harvest(); got != "three key" || !passed {
		t.Errorf("of the environment: %q %v", got, passed)
	}
	if _, there := os.LookupEnv("PASSWORD"); there {
		t.Error("the password stayed in the environment")
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "relative")
	if _, err := (&command{}).harvest(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "Failed to open credentials directory: Invalid argument") {
		t.Errorf("a directory that is not absolute: %v", err)
	}
}

func TestNewPasswordFromCredential(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "home.new-password"), []byte("next"), 0o400); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	p, err := (&command{}).newPassword(t.Context(), "ann")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if want, _ := secret.Copy([]byte("next")); !p.Equal(want) {
		t.Error("not the credential's")
	}
}
