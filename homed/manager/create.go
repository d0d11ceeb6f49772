package manager

import (
	"errors"

	"hearth/homed/home"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// launchCreate checks the passwords, off the loop since each takes a slow hash,
// and starts the worker that makes a home: for Create, and for Realize of a
// record that was registered before.
func (m *Manager) launchCreate(e *entry, s home.Start, c *call) error {
	if c == nil || c.secrets == nil {
		return fault.New(fault.KeyUnavailable, "create home", errors.New("no secret section"))
	}
	if err := m.roomFor(e); err != nil {
		return err
	}
	subject := e.subject
	m.workers++
	go func() {
		err := m.goodPasswords(subject, c.secrets)
		m.post(func() {
			m.workers--
			if err == nil {
				err = m.work(e, s, e.subject, c.secrets)
			}
			if err != nil {
				m.notStarted(e, s, err)
			}
		})
	}()
	return nil
}

// goodPasswords checks those of the secrets that are passwords of the record,
// unless the record asks for no check. Fault: LowPasswordQuality.
func (m *Manager) goodPasswords(subject records.Subject, section *secret.Bytes) error {
	if !m.enforcesQuality(subject) {
		return nil
	}
	s, err := records.ParseSecrets(section)
	if err != nil {
		return err
	}
	defer s.Close()
	return m.quality().Check(subject.Record(), s)
}

// enforcesQuality reports whether the record wants weak passwords refused, as
// it does unless it says otherwise.
func (m *Manager) enforcesQuality(subject records.Subject) bool {
	enforce := subject.View(m.Machine).EnforcePasswordPolicy
	return enforce == nil || *enforce
}

// quality is read each time: who edits the rules expects them to hold.
func (m *Manager) quality() records.QualityPolicy {
	return records.ParseQualityPolicy(m.Layout.ReadPasswordRules())
}
