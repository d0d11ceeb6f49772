package crashtest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	randv2 "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/testenv"
	"hearth/records"
	"hearth/storage"
	"hearth/storage/crashtest"
	"hearth/storage/directory"
	"hearth/storage/dm"
	"hearth/storage/luks"
	"hearth/storage/luks2"
	"hearth/storage/mounts"
	"hearth/storage/storagetest"
	"hearth/storage/subvolume"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	mib   = 1 << 20
	first = storagetest.Password
	next  = "battery staple"
	third = "third one"
)

// hashes are of few rounds (crypt(3), SHA-256): each state evaluates several.
var hashes = map[string]string{
	first: "$5$rounds=1000$abcdefgh$ue35C0ITbth1b5zVUjrjm2mMmsmMKiodEeH2UV/Hq10",
	next:  "$5$rounds=1000$abcdefgh$.DoMV/IYQao5Uj30uDl6Fecb220Abwv.hxgT3YrM9GA",
	third: "$5$rounds=1000$abcdefgh$x0ixHg4mwJTlP2x.awV3OwJG5sBZxTNRwsswebag.B5",
}

// A verb is one operation that must survive a power cut at any moment.
type verb struct {
	name string
	// none: there is no home before; active: it is in use while it happens.
	none, active bool
	// run does it, as the daemon would.
	run func(*scene) error
	// after brings an active home to where it can be closed.
	after func(*scene) error
	// before opens the home as long as the host has the former record, and
	// now once it has the new one.
	before, now string
	// more is by how much the image is larger before, in bytes; only names
	// the file system that can do it, empty is any.
	more int
	only string
	luks bool // no other storage has it
}

var verbs = append([]verb{
	{name: "create", none: true, before: first, now: first, run: func(s *scene) error {
		_, err := s.w.Run(storage.Create, first)
		return errors.Join(err, s.save(s.w.Record))
	}},
	{name: "passwd", before: first, now: next, run: func(s *scene) error {
		return s.change(storage.Passwd, s.with(func(b *records.Builder) { b.SetPrivileged("hashedPassword", []string{hashes[next]}) }), next, first)
	}},
	{name: "rekey", active: true, before: first, now: third, run: func(s *scene) error {
		return s.change(storage.Passwd, s.with(func(b *records.Builder) {
			b.SetPrivileged("hashedPassword", []string{hashes[next], hashes[first], hashes[third]})
		}), third, next, first)
	}},
	{name: "update", before: first, now: first, run: func(s *scene) error {
		return s.change(storage.Update, s.with(func(b *records.Builder) { b.Set("realName", "Ann New") }), first)
	}},
	{name: "lock", luks: true, active: true, before: first, now: first, run: func(s *scene) error {
		// What was written before a home is locked is safe from then on.
		if err := s.write("late", []byte("not synced"), false); err != nil {
			return err
		}
		_, err := s.w.Run(storage.Lock, "")
		return err
	}, after: func(s *scene) error { _, err := s.w.Run(storage.Unlock, first); return err }},
}, resizes()...)

// resizes are those that a file system can do: ext4 shrinks only while nobody is
// in.
func resizes() (list []verb) {
	for _, r := range []struct {
		name   string
		by     int
		active bool
		only   string
	}{
		{"grow", step, false, ""}, {"grow-active", step, true, ""},
		{"shrink", -step, false, ""}, {"shrink-active", -step, true, "btrfs"},
	} {
		list = append(list, verb{name: r.name, luks: true, active: r.active, only: r.only, more: max(0, -r.by), before: first, now: first, run: func(s *scene) error {
			s.want = s.size + int64(r.by)
			return s.change(storage.Resize, s.with(func(b *records.Builder) { b.Set("diskSize", uint64(s.want)) }), first)
		}})
	}
	return list
}

// step is by how much homes grow and shrink.
const step = 32 * mib

// hasty destroys the former keyslots before any record knows the new password,
// and marks where that has happened.
type hasty struct {
	luks.Backend
	mark *func(string) error
}

func (h hasty) Rekey(ctx context.Context, s *storage.Setup, c *storage.Credentials) error {
	return errors.Join(h.Backend.Rekey(ctx, s, c), s.Retire(), (*h.mark)("hasty"))
}

// A ground is what a home is made of.
type ground struct {
	name, storage string
	// fstype is that of a LUKS2 home's image; the others are folders in the disk
	// below.
	fstype string
	below  string // the type of that, and the size of its blocks
	block  int
	size   int // of image or disk, in bytes
}

// whole is the block size of all but the smallest disks: what is written by such
// blocks is not torn then, nor are those of an image.
const whole = 4096

var grounds = []ground{
	{"ext4", "luks", "ext4", "ext4", whole, 50 * mib},
	{"btrfs", "luks", "btrfs", "ext4", whole, 280 * mib},
	// As mkfs.ext4 makes small disks: the blocks of an image are torn, and the
	// superblock of a btrfs has to be mended.
	{"ext4-1024", "luks", "ext4", "ext4", 1024, 50 * mib},
	{"btrfs-1024", "luks", "btrfs", "ext4", 1024, 280 * mib},
	{"directory", "directory", "", "ext4", whole, 0},
	{"subvolume", "subvolume", "", "btrfs", whole, 128 * mib},
}

func (g ground) has(v verb) bool {
	return (g.storage == "luks" || !v.luks) && (v.only == "" || v.only == g.fstype)
}

func (g ground) backend() storage.Backend {
	switch g.storage {
	case "directory":
		return directory.Backend{}
	case "subvolume":
		return subvolume.Backend{}
	}
	return luks.Backend{}
}

// mkfs makes the file system below.
func (g ground) mkfs(node string) error {
	args := []string{"-q", node}
	if g.below == "ext4" {
		args = []string{"-q", "-b", strconv.Itoa(g.block), "-E", "lazy_itable_init=0,lazy_journal_init=0", "-J", "size=4", node}
	}
	if out, err := exec.Command("mkfs."+g.below, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs: %w\n%s", err, out)
	}
	return nil
}

// A scene is a home on a disk of its own, whose power can be cut.
type scene struct {
	t      *testing.T
	verb   verb
	ground ground
	w      *storagetest.World
	rig    *crashtest.Rig
	asked  *records.Record     // what the home was made by
	files  map[string][32]byte // by name: what the home must hold, whatever happens
	log    crashtest.Log
	begin  int   // the operation's first step
	end    int   // so many steps were made when it had succeeded
	opened int   // states in which the home was opened
	mended int   // and its superblock had been torn
	size   int64 // of the image before
	want   int64 // and after, where it is to change
	mark   func(string) error
}

const cutWait = time.Minute

func newScene(t *testing.T, v verb, g ground, backend storage.Backend) *scene {
	t.Helper()
	testenv.Need(t, "root", "loop", "dm-crypt", g.below, "mkfs."+g.below)
	fields := map[string]any{"privileged": map[string]any{"hashedPassword": []string{hashes[first]}}}
	size := g.size + v.more
	if g.storage == "luks" {
		testenv.Need(t, g.fstype, "mkfs."+g.fstype)
		for name, value := range map[string]any{
			"fileSystemType": g.fstype, "diskSize": size, "autoResizeMode": "off",
			"luksPbkdfType": "pbkdf2", "luksPbkdfForceIterations": 1000,
		} {
			fields[name] = value
		}
	}
	for _, target := range []string{"snapshot", "log-writes"} {
		if !dm.HasTarget(target) {
			t.Fatalf("the kernel has no device mapper target %s", target)
		}
	}
	s := &scene{t: t, verb: v, ground: g, files: map[string][32]byte{}, size: int64(size)}
	s.w = storagetest.New(t, storagetest.Kind{Storage: g.storage, Backend: backend, Image: g.storage == "luks", Fields: fields})
	s.w.Host.Keep = s.save
	signed, err := s.w.Sign(s.w.Record)
	s.must(err)
	s.w.Record = signed.Record()
	s.asked = s.w.Record

	memory := filepath.Join(filepath.Dir(s.w.Root), "memory")
	s.must(os.Mkdir(memory, 0o700))
	s.must(unix.Mount("memory", memory, "tmpfs", 0, "size=2000m"))
	t.Cleanup(func() {
		if err := unix.Unmount(memory, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	disk := int64(size + 64*mib + step)
	if s.rig, err = crashtest.NewRig(t.Context(), s.w.User, memory, disk); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.rig.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	s.must(g.mkfs(s.rig.Base()))
	s.mount(s.rig.Base())
	s.must(os.Mkdir(filepath.Dir(s.recordPath()), 0o700))
	if !v.none {
		s.w.Must(t, storage.Create, first)
		s.w.Must(t, storage.Activate, first)
		s.must(s.save(s.w.Record))
		photo := make([]byte, 300_000)
		_, _ = rand.Read(photo)
		s.must(os.Mkdir(filepath.Join(s.w.Home(), "letters"), 0o755))
		for name, text := range map[string][]byte{"photo": photo, "letters/one": []byte("dear ann"), "empty": nil} {
			s.must(s.write(name, text, true))
		}
		s.w.Must(t, storage.Deactivate, "")
	}
	s.must(s.unmount())
	return s
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) mount(node string) {
	s.t.Helper()
	s.must(unix.Mount(node, s.w.Root, s.ground.below, 0, ""))
}

// unmount takes the disk away. The kernel drops a loop device's file some time
// after it has said that the device is free.
func (s *scene) unmount() error {
	for end := time.Now().Add(cutWait); ; time.Sleep(5 * time.Millisecond) {
		if err := unix.Unmount(s.w.Root, 0); !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

// write makes a file that no state may lack, or have otherwise.
func (s *scene) write(name string, text []byte, sync bool) error {
	f, err := os.Create(filepath.Join(s.w.Home(), name))
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil && sync {
		err = f.Sync()
		s.files[name] = sha256.Sum256(text)
	}
	return errors.Join(err, f.Close())
}

// recordPath is where the host's record is: on the same disk, which is the only
// one that most machines have.
func (s *scene) recordPath() string { return filepath.Join(s.w.Root, "records", s.w.User+".identity") }

// save saves the record as the daemon does.
func (s *scene) save(r *records.Record) error {
	path := s.recordPath()
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	_, err = f.Write(r.Pretty())
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return errors.Join(os.Rename(path+".new", path), storage.SyncDirectory(filepath.Dir(path)))
}

// with is the record with changes, signed, and newer.
func (s *scene) with(change func(*records.Builder)) *records.Record {
	s.t.Helper()
	b := s.w.Record.WithoutSignature().Edit().Set("lastChangeUSec", s.w.Record.LastChangeUSec()+1)
	change(b)
	r, err := b.Record()
	s.must(err)
	signed, err := s.w.Sign(r)
	s.must(err)
	return signed.Record()
}

// change asks for a changed record as the daemon does.
func (s *scene) change(verb string, r *records.Record, passwords ...string) error {
	out, err := s.w.Change(verb, r, passwords...)
	if err != nil {
		return err
	}
	return s.save(out)
}

// record lets the operation happen once, and records it.
func (s *scene) record() {
	s.t.Helper()
	rec, err := s.rig.Record(s.t.Context())
	s.must(err)
	s.mark = rec.Mark
	s.mount(rec.Node)
	if s.verb.active {
		s.w.Must(s.t, storage.Activate, first)
	}
	s.must(s.mark("begin"))
	s.must(s.verb.run(s))
	s.must(s.mark("end"))
	if s.verb.after != nil {
		s.must(s.verb.after(s))
	}
	if s.verb.active {
		s.w.Must(s.t, storage.Deactivate, "")
	}
	s.must(s.unmount())
	s.log, err = rec.End(s.t.Context())
	s.must(err)
	s.begin, s.end = s.log.Find("begin"), s.log.Find("end")
	if s.begin < 0 || s.end < s.begin {
		s.t.Fatalf("the recording has %d steps, from %d to %d", len(s.log), s.begin, s.end)
	}
}

// survives says what is wrong with the home after a power cut; "" if nothing.
func (s *scene) survives(st crashtest.State) string {
	node, done, err := s.rig.Replay(s.t.Context(), st)
	s.must(err)
	defer func() { s.must(done()) }()
	s.mount(node)
	defer func() { s.must(s.unmount()) }()

	finished := st.Cut >= s.end
	text, err := os.ReadFile(s.recordPath())
	switch {
	case err == nil:
		r, err := records.Parse(text, records.HostFile)
		if err != nil {
			return fmt.Sprintf("the host's record: %v", err)
		}
		s.w.Record = r
	case !s.verb.none || !errors.Is(err, os.ErrNotExist) || finished:
		return fmt.Sprintf("the host's record: %v", err)
	default:
		// A home that was not finished is none, or one to be found.
		s.w.Record = s.asked
		if _, err := os.Stat(s.w.View().ImagePath); errors.Is(err, os.ErrNotExist) {
			return ""
		}
	}
	return s.opens(st, finished)
}

// opens lets the user in, with whatever password is good.
func (s *scene) opens(st crashtest.State, finished bool) string {
	host := s.w.Record
	passwords := []string{s.verb.now, s.verb.before}
	changed := bytes.Contains(host.Compact(), []byte(hashes[s.verb.now]))
	if finished && !changed {
		return "the operation had succeeded, and the host's record is the former one"
	}
	if changed {
		passwords = passwords[:1]
	}
	var err error
	for _, p := range passwords {
		s.w.Log.Reset()
		if _, err = s.w.Run(storage.Activate, p); err == nil {
			break
		}
		if !fault.Is(err, fault.BadPassword) {
			return fmt.Sprintf("activation: %v", err)
		}
	}
	if err != nil {
		return "no password opens the home"
	}
	s.opened++
	if strings.Contains(s.w.Log.String(), "had torn the superblock") {
		s.mended++
	}
	why := s.intact(finished)
	if _, err := s.w.Run(storage.Deactivate, ""); err != nil {
		s.t.Fatalf("%v: deactivation: %v", st, err)
	}
	// It reads the whole header, which takes longer than all the rest.
	if s.ground.storage == "luks" && why == "" && (finished || s.opened%4 == 1) && !tidy(s.w.View().ImagePath, s.w.User) {
		why = "the header was not repaired by opening the home"
	}
	return why
}

// intact compares the open home with what must be in it.
func (s *scene) intact(finished bool) string {
	for name, want := range s.files {
		got, err := os.ReadFile(filepath.Join(s.w.Home(), name))
		if err != nil {
			return err.Error()
		}
		if sha256.Sum256(got) != want {
			return name + " has changed"
		}
	}
	identity, err := os.ReadFile(filepath.Join(s.w.Home(), ".identity"))
	if err != nil || !bytes.Equal(identity, s.w.Record.Embedded().Pretty()) {
		return fmt.Sprintf("the record in the home is not the one in force: %v", err)
	}
	if verdict, err := s.w.Host.Keys.Verify(s.w.Record); err != nil || verdict != records.SignedByUs {
		return fmt.Sprintf("the record in force is %v, %v", verdict, err)
	}
	if s.verb.name == "update" && finished && s.w.View().RealName != "Ann New" {
		return "the update is lost"
	}
	if s.verb.name == "lock" && finished {
		if got, err := os.ReadFile(filepath.Join(s.w.Home(), "late")); err != nil || string(got) != "not synced" {
			return fmt.Sprintf("what was written before locking is lost: %q, %v", got, err)
		}
	}
	if s.want != 0 && finished {
		if info, err := os.Stat(s.w.View().ImagePath); err != nil || info.Size() != s.want {
			return fmt.Sprintf("the image is not of %d bytes: %v", s.want, err)
		}
	}
	if s.verb.none {
		if got, err := os.ReadFile(filepath.Join(s.w.Home(), ".profile")); err != nil || len(got) == 0 {
			return fmt.Sprintf("the skeleton is not there: %v", err)
		}
	}
	return ""
}

// tidy: nothing is left to be repaired by a second opening.
func tidy(image, name string) bool {
	f, err := os.Open(image)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return false
	}
	const offset = mib
	h, err := luks2.Read(section{f, offset}, info.Size()-2*mib)
	dirty, derr := mounts.IsDirty(image)
	return err == nil && derr == nil && h.Damaged == luks2.Neither && !dirty && h.Label() == name
}

type section struct {
	f      *os.File
	offset int64
}

func (s section) ReadAt(b []byte, at int64) (int, error) { return s.f.ReadAt(b, s.offset+at) }

// plan lists the states to try, so many or all: every cut, then subsets.
func (s *scene) plan(want int, seed uint64) (list []crashtest.State, prefixes int) {
	rng := randv2.New(randv2.NewPCG(seed, 1))
	cuts := s.end - s.begin + 1
	for cut := s.begin; cut <= s.end; cut++ {
		// A flush and a mark leave the disk that the write before them left.
		if cut > s.begin && cut < s.end && len(s.log[cut-1].Data) == 0 {
			continue
		}
		// The last one counts most: the operation has promised something.
		if want == 0 || cut == s.end || rng.IntN(cuts) < want/2 {
			list = append(list, s.log.Prefix(cut))
		}
	}
	prefixes = len(list)
	subsets := max(want-prefixes, 2)
	if want == 0 {
		subsets = max(500-prefixes, cuts/2)
	}
	var open []int // where something may be missing
	for cut := s.begin; cut <= s.end; cut++ {
		if s.log.Stable(cut) < cut {
			open = append(open, cut)
		}
	}
	for i := range subsets {
		cut := s.end
		if i > 0 && len(open) > 0 {
			cut = open[rng.IntN(len(open))]
		}
		list = append(list, s.log.Subset(cut, 4096, seed, uint64(i)))
	}
	slices.SortStableFunc(list, func(a, b crashtest.State) int { return a.Cut - b.Cut })
	return list, prefixes
}

// number is that of an environment variable, or otherwise.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// replay tries the states and returns how many homes were lost. It prints one
// line that docs/results.md can keep.
func (s *scene) replay(label string, want int, seed uint64) (lost int) {
	s.t.Helper()
	start := time.Now()
	list, prefixes := s.plan(want, seed)
	var why []string
	for _, st := range list {
		s.must(s.rig.Settle(s.log, st.Cut))
		if w := s.survives(st); w != "" {
			lost++
			why = append(why, fmt.Sprintf("%v: %s", st, w))
		}
	}
	s.t.Logf("RESULT crash replay, %s: %d writes, %d prefixes, %d random subsets, home opened %d times, superblock mended %d times, seed %d, %v: %d homes lost",
		label, s.log[s.begin:s.end].Writes(), prefixes, len(list)-prefixes, s.opened, s.mended, seed, time.Since(start).Round(time.Second), lost)
	if len(why) > 0 {
		s.t.Logf("for example:\n%s", strings.Join(why[:min(len(why), 10)], "\n"))
	}
	return lost
}

// TestOperations cuts the power in every operation on every file system. With
// $HEARTH_TEST_LONG=1 every cut is tried, and 500 states at least, or as many by
// chance as $HEARTH_CRASH_STATES says; else a few, of which the time of
// continuous integration allows these.
func TestOperations(t *testing.T) {
	long := os.Getenv("HEARTH_TEST_LONG") == "1"
	want := 6
	if long {
		want = int(number(t, "HEARTH_CRASH_STATES", 0))
	}
	sample := map[string][]string{
		"ext4":      {"create", "passwd", "rekey", "update", "lock", "grow", "shrink"},
		"btrfs":     {"passwd", "shrink-active"},
		"directory": {"passwd"},
	}
	for _, g := range grounds {
		for _, v := range verbs {
			if !g.has(v) || !long && !slices.Contains(sample[g.name], v.name) {
				continue
			}
			t.Run(g.name+"/"+v.name, func(t *testing.T) {
				s := newScene(t, v, g, g.backend())
				s.record()
				if lost := s.replay(g.name+" "+v.name, want, number(t, "HEARTH_CRASH_SEED", uint64(time.Now().UnixNano()))); lost > 0 {
					t.Errorf("%d homes were lost", lost)
				}
			})
		}
	}
}

// TestControl: a backend that destroys the former keyslots too early loses
// homes, and this is noticed.
func TestControl(t *testing.T) {
	v := verbs[slices.IndexFunc(verbs, func(v verb) bool { return v.name == "passwd" })]
	var mark func(string) error
	s := newScene(t, v, grounds[0], hasty{mark: &mark})
	mark = func(word string) error { return s.mark(word) }
	s.record()
	cut := s.log.Find("hasty")
	if cut < s.begin || cut > s.end {
		t.Fatalf("the mark is at %d, the operation from %d to %d", cut, s.begin, s.end)
	}
	s.must(s.rig.Settle(s.log, s.begin))
	if why := s.survives(s.log.Prefix(s.begin)); why != "" {
		t.Errorf("before: %s", why)
	}
	why := s.survives(s.log.Prefix(cut))
	if why == "" {
		t.Error("the home was not lost")
	}
	t.Logf("RESULT crash replay, control: keyslots destroyed too early, cut right after that: %s", why)
}
