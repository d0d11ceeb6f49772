package userdb

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wire reads and writes a connection by calls that the scheduler does not hear
// of. They never wait, as the socket is not a blocking one: waiting is left to
// the runtime's poller. Told of each, the scheduler wakes its monitor, a thread of
// its own, and on one slow processor takes longer than the call.
type wire struct {
	conn      *net.UnixConn
	slow      bool // the reader is, and there is a deadline
	raw       syscall.RawConn
	reading   attempt
	writing   attempt
	tryReads  func(uintptr) bool // kept, as making one takes memory each time
	tryWrites func(uintptr) bool
}

// attempt is one call and how it ended.
type attempt struct {
	p    []byte
	n    int
	errn syscall.Errno
}

func (a *attempt) try(number, fd uintptr) (done bool) {
	for {
		n, _, errn := syscall.RawSyscall(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(a.p))), uintptr(len(a.p)))
		if errn == unix.EINTR {
			continue
		}
		if a.n, a.errn = int(n), errn; errn != 0 {
			a.n = 0
		}
		return errn != unix.EAGAIN
	}
}

func newWire(c *net.UnixConn) (*wire, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &wire{conn: c, raw: raw}
	w.tryReads = func(fd uintptr) bool { return w.reading.try(unix.SYS_READ, fd) }
	w.tryWrites = func(fd uintptr) bool {
		if w.writing.try(unix.SYS_WRITE, fd) {
			return true
		}
		if !w.slow {
			w.slow = true // only now it is worth a timer
			_ = w.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		}
		return false
	}
	return w, nil
}

// Read implements io.Reader. One goroutine reads at a time.
func (w *wire) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	w.reading = attempt{p: p}
	err := w.raw.Read(w.tryReads)
	n, errn := w.reading.n, w.reading.errn
	w.reading.p = nil
	switch {
	case err != nil:
		return 0, err
	case errn != 0:
		return 0, os.NewSyscallError("read", errn)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write implements io.Writer: all of p, or an error. A reader that does not read
// for writeTimeout ends it. One goroutine writes at a time.
func (w *wire) Write(p []byte) (done int, err error) {
	defer func() {
		w.writing.p = nil
		if w.slow {
			w.slow = false
			_ = w.conn.SetWriteDeadline(time.Time{})
		}
	}()
	for done < len(p) {
		w.writing = attempt{p: p[done:]}
		if err := w.raw.Write(w.tryWrites); err != nil {
			return done, err
		}
		if w.writing.errn != 0 {
			return done, os.NewSyscallError("write", w.writing.errn)
		}
		done += w.writing.n
	}
	return done, nil
}
