// Package storagetest is the suite that every storage backend must pass, run
// through the flows as a worker runs them. It knows what a home promises its
// user and its machine, and leaves to the backend's own tests how it is kept on
// the disk. It needs root, and a TestMain that calls testenv.Main.
package storagetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/records"
	"hearth/storage"
	"hearth/storage/mounts"
)

// Kind is what the suite runs against.
type Kind struct {
	// Storage is the record's word for it.
	Storage string
	Backend storage.Backend
	// Needs are the needs of testenv beyond root.
	Needs []string
	// Fields are further fields of the record.
	Fields map[string]any
	// Image says that the area is one file of a size that is allocated at
	// once, so that a full disk can be told from a full home.
	Image bool
	// FileSystem is the type that the home root is to be made of; empty is
	// whatever the machine has.
	FileSystem string
	// MkfsOptions are for making it, MountOptions for mounting it.
	MkfsOptions, MountOptions []string
	// Remains names what of a user's home the kernel still holds, beyond
	// mounts and loop devices below the home root. May be nil.
	Remains func(user string) []string
}

// Machine is the machine that the suite's records are bound to.
var Machine = records.Machine{ID: "6c6f6e672d6c6976652d746573747321", Hostname: "suite"}

const (
	// UID owns the homes of the suite.
	UID = 60123
	// Password opens them.
	Password = "correct horse"
)

// limit bounds one operation: on a slow guest one takes a second or two.
const limit = 2 * time.Minute

// Run runs the suite.
func Run(t *testing.T, k Kind) {
	testenv.Need(t, append([]string{"root"}, k.Needs...)...)
	for _, c := range []struct {
		name string
		test func(*testing.T, *World)
	}{
		{"Life", life},
		{"WrongPassword", wrongPassword},
		{"Absent", absent},
		{"AlreadyActive", alreadyActive},
		{"LockedElsewhere", lockedElsewhere},
		{"Busy", busy},
		{"Force", force},
		{"Locked", locked},
		{"NothingToDeactivate", nothingToDeactivate},
		{"CreateTwice", createTwice},
		{"CreateCancelled", createCancelled},
		{"NewerRecordWins", newerRecordWins},
		{"EmptyIdentity", emptyIdentity},
		{"FullDisk", fullDisk},
		{"FullDiskLater", fullDiskLater},
		{"FullHome", fullHome},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, New(t, k)) })
	}
}

var enter = sync.OnceValue(mounts.EnterWorkNamespace)

var users atomic.Int32

// A World is a home root with one user, seen by what stands in for the daemon:
// it keeps the record and the image lock.
type World struct {
	T      *testing.T
	Kind   Kind
	Root   string // the home root
	User   string
	Host   storage.Host
	Record *records.Record
	// Signer is the machine's own key: what no other key of Host.Keys signed,
	// Run signs by it.
	Signer *records.Signer
	// Log is what the flows said.
	Log *bytes.Buffer

	locks []*os.File
}

// New returns a world in which nothing exists yet. At the end of the test it
// demands that nothing is left open.
func New(t *testing.T, k Kind) *World {
	t.Helper()
	// Before the scratch directory's own checks, which come after ours.
	dir := testenv.Scratch(t)
	if err := enter(); err != nil {
		t.Fatal(err)
	}
	w := &World{T: t, Kind: k, Root: filepath.Join(dir, "home"), Log: &bytes.Buffer{}}
	w.User = fmt.Sprintf("suite%d-%d", users.Add(1), os.Getpid())
	skeleton := filepath.Join(dir, "skel")
	for _, d := range []string{w.Root, skeleton} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if k.FileSystem != "" {
		w.disk(t, filepath.Join(dir, "disk"))
	}
	if err := os.WriteFile(filepath.Join(skeleton, ".profile"), []byte("umask 027\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.Host = storage.Host{
		Machine: Machine, HomeRoot: w.Root,
		Log:       slog.New(slog.NewTextHandler(w.Log, nil)),
		ImageLock: w.keepLock,
		Keys:      &records.Keys{},
	}
	private, public, err := records.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if w.Signer, err = records.NewSigner(private); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Signer.Close)
	w.Trust(t, records.LocalKey, public)
	fields := map[string]any{
		"userName": w.User, "uid": UID, "gid": UID, "disposition": "regular", "storage": k.Storage,
		"skeletonDirectory": skeleton, "lastChangeUSec": 1000,
		"privileged": map[string]any{"hashedPassword": []string{hash(t, Password)}},
	}
	for name, v := range k.Fields {
		fields[name] = v
	}
	w.Record = parse(t, fields)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what was logged:\n%s", w.Log)
		}
		if mounted, _ := mounts.IsMountPoint(w.Home()); mounted {
			if _, err := w.Run(storage.DeactivateForce, ""); err != nil {
				t.Errorf("clean up: %v", err)
			}
		}
		w.unlock()
		w.Idle(t)
	})
	return w
}

// disk makes a file system in an image and mounts it on the home root.
func (w *World) disk(t *testing.T, image string) {
	t.Helper()
	const size = 256 << 20
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	mkfs := exec.Command("/usr/sbin/mkfs."+w.Kind.FileSystem, append(append([]string{}, w.Kind.MkfsOptions...), "-q", image)...)
	if out, err := mkfs.CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v\n%s", err, out)
	}
	options := strings.Join(append([]string{"loop"}, w.Kind.MountOptions...), ",")
	if out, err := exec.Command("mount", "-t", w.Kind.FileSystem, "-o", options, image, w.Root).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(w.Root, 0); err != nil {
			t.Errorf("unmount the home root: %v", err)
		}
		for range 100 { // the loop device goes a moment after the mount
			if len(testenv.LoopsBelow(filepath.Dir(image))) == 0 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	if err := os.Chmod(w.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	// Not what mkfs leaves: the suite looks for what homes leave.
	if err := os.Remove(filepath.Join(w.Root, "lost+found")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// Trust has a public key count.
func (w *World) Trust(t testing.TB, name string, public []byte) {
	t.Helper()
	if err := w.Host.Keys.Add(name, public); err != nil {
		t.Fatal(err)
	}
}

// Sign returns a record signed by the machine's key, unless a key that counts
// has signed it.
func (w *World) Sign(r *records.Record) (records.Verified, error) {
	if v, err := w.Host.Keys.Vouch(r); err == nil {
		return v, nil
	}
	return w.Signer.Sign(r)
}

func parse(t testing.TB, fields map[string]any) *records.Record {
	t.Helper()
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	r, err := records.Parse(text, records.WorkerInput)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// With returns the world's record with fields changed.
func (w *World) With(t testing.TB, fields map[string]any) *records.Record {
	t.Helper()
	var all map[string]any
	d := json.NewDecoder(bytes.NewReader(w.Record.Compact()))
	d.UseNumber()
	if err := d.Decode(&all); err != nil {
		t.Fatal(err)
	}
	for k, v := range fields {
		all[k] = v
	}
	return parse(t, all)
}

func hash(t testing.TB, text string) string {
	t.Helper()
	p, err := secret.Copy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	h, err := records.HashPassword(p, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// keepLock does what the daemon does: it keeps a copy.
func (w *World) keepLock(image *os.File) error {
	fd, err := unix.FcntlInt(image.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	w.locks = append(w.locks, os.NewFile(uintptr(fd), image.Name()))
	w.Host.HaveImageLock = true
	return nil
}

func (w *World) unlock() {
	for _, f := range w.locks {
		_ = f.Close()
	}
	w.locks, w.Host.HaveImageLock = nil, false
}

// Home is the home directory.
func (w *World) Home() string { return filepath.Join(w.Root, w.User) }

// Run runs a verb as the daemon would: it takes over the record that comes
// back, and lets go of the lock when the home is not active afterwards.
func (w *World) Run(verb, pw string) (*records.Record, error) {
	ctx, stop := context.WithTimeout(context.Background(), limit)
	defer stop()
	return w.RunContext(ctx, verb, pw)
}

// RunContext is Run with a context.
func (w *World) RunContext(ctx context.Context, verb, pw string) (*records.Record, error) {
	if pw == "" {
		return w.run(ctx, verb, w.Record)
	}
	return w.run(ctx, verb, w.Record, pw)
}

// Change runs a verb that brings another record along.
func (w *World) Change(verb string, r *records.Record, passwords ...string) (*records.Record, error) {
	ctx, stop := context.WithTimeout(context.Background(), limit)
	defer stop()
	return w.run(ctx, verb, r, passwords...)
}

func (w *World) run(ctx context.Context, verb string, r *records.Record, passwords ...string) (*records.Record, error) {
	s := &records.Secrets{}
	defer s.Close()
	for _, pw := range passwords {
		p, err := secret.Copy([]byte(pw))
		if err != nil {
			return nil, err
		}
		s.Passwords = append(s.Passwords, p)
	}
	subject, err := w.Sign(r)
	if err != nil {
		return nil, err
	}
	out, err := storage.Run(ctx, w.Host, verb, subject, s, map[string]storage.Backend{w.Kind.Storage: w.Kind.Backend})
	if out != nil {
		w.Record = out
	}
	if mounted, _ := mounts.IsMountPoint(w.Home()); !mounted {
		w.unlock()
	}
	return out, err
}

// Must runs a verb that has to succeed.
func (w *World) Must(t testing.TB, verb, pw string) {
	t.Helper()
	if _, err := w.Run(verb, pw); err != nil {
		t.Fatalf("%s: %v (%s)", verb, err, fault.KindOf(err))
	}
}

// Refused runs a verb that has to fail with one of the kinds.
func (w *World) Refused(t testing.TB, verb, pw string, kinds ...fault.Kind) {
	t.Helper()
	_, err := w.Run(verb, pw)
	for _, k := range kinds {
		if fault.Is(err, k) {
			return
		}
	}
	t.Errorf("%s: %v (kind %q), want %v", verb, err, fault.KindOf(err), kinds)
}

// Idle demands that nothing of the home is open and no temporary file is left.
func (w *World) Idle(t testing.TB) {
	t.Helper()
	for _, m := range append(testenv.MountsBelow(w.Root), testenv.MountsBelow(filepath.Dir(mounts.Work))...) {
		if m != w.Root {
			t.Errorf("still mounted: %s", m)
		}
	}
	for _, l := range testenv.LoopsBelow(w.Root) {
		t.Errorf("still attached: %s", l)
	}
	if w.Kind.Remains != nil {
		for _, r := range w.Kind.Remains(w.User) {
			t.Errorf("still there: %s", r)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(w.Root, ".#*")); len(left) > 0 {
		t.Errorf("temporary files are left: %q", left)
	}
}

// write makes a file that belongs to the user.
func (w *World) write(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join(w.Home(), name)
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, UID, UID); err != nil {
		t.Fatal(err)
	}
}

// Overfill writes mib MiB to a file as the user and returns what the program
// that did it said; empty if all of it went in.
func (w *World) Overfill(t testing.TB, name string, mib int) string {
	t.Helper()
	cmd := exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(w.Home(), name), "bs=1M", fmt.Sprintf("count=%d", mib), "conv=fsync")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: UID, Gid: UID}}
	out, err := cmd.CombinedOutput()
	if err == nil {
		return ""
	}
	return string(out) + err.Error()
}

// holds demands a file of the user's with that content.
func (w *World) holds(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join(w.Home(), name)
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	if string(got) != text {
		t.Errorf("%s holds %q, want %q", name, got, text)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Uid != UID || st.Gid != UID {
		t.Errorf("%s belongs to %d:%d (%v), want %d", name, st.Uid, st.Gid, err, UID)
	}
}

func (w *World) dirty(t testing.TB) bool {
	t.Helper()
	dirty, err := mounts.IsDirty(w.View().ImagePath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	return dirty
}

// View is the record as the machine sees it.
func (w *World) View() records.View {
	m := w.Host.Machine
	m.HomeRoot = w.Root
	return w.Record.View(m)
}

func life(t *testing.T, w *World) {
	w.Must(t, storage.Create, Password)
	w.Idle(t)
	if _, err := os.Stat(w.View().ImagePath); err != nil {
		t.Fatal(err)
	}
	if w.dirty(t) {
		t.Error("the image is dirty after create")
	}
	b, ok := w.Record.Binding(Machine.ID)
	if !ok || b.Storage != w.Kind.Storage || b.ImagePath != w.View().ImagePath || b.UID != UID || b.HomeDirectory != "" {
		t.Errorf("binding after create: %+v", b)
	}
	w.Must(t, storage.Inspect, Password)
	w.Idle(t)

	w.Must(t, storage.Activate, Password)
	if mounted, err := mounts.IsMountPoint(w.Home()); err != nil || !mounted {
		t.Fatalf("home is not mounted: %v", err)
	}
	if b, _ := w.Record.Binding(Machine.ID); b.HomeDirectory != w.Home() {
		t.Errorf("binding after activation: %+v", b)
	}
	if w.Kind.Image && !w.dirty(t) {
		t.Error("the image of an active home is not dirty")
	}
	for _, m := range testenv.MountsBelow(filepath.Dir(mounts.Work)) {
		t.Errorf("work mount is left: %s", m)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(w.Home(), &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
		t.Errorf("mount flags %x, %v", st.Flags, err)
	}
	info, err := os.Stat(w.Home())
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the home: %v, %v", info.Mode(), err)
	}
	w.holds(t, ".profile", "umask 027\n")
	w.holds(t, ".identity", string(w.Record.Embedded().Pretty()))
	if info, err := os.Stat(filepath.Join(w.Home(), ".identity")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of .identity: %v, %v", info.Mode(), err)
	}
	w.write(t, "letter", "dear ann")
	w.Must(t, storage.Inspect, Password)
	w.Refused(t, storage.Inspect, "battery staple", fault.BadPassword)
	if mounted, _ := mounts.IsMountPoint(w.Home()); !mounted {
		t.Error("inspecting an active home closed it")
	}
	w.Refused(t, storage.Remove, "", fault.HomeBusy)

	w.Must(t, storage.Deactivate, "")
	w.Idle(t)
	if w.dirty(t) {
		t.Error("the image is dirty after deactivation")
	}
	if left, err := os.ReadDir(w.Home()); err != nil || len(left) != 0 {
		t.Errorf("mount point after deactivation: %v, %v", left, err)
	}

	w.Must(t, storage.Activate, Password)
	w.holds(t, "letter", "dear ann")
	w.Must(t, storage.Deactivate, "")

	w.Must(t, storage.Remove, "")
	for _, p := range []string{w.Home(), w.View().ImagePath} {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after remove: %v", p, err)
		}
	}
	w.Must(t, storage.Remove, "")
}

func wrongPassword(t *testing.T, w *World) {
	w.Must(t, storage.Create, Password)
	for _, verb := range []string{storage.Activate, storage.Inspect} {
		w.Refused(t, verb, "battery staple", fault.BadPassword)
		w.Refused(t, verb, "", fault.BadPassword, fault.KeyUnavailable)
		w.Idle(t)
		if w.dirty(t) {
			t.Errorf("%s with a wrong password made the image dirty", verb)
		}
		if len(w.locks) > 0 {
			t.Errorf("%s with a wrong password handed over the lock", verb)
		}
	}
	w.Must(t, storage.Activate, Password)
}

func absent(t *testing.T, w *World) {
	w.Refused(t, storage.Activate, Password, fault.HomeAbsent)
	w.Refused(t, storage.Inspect, Password, fault.HomeAbsent)
	w.Refused(t, storage.Activate, "battery staple", fault.BadPassword)
	if _, err := os.Lstat(w.Home()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent home got a directory: %v", err)
	}
}

func alreadyActive(t *testing.T, w *World) {
	w.Must(t, storage.Create, Password)
	w.Must(t, storage.Activate, Password)
	w.write(t, "letter", "dear ann")
	w.Refused(t, storage.Activate, Password, fault.HomeAlreadyActive)
	w.holds(t, "letter", "dear ann")
}

func lockedElsewhere(t *testing.T, w *World) {
	if !w.Kind.Image {
		t.Skip("only images are locked")
	}
	w.Must(t, storage.Create, Password)
	other, err := os.Open(w.View().ImagePath)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	w.Refused(t, storage.Activate, Password, fault.HomeInUse)
	w.Refused(t, storage.Inspect, Password, fault.HomeInUse)
	w.Idle(t)
	if w.dirty(t) {
		t.Error("an image that is used elsewhere was made dirty")
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Activate, Password)
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("the image of an active home is not locked: %v", err)
	}
}

// busy: who is in the home keeps it open, and nothing is half closed.
func busy(t *testing.T, w *World) {
	w.Must(t, storage.Create, Password)
	w.Must(t, storage.Activate, Password)
	w.write(t, "letter", "dear ann")
	in, err := os.Open(filepath.Join(w.Home(), "letter"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	w.Refused(t, storage.Deactivate, "", fault.HomeBusy)
	w.holds(t, "letter", "dear ann")
	for _, m := range testenv.MountsBelow(filepath.Dir(mounts.Work)) {
		t.Errorf("work mount is left: %s", m)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Deactivate, "")
}

// force: the home goes from under who is in it.
func force(t *testing.T, w *World) {
	w.Must(t, storage.Create, Password)
	w.Must(t, storage.Activate, Password)
	w.write(t, "letter", "dear ann")
	in, err := os.Open(filepath.Join(w.Home(), "letter"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	// While someone has a file open the device below cannot go; the home
	// directory is free at once.
	ctx, stop := context.WithTimeout(t.Context(), limit)
	defer stop()
	time.AfterFunc(2*time.Second, func() { _ = in.Close() })
	if _, err := w.RunContext(ctx, storage.DeactivateForce, ""); err != nil && !fault.Is(err, fault.HomeBusy) {
		t.Errorf("forced deactivation: %v", err)
	}
	if mounted, _ := mounts.IsMountPoint(w.Home()); mounted {
		t.Error("home is still mounted")
	}
}

func nothingToDeactivate(t *testing.T, w *World) {
	w.Refused(t, storage.Deactivate, "", fault.HomeNotActive)
	w.Must(t, storage.Create, Password)
	w.Refused(t, storage.Deactivate, "", fault.HomeNotActive)
	w.Refused(t, storage.DeactivateForce, "", fault.HomeNotActive)
}

func createTwice(t *testing.T, w *World) {
	w.Refused(t, storage.Create, "battery staple", fault.BadPassword)
	w.Refused(t, storage.Create, "", fault.KeyUnavailable, fault.BadPassword)
	w.Must(t, storage.Create, Password)
	w.Refused(t, storage.Create, Password, fault.FileExists)
	w.Must(t, storage.Activate, Password)
}

func createCancelled(t *testing.T, w *World) {
	for _, stage := range w.stages(t) {
		ctx, cancel := context.WithCancel(t.Context())
		w.Host.Progress = func(s string, _, _ uint64) {
			if s == stage {
				cancel()
			}
		}
		if _, err := w.RunContext(ctx, storage.Create, Password); err == nil {
			t.Errorf("create went on after it was cancelled at %q", stage)
		}
		cancel()
		w.Idle(t)
		if left, err := os.ReadDir(w.Root); err != nil || len(left) != 0 {
			t.Fatalf("a create that was cancelled at %q left %v, %v", stage, left, err)
		}
	}
	w.Host.Progress = nil
	w.Must(t, storage.Create, Password)
}

// stages are those that a create tells of.
func (w *World) stages(t *testing.T) []string {
	t.Helper()
	var list []string
	record := w.Record
	w.Host.Progress = func(s string, _, _ uint64) { list = append(list, s) }
	w.Must(t, storage.Create, Password)
	w.Host.Progress = nil
	w.Must(t, storage.Remove, "")
	w.Record = record
	return list
}

// newerRecordWins: whichever copy of the record is newer rules, and the others
// follow.
func newerRecordWins(t *testing.T, w *World) {
	w.Must(t, storage.Create, Password)
	old := w.Record
	w.Record = w.With(t, map[string]any{"realName": "Ann Newer", "lastChangeUSec": 2000})
	w.Must(t, storage.Inspect, Password)
	w.Must(t, storage.Activate, Password)
	w.holds(t, ".identity", string(w.Record.Embedded().Pretty()))
	w.Must(t, storage.Deactivate, "")
	for _, verb := range []string{storage.Inspect, storage.Activate} {
		w.Record = old
		w.Must(t, verb, Password)
		if v := w.View(); v.RealName != "Ann Newer" {
			t.Errorf("%s with an older host record returns %q", verb, v.RealName)
		}
		if b, _ := w.Record.Binding(Machine.ID); b.ImagePath != w.View().ImagePath {
			t.Errorf("binding is lost: %+v", b)
		}
	}
}

// emptyIdentity: a crash has emptied the record in the home, or its user has
// deleted it, or put something else in its place.
func emptyIdentity(t *testing.T, w *World) {
	w.Must(t, storage.Create, Password)
	w.Must(t, storage.Activate, Password)
	identity := filepath.Join(w.Home(), ".identity")
	if err := os.Truncate(identity, 0); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Deactivate, "")
	w.Must(t, storage.Activate, Password)
	w.holds(t, ".identity", string(w.Record.Embedded().Pretty()))
	if err := os.Remove(identity); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Deactivate, "")
	w.Must(t, storage.Activate, Password)
	w.holds(t, ".identity", string(w.Record.Embedded().Pretty()))
	if err := errors.Join(os.Remove(identity), os.Mkdir(identity, 0o700), os.WriteFile(filepath.Join(identity, "x"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Deactivate, "")
	w.Must(t, storage.Activate, Password)
	w.holds(t, ".identity", string(w.Record.Embedded().Pretty()))
	w.Must(t, storage.Deactivate, "")
	w.Idle(t)
}

// small mounts a small file system on the home root.
func (w *World) small(t *testing.T, mib int) {
	t.Helper()
	if err := unix.Mount("small", w.Root, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The kernel drops a loop device's file some time after it has
		// said that the device is free.
		var err error
		for range 100 {
			if err = unix.Unmount(w.Root, 0); !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("unmount small file system: %v", err)
		}
	})
}

func fullDisk(t *testing.T, w *World) {
	w.small(t, 5)
	if !w.Kind.Image {
		// Nothing is allocated ahead, so it is the content that is too much.
		big := filepath.Join(w.View().SkeletonDirectory, "big")
		if err := os.WriteFile(big, make([]byte, 8<<20), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, discard := range []bool{false, true} {
		w.Record = w.With(t, map[string]any{"luksDiscard": discard})
		w.Refused(t, storage.Create, Password, fault.NoDiskSpace)
		w.Idle(t)
		if left, err := os.ReadDir(w.Root); err != nil || len(left) != 0 {
			t.Errorf("a create without space left %v, %v", left, err)
		}
	}
}

// fullDiskLater: a disk that has filled up meanwhile keeps nobody out.
func fullDiskLater(t *testing.T, w *World) {
	size, ok := w.Kind.Fields["diskSize"].(int)
	if !ok || !w.Kind.Image {
		t.Skip("nothing is allocated ahead")
	}
	w.small(t, size>>20+8)
	w.Must(t, storage.Create, Password)
	w.Must(t, storage.Activate, Password)
	w.write(t, "letter", "dear ann")
	w.Must(t, storage.Deactivate, "")
	fill, err := os.Create(filepath.Join(w.Root, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(fill, io.LimitReader(zeros{}, int64(size)))
	_ = fill.Close()
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk did not fill up: %v", err)
	}
	w.Must(t, storage.Activate, Password)
	w.holds(t, "letter", "dear ann")
	if !strings.Contains(w.Log.String(), "not enough disk space") {
		t.Error("nobody was told")
	}
	w.Must(t, storage.Deactivate, "")
	w.Must(t, storage.Remove, "")
}

// fullHome: whose home is full gets in, and changes record and password; the
// copy in the home follows when there is room.
func fullHome(t *testing.T, w *World) {
	switch {
	case !w.Kind.Image:
		w.small(t, 5)
	case w.Kind.Fields["fileSystemType"] != "ext4":
		t.Skip("one file system is enough: btrfs has room for small files beside the others")
	}
	w.Must(t, storage.Create, Password)
	w.Must(t, storage.Activate, Password)
	before := string(w.Record.Embedded().Pretty())
	fill, err := os.Create(filepath.Join(w.Home(), "filler"))
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for size := int64(1 << 30); size >= 4096; size /= 2 {
		for err = nil; err == nil; {
			if err = unix.Fallocate(int(fill.Fd()), 0, at, size); err == nil {
				at += size
			}
		}
	}
	_ = fill.Close()
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the home did not fill up: %v", err)
	}
	const next = "another horse battery"
	change := func(verb string, fields map[string]any, passwords ...string) {
		t.Helper()
		w.Log.Reset()
		if _, err := w.Change(verb, w.With(t, fields), passwords...); err != nil {
			t.Fatalf("%s: %v", verb, err)
		}
		w.holds(t, ".identity", before)
		if !strings.Contains(w.Log.String(), "no room for the record in the home") {
			t.Errorf("%s: nobody was told", verb)
		}
	}
	change(storage.Update, map[string]any{"realName": "Ann Full", "lastChangeUSec": 2000}, Password)
	change(storage.Passwd, map[string]any{"realName": "Ann Full", "lastChangeUSec": 3000,
		"privileged": map[string]any{"hashedPassword": []string{hash(t, next)}}}, next, Password)
	w.Must(t, storage.Deactivate, "")
	w.Refused(t, storage.Activate, Password, fault.BadPassword)
	w.Must(t, storage.Activate, next)
	w.holds(t, ".identity", before)
	if err := os.Remove(fill.Name()); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Deactivate, "")
	w.Must(t, storage.Activate, next)
	w.holds(t, ".identity", string(w.Record.Embedded().Pretty()))
	if v := w.View(); v.RealName != "Ann Full" {
		t.Errorf("the record says %q", v.RealName)
	}
	w.Must(t, storage.Deactivate, "")
	w.Must(t, storage.Remove, "")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
