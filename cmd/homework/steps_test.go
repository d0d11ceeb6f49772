package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"hearth/internal/fault"
	"hearth/internal/steps"
	"hearth/internal/testenv"
	"hearth/storage"
	"hearth/storage/mounts"
	"hearth/storage/storagetest"
)

// stepped is the folder from which a worker is started that can be followed.
const stepped = "stepped"

// walk lets a worker do what is ordered, and kills it where before says false.
func walk(t *testing.T, w *storagetest.World, o order, before func(steps.Step) bool) error {
	t.Helper()
	p := startIn(t, stepped, w, o.verb, o.record, o.passwords...)
	pid := workerPID(t)
	if pid == 0 {
		t.Fatal("the worker is not there")
	}
	wait, err := steps.Follow(pid, before)
	if err != nil {
		t.Fatal(err)
	}
	err = finish(t, w, p, func(string) {})
	if werr := wait(); werr != nil {
		t.Fatal(werr)
	}
	return err
}

// walkTo kills a worker before its step number last, counted from 1; 0 never. It
// returns how many steps it came to, and the last one.
func walkTo(t *testing.T, w *storagetest.World, o order, last int) (n int, at steps.Step, err error) {
	t.Helper()
	err = walk(t, w, o, func(s steps.Step) bool {
		n++
		at = s
		return n != last
	})
	return n, at, err
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
	k.settle(p)
	w := k.w
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
	if left, _ := filepath.Glob(filepath.Join(w.Home(), ".#*")); len(left) > 0 {
		k.Errorf("in the home: %q", left)
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

// settle closes the home, whatever was left of the verb.
func (k *killing) settle(p path) {
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

// forSteps leaves guests to the long run, and says whether this is it.
func forSteps(t *testing.T) (long bool) {
	t.Helper()
	long = os.Getenv("HEARTH_TEST_LONG") == "1"
	if control, err := os.Open("/dev/mapper/control"); err == nil {
		_ = control.Close()
		if !long {
			t.Skip("make test-long runs it here; without device mapper it runs always")
		}
	}
	return long
}

// TestKilledAtEveryStep: whatever a worker was about to do when it was killed,
// the next one finds a home that it can use, and nothing of it is left. With
// $HEARTH_TEST_LONG=1 each step of each verb is tried, or as many by chance as
// $HEARTH_CRASH_STATES says; else a few. In a
// guest, where LUKS2 homes can be had, it takes too long for the usual run.
func TestKilledAtEveryStep(t *testing.T) {
	long := forSteps(t)
	number := func(name string, otherwise uint64) uint64 {
		text := os.Getenv(name)
		if text == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(text, 10, 63)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	seed := number("HEARTH_CRASH_SEED", uint64(time.Now().UnixNano()))
	most := 2 // steps of each verb
	if long {
		most = int(number("HEARTH_CRASH_STATES", math.MaxInt))
	}
	for _, kind := range []string{"luks", "directory", "subvolume"} {
		t.Run(kind, func(t *testing.T) {
			testenv.Need(t, "root", "steps")
			k := &killing{T: t, w: worldOf(t, kind), good: password, clock: 2000}
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
					at = at[:min(most, all)]
					killed := 0
					for _, i := range at {
						former := k.w.Record
						k.prepare(p.from)
						_, step, err := walkTo(t, k.w, k.order(p), i+1)
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
							t.Fatalf("killed before step %d of %d, %v; seed %d", i+1, all, step, seed)
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

// TestOrderOfFiles: the record in a home comes into its place as a power cut
// demands.
func TestOrderOfFiles(t *testing.T) {
	forSteps(t)
	for _, kind := range []string{"luks", "directory"} {
		t.Run(kind, func(t *testing.T) {
			testenv.Need(t, "root", "steps")
			k := &killing{T: t, w: worldOf(t, kind), good: password, clock: 2000}
			k.w.Must(t, storage.Create, k.good)
			for _, p := range k.paths() {
				if p.verb != storage.Create && p.verb != storage.Update && p.verb != storage.Passwd {
					continue
				}
				t.Run(p.String(), func(t *testing.T) {
					k.T = t
					k.prepare(p.from)
					o := &steps.Order{Of: func(path string) bool { return filepath.Base(path) == ".identity" }}
					if err := walk(t, k.w, k.order(p), o.Step); err != nil {
						t.Fatal(err)
					}
					o.End()
					if len(o.Faults) != 0 || len(o.Renames) != 1 {
						t.Errorf("renamed %q; not in order: %q", o.Renames, o.Faults)
					}
					k.whole(p)
				})
			}
		})
	}
}
