package home

import (
	"os"
	"strings"
	"testing"

	"hearth/internal/fault"
)

// TestTransitionsOfTheOriginal: every change of state that systemd-homed was
// seen to make is one that ours can make too.
func TestTransitionsOfTheOriginal(t *testing.T) {
	type place struct {
		h    Home
		seen Presence
	}
	type change struct{ from, to State }
	possible := map[change]bool{}
	var places []place
	for _, s := range []string{"unfixated", "absent", "inactive", "dirty", "active", "lingering", "locked"} {
		h, seen := in(s)
		places = append(places, place{h, seen})
		h.Refs[PleaseSuspend] = true
		places = append(places, place{h, seen})
	}
	places = append(places, place{Home{New: true}, SeenAbsent}, place{Home{}, SeenUnclear})
	var calls []Event
	for v := range words {
		if words[v] != referenceEnd && words[v] != forceDeactivate {
			calls = append(calls, Call{ID: 1, Verb: words[v]}, Call{ID: 1, Verb: words[v], Offline: true})
		}
	}
	calls = append(calls, Call{ID: 1, Verb: LockAll}, ReferenceEnded{}, Expired{}, Vanished{}, HangUp{PleaseSuspend})
	ends := []Event{Done{}, Done{Err: fault.New(fault.BadPassword, "x", nil)}, Done{Fixated: true}}
	for range 3 { // a call, its worker's end, a second worker's
		var next []place
		for _, p := range places {
			events := calls
			if p.h.running.active {
				events = ends
			}
			for _, e := range events {
				after := []Presence{p.seen}
				if p.h.running.active {
					after = []Presence{SeenAbsent, SeenInactive, SeenMounted}
				}
				for _, seen := range after {
					h, _ := Step(p.h, seen, e)
					from, to := p.h.State(p.seen), h.State(seen)
					if from == to || h.gone && to != Absent {
						continue
					}
					if !possible[change{from, to}] || h.running.active {
						next = append(next, place{h, seen})
					}
					possible[change{from, to}] = true
				}
			}
		}
		places = next
	}
	text, err := os.ReadFile("../../fixtures/systemd-262-bus/state-transitions.tsv")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) != 3 || f[0] == "from" {
			continue
		}
		n++
		if !possible[change{State(f[0]), State(f[1])}] {
			t.Errorf("%s never becomes %s", f[0], f[1])
		}
	}
	if n != 56 {
		t.Errorf("%d transitions were seen, want 56", n)
	}
	// The other way round: it is not that everything is possible.
	for _, c := range []change{{Absent, Active}, {Inactive, Locked}, {Locked, Inactive}, {Unfixated, Active}, {Locked, Deactivating}} {
		if possible[c] {
			t.Errorf("%s becomes %s", c.from, c.to)
		}
	}
}
