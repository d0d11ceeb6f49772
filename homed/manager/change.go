package manager

import (
	"errors"
	"fmt"

	"hearth/homed/home"
	"hearth/homed/worker"
	"hearth/internal/fault"
	"hearth/records"
)

// Offline is the flag of Update that leaves the storage alone: only the host's
// record changes, nobody is authenticated, and the home's copies follow with
// the next activation.
const Offline = 1

// maxPasswords is how many passwords a home may have: as many as its image has
// keyslots. Each costs a slow hash.
const maxPasswords = 32

// admitChange checks, before anything is asked of a home, what a change of its
// record needs whatever the home's state.
func (m *Manager) admitChange(op Operation) error {
	switch op.Verb {
	case home.Update:
		if op.Record == nil {
			return fault.New(fault.InvalidArgs, "update home", errors.New("no record"))
		}
		if op.Flags&^Offline != 0 {
			return fault.New(fault.InvalidArgs, "update home", fmt.Errorf("flags %#x are not known", op.Flags))
		}
		return op.Record.Manageable(m.Machine)
	case home.ChangePassword:
		s, err := records.ParseSecrets(op.Secrets)
		if err != nil {
			return err
		}
		defer s.Close()
		if len(s.Passwords) > maxPasswords {
			return fault.Newf(fault.InvalidArgs, "change password", "A home has at most %d passwords.", maxPasswords)
		}
	}
	return nil
}

// signedElsewhere refuses to change a record that others vouch for.
func (m *Manager) signedElsewhere(e *entry) error {
	if ours := e.subject.SignedLocally(); ours != nil && *ours {
		return nil
	}
	return fault.For(e.name, fault.New(fault.RecordSigned, "change record", nil))
}

func (m *Manager) sign(r *records.Record) (records.Verified, error) {
	s, err := m.keys.signer()
	if err != nil {
		return records.Verified{}, err
	}
	return s.Sign(r)
}

// updated is what the home's record becomes by an update. One that nobody
// signed is signed here, if nobody but us has signed the one in use.
func (m *Manager) updated(e *entry, r *records.Record) (records.Verified, error) {
	const op = "update record"
	refuse := func(err error) (records.Verified, error) { return records.Verified{}, err }
	r = r.WithoutSecret()
	known := e.subject.Record()
	if err := known.CheckUpdate(r); err != nil {
		return refuse(err)
	}
	v, err := m.keys.Vouch(r)
	if errors.Is(err, records.ErrUnsigned) {
		if err := m.signedElsewhere(e); err != nil {
			return refuse(err)
		}
		v, err = m.sign(r)
	}
	switch {
	case fault.Is(err, fault.BadSignature):
		// The word that clients of systemd-homed know for an unknown signer.
		return refuse(fault.New(fault.KeyUnavailable, op, err))
	case err != nil:
		return refuse(err)
	}
	v = v.WithBindingOf(e.subject).WithStatusOf(e.subject)
	if err := v.Record().Suitable(m.Machine); err != nil {
		return refuse(err)
	}
	return v, nil
}

// launchUpdate starts the worker of an update, or does without one.
func (m *Manager) launchUpdate(e *entry, s home.Start, c *call) error {
	next, err := m.updated(e, c.op.Record)
	if err != nil {
		return err
	}
	if !s.Call.Offline || c.op.Blobs != nil {
		return m.work(e, s, next, c.secrets)
	}
	if err := m.saveFirst(e, next); err != nil {
		return notSaved("update home", err)
	}
	m.adopt(e, next)
	m.step(e, home.Done{})
	return nil
}

// launchPasswd makes the record with the new passwords, off the loop since a
// hash takes its time, and starts the worker with it.
func (m *Manager) launchPasswd(e *entry, s home.Start, c *call) error {
	const op = "change password"
	view := m.view(e)
	switch verdict := view.PasswordChange(m.now()); {
	case verdict == records.NoPasswordTimestamp:
		return fault.New(fault.NoLastChange, op, errors.New("the record says how old a password has to be, but not how old it is"))
	case !verdict.MayChange():
		return fault.Newf(fault.AccessDenied, op, "Expiration settings of account %s do not allow changing of password.", e.name)
	}
	m.workers++
	subject := e.subject
	go func() {
		next, err := m.withPasswords(subject, c)
		m.post(func() {
			m.workers--
			if err == nil {
				err = m.launchRekey(e, s, c, next)
			}
			if err != nil {
				m.notStarted(e, s, err)
			}
		})
	}()
	return nil
}

// withPasswords returns the subject's record with the new passwords that were
// given. Without any the old ones stay, and the keyslots are brought in line
// with the record.
func (m *Manager) withPasswords(subject records.Subject, c *call) (*records.Record, error) {
	s, err := records.ParseSecrets(c.fresh)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	r, err := subject.Record().WithPasswords(s.Passwords, m.Rand)
	if err != nil {
		return nil, err
	}
	if len(s.Passwords) == 0 {
		return r, nil
	}
	all, err := records.ParseSecrets(c.secrets)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	c.madeOf = all.Places(s.Passwords)
	if !m.enforcesQuality(subject) {
		return r, nil
	}
	return r, m.quality().CheckNew(s.Passwords, all.Passwords, r.UserName())
}

func (m *Manager) launchRekey(e *entry, s home.Start, c *call, next *records.Record) error {
	next, err := next.WithStatusOf(e.subject.Record()).Touched(m.now(), true)
	if err != nil {
		return err
	}
	signed, err := m.sign(next)
	if err != nil {
		return err
	}
	return m.work(e, s, signed, c.secrets)
}

// keepEarly saves the record that a worker must not go on without. Where it
// cannot, the record from before stays the home's: the next attempt to
// authenticate would else save what the caller is told has failed.
func (m *Manager) keepEarly(e *entry, s home.Start, k *worker.Keep) {
	r, err := m.accept(e, k.Record)
	if err == nil {
		if err = m.saveFirst(e, r); err != nil {
			err = notSaved("save record", err)
		} else {
			m.adopt(e, r)
		}
	}
	if err != nil {
		m.logOf(e).Error("cannot save the record while the operation runs", "HOME_VERB", string(s.Work), "error", err)
	}
	k.Reply(err)
}

// judgeChange takes the record that an update, a password change or a resize
// left in the home.
func (m *Manager) judgeChange(e *entry, s home.Start, text []byte) home.Done {
	r, err := m.accept(e, text)
	if err != nil {
		m.logOf(e).Error("the changed record is not accepted", "HOME_VERB", string(s.Work), "error", err)
		return home.Done{Err: err}
	}
	m.adopt(e, r)
	if c := m.calls[s.Call.ID]; !s.Call.Offline && (c == nil || !c.balances && !c.fits) {
		m.succeeded(e)
		return home.Done{}
	}
	// Nobody was authenticated, or it does not count.
	if err := m.save(e); err != nil {
		return home.Done{Err: notSaved(string(s.Work)+" home", err)}
	}
	return home.Done{}
}
