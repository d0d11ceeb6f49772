package manager

import (
	"time"

	"hearth/homed/home"
	"hearth/internal/fault"
	"hearth/records"
)

// strangers counts the attempts of callers who are neither root nor the home's
// own user and whom nobody authorized: AcquireHome is open to everybody, and
// the home's own limit is one for all. Without a count beside it one local user
// could lock any other out, by guessing or just by filling the queue.
//
// It is in memory alone. What passes here counts for the home as well.
type strangers struct {
	all  records.Counters
	each map[uint32]records.Counters
}

// admit counts an attempt by uid. Together strangers get half of what the home
// allows, one alone a quarter, rounded up. When that is used up ok is false and
// next says when the next attempt may be made.
func (s *strangers) admit(v records.View, uid uint32, now uint64) (next uint64, ok bool) {
	burst := v.RateLimitBurst
	if v.RateLimitBurst = burst / 2; v.RateLimitBurst == 0 {
		return 0, false
	}
	all, next, ok := s.all.Attempt(v, now)
	if !ok {
		return next, false
	}
	if all.RateCount == 1 {
		s.each = map[uint32]records.Counters{} // a new interval: nobody has tried yet
	}
	v.RateLimitBurst = burst/4 + (burst%4+3)/4
	one, next, ok := s.each[uid].Attempt(v, now)
	if !ok {
		return next, false
	}
	s.all, s.each[uid] = all, one
	return 0, true
}

// admitStranger refuses a caller who has tried too often. It counts before the
// call is queued. Fault: AuthenticationLimit.
func (m *Manager) admitStranger(e *entry, op *Operation) error {
	if op.Verb != home.Acquire || op.Caller == 0 || e.HasUID && op.Caller == e.UID {
		return nil
	}
	now := m.now()
	if next, ok := e.strangers.admit(m.view(e), op.Caller, now); !ok {
		return tooMany(string(op.Verb)+" home", now, next)
	}
	return nil
}

// tooMany words the limit on attempts; next is when it ends, if that is known.
func tooMany(op string, now, next uint64) error {
	text := "Too many login attempts, please try again later."
	if wait := time.Duration(next-now) * time.Microsecond; next > now && wait < 24*time.Hour {
		text = "Too many login attempts, please try again in " + records.Timespan(uint64(max(wait.Round(time.Second), time.Second)/time.Microsecond), 1e6) + "!"
	}
	return fault.Newf(fault.AuthenticationLimit, op, "%s", text)
}
