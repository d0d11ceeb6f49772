// Package home is the state machine of one home: which operation may start in
// which state, what waits, what a finished worker means. It is pure: no clock,
// no file, no process. What the storage looks like from outside, that a worker
// ended and that a timer expired are told to it; what is to be done about it
// is its answer, which homed/manager carries out. Of records, signatures and
// rate limits it knows nothing.
package home

// Verb names an operation that a caller can ask for.
type Verb string

// The verbs, one for each method of the bus interface that acts on a home.
const (
	Activate             Verb = "activate"
	ActivateIfReferenced Verb = "activate-if-referenced"
	Deactivate           Verb = "deactivate"
	Register             Verb = "register"
	Unregister           Verb = "unregister"
	Create               Verb = "create"
	Realize              Verb = "realize"
	Remove               Verb = "remove"
	Fixate               Verb = "fixate"
	Authenticate         Verb = "authenticate"
	Update               Verb = "update"
	Resize               Verb = "resize"
	ChangePassword       Verb = "change-password"
	Lock                 Verb = "lock"
	Unlock               Verb = "unlock"
	Acquire              Verb = "acquire"
	Ref                  Verb = "ref"
	RefUnrestricted      Verb = "ref-unrestricted"
	Release              Verb = "release"

	// These three concern all homes.
	LockAll       Verb = "lock-all"
	DeactivateAll Verb = "deactivate-all"
	Rebalance     Verb = "rebalance"
)

// Nobody calls these; the machine queues them itself.
const (
	referenceEnd    Verb = "reference-end"
	forceDeactivate Verb = "force-deactivate"
)

// State is a home's state, in the words of the bus.
type State string

// The states. Absent, Inactive, Dirty, Active and Lingering follow from what
// the storage looks like; the others are remembered.
const (
	Unfixated State = "unfixated"
	Absent    State = "absent"
	Inactive  State = "inactive"
	Dirty     State = "dirty"
	Active    State = "active"
	Lingering State = "lingering"
	Locked    State = "locked"

	Fixating                  State = "fixating"
	FixatingForActivation     State = "fixating-for-activation"
	FixatingForAcquire        State = "fixating-for-acquire"
	Activating                State = "activating"
	ActivatingForAcquire      State = "activating-for-acquire"
	Deactivating              State = "deactivating"
	Locking                   State = "locking"
	Unlocking                 State = "unlocking"
	UnlockingForAcquire       State = "unlocking-for-acquire"
	Creating                  State = "creating"
	Removing                  State = "removing"
	Updating                  State = "updating"
	UpdatingWhileActive       State = "updating-while-active"
	Resizing                  State = "resizing"
	ResizingWhileActive       State = "resizing-while-active"
	Passwd                    State = "passwd"
	PasswdWhileActive         State = "passwd-while-active"
	Authenticating            State = "authenticating"
	AuthenticatingWhileActive State = "authenticating-while-active"
	AuthenticatingForAcquire  State = "authenticating-for-acquire"
)

// Busy reports whether a worker runs in this state.
func (s State) Busy() bool {
	switch s {
	case Unfixated, Absent, Inactive, Dirty, Active, Lingering, Locked:
		return false
	}
	return true
}

// WorksTwice reports whether a second worker follows the one that runs in this
// state, with the same secrets.
func (s State) WorksTwice() bool { return s == FixatingForActivation || s == FixatingForAcquire }

// IsActive reports whether the home directory can be used by its owner in
// this state: clients then get the real shell and home directory.
func (s State) IsActive() bool {
	switch s {
	case Active, Lingering, UpdatingWhileActive, ResizingWhileActive, PasswdWhileActive,
		AuthenticatingWhileActive, AuthenticatingForAcquire:
		return true
	}
	return false
}

// Pins reports whether the daemon holds the home directory open, so that
// nobody unmounts it by accident.
func (s State) Pins() bool { return s.IsActive() && s != Lingering }

// KeepsImageLock reports whether the lock on the backing file is kept.
func (s State) KeepsImageLock() bool { return s.Busy() || s.IsActive() || s == Locked }

// keepsRetry reports whether an armed retry timer survives this state.
func (s State) keepsRetry() bool {
	switch s {
	case Active, Lingering, Deactivating, Locking, Unlocking, UnlockingForAcquire,
		UpdatingWhileActive, ResizingWhileActive, PasswdWhileActive, AuthenticatingWhileActive, AuthenticatingForAcquire:
		return true
	}
	return false
}

// Presence is what the storage looks like from outside.
type Presence int

// What may be seen.
const (
	SeenAbsent   Presence = iota // no storage there
	SeenUnclear                  // cannot be told without opening it, or no storage chosen yet
	SeenInactive                 // storage is there, not mounted
	SeenDirty                    // as SeenInactive, and it was not cleanly detached
	SeenMounted                  // the home directory is a mount point
)

// Work names what a worker is started for: its verb.
type Work string

// The verbs of the worker.
const (
	WorkCreate          Work = "create"
	WorkActivate        Work = "activate"
	WorkDeactivate      Work = "deactivate"
	WorkForceDeactivate Work = "deactivate-force"
	WorkInspect         Work = "inspect"
	WorkRemove          Work = "remove"
	WorkUpdate          Work = "update"
	WorkResize          Work = "resize"
	WorkPasswd          Work = "passwd"
	WorkLock            Work = "lock"
	WorkUnlock          Work = "unlock"
)

// RefKind tells the two kinds of reference apart.
type RefKind int

// A home is suspended with the machine only when all its references are of
// the kind PleaseSuspend.
const (
	DontSuspend RefKind = iota
	PleaseSuspend
)
