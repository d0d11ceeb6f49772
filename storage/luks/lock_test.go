package luks

import (
	"os"
	"strings"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/testenv"
	"hearth/storage"
	"hearth/storage/dm"
	"hearth/storage/keyring"
	"hearth/storage/storagetest"
)

// TestLockKeepsNoKey looks for the key where the kernel had it.
func TestLockKeepsNoKey(t *testing.T) {
	testenv.Need(t, "root", "loop", "dm-crypt", "ext4", "mkfs.ext4", "keyring")
	w := storagetest.New(t, storagetest.Kind{
		Storage: "luks", Backend: Backend{}, Image: true, Remains: remains,
		Fields: map[string]any{
			"fileSystemType": "ext4", "diskSize": 50 * mib,
			"luksPbkdfType": "pbkdf2", "luksPbkdfForceIterations": 1000,
		},
	})
	w.Must(t, storage.Create, storagetest.Password)
	w.Must(t, storage.Activate, storagetest.Password)
	t.Cleanup(func() { _, _ = w.Run(storage.Unlock, storagetest.Password) })
	m, err := dm.Open("home-" + w.User)
	if err != nil {
		t.Fatal(err)
	}
	kept := func() bool {
		key, err := keyring.Get("homework-user-" + w.User)
		if err != nil && !fault.Is(err, fault.KeyUnavailable) {
			t.Fatal(err)
		}
		key.Close()
		return err == nil
	}
	named := func() bool {
		_, _, params, err := m.Table()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(params, ":logon:cryptsetup:")
	}
	if !kept() || !named() {
		t.Fatalf("an active home: kept %v, named %v", kept(), named())
	}
	gone := func(how string) {
		t.Helper()
		if kept() || named() {
			t.Errorf("%s: kept %v, named in the table %v", how, kept(), named())
		}
		// The kernel itself refuses to go on without the key.
		if err := m.Resume(); err == nil {
			t.Errorf("%s: the device goes on without its key", how)
		}
		if st, err := m.Status(); err != nil || !st.Suspended {
			t.Errorf("%s: %+v, %v", how, st, err)
		}
	}
	w.Must(t, storage.Lock, "")
	gone("locked")
	w.Must(t, storage.Unlock, storagetest.Password)
	if !kept() || !named() {
		t.Errorf("an unlocked home: kept %v, named %v", kept(), named())
	}

	// A worker that was killed between suspending and wiping.
	if err := m.Suspend(); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Lock, "")
	gone("locked in two goes")
	w.Must(t, storage.Unlock, storagetest.Password)

	// Killed between setting the key and going on.
	w.Must(t, storage.Lock, "")
	w.Refused(t, storage.Unlock, "battery staple", fault.BadPassword)
	gone("after a wrong password")
	w.Must(t, storage.Unlock, storagetest.Password)
	w.Must(t, storage.Deactivate, "")
}

// TestLeftoverDevice: a mapped device that a killed worker left keeps nobody
// out of the home; one that is in use does.
func TestLeftoverDevice(t *testing.T) {
	testenv.Need(t, "root", "loop", "dm-crypt", "ext4", "mkfs.ext4")
	w := storagetest.New(t, storagetest.Kind{
		Storage: "luks", Backend: Backend{}, Image: true, Remains: remains,
		Fields: map[string]any{
			"fileSystemType": "ext4", "diskSize": 50 * mib,
			"luksPbkdfType": "pbkdf2", "luksPbkdfForceIterations": 1000,
		},
	})
	leave := func() *dm.Mapped {
		t.Helper()
		m, err := dm.Create(t.Context(), "home-"+w.User, "", 2048, "error", "", dm.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	leave()
	w.Must(t, storage.Create, storagetest.Password)
	user, err := os.Open(leave().Node)
	if err != nil {
		t.Fatal(err)
	}
	w.Refused(t, storage.Activate, storagetest.Password, fault.FileExists)
	w.Refused(t, storage.Remove, "", fault.HomeBusy)
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	w.Must(t, storage.Activate, storagetest.Password)
	w.Must(t, storage.Deactivate, "")
	leave()
	w.Must(t, storage.Remove, "")
	w.Idle(t)
}
