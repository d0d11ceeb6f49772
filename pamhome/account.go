package pamhome

import (
	"context"

	"hearth/pamhome/frame"
	"hearth/records"
)

// account runs acct_mgmt: a reference if none is held, then the verdict.
func (c *call) account(ctx context.Context) frame.Code {
	u, code := c.acquire(ctx, false)
	if code != frame.Success {
		return code
	}
	if u == nil {
		if u, code = c.user(ctx); code != frame.Success {
			return code
		}
	}
	return c.verdict(u)
}

// verdict says whether the account may be used now. The service does not ask
// these questions when it opens a home: nobody but this hook enforces them.
func (c *call) verdict(u *user) frame.Code {
	now := c.now()
	switch u.view.Blocked(now) {
	case records.NotBlocked:
	case records.IsLocked:
		return c.refuse(frame.AcctExpired, "User record is blocked, prohibiting access.")
	case records.NotYetValid:
		return c.refuse(frame.AcctExpired, "User record is not valid yet, prohibiting access.")
	case records.NoLongerValid:
		return c.refuse(frame.AcctExpired, "User record is not valid anymore, prohibiting access.")
	case records.FromFuture:
		c.log(logWarning, "User record for '%s' is newer than current system time, assuming incorrect system clock, allowing access.", u.name)
	default:
		return c.refuse(frame.AcctExpired, "User record not valid, prohibiting access.")
	}
	// The login that used up the last slot proved itself.
	if wait := u.view.RateLimited(now); wait > 0 && !c.state(u.name).RefFromAuth {
		return c.refuse(frame.MaxTries, "Too many logins, try again in "+records.Timespan(wait, 1e6)+".")
	}
	switch u.view.PasswordChange(now) {
	case records.ChangeNow:
		return c.refuse(frame.NewAuthTokReqd, "Password change required.")
	case records.PasswordExpired:
		return c.refuse(frame.NewAuthTokReqd, "Password expired, change required.")
	case records.PasswordDead:
		return c.refuse(frame.AuthTokExpired, "Password is expired, but can't change, refusing login.")
	case records.NoPasswordTimestamp:
		return c.refuse(frame.AuthTokExpired, "User record not valid, prohibiting access.")
	case records.ExpiresSoon:
		return c.refuse(frame.Success, "Password will expire soon, please change.")
	case records.PasswordFromFuture:
		c.log(logWarning, "Couldn't check if password change is required, last change is in the future, system clock likely wrong.")
	}
	return frame.Success
}

func (c *call) refuse(code frame.Code, line string) frame.Code {
	c.tell(frame.Error, "%s", line)
	return code
}

// now is the time as records count it.
func (c *call) now() uint64 { return uint64(c.Now().UnixMicro()) }
