// Package trace notes what an operation does that is dear, how often and for
// how long. Whoever wants to know puts a Trace into the context; without one
// nothing is noted. It knows no operation, and decides nothing.
package trace

import (
	"context"
	"sync"
	"time"
)

// The work that is counted, under one name wherever it is done.
const (
	Header = "header" // a LUKS2 header read and parsed
	KDF    = "kdf"    // a key derived for a keyslot
	Digest = "digest" // a volume key compared with its digest
	Hash   = "hash"   // a password compared with its hash, or hashed
	Exec   = "exec"   // another program run
)

// A Trace notes steps, which follow each other and leave no gap, and the work
// in them, which may go on side by side. A nil Trace notes nothing. It is safe
// for use by several goroutines.
type Trace struct {
	mu    sync.Mutex
	now   func() time.Time
	start time.Time
	steps []Step
	work  map[string]Work
}

// A Step is one of those that an operation consists of, until the next began.
type Step struct {
	Name string
	Took time.Duration
}

// Work is all of one sort.
type Work struct {
	Times int
	Took  time.Duration
}

// New returns an empty trace. The first step began at start, by now.
func New(first string, start time.Time, now func() time.Time) *Trace {
	return &Trace{now: now, start: start, steps: []Step{{Name: first}}, work: map[string]Work{}}
}

type key struct{}

// With returns a context in which t is noted.
func With(ctx context.Context, t *Trace) context.Context { return context.WithValue(ctx, key{}, t) }

// From returns the context's trace, nil if it has none.
func From(ctx context.Context) *Trace {
	t, _ := ctx.Value(key{}).(*Trace)
	return t
}

// Step ends one step and begins the next.
func (t *Trace) Step(name string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end()
	t.steps = append(t.steps, Step{Name: name})
}

// end gives the last step what time went by since the one before.
func (t *Trace) end() {
	now := t.now()
	t.steps[len(t.steps)-1].Took += now.Sub(t.start)
	t.start = now
}

// Work begins some work, and returns what ends it.
func (t *Trace) Work(name string) (done func()) {
	if t == nil {
		return func() {}
	}
	began := t.now()
	return func() {
		took := t.now().Sub(began)
		t.mu.Lock()
		defer t.mu.Unlock()
		w := t.work[name]
		w.Times++
		w.Took += took
		t.work[name] = w
	}
}

// Times says how often work was done.
func (t *Trace) Times(name string) int {
	if t == nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.work[name].Times
}

// Seen returns the steps so far and all work that has ended.
func (t *Trace) Seen() ([]Step, map[string]Work) {
	if t == nil {
		return nil, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end()
	work := map[string]Work{}
	for name, w := range t.work {
		work[name] = w
	}
	return append([]Step(nil), t.steps...), work
}
