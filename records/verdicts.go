package records

import "math"

// Blocked says why nobody may log in to an account now. Activating a home is
// another matter: only login policy asks.
type Blocked int

const (
	NotBlocked    Blocked = iota
	IsLocked              // by the administrator
	NotYetValid           // before notBeforeUSec
	NoLongerValid         // after notAfterUSec
	FromFuture            // changed later than now: the clock may be wrong; does not block
)

// Blocked judges the account at the time now, in microseconds since 1970.
func (v *View) Blocked(now uint64) Blocked {
	switch {
	case v.Locked:
		return IsLocked
	case v.NotBeforeUSec != nil && now < *v.NotBeforeUSec:
		return NotYetValid
	case v.NotAfterUSec != nil && now > *v.NotAfterUSec:
		return NoLongerValid
	case v.LastChangeUSec != nil && *v.LastChangeUSec > now:
		return FromFuture
	}
	return NotBlocked
}

// PasswordVerdict says whether the password must, should or may be changed.
type PasswordVerdict int

const (
	PasswordOK          PasswordVerdict = iota
	ChangeNow                           // asked for by the administrator
	PasswordExpired                     // must be changed, and can be
	PasswordDead                        // expired, and cannot be changed any more
	ExpiresSoon                         // should be changed, and can be
	PasswordFromFuture                  // last change lies in the future
	ChangeNotPermitted                  // good, and too young to be changed
	NoPasswordTimestamp                 // rules are set, but not since when: the record is not valid
)

// MayChange reports whether a password may be changed under that verdict.
func (p PasswordVerdict) MayChange() bool {
	return p != PasswordDead && p != ChangeNotPermitted && p != NoPasswordTimestamp
}

// PasswordChange judges the password's age at the time now, in microseconds
// since 1970.
func (v *View) PasswordChange(now uint64) PasswordVerdict {
	low, high, inactive, warn := v.PasswordChangeMinUSec, v.PasswordChangeMaxUSec, v.PasswordChangeInactiveUSec, v.PasswordChangeWarnUSec
	last := uint64(math.MaxUint64) // unset: too late for any rule to apply
	if v.LastPasswordChangeUSec != nil {
		last = *v.LastPasswordChangeUSec
	}
	if v.PasswordChangeNow {
		return ChangeNow
	}
	if v.LastPasswordChangeUSec != nil && last > now && (low != nil || high != nil || inactive != nil) {
		return PasswordFromFuture
	}
	permitted := true
	if low != nil {
		if v.LastPasswordChangeUSec == nil {
			return NoPasswordTimestamp
		}
		permitted = *low <= math.MaxUint64-last && now >= last+*low
	}
	pick := func(yes, no PasswordVerdict) PasswordVerdict {
		if permitted {
			return yes
		}
		return no
	}
	if high != nil && *high < math.MaxUint64-last {
		if inactive != nil && *inactive < math.MaxUint64-*high && *inactive+*high < math.MaxUint64-last && now >= last+*high+*inactive {
			return PasswordDead
		}
		before := last + *high
		if now >= before {
			return pick(PasswordExpired, PasswordDead)
		}
		if warn != nil && (before < *warn || now >= before-*warn) {
			return pick(ExpiresSoon, ChangeNotPermitted)
		}
	}
	return pick(PasswordOK, ChangeNotPermitted)
}

// RateLimited returns for how many microseconds after now the account takes no
// further logins because there were too many, 0 if it takes them.
func (v *View) RateLimited(now uint64) uint64 {
	begin, count := v.RateLimitBeginUSec, v.RateLimitCount
	if begin == nil || count == nil || *begin > now || *count < v.RateLimitBurst {
		return 0
	}
	end := *begin + v.RateLimitIntervalUSec
	if end < *begin {
		end = math.MaxUint64
	}
	if end <= now {
		return 0
	}
	return end - now
}
