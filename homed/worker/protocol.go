// Package worker is the protocol between the daemon and the short-lived
// process that carries out one operation on one home: both halves. It knows how
// record, secrets, progress, the image lock and the answer travel, and that
// neither side outlives the other unnoticed. What the verbs do is the worker
// program's, when to start one is the daemon's.
//
// The worker gets its verb as the only argument, the record as a sealed memfd
// on fd 0, and a seqpacket socket on fd 3. On it arrive two packets: what is
// asked for as JSON, with the parameters as a memfd of their own, since the keys
// that count may be many; then the secret section as it is (if there is one),
// then one packet for each blob that was given, with its descriptor. A worker
// that was started ahead (Spare) has SpareVerb as its argument, finds the record
// in a packet after the first, and says when it has read all of its request.
// Back go JSON packets: progress, the image lock with its descriptor, and last
// the one answer, whose record travels as a memfd too, since a record may be
// longer than a packet. An operation that must not go on before the host has
// its record sends it ahead in the same way and waits for the one packet that
// the daemon answers. No packet with JSON ever holds a secret. End of file on
// the socket tells the worker that the daemon is gone.
package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// Request is what a worker is asked to do.
type Request struct {
	Verb string
	// Record is compact JSON without a secret section.
	Record []byte
	// Secrets is the raw secret section or nil. Borrowed.
	Secrets *secret.Bytes
	Params  Params
	// Blobs are the files given for the blob directory, by name; nil: none
	// were, which is not the same as no files. Borrowed.
	Blobs map[string]*os.File
	// SharedMounts leaves the worker in the caller's mount namespace, for
	// tests without root.
	SharedMounts bool
}

// Params is what the worker knows of its surroundings.
type Params struct {
	Machine               records.Machine
	HomeRoot              string
	DefaultStorage        string
	DefaultFileSystemType string
	// RunDir holds what is remembered until the machine boots.
	RunDir string
	// HaveImageLock says that the daemon holds the lock on the image already.
	HaveImageLock bool
	// KeepSize: no home shrinks as it closes.
	KeepSize bool
	// Keys are the public keys whose signatures count, PEM by name.
	Keys map[string]string
	// BlobDir is the home's blob directory on the host.
	BlobDir string
	// Offline leaves the storage alone: for update.
	Offline bool
	// MadeOf says of which password of the secrets the daemon made each hash of
	// the record, by its place, -1 for one that it did not make.
	MadeOf []int
}

// Answer is how an operation ended.
type Answer struct {
	// Record is the resulting record without secret, or nil.
	Record []byte
	// Err is nil or a *fault.Error with the worker's kind, public text and
	// chain.
	Err error
}

const (
	maxPacket  = 64 << 10 // JSON packets, both ways
	maxSecrets = 64 << 10
	maxRecord  = 16 << 20 // a memfd: a record, the parameters
	maxChain   = 4 << 10  // JSON may need six bytes for one
	maxBlobs   = 64       // the bus lets fewer descriptors through
	socketFD   = 3

	recordPacket = "record" // with the record's memfd
	taken        = "taken"
)

// SpareVerb is the argument of a worker that does not know its request yet.
const SpareVerb = "spare"

// opening is the first packet to the worker.
type opening struct {
	Verb    string `json:"verb"`
	Secrets int    `json:"secrets"` // bytes of the second packet; -1: none comes
	// Blobs names the files whose packets follow; null: no blobs were given.
	Blobs []string `json:"blobs"`
}

// packet is everything that comes back.
type packet struct {
	Type string `json:"type"` // taken, progress, lock, keep, answer; to the worker: kept

	Stage string `json:"stage,omitempty"`
	Done  uint64 `json:"done,omitempty"`
	Total uint64 `json:"total,omitempty"`

	Record bool   `json:"record,omitempty"` // a memfd comes along
	Fault  *wrong `json:"fault,omitempty"`
}

type wrong struct {
	Kind  fault.Kind `json:"kind"`
	User  string     `json:"user,omitempty"`
	Text  string     `json:"text,omitempty"`
	Chain string     `json:"chain"`
}

// wrongOf makes err fit for a packet.
func wrongOf(err error) *wrong {
	w := &wrong{Kind: fault.KindOf(err), Chain: cut(err.Error(), maxChain)}
	var e *fault.Error
	if errors.As(err, &e) {
		w.User, w.Text = e.User, cut(e.Text, maxChain)
	}
	return w
}

func (w *wrong) err(verb string) error {
	kind := fault.Unknown
	for _, r := range fault.Table() {
		if r.Kind == w.Kind {
			kind = w.Kind
		}
	}
	return &fault.Error{Kind: kind, Op: "worker " + verb, User: w.User, Text: w.Text, Err: errors.New(w.Chain)}
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// decode reads a packet and checks it against the descriptor that came along.
// It owns f from now on: it is closed on error and where it has no place.
func decode(data []byte, f *os.File) (packet, *os.File, error) {
	var p packet
	err := json.Unmarshal(data, &p)
	switch {
	case err != nil:
		err = fmt.Errorf("read packet: %w", err)
	case p.Type == "progress" && f == nil && !p.Record && p.Fault == nil:
		return p, nil, nil
	case p.Type == "lock" && f != nil && !p.Record && p.Fault == nil:
		return p, f, nil
	case p.Type == "keep" && f != nil && p.Record && p.Fault == nil:
		return p, f, nil
	case p.Type == "answer" && p.Record == (f != nil) && (p.Fault == nil || f == nil):
		return p, f, nil
	default:
		err = fmt.Errorf("read packet: type %q is unknown or does not fit its content", cut(p.Type, 32))
	}
	if f != nil {
		_ = f.Close()
	}
	return packet{}, nil, err
}

// receive reads one packet with at most one descriptor. io.EOF means that the
// other side is gone.
func receive(c *net.UnixConn, buf []byte) ([]byte, *os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, nil, err
	}
	// A seqpacket socket reads as empty at its end; nobody sends empty packets.
	if n == 0 && oobn == 0 {
		return nil, nil, io.EOF
	}
	files, err := claim(oob[:oobn])
	if err == nil && (flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(files) > 1) {
		err = errors.New("packet is too long or carries too many descriptors")
	}
	if err != nil {
		for _, f := range files {
			_ = f.Close()
		}
		return nil, nil, fmt.Errorf("receive packet: %w", err)
	}
	if len(files) == 1 {
		return buf[:n], files[0], nil
	}
	return buf[:n], nil, nil
}

// claim takes the descriptors out of a control message. They are
// close-on-exec: Go's ReadMsgUnix asks for that.
func claim(oob []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// sendWith sends a packet with a descriptor, if f is not nil.
func sendWith(c *net.UnixConn, data []byte, f *os.File) error {
	if f == nil {
		_, err := c.Write(data)
		return err
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	if err := rc.Control(func(fd uintptr) {
		_, _, sendErr = c.WriteMsgUnix(data, unix.UnixRights(int(fd)), nil)
	}); err != nil {
		return err
	}
	return sendErr
}

// readRecord reads a memfd to its end.
func readRecord(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	// Anything but a file, a pipe say, could keep the reader waiting.
	if !info.Mode().IsRegular() || info.Size() > maxRecord {
		return nil, errors.New("read record: not a file of acceptable size")
	}
	data, err := io.ReadAll(io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	return data, nil
}
