package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A gate is one row of a table: the ratio to systemd-homed that may not be
// exceeded, and the one that is aimed at; 0 where none is asked for.
type gate struct {
	what          string
	atMost, aimAt float64
}

// of returns the values of what one side's runs gave; run 0 stands for all.
func (s *session) of(side, what string, run int) []float64 {
	var out []float64
	for _, x := range s.samples {
		if x.part == s.part && x.side == side && x.what == what && (run == 0 || x.run == run) {
			out = append(out, x.value)
		}
	}
	return out
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func sum(v []float64) (out float64) {
	for _, x := range v {
		out += x
	}
	return out
}

// spread writes median and range.
func spread(v []float64) string {
	return fmt.Sprintf("%s [%s .. %s]", short(median(v)), short(slices.Min(v)), short(slices.Max(v)))
}

// short writes three digits.
func short(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// misses says in how many runs a gate's ratio was exceeded, of how many.
func (s *session) misses(g gate) (missed, runs int) {
	for run := 1; run <= s.runs; run++ {
		a, b := s.of("ours", g.what, run), s.of("theirs", g.what, run)
		if len(a) == 0 || len(b) == 0 {
			continue
		}
		runs++
		if median(a) > g.atMost*median(b) {
			missed++
		}
	}
	return missed, runs
}

// table writes a row for each gate, and remembers those that were missed: in
// more than half of the runs.
func (s *session) table(w io.Writer, gates []gate) {
	fmt.Fprint(w, "| | ours | systemd-homed | ratio | gate | aim | |\n|---|---|---|---|---|---|---|\n")
	for _, g := range gates {
		a, b := s.of("ours", g.what, 0), s.of("theirs", g.what, 0)
		if len(a) == 0 || len(b) == 0 {
			continue
		}
		ratio := median(a) / median(b)
		bound, aim, verdict := "–", "–", ""
		if g.atMost > 0 {
			bound, aim = fmt.Sprintf("%.2f", g.atMost), fmt.Sprintf("%.2f", g.aimAt)
			switch missed, runs := s.misses(g); {
			case 2*missed > runs:
				verdict = "**gate missed**"
				s.missed = append(s.missed, fmt.Sprintf("%s: %.2f of %.2f", g.what, ratio, g.atMost))
			case ratio > g.aimAt:
				verdict = fmt.Sprintf("aim missed by %.2f", ratio-g.aimAt)
			default:
				verdict = "aim reached"
			}
		}
		fmt.Fprintf(w, "| %s | %s | %s | %.2f | %s | %s | %s |\n", g.what, spread(a), spread(b), ratio, bound, aim, verdict)
	}
}

// keep writes what a part has seen: every sample into a file of its own, and
// its chapter into its place in the document.
func (s *session) keep(p part) error {
	raw := filepath.Join(s.docs, "bench", p.name+".tsv")
	if err := os.MkdirAll(filepath.Dir(raw), 0o755); err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintln(&b, "side\trun\twhat\tvalue\tunit")
	for _, x := range s.samples {
		if x.part == p.name {
			fmt.Fprintf(&b, "%s\t%d\t%s\t%s\t%s\n", x.side, x.run, x.what, strconv.FormatFloat(x.value, 'g', -1, 64), x.unit)
		}
	}
	if err := os.WriteFile(raw, b.Bytes(), 0o644); err != nil {
		return err
	}
	var text bytes.Buffer
	p.write(&text, s)
	fmt.Fprintf(&text, "\n%s, %s. Samples: [bench/%[3]s.tsv](bench/%[3]s.tsv).\n", time.Now().Format(time.DateOnly), s.machine(), p.name)
	return replace(filepath.Join(s.docs, "performance.md"), p.name, text.String())
}

// machine says what was measured on.
func (s *session) machine() string {
	cpu := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				cpu = strings.Trim(name, "\t :\n")
				break
			}
		}
	}
	version, err := s.guest.SystemdVersion()
	peer := "systemd-homed"
	if err == nil {
		peer = fmt.Sprintf("systemd-homed %d", version)
	}
	note := s.note
	if note == "" {
		if text, err := os.ReadFile("/proc/loadavg"); err == nil {
			note = "load " + strings.Fields(string(text))[0]
		}
	}
	return fmt.Sprintf("%s, %s, guest run by %s on one processor of an %s (%s)", peer, runtime.Version(), s.guest.Runner(), cpu, note)
}

// replace puts text between a part's two marks in the document, which gets
// them at its end where it has none.
func replace(path, name, text string) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := "<!-- bench "+name+" begin -->\n", "<!-- bench "+name+" end -->\n"
	before, rest, found := strings.Cut(string(doc), begin)
	after := ""
	if found {
		if _, after, found = strings.Cut(rest, end); !found {
			return fmt.Errorf("%s: the mark %q is missing", path, strings.TrimSpace(end))
		}
	} else {
		before = strings.TrimRight(before, "\n") + "\n\n"
	}
	return os.WriteFile(path, []byte(before+begin+text+end+after), 0o644)
}
