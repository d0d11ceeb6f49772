package keyring_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/storage/keyring"
)

func volumeKey(t *testing.T, fill byte) *secret.Bytes {
	t.Helper()
	k, err := secret.New(64)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	if err := k.Use(func(p []byte) error {
		for i := range p {
			p[i] = fill
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return k
}

func TestLogonKeyLivesForTheCall(t *testing.T) {
	testenv.Need(t, "keyring")
	desc := fmt.Sprintf("cryptsetup:hearth-test-%d", os.Getpid())
	search := func() error {
		_, err := unix.KeyctlSearch(unix.KEY_SPEC_THREAD_KEYRING, "logon", desc, 0)
		return err
	}
	ours := errors.New("ours")
	err := keyring.WithLogonKey(desc, volumeKey(t, 7), func() error {
		if err := search(); err != nil {
			t.Errorf("the key is not there: %v", err)
		}
		if len(testenv.Keys("logon     "+desc)) != 1 {
			t.Error("the kernel does not show the key")
		}
		// Nobody reads a logon key, the process that added it included.
		id, err := unix.KeyctlSearch(unix.KEY_SPEC_THREAD_KEYRING, "logon", desc, 0)
		if err == nil {
			_, err = unix.KeyctlBuffer(unix.KEYCTL_READ, id, make([]byte, 64), 0)
		}
		if err == nil {
			t.Error("a logon key could be read")
		}
		return ours
	})
	if !errors.Is(err, ours) {
		t.Errorf("the function's error got lost: %v", err)
	}
	if err := search(); err == nil {
		t.Error("the key outlived the call")
	}
}

func TestSessionKey(t *testing.T) {
	testenv.Need(t, "keyring")
	name := fmt.Sprintf("homework-user-hearth-test-%d", os.Getpid())
	if _, err := keyring.Get(name); !fault.Is(err, fault.KeyUnavailable) {
		t.Errorf("get of none: %v", err)
	}
	if err := keyring.Drop(name); err != nil {
		t.Errorf("drop of none: %v", err)
	}
	for _, fill := range []byte{1, 2} {
		want := volumeKey(t, fill)
		if err := keyring.Put(name, want); err != nil {
			t.Fatal(err)
		}
		got, err := keyring.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Equal(want) {
			t.Errorf("another key came back, of %d bytes", got.Len())
		}
		got.Close()
	}
	if list := testenv.Keys(name + ":"); len(list) == 0 {
		t.Error("the kernel does not show the key")
	}
	if err := keyring.Drop(name); err != nil {
		t.Fatal(err)
	}
	if list := testenv.KeysLeft(name + ":"); len(list) > 0 {
		t.Errorf("left: %q", list)
	}
	if _, err := keyring.Get(name); !fault.Is(err, fault.KeyUnavailable) {
		t.Errorf("get after drop: %v", err)
	}
}
