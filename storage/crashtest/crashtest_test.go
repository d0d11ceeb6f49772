package crashtest

import (
	"testing"

	"hearth/internal/fixture"
)

// content is what a state leaves of four bytes that were dots.
func content(t *testing.T, s State) string {
	t.Helper()
	d := fixture.NewDisk(4)
	if _, err := d.WriteAt([]byte("...."), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(d, 0); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestStates(t *testing.T) {
	r := &Recorder{Device: fixture.NewDisk(4)}
	write := func(s string, at int64) {
		if _, err := r.WriteAt([]byte(s), at); err != nil {
			t.Fatal(err)
		}
	}
	write("a", 0)
	if err := r.Sync(); err != nil {
		t.Fatal(err)
	}
	write("bc", 1)
	write("d", 3)
	seen := map[string]int{}
	n := r.Log.States(40, 1, 1, func(s State) { seen[content(t, s)]++ })
	if r.Log.Writes() != 3 || n != 5+3*40 {
		t.Errorf("%d writes, %d states", r.Log.Writes(), n)
	}
	for got := range seen {
		if got[0] != 'a' && got != "...." {
			t.Errorf("%q lacks what was flushed", got)
		}
	}
	// "a" is flushed before anything else; of the rest each byte may be there.
	for _, want := range []string{"....", "a...", "abc.", "abcd", "a..d", "ab..", "a.c.", "ab.d"} {
		if seen[want] == 0 {
			t.Errorf("%q was not tried", want)
		}
	}
	if got := content(t, r.Log.Prefix(3)); got != "abc." {
		t.Errorf("prefix: %q", got)
	}
	one, two := content(t, r.Log.Subset(4, 1, 7, 7)), content(t, r.Log.Subset(4, 1, 7, 7))
	if one != two {
		t.Errorf("one seed, %q and %q", one, two)
	}
}

// TestStable: what a flush brings along is not flushed itself, unless it says so.
func TestStable(t *testing.T) {
	w, f := Step{Data: []byte("x")}, Step{Flush: true}
	both := Step{Data: []byte("x"), Flush: true}
	now := Step{Data: []byte("x"), Flush: true, Now: true}
	for _, c := range []struct {
		log  Log
		want []int // after so many steps
	}{
		{Log{w}, []int{0, 0}},
		{Log{w, f, w}, []int{0, 0, 2, 2}},
		{Log{w, both}, []int{0, 0, 1}},
		{Log{w, now}, []int{0, 0, 2}},
		{Log{both, w, now}, []int{0, 0, 0, 3}},
	} {
		for cut, want := range c.want {
			if got := c.log.Stable(cut); got != want {
				t.Errorf("%+v: %d of the first %d are stable, want %d", c.log, got, cut, want)
			}
		}
	}
}

// TestNow: what is stable once written is never lost.
func TestNow(t *testing.T) {
	l := Log{{Data: []byte("ab")}, {At: 2, Data: []byte("c"), Now: true}, {At: 3, Data: []byte("d")}}
	lost := false
	for i := range uint64(50) {
		got := content(t, l.Subset(3, 1, 1, i))
		if got[2] != 'c' {
			t.Fatalf("%q", got)
		}
		lost = lost || got[0] == '.'
	}
	if !lost {
		t.Error("nothing is ever lost")
	}
}
