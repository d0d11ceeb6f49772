package manager

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/homed/home"
	"hearth/records"
)

const recordSuffix = ".identity"

func (m *Manager) recordPath(name string) string {
	return filepath.Join(m.Layout.RecordDir, name+recordSuffix)
}

// unfinishedRecord is the name of a record that was being written, the same as
// systemd-homed's: nobody else writes records while we start.
var unfinishedRecord = regexp.MustCompile(`^\.#.+\.identity[0-9a-f]+$`)

// loadRecords reads the host's records. One that is not in order is left where
// it is, with a warning; its home may then be found by its image.
func (m *Manager) loadRecords() error {
	list, err := os.ReadDir(m.Layout.RecordDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load records: %w", err)
	}
	for _, d := range list {
		if unfinishedRecord.MatchString(d.Name()) && d.Type().IsRegular() {
			if err := os.Remove(filepath.Join(m.Layout.RecordDir, d.Name())); err != nil {
				m.log.Warn("cannot delete a record that was never finished", "file", d.Name(), "error", err)
			}
			continue
		}
		name, ok := strings.CutSuffix(d.Name(), recordSuffix)
		if !ok || !d.Type().IsRegular() || !records.ValidName(name) {
			continue
		}
		if err := m.loadRecord(name); err != nil {
			m.log.Warn("ignoring the record", "HOME_USER", name, "file", m.recordPath(name), "error", err)
		}
	}
	return nil
}

func (m *Manager) loadRecord(name string) error {
	path := m.recordPath(name)
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if t := bytes.Join(bytes.Fields(text), nil); len(t) == 0 || string(t) == "{}" {
		m.log.Info("deleting an empty record", "file", path)
		return os.Remove(path)
	}
	r, err := records.Parse(text, records.HostFile)
	if err != nil {
		return err
	}
	if r.UserName() != name {
		return fmt.Errorf("it is that of %q", r.UserName())
	}
	v, err := m.keys.Vouch(r)
	if err != nil {
		return err
	}
	if err := r.Suitable(m.Machine); err != nil {
		return err
	}
	if o := m.find(Key{UID: v.View(m.Machine).UID, ByUID: true}); o != nil {
		return fmt.Errorf("its UID is that of %s", o.name)
	}
	e := m.add(v, home.Home{})
	e.saved = true
	m.remarkOn(e)
	if m.look(e) == home.SeenMounted && m.suspended(m.logOf(e), e.name) {
		// Locked before a restart. To take it for active would hang.
		e.home.Stored = home.Locked
	}
	m.logOf(e).Info("record is "+v.Verdict().String()+", accepting it", "HOME_STATE", string(e.home.State(m.look(e))))
	if m.look(e) == home.SeenMounted {
		m.settle(e)
		m.retakeLock(e)
	}
	m.recoverReferences(e)
	return nil
}

// remarkOn says what of a record does not count, and what may stop another
// daemon from accepting it.
func (m *Manager) remarkOn(e *entry) {
	r := e.subject.Record()
	for _, why := range r.Ignored(m.Machine) {
		m.logOf(e).Warn("ignoring a field of the record", "field", why)
	}
	if r.UnstableOrder() {
		m.logOf(e).Warn("the record has a list of four or more objects, in which systemd-homed may not recognise its own signature")
	}
}

// save writes a home's record to disk. A home without accepted record has
// none there.
func (m *Manager) save(e *entry) error { return m.saveBy(e, e.subject, replaceFile) }

// saveFirst writes a record to disk that is to become the home's.
func (m *Manager) saveFirst(e *entry, s records.Subject) error { return m.saveBy(e, s, replaceFile) }

// saveCounters saves a record that differs in its counters: a power cut may
// take them back to what they were before.
func (m *Manager) saveCounters(e *entry) error { return m.saveBy(e, e.subject, exchangeFile) }

func (m *Manager) saveBy(e *entry, s records.Subject, write func(string, []byte, os.FileMode) error) (err error) {
	if e.home.Stored == home.Unfixated {
		return nil
	}
	if err := os.MkdirAll(m.Layout.RecordDir, 0o700); err != nil {
		return fmt.Errorf("save record: %w", err)
	}
	path, text, known := m.recordPath(e.name), s.Record().Pretty(), e.saved
	m.aside(func() {
		if err = write(path, text, 0o600); noRoom(err) && known {
			// Who is known may go on changing what they have: the disk may be full
			// of what is not theirs.
			m.logOf(e).Warn("the disk has no room for the record, taking what was set aside for it", "error", err)
			err = m.replaceFromReserve(path, text, 0o600)
		}
		m.setAside()
	})
	if err != nil {
		return fmt.Errorf("save record: %w", err)
	}
	e.saved = true
	return nil
}

// roomFor reports whether a home's record could be saved: there is no use in
// making a home whose record is lost with the next start. Faults: NoDiskSpace,
// IOError.
func (m *Manager) roomFor(e *entry) error {
	const op = "make room for the record"
	err := os.MkdirAll(m.Layout.RecordDir, 0o700)
	if err == nil {
		trial := filepath.Join(m.Layout.RecordDir, ".#"+e.name+recordSuffix+"0")
		if err = os.WriteFile(trial, e.subject.Record().Pretty(), 0o600); !errors.Is(err, fs.ErrNotExist) {
			err = errors.Join(err, os.Remove(trial))
		}
	}
	if err != nil {
		return notSaved(op, err)
	}
	return nil
}

// replaceFile puts a file in place as a whole, durably: after a crash there is
// the old content or the new one, and the new one once it has returned.
func replaceFile(path string, content []byte, mode os.FileMode) error {
	if err := exchangeFile(path, content, mode); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// exchangeFile is replaceFile that leaves it to the file system when the new
// content comes to last.
func exchangeFile(path string, content []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".#"+filepath.Base(path)+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if _, err = f.Write(content); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

func majorMinor(dev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
}

func decimal(s string) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}
