package home

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"hearth/internal/fault"
)

// reference is the interface's table of operations and states, as published:
// "run" starts a worker, Q waits, fd hands out a reference, the rest are error
// names.
const reference = `
Operation       | unfixated | absent | inactive | dirty | active | lingering | locked | busy
Activate        | run inspect | HomeAbsent | run | run | HomeAlreadyActive | done | HomeLocked | HomeBusy
Deactivate      | HomeNotActive | HomeNotActive | HomeNotActive | HomeNotActive | run | run | HomeLocked | HomeBusy
Fixate          | run inspect | HomeAbsent | HomeAlreadyFixated | HomeAlreadyFixated | HomeAlreadyFixated | HomeAlreadyFixated | HomeAlreadyFixated | HomeBusy
Authenticate    | run inspect | HomeAbsent | run inspect | run inspect | run inspect | run inspect | HomeLocked | HomeBusy
Create          | HomeExists | run | HomeExists | HomeExists | HomeBusy | HomeBusy | HomeBusy | HomeBusy
Realize         | HomeExists | run | HomeExists | HomeExists | HomeBusy | HomeBusy | HomeBusy | HomeBusy
Remove          | run | done | run | run | HomeBusy | HomeBusy | HomeLocked | HomeBusy
Unregister      | HomeUnfixated | done | done | done | HomeBusy | HomeBusy | HomeLocked | HomeBusy
Update          | HomeUnfixated | HomeAbsent | run | run | run | run | HomeLocked | HomeBusy
Resize          | HomeUnfixated | HomeAbsent | run | run | run | run | HomeLocked | HomeBusy
ChangePassword  | HomeUnfixated | HomeAbsent | run | run | run | run | HomeLocked | HomeBusy
Lock            | HomeNotActive | HomeNotActive | HomeNotActive | HomeNotActive | run | run | HomeLocked | HomeBusy
Unlock          | HomeNotLocked | HomeNotLocked | HomeNotLocked | HomeNotLocked | HomeNotLocked | HomeNotLocked | run | HomeBusy
Ref             | HomeNotActive | HomeAbsent | HomeNotActive | HomeNotActive | fd | fd | HomeLocked | HomeBusy
RefUnrestricted | fd | fd | fd | fd | fd | fd | fd | fd
Acquire         | run inspect | HomeAbsent | run activate | run activate | run inspect | run inspect | run unlock | Q
Release         | done | done | done | done | run deactivate | run deactivate | HomeLocked | Q
DeactivateAll   | done | done | done | done | run deactivate | run deactivate | done | Q
reference end   | Q done | Q done | Q done | Q done | run deactivate | run deactivate | Q | Q
forced          | Q done | Q done | Q done | Q done | run deactivate-force | run deactivate-force | run deactivate-force | Q
`

var words = map[string]Verb{
	"Activate": Activate, "Deactivate": Deactivate, "Fixate": Fixate, "Authenticate": Authenticate,
	"Create": Create, "Realize": Realize, "Remove": Remove, "Unregister": Unregister, "Update": Update,
	"Resize": Resize, "ChangePassword": ChangePassword, "Lock": Lock, "Unlock": Unlock, "Ref": Ref,
	"RefUnrestricted": RefUnrestricted, "Acquire": Acquire, "Release": Release,
	"DeactivateAll": DeactivateAll, "reference end": referenceEnd, "forced": forceDeactivate,
}

// in returns a home in a state, and what its storage looks like then.
func in(state string) (Home, Presence) {
	switch state {
	case "unfixated":
		return Home{Stored: Unfixated}, SeenInactive
	case "absent":
		return Home{}, SeenAbsent
	case "inactive":
		return Home{}, SeenInactive
	case "dirty":
		return Home{}, SeenDirty
	case "active":
		return Home{}, SeenMounted
	case "lingering":
		return Home{Armed: true}, SeenMounted
	case "locked":
		return Home{Stored: Locked}, SeenMounted
	case "busy":
		return Home{Stored: Activating, running: running{active: true, call: Call{ID: 99, Verb: Activate}, from: Inactive}}, SeenInactive
	}
	panic(state)
}

// describe says in the table's words what came of call 1.
func describe(h Home, effects []Effect) string {
	for _, e := range effects {
		switch e := e.(type) {
		case Start:
			return "run " + string(e.Work)
		case Reply:
			switch {
			case e.Call.ID != 1:
			case e.Err != nil:
				return string(fault.KindOf(e.Err))
			case e.Reference:
				return "fd"
			default:
				return "done"
			}
		}
	}
	if len(h.queue) > 0 || h.parked {
		return "Q"
	}
	return "Q done" // queued, taken up and thrown away
}

func TestOperationsAndStates(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(reference), "\n")
	columns := strings.Split(lines[0], "|")
	cells := 0
	for _, line := range lines[1:] {
		row := strings.Split(line, "|")
		verb, ok := words[strings.TrimSpace(row[0])]
		if !ok {
			t.Fatalf("no verb %q", row[0])
		}
		for i := 1; i < len(row); i++ {
			state, want := strings.TrimSpace(columns[i]), strings.TrimSpace(row[i])
			h, seen := in(state)
			var ev Event = Call{ID: 1, Verb: verb}
			switch verb {
			case referenceEnd:
				ev = ReferenceEnded{}
			case forceDeactivate:
				// The event itself is for homes that are mounted and idle; the
				// table speaks of what was queued before.
				h.queue = []Call{{Verb: forceDeactivate}}
				ev = ReferenceEnded{}
				h.Refs[DontSuspend] = true
			}
			h, effects := Step(h, seen, ev)
			got := describe(h, effects)
			if want == "run" {
				got, _, _ = strings.Cut(got, " ")
			}
			if got != want {
				t.Errorf("%s in %s: %s, want %s", strings.TrimSpace(row[0]), state, got, want)
			}
			cells++
		}
	}
	if cells != len(words)*8 {
		t.Errorf("%d cells", cells)
	}
}

func TestLockAllTakesOnlyHomesThatMaySleep(t *testing.T) {
	for _, c := range []struct {
		refs [2]bool
		want string
	}{
		{[2]bool{}, "done"},
		{[2]bool{DontSuspend: true, PleaseSuspend: true}, "done"},
		{[2]bool{PleaseSuspend: true}, "run lock"},
	} {
		h, effects := Step(Home{Refs: c.refs}, SeenMounted, Call{ID: 1, Verb: LockAll})
		if got := describe(h, effects); got != c.want {
			t.Errorf("references %v: %s, want %s", c.refs, got, c.want)
		}
	}
}

func TestUnclearStorageMayBeCreated(t *testing.T) {
	for _, v := range []Verb{Create, Realize} {
		h, effects := Step(Home{}, SeenUnclear, Call{ID: 1, Verb: v})
		if got := describe(h, effects); got != "run create" {
			t.Errorf("%s: %s", v, got)
		}
	}
}

// play is a sequence of events and what must follow from each.
type turn struct {
	seen Presence
	ev   Event
	want string // state, then effects
}

func show(effects []Effect) string {
	var s []string
	for _, e := range effects {
		switch e := e.(type) {
		case Start:
			w := "start " + string(e.Work)
			if e.Attempt {
				w += "!"
			}
			s = append(s, w)
		case Reply:
			w := fmt.Sprintf("reply %d", e.Call.ID)
			if e.Err != nil {
				w += " " + string(fault.KindOf(e.Err))
			}
			if e.Reference {
				w += " fd"
			}
			s = append(s, w)
		case ArmRetry:
			s = append(s, "arm")
		case Forget:
			s = append(s, "forget")
		case Rescan:
			s = append(s, "rescan")
		}
	}
	return strings.Join(s, ", ")
}

func TestStories(t *testing.T) {
	wrong := fault.New(fault.BadPassword, "x", nil)
	busy := fault.New(fault.HomeBusy, "x", nil)
	for name, c := range map[string]struct {
		start Home
		turns []turn
	}{
		"login and logout": {Home{}, []turn{
			{SeenInactive, Call{ID: 1, Verb: Acquire}, "activating-for-acquire: start activate!"},
			{SeenInactive, Call{ID: 2, Verb: Acquire}, "activating-for-acquire: "},
			{SeenMounted, Done{}, "authenticating-for-acquire: reply 1 fd, start inspect!"},
			{SeenMounted, Done{}, "active: reply 2 fd"},
			{SeenMounted, Call{ID: 3, Verb: Release}, "active: reply 3 HomeBusy"},
			{SeenMounted, HangUp{DontSuspend}, "active: "},
			{SeenMounted, Call{ID: 4, Verb: Release}, "deactivating: arm, start deactivate"},
			{SeenMounted, ReferenceEnded{}, "deactivating: "},
			{SeenInactive, Done{}, "inactive: reply 4"},
		}},
		"a wrong password on an active home that nobody refers to": {Home{}, []turn{
			{SeenMounted, Call{ID: 1, Verb: Acquire}, "authenticating-for-acquire: start inspect!"},
			{SeenMounted, Done{Err: wrong}, "active: reply 1 BadPassword"},
		}},
		"busy home lingers, is tried again, and saved by a reference": {Home{}, []turn{
			{SeenMounted, ReferenceEnded{}, "deactivating: arm, start deactivate"},
			{SeenMounted, Done{Err: busy}, "lingering: "},
			{SeenMounted, Expired{}, "deactivating: arm, start deactivate"},
			{SeenMounted, Done{Err: busy}, "lingering: "},
			{SeenMounted, Call{ID: 1, Verb: Ref}, "active: reply 1 fd"},
			{SeenMounted, Expired{}, "active: "},
		}},
		"a lingering home is activated": {Home{Armed: true}, []turn{
			{SeenMounted, Call{ID: 1, Verb: Activate}, "active: reply 1"},
		}},
		"deactivation by force of a referenced home fails": {Home{Refs: [2]bool{DontSuspend: true}}, []turn{
			{SeenMounted, Call{ID: 1, Verb: Deactivate}, "deactivating: start deactivate"},
			{SeenMounted, HangUp{DontSuspend}, "deactivating: "},
			{SeenMounted, ReferenceEnded{}, "deactivating: "},
			{SeenMounted, Done{Err: busy}, "lingering: arm, reply 1 HomeBusy"},
		}},
		"first activation of a found home": {Home{Stored: Unfixated}, []turn{
			{SeenInactive, Call{ID: 1, Verb: Activate}, "fixating-for-activation: start inspect"},
			{SeenInactive, Done{Err: wrong}, "unfixated: reply 1 BadPassword"},
			{SeenInactive, Call{ID: 2, Verb: Activate}, "fixating-for-activation: start inspect"},
			{SeenInactive, Done{}, "activating: start activate"},
			{SeenMounted, Done{}, "active: reply 2"},
		}},
		"authentication fixates only with a good record": {Home{Stored: Unfixated}, []turn{
			{SeenInactive, Call{ID: 1, Verb: Authenticate}, "authenticating: start inspect!"},
			{SeenInactive, Done{}, "unfixated: reply 1"},
			{SeenInactive, Call{ID: 2, Verb: Authenticate}, "authenticating: start inspect!"},
			{SeenInactive, Done{Fixated: true}, "inactive: reply 2"},
		}},
		"a record that is not accepted undoes the activation": {Home{}, []turn{
			{SeenInactive, Call{ID: 1, Verb: Acquire}, "activating-for-acquire: start activate!"},
			{SeenMounted, Done{Err: fault.New(fault.BadSignature, "x", nil), Undo: true}, "deactivating: arm, start deactivate"},
			{SeenInactive, Done{}, "inactive: reply 1 BadSignature"},
		}},
		"failed create leaves nothing": {Home{New: true}, []turn{
			{SeenAbsent, Call{ID: 1, Verb: Create}, "creating: start create"},
			{SeenAbsent, Call{ID: 2, Verb: Acquire}, "creating: "},
			{SeenAbsent, Done{Err: busy}, "absent: forget, reply 2 NoSuchHome, reply 1 HomeBusy"},
			{SeenAbsent, Call{ID: 3, Verb: Activate}, "absent: reply 3 NoSuchHome"},
		}},
		"remove": {Home{}, []turn{
			{SeenInactive, Call{ID: 1, Verb: Remove}, "removing: start remove"},
			{SeenAbsent, Done{}, "absent: forget, reply 1, rescan"},
		}},
		"locked home and shutdown": {Home{Stored: Locked}, []turn{
			{SeenMounted, ReferenceEnded{}, "locked: "},
			{SeenMounted, Call{ID: 1, Verb: DeactivateAll}, "locked: reply 1"},
			{SeenMounted, Call{ID: 2, Verb: Unlock}, "unlocking: start unlock"},
			{SeenMounted, Done{}, "deactivating: reply 2, arm, start deactivate"},
			{SeenInactive, Done{}, "inactive: "},
		}},
		"locked home and a logout that waits": {Home{Stored: Locked}, []turn{
			{SeenMounted, ReferenceEnded{}, "locked: "},
			{SeenMounted, Call{ID: 1, Verb: Release}, "locked: reply 1 HomeLocked"},
			{SeenMounted, Call{ID: 2, Verb: Deactivate}, "locked: reply 2 HomeLocked"},
		}},
		"a lingering home is activated, then something else is asked": {Home{Armed: true}, []turn{
			{SeenMounted, Call{ID: 1, Verb: Activate}, "active: reply 1"},
			{SeenMounted, Call{ID: 2, Verb: Deactivate}, "deactivating: arm, start deactivate"},
		}},
		"locked home is acquired again": {Home{Stored: Locked}, []turn{
			{SeenMounted, ReferenceEnded{}, "locked: "},
			{SeenMounted, Call{ID: 1, Verb: Acquire}, "unlocking-for-acquire: start unlock!"},
			{SeenMounted, Done{}, "active: reply 1 fd"},
		}},
		"a worker is killed between suspending and wiping": {Home{}, []turn{
			{SeenMounted, Call{ID: 1, Verb: Lock}, "locking: start lock"},
			{SeenMounted, Done{Err: fault.New(fault.WorkerFailed, "x", nil), Suspended: true}, "locked: reply 1 EPROTO"},
		}},
		"a lock that fails leaves the home open": {Home{Refs: [2]bool{PleaseSuspend: true}}, []turn{
			{SeenMounted, Call{ID: 1, Verb: Lock}, "locking: start lock"},
			{SeenMounted, Done{Err: busy}, "active: reply 1 HomeBusy"},
		}},
		"a wrong password leaves a locked home locked": {Home{Stored: Locked}, []turn{
			{SeenMounted, Call{ID: 1, Verb: Unlock}, "unlocking: start unlock"},
			{SeenMounted, Done{Err: wrong}, "locked: reply 1 BadPassword"},
			{SeenMounted, Call{ID: 2, Verb: Acquire}, "unlocking-for-acquire: start unlock!"},
			{SeenMounted, Done{Err: wrong}, "locked: reply 2 BadPassword"},
		}},
		"storage that cannot be locked may sleep": {Home{Refs: [2]bool{PleaseSuspend: true}}, []turn{
			{SeenMounted, Call{ID: 1, Verb: LockAll}, "locking: start lock"},
			{SeenMounted, Done{Err: fault.New(fault.NotSupported, "x", nil)}, "active: reply 1"},
		}},
		"storage pulled out": {Home{}, []turn{
			{SeenMounted, Vanished{}, "deactivating: arm, start deactivate-force"},
			{SeenAbsent, Done{}, "absent: "},
		}},
		"if referenced": {Home{}, []turn{
			{SeenInactive, Call{ID: 1, Verb: ActivateIfReferenced}, "inactive: reply 1 HomeNotReferenced"},
			{SeenInactive, Call{ID: 2, Verb: RefUnrestricted}, "inactive: reply 2 fd"},
			{SeenInactive, Call{ID: 3, Verb: ActivateIfReferenced}, "activating: start activate!"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := c.start
			for i, turn := range c.turns {
				var effects []Effect
				h, effects = Step(h, turn.seen, turn.ev)
				if got := string(h.State(turn.seen)) + ": " + show(effects); got != turn.want {
					t.Fatalf("turn %d, %T: %s\nwant %s", i+1, turn.ev, got, turn.want)
				}
			}
		})
	}
}

func TestQueueLimit(t *testing.T) {
	h, seen := in("busy")
	for i := range QueueLimit {
		var effects []Effect
		h, effects = Step(h, seen, Call{ID: uint64(i + 100), Verb: Acquire})
		if len(effects) > 0 {
			t.Fatalf("call %d was answered: %s", i, show(effects))
		}
	}
	_, effects := Step(h, seen, Call{ID: 1, Verb: Acquire})
	if got := show(effects); got != "reply 1 TooManyOperations" {
		t.Errorf("got %s", got)
	}
}

// FuzzStep feeds events in any order. Whatever happens, at most one worker
// runs, every call gets one reply at most and, once the home has come to rest,
// one at least.
func FuzzStep(f *testing.F) {
	f.Add([]byte{0, 14, 2, 1, 0, 15, 3, 0, 6, 0})
	f.Add([]byte{1, 5, 9, 2, 60, 3, 100, 4, 7, 5, 200, 1})
	verbs := []Verb{Activate, ActivateIfReferenced, Deactivate, Unregister, Create, Realize, Remove, Fixate,
		Authenticate, Update, Resize, ChangePassword, Lock, Unlock, Acquire, Ref, RefUnrestricted, Release, LockAll, DeactivateAll, Register}
	f.Fuzz(func(t *testing.T, in []byte) {
		var h Home
		if len(in) > 0 {
			switch in[0] % 3 {
			case 0:
				h.Stored = Unfixated
			case 1:
				h.New = true
			}
		}
		open := map[uint64]bool{}
		var id uint64
		running, gone := 0, false
		apply := func(seen Presence, ev Event) {
			before := h
			queue := slices.Clone(h.queue)
			next, effects := Step(h, seen, ev)
			if !slices.Equal(queue, before.queue) {
				t.Fatal("the input was changed")
			}
			if _, ok := ev.(Done); ok {
				running = 0
			}
			h = next
			for _, e := range effects {
				switch e := e.(type) {
				case Start:
					if running++; running > 1 || gone {
						t.Fatalf("a second worker, or one for a home that is gone: %s", show(effects))
					}
				case Reply:
					if !open[e.Call.ID] {
						t.Fatalf("an answer nobody waits for: %s", show(effects))
					}
					delete(open, e.Call.ID)
				case Forget:
					gone = true
				}
			}
			state := h.State(seen)
			if !gone && (running == 1) != state.Busy() {
				t.Fatalf("%d workers in state %s", running, state)
			}
			if h.Armed && h.Referenced() {
				t.Fatal("a referenced home would be deactivated")
			}
		}
		var seen Presence
		for i := 0; i+1 < len(in) && i < 400; i += 2 {
			a, b := in[i], in[i+1]
			seen = Presence(b % 5)
			switch a % 8 {
			case 0, 1, 2:
				id++
				open[id] = true
				apply(seen, Call{ID: id, Verb: verbs[int(b)/5%len(verbs)], Kind: RefKind(a >> 7), Offline: a&64 != 0})
			case 3, 4:
				if running == 1 {
					d := Done{Fixated: a&64 != 0, Undo: a&32 != 0, Suspended: a&16 != 0}
					if b&64 != 0 {
						d.Err = fault.New(fault.BadPassword, "x", nil)
					}
					apply(seen, d)
				}
			case 5:
				apply(seen, HangUp{RefKind(b >> 7)})
				apply(seen, ReferenceEnded{})
			case 6:
				if h.Armed {
					apply(seen, Expired{})
				}
			case 7:
				apply(seen, Vanished{})
			}
		}
		for range 1000 {
			if running == 0 {
				break
			}
			apply(SeenInactive, Done{})
		}
		if len(open) > 0 {
			t.Fatalf("%d calls were never answered", len(open))
		}
	})
}
