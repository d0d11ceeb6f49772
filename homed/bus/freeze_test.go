package bus

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"hearth/internal/testenv"
)

// sliced is a service manager that knows the slice of one user.
type sliced chan string

func (s sliced) FreezeUnit(unit string) *dbus.Error { return s.note("freeze " + unit) }
func (s sliced) ThawUnit(unit string) *dbus.Error   { return s.note("thaw " + unit) }

func (s sliced) note(what string) *dbus.Error {
	s <- what
	switch {
	case strings.Contains(what, "-1001."):
		return dbus.NewError(systemdName+".NoSuchUnit", []any{"Unit is not loaded."})
	case strings.Contains(what, "-1002."):
		return dbus.NewError(systemdName+".UnitInactive", []any{"Unit is not active."})
	case strings.Contains(what, "-1003."):
		return dbus.NewError("org.freedesktop.DBus.Error.NotSupported", []any{"Unit does not support freezing."})
	}
	return nil
}

func TestFreezer(t *testing.T) {
	address := testenv.Bus(t)
	f := Freezer{Address: address}
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if err := f.Freeze(ctx, 1000); err == nil {
		t.Error("there is no service manager, and nobody says so")
	}
	c, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	calls := make(sliced, 10)
	if err := c.Export(calls, systemdPath, systemdManager); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RequestName(systemdName, 0); err != nil {
		t.Fatal(err)
	}
	for uid, wrong := range map[uint32]bool{1000: false, 1001: false, 1002: false, 1003: true} {
		if err := f.Freeze(ctx, uid); (err != nil) != wrong {
			t.Errorf("freeze %d: %v", uid, err)
		}
	}
	if err := f.Thaw(ctx, 1000); err != nil {
		t.Error(err)
	}
	close(calls)
	seen := map[string]bool{}
	for what := range calls {
		seen[what] = true
	}
	for _, want := range []string{"freeze user-1000.slice", "thaw user-1000.slice", "thaw user@1000.service"} {
		if !seen[want] {
			t.Errorf("%q is missing among %v", want, seen)
		}
	}
}
