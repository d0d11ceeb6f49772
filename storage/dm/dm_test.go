package dm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/storage/dm"
	"hearth/storage/keyring"
	"hearth/storage/loop"
)

// These run where device mapper is: go test -c, then the binary in a guest.

func TestMain(m *testing.M) { testenv.Main(m) }

const sectors = 16 << 20 / 512

func block(t *testing.T) (*loop.Device, *os.File) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(testenv.Scratch(t), "img"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(sectors * 512); err != nil {
		t.Fatal(err)
	}
	d, err := loop.Attach(t.Context(), f, loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Detach(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return d, f
}

func name(t *testing.T) string {
	n := fmt.Sprintf("hearth-test-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	t.Cleanup(func() {
		if dm.Exists(n) {
			t.Errorf("leaked mapped device %s", n)
			_ = dm.Remove(context.Background(), n, true)
		}
	})
	return n
}

func TestLinear(t *testing.T) {
	testenv.Need(t, "root", "loop", "dm")
	ctx := t.Context()
	below, _ := block(t)
	n := name(t)
	params := fmt.Sprintf("%d:%d 0", below.Major, below.Minor)

	if _, err := dm.Open(n); !fault.Is(err, fault.HomeNotActive) {
		t.Errorf("open of none: %v", err)
	}
	if err := dm.Remove(ctx, n, false); err != nil {
		t.Errorf("remove of none: %v", err)
	}
	// A link of a device that is long gone must not mislead.
	if err := os.Symlink("../dm-9999", filepath.Join(dm.Dir, n)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	m, err := dm.Create(ctx, n, "HEARTH-"+n, sectors, "linear", params, dm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("created in %v", time.Since(start))
	t.Cleanup(func() { _ = dm.Remove(context.Background(), n, false) })
	for _, p := range []string{m.Node, filepath.Join(dm.Dir, n)} {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil || unix.Major(st.Rdev) != m.Major || unix.Minor(st.Rdev) != m.Minor {
			t.Errorf("%s is not the device: %v", p, err)
		}
	}
	if _, err := dm.Create(ctx, n, "", sectors, "linear", params, dm.Options{}); !fault.Is(err, fault.FileExists) {
		t.Errorf("second of the name: %v", err)
	}
	if _, err := dm.Create(ctx, n+"x", "HEARTH-"+n, sectors, "linear", params, dm.Options{}); !fault.Is(err, fault.FileExists) {
		t.Errorf("second of the uuid: %v", err)
	}
	st, err := m.Status()
	if err != nil || st.UUID != "HEARTH-"+n || st.Suspended || st.Deferred || st.ReadOnly {
		t.Errorf("status %+v, %v", st, err)
	}
	if s, kind, p, err := m.Table(); err != nil || s != sectors || kind != "linear" || p != params {
		t.Errorf("table %d %q %q, %v", s, kind, p, err)
	}
	if major, minor, err := m.Backing(); err != nil || major != below.Major || minor != below.Minor {
		t.Errorf("backing %d:%d, %v", major, minor, err)
	}
	if o, err := dm.Open(n); err != nil || *o != *m {
		t.Errorf("opened %+v, %v", o, err)
	}
	if err := m.Suspend(); err != nil {
		t.Fatal(err)
	}
	if st, err := m.Status(); err != nil || !st.Suspended {
		t.Errorf("suspended: %+v, %v", st, err)
	}
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := m.Reload(sectors/2, "linear", params, dm.Options{}); err != nil {
		t.Fatal(err)
	}
	if s, _, _, err := m.Table(); err != nil || s != sectors/2 {
		t.Errorf("table after reload: %d, %v", s, err)
	}
	if err := m.Reload(sectors, "linear", "nonsense", dm.Options{}); err == nil {
		t.Error("nonsense was loaded")
	}

	// In use: refused, then deferred to the last close.
	user, err := os.Open(m.Node)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := dm.Remove(short, n, false); !fault.Is(err, fault.HomeBusy) {
		t.Errorf("removed although in use: %v", err)
	}
	if err := dm.Remove(ctx, n, true); err != nil {
		t.Fatal(err)
	}
	if st, err := m.Status(); err != nil || !st.Deferred {
		t.Errorf("deferred: %+v, %v", st, err)
	}
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	if err := dm.WaitGone(ctx, n); err != nil {
		t.Fatal(err)
	}
	t.Logf("gone after %v", time.Since(start))
	if _, err := os.Lstat(filepath.Join(dm.Dir, n)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link is still there: %v", err)
	}
}

func TestRefusedTablesLeaveNothing(t *testing.T) {
	testenv.Need(t, "root", "loop", "dm")
	below, _ := block(t)
	n := name(t)
	dev := fmt.Sprintf("%d:%d", below.Major, below.Minor)
	for _, c := range []struct {
		target, params string
		kind           fault.Kind
	}{
		{"linear", dev + " 1000000000", fault.Unknown},
		{"no-such-target", dev, fault.NotSupported},
	} {
		if _, err := dm.Create(t.Context(), n, "", sectors, c.target, c.params, dm.Options{}); fault.KindOf(err) != c.kind {
			t.Errorf("%s %s: %v", c.target, c.params, err)
		}
		if dm.Exists(n) {
			t.Errorf("%s: a device is left", c.target)
		}
	}
}

// TestHeld: a held device goes with its last close, one that others use stays
// until they are done; a table that is refused leaves nothing.
func TestHeld(t *testing.T) {
	testenv.Need(t, "root", "loop", "dm")
	below, _ := block(t)
	n := name(t)
	params := fmt.Sprintf("%d:%d 0", below.Major, below.Minor)
	m, hold, err := dm.CreateHeld(t.Context(), n, "", sectors, "linear", params, dm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := m.Status(); err != nil || !st.Deferred || !st.Live || st.OpenCount < 1 {
		t.Errorf("held: %+v, %v", st, err)
	}
	// It was opened before it had a size.
	if size, err := hold.Seek(0, io.SeekEnd); err != nil || size != sectors*512 {
		t.Errorf("%d bytes, %v", size, err)
	}
	user, err := os.Open(m.Node)
	if err != nil {
		t.Fatal(err)
	}
	if err := hold.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := user.ReadAt(make([]byte, 512), (sectors-1)*512); err != nil || !dm.Exists(n) {
		t.Errorf("in use: %v, there %v", err, dm.Exists(n))
	}
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	if err := dm.WaitGone(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if _, hold, err := dm.CreateHeld(t.Context(), n, "", sectors, "linear", fmt.Sprintf("%d:%d 1000000000", below.Major, below.Minor), dm.Options{}); err == nil || hold != nil {
		t.Errorf("a table that cannot be: %v", err)
	}
}

func TestCreateAndRemoveAtOnce(t *testing.T) {
	testenv.Need(t, "root", "loop", "dm")
	below, _ := block(t)
	n := name(t)
	for range 20 {
		m, err := dm.Create(t.Context(), n, "HEARTH-"+n, sectors, "linear", fmt.Sprintf("%d:%d 0", below.Major, below.Minor), dm.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := dm.Remove(t.Context(), n, false); err != nil {
			t.Fatal(err)
		}
		if err := dm.WaitGone(t.Context(), m.Name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCryptWithLogonKey maps with a key the table only names, and is the
// premise of locking: the key can be wiped and set again.
func TestCryptWithLogonKey(t *testing.T) {
	testenv.Need(t, "root", "loop", "dm-crypt", "keyring")
	ctx := t.Context()
	below, image := block(t)
	n := name(t)
	key, err := secret.Copy(bytes.Repeat([]byte{0x5a, 0xc3}, 16))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	desc := "cryptsetup:" + n
	params := fmt.Sprintf("aes-xts-plain64 :32:logon:%s 0 %d:%d 0 1 allow_discards", desc, below.Major, below.Minor)

	if _, err := dm.Create(ctx, n, "", sectors, "crypt", params, dm.Options{}); !fault.Is(err, fault.KeyUnavailable) {
		t.Errorf("without the key: %v", err)
	}
	var m *dm.Mapped
	err = keyring.WithLogonKey(desc, key, func() (err error) {
		m, err = dm.Create(ctx, n, "", sectors, "crypt", params, dm.Options{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dm.Remove(context.Background(), n, false) })
	if _, kind, p, err := m.Table(); err != nil || kind != "crypt" || !strings.Contains(p, ":32:logon:"+desc) {
		t.Errorf("table %s %s, %v", kind, p, err)
	}

	plain := bytes.Repeat([]byte("a letter home - "), 256)
	f, err := os.OpenFile(m.Node, os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(plain, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := below.Sync(); err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, len(plain))
	if _, err := image.ReadAt(raw, 0); err != nil || bytes.Contains(raw, plain[:16]) || bytes.Equal(raw, make([]byte, len(raw))) {
		t.Errorf("the image holds the text or nothing: %v", err)
	}

	if err := m.Suspend(); err != nil {
		t.Fatal(err)
	}
	if err := m.Message("key wipe"); err != nil {
		t.Fatal(err)
	}
	if err := m.Message("key set :32:logon:" + desc); !fault.Is(err, fault.KeyUnavailable) {
		t.Errorf("the key outlived its function: %v", err)
	}
	err = keyring.WithLogonKey(desc, key, func() error { return m.Message("key set :32:logon:" + desc) })
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(plain))
	if f, err = os.Open(m.Node); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("after wipe and set: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := dm.Remove(ctx, n, false); err != nil {
		t.Fatal(err)
	}
}
