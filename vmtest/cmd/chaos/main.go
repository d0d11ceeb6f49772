// Command chaos asks the home service many things at once, in a guest, while
// it kills the service every few seconds, and judges the answers: no wrong one,
// no call that is never answered, no home that cannot be closed, nothing left
// behind. What it does follows from a seed; how the machine interleaves it does
// not. It speaks the bus and varlink like any client, and looks at kernel and
// file system from outside.
//
// It ends with one line, RESULT, and exit status 1 where it found something.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

const (
	password = "chaos-Pw-1"
	// hash is that of password, in a form that costs no time to check.
	hash = "$6$rounds=1000$chaossalt$5wHaJ1QidrDsJTc7lcaFRzkrR3rFi47EXFuHWYbqsf7k6G4sm6Yd9xnZKkI6OB41LaRF0ld/RUoFy8qxDJ1Un."
	// answered is how long a call may take. A home that is slow may have others
	// queued before it.
	answered = 2 * time.Minute
	// settled is how long the end of everything may take.
	settled = time.Minute
)

// target is one home under test.
type target struct {
	name string
	luks bool
	uid  uint32
	// hold is taken shared by who holds a reference, and alone by who closes or
	// locks the home whatever references there are.
	hold sync.RWMutex
}

func (t *target) realName() string { return "Chaos of " + t.name }

type run struct {
	seed    uint64
	ctx     context.Context // ends when no new calls are to be made
	targets []*target
	right   *secret.Bytes
	wrong   *secret.Bytes

	calls, kills, lost atomic.Int64
	expected           atomic.Int64 // the pid that the service has to have, or not to have if negative
	up                 atomic.Bool  // it was seen to answer, and not killed since
	killed             atomic.Int64 // when it was killed last, in Unix nanoseconds

	mu       sync.Mutex
	found    []string
	refusals map[string]int
}

// wrongly notes a finding.
func (r *run) wrongly(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.found) < 50 {
		fmt.Printf("%s FOUND %s\n", time.Now().Format("15:04:05.000"), text)
	}
	r.found = append(r.found, text)
}

// rng is the source of chance of one actor.
func (r *run) rng(actor uint64) *rand.Rand { return rand.New(rand.NewPCG(r.seed, actor)) }

// sleep waits for a time between low and high, unless the run ends.
func (r *run) sleep(g *rand.Rand, low, high time.Duration) {
	t := time.NewTimer(low + time.Duration(g.Int64N(int64(high-low))))
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.ctx.Done():
	}
}

func main() {
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "what the run follows from")
	duration := flag.Duration("duration", 20*time.Second, "how long to go on")
	homes := flag.Int("homes", 20, "homes to open and close")
	luks := flag.Int("luks", 3, "how many of them are LUKS images")
	clients := flag.Int("clients", 50, "clients that look up")
	between := flag.Duration("kill", 4*time.Second, "how long the service lives, on average; 0: it is not killed")
	flag.Parse()
	ok, err := chaos(*seed, *duration, *homes, *luks, *clients, *between)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func chaos(seed uint64, duration time.Duration, homes, luks, clients int, between time.Duration) (bool, error) {
	right, err := secret.Copy([]byte(`{"password":["` + password + `"]}`))
	if err != nil {
		return false, err
	}
	defer right.Close()
	wrong, err := secret.Copy([]byte(`{"password":["not ` + password + `"]}`))
	if err != nil {
		return false, err
	}
	defer wrong.Close()
	r := &run{seed: seed, right: right, wrong: wrong, refusals: map[string]int{}}
	for i := range homes {
		r.targets = append(r.targets, &target{name: fmt.Sprintf("chaos%02d", i), luks: i < luks})
	}
	if err := r.create(); err != nil {
		return false, err
	}
	before, err := measure()
	if err != nil {
		return false, err
	}
	fmt.Printf("before: %s\n", before)
	r.expected.Store(int64(before.pid))

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	r.ctx = ctx
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			if i%2 == 0 {
				r.askVarlink(uint64(i), i%4 == 0)
			} else {
				r.askBus(uint64(i))
			}
		})
	}
	for i, t := range r.targets {
		for j := range 2 {
			all.Go(func() { r.act(uint64(1000+2*i+j), t) })
		}
	}
	began := time.Now()
	var most stats
	killed := 3 * duration / 4 // the rest is for one life: what leaks shows in it
	g := r.rng(1 << 32)
	var next time.Time
	for time.Since(began) < duration {
		time.Sleep(200 * time.Millisecond)
		if s, err := measureDaemon(); err == nil {
			most.highest(s)
			r.watch(s.pid)
		}
		// It lives from when it answers, however slow the machine is.
		switch up := r.up.Load(); {
		case !up && r.answers():
			r.up.Store(true)
			next = time.Now().Add(between/2 + time.Duration(g.Int64N(int64(between+1))))
		case up && between > 0 && time.Since(began) < killed && time.Now().After(next):
			r.kill()
		}
	}
	stop()
	if !within(settled+answered, all.Wait) {
		r.wrongly("clients wait for answers that do not come")
	}
	r.closeAll()
	r.compare(before, most)

	r.mu.Lock()
	defer r.mu.Unlock()
	result := "nothing found"
	if n := len(r.found); n > 0 {
		result = fmt.Sprintf("FOUND %d, first: %s", n, r.found[0])
	}
	var refused []string
	for k, n := range r.refusals {
		refused = append(refused, fmt.Sprintf("%s %d", k, n))
	}
	slices.Sort(refused)
	fmt.Printf("refused: %s\n", strings.Join(refused, ", "))
	fmt.Printf("most: %s\n", most)
	fmt.Printf("RESULT chaos, seed %d: %d s, %d clients, %d homes (%d LUKS), %d calls, %d kills, %d answers lost with the service: %s\n",
		seed, int(duration.Seconds()), clients, homes, luks, r.calls.Load(), r.kills.Load(), r.lost.Load(), result)
	return len(r.found) == 0, nil
}

// within reports whether f ends in that time.
func within(limit time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}

// create makes the homes, before anything is killed. Those of an earlier run
// are used again.
func (r *run) create() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c, err := home1.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, t := range r.targets {
		b := records.NewBuilder(t.name).Set("disposition", "regular").Set("realName", t.realName()).Set("enforcePasswordPolicy", false).
			Set("memberOf", []string{"audio"}).
			// The limit on attempts is not what is tried here.
			Set("rateLimitIntervalUSec", uint64(1_000_000)).Set("rateLimitBurst", uint64(10_000)).
			SetPrivileged("hashedPassword", []string{hash})
		if t.luks {
			b.Set("storage", "luks").Set("fileSystemType", "ext4").Set("diskSize", uint64(64<<20)).
				Set("luksPbkdfType", "pbkdf2").Set("luksPbkdfForceIterations", uint64(1000))
		} else {
			b.Set("storage", "directory")
		}
		rec, err := b.Record()
		if err != nil {
			return err
		}
		if err := c.CreateHome(ctx, rec.Compact(), r.right, nil); err != nil && !fault.Is(err, fault.UserNameExists) {
			return fmt.Errorf("create %s: %w", t.name, err)
		}
		h, err := c.GetHomeByName(ctx, t.name)
		if err != nil {
			return fmt.Errorf("find %s: %w", t.name, err)
		}
		t.uid = h.UID
	}
	return nil
}
