package manager_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/config"
	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/homed/worker"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/records"
	"hearth/storage/presence"
)

const machineID = "0123456789abcdef0123456789abcdef"

const password = "correct horse"

// The test program is the manager's worker too. Its storage is the plainest
// there is: an image that holds the record, mounted as an empty tmpfs.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && !strings.HasPrefix(os.Args[1], "-") {
		if err := worker.Serve(os.Args[1], operate); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if path := os.Getenv(savesTo); path != "" {
		saveAndExit(path)
	}
	// A race-enabled worker would sleep for a second before it exits.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	testenv.Main(m)
}

func operate(ctx context.Context, r worker.Request, up worker.Uplink) ([]byte, error) {
	rec, err := records.Parse(r.Record, records.WorkerInput)
	if err != nil {
		return nil, err
	}
	v := rec.View(r.Params.Machine)
	bound := func(r2 *records.Record) []byte {
		return r2.WithBinding(machineID, records.Binding{Storage: "luks", ImagePath: v.ImagePath, HomeDirectory: v.HomeDirectory,
			UID: v.UID, GID: v.GID, HasUID: true}).Compact()
	}
	embedded := func() (*records.Record, error) {
		for exists(v.ImagePath + ".slow") {
			time.Sleep(10 * time.Millisecond)
		}
		if exists(v.ImagePath + ".unvouched") {
			return nil, fault.New(fault.BadSignature, "judge record in header", nil)
		}
		text, err := os.ReadFile(v.ImagePath)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fault.New(fault.HomeAbsent, "open image", err)
		}
		if err != nil {
			return nil, err
		}
		return records.Parse(text, records.EmbeddedFile)
	}
	right := func() error {
		seen, _ := presence.Look(presence.Area{Storage: "luks", ImagePath: v.ImagePath, HomeDirectory: v.HomeDirectory})
		if r.Verb == "resize" && r.Secrets == nil && seen == presence.Active {
			return nil // the key that the kernel keeps will do
		}
		s, err := records.ParseSecrets(r.Secrets)
		if err != nil {
			return err
		}
		defer s.Close()
		want, err := secret.Copy([]byte(password))
		if err != nil {
			return err
		}
		defer want.Close()
		for _, p := range s.Passwords {
			if p.Equal(want) {
				return nil
			}
		}
		return fault.New(fault.BadPassword, "check password", nil)
	}
	switch r.Verb {
	case "create":
		v.ImagePath = filepath.Join(r.Params.HomeRoot, v.UserName+".home")
		for v.RealName == "Slow" && !exists(filepath.Join(r.Params.HomeRoot, "go")) {
			time.Sleep(time.Millisecond)
		}
		if v.RealName == "No Space" {
			return nil, fault.New(fault.NoDiskSpace, "create image", nil)
		}
		return bound(rec), os.WriteFile(v.ImagePath, rec.Embedded().Compact(), 0o600)
	case "inspect":
		if err := right(); err != nil {
			return nil, err
		}
		e, err := embedded()
		if err != nil {
			return nil, err
		}
		if text, err := os.ReadFile(v.ImagePath + ".says"); err == nil {
			if len(text) == 0 {
				return nil, nil
			}
			return text, nil
		}
		if text, err := os.ReadFile(v.ImagePath + ".uid"); err == nil {
			uid, err := strconv.ParseUint(string(text), 10, 32)
			if err != nil {
				return nil, err
			}
			v.UID, v.GID = uint32(uid), uint32(uid)
		}
		return bound(e), nil
	case "activate":
		if err := right(); err != nil {
			return nil, err
		}
		e, err := embedded()
		if err != nil {
			return nil, err
		}
		image, err := os.Open(v.ImagePath)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(image.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, fault.New(fault.HomeInUse, "lock image", err)
		}
		if err := up.ImageLock(image); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(v.HomeDirectory, 0o700); err != nil {
			return nil, err
		}
		if v.RealName == "Not Shown" {
			return bound(e), nil
		}
		return bound(e), unix.Mount("tmpfs", v.HomeDirectory, "tmpfs", 0, "")
	case "passwd", "update", "resize":
		if err := right(); err != nil {
			return nil, err
		}
		if _, err := embedded(); err != nil {
			return nil, err
		}
		if err := os.WriteFile(v.ImagePath, rec.Embedded().Compact(), 0o600); err != nil {
			return nil, err
		}
		if r.Verb == "passwd" {
			if len(r.Params.Keys[records.LocalKey]) == 0 {
				return nil, errors.New("no keys to judge by")
			}
			if err := up.Keep(bound(rec)); err != nil {
				return nil, err
			}
			// What the daemon kept must be on the disk by now.
			kept, err := os.ReadFile(filepath.Join(r.Params.HomeRoot, "../records", v.UserName+".identity"))
			if err != nil {
				return nil, err
			}
			saved, err := records.Parse(kept, records.HostFile)
			if err != nil {
				return nil, err
			}
			if !saved.SameContent(rec) {
				return nil, errors.New("the daemon saved another record")
			}
		}
		if exists(v.ImagePath + ".liar") {
			return bound(rec.WithoutSignature()), nil
		}
		return bound(rec), nil
	case "lock", "unlock":
		if v.RealName == "Cannot Lock" {
			return nil, fault.New(fault.NotSupported, r.Verb, nil)
		}
		if r.Verb == "unlock" {
			if err := right(); err != nil {
				return nil, err
			}
			return nil, os.Remove(suspendedMark(v))
		}
		if exists(v.ImagePath + ".stuck") {
			return nil, fault.New(fault.IOError, "lock", nil)
		}
		if err := os.WriteFile(suspendedMark(v), nil, 0o600); err != nil {
			return nil, err
		}
		if exists(v.ImagePath + ".kill") {
			os.Exit(1)
		}
		return nil, nil
	case "deactivate", "deactivate-force":
		flags := 0
		if r.Verb == "deactivate-force" {
			flags = unix.MNT_DETACH
		}
		err := unix.Unmount(v.HomeDirectory, flags)
		if errors.Is(err, unix.EBUSY) {
			return nil, fault.New(fault.HomeBusy, "unmount", err)
		}
		return nil, err
	case "remove":
		return nil, os.Remove(v.ImagePath)
	}
	return nil, fault.New(fault.NotSupported, r.Verb, nil)
}

// suspendedMark is a file that is there while a home is locked.
func suspendedMark(v records.View) string { return v.ImagePath + ".suspended" }

// sessions is a service manager that writes down what it is asked for.
type sessions struct {
	mu    sync.Mutex
	calls []string
	wrong error
}

func (s *sessions) note(what string, uid uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid == 0 {
		what += " of nobody"
	}
	s.calls = append(s.calls, what)
	return s.wrong
}

func (s *sessions) Freeze(_ context.Context, uid uint32) error { return s.note("freeze", uid) }
func (s *sessions) Thaw(_ context.Context, uid uint32) error   { return s.note("thaw", uid) }

// since returns what was asked for since the last time.
func (s *sessions) since() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := strings.Join(s.calls, ", ")
	s.calls = nil
	return text
}

type noAccounts map[string]bool

func (a noAccounts) User(_ context.Context, key string) (string, error) {
	if a[key] {
		return key, nil
	}
	return "", nil
}
func (a noAccounts) Group(context.Context, string) (string, error) { return "", nil }
func (a noAccounts) Free(_ context.Context, keys []string) bool {
	return !slices.ContainsFunc(keys, func(k string) bool { return a[k] })
}

// daemon is a manager on a directory of its own, which outlives it.
type daemon struct {
	*manager.Manager
	t       *testing.T
	dir     string
	stop    func()
	logged  *lockedBuffer
	freezer *sessions

	mu      sync.Mutex
	changes []string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func boot(t *testing.T, dir string) *daemon {
	t.Helper()
	return bootAs(t, dir, machineID)
}

func bootAs(t *testing.T, dir, machine string) *daemon {
	t.Helper()
	return bootWith(t, dir, machine, nil)
}

func bootWith(t *testing.T, dir, machine string, devices manager.Devices, change ...func(*manager.Options)) *daemon {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"home", "run"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := &daemon{t: t, dir: dir, logged: &lockedBuffer{}, freezer: &sessions{}}
	o := manager.Options{
		Layout: config.Layout{
			RecordDir: dir + "/records", KeyDirs: []string{dir + "/etc", dir + "/records"}, NewKeyDir: dir + "/records",
			BlobDir: dir + "/blobs", RunDir: dir + "/run", HomeRoot: dir + "/home", Worker: self, FallbackShell: "/usr/lib/hearth/homeshell",
			PasswordRules: dir + "/pwquality.conf",
			DeviceLinks:   dir + "/links",
		},
		Devices:      devices,
		Machine:      records.Machine{ID: machine, Hostname: "host"},
		Log:          slog.New(slog.NewTextHandler(io.MultiWriter(d.logged, t.Output()), nil)),
		Accounts:     noAccounts{"daemon": true},
		Freezer:      d.freezer,
		Suspended:    func(user string) (bool, error) { return exists(dir + "/home/" + user + ".home.suspended"), nil },
		SharedMounts: true,
		RetryAfter:   200 * time.Millisecond, Grace: 100 * time.Millisecond,
	}
	for _, f := range change {
		f(&o)
	}
	m, err := manager.New(o)
	if err != nil {
		t.Fatal(err)
	}
	d.Manager = m
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	var once sync.Once
	d.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(d.stop)
	m.Subscribe(func(c manager.Change) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.changes = append(d.changes, fmt.Sprintf("%s %s", [...]string{"added", "changed", "removed"}[c.Kind], c.Info.Name))
	})
	select {
	case <-m.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("not ready after 10 s")
	}
	return d
}

func (d *daemon) seen() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.changes, ", ")
}

func newRecord(t *testing.T, name string, more ...string) *records.Record {
	t.Helper()
	b := records.NewBuilder(name).Set("disposition", "regular")
	for i := 0; i+1 < len(more); i += 2 {
		b = b.Set(more[i], more[i+1])
	}
	r, err := b.Record()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (d *daemon) secrets(text string) *secret.Bytes {
	d.t.Helper()
	s, err := secret.Copy([]byte(fmt.Sprintf(`{"password":[%q]}`, text)))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(s.Close)
	return s
}

func (d *daemon) do(verb home.Verb, name string, with ...string) (manager.Result, error) {
	d.t.Helper()
	op := manager.Operation{Verb: verb, Key: manager.Key{Name: name}}
	if len(with) > 0 {
		op.Secrets = d.secrets(with[0])
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), 20*time.Second)
	defer cancel()
	return d.Do(ctx, op)
}

func (d *daemon) must(verb home.Verb, name string, with ...string) manager.Result {
	d.t.Helper()
	r, err := d.do(verb, name, with...)
	if err != nil {
		d.t.Fatalf("%s %s: %v", verb, name, err)
	}
	return r
}

func (d *daemon) fails(want fault.Kind, verb home.Verb, name string, with ...string) {
	d.t.Helper()
	r, err := d.do(verb, name, with...)
	if r.Reference != nil {
		d.t.Errorf("%s %s failed with a reference", verb, name)
	}
	if !fault.Is(err, want) {
		d.t.Fatalf("%s %s: %v, want %s", verb, name, err, want)
	}
}

func (d *daemon) create(r *records.Record) error {
	d.t.Helper()
	_, err := d.Do(d.t.Context(), manager.Operation{Verb: home.Create, Record: r, Secrets: d.secrets(password)})
	return err
}

// createHashed makes a home whose record has the hash of a password in it, which
// a stranger is not to see.
func (d *daemon) createHashed(name string) {
	d.t.Helper()
	r, err := newRecord(d.t, name).Edit().SetPrivileged("hashedPassword", []string{"$y$old"}).Record()
	if err == nil {
		err = d.create(r)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// savedView is what a home's record on the disk says, which has no sizes of the
// moment.
func (d *daemon) savedView(name string) records.View {
	d.t.Helper()
	text, err := os.ReadFile(d.file("records", name+".identity"))
	if err != nil {
		d.t.Fatal(err)
	}
	r, err := records.Parse(text, records.HostFile)
	if err != nil {
		d.t.Fatal(err)
	}
	return r.View(records.Machine{ID: machineID})
}

func (d *daemon) state(name, want string) {
	d.t.Helper()
	i, err := d.Lookup(d.t.Context(), manager.Key{Name: name})
	if want == "" {
		if !fault.Is(err, fault.NoSuchHome) {
			d.t.Fatalf("%s: %+v, %v, want NoSuchHome", name, i, err)
		}
		return
	}
	if err != nil || i.State != want {
		d.t.Fatalf("%s is %q (%v), want %q", name, i.State, err, want)
	}
}

// eventually waits for what happens without being asked for.
func (d *daemon) eventually(name, want string) {
	d.t.Helper()
	last := ""
	for range 200 {
		i, err := d.Lookup(d.t.Context(), manager.Key{Name: name})
		if last = i.State; err == nil && last == want || want == "" && fault.Is(err, fault.NoSuchHome) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	d.t.Fatalf("%s stays %q, want %q", name, last, want)
}

func (d *daemon) file(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

func TestCreateRestartRemove(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := d.create(newRecord(t, "ann", "realName", "Ann Example")); err != nil {
		t.Fatal(err)
	}
	d.state("ann", "inactive")
	text, err := os.ReadFile(d.file("records", "ann.identity"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secretWord := range []string{password, `"secret"`} {
		if strings.Contains(string(text), secretWord) || strings.Contains(d.logged.String(), secretWord) {
			t.Errorf("%q is on disk or in the log", secretWord)
		}
	}
	for path, mode := range map[string]os.FileMode{"ann.identity": 0o600, "local.private": 0o400, "local.public": 0o444} {
		if info, err := os.Stat(d.file("records", path)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, mode)
		}
	}
	before, err := d.Lookup(t.Context(), manager.Key{Name: "ann"})
	if err != nil || before.RealName != "Ann Example" || before.Signed == nil || !*before.Signed || before.UID != before.GID ||
		!records.HomeUID(before.UID) || before.HomeDirectory != d.file("home", "ann") {
		t.Errorf("got %+v, %v", before, err)
	}
	if !strings.Contains(string(before.Record().Compact()), `"state":"inactive"`) {
		t.Errorf("no status: %s", before.Record().Compact())
	}
	if got := d.seen(); got != "added ann, changed ann" {
		t.Errorf("told: %s", got)
	}

	d.stop()
	d = boot(t, d.dir)
	after, err := d.Lookup(t.Context(), manager.Key{UID: before.UID, ByUID: true})
	// The free space of the disk below is in the status, belongs to everybody, and
	// is looked at with each call.
	was := before.Record()
	if err != nil || after.Name != "ann" || !bytes.Equal(after.Record().WithStatusOf(was).Pretty(), was.Pretty()) {
		t.Errorf("after restart: %v\n%s\n%s", err, after.Record().Pretty(), was.Pretty())
	}
	d.must(home.Remove, "ann")
	d.state("ann", "")
	for _, p := range []string{"records/ann.identity", "home/ann.home", "blobs/ann"} {
		if exists(d.file(p)) {
			t.Errorf("%s stayed", p)
		}
	}
}

func TestRefusedRecords(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	info, err := d.Lookup(t.Context(), manager.Key{Name: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	uid := func(name string, uid uint32) *records.Record {
		r, err := records.NewBuilder(name).Set("uid", uint64(uid)).Set("gid", uint64(uid)).Record()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	foreign := signed(t, newRecord(t, "eve"))
	for name, c := range map[string]struct {
		r    *records.Record
		want fault.Kind
	}{
		"name of a home":     {newRecord(t, "ann"), fault.UserNameExists},
		"name of an account": {newRecord(t, "daemon"), fault.UserNameExists},
		"bad name":           {newRecord(t, "_bob"), fault.InvalidArgs},
		"kind":               {newRecord(t, "bob", "disposition", "system"), fault.InvalidArgs},
		"uid of a home":      {uid("bob", info.UID), fault.UIDInUse},
		"uid of the system":  {uid("bob", 61300), fault.BadAddress},
		"unknown signer":     {foreign, fault.BadSignature},
		"no space":           {newRecord(t, "bob", "realName", "No Space"), fault.NoDiskSpace},
	} {
		t.Run(name, func(t *testing.T) {
			if err := d.create(c.r); !fault.Is(err, c.want) {
				t.Errorf("create: %v, want %s", err, c.want)
			}
		})
	}
	if _, err := d.Do(t.Context(), manager.Operation{Verb: home.Create, Record: newRecord(t, "bob")}); !fault.Is(err, fault.KeyUnavailable) {
		t.Errorf("create without secret section: %v", err)
	}
	d.state("bob", "")
	if exists(d.file("records", "bob.identity")) || exists(d.file("blobs", "bob")) {
		t.Error("a failed create left something behind")
	}
	if got := d.seen(); strings.Contains(got, "eve") {
		t.Errorf("told: %s", got)
	}
	d.fails(fault.NoSuchHome, home.Activate, "nobody")
}

// signed signs with a key that nobody here knows.
func signed(t *testing.T, r *records.Record) *records.Record {
	t.Helper()
	private, _, err := records.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := records.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	v, err := s.Sign(r)
	if err != nil {
		t.Fatal(err)
	}
	return v.Record()
}

func TestRegisterUnregister(t *testing.T) {
	d := boot(t, t.TempDir())
	r, err := d.Do(t.Context(), manager.Operation{Verb: home.Register, Record: newRecord(t, "ann")})
	if err != nil || r.Info.Name != "ann" {
		t.Fatalf("register: %+v, %v", r, err)
	}
	if !exists(d.file("records", "ann.identity")) {
		t.Error("nothing was saved")
	}
	d.must(home.Unregister, "ann")
	d.state("ann", "")
	if exists(d.file("records", "ann.identity")) {
		t.Error("the record stayed")
	}
}

func TestRateLimitAndCounters(t *testing.T) {
	d := boot(t, t.TempDir())
	b := records.NewBuilder("ann").Set("rateLimitBurst", uint64(3))
	r, err := b.Record()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.create(r); err != nil {
		t.Fatal(err)
	}
	d.fails(fault.BadPassword, home.Authenticate, "ann", "wrong")
	d.must(home.Authenticate, "ann", password)
	d.fails(fault.BadPassword, home.Activate, "ann", "wrong")
	d.fails(fault.AuthenticationLimit, home.Acquire, "ann", password)
	d.state("ann", "inactive")
	d.stop()
	d = boot(t, d.dir)
	d.fails(fault.AuthenticationLimit, home.Authenticate, "ann", password)
	i, err := d.Lookup(t.Context(), manager.Key{Name: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	if c := i.Record().Counters(machineID); c.Good != 1 || c.Bad != 2 || c.RateCount != 3 || c.LastBadUSec == 0 {
		t.Errorf("counters %+v", c)
	}
}

func TestLoadIgnoresWhatIsNotInOrder(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	d.stop()
	write := func(name, text string) {
		if err := os.WriteFile(d.file("records", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(d.file("records", "ann.identity"))
	if err != nil {
		t.Fatal(err)
	}
	write("empty.identity", "")
	write("braces.identity", " {}\n")
	write("bob.identity", string(good)) // names ann
	write("carl.identity", `{"userName":"carl","uid":60100}`)
	write("dora.identity", strings.ReplaceAll(string(good), "ann", "dora")) // signature broken
	write("evil.identity", "not JSON")
	d = boot(t, d.dir)
	list, err := d.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "ann" {
		t.Errorf("got %+v, %v", list, err)
	}
	for name, stays := range map[string]bool{"empty": false, "braces": false, "bob": true, "carl": true, "dora": true, "evil": true} {
		if exists(d.file("records", name+".identity")) != stays {
			t.Errorf("%s.identity: stays %v", name, !stays)
		}
	}
	keys, err := d.SigningKeys(t.Context())
	if err != nil || len(keys) != 1 || keys[0].Name != "local.public" || !strings.HasPrefix(keys[0].PEM, "-----BEGIN PUBLIC KEY-----") {
		t.Errorf("keys %+v, %v", keys, err)
	}
}

func TestFoundHomesComeAndGo(t *testing.T) {
	d := boot(t, t.TempDir())
	image := d.file("home", "fred@example.org.home")
	if err := os.WriteFile(image, signed(t, newRecord(t, "fred", "realm", "example.org")).Compact(), 0o600); err != nil {
		t.Fatal(err)
	}
	d.eventually("fred", "unfixated")
	d.state("fred@example.org", "unfixated")
	for _, n := range []string{"_x.home", "daemon.home", "plain"} {
		if err := os.WriteFile(d.file("home", n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.fails(fault.BadPassword, home.Fixate, "fred", "wrong")
	d.fails(fault.BadSignature, home.Fixate, "fred", password)
	d.must(home.Authenticate, "fred", password)
	d.state("fred", "unfixated")
	if exists(d.file("records", "fred.identity")) {
		t.Error("a record that is not accepted was saved")
	}
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	d.eventually("fred", "")
	list, err := d.List(t.Context())
	if err != nil || len(list) != 0 {
		t.Errorf("got %+v, %v", list, err)
	}
	if got := d.seen(); got != "added fred, removed fred" {
		t.Errorf("told: %s", got)
	}
}

func TestFixate(t *testing.T) {
	d := boot(t, t.TempDir())
	if err := d.create(newRecord(t, "ann", "realName", "Ann")); err != nil {
		t.Fatal(err)
	}
	d.must(home.Unregister, "ann")
	d.eventually("ann", "unfixated")
	d.must(home.Fixate, "ann", password)
	d.state("ann", "inactive")
	if i, err := d.Lookup(t.Context(), manager.Key{Name: "ann"}); err != nil || i.RealName != "Ann" || !exists(d.file("records", "ann.identity")) {
		t.Errorf("got %+v, %v", i, err)
	}
	d.fails(fault.HomeAlreadyFixated, home.Fixate, "ann", password)
	if b, _ := d.record("ann").Binding(machineID); b.BlobDirectory != d.file("blobs", "ann") {
		t.Errorf("its blobs are in %q", b.BlobDirectory)
	}
}

func TestLoginLogout(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	d.fails(fault.BadPassword, home.Acquire, "ann", "wrong")
	d.state("ann", "inactive")
	ref := d.must(home.Acquire, "ann", password).Reference
	d.state("ann", "active")
	if flags, err := unix.FcntlInt(ref.Fd(), unix.F_GETFL, 0); err != nil || flags&(unix.O_NONBLOCK|unix.O_ACCMODE) != unix.O_NONBLOCK|unix.O_WRONLY {
		t.Errorf("reference has flags %#x, %v", flags, err)
	}
	if err := unix.Unmount(d.file("home", "ann"), 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the home is not pinned: %v", err)
	}
	if lockable(t, d.file("home", "ann.home")) {
		t.Error("the image is not locked")
	}
	second := d.must(home.Acquire, "ann", password).Reference
	_ = ref.Close()
	d.fails(fault.HomeBusy, home.Release, "ann")
	_ = second.Close()
	d.must(home.Release, "ann")
	d.state("ann", "inactive")
	if !lockable(t, d.file("home", "ann.home")) {
		t.Error("the image stays locked")
	}

	// Without a release the last close is enough, with a little patience.
	ref = d.must(home.Acquire, "ann", password).Reference
	_ = ref.Close()
	d.eventually("ann", "inactive")

	// A caller that left does not keep the home.
	ctx, cancel := context.WithCancel(t.Context())
	go func() { time.Sleep(5 * time.Millisecond); cancel() }()
	r, err := d.Do(ctx, manager.Operation{Verb: home.Acquire, Key: manager.Key{Name: "ann"}, Secrets: d.secrets(password)})
	if err == nil {
		_ = r.Reference.Close()
	}
	d.eventually("ann", "inactive")
}

func lockable(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

func TestAFailedAcquireIsNoReference(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	d.must(home.Activate, "ann", password)
	d.fails(fault.BadPassword, home.Acquire, "ann", "wrong")
	time.Sleep(300 * time.Millisecond)
	d.state("ann", "active")
	if exists(d.file("run", "ann.dont-suspend")) {
		t.Error("a reference that was not given left a FIFO behind")
	}
	d.must(home.Deactivate, "ann")
	// What a removed home leaves is not the next home's of that name.
	early := d.must(home.RefUnrestricted, "ann").Reference
	defer early.Close()
	d.must(home.Remove, "ann")
	if left, err := os.ReadDir(d.file("run")); err != nil || len(left) > 0 {
		t.Errorf("of its references %v are left, %v", left, err)
	}
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	d.fails(fault.HomeNotReferenced, home.ActivateIfReferenced, "ann", password)
}

func TestBusyHomeLingers(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	d.must(home.Activate, "ann", password)
	f, err := os.Create(d.file("home", "ann", "open"))
	if err != nil {
		t.Fatal(err)
	}
	d.fails(fault.HomeBusy, home.Deactivate, "ann")
	d.state("ann", "lingering")
	d.must(home.Activate, "ann", password) // keeps it
	d.state("ann", "active")
	d.fails(fault.HomeBusy, home.Deactivate, "ann")
	_ = f.Close()
	d.eventually("ann", "inactive")
}

// TestHomeThatDoesNotShow: below a private mount the worker's own goes with it.
func TestHomeThatDoesNotShow(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	if err := d.create(newRecord(t, "ann", "realName", "Not Shown")); err != nil {
		t.Fatal(err)
	}
	d.fails(fault.IOError, home.Activate, "ann", password)
	d.state("ann", "inactive")
	if !d.lockable("ann") {
		t.Error("the image is still locked")
	}
}

// lockable reports whether another could use the image of a home now.
func (d *daemon) lockable(name string) bool {
	d.t.Helper()
	f, err := os.Open(filepath.Join(d.dir, "home", name+".home"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

func TestRestartWhileActive(t *testing.T) {
	testenv.Need(t, "root")
	dir := testenv.Scratch(t)
	d := boot(t, dir)
	for _, n := range []string{"ann", "bob", "carl", "dora", "emil"} {
		if err := d.create(newRecord(t, n)); err != nil {
			t.Fatal(err)
		}
	}
	d.must(home.Activate, "ann", password)
	// Closed by hand before the grace of its reference was over, and opened
	// by hand.
	_ = d.must(home.Acquire, "dora", password).Reference.Close()
	d.must(home.Deactivate, "dora")
	d.must(home.Activate, "dora", password)
	early := d.must(home.RefUnrestricted, "emil").Reference
	defer early.Close()
	held := d.must(home.Acquire, "bob", password).Reference
	left := d.must(home.Acquire, "carl", password).Reference
	d.stop()
	_ = left.Close()
	d = boot(t, dir)
	d.state("ann", "active") // by hand: stays
	d.state("dora", "active")
	d.state("emil", "inactive")
	d.must(home.ActivateIfReferenced, "emil", password)
	d.state("bob", "active") // somebody still holds it
	if d.lockable("ann") {
		t.Error("after a restart nobody has the lock of an active home's image")
	}
	d.eventually("carl", "inactive")
	d.fails(fault.HomeBusy, home.Release, "bob")
	_ = held.Close()
	d.must(home.Release, "bob")
	d.state("bob", "inactive")
	d.must(home.DeactivateAll, "")
	d.state("ann", "inactive")
	if !d.lockable("ann") {
		t.Error("the lock of a closed home's image is kept")
	}
}

func TestFirstActivationOfAFoundHome(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	d.must(home.Unregister, "ann")
	d.eventually("ann", "unfixated")
	d.must(home.Activate, "ann", password)
	d.state("ann", "active")
	if !exists(d.file("records", "ann.identity")) {
		t.Error("the record was not taken over")
	}
	d.must(home.Deactivate, "ann")
}

func TestActivationWithARecordNobodySignedIsUndone(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.file("home", "ann.home"), newRecord(t, "ann").Compact(), 0o600); err != nil {
		t.Fatal(err)
	}
	d.fails(fault.BadSignature, home.Activate, "ann", password)
	d.state("ann", "inactive")
}

func TestStorageThatVanishesIsDetached(t *testing.T) {
	testenv.Need(t, "root")
	d := boot(t, testenv.Scratch(t))
	if err := d.create(newRecord(t, "ann")); err != nil {
		t.Fatal(err)
	}
	d.must(home.Activate, "ann", password)
	if err := os.Remove(d.file("home", "ann.home")); err != nil {
		t.Fatal(err)
	}
	d.eventually("ann", "absent")
	d.fails(fault.HomeAbsent, home.Activate, "ann", password)
	d.must(home.Remove, "ann")
	d.state("ann", "")
}

// TestRecordsOfTheRealDaemon starts on the state that systemd-homed 262 left.
func TestRecordsOfTheRealDaemon(t *testing.T) {
	const fixtures = "../../fixtures/systemd-262-images"
	dir := t.TempDir()
	install := func(from, to string, mode os.FileMode) []byte {
		text, err := os.ReadFile(filepath.Join(fixtures, from))
		if err != nil {
			t.Fatal(err)
		}
		if to != "" {
			if err := os.WriteFile(filepath.Join(dir, "records", to), text, mode); err != nil {
				t.Fatal(err)
			}
		}
		return text
	}
	if err := os.Mkdir(filepath.Join(dir, "records"), 0o755); err != nil {
		t.Fatal(err)
	}
	machine := strings.TrimSpace(string(install("machine-id", "", 0)))
	install("local.private", "local.private", 0o400)
	want := map[string]bool{}
	for _, set := range []string{"ext4-pbkdf2-fresh", "ext4-pbkdf2-recovery", "ext4-cbc-essiv", "btrfs-pbkdf2-used"} {
		r, err := records.Parse(install(set+"/host.identity", "", 0), records.HostFile)
		if err != nil {
			t.Fatal(err)
		}
		install(set+"/host.identity", r.UserName()+".identity", 0o600)
		want[r.UserName()] = true
	}
	d := bootAs(t, dir, machine)
	list, err := d.List(t.Context())
	if err != nil || len(list) != len(want) {
		t.Fatalf("%d homes, %v, want %d", len(list), err, len(want))
	}
	for _, i := range list {
		if !want[i.Name] || i.Signed == nil || !*i.Signed || i.State != "absent" || i.UID == 0 {
			t.Errorf("got %+v", i)
		}
	}
}
