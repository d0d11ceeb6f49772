package askpassword

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/secret"
)

// Cached returns the secrets that a program of this user left under a name in
// the kernel's keyrings, each the caller's to close; none if there are none.
func Cached(name string) ([]*secret.Bytes, error) {
	id, err := unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", name, 0)
	switch err {
	case nil:
	case unix.ENOKEY, unix.EKEYEXPIRED, unix.EKEYREVOKED, unix.EPERM, unix.ENOSYS, unix.EOPNOTSUPP:
		return nil, nil
	default:
		return nil, os.NewSyscallError("keyctl", err)
	}
	return readKey(id)
}

func readKey(id int) ([]*secret.Bytes, error) {
	buffer, err := secret.New(maxReply)
	if err != nil {
		return nil, err
	}
	defer buffer.Close()
	var list []*secret.Bytes
	err = buffer.Use(func(p []byte) error {
		n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, p, 0)
		if err != nil {
			return os.NewSyscallError("keyctl", err)
		}
		if n > len(p) {
			return secret.ErrTooLong
		}
		list, err = readList(p[:n])
		return err
	})
	return list, err
}

// Remember adds a secret to what Cached returns to this user's programs, for
// that long.
func Remember(name string, s *secret.Bytes, keep time.Duration) error {
	known, err := Cached(name)
	if err != nil {
		return err
	}
	defer secret.CloseAll(known)
	size := 0
	for _, k := range known {
		if k.Equal(s) {
			size = -1
			break
		}
		size += k.Len() + 1
	}
	if size < 0 { // it stays where it is, for longer
		id, err := unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", name, 0)
		if err != nil {
			return os.NewSyscallError("keyctl", err)
		}
		return expire(id, keep)
	}
	payload, err := secret.New(size + s.Len())
	if err != nil {
		return err
	}
	defer payload.Close()
	return payload.Use(func(p []byte) error {
		at := 0
		for _, k := range append(known, s) {
			_ = k.Use(func(q []byte) error { at += copy(p[at:], q) + 1; return nil })
		}
		id, err := unix.AddKey("user", name, p, unix.KEY_SPEC_USER_KEYRING)
		if err != nil {
			return os.NewSyscallError("add_key", err)
		}
		return expire(id, keep)
	})
}

func expire(id int, keep time.Duration) error {
	_, err := unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, id, int(max(keep.Seconds(), 1)), 0, 0)
	return os.NewSyscallError("keyctl", err)
}

// Credential returns the secrets in a file of the directory that the service
// manager gave a unit for its credentials, each the caller's to close: a NUL
// after each, the last one optional. None if there is no such file.
func Credential(dir, name string) ([]*secret.Bytes, error) {
	if dir == "" {
		return nil, nil
	}
	if !filepath.IsAbs(dir) {
		return nil, &os.PathError{Op: "open", Path: dir, Err: unix.EINVAL}
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	whole, err := secret.Read(f, maxReply)
	if err != nil {
		return nil, err
	}
	defer whole.Close()
	var list []*secret.Bytes
	err = whole.Use(func(p []byte) error {
		var err error
		list, err = readList(p)
		return err
	})
	return list, err
}
