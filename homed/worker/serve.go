package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// Uplink is how an operation reports while it runs. Its methods may be called
// from any goroutine.
type Uplink interface {
	// Progress says how far a stage is; total 0 means that the end is unknown.
	// That nobody listens any more is no concern of the operation's.
	Progress(stage string, done, total uint64)
	// ImageLock hands a copy of the locked image to the daemon, which keeps it
	// locked from now on. The file stays the caller's.
	ImageLock(*os.File) error
	// Keep has the daemon save the record and waits until it did. On error the
	// host may have either record after a crash.
	Keep(record []byte) error
}

// Serve is the half of a worker that was started with verb: it takes the request
// from fds 0 and 3, lets handle carry it out, and sends back the record or the
// fault that handle returns. ctx ends when the daemon is gone or asks to unwind
// (SIGTERM). A spare waits for its request, and is done when none comes.
//
// Serve returns an error when the request could not be read or the answer not
// be sent; what handle returned is not an error of Serve.
func Serve(verb string, handle func(ctx context.Context, r Request, up Uplink) ([]byte, error)) error {
	socket := os.NewFile(socketFD, "daemon")
	c, err := net.FileConn(socket)
	_ = socket.Close()
	if err != nil {
		return fmt.Errorf("worker: open socket: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return errors.New("worker: fd 3 is not a unix socket")
	}
	record := os.Stdin
	if verb == SpareVerb {
		record = nil
	}
	return serve(record, conn, handle)
}

// serve finds the record in a packet if there is no file.
func serve(record *os.File, conn *net.UnixConn, handle func(context.Context, Request, Uplink) ([]byte, error)) error {
	defer func() { _ = conn.Close() }()
	r, err := readRequest(record, conn)
	if record == nil && errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	defer r.close()
	if record == nil {
		data, err := json.Marshal(packet{Type: taken})
		if err == nil {
			_, err = conn.Write(data)
		}
		if err != nil {
			return fmt.Errorf("worker: take request: %w", err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	up := &uplink{conn: conn, kept: make(chan packet, 1)}
	go func() {
		// Whatever ends this, the daemon is not the one that started us.
		defer cancel()
		defer close(up.kept)
		buf := make([]byte, maxPacket)
		for {
			data, f, err := receive(conn, buf)
			if err != nil {
				return
			}
			if f != nil {
				_ = f.Close()
				return
			}
			var p packet
			if json.Unmarshal(data, &p) != nil || p.Type != "kept" {
				return
			}
			select {
			case up.kept <- p:
			default:
				return
			}
		}
	}()
	out, err := handle(ctx, r, up)
	answer := packet{Type: "answer"}
	var f *os.File
	switch {
	case err != nil:
		answer.Fault = wrongOf(err)
	case out != nil:
		if f, err = secret.Sealed("record", out); err != nil {
			answer.Fault = wrongOf(err)
			break
		}
		defer func() { _ = f.Close() }()
		answer.Record = true
	}
	if err := up.send(answer, f); err != nil {
		return fmt.Errorf("worker: send answer: %w", err)
	}
	return nil
}

// close ends what a request brought along.
func (r *Request) close() {
	r.Secrets.Close()
	for _, f := range r.Blobs {
		_ = f.Close()
	}
}

func readRequest(record *os.File, conn *net.UnixConn) (r Request, err error) {
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	buf := make([]byte, maxPacket)
	data, f, err := receive(conn, buf)
	if err != nil {
		return r, fmt.Errorf("read request: %w", err)
	}
	if f == nil {
		return r, errors.New("read request: no parameters came along")
	}
	defer func() { _ = f.Close() }()
	var o opening
	if err := json.Unmarshal(data, &o); err != nil {
		return r, fmt.Errorf("read request: %w", err)
	}
	if o.Secrets > maxSecrets {
		return r, errors.New("read request: secrets are too long")
	}
	r.Verb = o.Verb
	params, err := readRecord(f)
	if err == nil {
		err = json.Unmarshal(params, &r.Params)
	}
	if err != nil {
		return r, fmt.Errorf("read parameters: %w", err)
	}
	if record == nil {
		data, sent, err := receive(conn, buf)
		if err == nil && (sent == nil || string(data) != recordPacket) {
			err = errors.New("no record came along")
		}
		if sent != nil {
			defer func() { _ = sent.Close() }()
		}
		if err != nil {
			return r, fmt.Errorf("read request: %w", err)
		}
		record = sent
	}
	if r.Record, err = readRecord(record); err != nil {
		return r, err
	}
	if o.Secrets >= 0 {
		if r.Secrets, err = readSecrets(conn, o.Secrets); err != nil {
			return r, err
		}
	}
	if o.Blobs != nil {
		r.Blobs, err = readBlobs(conn, buf, o.Blobs)
	}
	return r, err
}

func readBlobs(conn *net.UnixConn, buf []byte, names []string) (map[string]*os.File, error) {
	blobs := map[string]*os.File{}
	if len(names) > maxBlobs {
		return blobs, errors.New("read blobs: there are too many")
	}
	for _, name := range names {
		data, f, err := receive(conn, buf)
		if err != nil {
			return blobs, fmt.Errorf("read blobs: %w", err)
		}
		if f == nil {
			return blobs, errors.New("read blobs: no descriptor came along")
		}
		if string(data) != name || blobs[name] != nil {
			_ = f.Close()
			return blobs, errors.New("read blobs: not the file that was announced")
		}
		blobs[name] = f
	}
	return blobs, nil
}

func readSecrets(conn *net.UnixConn, size int) (*secret.Bytes, error) {
	b, err := secret.New(size)
	if err != nil {
		return nil, err
	}
	if size > 0 {
		// Straight into locked memory: no other copy of it exists here.
		err = b.Use(func(p []byte) error {
			n, err := conn.Read(p)
			if err == nil && n != len(p) {
				err = io.ErrUnexpectedEOF
			}
			return err
		})
	}
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("read secrets: %w", err)
	}
	return b, nil
}

type uplink struct {
	mu   sync.Mutex
	conn *net.UnixConn
	kept chan packet // of one; closed when the daemon is gone
}

func (u *uplink) Progress(stage string, done, total uint64) {
	_ = u.send(packet{Type: "progress", Stage: cut(stage, 256), Done: done, Total: total}, nil)
}

func (u *uplink) ImageLock(f *os.File) error {
	if err := u.send(packet{Type: "lock"}, f); err != nil {
		return fmt.Errorf("hand over image lock: %w", err)
	}
	return nil
}

func (u *uplink) Keep(record []byte) error {
	const op = "have record saved"
	f, err := secret.Sealed("record", record)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	defer func() { _ = f.Close() }()
	if err := u.send(packet{Type: "keep", Record: true}, f); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	p, ok := <-u.kept
	switch {
	case !ok:
		return fault.New(fault.ServiceUnknown, op, errors.New("the daemon is gone"))
	case p.Fault != nil:
		return fmt.Errorf("%s: %w", op, p.Fault.err("keep"))
	}
	return nil
}

func (u *uplink) send(p packet, f *os.File) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if len(data) > maxPacket {
		return errors.New("packet is too long")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return sendWith(u.conn, data, f)
}
