package storage

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
	"hearth/storage/luks2"
)

// TestUpdateByKeptKey changes a record without a password while the home is
// active, but not how its user proves who he is.
func TestUpdateByKeptKey(t *testing.T) {
	h := newHouse(t)
	p := h.instance("home-1")
	header, err := luks2.Read(p, containerSize)
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := header.Unlock(p, secrets(t, oldPassword).Passwords)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	named := func(at uint64) *records.Record {
		r, err := h.old.WithoutSignature().Edit().Set("lastChangeUSec", at).Set("realName", "Ann").Record()
		if err != nil {
			t.Fatal(err)
		}
		return h.sign(r)
	}
	refused := func(what string, kept *secret.Bytes, verb string, r *records.Record, passwords ...string) {
		t.Helper()
		p.kept = kept
		if _, err := h.run(p, verb, r, nil, passwords...); !fault.Is(err, fault.BadPassword) {
			t.Errorf("%s: %v", what, err)
		}
		text, err := os.ReadFile(filepath.Join(p.dir, identityName))
		if err != nil || !bytes.Equal(text, h.old.Embedded().Pretty()) {
			t.Errorf("%s: the home's record is %s, %v", what, text, err)
		}
	}
	other, err := secret.New(key.Len())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	refused("without a key kept", nil, Update, named(2))
	refused("with another's key", other, Update, named(2))
	refused("with a password that is wrong", key, Update, named(2), "wrong")
	refused("another operation", key, Inspect, named(2))
	refused("other passwords", key, Update, h.record(2, newPassword))
	refused("more passwords", key, Update, h.record(2, oldPassword, newPassword))

	if _, err := h.run(p, Update, named(2), nil); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(p.dir, identityName))
	if err != nil || !bytes.Contains(text, []byte(`"Ann"`)) {
		t.Errorf("the home's record is %s, %v", text, err)
	}
}
