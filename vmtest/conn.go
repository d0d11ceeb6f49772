package vmtest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"hearth/vmtest/wire"
)

// conn is the host's end of the control channel: many calls over one stream.
type conn struct {
	w    *wire.Writer
	gate *gate

	mu    sync.Mutex
	next  uint32
	calls map[uint32]*call
	err   error // set once, when the stream ended
	hello chan struct{}
	done  chan struct{}
}

// call is one request under way.
type call struct {
	c      *conn
	id     uint32
	output func(wire.Kind, []byte) // called by the reader, in order; must not wait for the guest
	acks   chan int                // never blocks the reader: the window bounds what is in it
	result wire.Result
	err    error // why there is no result
	done   chan struct{}
}

// newConn speaks over rw, which stays the caller's to close.
func newConn(rw io.ReadWriter) *conn {
	g := &gate{w: rw}
	g.open.L = &g.mu
	c := &conn{w: wire.NewWriter(g), gate: g, calls: map[uint32]*call{}, hello: make(chan struct{}), done: make(chan struct{})}
	go func() { c.end(c.read(wire.NewReader(rw))) }()
	return c
}

func (c *conn) read(r *wire.Reader) error {
	if err := r.Sync(); err != nil {
		return err
	}
	greeted := false
	for {
		f, err := r.Next()
		if err != nil {
			return err
		}
		if f.Kind == wire.Hello {
			if greeted {
				return errors.New("the guest's agent started anew")
			}
			greeted = true
			close(c.hello)
			continue
		}
		if f.Kind == wire.Taken {
			if len(f.Payload) == 4 {
				c.gate.taken(int(binary.BigEndian.Uint32(f.Payload)))
			}
			continue
		}
		c.mu.Lock()
		k := c.calls[f.Channel]
		if f.Kind == wire.Exit {
			delete(c.calls, f.Channel)
		}
		c.mu.Unlock()
		if k == nil {
			continue
		}
		switch f.Kind {
		case wire.Stdout, wire.Stderr:
			k.output(f.Kind, f.Payload)
		case wire.Ack:
			if len(f.Payload) == 4 {
				k.acks <- int(binary.BigEndian.Uint32(f.Payload))
			}
		case wire.Exit:
			if err := json.Unmarshal(f.Payload, &k.result); err != nil {
				k.err = fmt.Errorf("read the agent's answer: %w", err)
			} else if k.result.Error != "" {
				k.err = errors.New(k.result.Error)
			}
			close(k.done)
		}
	}
}

// end fails every call that is under way, and all later ones.
func (c *conn) end(err error) {
	if err == nil || errors.Is(err, io.EOF) {
		err = errors.New("the guest is gone")
	} else {
		err = fmt.Errorf("control channel: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	for id, k := range c.calls {
		k.err = err
		close(k.done)
		delete(c.calls, id)
	}
	close(c.done)
	c.gate.fail(err)
}

// gate lets no more through to the guest than the line has room for.
type gate struct {
	w     io.Writer
	mu    sync.Mutex
	open  sync.Cond
	ahead int // bytes that the guest has not read, as far as we know
	err   error
}

func (g *gate) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		g.mu.Lock()
		for g.ahead >= wire.LineWindow && g.err == nil {
			g.open.Wait()
		}
		n, err := min(len(p)-written, wire.LineWindow-g.ahead), g.err
		if err == nil {
			g.ahead += n
		}
		g.mu.Unlock()
		if err != nil {
			return written, err
		}
		n, err = g.w.Write(p[written : written+n])
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func (g *gate) taken(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ahead -= n
	g.open.Signal()
}

func (g *gate) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
	g.open.Broadcast()
}

// start sends a request. output gets what it prints.
func (c *conn) start(q wire.Request, output func(wire.Kind, []byte)) (*call, error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.err
	}
	c.next++
	k := &call{
		c: c, id: c.next, output: output, done: make(chan struct{}),
		// The smallest acknowledged piece is a frame; a writer of single bytes
		// fills the window with as many.
		acks: make(chan int, wire.Window),
	}
	c.calls[k.id] = k
	c.mu.Unlock()
	if err := c.w.JSON(wire.Start, k.id, q); err != nil {
		c.mu.Lock()
		delete(c.calls, k.id)
		c.mu.Unlock()
		return nil, err
	}
	return k, nil
}

// feed sends r as the call's standard input, never more ahead of the guest
// than the window.
func (k *call) feed(r io.Reader) error {
	buf := make([]byte, wire.MaxPayload)
	ahead := 0
	for {
		n, err := r.Read(buf)
		for ahead+n > wire.Window {
			select {
			case a := <-k.acks:
				ahead -= a
			case <-k.done:
				return nil
			}
		}
		if n > 0 {
			ahead += n
			if err := k.c.w.Frame(wire.Stdin, k.id, buf[:n]); err != nil {
				return err
			}
		}
		for drained := false; !drained; {
			select {
			case a := <-k.acks:
				ahead -= a
			default:
				drained = true
			}
		}
		if err == io.EOF {
			return k.c.w.Frame(wire.StdinEnd, k.id, nil)
		}
		if err != nil {
			return err
		}
	}
}

// wait returns the call's result.
func (k *call) wait(ctx context.Context) (wire.Result, error) {
	select {
	case <-k.done:
		return k.result, k.err
	case <-ctx.Done():
		return wire.Result{}, ctx.Err()
	}
}

func (k *call) signal(s byte) error { return k.c.w.Frame(wire.Signal, k.id, []byte{s}) }
