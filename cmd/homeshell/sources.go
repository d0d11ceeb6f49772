package main

import (
	"bytes"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/secret"
)

// harvest takes what the environment brings to authenticate with, and returns
// the environment without it. The strings of the process's own copy cannot be
// wiped; they end with the exec.
func (u *unlock) harvest(environ []string) (rest []string, err error) {
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		list := &u.known.Passwords
		switch name {
		case "PASSWORD":
		case "PIN":
			list = &u.known.TokenPins
		default:
			rest = append(rest, kv)
			continue
		}
		if value == "" || len(*list) > 0 {
			continue
		}
		s, err := secret.Copy([]byte(value))
		if err != nil {
			return nil, err
		}
		*list = append(*list, s)
	}
	return rest, nil
}

// cachedPasswords reads what systemd's homectl and its shell keep in the
// user's keyring for a while, NUL between them, the newest last. Nothing is
// ever written there: it would stay behind after the logout.
func cachedPasswords() []*secret.Bytes {
	id, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", "home-password", 0)
	if err != nil {
		return nil
	}
	buf, err := secret.New(maxAnswer)
	if err != nil {
		return nil
	}
	defer buf.Close()
	var list []*secret.Bytes
	_ = buf.Use(func(p []byte) error {
		n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, p, 0)
		if err != nil || n > len(p) {
			return err
		}
		for part := range bytes.SplitSeq(p[:n], []byte{0}) {
			if len(part) == 0 {
				continue
			}
			s, err := secret.Copy(part)
			if err != nil {
				return err
			}
			list = slices.Insert(list, 0, s)
		}
		return nil
	})
	return list
}
