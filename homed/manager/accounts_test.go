package manager_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/homed/manager/managertest"
	"hearth/internal/fault"
	"hearth/internal/testenv"
)

// TestFree holds the one question about several accounts against the system's own.
func TestFree(t *testing.T) {
	testenv.Need(t, "getent")
	var g manager.Getent
	for _, c := range []struct {
		keys []string
		want bool
	}{
		{[]string{"nobody-of-that-name", "2345678901"}, true},
		{[]string{"nobody-of-that-name", "0"}, false}, // a user and a group
		{[]string{"root"}, false},
		{[]string{"root", "nobody-of-that-name"}, false},
		{[]string{"nobody-of-that-name", "tty"}, false}, // a group alone
		{[]string{"-s"}, true},
	} {
		if got := g.Free(t.Context(), c.keys); got != c.want {
			t.Errorf("%q are free: %v", c.keys, got)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if g.Free(over, []string{"nobody-of-that-name"}) {
		t.Error("what could not be asked is free")
	}
}

// asked are accounts that write down what they were asked for.
type asked struct {
	noAccounts
	calls *[]string
}

func (a asked) User(ctx context.Context, key string) (string, error) {
	*a.calls = append(*a.calls, "user "+key)
	return a.noAccounts.User(ctx, key)
}

func (a asked) Free(ctx context.Context, keys []string) bool {
	*a.calls = append(*a.calls, fmt.Sprint("free ", keys))
	return a.noAccounts.Free(ctx, keys)
}

// TestAskedOnce: a new home whose names and UID nobody has takes one question, and
// one that somebody might have is asked for by itself.
func TestAskedOnce(t *testing.T) {
	var calls []string
	taken := noAccounts{"bob": true}
	m, stop := managertest.Serve(t, managertest.Populate(t, t.TempDir(), 0), asked{taken, &calls})
	defer stop()
	register := func(name string) error {
		calls = nil
		_, err := m.Do(t.Context(), manager.Operation{Verb: home.Register, Record: newRecord(t, name)})
		return err
	}
	if err := register("ann"); err != nil {
		t.Fatal(err)
	}
	h, err := m.Lookup(t.Context(), manager.Key{Name: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{fmt.Sprintf("free [ann %d]", h.UID)}; !slices.Equal(calls, want) {
		t.Errorf("asked %q, want %q", calls, want)
	}
	if err := register("bob"); !fault.Is(err, fault.UserNameExists) {
		t.Errorf("bob: %v", err)
	}
	// The UID that a name hashes to is another's: it is not given out.
	if _, err := m.Do(t.Context(), manager.Operation{Verb: home.Unregister, Key: manager.Key{Name: "ann"}}); err != nil {
		t.Fatal(err)
	}
	taken[fmt.Sprint(h.UID)] = true
	if err := register("ann"); err != nil {
		t.Fatal(err)
	}
	if now, err := m.Lookup(t.Context(), manager.Key{Name: "ann"}); err != nil || now.UID == h.UID {
		t.Errorf("ann has the UID %d of somebody else, %v", now.UID, err)
	}
	if !slices.Contains(calls, "user ann") || !slices.Contains(calls, fmt.Sprint("user ", h.UID)) {
		t.Errorf("asked %q", calls)
	}
}
