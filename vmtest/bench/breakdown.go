package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// traced is a line that a worker leaves of what an operation cost, see
// HEARTH_TRACE in cmd/homework.
type traced struct {
	Verb        string
	Steps, Work []noted
}

type noted struct {
	What string
	MS   float64
}

// verb is what the bus calls it: an inspection is an authentication, and what
// attaches a loop device found the home closed.
func (t *traced) verb() string {
	name := t.Verb
	if name == "inspect" {
		name = "authenticate"
	}
	switch t.Verb {
	case "inspect", "update":
		if slices.ContainsFunc(t.Steps, func(n noted) bool { return n.What == "loop" }) {
			return name + " inactive"
		}
		return name + " active"
	case "passwd", "resize":
		return name + " active"
	}
	return name
}

// breakdown has the workers say where their time goes. They write that down, so
// the times are a little more than where nobody asks.
func (s *session) breakdown() error {
	const dropIn = "/etc/systemd/system/homed.service.d/trace.conf"
	if err := s.with(theirs); err != nil {
		return err
	}
	_, err := s.sh(`mkdir -p "$(dirname ` + dropIn + `)"; printf '[Service]\nEnvironment=HEARTH_TRACE=/run/trace\n' >` + dropIn + `; systemctl daemon-reload`)
	if err != nil {
		return err
	}
	if err := s.with(ours); err != nil {
		return err
	}
	s.run = 1
	if err := s.measure(ours, fmt.Sprintf("verbs -prefix t -kinds luks-ext4 -rounds %d", max(2, s.rounds*s.runs))); err != nil {
		return err
	}
	out, err := s.sh("cat /run/trace; rm /run/trace " + dropIn + "; systemctl daemon-reload")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		var t traced
		if err := json.Unmarshal([]byte(line), &t); err != nil {
			return fmt.Errorf("the trace says %q: %w", line, err)
		}
		sums, whole := map[string]float64{}, 0.0
		var order []string
		for _, x := range t.Steps {
			if _, ok := sums[x.What]; !ok {
				order = append(order, x.What)
			}
			sums[x.What] += x.MS
			whole += x.MS
		}
		add := func(what string, ms float64) {
			s.samples = append(s.samples, sample{s.part, ours.name, s.run, t.verb() + what, ms, "ms"})
		}
		add(": worker", whole)
		for _, name := range order {
			add(": step "+name, sums[name])
		}
		for _, x := range t.Work {
			add(": work "+x.What, x.MS)
		}
	}
	return nil
}

func writeBreakdown(w io.Writer, s *session) {
	fmt.Fprint(w, "## Where our time goes\n\nluks-ext4, cheap key derivation; medians, ms. *call* is the whole call, *worker* what its worker knows of, from the first line of\n"+
		"its own code on; the rest is the bus, the daemon, and starting the program. Steps follow each other. Work goes on within\n"+
		"them, a password's hash beside the rest, so on one processor it takes its time from the others.\n\n"+
		"| verb | call | worker | steps | of that, work |\n|---|---|---|---|---|\n")
	for _, verb := range []string{"create", "authenticate inactive", "activate", "authenticate active", "update active", "resize active", "lock", "unlock", "passwd active", "deactivate", "update inactive", "remove"} {
		whole, call := s.of(ours.name, verb+": worker", 0), s.of(ours.name, "luks-ext4 "+verb, 0)
		if len(whole) == 0 || len(call) == 0 {
			continue
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", verb, short(median(call)), short(median(whole)), s.listed(verb+": step "), s.listed(verb+": work "))
	}
}

// listed writes the medians of all that begins with prefix, the largest first.
func (s *session) listed(prefix string) string {
	type cost struct {
		name string
		ms   float64
	}
	var list []cost
	seen := map[string]bool{}
	for _, x := range s.samples {
		name, ok := strings.CutPrefix(x.what, prefix)
		if !ok || x.part != s.part || seen[name] {
			continue
		}
		seen[name] = true
		list = append(list, cost{name, median(s.of(ours.name, x.what, 0))})
	}
	slices.SortStableFunc(list, func(a, b cost) int {
		switch {
		case a.ms > b.ms:
			return -1
		case a.ms < b.ms:
			return 1
		}
		return 0
	})
	var out []string
	for _, c := range list {
		if c.ms >= 0.5 {
			out = append(out, c.name+" "+short(c.ms))
		}
	}
	return strings.Join(out, ", ")
}
