package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"time"

	"hearth/homed/home1"
	"hearth/internal/fault"
)

// actor does to one home what users, logins and administrators do.
type actor struct {
	*run
	t *target
	g *rand.Rand
	c *home1.Client
}

// act goes on until the run ends.
func (r *run) act(id uint64, t *target) {
	a := &actor{run: r, t: t, g: r.rng(id)}
	defer a.hangUp()
	for r.ctx.Err() == nil {
		r.sleep(a.g, 50*time.Millisecond, 2*time.Second)
		a.once()
		if a.g.IntN(10) == 0 {
			a.hangUp()
		}
	}
}

func (a *actor) hangUp() {
	if a.c != nil {
		_ = a.c.Close()
		a.c = nil
	}
}

// do makes one call and judges how it fails: as one of the kinds that fit the
// moment, or with the service. ok says that it succeeded.
func (a *actor) do(what string, f func(context.Context) error, allowed ...fault.Kind) (ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), answered)
	defer cancel()
	if a.c == nil {
		c, err := home1.Dial(ctx)
		if err != nil {
			a.wrongly("dial: %v", err)
			return false
		}
		a.c = c
	}
	a.calls.Add(1)
	began := time.Now()
	err := f(ctx)
	kind := fault.KindOf(err)
	switch {
	case err == nil:
		return true
	case gone(err):
		a.excuse(what, err)
	case ctx.Err() != nil:
		a.wrongly("%s of %s is not answered in %v", what, a.t.name, answered)
		a.hangUp()
	case slices.Contains(allowed, kind):
		a.mu.Lock()
		a.refusals[what+" "+string(kind)]++
		a.mu.Unlock()
	default:
		a.wrongly("%s of %s after %v: %s: %v", what, a.t.name, time.Since(began).Round(time.Millisecond), kind, err)
	}
	return false
}

func (a *actor) once() {
	switch n := a.g.IntN(16); n {
	case 0, 1:
		a.do("activate", func(ctx context.Context) error { return a.c.ActivateHome(ctx, a.t.name, a.right) },
			fault.HomeAlreadyActive, fault.HomeBusy, fault.HomeLocked)
	case 2, 3:
		if a.t.hold.TryLock() {
			defer a.t.hold.Unlock()
			a.do("deactivate", func(ctx context.Context) error { return a.c.DeactivateHome(ctx, a.t.name) },
				fault.HomeNotActive, fault.HomeBusy)
		}
	case 4, 5, 6, 7, 8:
		a.acquire()
	case 9:
		a.do("acquire with a wrong password", func(ctx context.Context) error { return unwanted(a.c.AcquireHome(ctx, a.t.name, a.wrong, false)) },
			fault.BadPassword)
	case 10, 11:
		a.do("authenticate", func(ctx context.Context) error { return a.c.AuthenticateHome(ctx, a.t.name, a.right) },
			fault.HomeBusy, fault.HomeLocked)
	case 12:
		if a.do("authenticate with a wrong password", func(ctx context.Context) error { return a.c.AuthenticateHome(ctx, a.t.name, a.wrong) },
			fault.BadPassword, fault.HomeBusy, fault.HomeLocked) {
			a.wrongly("a wrong password of %s is accepted", a.t.name)
		}
	case 13:
		a.lock()
	case 14:
		a.leave()
	case 15:
		a.do("release", func(ctx context.Context) error { return a.c.ReleaseHome(ctx, a.t.name) },
			fault.HomeBusy, fault.HomeLocked)
	}
}

// unwanted is the error of a call that must not succeed.
func unwanted(ref *os.File, err error) error {
	if err == nil {
		_ = ref.Close()
		return fault.Newf(fault.Unknown, "acquire", "a wrong password is accepted")
	}
	return err
}

// acquire is a login: the home is there from the answer on until the reference
// is closed, whatever happens to the service.
func (a *actor) acquire() {
	a.t.hold.RLock()
	defer a.t.hold.RUnlock()
	var ref *os.File
	if !a.do("acquire", func(ctx context.Context) (err error) {
		ref, err = a.c.AcquireHome(ctx, a.t.name, a.right, a.g.IntN(2) == 0)
		return err
	}) {
		return
	}
	defer ref.Close()
	a.there("right after it was acquired")
	if a.g.IntN(2) == 0 {
		var more *os.File
		if a.do("ref", func(ctx context.Context) (err error) {
			more, err = a.c.RefHome(ctx, a.t.name, a.g.IntN(2) == 0)
			return err
		}) {
			_ = ref.Close()
			ref = more
			defer more.Close()
		}
	}
	a.sleep(a.g, 50*time.Millisecond, 3*time.Second)
	a.there("while it is referenced")
	_ = ref.Close()
	if a.g.IntN(2) == 0 {
		a.do("release", func(ctx context.Context) error { return a.c.ReleaseHome(ctx, a.t.name) }, fault.HomeBusy)
	}
}

// there checks that the home directory shows the home.
func (a *actor) there(when string) {
	dir := "/home/" + a.t.name
	info, err := os.Stat(dir + "/.identity")
	if err == nil && info.Sys().(*syscall.Stat_t).Uid != a.t.uid {
		err = fmt.Errorf("it belongs to %d, not %d", info.Sys().(*syscall.Stat_t).Uid, a.t.uid)
	}
	if err != nil {
		a.wrongly("%s is not there %s: %v", a.t.name, when, err)
	}
}

// lock locks and unlocks, with nobody in the home.
func (a *actor) lock() {
	if !a.t.luks || !a.t.hold.TryLock() {
		return
	}
	defer a.t.hold.Unlock()
	a.do("lock", func(ctx context.Context) error { return a.c.LockHome(ctx, a.t.name) },
		fault.HomeNotActive, fault.HomeBusy, fault.HomeLocked)
	a.sleep(a.g, 50*time.Millisecond, time.Second)
	a.do("unlock", func(ctx context.Context) error { return a.c.UnlockHome(ctx, a.t.name, a.right) },
		fault.HomeNotLocked, fault.HomeBusy)
}

// leave asks for something and is gone before the answer.
func (a *actor) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+a.g.IntN(300))*time.Millisecond)
	defer cancel()
	c, err := home1.Dial(context.Background())
	if err != nil {
		return
	}
	defer c.Close()
	a.calls.Add(1)
	if ref, err := c.AcquireHome(ctx, a.t.name, a.right, false); err == nil {
		_ = ref.Close()
	}
}

// closeAll brings every home to rest, which each has to reach.
func (r *run) closeAll() {
	ctx, cancel := context.WithTimeout(context.Background(), answered)
	defer cancel()
	c, err := home1.Dial(ctx)
	if err != nil {
		r.wrongly("dial: %v", err)
		return
	}
	defer c.Close()
	if err := c.DeactivateAllHomes(ctx); err != nil && !fault.Is(err, fault.HomeBusy) && !gone(err) {
		r.wrongly("deactivate all: %v", err)
	}
	for _, t := range r.targets {
		for end := time.Now().Add(settled); ; time.Sleep(200 * time.Millisecond) {
			err := c.DeactivateHome(ctx, t.name)
			switch {
			case fault.Is(err, fault.HomeLocked):
				_ = c.UnlockHome(ctx, t.name, r.right)
			case err != nil && !fault.Is(err, fault.HomeNotActive) && !fault.Is(err, fault.HomeBusy):
				r.wrongly("deactivate %s at the end: %v", t.name, err)
			}
			h, lookErr := c.GetHomeByName(ctx, t.name)
			if lookErr == nil && h.State == "inactive" {
				break
			}
			if time.Now().After(end) {
				r.wrongly("%s is stuck: %s (%v), deactivation answers %v", t.name, h.State, lookErr, err)
				break
			}
		}
	}
	// They open and close once more; a few show it.
	for i, t := range r.targets {
		if i%5 != 0 {
			continue
		}
		if err := c.ActivateHome(ctx, t.name, r.right); err != nil {
			r.wrongly("%s does not open any more: %v", t.name, err)
		} else if err := c.DeactivateHome(ctx, t.name); err != nil {
			r.wrongly("%s does not close any more: %v", t.name, err)
		}
	}
}
