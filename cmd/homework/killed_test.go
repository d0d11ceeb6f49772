package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/internal/fault"
	"hearth/records"
	"hearth/storage"
	"hearth/storage/storagetest"
)

// words are passwords and their hashes, of few rounds (crypt(3), SHA-256).
var words = []struct{ password, hash string }{
	{"battery staple", "$5$rounds=1000$abcdefgh$.DoMV/IYQao5Uj30uDl6Fecb220Abwv.hxgT3YrM9GA"},
	{"third one", "$5$rounds=1000$abcdefgh$x0ixHg4mwJTlP2x.awV3OwJG5sBZxTNRwsswebag.B5"},
}

// An order is what a worker is to do.
type order struct {
	verb      string
	record    *records.Record
	passwords []string
}

// A moment is when a worker is killed: at a stage that it tells of, or at a part
// of the time that it takes.
type moment struct {
	stage string
	part  int
}

// parts are the parts of the time: it is killed at the end of all but the last.
const parts = 5

func (m moment) String() string {
	if m.stage == "" {
		return fmt.Sprintf("after %d of %d", m.part, parts)
	}
	return "at " + strconv.Quote(m.stage)
}

// moments are all of them, for a worker that tells of these stages.
func moments(stages []string) (list []moment) {
	for _, s := range stages {
		list = append(list, moment{stage: s})
	}
	for i := 1; i < parts; i++ {
		list = append(list, moment{part: i})
	}
	return list
}

// killEach lets a worker do what next says, and kills it at each moment. check
// looks at what it has left.
func killEach(t *testing.T, w *storagetest.World, next func() order, check func(*testing.T)) {
	t.Helper()
	var stages []string
	begin := time.Now()
	o := next()
	if err := finish(t, w, startWith(t, w, o.verb, o.record, o.passwords...), func(s string) { stages = append(stages, s) }); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	check(t)
	list := moments(stages)
	for _, m := range list {
		// A worker that is faster than the clock is tried again with half the
		// time, in the end with none. One that told of its stage may be done by
		// the time we kill it; that is as good an end as any.
		for wait := took * time.Duration(m.part) / parts; ; wait = (wait / 2).Truncate(time.Millisecond) {
			o := next()
			p := startWith(t, w, o.verb, o.record, o.passwords...)
			done := make(chan struct{})
			timer := time.AfterFunc(wait, func() {
				if m.stage == "" {
					kill(t)
				}
				close(done)
			})
			err := finish(t, w, p, func(s string) {
				if s == m.stage {
					kill(t)
				}
			})
			if !timer.Stop() {
				<-done // it must not meet the next worker
			}
			if err != nil && !fault.Is(err, fault.WorkerFailed) {
				t.Errorf("%s, killed %v: %v", o.verb, m, err)
			}
			check(t)
			if t.Failed() {
				t.Fatalf("%s, killed %v", o.verb, m)
			}
			if err != nil || m.stage != "" {
				break
			}
			if wait == 0 {
				t.Fatalf("%s: not killed %v", o.verb, m)
			}
		}
	}
	t.Logf("killed %v", list)
}

// TestKilledChanging: a worker that is killed while it changes a home leaves
// one that its user can open, with one of the two passwords. A mapped device
// that nobody uses may stay until then; the kernel does the rest.
func TestKilledChanging(t *testing.T) {
	w := world(t)
	w.Must(t, storage.Create, password)
	w.Must(t, storage.Activate, password)
	letter := filepath.Join(w.Home(), "letter")
	if err := os.WriteFile(letter, []byte("dear ann"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Deactivate, "")
	good, other := password, ""
	clock := uint64(2000)
	opens := func(t *testing.T) {
		t.Helper()
		var err error
		for _, pw := range []string{other, good} {
			if pw == "" {
				continue
			}
			if _, err = w.Run(storage.Activate, pw); err == nil {
				good = pw
				break
			}
		}
		if err != nil {
			t.Errorf("neither password opens the home: %v", err)
			return
		}
		if text, err := os.ReadFile(letter); err != nil || string(text) != "dear ann" {
			t.Errorf("letter: %q, %v", text, err)
		}
		w.Must(t, storage.Deactivate, "")
		w.Idle(t)
	}
	t.Run("passwd", func(t *testing.T) {
		n := 0
		killEach(t, w, func() order {
			next := words[n%2]
			if next.password == good {
				next = words[(n+1)%2]
			}
			n++
			clock++
			other = next.password
			r := w.With(t, map[string]any{"lastChangeUSec": clock, "privileged": map[string]any{"hashedPassword": []string{next.hash}}})
			return order{storage.Passwd, r, []string{next.password, good}}
		}, opens)
	})
	t.Run("update", func(t *testing.T) {
		other = ""
		killEach(t, w, func() order {
			clock++
			return order{storage.Update, w.With(t, map[string]any{"lastChangeUSec": clock, "realName": fmt.Sprint("Ann ", clock)}), []string{good}}
		}, opens)
	})
	t.Run("lock", func(t *testing.T) {
		w.Must(t, storage.Activate, good)
		t.Cleanup(func() { _, _ = w.Run(storage.Unlock, good) })
		// Locked or not, both can be had: nobody is shut out, and no key stays.
		reach := func(t *testing.T) {
			t.Helper()
			w.Must(t, storage.Lock, "")
			w.Must(t, storage.Unlock, good)
			if text, err := os.ReadFile(letter); err != nil || string(text) != "dear ann" {
				t.Errorf("letter: %q, %v", text, err)
			}
		}
		killEach(t, w, func() order { return order{storage.Lock, w.Record, nil} }, reach)
		killEach(t, w, func() order {
			w.Must(t, storage.Lock, "")
			return order{storage.Unlock, w.Record, []string{good}}
		}, reach)
		w.Must(t, storage.Deactivate, "")
	})
}

// TestTerminated: a worker that is asked to unwind does not first finish a
// derivation that takes a minute.
func TestTerminated(t *testing.T) {
	w := world(t)
	w.Must(t, storage.Create, password)
	r := w.With(t, map[string]any{
		"lastChangeUSec": 3000, "privileged": map[string]any{"hashedPassword": []string{words[0].hash}},
		"luksPbkdfForceIterations": 200_000_000,
	})
	p := startWith(t, w, storage.Passwd, r, words[0].password, password)
	var asked time.Time
	err := finish(t, w, p, func(stage string) {
		if stage == "rekey" {
			time.Sleep(300 * time.Millisecond)
			asked = time.Now()
			p.Cancel()
		}
	})
	if !fault.Is(err, fault.Timeout) {
		t.Errorf("the worker ended with %v", err)
	}
	if took := time.Since(asked); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	settled(t, w)
	w.Must(t, storage.Activate, password)
}

// TestTerminatedHash: nor does it first finish the evaluation of a password
// hash, or of the next one.
func TestTerminatedHash(t *testing.T) {
	// Four times the dearest that is taken, some ten seconds each.
	slow := "$6$rounds=10000000$saltsaltsaltsal%d$" + strings.Repeat("x", 86)
	var hashes []string
	for i := range 4 {
		hashes = append(hashes, fmt.Sprintf(slow, i))
	}
	for _, kind := range []string{"directory", "luks"} {
		t.Run(kind, func(t *testing.T) {
			w := worldOf(t, kind)
			w.Must(t, storage.Create, password)
			former := w.Record
			// So much processor time shows that it evaluates; a slow machine spends
			// as much before the worker knows the signal, and then ends by it.
			least := 200 * time.Millisecond
			for _, verb := range []string{storage.Activate, storage.Inspect} {
				r := w.With(t, map[string]any{"lastChangeUSec": 3000, "privileged": map[string]any{"hashedPassword": hashes}})
				var err error
				var asked time.Time
				for ; least < 10*time.Second; least *= 2 {
					p := startWith(t, w, verb, r, password)
					busy(t, least)
					asked = time.Now()
					p.Cancel()
					if err = finish(t, w, p, func(string) {}); !fault.Is(err, fault.WorkerFailed) {
						break
					}
				}
				took := time.Since(asked)
				if !fault.Is(err, fault.Timeout) {
					t.Errorf("%s: the worker ended with %v", verb, err)
				}
				t.Logf("%s: it took %v", verb, took)
				if took > 5*time.Second {
					t.Errorf("%s: it took %v", verb, took)
				}
				settled(t, w)
				w.Idle(t)
			}
			w.Record = former
			w.Must(t, storage.Activate, password)
			w.Must(t, storage.Deactivate, "")
		})
	}
}

// busy waits until the worker has spent some processor time.
func busy(t *testing.T, least time.Duration) {
	t.Helper()
	for {
		pid := workerPID(t)
		if pid == 0 {
			t.Fatal("the worker has ended")
		}
		f := stat(pid)
		if len(f) > 11 {
			ticks, err := strconv.Atoi(f[11]) // utime, in hundredths of a second
			if err != nil {
				t.Fatal(err)
			}
			if time.Duration(ticks)*10*time.Millisecond >= least {
				return
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}
