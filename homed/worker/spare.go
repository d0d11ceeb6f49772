package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// A Spare starts workers, and keeps one that was started ahead: to make a
// process takes longer than most of what one is made for. It is as blank as any
// that is started for a request, and serves one. Until then it has no secret, no
// record, and no mount namespace of its own, in which what others unmount would
// stay. It ends with the daemon, at the end of its socket.
//
// The zero value keeps none and starts each when it is needed.
type Spare struct {
	mu     sync.Mutex
	ready  *idle
	closed bool
}

// idle is a worker without a request.
type idle struct {
	program image
	process *os.Process
	conn    *net.UnixConn
	ended   chan struct{} // closed when it is no more
	err     error         // how it ended
}

// image is a program as it is on disk.
type image struct {
	path string
	info os.FileInfo
}

func imageOf(path string) image {
	info, err := os.Stat(path)
	if err != nil {
		return image{path: path}
	}
	return image{path, info}
}

// same says no for a program that was replaced, or cannot be seen.
func (a image) same(b image) bool {
	return a.path == b.path && a.info != nil && b.info != nil && os.SameFile(a.info, b.info) &&
		a.info.Size() == b.info.Size() && a.info.ModTime().Equal(b.info.ModTime())
}

// Prepare starts a worker ahead, unless there is one. It may take as long as
// Start. That it cannot is no fault: Start then meets the same.
func (s *Spare) Prepare(program string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.ready != nil {
		return
	}
	of := imageOf(program)
	ours, theirs, err := pair()
	if err != nil {
		return
	}
	cmd := command(program, SpareVerb, theirs)
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		_ = ours.Close()
		return
	}
	w := &idle{program: of, process: cmd.Process, conn: ours, ended: make(chan struct{})}
	s.ready = w
	go func() {
		w.err = cmd.Wait()
		s.mu.Lock()
		if s.ready == w {
			// Not a new one at once: it may end as this one did.
			s.ready = nil
			_ = w.conn.Close()
		}
		s.mu.Unlock()
		close(w.ended)
	}()
}

// take returns the worker that waits, if it is of that program; nil for none.
func (s *Spare) take(program string) *idle {
	s.mu.Lock()
	w := s.ready
	s.ready = nil
	s.mu.Unlock()
	if w == nil {
		return nil
	}
	select {
	case <-w.ended:
	default:
		if w.program.same(imageOf(program)) {
			return w
		}
	}
	w.drop()
	return nil
}

// drop ends a worker that gets no request, or not all of one.
func (w *idle) drop() {
	_ = w.conn.Close()
	_ = w.process.Kill()
}

// Start is the function Start, by the worker that waits if there is one. It does
// not start another: see Prepare.
func (s *Spare) Start(ctx context.Context, program string, r Request) (*Process, error) {
	w := s.take(program)
	if w == nil {
		return Start(ctx, program, r)
	}
	m, err := compose(r)
	if err != nil {
		w.drop()
		return nil, err
	}
	defer m.close()
	if err := w.hand(m, r); err != nil {
		// It has ended, or is stopped. It does nothing before it says that it has
		// its request.
		w.drop()
		<-w.ended
		return Start(ctx, program, r)
	}
	return follow(ctx, &Process{process: w.process, wait: w.wait, conn: w.conn, verb: r.Verb}), nil
}

// hand gives the worker its request, and returns when it has it.
func (w *idle) hand(m *message, r Request) error {
	if err := w.conn.SetDeadline(time.Now().Add(handOver)); err != nil {
		return err
	}
	if err := m.send(w.conn, r, true); err != nil {
		return err
	}
	buf := make([]byte, 256)
	data, f, err := receive(w.conn, buf)
	if f != nil {
		_ = f.Close()
	}
	if err != nil {
		return err
	}
	var p packet
	if err := json.Unmarshal(data, &p); err != nil || p.Type != taken {
		return fmt.Errorf("hand over request: the worker says %q", data)
	}
	return w.conn.SetDeadline(time.Time{})
}

func (w *idle) wait() error {
	<-w.ended
	return w.err
}

// handOver bounds how long a worker that waits may take to take its request.
const handOver = 2 * time.Second

// Close ends the worker that waits. No other is prepared from then on.
func (s *Spare) Close() {
	s.mu.Lock()
	w := s.ready
	s.ready, s.closed = nil, true
	s.mu.Unlock()
	if w != nil {
		w.drop()
		<-w.ended
	}
}
