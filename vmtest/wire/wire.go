// Package wire is the language between a test on the host and the agent in a
// guest: frames that carry many conversations over one raw byte stream. It
// knows layout and limits; what a request does is the agent's matter, how the
// stream comes about the harness's.
package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Magic opens the agent's half of the stream. Whatever the serial line said
// before it (a getty, an echo of a half-open terminal) is noise.
const Magic = "\x00hearth-agent-1\n"

// MaxPayload bounds one frame, so that a flood on one channel does not keep
// the others waiting.
const MaxPayload = 16 << 10

// Window is how many bytes of standard input a channel may have under way
// before the agent has acknowledged them.
const Window = 256 << 10

// A terminal's line discipline keeps 4 KiB of input. The serial line of
// User-Mode Linux can stall for good once that is full (seen with 7.2: the
// throttle is never lifted), so the host has at most LineWindow bytes under way
// to the guest, on all channels together. The agent tells what it has read, in
// steps of LineStep at least.
const (
	LineWindow = 2048
	LineStep   = 512
)

// Kind says what a frame means.
type Kind byte

// The kinds. Host to guest: Start, Stdin, StdinEnd, Signal, Resize. Guest to
// host: Hello, Stdout, Stderr, Ack, Exit, Taken.
const (
	Hello    Kind = iota + 1 // Greeting; channel 0
	Start                    // Request; opens the channel
	Stdin                    // bytes for the channel's standard input
	StdinEnd                 // no more standard input
	Signal                   // one byte: signal for the process group
	Resize                   // Size
	Stdout                   // bytes
	Stderr                   // bytes
	Ack                      // four bytes: that much standard input was taken
	Exit                     // Result; closes the channel
	Taken                    // four bytes: that much was read off the line; channel 0
)

// Frame is one unit of the stream:
//
//	0  4  length of what follows the header, big endian
//	4  1  kind
//	5  4  channel, chosen by the host, never reused; big endian
//	9  n  payload
type Frame struct {
	Kind    Kind
	Channel uint32
	Payload []byte
}

const headerSize = 9

// Greeting is the agent's first word after Magic.
type Greeting struct {
	Kernel string // release, as uname says
}

// Size is a terminal's size in characters.
type Size struct {
	Cols, Rows uint16
}

// The operations of a Request.
const (
	OpRun   = "run"   // run Argv
	OpWrite = "write" // standard input becomes the file Path, in one step
	OpRead  = "read"  // the file Path becomes standard output
)

// Request asks the agent for one thing.
type Request struct {
	Op    string
	Argv  []string `json:",omitempty"`
	Env   []string `json:",omitempty"` // NAME=VALUE, on top of the agent's own
	Dir   string   `json:",omitempty"` // /root if empty
	TTY   *Size    `json:",omitempty"` // run on a terminal of this size; all output is Stdout then
	Path  string   `json:",omitempty"`
	Mode  uint32   `json:",omitempty"` // of a file written
	Limit int64    `json:",omitempty"` // milliseconds, 0 for none; the process group is killed then
}

// Result ends a channel.
type Result struct {
	Code    int    // exit status; 128 + signal where a signal ended it
	Signal  int    `json:",omitempty"`
	Expired bool   `json:",omitempty"` // the limit was reached
	Error   string `json:",omitempty"` // the request was not carried out
}

// Writer writes frames whole. It is safe for use by many goroutines.
type Writer struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Magic writes the opening of the agent's half.
func (w *Writer) Magic() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := io.WriteString(w.w, Magic)
	return err
}

// Frame writes one frame; payload is at most MaxPayload bytes and stays the
// caller's.
func (w *Writer) Frame(k Kind, channel uint32, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("frame of %d bytes exceeds %d", len(payload), MaxPayload)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.buf[:0]
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, byte(k))
	b = binary.BigEndian.AppendUint32(b, channel)
	b = append(b, payload...)
	w.buf = b
	_, err := w.w.Write(b)
	return err
}

// JSON writes one frame with v as its payload.
func (w *Writer) JSON(k Kind, channel uint32, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.Frame(k, channel, b)
}

// Bytes writes p as frames of the kind given, as many as it takes.
func (w *Writer) Bytes(k Kind, channel uint32, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), MaxPayload)
		if err := w.Frame(k, channel, p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// Reader reads frames.
type Reader struct {
	r *bufio.Reader
}

// NewReader returns a Reader on r.
func NewReader(r io.Reader) *Reader { return &Reader{bufio.NewReaderSize(r, 64<<10)} }

// Sync skips everything up to and including Magic.
func (r *Reader) Sync() error {
	seen := 0
	for seen < len(Magic) {
		c, err := r.r.ReadByte()
		if err != nil {
			return err
		}
		switch c {
		case Magic[seen]:
			seen++
		case Magic[0]: // no other byte of Magic equals its first
			seen = 1
		default:
			seen = 0
		}
	}
	return nil
}

// Next returns the next frame, whose payload is the caller's to keep.
func (r *Reader) Next() (Frame, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		return Frame{}, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n > MaxPayload {
		return Frame{}, fmt.Errorf("stream is out of step: a frame of %d bytes", n)
	}
	f := Frame{Kind: Kind(h[4]), Channel: binary.BigEndian.Uint32(h[5:]), Payload: make([]byte, n)}
	if _, err := io.ReadFull(r.r, f.Payload); err != nil {
		return Frame{}, fmt.Errorf("frame cut short: %w", err)
	}
	return f, nil
}
