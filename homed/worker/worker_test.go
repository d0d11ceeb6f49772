package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// The test program is its own worker: each verb is one behaviour.
var verbs = map[string]func(context.Context, Request, Uplink) ([]byte, error){
	"echo": func(_ context.Context, r Request, _ Uplink) ([]byte, error) {
		text := fmt.Sprintf("%s %s %s %v ", r.Verb, r.Record, r.Params.Machine.ID, r.Params.HaveImageLock)
		if r.Secrets == nil {
			return []byte(text + "none"), nil
		}
		err := r.Secrets.Use(func(p []byte) error {
			text += fmt.Sprintf("%d %s", len(p), strings.ToUpper(string(p)))
			return nil
		})
		return []byte(text), err
	},
	"keys": func(_ context.Context, r Request, _ Uplink) ([]byte, error) {
		return fmt.Appendf(nil, "%d keys, last %s", len(r.Params.Keys), r.Params.Keys[fmt.Sprint(len(r.Params.Keys)-1)]), nil
	},
	"blobs": func(_ context.Context, r Request, _ Uplink) ([]byte, error) {
		text := fmt.Sprint(r.Blobs == nil)
		for _, name := range slices.Sorted(maps.Keys(r.Blobs)) {
			b, err := io.ReadAll(r.Blobs[name])
			if err != nil {
				return nil, err
			}
			text += " " + name + "=" + string(b)
		}
		return []byte(text), nil
	},
	"nothing": func(context.Context, Request, Uplink) ([]byte, error) { return nil, nil },
	"wrong": func(context.Context, Request, Uplink) ([]byte, error) {
		e := fault.Newf(fault.BadHomeSize, "resize", "4G is too small.")
		e.User = "ann"
		return nil, fmt.Errorf("resize home: %w", e)
	},
	"plain": func(context.Context, Request, Uplink) ([]byte, error) {
		return nil, errors.New(strings.Repeat("\x01", 100000))
	},
	"lock": func(_ context.Context, r Request, up Uplink) ([]byte, error) {
		up.Progress("format", 1, 2)
		f, err := os.Open(string(r.Record))
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, err
		}
		return nil, up.ImageLock(f)
	},
	"wait": func(ctx context.Context, r Request, up Uplink) ([]byte, error) {
		up.Progress("waiting", 0, 0)
		<-ctx.Done()
		if err := os.WriteFile(string(r.Record), []byte("unwound"), 0o600); err != nil {
			return nil, err
		}
		return nil, fault.New(fault.HomeBusy, "wait", ctx.Err())
	},
	"keep": func(_ context.Context, r Request, up Uplink) ([]byte, error) {
		for range 2 {
			if err := up.Keep(r.Record); err != nil {
				return nil, err
			}
		}
		return []byte("done"), nil
	},
	"exit":     func(context.Context, Request, Uplink) ([]byte, error) { os.Exit(3); return nil, nil },
	"big":      func(context.Context, Request, Uplink) ([]byte, error) { return make([]byte, 1<<20), nil },
	"nonsense": nil,
}

func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		if handle, ok := verbs[os.Args[1]]; ok {
			if handle == nil {
				_, _ = unix.Write(socketFD, []byte(`{"type":"answer","record":true}`))
				time.Sleep(time.Minute)
			}
			if err := Serve(os.Args[1], handle); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	if len(os.Args) == 2 && os.Args[1] == SpareVerb {
		err := Serve(SpareVerb, func(ctx context.Context, r Request, up Uplink) ([]byte, error) { return verbs[r.Verb](ctx, r, up) })
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 2 && hostile[os.Args[1]] != nil {
		// What is left unread would end the connection before it is read.
		for buf := make([]byte, maxPacket); ; {
			if _, _, err := unix.Recvfrom(socketFD, buf, unix.MSG_DONTWAIT); err != nil {
				break
			}
		}
		hostile[os.Args[1]]()
		os.Exit(0)
	}
	// A race-enabled worker would sleep for a second before it exits.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}

// hostile are workers that somebody else has taken over: their input is a
// stranger's disk. Each says on the socket what it likes.
var hostile = map[string]func(){
	"garbage":       func() { say("\x00\xff garbage") },
	"empty":         func() { say("{}") },
	"unknown":       func() { say(`{"type":"exec"}`) },
	"array":         func() { say(`[{"type":"answer"}]`) },
	"deep":          func() { say(`{"type":` + strings.Repeat("[", 30000)) },
	"long":          func() { say(`{"type":"answer","x":"` + strings.Repeat("x", maxPacket) + `"}`) },
	"no kind":       func() { say(`{"type":"answer","fault":{"kind":"Root","text":"x","chain":"y"}}`) },
	"two answers":   func() { say(`{"type":"answer"}`); say(`{"type":"answer","fault":{"kind":"HomeBusy","chain":"x"}}`) },
	"no record":     func() { say(`{"type":"answer","record":true}`) },
	"lock and all":  func() { say(`{"type":"lock"}`, os.Stdin) },
	"lock, no file": func() { say(`{"type":"lock"}`) },
	"many files": func() {
		for range 200 {
			say(`{"type":"progress"}`, os.Stdin, os.Stdin, os.Stdin, os.Stdin, os.Stdin, os.Stdin, os.Stdin, os.Stdin)
		}
	},
	"many locks": func() {
		for range 500 {
			say(`{"type":"lock"}`, os.Stdin)
		}
		say(`{"type":"answer"}`)
	},
	"much progress": func() {
		for i := range 20000 {
			say(fmt.Sprintf(`{"type":"progress","done":%d}`, i))
		}
		say(`{"type":"answer"}`)
	},
	"64 MiB": func() {
		f, err := os.CreateTemp("", "answer")
		if err == nil {
			_ = os.Remove(f.Name())
			err = f.Truncate(64 << 20)
		}
		if err != nil {
			os.Exit(1)
		}
		say(`{"type":"answer","record":true}`, f)
	},
	"a pipe": func() {
		r, _, err := os.Pipe()
		if err != nil {
			os.Exit(1)
		}
		say(`{"type":"answer","record":true}`, r)
	},
	"a keep of 64 MiB": func() {
		f, err := os.Open("/dev/zero")
		if err != nil {
			os.Exit(1)
		}
		say(`{"type":"keep","record":true}`, f)
	},
}

// say sends a packet, whatever comes of it.
func say(text string, files ...*os.File) {
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_ = unix.Sendmsg(socketFD, []byte(text), oob, nil, 0)
}

// TestHostileWorkers: whatever a worker says, the operation ends with one
// answer, of a kind that we know, and nothing of it stays open.
func TestHostileWorkers(t *testing.T) {
	const none = fault.Kind("")
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	end(t, start(t, t.Context(), Request{Verb: "nothing", Record: []byte("{}")})) // what the runtime opens
	before := files()
	for verb := range hostile {
		want := fault.WorkerFailed
		switch verb {
		case "two answers", "many locks", "much progress":
			want = none
		case "no kind":
			want = fault.Unknown
		}
		t.Run(verb, func(t *testing.T) {
			p := start(t, t.Context(), Request{Verb: verb, Record: []byte("{}")})
			a, events := end(t, p)
			if fault.KindOf(a.Err) != want {
				t.Errorf("kind %q of %v, want %q", fault.KindOf(a.Err), a.Err, want)
			}
			if a.Record != nil {
				t.Errorf("a record of %d bytes", len(a.Record))
			}
			for _, e := range events {
				if e.ImageLock != nil {
					_ = e.ImageLock.Close()
				}
			}
		})
	}
	if after := files(); after > before {
		t.Errorf("%d files are open, %d were before", after, before)
	}
}

func start(t *testing.T, ctx context.Context, r Request) *Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r.SharedMounts = true
	p, err := Start(ctx, self, r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func end(t *testing.T, p *Process) (last *Answer, before []Event) {
	t.Helper()
	for e := range p.Events() {
		if last != nil {
			t.Errorf("event %+v after the answer", e)
		}
		if e.Answer != nil {
			last = e.Answer
			continue
		}
		before = append(before, e)
	}
	if last == nil {
		t.Fatal("no answer")
	}
	return last, before
}

func TestRequestArrivesWhole(t *testing.T) {
	s, err := secret.Copy([]byte(`{"password":["x"]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, _ := end(t, start(t, t.Context(), Request{Verb: "echo", Record: []byte(`{"userName":"ann"}`), Secrets: s,
		Params: Params{Machine: records.Machine{ID: "abc"}, HaveImageLock: true}}))
	if a.Err != nil || string(a.Record) != `echo {"userName":"ann"} abc true 18 {"PASSWORD":["X"]}` {
		t.Errorf("got %q, %v", a.Record, a.Err)
	}
	empty, err := secret.New(0)
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	a, _ = end(t, start(t, t.Context(), Request{Verb: "echo", Record: []byte("{}"), Secrets: empty}))
	if a.Err != nil || !strings.HasSuffix(string(a.Record), "false 0 ") {
		t.Errorf("with empty secrets: %q, %v", a.Record, a.Err)
	}
	a, _ = end(t, start(t, t.Context(), Request{Verb: "echo", Record: []byte("{}")}))
	if a.Err != nil || !strings.HasSuffix(string(a.Record), "none") {
		t.Errorf("without secrets: %q, %v", a.Record, a.Err)
	}
}

// TestManyKeys: how many keys count is not for a packet's size to say.
func TestManyKeys(t *testing.T) {
	keys := map[string]string{}
	for i := range 2000 {
		keys[fmt.Sprint(i)] = strings.Repeat("k", 113)
	}
	a, _ := end(t, start(t, t.Context(), Request{Verb: "keys", Record: []byte("{}"), Params: Params{Keys: keys}}))
	if a.Err != nil || string(a.Record) != "2000 keys, last "+keys["0"] {
		t.Errorf("got %q, %v", a.Record, a.Err)
	}
	keys["0"] = strings.Repeat("k", maxRecord)
	if _, err := Start(t.Context(), "/bin/false", Request{Verb: "keys", Record: []byte("{}"), Params: Params{Keys: keys}}); !fault.Is(err, fault.WorkerFailed) {
		t.Errorf("too many keys: %v", err)
	}
}

// TestBlobs: no files given is not the same as an empty set of files.
func TestBlobs(t *testing.T) {
	dir := t.TempDir()
	files := map[string]*os.File{}
	for _, name := range []string{"avatar", "b"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("<"+name+">"), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		files[name] = f
	}
	for want, blobs := range map[string]map[string]*os.File{"true": nil, "false": {}, "false avatar=<avatar> b=<b>": files} {
		s := words(t)
		a, _ := end(t, start(t, t.Context(), Request{Verb: "blobs", Record: []byte("{}"), Secrets: s, Blobs: blobs}))
		s.Close()
		if a.Err != nil || string(a.Record) != want {
			t.Errorf("got %q, %v, want %q", a.Record, a.Err, want)
		}
	}
	many := map[string]*os.File{}
	for n := range maxBlobs + 1 {
		many[fmt.Sprint(n)] = files["b"]
	}
	if _, err := Start(t.Context(), "/bin/true", Request{Verb: "blobs", Blobs: many}); !fault.Is(err, fault.InvalidArgs) {
		t.Errorf("too many: %v", err)
	}
}

func words(t *testing.T) *secret.Bytes {
	t.Helper()
	s, err := secret.Copy([]byte("words"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAnswers(t *testing.T) {
	for verb, want := range map[string]fault.Kind{
		"nothing": "", "big": "", "wrong": fault.BadHomeSize, "plain": fault.Unknown,
		"exit": fault.WorkerFailed, "nonsense": fault.WorkerFailed,
	} {
		t.Run(verb, func(t *testing.T) {
			a, _ := end(t, start(t, t.Context(), Request{Verb: verb, Record: []byte("{}")}))
			if fault.KindOf(a.Err) != want {
				t.Fatalf("kind %q of %v, want %q", fault.KindOf(a.Err), a.Err, want)
			}
			if verb == "wrong" {
				var e *fault.Error
				if !errors.As(a.Err, &e) || e.User != "ann" || e.Text != "4G is too small." || !strings.Contains(e.Error(), "resize home: ") {
					t.Errorf("got %#v", e)
				}
			}
			if verb == "big" && len(a.Record) != 1<<20 {
				t.Errorf("record of %d bytes", len(a.Record))
			}
		})
	}
}

func TestImageLockOutlivesTheWorker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, before := end(t, start(t, t.Context(), Request{Verb: "lock", Record: []byte(path)}))
	if a.Err != nil || len(before) != 2 || before[0].Progress == nil || *before[0].Progress != (Progress{"format", 1, 2}) || before[1].ImageLock == nil {
		t.Fatalf("got %v, %+v", a.Err, before)
	}
	lock := before[1].ImageLock
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("the image can be locked again: %v", err)
	}
	_ = lock.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("the lock stayed: %v", err)
	}
}

// TestKeepWaits: the operation goes on only after the daemon's word, and ends
// when there is none.
func TestKeepWaits(t *testing.T) {
	p := start(t, t.Context(), Request{Verb: "keep", Record: []byte("{}")})
	e := <-p.Events()
	if e.Keep == nil || string(e.Keep.Record) != "{}" {
		t.Fatalf("got %+v", e)
	}
	select {
	case e := <-p.Events():
		t.Fatalf("it went on: %+v", e)
	case <-time.After(100 * time.Millisecond):
	}
	e.Keep.Reply(nil)
	if e = <-p.Events(); e.Keep == nil {
		t.Fatalf("got %+v", e)
	}
	e.Keep.Reply(fault.New(fault.NoDiskSpace, "save", nil))
	if a, _ := end(t, p); !fault.Is(a.Err, fault.NoDiskSpace) {
		t.Errorf("got %v", a.Err)
	}

	p = start(t, t.Context(), Request{Verb: "keep", Record: []byte("{}")})
	if e := <-p.Events(); e.Keep == nil {
		t.Fatalf("got %+v", e)
	}
	_ = p.conn.CloseWrite()
	if a, _ := end(t, p); !fault.Is(a.Err, fault.ServiceUnknown) {
		t.Errorf("without an answer: %v", a.Err)
	}
}

func TestCancelUnwinds(t *testing.T) {
	for name, stop := range map[string]func(*Process, context.CancelFunc){
		"cancel":           func(p *Process, _ context.CancelFunc) { p.Cancel() },
		"context":          func(_ *Process, cancel context.CancelFunc) { cancel() },
		"daemon vanishing": func(p *Process, _ context.CancelFunc) { _ = p.conn.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "mark")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p := start(t, ctx, Request{Verb: "wait", Record: []byte(path)})
			if e := <-p.Events(); e.Progress == nil {
				t.Fatalf("got %+v", e)
			}
			stop(p, cancel)
			a, _ := end(t, p)
			if !fault.Is(a.Err, fault.HomeBusy) {
				t.Errorf("got %v", a.Err)
			}
			if text, err := os.ReadFile(path); err != nil || string(text) != "unwound" {
				t.Errorf("the worker did not unwind: %q, %v", text, err)
			}
		})
	}
}

func TestStartRefuses(t *testing.T) {
	long, err := secret.New(maxSecrets + 1)
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	if _, err := Start(t.Context(), "/bin/true", Request{Verb: "echo", Secrets: long}); !fault.Is(err, fault.InvalidArgs) {
		t.Errorf("long secrets: %v", err)
	}
	if _, err := Start(t.Context(), "/nonexistent/program", Request{Verb: "echo"}); !fault.Is(err, fault.WorkerFailed) {
		t.Errorf("missing program: %v", err)
	}
}

// FuzzDecode: whatever a worker sends, the daemon neither panics nor takes a
// packet whose descriptor does not fit its type.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"type":"progress","stage":"a","done":1,"total":2}`, `{"type":"lock"}`, `{"type":"keep","record":true}`, `{"type":"kept"}`,
		`{"type":"answer","record":true}`, `{"type":"answer","fault":{"kind":"HomeBusy","chain":"x"}}`, `[]`, `{"type":1}`,
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, data []byte, with bool) {
		var file *os.File
		if with {
			var err error
			if file, err = os.Open("/dev/null"); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = file.Close() }()
		}
		p, got, err := decode(data, file)
		if err != nil {
			if file != nil && file.Close() == nil {
				t.Error("a refused packet's descriptor stayed open")
			}
			return
		}
		if (got != nil) != (p.Type == "lock" || p.Record) {
			t.Errorf("%+v with descriptor: %v", p, got != nil)
		}
		if p.Fault != nil && p.Fault.err("x") == nil {
			t.Error("a fault became success")
		}
	})
}
