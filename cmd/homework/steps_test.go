package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/testenv"
	"hearth/storage"
	"hearth/storage/mounts"
	"hearth/storage/storagetest"
)

// steps are the system calls by which a worker changes something that outlives
// it, or takes what the kernel has to take back from it.
var steps = map[int]string{
	unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_OPEN_TREE: "open_tree",
	unix.SYS_MOUNT_SETATTR: "mount_setattr", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_UNLINKAT: "unlinkat",
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat",
	unix.SYS_FSYNC: "fsync", unix.SYS_SYNCFS: "syncfs", unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FALLOCATE: "fallocate",
	unix.SYS_FSETXATTR: "fsetxattr", unix.SYS_FREMOVEXATTR: "fremovexattr", unix.SYS_FCHOWNAT: "fchownat", unix.SYS_FCHOWN: "fchown",
	unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_IOCTL: "ioctl", unix.SYS_FLOCK: "flock",
	unix.SYS_KEYCTL: "keyctl", unix.SYS_ADD_KEY: "add_key", unix.SYS_PWRITE64: "pwrite", unix.SYS_SENDMSG: "sendmsg",
	unix.SYS_COPY_FILE_RANGE: "copy_file_range",
}

const (
	// stepped is the folder from which a worker is started that asks before
	// each step, and notices the descriptor over which it does.
	stepped = "stepped"
	notices = 100
)

// askBeforeSteps has the kernel stop each thread of this process before a step
// until whoever holds the other end lets it go on (seccomp_unotify(2)).
func askBeforeSteps() error {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	program := []unix.SockFilter{stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0)} // the call's number
	for nr := range steps {
		program = append(program,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(nr)},
			stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_USER_NOTIF))
	}
	program = append(program, stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW))
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// Go interrupts its own threads, which would make a step out of each interruption.
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC |
		unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return unix.Dup3(int(fd), notices, unix.O_CLOEXEC)
}

// notice is struct seccomp_notif, reply struct seccomp_notif_resp.
type notice struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type reply struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// A walk follows a worker from step to step.
type walk struct {
	last int    // kill the worker before this one, counted from 1; 0 never
	n    int    // how many it was about to do
	name string // of the last one
	done chan error
}

// follow takes the worker's notices until it, and what it has started, is gone.
func follow(pid, last int) (*walk, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open worker: %w", err)
	}
	defer func() { _ = unix.Close(process) }()
	fd := -1
	for end := time.Now().Add(10 * time.Second); fd < 0; time.Sleep(time.Millisecond) {
		if fd, err = unix.PidfdGetfd(process, notices, 0); err != nil && time.Now().After(end) {
			return nil, fmt.Errorf("take descriptor of notices: %w", err)
		}
	}
	w := &walk{last: last, done: make(chan error, 1)}
	go func() {
		defer func() { _ = unix.Close(fd) }()
		w.done <- w.take(fd, process, pid)
	}()
	return w, nil
}

func (w *walk) take(fd, process, pid int) error {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return err
		}
		if p[0].Revents&unix.POLLIN == 0 {
			return nil // nobody is left
		}
		var n notice
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			if errno == unix.ENOENT || errno == unix.EINTR {
				continue // killed meanwhile
			}
			return fmt.Errorf("take notice: %w", errno)
		}
		// What it has started takes its own steps, mkfs for one.
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", pid, n.pid)); err == nil {
			w.n++
			w.name = steps[int(n.nr)]
			if w.n == w.last {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					return fmt.Errorf("kill worker: %w", err)
				}
				continue
			}
		}
		r := reply{id: n.id, flags: 1} // SECCOMP_USER_NOTIF_FLAG_CONTINUE
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r))); errno != 0 && errno != unix.ENOENT {
			return fmt.Errorf("answer notice: %w", errno)
		}
	}
}

// walkTo lets a worker do what is ordered up to the step, and kills it there. It
// returns how many steps it came to, and the last one's name.
func walkTo(t *testing.T, w *storagetest.World, o order, last int) (n int, name string, err error) {
	t.Helper()
	p := startIn(t, stepped, w, o.verb, o.record, o.passwords...)
	pid := workerPID(t)
	if pid == 0 {
		t.Fatal("the worker is not there")
	}
	walk, err := follow(pid, last)
	if err != nil {
		t.Fatal(err)
	}
	err = finish(t, w, p, func(string) {})
	if werr := <-walk.done; werr != nil {
		t.Fatal(werr)
	}
	return walk.n, walk.name, err
}

// A path is a verb whose worker is killed at every step.
type path struct {
	verb string
	// from is what the home is before: none, closed, open, locked.
	from string
	how  string // tells two of one verb apart
	// order is what to do; nil: the verb with the host's record and password.
	order func() order
	only  string // the kind of storage that has it
}

// killing is a home whose workers are killed.
type killing struct {
	*testing.T
	w     *storagetest.World
	good  string // the password
	other string // what may be good by now, or ""
	clock uint64
}

func (k *killing) with(fields map[string]any) order {
	k.clock++
	fields["lastChangeUSec"] = k.clock
	return order{record: k.w.With(k.T, fields), passwords: []string{k.good}}
}

const tenure = "dear ann"

// prepare brings the home to where the verb begins.
func (k *killing) prepare(from string) {
	k.Helper()
	switch from {
	case "none":
		k.w.Must(k.T, storage.Remove, "")
	case "open", "locked":
		k.w.Must(k.T, storage.Activate, k.good)
		if from == "locked" {
			k.w.Must(k.T, storage.Lock, "")
		}
	}
}

// whole: whatever was left, the next worker closes the home, opens it by one of
// the two passwords, finds the files, and leaves nothing.
func (k *killing) whole(p path) {
	k.Helper()
	w := k.w
	if mounted, err := mounts.IsMountPoint(w.Home()); err != nil {
		k.Fatal(err)
	} else if mounted {
		if p.verb == storage.Lock || p.verb == storage.Unlock {
			// Locked or not, or half: both can be had.
			w.Must(k.T, storage.Lock, "")
			w.Must(k.T, storage.Unlock, k.good)
		}
		w.Must(k.T, storage.Deactivate, "")
	}
	settled(k.T, w)
	made := true
	if p.verb == storage.Create || p.verb == storage.Remove {
		if _, err := w.Run(storage.Remove, ""); err != nil {
			k.Errorf("remove what is left: %v", err)
		}
		// The service sweeps these, once nobody has them locked.
		left, _ := filepath.Glob(filepath.Join(w.Root, ".#homework*"))
		for _, f := range left {
			if err := exec.Command("rm", "-rf", f).Run(); err != nil {
				k.Error(err)
			}
		}
		w.Must(k.T, storage.Create, k.good)
		made = false
	}
	var err error
	for _, pw := range []string{k.other, k.good} {
		if pw == "" {
			continue
		}
		if _, err = w.Run(storage.Activate, pw); err == nil {
			k.good = pw
			break
		}
	}
	k.other = ""
	if err != nil {
		k.Fatalf("no password opens the home: %v", err)
	}
	letter := filepath.Join(w.Home(), "letter")
	if text, err := os.ReadFile(letter); made && (err != nil || string(text) != tenure) {
		k.Errorf("letter: %q, %v", text, err)
	}
	if err := os.WriteFile(letter, []byte(tenure), 0o600); err != nil {
		k.Error(err)
	}
	w.Must(k.T, storage.Deactivate, "")
	w.Idle(k.T)
	if entries, err := os.ReadDir(w.Root); err != nil || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name()[0] == '.' }) {
		k.Errorf("in the home root: %v, %v", entries, err)
	}
}

// paths are all that a worker does.
func (k *killing) paths() []path {
	change := func(verb string, fields func() map[string]any) func() order {
		return func() order {
			o := k.with(fields())
			o.verb = verb
			return o
		}
	}
	update := change(storage.Update, func() map[string]any { return map[string]any{"realName": fmt.Sprint("Ann ", k.clock)} })
	passwd := func() order {
		next := words[0]
		if next.password == k.good {
			next = words[1]
		}
		o := k.with(map[string]any{"privileged": map[string]any{"hashedPassword": []string{next.hash}}})
		o.verb, o.passwords, k.other = storage.Passwd, []string{next.password, k.good}, next.password
		return o
	}
	resize := func(size int) func() order {
		return change(storage.Resize, func() map[string]any { return map[string]any{"diskSize": size} })
	}
	const small, large = 50 << 20, 70 << 20
	return []path{
		{verb: storage.Create, from: "none"},
		{verb: storage.Activate, from: "closed"},
		{verb: storage.Inspect, from: "closed"},
		{verb: storage.Inspect, from: "open"},
		{verb: storage.Update, from: "closed", order: update},
		{verb: storage.Update, from: "open", order: update},
		{verb: storage.Passwd, from: "closed", order: passwd},
		{verb: storage.Passwd, from: "open", order: passwd},
		{verb: storage.Resize, how: "grow", from: "closed", order: resize(large), only: "luks"},
		{verb: storage.Resize, how: "shrink", from: "closed", order: resize(small), only: "luks"},
		{verb: storage.Resize, how: "grow", from: "open", order: resize(large), only: "luks"},
		{verb: storage.Lock, from: "open", only: "luks"},
		{verb: storage.Unlock, from: "locked", only: "luks"},
		{verb: storage.Deactivate, from: "open"},
		{verb: storage.DeactivateForce, from: "open"},
		{verb: storage.Remove, from: "closed"},
	}
}

func (p path) String() string {
	if p.how != "" {
		return p.verb + " " + p.how + ", " + p.from
	}
	return p.verb + ", " + p.from
}

func (k *killing) order(p path) order {
	if p.order != nil {
		return p.order()
	}
	o := order{verb: p.verb, record: k.w.Record, passwords: []string{k.good}}
	if p.verb == storage.Deactivate || p.verb == storage.DeactivateForce || p.verb == storage.Lock || p.verb == storage.Remove {
		o.passwords = nil
	}
	return o
}

// TestKilledAtEveryStep: whatever a worker was about to do when it was killed,
// the next one finds a home that it can use, and nothing of it is left. With
// $HEARTH_TEST_LONG=1 each step of each verb is tried, else a few by chance.
func TestKilledAtEveryStep(t *testing.T) {
	const samples = 2
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("HEARTH_CRASH_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	for _, kind := range []string{"luks", "directory", "subvolume"} {
		t.Run(kind, func(t *testing.T) {
			k := &killing{T: t, w: worldOf(t, kind), good: password, clock: 2000}
			testenv.Need(t, "root")
			rng := rand.New(rand.NewPCG(seed, 1))
			k.w.Must(t, storage.Create, k.good)
			k.w.Must(t, storage.Activate, k.good)
			if err := os.WriteFile(filepath.Join(k.w.Home(), "letter"), []byte(tenure), 0o600); err != nil {
				t.Fatal(err)
			}
			k.w.Must(t, storage.Deactivate, "")
			for _, p := range k.paths() {
				if p.only != "" && p.only != kind {
					continue
				}
				t.Run(p.String(), func(t *testing.T) {
					k.T = t
					k.prepare(p.from)
					all, _, err := walkTo(t, k.w, k.order(p), 0)
					if err != nil || all == 0 {
						t.Fatalf("undisturbed: %d steps, %v", all, err)
					}
					k.whole(p)
					at := rng.Perm(all)
					if os.Getenv("HEARTH_TEST_LONG") != "1" {
						at = at[:min(samples, all)]
					}
					killed := 0
					for _, i := range at {
						former := k.w.Record
						k.prepare(p.from)
						_, name, err := walkTo(t, k.w, k.order(p), i+1)
						switch {
						case err == nil: // it was one step shorter
						case fault.Is(err, fault.WorkerFailed):
							killed++
						default:
							t.Errorf("%v", err)
						}
						if err != nil && p.verb != storage.Passwd && p.verb != storage.Update {
							k.w.Record = former
						}
						k.whole(p)
						if t.Failed() {
							t.Fatalf("killed before step %d of %d, %s; seed %d", i+1, all, name, seed)
						}
					}
					if killed == 0 {
						t.Errorf("of %d steps the worker was killed at none", all)
					}
					t.Logf("RESULT killed workers, %s %v: %d steps, %d killed, seed %d: nothing lost, nothing left", kind, p, all, killed, seed)
				})
				if t.Failed() {
					return
				}
			}
		})
	}
}
