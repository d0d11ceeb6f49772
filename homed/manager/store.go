package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/homed/home"
	"hearth/records"
	"hearth/storage/presence"
)

const recordSuffix = ".identity"

func (m *Manager) recordPath(name string) string {
	return filepath.Join(m.Layout.RecordDir, name+recordSuffix)
}

// unfinishedRecord is the name of a record that was being written, the same as
// systemd-homed's: nobody else writes records while we start.
func unfinishedRecord(name string) bool {
	name, ok := suffixed(name, 1, len(name))
	name, is := strings.CutSuffix(name, recordSuffix)
	return ok && is && len(name) > 2 && strings.HasPrefix(name, ".#")
}

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
	// With thousands of homes, a look for each that nearly always finds nothing
	// costs more than its record.
	blobs, run := namesIn(m.Layout.BlobDir), namesIn(m.Layout.RunDir)
	var survey presence.Survey
	loaded := 0
	defer func() { m.log.Info("records are loaded", "homes", loaded) }()
	for _, d := range list {
		if unfinishedRecord(d.Name()) && d.Type().IsRegular() {
			if err := os.Remove(filepath.Join(m.Layout.RecordDir, d.Name())); err != nil {
				m.log.Warn("cannot delete a record that was never finished", "file", d.Name(), "error", err)
			}
			continue
		}
		name, ok := strings.CutSuffix(d.Name(), recordSuffix)
		if !ok || !d.Type().IsRegular() || !records.ValidName(name) {
			continue
		}
		e, err := m.loadRecord(name, &survey)
		if err != nil {
			m.log.Warn("ignoring the record", "HOME_USER", name, "file", m.recordPath(name), "error", err)
		}
		if e == nil {
			continue
		}
		loaded++
		if !blobs[name] {
			m.makeBlobDir(e)
		}
		if run[filepath.Base(m.notePath(e))] || run[filepath.Base(m.fifoPath(e, home.DontSuspend))] || run[filepath.Base(m.fifoPath(e, home.PleaseSuspend))] {
			m.recoverReferences(e)
		}
	}
	return nil
}

// namesIn are the names of what is in a directory; of one that cannot be read
// there are none.
func namesIn(dir string) map[string]bool {
	list, _ := os.ReadDir(dir)
	names := make(map[string]bool, len(list))
	for _, d := range list {
		names[d.Name()] = true
	}
	return names
}

// readRegular is os.ReadFile without what that does for files of other kinds.
func readRegular(path string) ([]byte, error) {
	retry := func(f func() (int, error)) (n int, err error) {
		for {
			if n, err = f(); !errors.Is(err, unix.EINTR) {
				return n, err
			}
		}
	}
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	// One byte more, so that the first read meets the end.
	for text := make([]byte, 0, min(st.Size, records.MaxFile)+1); ; {
		n, err := retry(func() (int, error) { return unix.Read(fd, text[len(text):cap(text)]) })
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		switch text = text[:len(text)+n]; {
		case n == 0, len(text) < cap(text):
			return text, nil
		case len(text) > records.MaxFile:
			return text, nil // too much for a record, which says so
		}
		text = slices.Grow(text, len(text))
	}
}

// blank reports whether a file holds nothing, or an object of nothing.
func blank(text []byte) bool {
	text = bytes.TrimSpace(text)
	inner, object := bytes.CutPrefix(text, []byte("{"))
	inner, closed := bytes.CutSuffix(inner, []byte("}"))
	return len(text) == 0 || object && closed && len(bytes.TrimSpace(inner)) == 0
}

// loadRecord reads one record, and returns its home unless there is none.
func (m *Manager) loadRecord(name string, survey *presence.Survey) (*entry, error) {
	path := m.recordPath(name)
	text, err := readRegular(path)
	if err != nil {
		return nil, err
	}
	if blank(text) {
		m.log.Info("deleting an empty record", "file", path)
		return nil, os.Remove(path)
	}
	r, err := records.Parse(text, records.HostFile)
	if err != nil {
		return nil, err
	}
	if r.UserName() != name {
		return nil, fmt.Errorf("it is that of %q", r.UserName())
	}
	v, err := m.keys.Vouch(r)
	if err != nil {
		return nil, err
	}
	if err := r.Suitable(m.Machine); err != nil {
		return nil, err
	}
	if o := m.find(Key{UID: v.View(m.Machine).UID, ByUID: true}); o != nil {
		return nil, fmt.Errorf("its UID is that of %s", o.name)
	}
	e := m.join(v, home.Home{})
	e.saved = true
	m.remarkOn(e, v.Record())
	seen := lookBy(survey.Look, e.face)
	if seen == home.SeenMounted && m.suspended(m.logOf(e), e.name) {
		// Locked before a restart. To take it for active would hang.
		e.home.Stored = home.Locked
	}
	level := slog.LevelInfo
	if v.Verdict() == records.SignedByUs {
		// As nearly all are, and whoever reads the log of thousands takes longer
		// for these lines than we for the records.
		level = slog.LevelDebug
	}
	m.logOf(e).Log(context.Background(), level, "record is "+v.Verdict().String()+", accepting it", "HOME_STATE", string(e.home.State(seen)))
	if seen == home.SeenMounted {
		m.settle(e)
		m.retakeLock(e)
	}
	return e, nil
}

// remarkOn says what of a record does not count, and what may stop another
// daemon from accepting it.
func (m *Manager) remarkOn(e *entry, r *records.Record) {
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
