package manager

import (
	"context"
	"log/slog"
	"time"

	"hearth/homed/home"
	"hearth/internal/fault"
)

// freezeTime bounds how long the service manager may take: a process that
// waits for a dead disk does not freeze. It is shorter than exitWait.
const freezeTime = 20 * time.Second

// alreadyLocked is what a second lock is told; others hear that the home is
// locked "currently".
func alreadyLocked(name string) error {
	err := fault.Newf(fault.HomeLocked, "lock home", "Home %s is already locked.", name)
	err.User = name
	return err
}

// launchLock freezes the user's sessions, off the loop, and starts the worker.
// Frozen processes do not run into the locked home, where nothing could end
// them. Only images can be locked, so other homes' sessions go on.
func (m *Manager) launchLock(e *entry, s home.Start) error {
	if m.Freezer == nil || e.Storage != "luks" {
		return m.work(e, s, e.subject, nil)
	}
	log, uid := m.logOf(e), e.UID
	m.workers++
	go func() {
		m.freeze(log, uid)
		var err error
		if aerr := m.ask(context.Background(), func() { err = m.work(e, s, e.subject, nil) }); aerr != nil {
			err = aerr
		}
		if err != nil {
			m.thaw(log, uid)
		}
		m.post(func() {
			m.workers--
			if err != nil {
				m.notStarted(e, s, err)
			}
		})
	}()
	return nil
}

// thawUnlessLocked lets the sessions go on after a worker that locks or
// unlocks: by what became of the home, not by what the worker says of it.
func (m *Manager) thawUnlessLocked(log *slog.Logger, name string, uid uint32) {
	if !m.suspended(log, name) {
		m.thaw(log, uid)
	}
}

// suspended asks the kernel. What cannot be found out counts as no: a home
// that is not locked must not stay frozen.
func (m *Manager) suspended(log *slog.Logger, name string) bool {
	yes, err := m.Suspended(name)
	if err != nil {
		log.Warn("cannot tell whether the home is locked", "error", err)
	}
	return yes && err == nil
}

// freeze goes on without, as a home that stays open is worse.
func (m *Manager) freeze(log *slog.Logger, uid uint32) {
	ctx, stop := context.WithTimeout(context.Background(), freezeTime)
	defer stop()
	if err := m.Freezer.Freeze(ctx, uid); err != nil {
		log.Warn("cannot freeze the user's sessions, they may hang in the locked home", "error", err)
	}
}

func (m *Manager) thaw(log *slog.Logger, uid uint32) {
	if m.Freezer == nil {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), freezeTime)
	defer stop()
	if err := m.Freezer.Thaw(ctx, uid); err != nil {
		log.Error("cannot continue the user's sessions", "error", err)
	}
}
