package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hearth/internal/fault"
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

// TestToken: what a security token asks for before it is looked for is allowed
// once, and said; a PIN comes from the caller.
func TestToken(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	t.Setenv("TERM", "dumb")
	t.Setenv("PASSWORD", "p")
	t.Setenv("PIN", "77")
	out, err := os.Create(filepath.Join(t.TempDir(), "err"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := &command{err: out}
	k, err := c.harvest(t.Context(), "somebody else")
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	var sent []string
	complaints := []fault.Kind{fault.TokenPresenceNeeded, fault.TokenVerifyNeeded, fault.TokenPathNeeded, fault.TokenPresenceNeeded}
	err = c.slow(t.Context(), "ann", k, func(_ context.Context, section *secret.Bytes) error {
		_ = section.Use(func(b []byte) error { sent = append(sent, string(b)); return nil })
		next := complaints[0]
		complaints = complaints[1:]
		return fault.New(next, "test", nil)
	})
	if !errors.Is(err, errSaid) {
		t.Errorf("a daemon that asks for the same again: %v", err)
	}
	want := []string{
		`{"password":["p"],"tokenPin":["77"]}`,
		`{"password":["p"],"tokenPin":["77"],"fido2UserPresencePermitted":true}`,
		`{"password":["p"],"tokenPin":["77"],"fido2UserPresencePermitted":true,"fido2UserVerificationPermitted":true}`,
		`{"password":["p"],"tokenPin":["77"],"pkcs11ProtectedAuthenticationPathPermitted":true,"fido2UserPresencePermitted":true,"fido2UserVerificationPermitted":true}`,
	}
	if !slices.Equal(sent, want) {
		t.Errorf("sent\n%s\nwant\n%s", strings.Join(sent, "\n"), strings.Join(want, "\n"))
	}
	said, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"Please confirm presence on security token.\n", "Please verify user on security token.\n", "Please authenticate physically on security token.\n", "Operation on home ann failed: Security token requires presence confirmation."} {
		if strings.Count(string(said), line) != 1 {
			t.Errorf("%q is not said once: %q", line, said)
		}
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
