// Package secret keeps passwords and keys in memory that no printer, encoder,
// swap file or core dump reaches. It knows bytes and nothing of what they
// open; whoever makes a Bytes decides how long it lives.
package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned when a secret is used after Close.
var ErrClosed = errors.New("secret was wiped already")

// ErrTooLong is returned by Read when the input exceeds the limit given.
var ErrTooLong = errors.New("secret is too long")

// Bytes is a handle on secret bytes outside the Go heap. It holds a pointer
// that reflection cannot follow and a length, so fmt, encoding/json and their
// like print a redaction at most.
//
// Whoever makes one defers Close. A *Bytes that is a parameter is borrowed.
type Bytes struct {
	mu   sync.RWMutex
	p    unsafe.Pointer
	n    int // bytes of the secret
	size int // bytes of the mapping
}

var lockWarning sync.Once

// New returns n zero bytes, to be filled through Use. It fails only when the
// kernel has no memory. n may be 0.
func New(n int) (*Bytes, error) {
	if n < 0 {
		return nil, fmt.Errorf("allocate secret: negative length %d", n)
	}
	page := unix.Getpagesize()
	size := (n + page - 1) / page * page
	if size == 0 {
		size = page
	}
	mem, err := unix.MmapPtr(-1, 0, nil, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("allocate secret: %w", err)
	}
	b := &Bytes{p: mem, n: n, size: size}
	all := unsafe.Slice((*byte)(mem), size)
	// A process that may not lock memory still works; its secrets may then
	// reach swap, which the administrator should know once.
	if err := unix.Mlock(all); err != nil {
		lockWarning.Do(func() {
			slog.Warn("secrets cannot be locked in memory and may reach swap", "error", err)
		})
	}
	// Both only narrow what leaks; kernels without them work as before.
	_ = unix.Madvise(all, unix.MADV_DONTDUMP)
	_ = unix.Madvise(all, unix.MADV_WIPEONFORK)
	return b, nil
}

// Take copies src into a new Bytes and wipes src, whatever the outcome.
func Take(src []byte) (*Bytes, error) {
	defer clear(src)
	b, err := New(len(src))
	if err != nil {
		return nil, err
	}
	copy(b.slice(), src)
	return b, nil
}

// Copy copies src, which stays the caller's to wipe.
func Copy(src []byte) (*Bytes, error) {
	b, err := New(len(src))
	if err != nil {
		return nil, err
	}
	copy(b.slice(), src)
	return b, nil
}

// Read reads r to its end, at most limit bytes, straight into locked memory.
// More than limit bytes is ErrTooLong.
func Read(r io.Reader, limit int) (*Bytes, error) {
	b, err := New(limit + 1)
	if err != nil {
		return nil, err
	}
	n, err := io.ReadFull(r, b.slice())
	switch {
	case err == nil:
		b.Close()
		return nil, ErrTooLong
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		b.n = n
		return b, nil
	default:
		b.Close()
		return nil, fmt.Errorf("read secret: %w", err)
	}
}

func (b *Bytes) slice() []byte { return unsafe.Slice((*byte)(b.p), b.n) }

// Len returns the number of secret bytes; 0 for nil and after Close.
func (b *Bytes) Len() int {
	if b == nil {
		return 0
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.n
}

// Use lends the bytes to f for the time of the call. f must not keep them nor
// anything that refers to them. Returns ErrClosed, or what f returns.
func (b *Bytes) Use(f func([]byte) error) error {
	if b == nil {
		return ErrClosed
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.p == nil {
		return ErrClosed
	}
	return f(b.slice())
}

// Clone returns a second, independent copy, which its caller closes.
func (b *Bytes) Clone() (*Bytes, error) {
	var c *Bytes
	err := b.Use(func(p []byte) error {
		var err error
		c, err = Copy(p)
		return err
	})
	return c, err
}

// Equal compares in time that depends on the lengths only. Closed or nil
// secrets equal nothing.
func (b *Bytes) Equal(o *Bytes) bool {
	eq := false
	_ = b.Use(func(p []byte) error {
		if b == o {
			eq = true
			return nil
		}
		return o.Use(func(q []byte) error {
			eq = subtle.ConstantTimeCompare(p, q) == 1
			return nil
		})
	})
	return eq
}

// Close wipes and frees the bytes. It may be called twice and on nil.
func (b *Bytes) Close() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.p == nil {
		return
	}
	all := unsafe.Slice((*byte)(b.p), b.size)
	clear(all)
	_ = unix.Munlock(all)
	_ = unix.MunmapPtr(b.p, uintptr(b.size))
	b.p, b.n, b.size = nil, 0, 0
}

// CloseAll closes every secret of the list.
func CloseAll(list []*Bytes) {
	for _, b := range list {
		b.Close()
	}
}

// Format prints a redaction for every verb, so that a secret that strays into
// a message shows up as such.
func (b *Bytes) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// String returns a redaction.
func (b *Bytes) String() string { return "[secret]" }

// MarshalJSON refuses: secrets are written by the code that owns their wire
// format, never by a general encoder.
func (b *Bytes) MarshalJSON() ([]byte, error) {
	return nil, errors.New("a secret cannot be encoded as JSON")
}

// LogValue redacts in structured logs.
func (b *Bytes) LogValue() slog.Value { return slog.StringValue("[secret]") }
