package records

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// TestSelfModifiableLists: what systemd 262 lets the owner of a regular record
// change where the record names nothing else, word for word.
func TestSelfModifiableLists(t *testing.T) {
	for want, got := range map[string][]string{
		"realName emailAddress iconName location shell umask environment timeZone preferredLanguage additionalLanguages " +
			"preferredSessionLauncher preferredSessionType defaultArea pkcs11TokenUri fido2HmacCredential recoveryKeyType " +
			"lastChangeUSec lastPasswordChangeUSec": SelfModifiableFields,
		"avatar login-background": SelfModifiableBlobs,
		"passwordHint hashedPassword pkcs11EncryptedKey fido2HmacSalt recoveryKey sshAuthorizedKeys": SelfModifiablePrivileged,
	} {
		if !slices.Equal(strings.Fields(want), got) {
			t.Errorf("got %q, want %s", got, want)
		}
	}
}

// TestSuitableIDs: ids that are missing or differ.
func TestSuitableIDs(t *testing.T) {
	m := machine(t)
	for text, want := range map[string]fault.Kind{
		`{"userName":"ann"}`:                          fault.InvalidArgs,
		`{"userName":"ann","uid":60100,"gid":60101}`:  fault.InvalidArgs,
		`{"userName":"ann","uid":60100,"gid":60100}`:  "",
		`{"userName":"ann","uid":999}`:                fault.BadAddress,
		`{"userName":"ann","uid":1000}`:               "",
		`{"userName":"ann","uid":60577}`:              "",
		`{"userName":"ann","uid":60578}`:              fault.BadAddress,
		`{"userName":"ann","uid":60705}`:              fault.BadAddress,
		`{"userName":"ann","uid":60706}`:              "",
		`{"userName":"ann","uid":61183}`:              "",
		`{"userName":"ann","uid":61184}`:              fault.BadAddress,
		`{"userName":"ann","uid":65519}`:              fault.BadAddress,
		`{"userName":"ann","uid":65520}`:              "",
		`{"userName":"ann","uid":65534}`:              fault.BadAddress,
		`{"userName":"ann","uid":65533}`:              "",
		`{"userName":"ann","realm":"."}`:              fault.InvalidArgs,
		`{"userName":"root","uid":60100,"gid":60100}`: fault.InvalidArgs,
	} {
		if err := mustParse(t, []byte(text), BusRegister).Suitable(m); fault.KindOf(err) != want {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestPassphrasesOfWiped: a secret that was wiped is an error, never a password
// that did not fit.
func TestPassphrasesOfWiped(t *testing.T) {
	recov := vouched(host(t, "recov"))
	key := strings.TrimSpace(string(read(t, fixtures, "records/recov/recovery-key.txt")))
	for what, wipe := range map[string]func(*Secrets){
		"before anything was read":     func(s *Secrets) { s.Passwords[0].Close() },
		"after recovery keys were":     func(s *Secrets) { _, _ = s.recoveryKeys(); s.Passwords[0].Close() },
		"the canonical spelling alone": func(s *Secrets) { _, _ = s.recoveryKeys(); s.canonical[1].Close() },
	} {
		s := secretsOf(t, "fixture-password", key)
		wipe(s)
		if _, err := recov.EffectivePassphrases(s); !errors.Is(err, secret.ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
		if err := RequirePlaintexts(recov, s); !errors.Is(err, secret.ErrClosed) {
			t.Errorf("%s: required: %v", what, err)
		}
	}
	token := vouched(mustParse(t, []byte(`{"userName":"ann","privileged":{"hashedPassword":["$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"],
		"fido2HmacSalt":[{"credential":"AAAA","salt":"AAAA","hashedPassword":"x"}]}}`), HostFile))
	if err := RequirePlaintexts(token, secretsOf(t, "Hello world!")); !fault.Is(err, fault.BadPasswordAndNoToken) {
		t.Errorf("a token is not asked for: %v", err)
	}
}

// TestCharactersAndLengths: the last that is let in, and the first that is not.
func TestCharactersAndLengths(t *testing.T) {
	valid := func(field, text string) bool { return fields[field].valid(newText(text)) }
	for _, field := range []string{"iconName", "homeDirectory", "userName"} {
		stem := map[string]string{"homeDirectory": "/home/"}[field]
		if !valid(field, stem+"a b") || valid(field, stem+"a\x1fb") || valid(field, stem+"a\x7fb") {
			t.Errorf("%s: wrong about control characters", field)
		}
	}
	long := func(n int) string {
		return strings.Repeat("/"+strings.Repeat("a", 254), 20)[:n]
	}
	for n, want := range map[int]bool{4094: true, 4095: true, 4096: false, 4097: false} {
		if valid("skeletonDirectory", long(n)) != want {
			t.Errorf("a path of %d bytes", n)
		}
	}
	for n, want := range map[int]bool{254: true, 255: true, 256: false, 257: false} {
		if valid("skeletonDirectory", "/"+strings.Repeat("a", n)) != want || valid("defaultArea", strings.Repeat("a", n)) != want {
			t.Errorf("a name of %d bytes", n)
		}
	}
	if got := mangleGECOS("A B\x1fC:D\x7fE"); got != "A B C D E" {
		t.Errorf("GECOS %q", got)
	}
	// With its quotes, the text has two bytes more.
	if quote(regular, member{"x", newText(strings.Repeat("a", 62))}) == "its value" || quote(regular, member{"x", newText(strings.Repeat("a", 63))}) != "its value" {
		t.Error("values of 64 bytes are shown in messages, longer ones not")
	}
}

// TestUnpairedSignatureWins: a copy whose signature holds for its lists as they
// stand, and not in pairs, is taken as it stands.
func TestUnpairedSignatureWins(t *testing.T) {
	k := keyring(t, true)
	sanat := host(t, "sanat")
	got, err := k.Reconcile(sanat.FoundAs(machine(t).ID), nil, sanat.Embedded(), Any)
	if err != nil || got.Embedded != EmbeddedWon || !got.Record.Embedded().Equal(sanat.Embedded()) {
		t.Errorf("%v, %v", got.Embedded, err)
	}
}
