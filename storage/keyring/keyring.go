// Package keyring hands keys to the kernel: for one ioctl, to the thread that
// makes it, and for as long as a home is active, to the session the workers
// share. It knows names and bytes; what a key opens is its callers'.
package keyring

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// maxKey bounds what is read back: no volume key is longer.
const maxKey = 512

// WithLogonKey calls f while the calling thread's keyring holds key as a logon
// key (which the kernel can use and no process can read) of the given
// description. f runs on a thread locked to this goroutine and must load the
// table itself: the kernel looks in the thread's own keyring, and one goroutine
// further it would not be found. The key is gone when it returns; what took a
// reference to it, took a copy.
func WithLogonKey(description string, key *secret.Bytes, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var id int
	err := key.Use(func(p []byte) (err error) {
		id, err = unix.AddKey("logon", description, p, unix.KEY_SPEC_THREAD_KEYRING)
		return err
	})
	if err != nil {
		return unavailable("add logon key", err)
	}
	err = f()
	if uerr := unlink(id, unix.KEY_SPEC_THREAD_KEYRING); uerr != nil {
		return errors.Join(err, fmt.Errorf("unlink logon key: %w", uerr))
	}
	return err
}

// Put keeps key under name in the session keyring, in the place of one that is
// there. The service has a session keyring of its own, which its workers
// inherit and which survives them.
func Put(name string, key *secret.Bytes) error {
	err := key.Use(func(p []byte) error {
		_, err := unix.AddKey("user", name, p, unix.KEY_SPEC_SESSION_KEYRING)
		return err
	})
	if err != nil {
		return unavailable("keep key "+name, err)
	}
	return nil
}

// Get returns the key that Put kept, which the caller closes. Faults:
// KeyUnavailable if there is none, also after the service was restarted.
func Get(name string) (*secret.Bytes, error) {
	op := "fetch key " + name
	id, err := find(name)
	if err != nil {
		return nil, unavailable(op, err)
	}
	buf, err := secret.New(maxKey)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	defer buf.Close()
	var key *secret.Bytes
	err = buf.Use(func(p []byte) error {
		// The kernel returns the key's length, however much of it fits.
		n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, p, 0)
		if err != nil {
			return err
		}
		if n > len(p) {
			return fmt.Errorf("key of %d bytes", n)
		}
		key, err = secret.Copy(p[:n])
		return err
	})
	if err != nil {
		return nil, unavailable(op, err)
	}
	return key, nil
}

// Drop forgets the key that Put kept; that there is none is success.
func Drop(name string) error {
	id, err := find(name)
	if err == nil {
		err = unlink(id, unix.KEY_SPEC_SESSION_KEYRING)
	}
	if err == nil || missing(err) {
		return nil
	}
	return fmt.Errorf("drop key %s: %w", name, err)
}

func find(name string) (int, error) {
	return unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", name, 0)
}

func unlink(id, ring int) error {
	_, err := unix.KeyctlInt(unix.KEYCTL_UNLINK, id, ring, 0, 0)
	return err
}

func missing(err error) bool {
	return errors.Is(err, unix.ENOKEY) || errors.Is(err, unix.EKEYREVOKED) || errors.Is(err, unix.EKEYEXPIRED)
}

func unavailable(op string, err error) error {
	switch {
	case missing(err):
		return fault.New(fault.KeyUnavailable, op, err)
	case errors.Is(err, unix.ENOSYS):
		return fault.New(fault.NotSupported, op, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}
