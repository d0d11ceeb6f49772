package bus

import (
	"context"
	"os"
	"strings"
	"testing"

	"hearth/homed/home1"
	"hearth/internal/testenv"
)

// otherKey is the key of the reference's captures.
const otherKey = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"

// TestSigningKeys replays what was captured of systemd-homed, in its order.
func TestSigningKeys(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	ctx := context.Background()
	list, err := r.client.ListSigningKeys(ctx)
	if err != nil || len(list) != 1 || list[0].Name != "local.public" {
		t.Fatalf("keys are %v, %v", list, err)
	}
	own := list[0].PEM
	const none = uint64(0)
	for _, c := range []struct {
		method string
		args   []any
		wrong  string
	}{
		{"AddSigningKey", []any{"a.public", otherKey, uint64(1)}, "Flags parameter must be zero."},
		{"AddSigningKey", []any{"a/b.public", otherKey, none}, "Public key name not valid: a/b.public"},
		{"AddSigningKey", []any{"foo", otherKey, none}, "Public key name not valid: foo"},
		{"AddSigningKey", []any{".public", otherKey, none}, "Public key name not valid: .public"},
		{"AddSigningKey", []any{strings.Repeat("x", 250) + ".public", otherKey, none}, "Public key name not valid: " + strings.Repeat("x", 250) + ".public"},
		{"AddSigningKey", []any{"local.public", otherKey, none}, "Refusing to write local public key."},
		{"AddSigningKey", []any{"foo.public", "xxx", none}, "Public key invalid: foo.public"},
		{"AddSigningKey", []any{"foo.public", own, none}, "Public key already exists: foo.public"},
		{"AddSigningKey", []any{"foo.public", otherKey, none}, ""},
		{"AddSigningKey", []any{"foo.public", otherKey, none}, "Public key name already exists: foo.public"},
		{"AddSigningKey", []any{"bar.public", otherKey, none}, "Public key already exists: bar.public"},
		{"GetSigningKey", []any{"foo.public"}, ""},
		{"RemoveSigningKey", []any{"foo.public", uint64(1)}, "Flags parameter must be zero."},
		{"RemoveSigningKey", []any{"foo", none}, "Public key name not valid: foo"},
		{"RemoveSigningKey", []any{"local.public", none}, "Refusing to remove local key."},
		{"RemoveSigningKey", []any{"nope.public", none}, "Public key name does not exist: nope.public"},
		{"RemoveSigningKey", []any{"foo.public", none}, ""},
		{"RemoveSigningKey", []any{"foo.public", none}, "Public key name does not exist: foo.public"},
	} {
		err := r.call(home1.ManagerPath, home1.ManagerInterface+"."+c.method, c.args...).Err
		got := ""
		if err != nil {
			got = err.Error()
			if name := errName(err); name != "org.freedesktop.DBus.Error.InvalidArgs" {
				t.Errorf("%s %v: error %s", c.method, c.args, name)
			}
		}
		if got != c.wrong {
			t.Errorf("%s %v: %q, want %q", c.method, c.args, got, c.wrong)
		}
	}
	err = r.call(home1.ManagerPath, home1.ManagerInterface+".GetSigningKey", "foo.public").Err
	if errName(err) != "org.freedesktop.home1.NoSuchKey" || err.Error() != "No key with name: foo.public" {
		t.Errorf("a key that was removed: %v", err)
	}
}

// TestSigningKeysPolkit: bad arguments are told before polkit is asked.
func TestSigningKeysPolkit(t *testing.T) {
	testenv.Need(t, "root", "busctl")
	r := serve(t)
	a := &authority{}
	r.polkit(t, a)
	if got := r.as(t, 1500, "RemoveSigningKey", "st", "foo.public", "0"); !strings.Contains(got, "does not exist") {
		t.Errorf("removing an unknown key: %s", got)
	}
	if got := r.as(t, 1500, "AddSigningKey", "sst", "foo.public", "xx", "0"); !strings.Contains(got, "Access denied") {
		t.Errorf("adding a key: %s", got)
	}
	if want := "system-bus-name " + home1.ActionManageKeys + "  "; strings.Join(a.asked, "\n") != want {
		t.Errorf("polkit was asked %q, want %q", a.asked, want)
	}
	if _, err := os.Stat("foo.public"); err == nil {
		t.Error("a name became a file of this folder")
	}
}
