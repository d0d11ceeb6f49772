// Package manager owns all homes. One loop touches them: front ends post to it
// and wait, workers and timers report to it. It loads and saves records, finds
// images, hands out references, starts workers and carries out what homed/home
// decides. It leaves the decisions to homed/home, the meaning of records to
// records, the storage to the workers, and who may ask for what to the front
// ends.
package manager

import (
	"context"
	"io"
	"log/slog"
	"os"
	"time"

	"hearth/homed/config"
	"hearth/homed/home"
	"hearth/internal/secret"
	"hearth/records"
)

// Options is what a Manager is made of.
type Options struct {
	Config  config.Config
	Layout  config.Layout
	Machine records.Machine
	Log     *slog.Logger
	// Accounts knows the accounts that are not ours; nil asks getent.
	Accounts Accounts
	// Devices knows block devices; nil looks for homes in the home root alone.
	Devices Devices
	// Freezer stops the sessions of a user whose home is locked; nil leaves
	// them running into it.
	Freezer Freezer
	// Suspended reports whether a user's home is locked; nil asks the kernel.
	Suspended func(user string) (bool, error)
	// Now and Rand are nil for the clock and the kernel's randomness.
	Now  func() time.Time
	Rand io.Reader
	// SharedMounts starts workers in the daemon's own mount namespace, for
	// tests without root.
	SharedMounts bool
	// Ahead keeps a worker started that waits for the next operation.
	Ahead bool
	// RetryAfter is how long a failed deactivation waits for its next try; 0
	// is the 15 s of the interface's reference. Grace is how long the end of a
	// short reference waits; 0 is 5 s. Tests shorten them.
	RetryAfter, Grace time.Duration
}

// Accounts looks up users and groups that exist outside the set of homes, and
// returns their names, empty if there are none. An error counts as "exists". key
// is a name or a decimal id.
type Accounts interface {
	User(ctx context.Context, key string) (string, error)
	Group(ctx context.Context, key string) (string, error)
	// Free reports whether there is surely nobody by any of the keys; that it
	// does not says nothing.
	Free(ctx context.Context, keys []string) bool
}

// Freezer stops and continues all processes of a user's sessions. That there
// are none is success. Both are called outside of the loop.
type Freezer interface {
	Freeze(ctx context.Context, uid uint32) error
	Thaw(ctx context.Context, uid uint32) error
}

// Key names a home: by user name, alias or name@realm, or by UID.
type Key struct {
	Name  string
	UID   uint32
	ByUID bool
}

// Info is what is known of a home at one moment.
type Info struct {
	// Name is the primary user name.
	Name, Realm string
	// State is the state in the words of the bus.
	State string
	// RealName, HomeDirectory and Shell have their defaults put in; the
	// fallback shell and directory are in Record's status only.
	RealName, HomeDirectory, Shell string
	UID, GID                       uint32
	// Subject is what grants by the record: Found while unfixated.
	Subject records.Subject
	// Signed says whether the record is signed by this machine's key alone;
	// nil where that is not known.
	Signed *bool
	// Unfixated homes have no accepted record yet.
	Unfixated bool
	// Seat is where the block device is plugged in that the home is on; empty
	// for other homes, and without the device.
	Seat string
	// Machine is the one that the record is read on.
	Machine records.Machine

	face          *face
	state         home.State
	absent        bool // the storage is, as it was looked at
	fallbackShell string
	texts         *texts
}

// Operation is one thing asked for.
type Operation struct {
	Verb home.Verb
	Key  Key
	// Record is the record given, for Create, Register and Update.
	Record *records.Record
	// Secrets is a raw secret section or nil. Do takes both over, and closes them
	// once the worker has them.
	Secrets, OldSecrets *secret.Bytes
	// Blobs are files for the blob directory, with Create and Update, which
	// the record's manifest names; nil: none were given, and those that are
	// there stay. Do takes them over.
	Blobs         map[string]*os.File
	PleaseSuspend bool
	// Caller is the uid of who asks, 0 for root and for the daemon itself.
	Caller      uint32
	Size, Flags uint64
	// Posted, if set, is called once the operation has its place in the order
	// of events, while Do goes on to wait for its end.
	Posted func()
	// Progress, if set, is told each stage of the operation's workers, in order,
	// before Do returns, unless Do's context ended first. total 0 means that the
	// end of the stage is unknown.
	Progress func(stage string, done, total uint64)
}

// Result is what came of an Operation.
type Result struct {
	// Reference is the write end of the home's FIFO, for Acquire, Ref and
	// RefUnrestricted. It is the caller's to close.
	Reference *os.File
	// Info is the home's after Create and Register.
	Info Info
}

// Change tells front ends what to announce.
type Change struct {
	Kind ChangeKind
	Info Info
}

// ChangeKind says what changed.
type ChangeKind int

// A home appeared, its record was replaced by a different one, or it is gone.
// State and counters changing alone are no Change.
const (
	Added ChangeKind = iota
	Changed
	Removed
)

// SigningKey is a public key whose signatures are accepted.
type SigningKey struct{ Name, PEM string }
