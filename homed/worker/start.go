package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// answerGrace is how long a worker may take to exit after its answer.
const answerGrace = 10 * time.Second

// Event is what a worker reports. Exactly one of the fields is set.
type Event struct {
	Progress  *Progress
	ImageLock *os.File // the receiver's to close
	Keep      *Keep
	Answer    *Answer // the last one
}

// Progress says how far a stage is. Total 0 means that the end is unknown.
type Progress struct {
	Stage       string
	Done, Total uint64
}

// Keep asks for a record to be saved before the operation goes on. The worker
// waits until Reply was called, once.
type Keep struct {
	Record []byte
	// Reply says that the record is saved, durably, or why it is not.
	Reply func(error)
}

// Process is a running worker.
type Process struct {
	process *os.Process
	wait    func() error // until it has ended
	conn    *net.UnixConn
	verb    string
	events  chan Event
}

// Start runs program for one operation, in a mount namespace of its own. When
// ctx ends the worker is asked to unwind (Cancel). The secrets were handed to
// the kernel when Start returns.
//
// Faults: WorkerFailed if it cannot be started, InvalidArgs if the secrets are
// too long or the blobs too many.
func Start(ctx context.Context, program string, r Request) (*Process, error) {
	const op = "start worker"
	m, err := compose(r)
	if err != nil {
		return nil, err
	}
	defer m.close()
	ours, theirs, err := pair()
	if err != nil {
		return nil, fault.New(fault.WorkerFailed, op, err)
	}
	defer func() { _ = theirs.Close() }()
	// All packets go out before the worker exists: the socket holds them.
	if err := m.send(ours, r, false); err != nil {
		_ = ours.Close()
		return nil, fault.New(fault.WorkerFailed, op, err)
	}
	cmd := command(program, r.Verb, theirs)
	cmd.Stdin = m.record
	if !r.SharedMounts {
		// Cloneflags, not Unshareflags: with the latter the runtime makes "/"
		// private, and no home would ever reach the host.
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	}
	if err := cmd.Start(); err != nil {
		_ = ours.Close()
		return nil, fault.New(fault.WorkerFailed, op, err)
	}
	return follow(ctx, &Process{process: cmd.Process, wait: cmd.Wait, conn: ours, verb: r.Verb}), nil
}

// command is how a worker is run, but for its namespace and its input.
func command(program, verb string, socket *os.File) *exec.Cmd {
	cmd := exec.Command(program, verb)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.ExtraFiles = []*os.File{socket}
	// A process group of its own: Ctrl-C at a daemon in the foreground is not
	// meant for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// follow listens to a worker that has its request.
func follow(ctx context.Context, p *Process) *Process {
	p.events = make(chan Event, 4)
	stop := context.AfterFunc(ctx, p.Cancel)
	go func() {
		defer stop()
		p.listen()
	}()
	return p
}

// A message is a request on its way: the first packet, and what goes beside it.
type message struct {
	first          []byte
	params, record *os.File
}

func (m *message) close() {
	for _, f := range []*os.File{m.params, m.record} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// compose makes a message. Faults as Start.
func compose(r Request) (m *message, err error) {
	const op = "start worker"
	secrets := -1
	if r.Secrets != nil {
		secrets = r.Secrets.Len()
	}
	if secrets > maxSecrets {
		return nil, fault.Newf(fault.InvalidArgs, op, "The secrets are too long.")
	}
	if len(r.Blobs) > maxBlobs {
		return nil, fault.Newf(fault.InvalidArgs, op, "A blob directory has at most %d files.", maxBlobs)
	}
	m = &message{}
	defer func() {
		if err != nil {
			m.close()
			m, err = nil, fault.New(fault.WorkerFailed, op, err)
		}
	}()
	if m.first, err = json.Marshal(opening{Verb: r.Verb, Secrets: secrets, Blobs: names(r.Blobs)}); err != nil {
		return m, err
	}
	text, err := json.Marshal(r.Params)
	if err == nil && len(text) > maxRecord {
		err = fmt.Errorf("parameters of %d bytes, there are too many keys", len(text))
	}
	if err != nil {
		return m, err
	}
	if m.params, err = secret.Sealed("parameters", text); err != nil {
		return m, err
	}
	m.record, err = secret.Sealed("record", r.Record)
	return m, err
}

// send hands the message to the kernel. A worker that is there already gets the
// record, too, which others find on their standard input.
func (m *message) send(conn *net.UnixConn, r Request, record bool) error {
	err := sendWith(conn, m.first, m.params)
	if err == nil && record {
		err = sendWith(conn, []byte(recordPacket), m.record)
	}
	if err == nil && r.Secrets != nil && r.Secrets.Len() > 0 {
		err = r.Secrets.Use(func(p []byte) error {
			_, err := conn.Write(p)
			return err
		})
	}
	for _, name := range names(r.Blobs) {
		if err == nil {
			err = sendWith(conn, []byte(name), r.Blobs[name])
		}
	}
	if err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	return nil
}

// names returns those of the blobs in the order in which they are sent; nil
// for nil.
func names(blobs map[string]*os.File) []string {
	if blobs == nil {
		return nil
	}
	return append([]string{}, slices.Sorted(maps.Keys(blobs))...)
}

// pair makes the socket. Its file end is for the child.
func pair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	file, theirs := os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "worker")
	defer func() { _ = file.Close() }()
	c, err := net.FileConn(file)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}

// Events delivers what the worker reports, last exactly one Answer after which
// the channel is closed. The process has ended by then. It must be read to its
// end.
func (p *Process) Events() <-chan Event { return p.events }

// Cancel asks the worker to unwind. It may be called at any time.
func (p *Process) Cancel() { _ = p.process.Signal(unix.SIGTERM) }

// listen turns packets into events until the answer, or until the worker is
// gone without one.
func (p *Process) listen() {
	answer, err := p.packets()
	if answer != nil || err != nil && !gone(err) {
		// It has nothing more to say, or says what nobody understands.
		kill := time.AfterFunc(answerGrace, func() { _ = p.process.Kill() })
		defer kill.Stop()
	}
	if err != nil && !gone(err) {
		p.Cancel()
	}
	waitErr := p.wait()
	_ = p.conn.Close()
	if answer == nil {
		answer = &Answer{Err: fault.New(fault.WorkerFailed, "worker "+p.verb, errors.Join(err, waitErr, errors.New("it ended without an answer")))}
	}
	p.events <- Event{Answer: answer}
	close(p.events)
}

func gone(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) }

func (p *Process) packets() (*Answer, error) {
	buf := make([]byte, maxPacket)
	for {
		data, f, err := receive(p.conn, buf)
		if err != nil {
			return nil, err
		}
		m, f, err := decode(data, f)
		if err != nil {
			return nil, err
		}
		switch m.Type {
		case "progress":
			p.events <- Event{Progress: &Progress{m.Stage, m.Done, m.Total}}
		case "lock":
			p.events <- Event{ImageLock: f}
		case "keep":
			record, err := readRecord(f)
			_ = f.Close()
			if err != nil {
				return nil, err
			}
			p.events <- Event{Keep: &Keep{record, p.kept}}
		case "answer":
			a := &Answer{}
			if m.Fault != nil {
				a.Err = m.Fault.err(p.verb)
			}
			if f != nil {
				a.Record, err = readRecord(f)
				_ = f.Close()
				if err != nil {
					return nil, err
				}
			}
			return a, nil
		}
	}
}

// kept answers a Keep. A worker that is gone does not hear it.
func (p *Process) kept(err error) {
	m := packet{Type: "kept"}
	if err != nil {
		m.Fault = wrongOf(err)
	}
	if data, err := json.Marshal(m); err == nil {
		_, _ = p.conn.Write(data)
	}
}
