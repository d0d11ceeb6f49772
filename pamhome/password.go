package pamhome

import (
	"context"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/pamhome/frame"
)

// prelim is PAM_PRELIM_CHECK (security/pam_modules.h).
const prelim = 0x4000

// changeToken runs chauthtok: the new password first, as libpam asks for it,
// then whatever the service wants to know of the old one.
func (c *call) changeToken(ctx context.Context) frame.Code {
	u, code := c.user(ctx)
	if code != frame.Success {
		return code
	}
	fresh, code := c.newPassword()
	if code != frame.Success {
		return code
	}
	defer fresh.Close()
	if c.Start.Flags&prelim != 0 {
		return frame.Success
	}
	var next answers
	defer next.Close()
	t, err := fresh.Clone()
	if err != nil {
		return frame.BufErr
	}
	next.addPassword(t)
	a := &asking{}
	defer a.known.Close()
	if c.Start.OldAuthTok.Len() > 0 {
		if t, err = c.Start.OldAuthTok.Clone(); err != nil {
			return frame.BufErr
		}
		a.known.addPassword(t)
	}
	for {
		err := c.change(ctx, u.name, &next, &a.known)
		if err == nil {
			break
		}
		q, ask := questions[fault.KindOf(err)]
		if !ask {
			return c.final(u.name, err)
		}
		switch done, code := c.ask(a, u.name, q, a.known.has(q.member)); done {
		case refused:
			return frame.ConvErr
		case ended:
			return code
		}
	}
	// The cached record still asks for the change that has just been made.
	c.forget(u)
	c.log(logNotice, "Successfully changed password for user %s.", u.name)
	return frame.Success
}

// newPassword returns the new password, the caller's to close.
func (c *call) newPassword() (*secret.Bytes, frame.Code) {
	if c.Start.AuthTok.Len() > 0 {
		t, err := c.Start.AuthTok.Clone()
		if err != nil {
			return nil, frame.BufErr
		}
		return t, frame.Success
	}
	t, code := c.Conv.NewToken(false, "")
	empty := t.Len() == 0
	t.Close()
	if code != frame.Success {
		return nil, code
	}
	if empty {
		c.debug("Password request aborted.")
		return nil, frame.AuthTokErr
	}
	t, code = c.Conv.NewToken(true, "new password: ")
	if code == frame.Success && t.Len() == 0 {
		code = frame.AuthTokErr
	}
	if code != frame.Success {
		t.Close()
		return nil, code
	}
	if !travels(t) {
		t.Close()
		c.tell(frame.Error, "The new password is not valid UTF-8.")
		return nil, frame.AuthTokErr
	}
	return t, frame.Success
}

func (c *call) change(ctx context.Context, name string, next, old *answers) error {
	homes, err := c.service(ctx)
	if err != nil {
		return err
	}
	fresh, err := next.encode()
	if err != nil {
		return err
	}
	defer fresh.Close()
	known, err := old.encode()
	if err != nil {
		return err
	}
	defer known.Close()
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	return homes.Call(ctx, "ChangePasswordHome", name, fresh, known)
}
