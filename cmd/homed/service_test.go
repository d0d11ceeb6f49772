package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hearth/homed/config"
)

type fakeLoop struct {
	conf  chan config.Config
	stuck atomic.Bool
}

func (f *fakeLoop) Reconfigure(_ context.Context, c config.Config) error { f.conf <- c; return nil }
func (f *fakeLoop) Alive(context.Context) error {
	if f.stuck.Load() {
		return errors.New("stuck")
	}
	return nil
}

// listen stands for the service manager.
func listen(t *testing.T) (notifier, func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return notifier{path}, func() string {
		buf := make([]byte, 500)
		if err := l.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := l.Read(buf)
		if err != nil {
			return ""
		}
		return string(buf[:n])
	}
}

func TestReload(t *testing.T) {
	dir := t.TempDir()
	layout := config.Layout{ConfigDirs: []string{dir}}
	notify, heard := listen(t)
	m := &fakeLoop{conf: make(chan config.Config, 1)}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "homed.conf"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("[Home]\nDefaultStorage=directory\n")
	reload(t.Context(), m, layout, notify, slog.New(slog.DiscardHandler))
	if c := <-m.conf; c.DefaultStorage != "directory" {
		t.Errorf("took over %+v", c)
	}
	if s := heard(); !strings.HasPrefix(s, "RELOADING=1\nMONOTONIC_USEC=") || strings.Contains(s, "USEC=0\n") {
		t.Errorf("said %q first", s)
	}
	if s := heard(); s != serving {
		t.Errorf("said %q then", s)
	}
	// A directory cannot be read.
	if err := errors.Join(os.Remove(filepath.Join(dir, "homed.conf")), os.Mkdir(filepath.Join(dir, "homed.conf"), 0o755)); err != nil {
		t.Fatal(err)
	}
	reload(t.Context(), m, layout, notify, slog.New(slog.DiscardHandler))
	if len(m.conf) > 0 {
		t.Error("took over what cannot be read")
	}
	if _, s := heard(), heard(); s != serving {
		t.Errorf("the service manager still waits: %q", s)
	}
}

func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0}, {"x", "", 0}, {"-5", "", 0}, {"0", "", 0}, {"9223372036854775807", "", 0}, {"180000000", "1", 0},
		{"180000000", strconv.Itoa(os.Getpid()), 3 * time.Minute}, {"1000", "", time.Millisecond},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		if got := watchdogInterval(); got != c.want {
			t.Errorf("%q of %q: %v, want %v", c.usec, c.pid, got, c.want)
		}
		if os.Getenv("WATCHDOG_USEC") != "" {
			t.Error("children would inherit it")
		}
	}
	notify, heard := listen(t)
	m := &fakeLoop{}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go watch(ctx, m, 30*time.Millisecond, notify, slog.New(slog.DiscardHandler))
	for range 3 {
		if s := heard(); s != "WATCHDOG=1" {
			t.Errorf("said %q", s)
		}
	}
	m.stuck.Store(true)
	for range 10 {
		if heard() == "" {
			return
		}
	}
	t.Error("speaks for a loop that is stuck")
}
