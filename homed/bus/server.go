// Package bus is the daemon's front end on D-Bus: it decodes calls, tells
// callers apart, asks polkit, posts operations to the manager and encodes what
// comes of them. It owns its connection, since godbus's cannot carry a server
// that any local user may send descriptors and passwords to; godbus is its
// encoder, and asks its questions. What may happen to a home, it leaves to the
// manager; what can be called and by whom stands in homed/home1.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"hearth/homed/home1"
	"hearth/homed/manager"
	"hearth/internal/busconn"
	"hearth/internal/fault"
	"hearth/records"
)

// Manager is what the front end needs of *manager.Manager.
type Manager interface {
	Ready() <-chan struct{}
	Lookup(context.Context, manager.Key) (manager.Info, error)
	List(context.Context) ([]manager.Info, error)
	Do(context.Context, manager.Operation) (manager.Result, error)
	Subscribe(func(manager.Change))
	SigningKeys(context.Context) ([]manager.SigningKey, error)
	NewKeyName(ctx context.Context, name string) error
	KnownKeyName(ctx context.Context, name string) error
	Adopt(ctx context.Context, path string) error
	AddSigningKey(ctx context.Context, name string, pem []byte) error
	RemoveSigningKey(ctx context.Context, name string) error
}

var _ Manager = (*manager.Manager)(nil)

// Options say what to serve, and where.
type Options struct {
	Manager Manager
	// Address is the bus's D-Bus address, "" for the system bus.
	Address string
	// Name is the well-known name to take, "" for home1.Name.
	Name string
	// Machine decides which parts of a record count.
	Machine records.Machine
	Log     *slog.Logger
	// Level is what LogControl1 reads and sets; nil is a fixed level info.
	Level *slog.LevelVar
	// Acquired is called once the name is ours and calls are answered.
	Acquired func()
}

// ErrLost says that the bus or the name on it is gone.
var ErrLost = errors.New("the bus or our name on it is gone")

type server struct {
	o      Options
	conn   *conn
	access *access
	held   ledger
	// wide lets a few calls at once list all homes: the answers are long, and a
	// caller that asks a thousand times at once must not have us make them all
	// at once.
	wide chan struct{}
}

// Serve waits until the manager is ready, takes the name and answers calls
// until ctx ends, which is no error, or until the bus or the name is lost.
// Operations that run then go on; nobody gets their answer.
func Serve(ctx context.Context, o Options) error {
	if o.Address == "" {
		o.Address = busconn.SystemBus
	}
	if o.Name == "" {
		o.Name = home1.Name
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Level == nil {
		o.Level = new(slog.LevelVar)
	}
	select {
	case <-o.Manager.Ready():
	case <-ctx.Done():
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &server{o: o, wide: make(chan struct{}, maxWide)}
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	var err error
	if s.conn, err = connect(o.Address); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
	defer stop()
	defer s.conn.Close()
	if s.access, err = newAccess(ctx, o.Address); err != nil {
		return err
	}
	defer s.access.Close()
	// Without it nobody can be told from anybody.
	lost := context.AfterFunc(s.access.conn.Context(), func() { _ = s.conn.Close() })
	defer lost()
	if err := s.announce(ctx, &calls); err != nil {
		return err
	}
	err = s.read(ctx, &calls)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// read takes the name and then every message in turn.
func (s *server) read(ctx context.Context, calls *sync.WaitGroup) error {
	hello, err := s.conn.callDriver("Hello")
	if err != nil {
		return err
	}
	request, own := uint32(0), uint32(0)
	turns := &turns{last: map[string]chan struct{}{}}
	for {
		m, err := s.conn.read()
		if errors.Is(err, errMalformed) && m != nil {
			s.o.Log.Warn("the bus delivered a message that cannot be read", "error", err)
			if m.typ == typeCall && m.sender != "" && m.serial != 0 {
				// The kernel drops descriptors when our table is full.
				_ = s.conn.refuse(m, fault.LimitsExceeded.BusName(), fault.Public(fault.New(fault.LimitsExceeded, "read message", err)))
			}
			m.close()
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrLost, err)
		}
		switch {
		case m.typ == typeCall:
			size := len(m.buf)
			if !s.held.take(size) {
				s.o.Log.Warn("too many calls wait for an answer", "sender", m.sender, "member", m.member)
				if m.flags&flagNoReply == 0 {
					_ = s.conn.refuse(m, fault.LimitsExceeded.BusName(), fault.Public(fault.New(fault.LimitsExceeded, "take call", nil)))
				}
				break
			}
			mine, next := turns.take(m.sender)
			calls.Go(func() {
				defer s.held.give(size)
				s.serve(ctx, m, mine, next)
			})
			continue // the call closes its message
		case m.sender == driverName && m.typ == typeSignal && m.iface == driverIface && m.member == "NameLost":
			if a, err := m.arguments(); err == nil && len(a) == 1 && m.sig == "s" && string(a[0].([]byte)) == s.o.Name {
				m.close()
				return ErrLost
			}
		case m.sender == driverName && m.typ == typeError:
			if m.replySerial == own && own != 0 {
				s.o.Log.Warn("the bus does not let us have our own name", "name", home1.OwnName, "error", m.errName)
				s.acquired()
			}
			if m.replySerial == hello || m.replySerial == request {
				err := fmt.Errorf("ask the bus for a name: %s", m.errName)
				m.close()
				return err
			}
		case m.sender == driverName && m.typ == typeReply && m.replySerial == hello:
			// 4: do not queue for a name that someone else has.
			if request, err = s.conn.callDriver("RequestName", s.o.Name, uint32(4)); err != nil {
				m.close()
				return err
			}
		case m.sender == driverName && m.typ == typeReply && m.replySerial == request:
			a, err := m.arguments()
			if err != nil || len(a) != 1 || m.sig != "u" || a[0] != uint32(1) {
				m.close()
				return fmt.Errorf("another service owns %s", s.o.Name)
			}
			s.o.Log.Info("serving on the bus", "name", s.o.Name)
			// Only who serves home1 may be asked under the other name, and
			// all works without it.
			if own, err = s.conn.callDriver("RequestName", home1.OwnName, uint32(4)); err != nil {
				m.close()
				return err
			}
		case m.sender == driverName && m.typ == typeReply && m.replySerial == own:
			if a, err := m.arguments(); err != nil || len(a) != 1 || m.sig != "u" || a[0] != uint32(1) {
				s.o.Log.Warn("another service owns our own name", "name", home1.OwnName)
			}
			s.acquired()
		}
		m.close()
	}
}

func (s *server) acquired() {
	if s.o.Acquired != nil {
		s.o.Acquired()
	}
}

// ledger bounds what calls that wait for an answer hold. polkit may take
// minutes, any local user may call, and calls that want no reply are not
// counted by the bus. Short calls pass until there are very many of them, so
// that large ones do not keep look-ups and logins out. Root apart, one user has
// a share of it, so that nobody can keep all others waiting.
type ledger struct {
	mu sync.Mutex
	held
	users map[uint32]held
}

// held is what calls hold.
type held struct {
	calls int
	large int // bytes
	blobs int // calls that brought files
}

const (
	maxCalls      = 16384
	largeCall     = 64 << 10
	maxLargeCalls = 128 << 20 // bytes; one message of a system bus has up to 32 MiB
	// maxBlobCalls is how many calls with files one user may have under way,
	// maxAllBlobCalls how many all have. A file may be one whose reading never
	// ends, on a file system of the user's own, and each keeps a thread.
	maxBlobCalls    = 4
	maxAllBlobCalls = 64
	// maxWide is how many calls at once may list all homes.
	maxWide = 4
	// share is the part of either that one user may hold.
	share = 4
)

// add counts a call of that many bytes, unless there are too many: more than
// one part in parts of what may be held.
func (h held) add(size, parts int) (held, bool) {
	if h.calls >= maxCalls/parts || size > largeCall && h.large > maxLargeCalls/parts-size {
		return h, false
	}
	h.calls++
	if size > largeCall {
		h.large += size
	}
	return h, true
}

func (h held) less(size int) held {
	h.calls--
	if size > largeCall {
		h.large -= size
	}
	return h
}

// take notes a call of that many bytes, unless there are too many.
func (l *ledger) take(size int) (ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held, ok = l.add(size, 1)
	return ok
}

// takeFor notes whose the call is, once that is known.
func (l *ledger) takeFor(uid uint32, size int) (ok bool) {
	if uid == 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h, ok := l.users[uid].add(size, share)
	if ok {
		if l.users == nil {
			l.users = map[uint32]held{}
		}
		l.users[uid] = h
	}
	return ok
}

// takeBlobs notes that a call of that user brought files.
func (l *ledger) takeBlobs(uid uint32) bool {
	if uid == 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.users[uid]
	if h.blobs >= maxBlobCalls || l.blobs >= maxAllBlobCalls {
		return false
	}
	h.blobs++
	l.blobs++
	l.users[uid] = h
	return true
}

func (l *ledger) giveBlobs(uid uint32) {
	if uid == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.users[uid]
	h.blobs--
	l.blobs--
	l.users[uid] = h
}

func (l *ledger) give(size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = l.less(size)
}

func (l *ledger) giveFor(uid uint32, size int) {
	if uid == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.users[uid].less(size); h.calls == 0 {
		delete(l.users, uid)
	} else {
		l.users[uid] = h
	}
}

// turns keep the calls of one sender in the order of arrival: each posts to
// the manager before the next may. A client that sends Ref and Release without
// waiting in between means them in that order. Senders do not wait for each
// other.
type turns struct {
	mu   sync.Mutex
	last map[string]chan struct{} // closed when the sender's latest call has posted
}

// take returns what the next call of the sender waits for, nil for nothing,
// and what to call once it has posted, any number of times.
func (t *turns) take(sender string) (mine <-chan struct{}, next func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, done := t.last[sender], make(chan struct{})
	t.last[sender] = done
	return before, sync.OnceFunc(func() {
		close(done)
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.last[sender] == done {
			delete(t.last, sender)
		}
	})
}

// call is one method call on its way through the gates.
type call struct {
	msg    *message
	method *home1.Method
	args   []any
	uid    uint32
	// posted lets the next call have its turn.
	posted func()
	// done is called once the reply is written, the last first.
	done []func()
	// user is the home concerned, for texts.
	user string
}

// serve answers one call and closes its message.
func (s *server) serve(ctx context.Context, m *message, turn <-chan struct{}, next func()) {
	c := &call{msg: m, posted: next}
	defer m.close()
	defer next()
	body, err := s.answer(ctx, c, turn)
	defer func() {
		for i := len(c.done) - 1; i >= 0; i-- {
			c.done[i]()
		}
	}()
	if ctx.Err() != nil {
		return
	}
	if m.flags&flagNoReply != 0 {
		return
	}
	if err == nil {
		if err = s.conn.reply(m, body); err == nil {
			return
		}
		s.o.Log.Warn("a reply could not be sent", "member", m.member, "error", err)
	}
	err = fault.For(c.user, err)
	if err := s.conn.refuse(m, fault.KindOf(err).BusName(), fault.Public(err)); err != nil {
		s.o.Log.Warn("a reply could not be sent", "member", m.member, "error", err)
	}
}

func (s *server) answer(ctx context.Context, c *call, turn <-chan struct{}) ([]any, error) {
	m := c.msg
	uid, err := s.access.caller(ctx, m.sender)
	if err != nil {
		return nil, err
	}
	c.uid = uid
	size := len(m.buf)
	if !s.held.takeFor(uid, size) {
		return nil, fault.New(fault.LimitsExceeded, "take call", fmt.Errorf("UID %d has too many", uid))
	}
	c.done = append(c.done, func() { s.held.giveFor(uid, size) })
	if turn != nil {
		select {
		case <-turn:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var n *node
	if m.dest == home1.OwnName {
		n, err = resolveOwn(m.path)
	} else {
		n, err = s.resolve(ctx, m.path)
	}
	if err != nil {
		return nil, err
	}
	iface, method := n.find(m.iface, m.member)
	if method == nil {
		return nil, fault.Newf(fault.UnknownMethod, "find method", "Unknown method %s or interface %s.", m.member, m.iface)
	}
	c.method = method
	if n.home != nil {
		c.user = n.home.Name
	}
	if err := privileged(c, iface); err != nil {
		return nil, err
	}
	if m.sig != method.InSignature() {
		return nil, fault.Newf(fault.InvalidArgs, "check signature", "Invalid arguments '%s' to call %s.%s(), expecting '%s'.",
			m.sig, iface.Name, method.Name, method.InSignature())
	}
	if c.args, err = m.arguments(); err != nil {
		return nil, fault.New(fault.InvalidArgs, "decode arguments", err)
	}
	if err := s.unseal(c); err != nil {
		return nil, err
	}
	if len(m.fds) > handles(method) {
		if !s.held.takeBlobs(uid) {
			return nil, fault.New(fault.LimitsExceeded, "take call", fmt.Errorf("UID %d has too many with files", uid))
		}
		c.done = append(c.done, func() { s.held.giveBlobs(uid) })
	}
	if method.Name == "ListHomes" || method.Name == "GetManagedObjects" || method.Name == "Introspect" {
		select {
		case s.wide <- struct{}{}:
			c.done = append(c.done, func() { <-s.wide })
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	switch iface.Name {
	case home1.PeerInterface:
		if method.Name == "GetMachineId" {
			return []any{s.o.Machine.ID}, nil
		}
		return nil, nil
	case home1.IntrospectableInterface:
		children, err := n.children(ctx)
		if err != nil {
			return nil, err
		}
		return []any{home1.Introspect(n.own, children)}, nil
	case home1.PropertiesInterface:
		return s.property(ctx, c, n)
	case home1.ObjectManagerInterface:
		return s.managedObjects(ctx, c)
	case home1.ManagerInterface:
		if answer := lookups[method.Name]; answer != nil {
			return answer(s, ctx, c)
		}
		if answer := keyMethods[method.Name]; answer != nil {
			return answer(s, ctx, c)
		}
		if method.Name == "AdoptHome" {
			return nil, s.adopt(ctx, c)
		}
	}
	return s.operate(ctx, c, n)
}

// node is one object: its own interfaces, and the home it stands for, if any.
type node struct {
	own      []*home1.Interface
	home     *manager.Info
	children func(context.Context) ([]string, error)
}

func fixed(names ...string) func(context.Context) ([]string, error) {
	return func(context.Context) ([]string, error) { return names, nil }
}

// resolve finds the object of a path. Fault: UnknownObject.
func (s *server) resolve(ctx context.Context, path string) (*node, error) {
	switch path {
	case "/":
		return &node{children: fixed("org")}, nil
	case "/org":
		return &node{children: fixed("freedesktop")}, nil
	case "/org/freedesktop":
		return &node{children: fixed("LogControl1", "home1")}, nil
	case home1.LogControlPath:
		return &node{own: []*home1.Interface{home1.LogControl}, children: fixed()}, nil
	case home1.ManagerPath:
		return &node{own: []*home1.Interface{home1.Manager}, children: fixed("home")}, nil
	case home1.HomesPath:
		return &node{own: []*home1.Interface{home1.ObjectManager}, children: s.labels}, nil
	}
	unknown := fault.Newf(fault.UnknownObject, "find object", "Unknown object '%s'.", path)
	label, ok := strings.CutPrefix(path, home1.HomesPath+"/")
	if !ok || strings.Contains(label, "/") {
		return nil, unknown
	}
	info, err := s.o.Manager.Lookup(ctx, keyOfLabel(label))
	if fault.Is(err, fault.NoSuchHome) {
		return nil, unknown
	}
	if err != nil {
		return nil, err
	}
	return &node{own: []*home1.Interface{home1.Home}, home: &info, children: fixed()}, nil
}

// find returns the table row of a member; an empty interface name means any.
func (n *node) find(iface, member string) (*home1.Interface, *home1.Method) {
	for _, list := range [][]*home1.Interface{home1.Standard, n.own} {
		for _, i := range list {
			if iface != "" && iface != i.Name {
				continue
			}
			if m := i.Method(member); m != nil {
				return i, m
			}
		}
	}
	return nil, nil
}

// labels lists the homes below the object manager, by name alone.
func (s *server) labels(ctx context.Context) ([]string, error) {
	list, err := s.o.Manager.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]string, 0, len(list))
	for i := range list {
		out = append(out, home1.EscapeLabel(list[i].Name))
	}
	return out, nil
}
