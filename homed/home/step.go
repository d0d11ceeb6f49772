package home

import "hearth/internal/fault"

// QueueLimit is how many calls may wait for one home.
const QueueLimit = 100

// Home is all that the machine remembers of one home. Its zero value is a
// home with an accepted record that nobody uses.
type Home struct {
	// Stored is the remembered state; "" where the state follows from what
	// the storage looks like.
	Stored State
	// Armed says that a deactivation will be tried again.
	Armed bool
	// New says that the home exists for the sake of a Create that has yet to
	// succeed: if that fails it is forgotten.
	New bool
	// Refs says which kinds of reference somebody holds.
	Refs [2]bool

	running running
	queue   []Call // never changed in place: Step's input stays as it was
	parked  bool   // a reference end waits for the home to be unlocked
	gone    bool
}

type running struct {
	active bool
	call   Call
	from   State
	// after is what the caller is told once the worker that undoes a failed
	// activation has ended.
	after error
}

// Event is what happened: a Call, Done, HangUp, ReferenceEnded, Expired or
// Vanished.
type Event interface{ event() }

// Call is an operation asked for. Each gets exactly one Reply with its ID.
type Call struct {
	ID      uint64
	Verb    Verb
	Kind    RefKind // of the reference asked for
	Offline bool    // Update: the storage is not to be touched
}

// Done says that the worker ended, and what came of it all: a record that
// could not be accepted is an error here as well.
type Done struct {
	Err error
	// Undo asks for the home to be deactivated before the caller is told Err.
	Undo bool
	// Fixated says that an authentication brought a record that was accepted.
	Fixated bool
	// Suspended says that a home whose locking failed is locked all the same:
	// the worker was killed half way.
	Suspended bool
}

// HangUp says that nobody holds references of this kind any more.
type HangUp struct{ Kind RefKind }

// ReferenceEnded says that the home may be deactivated because nobody refers
// to it; it comes with or some time after the last HangUp.
type ReferenceEnded struct{}

// Expired says that the retry timer ran out.
type Expired struct{}

// Vanished says that a mounted home's storage was pulled out.
type Vanished struct{}

func (Call) event()           {}
func (Done) event()           {}
func (HangUp) event()         {}
func (ReferenceEnded) event() {}
func (Expired) event()        {}
func (Vanished) event()       {}

// Effect is what is to be done: a Start, Reply, ArmRetry, Forget or Rescan.
// Effects are carried out in their order.
type Effect interface{ effect() }

// Start asks for a worker. Its end, or that it could not start, comes back as
// Done.
type Start struct {
	Work Work
	Call Call // whose record and secrets it gets; ID 0 when nobody's
	// Attempt says that it counts towards the limit on authentications: when
	// that is reached, Done with the error comes instead.
	Attempt bool
}

// Reply answers a call. Reference asks to open one of the call's kind first;
// if that fails the answer is that error, and a HangUp must follow if no
// other reference of the kind is held.
type Reply struct {
	Call      Call
	Err       error
	Reference bool
}

// ArmRetry asks for an Expired in a while. A timer is stopped when Armed is
// false after a step.
type ArmRetry struct{}

// Forget asks to delete record and blobs and to drop the home.
type Forget struct{}

// Rescan asks to look for homes again, since one that a record hid may show.
type Rescan struct{}

func (Start) effect()    {}
func (Reply) effect()    {}
func (ArmRetry) effect() {}
func (Forget) effect()   {}
func (Rescan) effect()   {}

// State returns the home's state, given what its storage looks like.
func (h Home) State(seen Presence) State {
	if h.Stored != "" {
		return h.Stored
	}
	switch seen {
	case SeenMounted:
		if h.Armed {
			return Lingering
		}
		return Active
	case SeenAbsent:
		return Absent
	case SeenDirty:
		return Dirty
	}
	return Inactive
}

// Referenced reports whether anybody holds a reference.
func (h Home) Referenced() bool { return h.Refs[DontSuspend] || h.Refs[PleaseSuspend] }

// ShallSuspend reports whether the home is to be locked when the machine
// sleeps.
func (h Home) ShallSuspend() bool { return h.Refs[PleaseSuspend] && !h.Refs[DontSuspend] }

// Idle reports whether no operation runs or waits.
func (h Home) Idle() bool { return !h.running.active && len(h.queue) == 0 }

// step is one run of Step.
type step struct {
	h    Home
	seen Presence
	out  []Effect
}

// Step applies an event. seen is what the storage looks like at this moment.
// Its input is not changed. A forgotten home takes no further event.
func Step(h Home, seen Presence, e Event) (Home, []Effect) {
	if h.gone {
		if c, ok := e.(Call); ok {
			return h, []Effect{Reply{Call: c, Err: fault.New(fault.NoSuchHome, "call", nil)}}
		}
		return h, nil
	}
	s := &step{h: h, seen: seen}
	switch e := e.(type) {
	case Call:
		s.call(e)
	case Done:
		s.done(e)
	case HangUp:
		s.h.Refs[e.Kind] = false
	case ReferenceEnded:
		if !s.h.Referenced() {
			s.enqueue(Call{Verb: referenceEnd})
		}
	case Expired:
		s.expired()
	case Vanished:
		if s.h.Idle() && s.h.Stored == "" {
			s.enqueue(Call{Verb: forceDeactivate})
		}
	}
	s.drain()
	s.unpark()
	s.disarm()
	return s.h, s.out
}

func (s *step) state() State { return s.h.State(s.seen) }

func (s *step) emit(e Effect) { s.out = append(s.out, e) }

func (s *step) reply(c Call, err error) {
	if c.ID != 0 {
		s.emit(Reply{Call: c, Err: err})
	}
}

func (s *step) give(c Call) {
	s.h.Refs[c.Kind] = true
	s.emit(Reply{Call: c, Reference: true})
}

func (s *step) enqueue(c Call) {
	q := s.h.queue
	s.h.queue = append(q[:len(q):len(q)], c)
}

// call takes a call: into the queue, or to an answer or a worker at once.
func (s *step) call(c Call) {
	if c.Verb.queued() {
		if len(s.h.queue) >= QueueLimit {
			s.reply(c, fault.New(fault.TooManyOperations, "queue "+string(c.Verb), nil))
			return
		}
		s.enqueue(c)
		return
	}
	if c.Verb == ActivateIfReferenced {
		if !s.h.Referenced() {
			s.reply(c, fault.New(fault.HomeNotReferenced, "activate", nil))
			return
		}
	}
	s.decide(c)
}

// decide does what the table says. It reports false if the call has to wait.
func (s *step) decide(c Call) bool {
	state := s.state()
	v := c.Verb
	if v == ActivateIfReferenced {
		v = Activate
	}
	row, ok := table[v]
	if !ok {
		s.reply(c, fault.Newf(fault.NotSupported, string(v), "This operation does not concern a single home."))
		return true
	}
	cell := row[state.column()]
	a := cell.act
	switch a {
	case runIfOffline:
		a = choose(c.Offline, run, refuse)
	case runIfUnclear:
		a = choose(s.seen == SeenUnclear, run, refuse)
	case giveIfActive:
		a = choose(state.IsActive(), give, refuse)
	}
	switch a {
	case refuse:
		s.reply(c, refusal(v, cell.kind, state))
		if c.Verb == Create && s.h.New && !s.h.running.active {
			s.forget()
		}
	case done, drop:
		s.reply(c, nil)
	case stay:
		s.h.Armed = false
		s.reply(c, nil)
	case give:
		s.give(c)
	case forget:
		s.forget()
		s.reply(c, nil)
		s.emit(Rescan{})
	case park:
		s.h.parked = true
	case wait:
		return false
	case run:
		s.start(c)
	}
	return true
}

func choose(b bool, yes, no act) act {
	if b {
		return yes
	}
	return no
}

func (s *step) start(c Call) {
	from := s.state()
	w, while, attempt := plan(c.Verb, from)
	if while == Deactivating {
		s.arm()
	}
	s.h.Stored = while
	s.h.running = running{active: true, call: c, from: from}
	s.emit(Start{Work: w, Call: c, Attempt: attempt})
}

// arm has the deactivation that starts or failed tried again later, unless
// someone still wants the home.
func (s *step) arm() {
	if s.h.Armed || s.h.Referenced() {
		return
	}
	s.h.Armed = true
	s.emit(ArmRetry{})
}

// done takes the end of a worker.
func (s *step) done(d Done) {
	r := s.h.running
	if !r.active {
		return
	}
	while := s.h.Stored
	s.h.running = running{}
	switch while {
	case FixatingForActivation, FixatingForAcquire:
		if d.Err != nil {
			s.h.Stored = Unfixated
			s.reply(r.call, d.Err)
			return
		}
		// The same secrets serve the second worker; the attempt was counted.
		s.h.Stored = Activating
		if while == FixatingForAcquire {
			s.h.Stored = ActivatingForAcquire
		}
		s.h.running = running{active: true, call: r.call, from: Inactive}
		s.emit(Start{Work: WorkActivate, Call: r.call})
		return
	case Fixating:
		s.h.Stored = ""
		if d.Err != nil {
			s.h.Stored = Unfixated
		}
	case Authenticating:
		s.h.Stored = ""
		if r.from == Unfixated && !d.Fixated {
			s.h.Stored = Unfixated
		}
	case Activating, ActivatingForAcquire:
		s.h.Stored = ""
		if d.Err != nil && d.Undo {
			s.arm()
			s.h.Stored = Deactivating
			s.h.running = running{active: true, call: r.call, from: r.from, after: d.Err}
			s.emit(Start{Work: WorkDeactivate, Call: Call{}})
			return
		}
	case Deactivating:
		s.h.Stored = ""
		if r.after != nil {
			d.Err = r.after
		} else if d.Err != nil && r.call.Verb == forceDeactivate && r.from == Locked && s.seen == SeenMounted {
			s.h.Stored = Locked
		}
		if s.seen == SeenMounted && s.h.Stored == "" {
			s.arm()
		}
	case Locking:
		s.h.Stored = ""
		if r.call.Verb == LockAll && fault.Is(d.Err, fault.NotSupported) {
			// Storage that cannot be locked does not keep a machine from sleeping.
			d.Err = nil
		} else if d.Err == nil || d.Suspended {
			s.h.Stored = Locked
		}
	case Unlocking, UnlockingForAcquire:
		s.h.Stored = ""
		if d.Err != nil {
			s.h.Stored = Locked
		}
	case Removing:
		s.h.Stored = ""
		if r.from == Unfixated && d.Err != nil {
			s.h.Stored = Unfixated
		}
		if d.Err == nil {
			s.forget()
			s.reply(r.call, nil)
			s.emit(Rescan{})
			return
		}
	case Creating:
		s.h.Stored = ""
		if d.Err != nil && s.h.New {
			s.forget()
		}
		s.h.New = false
	default:
		s.h.Stored = ""
	}
	if r.call.Verb == Acquire && d.Err == nil {
		s.give(r.call)
		return
	}
	s.reply(r.call, d.Err)
}

func (s *step) expired() {
	if !s.h.Armed {
		return
	}
	s.h.Armed = false
	state := s.state()
	switch {
	case s.h.Referenced() || !state.keepsRetry():
	case state.Busy():
		s.arm()
	default:
		s.start(Call{Verb: referenceEnd})
	}
}

// forget drops the home; who still waits is told that it is gone.
func (s *step) forget() {
	s.emit(Forget{})
	s.h.gone = true
	q := s.h.queue
	s.h.queue = nil
	for _, c := range q {
		s.reply(c, fault.New(fault.NoSuchHome, string(c.Verb), nil))
	}
}

// drain takes the queue's head as long as it does not have to wait. All behind
// a waiting head wait too: callers are answered in the order they came.
func (s *step) drain() {
	for len(s.h.queue) > 0 && !s.h.gone {
		c := s.h.queue[0]
		internal := c.Verb == referenceEnd || c.Verb == forceDeactivate
		switch {
		case internal && s.h.Stored == Deactivating:
			// What it asks for is happening.
		case c.Verb == referenceEnd && s.h.Referenced():
			// Somebody came back.
		case s.h.running.active:
			return
		case c.Verb == Release && s.h.Referenced():
			err := fault.New(fault.HomeBusy, "release", nil)
			err.Wording = "Home %u is currently referenced."
			s.reply(c, err)
		case c.Verb == LockAll && !s.h.ShallSuspend():
			s.reply(c, nil)
		default:
			if !s.decide(c) {
				return
			}
		}
		if !s.h.gone {
			s.h.queue = s.h.queue[1:]
		}
	}
}

// unpark queues the reference end that a locked home kept, once the home is
// unlocked and still nobody refers to it.
func (s *step) unpark() {
	if !s.h.parked || s.h.gone || s.h.Stored == Locked || s.h.running.active {
		return
	}
	s.h.parked = false
	if !s.h.Referenced() {
		s.enqueue(Call{Verb: referenceEnd})
		s.drain()
	}
}

func (s *step) disarm() {
	if s.h.Armed && (s.h.Referenced() || !s.state().keepsRetry()) {
		s.h.Armed = false
	}
}
