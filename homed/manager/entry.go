package manager

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/home"
	"hearth/internal/fault"
	"hearth/records"
)

// entry is one home. It belongs to the loop.
type entry struct {
	name    string
	home    home.Home
	subject records.Subject // Found while unfixated, Verified from then on
	*face                   // the subject's
	saved   bool            // its record is on disk

	announced, touched, gone bool
	said                     home.State // the state last logged

	strangers strangers
	claims    claims

	todo     []home.Event // given while another was being applied
	stepping bool

	refs     [2]*reference
	heldFrom time.Time // when the last reference was given
	acquired bool      // whether it came from Acquire
	noted    bool      // its note is there
	pin      *os.File  // the home directory, so that nobody unmounts it by accident
	lock     *os.File  // the locked image
	retry    *time.Timer
	ending   *time.Timer // the grace of a short reference
	sysPath  string      // of the device that it was found on
	seat     string      // to which that is attached
	forced   bool        // a home whose storage vanished was detached by force once
}

// face is what of a record is needed again and again: there may be thousands of
// homes, and all that a record says is large.
type face struct {
	UserName, Realm, RealName       string
	Storage, FileSystemType         string
	HomeDirectory, ImagePath, Shell string
	UID, GID                        uint32
	HasUID                          bool
	RebalanceWeight                 uint64
	HasRebalanceWeight              bool
}

func (m *Manager) faceOf(s records.Subject) *face {
	v := s.View(m.Machine)
	return &face{
		UserName: v.UserName, Realm: v.Realm, RealName: v.RealName, Storage: v.Storage, FileSystemType: v.FileSystemType,
		HomeDirectory: v.HomeDirectory, ImagePath: v.ImagePath, Shell: v.Shell, UID: v.UID, GID: v.GID, HasUID: v.HasUID,
		RebalanceWeight: v.RebalanceWeight, HasRebalanceWeight: v.HasRebalanceWeight,
	}
}

// view is all that the home's record says here.
func (m *Manager) view(e *entry) records.View { return e.subject.View(m.Machine) }

func (m *Manager) logOf(e *entry) *slog.Logger { return m.log.With("HOME_USER", e.name) }

// adopt gives the entry a record. A document that differs from the last one is a
// change worth telling.
func (m *Manager) adopt(e *entry, s records.Subject) {
	if e.subject == nil || string(e.subject.Record().Compact()) != string(s.Record().Compact()) {
		m.touch(e)
	}
	m.storeRecord(e, s)
}

// storeRecord is adopt for what nobody is told of, counters above all.
func (m *Manager) storeRecord(e *entry, s records.Subject) {
	e.subject = records.Pack(s)
	e.face = m.faceOf(s)
	m.put(e)
}

// add takes a new home into the set.
func (m *Manager) add(s records.Subject, h home.Home) *entry {
	e := m.join(s, h)
	m.makeBlobDir(e)
	return e
}

func (m *Manager) join(s records.Subject, h home.Home) *entry {
	e := &entry{name: s.Record().UserName(), home: h}
	m.homes[e.name] = e
	m.adopt(e, s)
	return e
}

// makeBlobDir makes the directory for pictures, which is there with the home,
// also while nothing is in it.
func (m *Manager) makeBlobDir(e *entry) {
	if err := os.MkdirAll(m.blobDir(e), 0o755); err != nil {
		m.logOf(e).Warn("cannot make the directory for pictures", "error", err)
	}
}

func (m *Manager) blobDir(e *entry) string { return filepath.Join(m.Layout.BlobDir, e.name) }

// drop takes a home out of the set and lets go of what is held for it.
func (m *Manager) drop(e *entry) {
	e.gone = true
	m.touch(e)
	delete(m.homes, e.name)
	m.remove(e)
	m.texts.forget(e.name)
	m.letGo(e)
	m.removeReferences(e)
	if !e.saved {
		_ = os.Remove(m.blobDir(e)) // if nothing is in it
	}
}

// letGo closes what is held for a home.
func (m *Manager) letGo(e *entry) {
	for k := range e.refs {
		m.dropReference(e, home.RefKind(k))
	}
	closeFile(&e.pin)
	closeFile(&e.lock)
	for _, t := range []*time.Timer{e.retry, e.ending} {
		if t != nil {
			t.Stop()
		}
	}
}

// forget deletes a home's record and pictures and drops it. A file that we
// neither wrote nor accepted is not ours to delete.
func (m *Manager) forget(e *entry) {
	if e.saved {
		path := m.recordPath(e.name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			m.logOf(e).Error("cannot delete the record", "error", err)
		} else {
			m.aside(func() { err = syncDir(filepath.Dir(path)) })
			if err != nil {
				m.logOf(e).Warn("cannot sync the record directory", "error", err)
			}
		}
		if err := os.RemoveAll(m.blobDir(e)); err != nil {
			m.logOf(e).Warn("cannot delete the directory for pictures", "error", err)
		}
		e.saved = false
	}
	m.drop(e)
}

func closeFile(f **os.File) {
	if *f != nil {
		_ = (*f).Close()
		*f = nil
	}
}

// step applies an event and carries out what follows from it. An event that
// comes up meanwhile is applied after that.
func (m *Manager) step(e *entry, ev home.Event) {
	e.todo = append(e.todo, ev)
	if e.stepping {
		return
	}
	e.stepping = true
	for len(e.todo) > 0 {
		ev := e.todo[0]
		e.todo = e.todo[1:]
		var effects []home.Effect
		e.home, effects = home.Step(e.home, m.look(e), ev)
		m.settle(e)
		for _, f := range effects {
			m.carryOut(e, f)
		}
	}
	e.stepping = false
	m.settle(e)
	m.say(e)
	m.collect(e)
}

// settle makes what is held for a home fit its state.
func (m *Manager) settle(e *entry) {
	if e.gone {
		return
	}
	state := e.home.State(m.look(e))
	switch {
	case !state.Pins():
		closeFile(&e.pin)
	case e.pin == nil:
		fd, err := unix.Open(e.HomeDirectory, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			m.logOf(e).Warn("cannot pin the home directory", "error", err)
			break
		}
		e.pin = os.NewFile(uintptr(fd), e.HomeDirectory)
	}
	if !state.KeepsImageLock() {
		closeFile(&e.lock)
	}
	if !e.home.Armed && e.retry != nil {
		e.retry.Stop()
		e.retry = nil
	}
	closed := state == home.Deactivating || !state.Busy() && !state.IsActive() && state != home.Locked
	if e.ending != nil && (closed || e.home.Referenced()) {
		// What it waits for has happened, or is not to. Under a lock it has not.
		e.ending.Stop()
		e.ending = nil
	}
	if closed && !state.Busy() && !e.home.Referenced() {
		// Closed by hand before the grace of its last reference was over. Who
		// opens it by hand next is not to lose it at a restart.
		m.removeNote(e)
	}
}

// say logs a state that is new.
func (m *Manager) say(e *entry) {
	if e.gone {
		return
	}
	if state := e.home.State(m.look(e)); state != e.said {
		m.logOf(e).Info("home is "+string(state), "HOME_STATE", string(state))
		e.said = state
	}
}

// collect looks whether an idle home's storage went away.
func (m *Manager) collect(e *entry) {
	if e.gone || !e.home.Idle() {
		return
	}
	vanished := !m.imageThere(e)
	if !vanished {
		e.forced = false
	}
	switch {
	case e.home.Stored == home.Unfixated:
		if vanished {
			m.logOf(e).Info("the image is gone, forgetting the home that was found with it")
			m.drop(e)
		}
	case e.home.Stored == "" && vanished && !e.forced && m.look(e) == home.SeenMounted:
		// Once: if that fails, the retry timer goes on in the ordinary way.
		e.forced = true
		m.logOf(e).Warn("the storage of an active home is gone, detaching it by force")
		m.step(e, home.Vanished{})
	}
}

// carryOut does what the state machine asks for.
func (m *Manager) carryOut(e *entry, f home.Effect) {
	switch f := f.(type) {
	case home.Start:
		m.start(e, f)
	case home.Reply:
		m.reply(e, f)
	case home.ArmRetry:
		if e.retry != nil {
			e.retry.Stop()
		}
		var t *time.Timer
		t = time.AfterFunc(m.RetryAfter, func() {
			m.post(func() {
				if e.retry == t && !e.gone {
					e.retry = nil
					m.step(e, home.Expired{})
				}
			})
		})
		e.retry = t
	case home.Forget:
		m.forget(e)
	case home.Rescan:
		m.Rescan()
	}
}

// reply answers a call, opening the reference it is to get.
func (m *Manager) reply(e *entry, r home.Reply) {
	c := m.calls[r.Call.ID]
	if c == nil {
		return
	}
	delete(m.calls, r.Call.ID)
	a := answer{err: fault.For(e.name, r.Err)}
	if r.Call.Verb == home.Lock && fault.Is(r.Err, fault.HomeLocked) {
		a.err = alreadyLocked(e.name)
	}
	if r.Reference {
		f, err := m.giveReference(e, r.Call.Kind, r.Call.Verb == home.Acquire)
		if err != nil {
			a.err = fault.For(e.name, fault.New(fault.Unknown, "open reference", err))
		}
		a.result.Reference = f
	}
	if a.err == nil && c.wantsInfo {
		a.result.Info = m.snapshot(e).info(m)
	}
	if a.err != nil {
		m.logOf(e).Debug("operation answered with an error", "HOME_VERB", string(r.Call.Verb), "error", a.err)
	}
	c.finish(a)
}
