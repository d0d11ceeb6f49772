package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/worker"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/steps"
	"hearth/internal/testenv"
	"hearth/records"
	"hearth/storage"
	"hearth/storage/dm"
	"hearth/storage/mounts"
	"hearth/storage/storagetest"
)

const password = "correct horse"

// The test program is its own worker under the worker's name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "homework" {
		if filepath.Base(filepath.Dir(os.Args[0])) == stepped {
			if err := steps.Ask(); err != nil {
				panic(err)
			}
		}
		main()
		return
	}
	testenv.Main(m)
}

// start starts a worker on the world's record.
func start(t *testing.T, w *storagetest.World, verb, pw string) *worker.Process {
	t.Helper()
	if pw == "" {
		return startWith(t, w, verb, w.Record)
	}
	return startWith(t, w, verb, w.Record, pw)
}

// startWith starts a worker as the daemon does.
func startWith(t *testing.T, w *storagetest.World, verb string, subject *records.Record, passwords ...string) *worker.Process {
	t.Helper()
	return startIn(t, "usual", w, verb, subject, passwords...)
}

// startIn starts a worker whose program is in a folder of that name.
func startIn(t *testing.T, folder string, w *storagetest.World, verb string, subject *records.Record, passwords ...string) *worker.Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), folder)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "homework")
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	record, err := w.Sign(subject)
	if err != nil {
		t.Fatal(err)
	}
	r := worker.Request{Verb: verb, Record: record.Record().Compact(), Params: worker.Params{
		Machine: w.Host.Machine, HomeRoot: w.Root, HaveImageLock: w.Host.HaveImageLock,
		Keys: map[string]string{records.LocalKey: string(w.Signer.PublicPEM())},
	}}
	var list []*secret.Bytes
	defer func() { secret.CloseAll(list) }()
	for _, pw := range passwords {
		p, err := secret.Copy([]byte(pw))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if len(list) > 0 {
		if r.Secrets, err = records.EncodeSecrets(list); err != nil {
			t.Fatal(err)
		}
		defer r.Secrets.Close()
	}
	var s worker.Spare
	// One is as good as the other. Who follows each step has to be there first.
	if folder != stepped && started.Add(1)%2 == 0 {
		s.Prepare(program)
		pid := workerPID(t)
		for end := time.Now().Add(10 * time.Second); pid == 0 && time.Now().Before(end); pid = workerPID(t) {
			time.Sleep(time.Millisecond)
		}
		if own, theirs := namespaceOf(t, os.Getpid()), namespaceOf(t, pid); own != theirs {
			t.Errorf("the worker that waits keeps namespace %s, and what is mounted there; ours is %s", theirs, own)
		}
	}
	p, err := s.Start(context.Background(), program, r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// started is how many workers there were; every other one waits for its request.
var started atomic.Int32

func namespaceOf(t *testing.T, pid int) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// finish takes what a worker reports; at is called with each stage.
func finish(t *testing.T, w *storagetest.World, p *worker.Process, at func(stage string)) error {
	t.Helper()
	for e := range p.Events() {
		switch {
		case e.Progress != nil:
			at(e.Progress.Stage)
		case e.ImageLock != nil:
			if err := w.Host.ImageLock(e.ImageLock); err != nil {
				t.Error(err)
			}
			_ = e.ImageLock.Close()
		case e.Keep != nil:
			w.Record = output(t, e.Keep.Record)
			e.Keep.Reply(nil)
		case e.Answer.Err != nil:
			return e.Answer.Err
		case e.Answer.Record != nil:
			w.Record = output(t, e.Answer.Record)
		}
	}
	return nil
}

func output(t *testing.T, text []byte) *records.Record {
	t.Helper()
	r, err := records.Parse(text, records.WorkerOutput)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func run(t *testing.T, w *storagetest.World, verb, pw string) error {
	t.Helper()
	return finish(t, w, start(t, w, verb, pw), func(string) {})
}

func world(t *testing.T) *storagetest.World { return worldOf(t, "luks") }

// worldOf is a world with a home of the kind of storage.
func worldOf(t *testing.T, kind string) *storagetest.World {
	t.Helper()
	k := storagetest.Kind{Storage: kind, Backend: backends[kind]}
	switch kind {
	case "luks":
		testenv.Need(t, "root", "loop", "dm-crypt", "ext4", "mkfs.ext4")
		k.Image = true
		k.Remains = func(user string) []string {
			list := testenv.KeysLeft("homework-user-"+user+":", "logon     cryptsetup:")
			if dm.Exists("home-" + user) {
				list = append(list, "mapped device")
			}
			return list
		}
		k.Fields = map[string]any{
			"fileSystemType": "ext4", "diskSize": 50 << 20, "luksPbkdfType": "pbkdf2", "luksPbkdfForceIterations": 1000,
		}
	case "directory":
		testenv.Need(t, "root", "loop", "mount", "ext4", "mkfs.ext4")
		k.FileSystem = "ext4"
	case "subvolume":
		testenv.Need(t, "root", "loop", "mount", "btrfs", "mkfs.btrfs")
		k.FileSystem = "btrfs"
	}
	if k.Fields == nil {
		k.Fields = map[string]any{}
	}
	// Of few rounds: hundreds of workers check it.
	k.Fields["privileged"] = map[string]any{"hashedPassword": []string{"$5$rounds=1000$abcdefgh$ue35C0ITbth1b5zVUjrjm2mMmsmMKiodEeH2UV/Hq10"}}
	return storagetest.New(t, k)
}

func TestWorker(t *testing.T) {
	for _, kind := range []string{"luks", "directory"} {
		// Each verb by a worker that was started for it, and by one that waited.
		for _, first := range []int32{0, 1} {
			t.Run(fmt.Sprint(kind, first), func(t *testing.T) {
				w := worldOf(t, kind)
				started.Store(first)
				works(t, w)
			})
		}
	}
}

func works(t *testing.T, w *storagetest.World) {
	t.Helper()
	if err := run(t, w, storage.Create, password); err != nil {
		t.Fatal(err)
	}
	for _, pw := range []string{"battery staple", ""} {
		if err := run(t, w, storage.Activate, pw); !fault.Is(err, fault.BadPassword) {
			t.Errorf("password %q: %v (%s)", pw, err, fault.KindOf(err))
		}
	}
	if err := run(t, w, storage.Activate, password); err != nil {
		t.Fatal(err)
	}
	// The worker's namespace is gone with it; the home is here.
	if mounted, err := mounts.IsMountPoint(w.Home()); err != nil || !mounted {
		t.Errorf("home is not mounted: %v", err)
	}
	if err := run(t, w, storage.Inspect, password); err != nil {
		t.Error(err)
	}
	if err := run(t, w, "rebalance", password); !fault.Is(err, fault.NotSupported) {
		t.Errorf("a verb that is not built: %v", err)
	}
	if err := run(t, w, storage.Deactivate, ""); err != nil {
		t.Error(err)
	}
}

// TestKilled: a worker that is killed leaves nothing that keeps the next one
// from its work.
func TestKilled(t *testing.T) {
	w := world(t)
	for _, verb := range []string{storage.Create, storage.Activate} {
		for _, stage := range stages(t, w, verb) {
			t.Run(verb+" "+stage, func(t *testing.T) {
				p := start(t, w, verb, password)
				err := finish(t, w, p, func(s string) {
					if s == stage {
						kill(t)
					}
				})
				// It may have been faster than we.
				if err != nil && !fault.Is(err, fault.WorkerFailed) {
					t.Errorf("killed worker: %v", err)
				}
				// One that dies behind its last step leaves a home that is open.
				open, mountErr := mounts.IsMountPoint(w.Home())
				if mountErr != nil {
					t.Error(mountErr)
				}
				if err == nil && verb == storage.Activate || open {
					w.Must(t, storage.Deactivate, "")
				}
				settled(t, w)
				if verb == storage.Create {
					if err == nil {
						w.Must(t, storage.Remove, "")
					}
					left, _ := filepath.Glob(filepath.Join(w.Root, ".#homework*"))
					for _, f := range left {
						if err := os.Remove(f); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		if verb == storage.Create {
			w.Must(t, storage.Create, password)
		}
	}
	w.Must(t, storage.Activate, password)
}

// TestKilledResizing: a worker that is killed while it resizes leaves a home
// that closes and opens with its files, open or closed as it was.
func TestKilledResizing(t *testing.T) {
	w := world(t)
	w.Must(t, storage.Create, password)
	const letter = "dear ann"
	w.Must(t, storage.Activate, password)
	if err := os.WriteFile(filepath.Join(w.Home(), "letter"), []byte(letter), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Deactivate, "")
	resize := func(size int) *worker.Process {
		w.Record = w.With(t, map[string]any{"diskSize": size, "lastChangeUSec": w.Record.LastChangeUSec() + 1})
		return start(t, w, storage.Resize, password)
	}
	const small, large = 50 << 20, 70 << 20
	for _, c := range []struct {
		how    string
		open   bool
		to     int
		stages []string
	}{
		{"grow open", true, large, []string{"write partition table", "map", "grow file system"}},
		{"shrink closed", false, small, []string{"shrink file system", "map", "cut image"}},
	} {
		for _, stage := range c.stages {
			t.Run(c.how+", "+stage, func(t *testing.T) {
				// From the other size.
				if err := finish(t, w, resize(small+large-c.to), func(string) {}); err != nil {
					t.Fatal(err)
				}
				if c.open {
					w.Must(t, storage.Activate, password)
				}
				former := w.Record
				reached := false
				err := finish(t, w, resize(c.to), func(s string) {
					if s == stage {
						reached = true
						kill(t)
					}
				})
				if !reached || err != nil && !fault.Is(err, fault.WorkerFailed) {
					t.Errorf("reached %v, %v", reached, err)
				}
				if err != nil {
					w.Record = former
				}
				if c.open {
					w.Must(t, storage.Deactivate, "")
				}
				settled(t, w)
				w.Must(t, storage.Activate, password)
				if got, err := os.ReadFile(filepath.Join(w.Home(), "letter")); err != nil || string(got) != letter {
					t.Errorf("the letter says %q, %v", got, err)
				}
				w.Must(t, storage.Deactivate, "")
				if info, err := os.Stat(w.View().ImagePath); err != nil || info.Size() != small && info.Size() != large {
					t.Errorf("image: %+v, %v", info, err)
				}
			})
		}
	}
}

// stages are those that a verb tells of.
func stages(t *testing.T, w *storagetest.World, verb string) []string {
	t.Helper()
	var list []string
	record := w.Record
	if err := finish(t, w, start(t, w, verb, password), func(s string) { list = append(list, s) }); err != nil {
		t.Fatal(err)
	}
	if verb == storage.Create {
		w.Must(t, storage.Remove, "")
		w.Record = record
	} else {
		w.Must(t, storage.Deactivate, "")
	}
	return list
}

// kill kills the worker.
func kill(t *testing.T) {
	t.Helper()
	if pid := workerPID(t); pid != 0 {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
	}
}

// workerPID finds the worker, which is our only child of that name; 0 if there
// is none.
func workerPID(t *testing.T) int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		line, err := os.ReadFile(d + "/cmdline")
		if err != nil {
			continue
		}
		name, _, _ := strings.Cut(string(line), "\x00")
		pid, _ := strconv.Atoi(filepath.Base(d))
		// The parent is the second word behind the name.
		if f := stat(pid); filepath.Base(name) == "homework" && len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
			return pid
		}
	}
	return 0
}

// stat returns what the kernel says of a process, from its state on.
func stat(pid int) []string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	// The name in parentheses may hold anything; the rest is words.
	return strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
}

// settled waits until the kernel has taken down what the dead worker held. A
// mapped device that it died over before the table was live stays, with nothing
// to read in it: the next worker takes it away (storage/luks.TestLeftoverDevice).
func settled(t *testing.T, w *storagetest.World) {
	t.Helper()
	name := "home-" + w.User
	for range 100 {
		if !dm.Exists(name) && len(testenv.LoopsBelow(w.Root)) == 0 && len(testenv.MountsBelow(w.Root)) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	if dead(name) && len(testenv.MountsBelow(w.Root)) == 0 {
		t.Logf("%s is left, without a live table", name)
		return
	}
	t.Errorf("left: mapped device %v, loop devices %q, mounts %q", dm.Exists(name), testenv.LoopsBelow(w.Root), testenv.MountsBelow(w.Root))
}

// dead reports whether a mapped device is there that nothing can be read from.
func dead(name string) bool {
	m, err := dm.Open(name)
	if err != nil {
		return false
	}
	st, err := m.Status()
	return err == nil && st.OpenCount == 0 && !st.Live
}
