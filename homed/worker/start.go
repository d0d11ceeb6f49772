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
	cmd    *exec.Cmd
	conn   *net.UnixConn
	verb   string
	events chan Event
}

// Start runs program for one operation, in a mount namespace of its own. When
// ctx ends the worker is asked to unwind (Cancel). The secrets were handed to
// the kernel when Start returns.
//
// Faults: WorkerFailed if it cannot be started, InvalidArgs if the secrets are
// too long or the blobs too many.
func Start(ctx context.Context, program string, r Request) (*Process, error) {
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
	first, err := json.Marshal(opening{Verb: r.Verb, Secrets: secrets, Blobs: names(r.Blobs)})
	if err != nil {
		return nil, fault.New(fault.WorkerFailed, op, err)
	}
	text, err := json.Marshal(r.Params)
	if err == nil && len(text) > maxRecord {
		err = fmt.Errorf("parameters of %d bytes, there are too many keys", len(text))
	}
	if err != nil {
		return nil, fault.New(fault.WorkerFailed, op, err)
	}
	params, err := sealed("parameters", text)
	if err != nil {
		return nil, fault.New(fault.WorkerFailed, op, err)
	}
	defer func() { _ = params.Close() }()
	record, err := sealed("record", r.Record)
	if err != nil {
		return nil, fault.New(fault.WorkerFailed, op, err)
	}
	defer func() { _ = record.Close() }()
	ours, theirs, err := pair()
	if err != nil {
		return nil, fault.New(fault.WorkerFailed, op, err)
	}
	defer func() { _ = theirs.Close() }()
	// All packets go out before the worker exists: the socket holds them.
	err = sendWith(ours, first, params)
	if err == nil && secrets > 0 {
		err = r.Secrets.Use(func(p []byte) error {
			_, err := ours.Write(p)
			return err
		})
	}
	for _, name := range names(r.Blobs) {
		if err == nil {
			err = sendWith(ours, []byte(name), r.Blobs[name])
		}
	}
	if err != nil {
		_ = ours.Close()
		return nil, fault.New(fault.WorkerFailed, op, fmt.Errorf("send request: %w", err))
	}
	cmd := exec.Command(program, r.Verb)
	cmd.Stdin = record
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	// A process group of its own: Ctrl-C at a daemon in the foreground is not
	// meant for it. Cloneflags, not Unshareflags: with the latter the runtime
	// makes "/" private, and no home would ever reach the host.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Cloneflags: unix.CLONE_NEWNS}
	if r.SharedMounts {
		cmd.SysProcAttr.Cloneflags = 0
	}
	if err := cmd.Start(); err != nil {
		_ = ours.Close()
		return nil, fault.New(fault.WorkerFailed, op, err)
	}
	p := &Process{cmd: cmd, conn: ours, verb: r.Verb, events: make(chan Event, 4)}
	stop := context.AfterFunc(ctx, p.Cancel)
	go func() {
		defer stop()
		p.listen()
	}()
	return p, nil
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
func (p *Process) Cancel() { _ = p.cmd.Process.Signal(unix.SIGTERM) }

// listen turns packets into events until the answer, or until the worker is
// gone without one.
func (p *Process) listen() {
	answer, err := p.packets()
	if answer != nil || err != nil && !gone(err) {
		// It has nothing more to say, or says what nobody understands.
		kill := time.AfterFunc(answerGrace, func() { _ = p.cmd.Process.Kill() })
		defer kill.Stop()
	}
	if err != nil && !gone(err) {
		p.Cancel()
	}
	waitErr := p.cmd.Wait()
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
