// Command bench compares the speed of the product with systemd-homed's: both in
// one guest on one processor, in turn, with the same homes. It writes what it
// saw into docs/performance.md and docs/bench, and fails when what is asked
// for was missed. It knows the goals; guests are vmtest's matter, what is timed
// is benchguest's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hearth/vmtest"
)

const inGuest = "/opt/hearth" // what was built, in the guest

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	var o options
	flag.StringVar(&o.docs, "docs", "docs", "where the results are written")
	flag.StringVar(&o.parts, "parts", strings.Join(partNames(), ","), "what is measured; a part left out keeps its results in the documents")
	flag.IntVar(&o.runs, "runs", 3, "how often ours and theirs are measured in the order ours, theirs, theirs, ours")
	flag.IntVar(&o.rounds, "rounds", 2, "how often each of these measures everything")
	flag.StringVar(&o.kinds, "kinds", "luks-ext4,luks-btrfs,directory,luks-default", "the sorts of home whose verbs are measured")
	flag.StringVar(&o.note, "note", "", "a word on what else the machine did")
	flag.Parse()
	missed, err := bench(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if len(missed) > 0 {
		fmt.Fprintf(os.Stderr, "bench: gates missed: %s\n", strings.Join(missed, "; "))
		os.Exit(1)
	}
}

type options struct {
	docs, parts, kinds, note string
	runs, rounds             int
}

// A side is one of the two services that are compared.
type side struct{ name, unit, homectl, other string }

var (
	ours   = side{"ours", "homed.service", "/usr/local/bin/homectl", "systemd-homed.service"}
	theirs = side{"theirs", "systemd-homed.service", "/usr/bin/homectl", "homed.service"}
)

// A part is one chapter of the results.
type part struct {
	name    string
	measure func(*session) error
	write   func(io.Writer, *session)
}

var parts = []part{
	{"verbs", (*session).verbs, writeVerbs},
	{"breakdown", (*session).breakdown, writeBreakdown},
	{"lookups", (*session).lookups, writeLookups},
	{"life", (*session).life, writeLife},
}

func partNames() []string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// A session is the guest under measurement and what was seen in it.
type session struct {
	options
	ctx     context.Context
	guest   *vmtest.Machine
	part    string
	run     int
	samples []sample
	missed  []string
}

// A sample is one number.
type sample struct {
	part, side string
	run        int
	what       string
	value      float64
	unit       string
}

func bench(ctx context.Context, o options) ([]string, error) {
	began := time.Now()
	dir, err := os.MkdirTemp("", "hearth-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	items, err := payload(dir)
	if err != nil {
		return nil, err
	}
	fmt.Println("Starting a guest ...")
	m, err := vmtest.Start(ctx, vmtest.Options{Payload: items, Memory: "2G", Log: os.Stdout})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	s := &session{options: o, ctx: ctx, guest: m}
	if _, err := s.sh(`pam-auth-update --disable systemd-homed
		systemctl stop systemd-homed-activate.service systemd-homed.service
		` + inGuest + `/cmd/homed/system/install.sh install`); err != nil {
		return nil, err
	}
	for _, p := range parts {
		if !strings.Contains(","+o.parts+",", ","+p.name+",") {
			continue
		}
		s.part = p.name
		start := time.Now()
		if err := p.measure(s); err != nil {
			if journal, jerr := m.Journal(context.WithoutCancel(ctx), "homed.service", "systemd-homed.service"); jerr == nil {
				fmt.Fprintf(os.Stderr, "the services' journal ends with:\n%s\n", journal[max(0, len(journal)-6000):])
			}
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Printf("%s: %.0f s\n", p.name, time.Since(start).Seconds())
		if err := s.keep(p); err != nil {
			return nil, err
		}
	}
	fmt.Printf("All of it took %.0f s.\n", time.Since(began).Seconds())
	return s.missed, nil
}

// payload is what "make build" made, and the tool that measures.
func payload(dir string) ([]vmtest.Item, error) {
	if _, err := os.Stat("build/bin/homed"); err != nil {
		return nil, errors.New(`not built yet; run "make build"`)
	}
	tool := filepath.Join(dir, "benchguest")
	cmd := exec.Command("go", "build", "-trimpath", "-o", tool, "hearth/vmtest/cmd/benchguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the guest's tool: %w\n%s", err, text)
	}
	items := []vmtest.Item{{Host: tool, Guest: inGuest + "/benchguest"}}
	for _, p := range []string{"build/bin", "build/pam_home.so", "build/prefix", "cmd/homed/system", "pamhome/shim/hearth.pam-config", "pamhome/shim/hearth-password.pam-config", "docs/man"} {
		if _, err := os.Stat(p); err == nil {
			items = append(items, vmtest.Item{Host: p, Guest: filepath.Join(inGuest, p)})
		}
	}
	return items, nil
}

// sh runs a script in the guest, which stops at its first failure.
func (s *session) sh(script string) (string, error) {
	r, err := s.guest.Exec(s.ctx, vmtest.Command{Argv: []string{"bash", "-euo", "pipefail", "-c", script}, Limit: 20 * time.Minute})
	if err != nil {
		return "", err
	}
	if r.Code != 0 || r.Expired {
		return "", fmt.Errorf("%s\n%s", script, r)
	}
	return r.Stdout, nil
}

// with has one service answer in the other's place.
func (s *session) with(d side) error {
	_, err := s.sh("systemctl stop " + d.other + "; systemctl reset-failed " + d.unit + " 2>/dev/null || :; systemctl start " + d.unit)
	return err
}

// measure runs the guest's tool against a service that was started before, and
// keeps its samples.
func (s *session) measure(d side, args string) error {
	out, err := s.sh(inGuest + "/benchguest " + args)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) != 3 {
			return fmt.Errorf("benchguest says %q", line)
		}
		v, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return fmt.Errorf("benchguest says %q", line)
		}
		s.samples = append(s.samples, sample{s.part, d.name, s.run, fields[0], v, fields[2]})
	}
	return nil
}

// inTurn measures both services, in the order ours, theirs, theirs, ours, as
// often as there are runs.
func (s *session) inTurn(do func(d side, block string) error) error {
	block := 0
	for s.run = 1; s.run <= s.runs; s.run++ {
		for _, d := range []side{ours, theirs, theirs, ours} {
			block++
			if err := s.with(d); err != nil {
				return err
			}
			if err := do(d, fmt.Sprintf("%c%d", d.name[0], block)); err != nil {
				return fmt.Errorf("run %d, %s: %w", s.run, d.name, err)
			}
			fmt.Printf("%s: run %d, %s done\n", s.part, s.run, d.name)
		}
	}
	return nil
}
