package luks

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/storage/loop"
	"hearth/storage/luks2"
)

// contested is a container in an image that a loop device shows.
type contested struct {
	window
	node      string
	volumeKey *secret.Bytes
	pbkdf     luks2.PBKDF
	dir       string
}

func newContested(t *testing.T) *contested {
	t.Helper()
	testenv.Need(t, "root", "loop", "cryptsetup")
	c := &contested{pbkdf: luks2.PBKDF{Type: "pbkdf2", ForceIterations: 1000}, dir: t.TempDir()}
	f, err := os.Create(filepath.Join(c.dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	c.window = window{file: f, offset: mib, size: 20 * mib}
	if err := f.Truncate(c.offset + c.size + mib); err != nil {
		t.Fatal(err)
	}
	c.volumeKey = words(t, strings.Repeat("k", 32))
	h, err := luks2.Format(c.window, luks2.Params{UUID: "11111111-2222-4333-8444-555555555555", PBKDF: c.pbkdf}, c.volumeKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.AddKeyslot(c.window, c.volumeKey, words(t, "ours"), c.pbkdf); err != nil {
		t.Fatal(err)
	}
	l, err := loop.Attach(t.Context(), f, loop.Config{Offset: c.offset, SizeLimit: c.size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Detach(t.Context()); err != nil && !errors.Is(err, t.Context().Err()) {
			t.Error(err)
		}
	})
	c.node = l.Path
	for _, name := range []string{"ours", "theirs"} {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func words(t *testing.T, s string) *secret.Bytes {
	t.Helper()
	b, err := secret.Copy([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func (c *contested) read(t *testing.T) *luks2.Header {
	t.Helper()
	h, err := luks2.Read(c.window, c.size)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// concurrent is what cryptsetup says of a header that we have written since it
// read it.
const concurrent = "concurrent LUKS2 metadata update"

// addKey is cryptsetup adding a keyslot; args say how it derives.
func (c *contested) addKey(args ...string) *exec.Cmd {
	args = append([]string{"--batch-mode", "luksAddKey", "--key-file", filepath.Join(c.dir, "ours")}, args...)
	return exec.Command("cryptsetup", append(args, c.node, filepath.Join(c.dir, "theirs"))...)
}

// turns has cryptsetup add and destroy a keyslot, as often as asked. Where we
// have written since it read the header it refuses, as we do.
func (c *contested) turns(rounds int, args []string) (why string) {
	for range rounds {
		for _, add := range []bool{true, false} {
			for {
				cmd := exec.Command("cryptsetup", "--batch-mode", "luksKillSlot", "--key-file", filepath.Join(c.dir, "ours"), c.node, "1")
				if add {
					cmd = c.addKey(args...)
				}
				out, err := cmd.CombinedOutput()
				if err == nil {
					break
				}
				if !bytes.Contains(out, []byte(concurrent)) {
					return fmt.Sprintf("%v: %v\n%s", cmd.Args, err, out)
				}
			}
		}
	}
	return ""
}

// start starts cryptsetup and returns when /proc/locks says of it what is
// wanted: that it holds a lock, or waits for one. end waits for its end.
func start(t *testing.T, cmd *exec.Cmd, waits bool) (end func() error) {
	t.Helper()
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	end = func() error {
		if err := <-done; err != nil {
			return fmt.Errorf("%v: %w\n%s", cmd.Args, err, said.String())
		}
		return nil
	}
	for {
		select {
		case err := <-done:
			t.Fatalf("%v came to its end: %v\n%s", cmd.Args, err, said.String())
		case <-time.After(2 * time.Millisecond):
		}
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(locks)) {
			fields := strings.Fields(line)
			blocked := len(fields) > 1 && fields[1] == "->"
			if blocked {
				fields = fields[1:]
			}
			if len(fields) > 4 && fields[1] == "FLOCK" && fields[3] == "WRITE" && fields[4] == fmt.Sprint(cmd.Process.Pid) && blocked == waits {
				return end
			}
		}
	}
}

// TestHeaderLock: cryptsetup waits while we write a header, and we wait while
// it does. Nothing of what either has written is lost.
func TestHeaderLock(t *testing.T) {
	cheap := []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"}
	t.Run("it waits", func(t *testing.T) {
		c := newContested(t)
		before := c.read(t).Seqid()
		// Shared is enough to keep a writer away.
		release, err := c.Lock(false)
		if err != nil {
			t.Fatal(err)
		}
		end := start(t, c.addKey(cheap...), true)
		if now := c.read(t).Seqid(); now != before {
			t.Errorf("the header was written: %d, then %d", before, now)
		}
		release()
		if err := end(); err != nil {
			t.Error(err)
		}
		if h := c.read(t); len(h.Keyslots()) != 2 || h.Damaged != luks2.Neither {
			t.Errorf("keyslots %v, damaged %v", h.Keyslots(), h.Damaged)
		}
		names, err := c.lockNames()
		if err != nil || len(names) != 1 {
			t.Fatalf("locks %q, %v", names, err)
		}
		if _, err := os.Stat(filepath.Join(headerLocks, names[0])); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the lock stays: %v", err)
		}
	})
	t.Run("we wait", func(t *testing.T) {
		c := newContested(t)
		h := c.read(t)
		// It derives under its lock, after having had it for a moment.
		end := start(t, c.addKey("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "700000"), false)
		defer func(d time.Duration) { headerWait = d }(headerWait)
		headerWait = 0
		for {
			release, err := c.Lock(false)
			if fault.Is(err, fault.HomeBusy) {
				break
			}
			if err != nil {
				t.Fatalf("while cryptsetup holds it: %v", err)
			}
			release()
			if len(c.read(t).Keyslots()) > 1 {
				t.Fatal("cryptsetup never held it while it derived")
			}
			time.Sleep(2 * time.Millisecond)
		}
		headerWait = 5 * time.Minute
		const record = `{"userName":"ann"}`
		ours, theirs, slots := h.SetHomedToken(c.window, c.volumeKey, []byte(record)), end(), 2
		if ours == nil {
			// It lets go between the keyslot and the header. Who comes first then
			// has made the other's header outdated.
			slots = 1
			ours, theirs = theirs, ours
			if got, err := c.read(t).HomedToken(c.volumeKey); err != nil || string(got) != record {
				t.Errorf("record %q, %v", got, err)
			}
		}
		if theirs != nil || !fault.Is(ours, fault.HomeInUse) && (ours == nil || !strings.Contains(ours.Error(), concurrent)) {
			t.Errorf("one is first, the other has an outdated header: %v, %v", ours, theirs)
		}
		if h := c.read(t); len(h.Keyslots()) != slots || h.Damaged != luks2.Neither {
			t.Errorf("keyslots %v, damaged %v", h.Keyslots(), h.Damaged)
		}
	})
	t.Run("in turns", func(t *testing.T) {
		c := newContested(t)
		rounds := 3
		if os.Getenv("HEARTH_TEST_LONG") == "1" {
			rounds = 100
		}
		done := make(chan string, 1)
		go func() { done <- c.turns(rounds, cheap) }()
		written, refused, record := 0, 0, ""
		for busy := true; busy; {
			select {
			case why := <-done:
				if busy = false; why != "" {
					t.Error(why)
				}
			default:
			}
			h := c.read(t)
			if h.Damaged != luks2.Neither {
				t.Fatalf("the %v copy is seen half written", h.Damaged)
			}
			if record != "" {
				if got, err := h.HomedToken(c.volumeKey); err != nil || string(got) != record {
					t.Fatalf("record %q, want %q: %v", got, record, err)
				}
			}
			next := fmt.Sprintf(`{"userName":"ann","n":%d}`, written)
			err := h.SetHomedToken(c.window, c.volumeKey, []byte(next))
			switch {
			case err == nil:
				written, record = written+1, next
			case fault.Is(err, fault.HomeInUse):
				refused++
			default:
				t.Fatal(err)
			}
		}
		if h := c.read(t); len(h.Keyslots()) != 1 || written == 0 {
			t.Errorf("keyslots %v after %d writes of ours", h.Keyslots(), written)
		}
		t.Logf("%d keyslots made and destroyed, %d writes of ours, %d refused", rounds, written, refused)
	})
}
