package manager_test

import (
	"testing"
	"testing/synctest"
	"time"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/records"
)

// TestStrangersCannotLockOut: whoever is neither root nor the home's user uses
// up what strangers may try, and no more.
func TestStrangersCannotLockOut(t *testing.T) {
	d := boot(t, t.TempDir())
	r, err := records.NewBuilder("ann").Set("disposition", "regular").Set("rateLimitBurst", uint64(8)).Set("uid", uint64(60456)).Record()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.create(r); err != nil {
		t.Fatal(err)
	}
	acquire := func(uid uint32, pw string) error {
		got, err := d.Do(t.Context(), manager.Operation{Verb: home.Acquire, Key: manager.Key{Name: "ann"}, Secrets: d.secrets(pw), Caller: uid})
		if got.Reference != nil {
			_ = got.Reference.Close()
		}
		return err
	}
	for _, c := range []struct {
		uid  uint32
		want fault.Kind
	}{
		{1500, fault.BadPassword}, {1500, fault.BadPassword}, {1500, fault.AuthenticationLimit},
		{1501, fault.BadPassword}, {1501, fault.BadPassword},
		{1502, fault.AuthenticationLimit}, // half is used up
		{60456, fault.BadPassword}, {0, fault.BadPassword}, {60456, fault.BadPassword},
	} {
		kind(t, "acquiring", acquire(c.uid, "wrong"), c.want)
	}
	if n := d.record("ann").Counters(machineID); n.RateCount != 7 || n.Bad != 7 {
		t.Errorf("counted for the home: %+v", n)
	}
	kind(t, "acquiring as a stranger", acquire(1500, password), fault.AuthenticationLimit)
	if err := acquire(60456, "wrong"); fault.KindOf(err) != fault.BadPassword {
		t.Errorf("the owner: %v", err)
	}
	kind(t, "the home's own limit", acquire(0, password), fault.AuthenticationLimit)
}

func TestStrangersMayTryAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := records.View{RateLimitIntervalUSec: 60e6, RateLimitBurst: 30}
		var s manager.Strangers
		tries := func(uid uint32) (n int) {
			for {
				if _, ok := s.Admit(v, uid, uint64(time.Now().UnixMicro())); !ok {
					return n
				}
				n++
			}
		}
		if a, b, c := tries(1), tries(2), tries(1); a != 8 || b != 7 || c != 0 {
			t.Errorf("%d, %d and %d tries", a, b, c)
		}
		time.Sleep(59 * time.Second)
		if n := tries(3); n != 0 {
			t.Errorf("%d tries in the same minute", n)
		}
		time.Sleep(time.Second)
		if n := tries(1); n != 8 {
			t.Errorf("%d tries in the next minute", n)
		}
		for burst, want := range map[uint64]int{0: 0, 1: 0, 2: 1, 5: 2, 40: 10} {
			v.RateLimitBurst = burst
			s = manager.Strangers{}
			if n := tries(4); n != want {
				t.Errorf("%d of %d tries", n, burst)
			}
		}
	})
}
