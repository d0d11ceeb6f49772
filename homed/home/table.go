package home

import "hearth/internal/fault"

// column is a state as the table groups them.
type column int

const (
	colUnfixated column = iota
	colAbsent
	colInactive
	colDirty
	colActive
	colLingering
	colLocked
	colBusy
	columns
)

func (s State) column() column {
	switch s {
	case Unfixated:
		return colUnfixated
	case Absent:
		return colAbsent
	case Inactive:
		return colInactive
	case Dirty:
		return colDirty
	case Active:
		return colActive
	case Lingering:
		return colLingering
	case Locked:
		return colLocked
	}
	return colBusy
}

// act is what the table says to do.
type act int

const (
	refuse       act = iota // answer with the cell's kind
	run                     // start the worker
	done                    // nothing to do: answer success
	forget                  // drop record and object
	stay                    // cancel the retry timer, answer success
	give                    // hand out a reference
	giveIfActive            // hand out a reference in the busy states that are active
	wait                    // leave it in the queue
	drop                    // nobody waits for it: throw it away
	park                    // keep a reference end in mind until the home is unlocked
	runIfOffline            // start the worker if the storage is not to be touched, else refuse
	runIfUnclear            // start the worker if nothing speaks against it, else refuse
)

type cell struct {
	act  act
	kind fault.Kind
}

var (
	cRun  = cell{act: run}
	cDone = cell{act: done}
	cGive = cell{act: give}
	cWait = cell{act: wait}
	cDrop = cell{act: drop}
)

func no(k fault.Kind) cell { return cell{refuse, k} }

// table says what an operation does in a state; its source is the interface's
// reference, "Operation x state". It is the only place that decides so.
// Columns: unfixated, absent, inactive, dirty, active, lingering, locked, busy.
var table = map[Verb][columns]cell{
	Activate: {cRun, no(fault.HomeAbsent), cRun, cRun,
		no(fault.HomeAlreadyActive), {act: stay}, no(fault.HomeLocked), no(fault.HomeBusy)},
	Deactivate: {no(fault.HomeNotActive), no(fault.HomeNotActive), no(fault.HomeNotActive), no(fault.HomeNotActive),
		cRun, cRun, no(fault.HomeLocked), no(fault.HomeBusy)},
	Fixate: {cRun, no(fault.HomeAbsent), no(fault.HomeAlreadyFixated), no(fault.HomeAlreadyFixated),
		no(fault.HomeAlreadyFixated), no(fault.HomeAlreadyFixated), no(fault.HomeAlreadyFixated), no(fault.HomeBusy)},
	Authenticate: {cRun, no(fault.HomeAbsent), cRun, cRun,
		cRun, cRun, no(fault.HomeLocked), no(fault.HomeBusy)},
	Create: {no(fault.HomeExists), cRun, {runIfUnclear, fault.HomeExists}, no(fault.HomeExists),
		no(fault.HomeBusy), no(fault.HomeBusy), no(fault.HomeBusy), no(fault.HomeBusy)},
	Realize: {no(fault.HomeExists), cRun, {runIfUnclear, fault.HomeExists}, no(fault.HomeExists),
		no(fault.HomeBusy), no(fault.HomeBusy), no(fault.HomeBusy), no(fault.HomeBusy)},
	Remove: {cRun, {act: forget}, cRun, cRun,
		no(fault.HomeBusy), no(fault.HomeBusy), no(fault.HomeLocked), no(fault.HomeBusy)},
	Unregister: {no(fault.HomeUnfixated), {act: forget}, {act: forget}, {act: forget},
		no(fault.HomeBusy), no(fault.HomeBusy), no(fault.HomeLocked), no(fault.HomeBusy)},
	Update: {no(fault.HomeUnfixated), {runIfOffline, fault.HomeAbsent}, cRun, cRun,
		cRun, cRun, no(fault.HomeLocked), no(fault.HomeBusy)},
	Resize: {no(fault.HomeUnfixated), no(fault.HomeAbsent), cRun, cRun,
		cRun, cRun, no(fault.HomeLocked), no(fault.HomeBusy)},
	ChangePassword: {no(fault.HomeUnfixated), no(fault.HomeAbsent), cRun, cRun,
		cRun, cRun, no(fault.HomeLocked), no(fault.HomeBusy)},
	Lock: {no(fault.HomeNotActive), no(fault.HomeNotActive), no(fault.HomeNotActive), no(fault.HomeNotActive),
		cRun, cRun, no(fault.HomeLocked), no(fault.HomeBusy)},
	Unlock: {no(fault.HomeNotLocked), no(fault.HomeNotLocked), no(fault.HomeNotLocked), no(fault.HomeNotLocked),
		no(fault.HomeNotLocked), no(fault.HomeNotLocked), cRun, no(fault.HomeBusy)},
	Ref: {no(fault.HomeNotActive), no(fault.HomeAbsent), no(fault.HomeNotActive), no(fault.HomeNotActive),
		cGive, cGive, no(fault.HomeLocked), {giveIfActive, fault.HomeBusy}},
	RefUnrestricted: {cGive, cGive, cGive, cGive, cGive, cGive, cGive, cGive},

	// What follows goes through the queue.
	Acquire: {cRun, no(fault.HomeAbsent), cRun, cRun,
		cRun, cRun, cRun, cWait},
	Release: {cDone, cDone, cDone, cDone,
		cRun, cRun, no(fault.HomeLocked), cWait},
	LockAll: {cDone, cDone, cDone, cDone,
		cRun, cRun, cDone, cWait},
	DeactivateAll: {cDone, cDone, cDone, cDone,
		cRun, cRun, cDone, cWait},
	// A reference end on a locked home stands aside, so that a release or a
	// shutdown behind it does not hang until somebody unlocks.
	referenceEnd: {cDrop, cDrop, cDrop, cDrop,
		cRun, cRun, {act: park}, cWait},
	forceDeactivate: {cDrop, cDrop, cDrop, cDrop,
		cRun, cRun, cRun, cWait},
}

// refusal is the answer to a verb that a state forbids, in the words that the
// interface's clients know; where the kind's own text is none of them.
func refusal(v Verb, k fault.Kind, s State) error {
	err := fault.New(k, string(v), nil)
	switch {
	case k == fault.HomeBusy && v != Create && v != Realize && v != Remove && v != Unregister:
		err.Wording = "An operation on home %u is currently being executed."
	case k == fault.HomeNotActive && v == Lock:
		err.Wording = "Home %u is not active."
	case k == fault.HomeUnfixated && v == Unregister:
		err.Wording = "Home %u is not registered."
	case k == fault.HomeExists && s == Inactive:
		err.Wording = "Selected home image of user %u already exists."
	}
	return err
}

// queued reports whether the operation waits for its turn instead of being
// answered HomeBusy.
func (v Verb) queued() bool {
	switch v {
	case Acquire, Release, LockAll, DeactivateAll, referenceEnd, forceDeactivate:
		return true
	}
	return false
}

// plan says which worker an operation needs in a state, the state while it
// runs, and whether it counts as an attempt to authenticate.
func plan(v Verb, s State) (w Work, while State, attempt bool) {
	up := s == Active || s == Lingering
	pick := func(inactive, active State) State {
		if up {
			return active
		}
		return inactive
	}
	switch v {
	case Activate, ActivateIfReferenced:
		if s == Unfixated {
			return WorkInspect, FixatingForActivation, false
		}
		return WorkActivate, Activating, true
	case Acquire:
		switch {
		case s == Unfixated:
			return WorkInspect, FixatingForAcquire, true
		case s == Locked:
			return WorkUnlock, UnlockingForAcquire, true
		case up:
			return WorkInspect, AuthenticatingForAcquire, true
		}
		return WorkActivate, ActivatingForAcquire, true
	case Fixate:
		return WorkInspect, Fixating, true
	case Authenticate:
		return WorkInspect, pick(Authenticating, AuthenticatingWhileActive), true
	case Create, Realize:
		return WorkCreate, Creating, false
	case Remove:
		return WorkRemove, Removing, false
	case Update:
		return WorkUpdate, pick(Updating, UpdatingWhileActive), true
	case Resize:
		return WorkResize, pick(Resizing, ResizingWhileActive), true
	case ChangePassword:
		return WorkPasswd, pick(Passwd, PasswdWhileActive), true
	case Lock, LockAll:
		return WorkLock, Locking, false
	case Unlock:
		// Counted already: an unlock counts in every state.
		return WorkUnlock, Unlocking, false
	case forceDeactivate:
		return WorkForceDeactivate, Deactivating, false
	}
	return WorkDeactivate, Deactivating, false
}
