package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/trace"
	"hearth/records"
	"hearth/storage/memory"
	"hearth/storage/mounts"
)

// The verbs that Run knows.
const (
	Create          = "create"
	Activate        = "activate"
	Deactivate      = "deactivate"
	DeactivateForce = "deactivate-force"
	Inspect         = "inspect"
	Remove          = "remove"
	Passwd          = "passwd"
	Update          = "update"
	Lock            = "lock"
	Unlock          = "unlock"
	Resize          = "resize"
)

// Host is the machine that an operation runs on, as its caller sees it.
type Host struct {
	Machine records.Machine
	// HomeRoot is where images and home directories are by default, "/home".
	HomeRoot string
	// DefaultStorage and DefaultFileSystemType are used for records that name
	// none; empty means the built-in rule.
	DefaultStorage, DefaultFileSystemType string
	// RunDir is where what is remembered until the machine boots is kept; "":
	// nowhere.
	RunDir string
	// Rand is the source of keys, UUIDs and temporary names; nil is crypto/rand.
	Rand io.Reader
	// Progress may be nil.
	Progress func(stage string, done, total uint64)
	Log      *slog.Logger
	// ImageLock hands a locked image to whoever keeps it locked for as long
	// as the home is in use. The file stays the caller's. May be nil.
	ImageLock func(*os.File) error
	// HaveImageLock says that the lock is held already.
	HaveImageLock bool
	// KeepSize has no home shrink as it closes: the machine goes down, and
	// nobody waits for minutes of moving data.
	KeepSize bool
	// Keep saves a record where it outlives this process, and returns when it
	// is durable. Nil: there is nobody to do it.
	Keep func(*records.Record) error
	// Users says who of the home's user keeps a directory in use, for a text;
	// nil: that cannot be found out.
	Users func(uid, gid uint32, dir string) (string, error)
	// BlobDir is the home's blob directory on this machine; "": blobs are left
	// as they are. Blobs are the files given for it with Create and Update; nil:
	// none were. They stay the caller's.
	BlobDir string
	Blobs   map[string]*os.File
	// Offline leaves the storage alone: Update changes what the host has.
	Offline bool
	// MadeOf says of which of the secrets' passwords each hash of the record was
	// made, for Passwd; see records.HashCache.
	MadeOf []int
	// Keys are the keys whose signatures count on copies of the record; nil
	// counts none.
	Keys *records.Keys
}

// A flow is one operation under way.
type flow struct {
	Host
	verb    string
	subject records.Subject // by the host's record
	view    records.View
	secrets *records.Secrets
	hashes  *records.HashCache
	area    Area
	backend Backend

	// header is the record outside of the file system, once admitted.
	header *records.Record
	auth   *authentication
	// kept: the volume key that the kernel keeps stands for a password.
	kept bool
	// overruled: the host record rejects the secrets, but it is out of date.
	overruled bool
}

// Run carries out one verb on one home and returns the record as the storage
// now has it, with its binding; nil for verbs that end with the home closed or
// gone, and for those that do not read it. It expects to be root in a mount namespace prepared by
// mounts.EnterWorkNamespace. A home that was only found is opened by the
// record in it, if one of h.Keys has signed that. s may be nil and is borrowed.
//
// Faults: those of Backend; BadPassword and its like from the records' own
// check; HomeAbsent, HomeAlreadyActive, HomeNotActive, HomeLocked, HomeBusy,
// FileExists, OtherUser, StaleRecord, BadSignature, Inconsistent; NotSupported for a verb or a kind of
// storage that is not built.
func Run(ctx context.Context, h Host, verb string, subject records.Subject, s *records.Secrets, backends map[string]Backend) (*records.Record, error) {
	f := &flow{Host: h, verb: verb, subject: subject, secrets: s}
	if f.secrets == nil {
		f.secrets = &records.Secrets{}
	}
	if f.Log == nil {
		f.Log = slog.New(slog.DiscardHandler)
	}
	if f.Rand == nil {
		f.Rand = rand.Reader
	}
	if f.Keys == nil {
		f.Keys = &records.Keys{}
	}
	if f.Progress == nil {
		f.Progress = func(string, uint64, uint64) {}
	}
	run, ok := map[string]func(context.Context) (*records.Record, error){
		Create:          f.create,
		Activate:        f.activate,
		Deactivate:      func(ctx context.Context) (*records.Record, error) { return nil, f.deactivate(ctx, false) },
		DeactivateForce: func(ctx context.Context) (*records.Record, error) { return nil, f.deactivate(ctx, true) },
		Inspect:         f.inspect,
		Remove:          func(ctx context.Context) (*records.Record, error) { return nil, f.remove(ctx) },
		Passwd:          f.passwd,
		Update:          f.update,
		Lock:            func(ctx context.Context) (*records.Record, error) { return nil, f.lock(ctx) },
		Unlock:          func(ctx context.Context) (*records.Record, error) { return nil, f.unlock(ctx) },
		Resize:          f.resize,
	}[verb]
	if !ok {
		return nil, fault.Newf(fault.NotSupported, "start "+verb, "The operation %q is not built yet.", verb)
	}
	f.hashes = records.NewHashCache()
	// Each may take some ten seconds, and nobody waits for the verdict any more.
	f.hashes.StopOn(ctx.Done())
	f.hashes.Observe = trace.From(ctx).Work
	f.hashes.Room = memory.Prepare
	if verb == Passwd {
		f.hashes.MadeOf(subject.Record(), f.secrets, h.MadeOf)
	}
	f.secrets.Remember(f.hashes)
	f.secrets.StopOn(ctx.Done())
	name := subject.Record().UserName()
	if err := f.locate(backends); err != nil {
		return nil, fault.For(name, err)
	}
	out, err := run(ctx)
	return out, fault.For(name, err)
}

// verified returns the host's record to a flow that cannot do without one.
// Fault: BadSignature for a home that was only found.
func (f *flow) verified() (records.Verified, error) {
	v, ok := f.subject.(records.Verified)
	if !ok {
		return v, fault.New(fault.BadSignature, f.verb, errors.New("no key that counts has signed the host's record"))
	}
	return v, nil
}

// locate finds out where the home is and which backend it needs.
func (f *flow) locate(backends map[string]Backend) error {
	const op = "locate storage"
	f.Machine.HomeRoot = f.HomeRoot
	f.view = f.subject.View(f.Machine)
	if !f.view.HasUID {
		return fault.Newf(fault.InvalidArgs, op, "The record names no UID for this machine.")
	}
	bound, _ := f.subject.Record().Binding(f.Machine.ID)
	if f.view.Storage == "" {
		// The choice is this machine's, so it goes into its binding; paths
		// and discard defaults follow from there.
		storage := f.DefaultStorage
		if storage == "" && f.verb == Create {
			storage = survey(f.HomeRoot, backends).choose()
		}
		if storage == "" {
			storage = "luks"
		}
		f.subject = records.Bind(f.subject, f.Machine.ID, records.Binding{Storage: storage})
		f.view = f.subject.View(f.Machine)
	}
	v := &f.view
	f.backend = backends[v.Storage]
	if f.backend == nil {
		return fault.Newf(fault.NotSupported, op, "Storage %q is not built yet.", v.Storage)
	}
	for _, p := range []string{v.ImagePath, v.HomeDirectory} {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || strings.ContainsRune(p, 0) {
			return fault.Newf(fault.InvalidArgs, op, "The path %q is not absolute and normalized.", p)
		}
	}
	chosen := v.HasFileSystemType
	if !chosen && f.DefaultFileSystemType != "" {
		v.FileSystemType, chosen = f.DefaultFileSystemType, true
	}
	if v.FileSystemType == "" {
		v.FileSystemType = "btrfs"
	}
	f.area = Area{
		View: *v, FullName: f.subject.Record().FullName(), Bound: bound, FileSystemTypeChosen: chosen,
		HandLock: f.ImageLock, HaveLock: f.HaveImageLock, RunDir: f.RunDir,
		Rand: f.Rand, Log: f.Log, Progress: f.Progress,
	}
	return nil
}

// The states of a home directory, storage.md 1.3.
type homeState int

const (
	homeAbsent homeState = iota
	homeExists
	homeMounted
)

// testHome looks at the home directory before anything is touched. Faults:
// HomeBusy if something is in it that mounting would hide, Unknown if it is
// no directory.
func testHome(v *records.View) (homeState, error) {
	path := v.HomeDirectory
	const op = "look at home directory"
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return homeAbsent, nil
	case err != nil:
		return 0, fault.New(fault.Unknown, op, err)
	case !info.IsDir():
		return 0, fault.New(fault.Unknown, op, fmt.Errorf("%s: %w", path, unix.ENOTDIR))
	}
	mounted, err := mounts.IsMountPoint(path)
	if err != nil {
		return 0, fault.New(fault.Unknown, op, err)
	}
	if mounted {
		return homeMounted, nil
	}
	if path == v.ImagePath {
		// The area itself, which is mounted on top of itself.
		return homeExists, nil
	}
	dir, err := os.Open(path)
	if err != nil {
		return 0, fault.New(fault.Unknown, op, err)
	}
	defer func() { _ = dir.Close() }()
	switch _, err := dir.Readdirnames(1); {
	case errors.Is(err, io.EOF):
		return homeExists, nil
	case err != nil:
		return 0, fault.New(fault.Unknown, op, err)
	}
	return 0, fault.Newf(fault.HomeBusy, op, "The directory %s is not empty.", path)
}

// imageThere says whether there is anything at the image path. Links are
// followed, as opening does.
func imageThere(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fault.New(fault.Unknown, "look at image", err)
	}
	return true, nil
}

// An authentication checks the secrets against the host record on a goroutine
// of its own: the password hash is as dear as the keyslot's derivation, which
// may run beside it. A home that was only found has no record to check against:
// the one in it decides.
type authentication struct {
	done chan struct{}
	err  error
}

func (f *flow) authenticate(strict bool) *authentication {
	a := &authentication{done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.err = f.check(strict)
	}()
	return a
}

func (f *flow) check(strict bool) error {
	v, ok := f.subject.(records.Verified)
	if !ok {
		return nil
	}
	return records.Authenticate(v, f.secrets, strict, f.hashes)
}

func (a *authentication) wait() error {
	<-a.done
	return a.err
}

// copyOf parses another copy of the record and demands that it is this home's.
func (f *flow) copyOf(text []byte, where string) (*records.Record, error) {
	r, err := records.Parse(text, records.EmbeddedFile)
	if err != nil {
		return nil, fmt.Errorf("read record in %s: %w", where, err)
	}
	if !r.SameUser(f.subject.Record()) {
		return nil, fault.New(fault.OtherUser, "read record in "+where,
			fmt.Errorf("it is that of %s", r.FullName()))
	}
	return r, nil
}

// admit judges the header's record, while nothing in the area has been looked
// at but the header. One that claims to be newer than the host's has to be
// signed by a key that counts. It has to accept the secrets as the host record
// does. The host record's verdict comes first, so that a wrong password is told
// by the record that the user knows, and so that the hashes are not touched
// from two sides.
//
// A password change may have been cut off between header and host. So a host
// record that rejects the secrets is overruled by a header's that is newer,
// signed by a key that counts, and accepts them. That of a home which was only
// found decides in the same way.
func (f *flow) admit(text []byte) error {
	hostErr := f.auth.wait()
	if hostErr != nil && !rejected(hostErr) {
		return hostErr
	}
	r, err := f.copyOf(text, "header")
	if err == nil {
		err = f.Keys.Judge(f.subject, r)
	}
	_, known := f.subject.(records.Verified)
	switch {
	case err != nil:
	case f.kept:
		err = f.keepsCredentials(r, "header")
	case hostErr == nil && known:
		err = records.RefusedBy(r, f.secrets, f.hashes)
	case hostErr == nil || r.LastChangeUSec() > f.subject.Record().LastChangeUSec():
		err = f.grant(r)
	default:
		err = hostErr
	}
	switch {
	case err == nil:
		if f.header, f.overruled = r, hostErr != nil; f.overruled {
			f.Log.Info("the header has a newer record than the host")
		}
		return nil
	case hostErr != nil:
		return hostErr
	}
	return fmt.Errorf("judge record in header: %w", err)
}

// grant lets a copy of the record decide on the secrets alone: then it has to
// be signed by a key that counts.
func (f *flow) grant(r *records.Record) error {
	v, err := f.Keys.Vouch(r)
	if err != nil {
		return err
	}
	return records.Authenticate(v, f.secrets, true, f.hashes)
}

// rejected tells a wrong password from other reasons to refuse.
func rejected(err error) bool {
	switch fault.KindOf(err) {
	case fault.BadPassword, fault.BadRecoveryKey, fault.BadPasswordAndNoToken,
		fault.TokenPresenceNeeded, fault.TokenVerifyNeeded, fault.TokenPinNeeded:
		return true
	}
	return false
}

// embedded parses the record in the home. It has to accept the secrets too,
// unless it is older than a record that does and takes its place: a password
// change may have been cut off before it was written. The record that a
// caller just brought is no such record: it would vouch for itself.
func (f *flow) embedded(text []byte) (*records.Record, error) {
	r, err := f.copyOf(text, identityName)
	if err != nil {
		return nil, err
	}
	if f.kept {
		return r, f.keepsCredentials(r, identityName)
	}
	brought := f.brought()
	refused := records.RefusedBy(r, f.secrets, f.hashes)
	_, known := f.subject.(records.Verified)
	if _, ok := f.backend.(HeaderKeeper); !ok && refused == nil && (brought || !known) {
		// Without keyslots this record is the only judge of the password that
		// was good so far, in a file that whoever holds the user's session can
		// rewrite.
		refused = f.grant(r)
	}
	if refused != nil {
		host := f.subject.Record()
		newer := !brought && !f.overruled && host.LastChangeUSec() > r.LastChangeUSec() ||
			f.header != nil && f.header.LastChangeUSec() > r.LastChangeUSec()
		if !newer || !rejected(refused) {
			return nil, fmt.Errorf("judge record in %s: %w", identityName, refused)
		}
		f.Log.Info("the record in the home is from before the last change of the password")
	}
	return r, nil
}

// open checks the secrets and opens the area. Nothing is written anywhere
// before both the host record and the header's record have accepted them.
func (f *flow) open(ctx context.Context) (*Setup, error) {
	// Before the goroutine starts: this completes what s remembers.
	passphrases, err := f.secrets.Candidates()
	if err != nil {
		return nil, err
	}
	defer secret.CloseAll(passphrases)
	changes := f.verb == Update || f.verb == Resize
	if _, ok := f.backend.(HeaderKeeper); ok && changes && f.area.Active && f.secrets.Empty() {
		// Neither gives anybody anything to read. So that the machine can
		// balance its homes, and an open session need not be asked, the key of
		// an open home will do.
		f.kept, f.area.KeptKey = true, true
		f.auth = &authentication{done: make(chan struct{})}
		close(f.auth.done)
	} else {
		f.auth = f.authenticate(changes)
	}
	return f.openWith(ctx, passphrases)
}

// openWith opens the area while the host record is authenticated against.
func (f *flow) openWith(ctx context.Context, passphrases []*secret.Bytes) (*Setup, error) {
	// Whatever happens, the goroutine ends before the secrets are wiped, and
	// its verdict goes before what the storage says.
	defer func() { _ = f.auth.wait() }()
	if _, ok := f.backend.(HeaderKeeper); !ok {
		if err := f.auth.wait(); err != nil {
			return nil, err
		}
	}
	f.area.Admit = f.admit
	setup, err := f.backend.Open(ctx, f.area, &Credentials{Passphrases: passphrases})
	if authErr := f.auth.wait(); authErr != nil && !f.overruled {
		// Only a backend that never asks Admit gets here with a setup.
		if setup != nil {
			authErr = errors.Join(authErr, setup.Close(ctx))
		}
		return nil, authErr
	}
	return setup, err
}

// reconcile reads the record in the home and picks the one that rules.
//
// The user may do with the file what they like, and a crash may leave it empty.
// So a copy that no key that counts has signed, or that is none, is one of no
// age: it is written anew from the copy that was judged before it. It neither
// raises its writer's rights nor shuts them out.
func (f *flow) reconcile(s *Setup, mode records.Mode) (records.Reconciled, error) {
	text, err := readIdentity(s.Root)
	var embedded *records.Record
	if err == nil {
		embedded, err = f.embedded(text)
	}
	var got records.Reconciled
	if err == nil {
		got, err = f.Keys.Reconcile(f.subject, f.header, embedded, mode)
	}
	if err == nil || !f.worthless(text, err) {
		return got, err
	}
	f.Log.Warn("the record in the home is worth nothing and is written anew", "error", err)
	embedded = f.header
	if embedded == nil {
		host := f.subject.Record()
		// One without any credentials has left the verdict to the copies, and
		// there are none.
		if err := records.RefusedBy(host, f.secrets, f.hashes); err != nil && !f.kept {
			return got, err
		}
		embedded = host.Embedded()
	}
	if mode == records.Newer {
		mode = records.NewerOrEqual // the header was asked already
	}
	got, err = f.Keys.Reconcile(f.subject, f.header, embedded, mode)
	got.WriteEmbedded = true
	return got, err
}

// worthless reports whether err, about the record in the home, is that of a
// copy which nobody vouches for. In a home without keyslots the record that a
// caller just brought cannot do in its place: it would be judge in its own case.
// Nor is there any other record of a home that was only found.
func (f *flow) worthless(text []byte, err error) bool {
	if _, known := f.subject.(records.Verified); !known || f.header == nil && f.brought() {
		return false
	}
	switch fault.KindOf(err) {
	case fault.FileNotFound, fault.Inconsistent, fault.InvalidArgs, fault.OtherUser, fault.BadSignature, fault.LimitsExceeded, fault.HomeCantAuthenticate:
	default:
		if !rejected(err) {
			return false
		}
	}
	r, perr := records.Parse(text, records.EmbeddedFile)
	if perr != nil {
		return true
	}
	_, verr := f.Keys.Vouch(r)
	return verr != nil
}

// brought reports whether the host's record is one that the caller brought.
func (f *flow) brought() bool { return f.verb == Passwd || f.verb == Update }

// bind returns v with what was found out about the storage in its binding.
func (f *flow) bind(v records.Verified, s *Setup, homeDirectory string) *records.Record {
	b := s.Found
	b.Storage = f.view.Storage
	if b.ImagePath == "" {
		b.ImagePath = f.view.ImagePath
	}
	b.HomeDirectory = homeDirectory
	b.UID, b.GID, b.HasUID = f.view.UID, f.view.GID, true
	return records.Bind(v, f.Machine.ID, b).Record()
}
