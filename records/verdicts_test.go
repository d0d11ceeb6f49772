package records

import (
	"math"
	"testing"
)

// TestBlockedInOrder: the rules of logins, each at its bound, and which of
// several counts.
func TestBlockedInOrder(t *testing.T) {
	for _, c := range []struct {
		v    View
		now  uint64
		want Blocked
	}{
		{View{}, 0, NotBlocked},
		{View{Locked: true, NotBeforeUSec: num(10), NotAfterUSec: num(3), LastChangeUSec: num(99)}, 5, IsLocked},
		{View{NotBeforeUSec: num(10), NotAfterUSec: num(3), LastChangeUSec: num(99)}, 5, NotYetValid},
		{View{NotAfterUSec: num(3), LastChangeUSec: num(99)}, 5, NoLongerValid},
		{View{LastChangeUSec: num(99)}, 5, FromFuture},
		{View{LastChangeUSec: num(6)}, 5, FromFuture},
		{View{LastChangeUSec: num(5)}, 5, NotBlocked},
		{View{NotBeforeUSec: num(0), NotAfterUSec: num(math.MaxUint64)}, math.MaxUint64, NotBlocked},
		{View{NotAfterUSec: num(0)}, 0, NotBlocked},
		{View{NotAfterUSec: num(0)}, 1, NoLongerValid},
	} {
		if got := c.v.Blocked(c.now); got != c.want {
			t.Errorf("%+v at %d: %d, want %d", deref(c.v), c.now, got, c.want)
		}
	}
}

// TestPasswordChange: every way through the rules on the age of a password, at
// each bound from both sides, and where sums do not fit.
func TestPasswordChange(t *testing.T) {
	const end = math.MaxUint64
	at := func(last, low, high, warn, inactive *uint64) View {
		return View{LastPasswordChangeUSec: last, PasswordChangeMinUSec: low, PasswordChangeMaxUSec: high, PasswordChangeWarnUSec: warn, PasswordChangeInactiveUSec: inactive}
	}
	now := at(num(10), num(5), num(20), num(4), num(3))
	now.PasswordChangeNow = true
	for _, c := range []struct {
		v    View
		now  uint64
		want PasswordVerdict
	}{
		{now, 0, ChangeNow}, // whatever else holds
		{View{}, 0, PasswordOK},
		// From the future, if there is a rule that counts on it.
		{at(num(11), nil, nil, nil, nil), 10, PasswordOK},
		{at(num(11), nil, nil, num(1), nil), 10, PasswordOK},
		{at(num(11), num(0), nil, nil, nil), 10, PasswordFromFuture},
		{at(num(11), nil, num(5), nil, nil), 10, PasswordFromFuture},
		{at(num(11), nil, nil, nil, num(5)), 10, PasswordFromFuture},
		{at(num(10), num(0), nil, nil, nil), 10, PasswordOK},
		// The least age.
		{at(nil, num(5), nil, nil, nil), 10, NoPasswordTimestamp},
		{at(nil, num(5), num(5), num(5), num(5)), 10, NoPasswordTimestamp},
		{at(num(10), num(5), nil, nil, nil), 14, ChangeNotPermitted},
		{at(num(10), num(5), nil, nil, nil), 15, PasswordOK},
		{at(num(10), num(end-10), nil, nil, nil), end, PasswordOK},
		{at(num(10), num(end-9), nil, nil, nil), end, ChangeNotPermitted},
		{at(num(10), num(end), nil, nil, nil), end, ChangeNotPermitted},
		// The greatest.
		{at(nil, nil, num(5), num(5), num(5)), end, PasswordOK},
		{at(num(10), nil, num(20), nil, nil), 29, PasswordOK},
		{at(num(10), nil, num(20), nil, nil), 30, PasswordExpired},
		{at(num(10), num(21), num(20), nil, nil), 30, PasswordDead},
		{at(num(10), num(21), num(20), nil, nil), 31, PasswordExpired},
		{at(num(10), nil, num(end-11), nil, nil), end, PasswordExpired},
		{at(num(10), nil, num(end-10), nil, nil), end, PasswordOK},
		{at(num(10), nil, num(end), nil, nil), end, PasswordOK},
		{at(num(10), num(21), num(end), nil, nil), 30, ChangeNotPermitted},
		// The time after it in which it still can be changed.
		{at(num(10), nil, num(20), nil, num(3)), 32, PasswordExpired},
		{at(num(10), nil, num(20), nil, num(3)), 33, PasswordDead},
		{at(num(10), nil, num(20), nil, num(0)), 29, PasswordOK},
		{at(num(10), nil, num(20), nil, num(0)), 30, PasswordDead},
		{at(num(10), nil, num(20), nil, num(end-20)), end, PasswordExpired},
		{at(num(10), nil, num(20), nil, num(end-30)), end, PasswordExpired},
		{at(num(10), nil, num(20), nil, num(end-31)), end, PasswordDead},
		{at(num(10), nil, nil, nil, num(3)), end, PasswordOK},
		// The warning before it.
		{at(num(10), nil, num(20), num(4), nil), 25, PasswordOK},
		{at(num(10), nil, num(20), num(4), nil), 26, ExpiresSoon},
		{at(num(10), num(19), num(20), num(4), nil), 28, ChangeNotPermitted},
		{at(num(10), num(19), num(20), num(4), nil), 29, ExpiresSoon},
		{at(num(10), nil, num(20), num(30), nil), 10, ExpiresSoon},
		{at(num(10), nil, num(20), num(31), nil), 10, ExpiresSoon},
		{at(num(10), nil, num(20), num(0), nil), 29, PasswordOK},
		{at(num(10), nil, nil, num(30), nil), 29, PasswordOK},
	} {
		if got := c.v.PasswordChange(c.now); got != c.want {
			t.Errorf("last %v, min %v, max %v, warn %v, inactive %v at %d: %d, want %d", deref(c.v.LastPasswordChangeUSec), deref(c.v.PasswordChangeMinUSec),
				deref(c.v.PasswordChangeMaxUSec), deref(c.v.PasswordChangeWarnUSec), deref(c.v.PasswordChangeInactiveUSec), c.now, got, c.want)
		}
	}
	for verdict, may := range map[PasswordVerdict]bool{PasswordOK: true, ChangeNow: true, PasswordExpired: true, PasswordDead: false, ExpiresSoon: true,
		PasswordFromFuture: true, ChangeNotPermitted: false, NoPasswordTimestamp: false} {
		if verdict.MayChange() != may {
			t.Errorf("verdict %d: may change %v", verdict, !may)
		}
	}
}

// TestRateLimit: each rule at its bound, what is kept, and what is told.
func TestRateLimit(t *testing.T) {
	const end = math.MaxUint64
	for _, c := range []struct {
		begin, count, interval, burst, now uint64
		ok                                 bool
		after, next                        uint64 // count afterwards, when the next may be
		told                               uint64 // what NextTry says before
		known                              bool
	}{
		{0, 0, 60, 3, 100, true, 1, 0, 0, false},       // nothing counted yet
		{0, 5, 60, 3, 100, true, 1, 0, 0, false},       // likewise
		{101, 3, 60, 3, 100, true, 1, 0, 0, false},     // the clock went back
		{100, 3, 60, 3, 100, false, 3, 160, 160, true}, // at the same moment
		{40, 3, 60, 3, 99, false, 3, 100, 100, true},
		{40, 3, 60, 3, 100, true, 1, 0, 100, true}, // the interval is over
		{40, 2, 60, 3, 99, true, 3, 0, 0, true},    // one is left
		{40, 0, 60, 3, 99, true, 1, 0, 0, false},
		{40, 9, 60, 3, 99, false, 9, 100, 100, true},
		{40, 3, end, 3, end - 1, false, 3, end, end, true}, // never again
		{40, 0, 60, 0, 99, false, 0, 100, 0, false},        // none allowed
		{40, 3, 0, 3, 99, true, 1, 0, 40, true},            // an interval of nothing
		{40, end - 1, 60, end, 99, true, end, 0, 0, true},
	} {
		v := View{RateLimitIntervalUSec: c.interval, RateLimitBurst: c.burst}
		before := Counters{RateLimitBeginUSec: c.begin, RateCount: c.count, Good: 7, Bad: 8}
		if next, known := before.NextTry(v, c.now); next != c.told || known != c.known {
			t.Errorf("%+v at %d: told %d, %v", c, c.now, next, known)
		}
		after, next, ok := before.Attempt(v, c.now)
		if ok != c.ok || next != c.next || after.RateCount != c.after || after.Good != 7 || after.Bad != 8 {
			t.Errorf("%+v: %+v, %d, %v", c, after, next, ok)
		}
		if restarted := ok && c.after == 1 && c.count != 0; restarted && after.RateLimitBeginUSec != c.now {
			t.Errorf("%+v: begins at %d", c, after.RateLimitBeginUSec)
		}
	}
}
