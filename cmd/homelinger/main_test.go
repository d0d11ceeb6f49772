package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/internal/secret"
)

// service is a home service that knows one password.
type service struct {
	mu    sync.Mutex
	list  []home1.HomeInfo
	calls []string
	gone  error
}

func (s *service) ListHomes(context.Context) ([]home1.HomeInfo, error) { return s.list, s.gone }

func (s *service) ActivateHome(_ context.Context, name string, secrets *secret.Bytes) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var text string
	_ = secrets.Use(func(p []byte) error { text = string(p); return nil })
	s.calls = append(s.calls, name+" "+text)
	switch {
	case strings.Contains(text, "right"):
		return nil
	case strings.Contains(text, "away"):
		return fault.New(fault.HomeAbsent, "activate", nil)
	}
	return fault.New(fault.BadPassword, "activate", nil)
}

// answer gives each user's questions their answers in order, and returns what
// was asked.
func answer(t *testing.T, dir string, answers map[string][]string) (asked func() []string) {
	t.Helper()
	quit, done := make(chan struct{}), make(chan struct{})
	var seen []string
	go func() {
		defer close(done)
		known := map[string]bool{}
		for {
			select {
			case <-quit:
				return
			case <-time.After(5 * time.Millisecond):
			}
			files, _ := filepath.Glob(filepath.Join(dir, "ask.*"))
			for _, f := range files {
				text, err := os.ReadFile(f)
				if err != nil || known[f] {
					continue
				}
				known[f] = true
				value := func(key string) string {
					_, rest, _ := strings.Cut(string(text), "\n"+key+"=")
					v, _, _ := strings.Cut(rest, "\n")
					return v
				}
				seen = append(seen, value("Message"))
				user := strings.TrimPrefix(value("Id"), "home:")
				if len(answers[user]) == 0 {
					continue
				}
				if c, err := net.Dial("unixgram", value("Socket")); err == nil {
					_, _ = c.Write([]byte(answers[user][0]))
					c.Close()
				}
				answers[user] = answers[user][1:]
			}
		}
	}()
	return func() []string {
		close(quit)
		<-done
		slices.Sort(seen)
		return seen
	}
}

func TestWake(t *testing.T) {
	home := func(name, state string) home1.HomeInfo { return home1.HomeInfo{UserName: name, State: state} }
	s := &service{list: []home1.HomeInfo{
		home("ann", "inactive"), home("bea", "dirty"), home("cat", "active"), home("dan", "inactive"),
		home("eve", "inactive"), home("fay", "inactive"), home("gus", "absent"), home("hal", "inactive"), home("ida", "inactive"),
	}}
	lingering := map[string]bool{}
	for _, n := range []string{"ann", "bea", "cat", "eve", "fay", "gus", "hal", "ida", "nobody"} { // not dan
		lingering[n] = true
	}
	dir, err := os.MkdirTemp("", "ask")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	r := &round{homes: s, dir: filepath.Join(dir, "q"), limit: 4 * time.Second, log: slog.New(slog.DiscardHandler)}
	asked := answer(t, r.dir, map[string][]string{
		"ann": {"+wrong", "+right"},
		"bea": {"+a", "+\xff", "+c", "+right"},
		"eve": {"-"},
		"fay": {"+"},
		"hal": {"+away"},
		// Nobody answers for ida.
	})
	began := time.Now()
	n, err := r.wake(t.Context(), lingering)
	if n != 6 || err != nil {
		t.Errorf("asked for %d homes, %v", n, err)
	}
	if took := time.Since(began); took < 4*time.Second || took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	const q, again = "Password for home of user ", "Sorry, try again. Password for home of user "
	want := []string{q + "ann: ", again + "ann: ", q + "bea: ", again + "bea: ", again + "bea: ", q + "eve: ", q + "fay: ", q + "hal: ", q + "ida: "}
	slices.Sort(want)
	if got := asked(); !slices.Equal(got, want) {
		t.Errorf("asked %q", got)
	}
	slices.Sort(s.calls)
	if want := []string{
		`ann {"password":["right","wrong"]}`, `ann {"password":["wrong"]}`,
		`bea {"password":["a"]}`, `bea {"password":["c","a"]}`, `hal {"password":["away"]}`,
	}; !slices.Equal(s.calls, want) {
		t.Errorf("calls %q", s.calls)
	}
	if left, _ := os.ReadDir(r.dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWakeWithoutService(t *testing.T) {
	gone := errors.New("gone")
	r := &round{homes: &service{gone: gone}, dir: t.TempDir(), limit: time.Minute, log: slog.New(slog.DiscardHandler)}
	if n, err := r.wake(t.Context(), map[string]bool{"ann": true}); n != 0 || !errors.Is(err, gone) {
		t.Errorf("%d, %v", n, err)
	}
}
