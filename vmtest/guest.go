package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Guest is a Machine in the hands of a test: what the harness cannot do fails
// the test, what a command does is its result.
type Guest struct {
	*Machine
	t testing.TB
}

// Need skips the test unless guests are wanted.
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv("HEARTH_TEST_VM") != "1" {
		t.Skip("set HEARTH_TEST_VM=1 or run make test-vm")
	}
}

// Boot starts a guest for the test, which skips where guests are not wanted or
// no runner works (and fails in the latter case under HOMED_TEST_STRICT=1).
// The guest ends with the test; when that failed, its journal is kept, see
// [testing.T.ArtifactDir], and the end of it shown.
func Boot(t testing.TB, o Options) *Guest {
	t.Helper()
	Need(t)
	if o.Log == nil {
		o.Log = t.Output()
	}
	m, err := Start(t.Context(), o)
	if errors.Is(err, ErrNoRunner) && os.Getenv("HOMED_TEST_STRICT") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	g := &Guest{m, t}
	t.Cleanup(func() {
		if t.Failed() {
			g.keepLogs()
		}
		m.Close()
	})
	return g
}

// With returns the guest in the hands of a subtest.
func (g *Guest) With(t testing.TB) *Guest { return &Guest{g.Machine, t} }

// Run runs a command.
func (g *Guest) Run(cmd string, args ...string) Result {
	g.t.Helper()
	return g.Do(Command{Argv: append([]string{cmd}, args...)})
}

// Do runs a command with all that a Command can have.
func (g *Guest) Do(c Command) Result {
	g.t.Helper()
	r, err := g.Exec(g.context(), c)
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

// Sh runs a script in bash.
func (g *Guest) Sh(script string) Result {
	g.t.Helper()
	return g.Run("bash", "-c", script)
}

// MustSh runs a script in bash that stops at its first failure, which fails
// the test, and returns what it printed, without the last newline.
func (g *Guest) MustSh(script string) string {
	g.t.Helper()
	r := g.Run("bash", "-euo", "pipefail", "-c", script)
	if r.Code != 0 || r.Expired {
		g.t.Fatalf("%s\n%s", script, r)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// Put writes a file, in one step.
func (g *Guest) Put(guestPath string, data []byte, mode os.FileMode) {
	g.t.Helper()
	if err := g.Machine.Put(g.context(), guestPath, bytes.NewReader(data), mode); err != nil {
		g.t.Fatal(err)
	}
}

// Get returns a file's content.
func (g *Guest) Get(guestPath string) []byte {
	g.t.Helper()
	var b bytes.Buffer
	if err := g.Machine.Get(g.context(), guestPath, &b); err != nil {
		g.t.Fatal(err)
	}
	return b.Bytes()
}

// Restart boots again on the disk as it is, after a power cut if the guest ran.
func (g *Guest) Restart() {
	g.t.Helper()
	if err := g.Machine.Restart(g.context()); err != nil {
		g.t.Fatal(err)
	}
}

// Poweroff shuts down in order.
func (g *Guest) Poweroff() {
	g.t.Helper()
	if err := g.Machine.Poweroff(g.context()); err != nil {
		g.t.Fatal(err)
	}
}

// SystemdVersion is the guest's systemd's.
func (g *Guest) SystemdVersion() int {
	g.t.Helper()
	v, err := g.Machine.SystemdVersion()
	if err != nil {
		g.t.Fatal(err)
	}
	return v
}

// Typist is a Terminal in the hands of a test.
type Typist struct {
	*Terminal
	t testing.TB
}

// Terminal starts a command on a terminal; it ends with the test.
func (g *Guest) Terminal(argv ...string) *Typist {
	g.t.Helper()
	t, err := g.Machine.Terminal(DefaultSize, nil, argv...)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { t.Close() })
	return &Typist{t, g.t}
}

// Console is the terminal of Options.Console.
func (g *Guest) Console() *Typist {
	g.t.Helper()
	t := g.Machine.Console()
	if t == nil {
		g.t.Fatal("this guest was started without Options.Console")
	}
	return &Typist{t, g.t}
}

// Expect waits for text that matches re and returns what was shown up to it.
func (t *Typist) Expect(re string, limit time.Duration) string {
	t.t.Helper()
	s, err := t.Terminal.Expect(re, limit)
	if err != nil {
		t.t.Fatal(err)
	}
	return s
}

// Send types s; a line ends with "\r" or "\n".
func (t *Typist) Send(s string) {
	t.t.Helper()
	if err := t.Terminal.Send(s); err != nil {
		t.t.Fatal(err)
	}
}

// Wait returns the command's exit status; it has two minutes to end.
func (t *Typist) Wait() int {
	t.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), defaultLimit)
	defer cancel()
	code, err := t.Terminal.Wait(ctx)
	if err != nil {
		t.t.Fatalf("%v; terminal shows:\n%s", err, t.Transcript())
	}
	return code
}

// context is the test's; in cleanups, where that has ended, one of its own.
func (g *Guest) context() context.Context {
	if ctx := g.t.Context(); ctx.Err() == nil {
		return ctx
	}
	return context.Background()
}

// keepLogs saves the journal and shows the end of what concerns homes.
func (g *Guest) keepLogs() {
	dir := os.Getenv("HEARTH_TEST_LOGS")
	if dir == "" {
		dir = g.t.ArtifactDir()
	} else {
		dir = filepath.Join(dir, strings.ReplaceAll(g.t.Name(), "/", "_"))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		g.t.Log(err)
		return
	}
	keep := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			g.t.Log(err)
		}
	}
	keep("console.log", g.ConsoleLog(1<<20))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	journal, err := g.Journal(ctx)
	if err != nil {
		g.t.Logf("the guest's journal cannot be had: %v\nconsole:\n%s", err, g.ConsoleLog(3000))
		return
	}
	keep("journal.log", journal)
	var last []string
	for line := range strings.Lines(journal) {
		if concerns(line) {
			last = append(last, line)
		}
	}
	g.t.Logf("the guest's journal is in %s (HEARTH_TEST_LOGS=DIR keeps it); what concerns homes ends with:\n%s",
		dir, strings.Join(last[max(0, len(last)-60):], ""))
}

func concerns(line string) bool {
	for _, word := range []string{"home", "pam", "dm-", "EXT4", "BTRFS", "XFS", "segfault", "panic"} {
		if strings.Contains(line, word) {
			return true
		}
	}
	return false
}

// String shows a result as one reads it in a test's log.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "exit status %d", r.Code)
	if r.Expired {
		b.WriteString(" (killed at its time limit)")
	}
	for _, s := range []struct{ name, text string }{{"stdout", r.Stdout}, {"stderr", r.Stderr}} {
		if s.text != "" {
			fmt.Fprintf(&b, "\n%s:\n%s", s.name, strings.TrimRight(s.text, "\n"))
		}
	}
	return b.String()
}
