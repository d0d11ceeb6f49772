package manager

import (
	"math"
	"strings"
	"testing"
	"time"
)

const mib = 1 << 20

// TestDivide: by weight, with a part for the pool, in whole blocks, never more
// than there is, never less than a home needs.
func TestDivide(t *testing.T) {
	home := func(name string, weight, size, used uint64) *portion {
		return &portion{name: name, weight: weight, size: size, used: used, free: size - used, atLeast: 256 * mib}
	}
	// 120 MiB free around, 1000 MiB in all: weights 100, 100 and 20.
	list := []*portion{home("bea", 100, 600*mib, 100*mib), home("ann", 100, 400*mib, 20*mib)}
	next := divide(120*mib, list)
	var goals []string
	sum := uint64(0)
	for _, p := range list {
		goals = append(goals, p.name)
		share := p.goal - p.used
		sum += share
		if share < 454*mib || share > 455*mib || share%shareUnit != 0 {
			t.Errorf("%s gets %d", p.name, share)
		}
	}
	if strings.Join(goals, " ") != "ann bea" || sum > 1000*mib {
		t.Errorf("order %q, %d in all", goals, sum)
	}
	// 454 MiB is 2^28 and more: 6 of 26 steps of 15 minutes.
	if want := 15 * time.Minute * 6 / 26; next != want {
		t.Errorf("next in %v, want %v", next, want)
	}

	for _, c := range []struct {
		name string
		free uint64
		p    portion
		goal uint64
		next time.Duration
	}{
		{"no room at all", 0, portion{weight: 100, size: 300 * mib, used: 300 * mib, atLeast: 256 * mib}, 300 * mib, time.Minute},
		{"needs more than its part", 0, portion{weight: 1, size: 1000 * mib, used: 10 * mib, free: 300 * mib, atLeast: 256 * mib}, 256 * mib, time.Minute},
		{"not worth it", 18 * mib, portion{weight: 100, size: 300 * mib, used: 200 * mib, free: 100 * mib, atLeast: 256 * mib}, 300 * mib, 15 * time.Minute * 4 / 26},
		{"very much", 1 << 62, portion{weight: 10000, size: 300 * mib, used: 1 << 62, free: 1 << 62, atLeast: 256 * mib}, 1<<62 + (1<<63)/shareUnit*10000/10020*shareUnit, 15 * time.Minute},
		{"more than can be said", math.MaxUint64, portion{weight: 10000, size: 1, used: math.MaxUint64 - 5, free: 5}, math.MaxUint64 - 1, 15 * time.Minute},
	} {
		next := divide(c.free, []*portion{&c.p})
		if d := int64(c.p.goal - c.goal); d > 100*mib || d < -100*mib || c.name == "not worth it" && d != 0 {
			t.Errorf("%s: %d, want %d", c.name, c.p.goal, c.goal)
		}
		if next != c.next {
			t.Errorf("%s: next in %v, want %v", c.name, next, c.next)
		}
	}
	if next := divide(5, nil); next < balanceLeast || next > balanceMost {
		t.Errorf("nobody: next in %v", next)
	}
}
