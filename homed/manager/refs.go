package manager

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/home"
)

// reference is the daemon's read end of the FIFO of one kind. While a write
// end is open somewhere, someone refers to the home.
type reference struct {
	file *os.File
	pipe bool // it has no name: there was no room for one
}

var fifoSuffix = [2]string{home.DontSuspend: ".dont-suspend", home.PleaseSuspend: ".please-suspend"}

func (m *Manager) fifoPath(e *entry, k home.RefKind) string {
	return filepath.Join(m.Layout.RunDir, e.name+fifoSuffix[k])
}

// notePath is a file that is there while the home is referenced. After a crash
// it tells a home whose user left from one that was activated by hand.
func (m *Manager) notePath(e *entry) string {
	return filepath.Join(m.Layout.RunDir, e.name+".referenced")
}

func (m *Manager) removeNote(e *entry) {
	if e.noted {
		_ = os.Remove(m.notePath(e))
		e.noted = false
	}
}

// removeReferences deletes what is left of references on a home that is gone.
// Whoever holds one refers to nothing from now on, not to the next home of that
// name.
func (m *Manager) removeReferences(e *entry) {
	for k := range fifoSuffix {
		_ = os.Remove(m.fifoPath(e, home.RefKind(k)))
	}
	_ = os.Remove(m.notePath(e))
}

// openFIFO makes the FIFO if need be and opens one end of it.
func (m *Manager) openFIFO(e *entry, k home.RefKind, flag int) (*os.File, error) {
	if err := os.MkdirAll(m.Layout.RunDir, 0o755); err != nil {
		return nil, err
	}
	path := m.fifoPath(e, k)
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "make FIFO", Path: path, Err: err}
	}
	fd, err := unix.Open(path, flag|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open FIFO", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openPipe is a FIFO without a name, both ends of it.
func openPipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "reference"), os.NewFile(uintptr(fds[1]), "reference"), nil
}

// again opens another write end of a pipe.
func (r *reference) again() (f *os.File, err error) {
	rc, err := r.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := rc.Control(func(fd uintptr) {
		f, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY|unix.O_NONBLOCK, 0)
	})
	return f, errors.Join(cerr, err)
}

// giveReference opens a write end for someone. The state machine counts the
// reference already: on error it is told that there is none.
func (m *Manager) giveReference(e *entry, k home.RefKind, acquired bool) (*os.File, error) {
	if e.refs[k] != nil && hungUp(e.refs[k].file) {
		// The last holder just left; this one takes its place.
		m.dropReference(e, k)
	}
	var f *os.File
	var err error
	if e.refs[k] == nil {
		r := &reference{}
		if r.file, err = m.openFIFO(e, k, unix.O_RDONLY); noRoom(err) {
			// No reason to keep anybody out: what is lost is that a daemon started
			// anew finds who still refers to the home.
			m.logOf(e).Warn("no room to keep references beyond a restart", "error", err)
			r.pipe = true
			r.file, f, err = openPipe()
		}
		if err == nil {
			e.refs[k] = r
			defer m.watchReference(e, k)
		}
	}
	switch {
	case err != nil || f != nil:
	case e.refs[k].pipe:
		f, err = e.refs[k].again()
	default:
		f, err = m.openFIFO(e, k, unix.O_WRONLY)
	}
	if err != nil {
		if e.refs[k] == nil || hungUp(e.refs[k].file) {
			m.dropReference(e, k)
			m.hangUp(e, k)
		}
		return nil, err
	}
	e.heldFrom, e.acquired, e.noted = m.Now(), acquired, true
	if err := os.WriteFile(m.notePath(e), nil, 0o600); err != nil {
		m.logOf(e).Warn("cannot note that the home is referenced", "error", err)
	}
	return f, nil
}

// watchReference waits for the last holder to leave. What holders write is
// thrown away.
func (m *Manager) watchReference(e *entry, k home.RefKind) {
	r := e.refs[k]
	if r == nil {
		return
	}
	go func() {
		_, err := io.Copy(io.Discard, r.file)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		m.post(func() { m.checkReference(e, k, r) })
	}()
}

func (m *Manager) checkReference(e *entry, k home.RefKind, r *reference) {
	if e.gone || e.refs[k] != r {
		return
	}
	if !hungUp(r.file) {
		// Someone came in between.
		m.watchReference(e, k)
		return
	}
	m.dropReference(e, k)
	m.hangUp(e, k)
}

// checkReferences notices at once who left: who closes a reference and then
// calls must find it ended.
func (m *Manager) checkReferences(e *entry) {
	for k, r := range e.refs {
		if r != nil && hungUp(r.file) {
			m.dropReference(e, home.RefKind(k))
			m.hangUp(e, home.RefKind(k))
		}
	}
}

func (m *Manager) dropReference(e *entry, k home.RefKind) {
	if e.refs[k] != nil {
		_ = e.refs[k].file.Close()
		e.refs[k] = nil
	}
}

// hangUp tells the state machine, and when nobody refers to the home any more
// has it end. The end of a short reference from a login waits a little: the
// process that authenticates may be followed by the one that holds the session.
func (m *Manager) hangUp(e *entry, k home.RefKind) {
	m.step(e, home.HangUp{Kind: k})
	if e.gone || e.home.Referenced() {
		return
	}
	if e.acquired && m.Now().Sub(e.heldFrom) < shortRef {
		var t *time.Timer
		t = time.AfterFunc(m.Grace, func() {
			m.post(func() {
				if e.ending == t {
					e.ending = nil
					m.endReferences(e)
				}
			})
		})
		e.ending = t
		return
	}
	m.endReferences(e)
}

func (m *Manager) endReferences(e *entry) {
	if e.gone || e.home.Referenced() {
		return
	}
	m.removeNote(e)
	m.step(e, home.ReferenceEnded{})
}

// hungUp reports whether a read end has no writers left.
func hungUp(f *os.File) bool {
	rc, err := f.SyscallConn()
	if err != nil {
		return true
	}
	hup := false
	_ = rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		for {
			_, err := unix.Poll(p, 0)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		hup = p[0].Revents&unix.POLLHUP != 0
	})
	return hup
}

// recoverReferences finds out, after a restart, who still refers to a home: old
// write ends and a new read end meet in the same FIFO.
func (m *Manager) recoverReferences(e *entry) {
	_, err := os.Lstat(m.notePath(e))
	e.noted = err == nil
	for k := range fifoSuffix {
		kind := home.RefKind(k)
		if _, err := os.Lstat(m.fifoPath(e, kind)); err != nil {
			continue
		}
		f, err := m.openFIFO(e, kind, unix.O_RDONLY)
		if err != nil {
			m.logOf(e).Warn("cannot look for references", "error", err)
			continue
		}
		if !hasWriters(f) {
			_ = f.Close()
			continue
		}
		e.refs[kind] = &reference{file: f}
		e.home.Refs[kind] = true
		m.watchReference(e, kind)
	}
	if e.home.Referenced() {
		return
	}
	if e.noted {
		m.logOf(e).Info("nobody refers to the home any more")
		m.endReferences(e)
	}
}

// hasWriters reads: a FIFO that was just opened says "again" while writers
// hold it, and that it ended while none do.
func hasWriters(f *os.File) bool {
	rc, err := f.SyscallConn()
	if err != nil {
		return false
	}
	writers := false
	_ = rc.Control(func(fd uintptr) {
		var b [1]byte
		n, err := unix.Read(int(fd), b[:])
		writers = n > 0 || errors.Is(err, unix.EAGAIN)
	})
	return writers
}
