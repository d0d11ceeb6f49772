package worker

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// spareOf is a Spare whose program is this one, under a name of its own.
func spareOf(t *testing.T) (*Spare, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "worker")
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	s := &Spare{}
	t.Cleanup(s.Close)
	return s, program
}

func (s *Spare) waiting() *idle {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

func (s *Spare) pid() int {
	if w := s.waiting(); w != nil {
		return w.process.Pid
	}
	return 0
}

func echoed(t *testing.T, s *Spare, program, secrets string) (pid int) {
	t.Helper()
	b, err := secret.Copy([]byte(secrets))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p, err := s.Start(t.Context(), program, Request{Verb: "echo", Record: []byte("{}"), Secrets: b, SharedMounts: true})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := end(t, p)
	if want := strings.ToUpper(secrets); a.Err != nil || !strings.HasPrefix(string(a.Record), "echo {} ") || !strings.HasSuffix(string(a.Record), want) {
		t.Errorf("got %q, %v, want %q", a.Record, a.Err, want)
	}
	return p.process.Pid
}

// TestSpareServesOnce: the worker that waits takes the next request, all of it,
// and no second one; there is one at a time.
func TestSpareServesOnce(t *testing.T) {
	s, program := spareOf(t)
	if first := echoed(t, s, program, "none yet"); first == 0 {
		t.Error("no process")
	}
	for _, words := range []string{"first", "second"} {
		s.Prepare(program)
		waits := s.pid()
		s.Prepare(program)
		if waits == 0 || s.pid() != waits {
			t.Fatalf("processes %d and %d wait", waits, s.pid())
		}
		if got := echoed(t, s, program, words); got != waits {
			t.Errorf("process %d served, %d had waited", got, waits)
		}
		if got := echoed(t, s, program, words+" again"); got == waits || s.pid() != 0 {
			t.Errorf("process %d served again, %d waits", got, s.pid())
		}
	}
	s.Prepare(program)
	waits := s.pid()
	path := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(path, []byte("<a>"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	p, err := s.Start(t.Context(), program, Request{Verb: "blobs", Record: []byte("{}"), Secrets: words(t), Blobs: map[string]*os.File{"a": f}})
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := end(t, p); a.Err != nil || string(a.Record) != "false a=<a>" || p.process.Pid != waits {
		t.Errorf("process %d, not %d: %q, %v", p.process.Pid, waits, a.Record, a.Err)
	}
}

// TestSpareThatIsNoGood: one that has ended, or that an upgrade has made an old
// one, serves nobody, and nobody notices.
func TestSpareThatIsNoGood(t *testing.T) {
	s, program := spareOf(t)
	for what, spoil := range map[string]func(pid int){
		"killed": func(pid int) {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		},
		"killed and reaped": func(pid int) {
			w := s.waiting()
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
			<-w.ended
		},
		"replaced": func(int) {
			// Another file of the same content.
			text, err := os.ReadFile(program)
			if err == nil {
				err = os.Remove(program)
			}
			if err == nil {
				err = os.WriteFile(program, text, 0o700)
			}
			if err != nil {
				t.Error(err)
			}
		},
	} {
		s.Prepare(program)
		waits := s.pid()
		spoil(waits)
		if got := echoed(t, s, program, "words"); got == waits {
			t.Errorf("%s: it served", what)
		}
		if left := s.pid(); left != 0 {
			t.Errorf("%s: %d waits", what, left)
		}
	}
}

// TestSpareEnds: with the daemon, or when it is told.
func TestSpareEnds(t *testing.T) {
	s, program := spareOf(t)
	s.Prepare(program)
	w := s.waiting()
	_ = w.conn.Close() // as the kernel does when the daemon ends
	if err := w.wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	s.Prepare(program)
	w = s.waiting()
	s.Close()
	if err := unix.Kill(w.process.Pid, 0); err != unix.ESRCH {
		t.Errorf("it is still there: %v", err)
	}
	s.Prepare(program)
	if left := s.pid(); left != 0 {
		t.Errorf("%d waits after the end", left)
	}
	echoed(t, s, program, "words")
}

// TestSpareIsCancelled as any other worker.
func TestSpareIsCancelled(t *testing.T) {
	s, program := spareOf(t)
	s.Prepare(program)
	waits, path := s.pid(), filepath.Join(t.TempDir(), "note")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p, err := s.Start(ctx, program, Request{Verb: "wait", Record: []byte(path), SharedMounts: true})
	if err != nil {
		t.Fatal(err)
	}
	if e := <-p.Events(); e.Progress == nil {
		t.Fatalf("got %+v", e)
	}
	cancel()
	a, _ := end(t, p)
	if text, err := os.ReadFile(path); p.process.Pid != waits || !fault.Is(a.Err, fault.HomeBusy) || string(text) != "unwound" {
		t.Errorf("process %d, not %d: %v, %q, %v", p.process.Pid, waits, a.Err, text, err)
	}
}

// TestSpareCannotStart: what cannot be started ahead cannot be started at all,
// which is told when somebody wants it.
func TestSpareCannotStart(t *testing.T) {
	s := &Spare{}
	s.Prepare("/nonexistent")
	if _, err := s.Start(t.Context(), "/nonexistent", Request{Verb: "echo", SharedMounts: true}); !fault.Is(err, fault.WorkerFailed) {
		t.Errorf("got %v", err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Prepare(program)
	before := s.pid()
	many := map[string]*os.File{}
	for n := range maxBlobs + 1 {
		many[string(rune('a'+n))] = os.Stdin
	}
	if _, err := s.Start(t.Context(), program, Request{Verb: "blobs", Blobs: many}); !fault.Is(err, fault.InvalidArgs) || before == 0 {
		t.Errorf("too many blobs: %v", err)
	}
}

// TestSpareUnderLoad: operations at once get one worker each, and nothing of all
// that stays open.
func TestSpareUnderLoad(t *testing.T) {
	s, program := spareOf(t)
	echoed(t, s, program, "words") // what the runtime opens
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := files()
	var mu sync.Mutex
	var served []int
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 5 {
				s.Prepare(program)
				pid := echoed(t, s, program, "words")
				mu.Lock()
				served = append(served, pid)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	slices.Sort(served)
	if n := len(slices.Compact(served)); n != 20 {
		t.Errorf("%d processes served 20 requests", n)
	}
	s.Close()
	if after := files(); after > before {
		t.Errorf("%d files are open, %d were before", after, before)
	}
}

// TestSpareIsToldNonsense: it ends.
func TestSpareIsToldNonsense(t *testing.T) {
	for _, say := range []func(w *idle) error{
		func(w *idle) error { _, err := w.conn.Write([]byte("{}")); return err },
		func(w *idle) error { return sendWith(w.conn, []byte(`{"verb":"echo","secrets":-1}`), os.Stdin) },
		func(w *idle) error {
			f, err := secret.Sealed("parameters", []byte("{}"))
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			if err := sendWith(w.conn, []byte(`{"verb":"echo","secrets":-1}`), f); err != nil {
				return err
			}
			return sendWith(w.conn, []byte("something else"), f)
		},
	} {
		s, program := spareOf(t)
		s.Prepare(program)
		w := s.waiting()
		if err := say(w); err != nil {
			t.Fatal(err)
		}
		if err := w.wait(); err == nil {
			t.Error("it went on")
		}
	}
}
