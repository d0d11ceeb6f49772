package pamhome

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"hearth/internal/fault"
	"hearth/pamhome/frame"
	"hearth/records"
)

// user is one of ours: the record under the name that PAM_USER gave.
type user struct {
	record *records.Record
	view   records.View
	name   string // canonical: the record's
	asked  string // as PAM_USER gave it, without area
	// passwordOnly: as the record says, so the answer to a call without one
	// is known.
	passwordOnly bool
}

// state is what this module remembers on the PAM handle beside the record.
type state struct {
	// RefFromAuth: this handle got its reference by authenticating, and used
	// up a slot of the rate limit for it.
	RefFromAuth bool `json:"refFromAuth,omitempty"`
	// PasswordOnly: see user. The cached record has no hashes to tell from.
	PasswordOnly bool `json:"passwordOnly,omitempty"`
	// UnavailableUSec: when the service last was not there.
	UnavailableUSec int64 `json:"unavailableUSec,omitempty"`
	// Declined: the password agents were asked, and gave none that opens it.
	Declined bool `json:"declined,omitempty"`
	// Credentials: how many of the unit's password files were tried.
	Credentials int `json:"credentials,omitempty"`
	// SessionID is the session that this module registered, OSC the mark that
	// it left on the terminal.
	SessionID string `json:"sessionID,omitempty"`
	OSC       string `json:"osc,omitempty"`
}

// unavailableFor is how long a service that was not there is not asked again.
const unavailableFor = 5 * time.Second

func (c *call) state(name string) state {
	var s state
	if v, code := c.Conv.Load(keyState + name); code == frame.Success && v.Kind == frame.Text {
		// Only this module writes it; an older one's words are no news.
		_ = json.Unmarshal(v.Text, &s)
	}
	return s
}

func (c *call) note(name string, change func(*state)) {
	s := c.state(name)
	change(&s)
	text, err := json.Marshal(s)
	if err == nil {
		c.Conv.Store(keyState+name, text)
	}
}

// splitArea cuts NAME%AREA. What follows the last % is an area only if it is
// empty or can be the name of a directory.
func splitArea(raw string) (name, area string, has bool) {
	i := strings.LastIndexByte(raw, '%')
	if i < 0 {
		return raw, "", false
	}
	area = raw[i+1:]
	if area == "." || area == ".." || len(area) > 255 || strings.ContainsAny(area, "/\x00") {
		return raw, "", false
	}
	return raw[:i], area, true
}

// skipped reports whether the service need not be asked about a name.
func skipped(name string) bool {
	return name == "root" || name == "nobody" || !records.PortableName(name)
}

// user finds the record of PAM_USER, from the PAM handle or from the service,
// and puts the record's name into PAM_USER. Other than Success: UserUnknown,
// not ours; else the hook's result.
func (c *call) user(ctx context.Context) (*user, frame.Code) {
	asked, area, hasArea := splitArea(c.raw)
	if skipped(asked) {
		return nil, frame.UserUnknown
	}
	u := &user{asked: asked}
	v, code := c.Conv.Load(keyHomeRecord + asked)
	switch {
	case code != frame.Success:
		return nil, code
	case v.Kind == frame.Mark:
		return nil, frame.UserUnknown
	}
	text := v.Text
	fetched := v.Kind != frame.Text
	if fetched {
		if text, code = c.fetch(ctx, u); code != frame.Success {
			return nil, code
		}
	} else {
		u.passwordOnly = c.state(asked).PasswordOnly
	}
	record, err := records.Parse(text, records.ClientReply)
	if err != nil {
		c.log(logErr, "Failed to load user record: %v", err)
		return nil, frame.ServiceErr
	}
	if !record.Matches(asked) {
		c.log(logErr, "Acquired user record does not match user name.")
		return nil, frame.ServiceErr
	}
	u.record, u.name, u.view = record, record.UserName(), record.View(c.machine)
	if code := c.rename(u.name); code != frame.Success {
		return nil, code
	}
	if fetched {
		if code := c.keep(u); code != frame.Success {
			return nil, code
		}
	}
	if hasArea && c.Start.Phase != frame.ChangeToken {
		c.putEnv("XDG_AREA=" + area)
		c.area = area
	}
	return u, frame.Success
}

// fetch asks the service for the record.
func (c *call) fetch(ctx context.Context, u *user) ([]byte, frame.Code) {
	if at := c.state(u.asked).UnavailableUSec; at != 0 {
		if since := c.Now().Sub(time.UnixMicro(at)); since >= 0 && since < unavailableFor {
			return nil, frame.UserUnknown
		}
	}
	var text []byte
	homes, err := c.service(ctx)
	if err != nil {
		// No bus is no service: the users of other modules must get in.
		if fault.Is(err, fault.ServiceUnknown) {
			return nil, c.unavailable(u, err)
		}
		c.log(logErr, "Failed to connect to system bus: %v", err)
		return nil, frame.ServiceErr
	}
	text, _, err = homes.GetUserRecordByName(ctx, u.asked)
	switch fault.KindOf(err) {
	case "":
		return text, frame.Success
	case fault.ServiceUnknown:
		return nil, c.unavailable(u, err)
	case fault.NoSuchHome:
		c.Conv.StoreMark(keyHomeRecord + u.asked)
		return nil, frame.UserUnknown
	}
	c.log(logErr, "Failed to query user record: %s", fault.Public(err))
	return nil, frame.ServiceErr
}

func (c *call) unavailable(u *user, err error) frame.Code {
	c.debug("The home service is not available: %v", err)
	c.note(u.asked, func(s *state) { s.UnavailableUSec = c.Now().UnixMicro() })
	return frame.UserUnknown
}

// rename puts the record's name into PAM_USER. OpenSSH ends the login when
// that happens while it authenticates; it gets the name in the account hook.
func (c *call) rename(name string) frame.Code {
	if name == c.raw {
		return frame.Success
	}
	if c.Start.Phase == frame.Authenticate && c.bySSH() {
		return frame.Success
	}
	code := c.Conv.SetUser(name)
	if code == frame.Success {
		c.current = name
	}
	return code
}

// keep caches the record on the PAM handle, without the hashes, which nobody
// reads from there; the one thing they tell goes beside it.
func (c *call) keep(u *user) frame.Code {
	u.passwordOnly = u.view.PasswordOnly
	masked, _ := u.record.Mask(false)
	text := masked.Compact()
	for _, key := range []string{keyHomeRecord, keyRecord} {
		if code := c.Conv.Store(key+u.asked, text); code != frame.Success {
			return frame.BufErr
		}
	}
	if c.state(u.asked).PasswordOnly != u.passwordOnly {
		c.note(u.asked, func(s *state) { s.PasswordOnly = u.passwordOnly })
	}
	return frame.Success
}

// forget drops the cached record: the home's own may have replaced it.
func (c *call) forget(u *user) {
	names := []string{u.asked}
	if u.name != u.asked {
		names = append(names, u.name)
	}
	for _, n := range names {
		c.Conv.Drop(keyHomeRecord + n)
		c.Conv.Drop(keyRecord + n)
	}
}
