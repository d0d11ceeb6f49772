package manager

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"hearth/homed/home"
	"hearth/homed/worker"
	"hearth/internal/fault"
	"hearth/records"
	"hearth/storage/presence"
)

const (
	retryAfter = 15 * time.Second // of a failed deactivation
	shortRef   = 10 * time.Second // a reference that lasts less is followed by grace
	grace      = 5 * time.Second
	exitWait   = 30 * time.Second // for workers, when the daemon stops
	// A worker is started ahead when all is quiet after the start, and when the
	// last one's answer is on its way: whoever waits for that goes first.
	spareFirst = 2 * time.Second
	spareNext  = 5 * time.Millisecond
)

// A Manager owns all homes. Its exported methods may be called from any
// goroutine; all but the look-ups wait for the loop that Run is.
type Manager struct {
	Options
	log    *slog.Logger
	events chan func()
	loaded chan struct{} // closed when all records are there to be looked up
	ready  chan struct{}
	ended  chan struct{} // closed when Run returned: nobody answers any more

	texts texts // with a lock of its own

	// Only the loop changes what follows. It holds mu for as long as it does,
	// and lets go of it where it waits for a disk: look-ups, for which half the
	// system waits, go on meanwhile.
	mu sync.RWMutex

	readyOnce sync.Once
	rescan    chan struct{}
	scanned   []chan struct{} // closed when a scan that begins now has ended

	homes map[string]*entry // by user name
	index
	calls       map[uint64]*call
	lastID      uint64
	keys        *keyring
	subscribers []func(Change)
	changed     []*entry // to be announced, in order
	workers     int
	spare       worker.Spare // with a lock of its own
	balance     balance
	reserved    int64 // bytes that are set aside for a record
	stopping    bool
}

// New returns a manager that owns nothing yet.
func New(o Options) (*Manager, error) {
	if o.Machine.ID == "" {
		return nil, errors.New("new manager: no machine id")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Accounts == nil {
		o.Accounts = getent{}
	}
	if o.Suspended == nil {
		o.Suspended = presence.Suspended
	}
	if o.RetryAfter == 0 {
		o.RetryAfter = retryAfter
	}
	if o.Grace == 0 {
		o.Grace = grace
	}
	o.Machine.HomeRoot = o.Layout.HomeRoot
	return &Manager{
		Options: o,
		log:     o.Log,
		events:  make(chan func()),
		loaded:  make(chan struct{}),
		ready:   make(chan struct{}),
		ended:   make(chan struct{}),
		rescan:  make(chan struct{}, 1),
		homes:   map[string]*entry{},
		index:   index{names: map[string]*entry{}, uids: map[uint32]*entry{}},
		calls:   map[uint64]*call{},
	}, nil
}

// Ready is closed once all records are loaded and all images found.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Run loads keys and records, finds images and serves until ctx ends. Homes
// stay as they are then; running workers are waited for, up to 30 s. Run is
// called once.
func (m *Manager) Run(ctx context.Context) error {
	defer close(m.ended)
	keys, err := loadKeys(m.Layout, m.Rand, m.log)
	if err != nil {
		return err
	}
	m.keys = keys
	defer m.keys.close()
	defer m.spare.Close()
	m.handle(func() {
		if err = m.loadRecords(); err != nil {
			return
		}
		m.setAside()
		m.sweepBlobs()
		m.balanceIn(balanceFirst)
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { m.watchRoot(ctx) })
	close(m.loaded)
	m.prepareIn(spareFirst)
	for {
		select {
		case f := <-m.events:
			m.handle(f)
		case <-ctx.Done():
			m.stop()
			m.handle(func() {
				for _, e := range m.homes {
					m.letGo(e)
				}
			})
			return nil
		}
	}
}

// stop finishes what runs: its records are still saved, its callers answered.
func (m *Manager) stop() {
	m.handle(func() { m.stopping = true })
	late := time.After(exitWait)
	for m.workers > 0 {
		select {
		case f := <-m.events:
			m.handle(f)
		case <-late:
			m.log.Warn("leaving workers behind that did not end in time", "workers", m.workers)
			return
		}
	}
}

// prepareIn has a worker started ahead, beside the loop and in a while.
func (m *Manager) prepareIn(d time.Duration) {
	if m.Ahead {
		time.AfterFunc(d, func() { m.spare.Prepare(m.Layout.Worker) })
	}
}

// handle has the loop deal with one event.
func (m *Manager) handle(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	m.announce()
}

// aside does, for the loop, what may take long. It must change nothing that
// look-ups read.
func (m *Manager) aside(f func()) {
	m.mu.Unlock()
	defer m.mu.Lock()
	f()
}

// read runs f while the loop changes nothing. It sees what an event leaves, or,
// where that waits for a disk, what it has done so far.
func (m *Manager) read(ctx context.Context, f func()) error {
	select {
	case <-m.loaded:
	case <-m.ended:
	case <-ctx.Done():
		return fault.New(fault.Timeout, "ask manager", ctx.Err())
	}
	select {
	case <-m.ended:
		return stopping()
	default:
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	f()
	return nil
}

// Rescan looks for homes as if the daemon had just started.
func (m *Manager) Rescan() {
	select {
	case m.rescan <- struct{}{}:
	default: // one is waiting already
	}
}

// rescanned looks for homes and returns when all that there are have been seen,
// so that who asks for one next finds it; in any case before long.
func (m *Manager) rescanned(ctx context.Context) {
	done := make(chan struct{})
	if m.ask(ctx, func() { m.scanned = append(m.scanned, done) }) != nil {
		return
	}
	m.Rescan()
	late := time.NewTimer(scanTimeout)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	case <-ctx.Done():
	case <-m.ended:
	}
}

// post hands f to the loop, without waiting for it to run. It reports false
// when the loop has ended.
func (m *Manager) post(f func()) bool {
	select {
	case m.events <- f:
		return true
	case <-m.ended:
		return false
	}
}

// ask runs f in the loop and waits for it.
func (m *Manager) ask(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case m.events <- func() { f(); close(done) }:
		<-done
		return nil
	case <-m.ended:
		return fault.Newf(fault.ServiceUnknown, "ask manager", "The home service is stopping.")
	case <-ctx.Done():
		return fault.New(fault.Timeout, "ask manager", ctx.Err())
	}
}

// Subscribe has f called on the loop for every change, until the end. It must
// not block nor call the manager.
func (m *Manager) Subscribe(f func(Change)) {
	_ = m.ask(context.Background(), func() { m.subscribers = append(m.subscribers, f) })
}

// touch marks a home as changed.
func (m *Manager) touch(e *entry) {
	if !e.touched {
		e.touched = true
		m.changed = append(m.changed, e)
	}
}

// announce tells the subscribers, once the loop has nothing in its hands: a
// home that came and went in between is not worth a word.
func (m *Manager) announce() {
	list := m.changed
	m.changed = nil
	for _, e := range list {
		e.touched = false
		c := Change{Kind: Changed}
		switch {
		case e.gone && !e.announced:
			continue
		case e.gone:
			c.Kind = Removed
		case !e.announced:
			c.Kind = Added
		}
		e.announced = !e.gone
		if len(m.subscribers) == 0 {
			continue
		}
		c.Info = m.snapshot(e).info(m)
		for _, f := range m.subscribers {
			f(c)
		}
	}
}

func noSuchHome(key Key) error {
	err := fault.New(fault.NoSuchHome, "look up home", nil)
	if key.ByUID {
		err.Text = fmt.Sprintf("No home for UID %d known", key.UID)
		return err
	}
	return fault.For(key.Name, err)
}

// Lookup returns one home. Fault: NoSuchHome.
func (m *Manager) Lookup(ctx context.Context, k Key) (Info, error) {
	var s snapshot
	err := m.read(ctx, func() {
		if e := m.find(k); e != nil {
			s = e.sketch()
		}
	})
	if err != nil {
		return Info{}, err
	}
	if s.subject == nil {
		return Info{}, noSuchHome(k)
	}
	look := presence.LookQuickly
	if g, ok := ctx.Value(glance{}).(*presence.Survey); ok {
		look = g.Look
	}
	s.lookOutside(look)
	return s.info(m), nil
}

type glance struct{}

// glanceAt is how many names there may be beside the images that one glance is
// for.
const glanceAt = 1000

// AtAGlance returns a context in which all Lookups tell of the same moment, that
// of the first: who is asked for many homes at once need not look at each. It is
// for one goroutine, and for as long as that does not wait for anything.
func AtAGlance(ctx context.Context) context.Context {
	return context.WithValue(ctx, glance{}, &presence.Survey{Most: glanceAt})
}

// List returns all homes, in no order.
func (m *Manager) List(ctx context.Context) ([]Info, error) {
	var all []snapshot
	if err := m.read(ctx, func() {
		all = make([]snapshot, 0, len(m.homes))
		for _, e := range m.homes {
			all = append(all, e.sketch())
		}
	}); err != nil {
		return nil, err
	}
	out := make([]Info, len(all))
	var survey presence.Survey
	for i, s := range all {
		s.lookOutside(survey.Look)
		out[i] = s.info(m)
	}
	return out, nil
}

func (m *Manager) now() uint64 { return uint64(m.Now().UnixMicro()) }

// snapshot is what the loop knows of a home, for use outside of it.
type snapshot struct {
	subject records.Subject
	*face
	home   home.Home
	state  home.State
	absent bool // the storage is
	seat   string
}

// sketch is a snapshot without the state.
func (e *entry) sketch() snapshot {
	return snapshot{subject: e.subject, face: e.face, home: e.home, seat: e.seat}
}

// lookOutside gives a sketch its state. To look takes a while, with thousands of
// homes above all, in which the loop has others to answer. What is remembered of
// a home is of one moment.
func (s *snapshot) lookOutside(look func(presence.Area) (presence.State, error)) {
	s.saw(lookBy(look, s.face))
}

func (s *snapshot) saw(seen home.Presence) {
	s.state, s.absent = s.home.State(seen), seen == home.SeenAbsent
}

func (m *Manager) snapshot(e *entry) snapshot {
	s := e.sketch()
	s.saw(m.look(e))
	return s
}
