package storagetest

import (
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/storage"
)

// patience is how long something that must wait is watched for not waiting.
const patience = time.Second

// locked: nobody gets at a locked home, and everybody goes on where they were.
func locked(t *testing.T, w *World) {
	if _, ok := w.Kind.Backend.(storage.Suspender); !ok {
		w.Must(t, storage.Create, Password)
		w.Must(t, storage.Activate, Password)
		w.Refused(t, storage.Lock, "", fault.NotSupported)
		w.Refused(t, storage.Unlock, Password, fault.NotSupported)
		return
	}
	w.Must(t, storage.Create, Password)
	w.Refused(t, storage.Lock, "", fault.HomeNotActive)
	w.Refused(t, storage.Unlock, Password, fault.HomeNotActive)
	w.Must(t, storage.Activate, Password)
	// Large and without pattern: btrfs keeps what is small, or becomes small,
	// with its metadata, which does not leave the cache.
	photo := make([]byte, 300_000)
	_, _ = rand.Read(photo)
	w.write(t, "photo", string(photo))
	w.write(t, "letter", "dear ann")
	// Not locked: an unlock only looks at the password.
	w.Refused(t, storage.Unlock, "battery staple", fault.BadPassword)
	w.Must(t, storage.Unlock, Password)
	// What is cached can be read without the key.
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Lock, "")
	// A test that fails must not leave a home that nothing ends.
	t.Cleanup(func() { _, _ = w.Run(storage.Unlock, Password) })
	w.Must(t, storage.Lock, "") // as after a worker that was killed half way

	reader := background(t, "cat", filepath.Join(w.Home(), "photo"))
	writer := background(t, "touch", filepath.Join(w.Home(), "new"))
	time.Sleep(patience)
	for _, c := range []*waiting{reader, writer} {
		if c.ended() {
			t.Errorf("%s was let in, to %d bytes", c.cmd.Path, len(c.out))
		}
	}
	w.Refused(t, storage.Unlock, "battery staple", fault.BadPassword)
	w.Refused(t, storage.Unlock, "", fault.BadPassword, fault.KeyUnavailable)
	w.Refused(t, storage.Deactivate, "", fault.HomeLocked)
	w.Refused(t, storage.DeactivateForce, "", fault.HomeLocked)
	w.Refused(t, storage.Remove, "", fault.HomeBusy)
	if reader.ended() || writer.ended() {
		t.Error("who was refused has unlocked the home")
	}
	w.Must(t, storage.Unlock, Password)
	for _, c := range []*waiting{reader, writer} {
		select {
		case <-c.done:
		case <-time.After(limit):
			t.Fatalf("%s still waits after the home was unlocked", c.cmd.Path)
		}
	}
	if !bytes.Equal(reader.out, photo) {
		t.Errorf("the reader got %d bytes of something else", len(reader.out))
	}
	if _, err := os.Lstat(filepath.Join(w.Home(), "new")); err != nil {
		t.Errorf("what was written while the home was locked: %v", err)
	}
	// The image lock was lost with the daemon, and is taken anew.
	w.Must(t, storage.Lock, "")
	w.unlock()
	w.Must(t, storage.Unlock, Password)
	if len(w.locks) != 1 {
		t.Errorf("%d image locks after unlocking", len(w.locks))
	}
	w.Must(t, storage.Deactivate, "")
	w.Must(t, storage.Activate, Password)
	w.holds(t, "letter", "dear ann")
}

// waiting is a program that is on its way.
type waiting struct {
	cmd  *exec.Cmd
	done chan struct{}
	out  []byte // once done
}

func background(t *testing.T, argv ...string) *waiting {
	t.Helper()
	w := &waiting{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.out, _ = w.cmd.CombinedOutput()
	}()
	return w
}

func (w *waiting) ended() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}
