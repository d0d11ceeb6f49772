// Package storage turns a record and its secrets into an open home and back.
// It knows the order of steps that every kind of storage shares (credentials,
// reconciling, owners, publishing, undoing) and the interface Backend that each
// kind fills in. It leaves bytes on a disk to the backends and their formats,
// and what a record means to records; of the daemon it knows nothing.
package storage

import (
	"context"
	"io"
	"log/slog"
	"os"

	"hearth/internal/secret"
	"hearth/records"
)

// NeutralOwner owns the files of a home on the disk where the live mount maps
// them to the user's uid.
const NeutralOwner = 65534

// An Area says where one home's storage is, how it is to be opened and closed,
// and whom to ask on the way.
type Area struct {
	// View has the effective values of the host record on this machine.
	records.View
	// FullName is NAME or NAME@realm: it names partition, label and top
	// directory.
	FullName string
	// Bound is what this machine's binding pins; its zero value pins nothing.
	Bound records.Binding
	// FileSystemTypeChosen says that FileSystemType was asked for, rather than
	// a default that a missing mkfs may change.
	FileSystemTypeChosen bool

	// Active: the home is mounted on HomeDirectory; Open adopts it and mounts
	// nothing. For Deactivate: the flow has just unmounted it.
	Active bool
	// KeptKey has Open use the volume key that the activation left with the
	// kernel, of a home that is active. It fails with BadPassword where there is
	// none any more.
	KeptKey bool
	// HeaderAlone has Open of a home that is not active end where the record
	// that a storage keeps outside of its file system was admitted: nothing is
	// attached, written or handed over, and the setup has no Root. A storage
	// without one opens as ever.
	HeaderAlone bool
	// Preallocate allows Open to reserve the whole image up front, where the
	// record wants that.
	Preallocate bool

	// Admit judges the record that a storage keeps outside of its file system.
	// A backend that has one calls it after the keyslot and before the kernel
	// parses anything of the content; its error ends Open.
	Admit func(header []byte) error
	// HandLock gives a copy of a locked image to whoever outlives this
	// process; nil or HaveLock means that no lock is to be taken.
	HandLock func(*os.File) error
	HaveLock bool

	// RunDir is Host's.
	RunDir   string
	Rand     io.Reader
	Log      *slog.Logger
	Progress func(stage string, done, total uint64)
}

// Credentials open an area. They are borrowed.
type Credentials struct {
	// Passphrases are tried in order at Open; at Create and Rekey each becomes
	// one keyslot, in order.
	Passphrases []*secret.Bytes
	// VolumeKey opens without a passphrase, if not nil.
	VolumeKey *secret.Bytes
}

// A Backend works on one area in one operation, inside a worker's private
// mount namespace.
//
// Create and Open return a Setup whose Root is the user's directory with the
// owners that are on the disk. On error nothing of what they did remains.
type Backend interface {
	// Create makes the area. It stays invisible until the setup's Commit.
	// Faults: FileExists, NoDiskSpace, BadHomeSize, NotSupported, InvalidArgs.
	Create(ctx context.Context, a Area, c *Credentials) (*Setup, error)
	// Open unlocks, or adopts what is active. Faults: HomeAbsent, HomeInUse,
	// BadPassword, WrongMedium, NotAnImage, Inconsistent, HomeBusy, IOError,
	// NotSupported, and what Admit returns.
	Open(ctx context.Context, a Area, c *Credentials) (*Setup, error)
	// Rekey makes the passphrases of c open the area as well. A backend whose
	// passphrases are more than words in the record tells the setup with
	// OnRekey how the former ones go, or how these go again. On error nothing
	// of it remains.
	Rekey(ctx context.Context, s *Setup, c *Credentials) error
	// Deactivate detaches what the flow has unmounted. It needs no
	// credentials. HomeNotActive: there was nothing to detach.
	Deactivate(ctx context.Context, a Area) error
	// Remove deletes the area. An absent area is no error.
	Remove(ctx context.Context, a Area) error
}

// A HeaderKeeper keeps a copy of the record outside of the file system.
type HeaderKeeper interface {
	// WriteHeader replaces that copy, durably. A power cut leaves the old or
	// the new one.
	WriteHeader(ctx context.Context, s *Setup, record []byte) error
}
