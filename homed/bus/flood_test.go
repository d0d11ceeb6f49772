package bus

import (
	"errors"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"

	"hearth/homed/home1"
)

func TestLedger(t *testing.T) {
	const large = 32 << 20
	l := &ledger{}
	for i := range 4 {
		if !l.take(large) {
			t.Fatalf("large call %d is refused", i)
		}
	}
	if l.take(largeCall + 1) {
		t.Error("large calls have no bound")
	}
	if !l.take(largeCall) {
		t.Error("large calls keep a short one out")
	}
	l.give(large)
	if !l.take(large) {
		t.Error("what was given back is still held")
	}
	for l.calls < maxCalls {
		if !l.take(1) {
			t.Fatalf("short call %d is refused", l.calls)
		}
	}
	if l.take(1) {
		t.Error("calls have no bound")
	}
}

// TestLargeCallsAreGivenBack sends more than may be held at once, one after
// the other.
func TestLargeCallsAreGivenBack(t *testing.T) {
	r := serve(t)
	text := strings.Repeat("x", 8<<20)
	for range maxLargeCalls/len(text) + 2 {
		err := r.raw.Object(home1.Name, home1.ManagerPath).Call(home1.PeerInterface+".Ping", 0, text).Err
		var e dbus.Error
		if !errors.As(err, &e) || e.Name != "org.freedesktop.DBus.Error.InvalidArgs" {
			t.Fatalf("a large call is answered %v", err)
		}
	}
}
