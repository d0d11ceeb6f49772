package crashtest_test

import (
	"testing"

	"hearth/storage/crashtest"
)

// TestPlan: every disk that a cut can leave is tried, none twice, and the last
// one both ways.
func TestPlan(t *testing.T) {
	w, flush := crashtest.Step{Data: []byte("x")}, crashtest.Step{Flush: true}
	log := crashtest.Log{w, {Mark: "begin"}, w, w, flush, w, flush, {Mark: "x"}, w, {Mark: "end"}}
	s := &scene{log: log, begin: 1, end: 9}
	list, prefixes := s.plan(0, 1)
	var cuts []int
	for _, st := range list {
		if !st.Random {
			cuts = append(cuts, st.Cut)
		} else if log.Stable(st.Cut) == st.Cut {
			t.Errorf("%v: nothing is open", st)
		}
	}
	// As it was before, after each write, and at the end.
	want := []int{1, 3, 4, 6, 9}
	if len(cuts) != len(want) || prefixes != len(want) || len(list) != 500 {
		t.Fatalf("prefixes %v (%d), %d states", cuts, prefixes, len(list))
	}
	for i := range want {
		if cuts[i] != want[i] {
			t.Errorf("prefixes %v, want %v", cuts, want)
		}
	}
	if list, prefixes := s.plan(6, 1); prefixes == 0 || len(list) < 3 || list[len(list)-1].Cut != 9 {
		t.Errorf("a sample: %v", list)
	}
}
