package manager

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hearth/internal/fault"
	"hearth/records"
)

// SigningKeys returns the keys whose signatures are accepted, ours first; ours
// is made now if there is none.
func (m *Manager) SigningKeys(ctx context.Context) ([]SigningKey, error) {
	var out []SigningKey
	var err error
	if aerr := m.ask(ctx, func() {
		if _, err = m.keys.signer(); err == nil {
			out = append(out, m.keys.list...)
		}
	}); aerr != nil {
		return nil, aerr
	}
	return out, err
}

// NewKeyName checks a name for a key to be added, KnownKeyName one of a key to
// be removed. A front end asks before it asks who may do so, as clients expect.
// Fault: InvalidArgs.
func (m *Manager) NewKeyName(ctx context.Context, name string) (err error) {
	if aerr := m.ask(ctx, func() { err = m.keys.newName(name) }); aerr != nil {
		return aerr
	}
	return err
}

// KnownKeyName is described with NewKeyName.
func (m *Manager) KnownKeyName(ctx context.Context, name string) (err error) {
	if aerr := m.ask(ctx, func() { err = m.keys.knownName(name) }); aerr != nil {
		return aerr
	}
	return err
}

// AddSigningKey accepts from now on, and after a restart, what a key signed.
// Fault: InvalidArgs.
func (m *Manager) AddSigningKey(ctx context.Context, name string, pem []byte) (err error) {
	if aerr := m.ask(ctx, func() { err = m.keys.install(name, pem) }); aerr != nil {
		return aerr
	}
	return err
}

// RemoveSigningKey ends that. Homes that are loaded stay as they are: they are
// judged anew at the next start. Faults: InvalidArgs; FileNotFound for a key
// that was put into another directory, which is the administrator's.
func (m *Manager) RemoveSigningKey(ctx context.Context, name string) (err error) {
	if aerr := m.ask(ctx, func() { err = m.keys.uninstall(name) }); aerr != nil {
		return aerr
	}
	return err
}

func refuseKey(format, name string) error {
	return fault.Newf(fault.InvalidArgs, "check signing key", format, name)
}

func validKeyName(name string) error {
	if len(name) > 255 || strings.Contains(name, "/") || !strings.HasSuffix(name, publicExt) || name == publicExt {
		return refuseKey("Public key name not valid: %s", name)
	}
	return nil
}

func (k *keyring) index(name string) int {
	return slices.IndexFunc(k.list, func(o SigningKey) bool { return o.Name == name })
}

func (k *keyring) newName(name string) error {
	if err := validKeyName(name); err != nil {
		return err
	}
	if name == records.LocalKey {
		return fault.Newf(fault.InvalidArgs, "add signing key", "Refusing to write local public key.")
	}
	// A file that was not loaded counts too: one in another directory would
	// hide the new key after a restart, and one in ours is not to be lost.
	taken := k.index(name) >= 0
	for _, dir := range append([]string{k.dir}, k.dirs...) {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			taken = true
		}
	}
	if taken {
		return refuseKey("Public key name already exists: %s", name)
	}
	return nil
}

func (k *keyring) knownName(name string) error {
	if err := validKeyName(name); err != nil {
		return err
	}
	if name == records.LocalKey {
		return fault.Newf(fault.InvalidArgs, "remove signing key", "Refusing to remove local key.")
	}
	if k.index(name) < 0 {
		return refuseKey("Public key name does not exist: %s", name)
	}
	return nil
}

// install writes the key to disk, as a whole, before it counts: what is
// accepted now must be accepted after a crash.
func (k *keyring) install(name string, pem []byte) error {
	const op = "add signing key"
	if _, err := k.signer(); err != nil {
		return err
	}
	if err := k.newName(name); err != nil {
		return err
	}
	if len(pem) > maxKeyFile {
		return refuseKey("Public key invalid: %s", name)
	}
	text, err := records.CanonicalKey(pem)
	if err != nil {
		e := fault.Newf(fault.InvalidArgs, op, "Public key invalid: %s", name)
		e.Err = err
		return e
	}
	if slices.ContainsFunc(k.list, func(o SigningKey) bool { return o.PEM == string(text) }) {
		return refuseKey("Public key already exists: %s", name)
	}
	if !k.fits(name, string(text)) {
		return fault.Newf(fault.LimitsExceeded, op, "There are %d signing keys already.", len(k.list))
	}
	if err := os.MkdirAll(k.dir, 0o755); err != nil {
		return fault.New(fault.IOError, op, err)
	}
	path := filepath.Join(k.dir, name)
	if err := replaceFile(path, text, 0o444); err != nil {
		return fault.New(fault.IOError, op, err)
	}
	if err := k.Add(name, text); err != nil {
		return fault.New(fault.Unknown, op, err)
	}
	k.list = append(k.list, SigningKey{name, string(text)})
	k.log.Info("accepting a key that signs records", "file", path)
	return nil
}

// uninstall deletes the key's file before the key ceases to count: after a
// crash in between it is gone, as asked.
func (k *keyring) uninstall(name string) error {
	const op = "remove signing key"
	if err := k.knownName(name); err != nil {
		return err
	}
	path := filepath.Join(k.dir, name)
	if err := os.Remove(path); err != nil {
		kind := fault.IOError
		if os.IsNotExist(err) {
			kind = fault.FileNotFound
		}
		return fault.New(kind, op, fmt.Errorf("it was not added here: %w", err))
	}
	k.Remove(name)
	k.list = slices.Delete(k.list, k.index(name), k.index(name)+1)
	if err := syncDir(k.dir); err != nil {
		return fault.New(fault.IOError, op, err)
	}
	k.log.Info("no longer accepting a key that signed records", "file", path)
	return nil
}
