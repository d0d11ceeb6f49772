package manager

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/homed/config"
	"hearth/internal/fault"
	"hearth/records"
)

const (
	privateKey = "local.private"
	publicExt  = ".public"
	maxKeyFile = 64 << 10
)

// keyring is the keys of this machine: the one it signs with and those whose
// signatures it accepts.
type keyring struct {
	records.Keys
	own  *records.Signer
	list []SigningKey
	dir  string   // where a key is made
	dirs []string // where keys are looked for
	rand io.Reader
	log  *slog.Logger
}

func (k *keyring) close() {
	if k.own != nil {
		k.own.Close()
	}
}

// loadKeys reads local.private and *.public from the key directories; of a
// name that is in several, the first directory's counts. A private key that
// others could read or have written stops the daemon; a public one is skipped.
func loadKeys(l config.Layout, rand io.Reader, log *slog.Logger) (*keyring, error) {
	k := &keyring{dir: l.NewKeyDir, dirs: l.KeyDirs, rand: rand, log: log}
	for _, dir := range l.KeyDirs {
		text, err := readKeyFile(filepath.Join(dir, privateKey), 0o077)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("load private key: %w", err)
		}
		err = k.setOwn(text)
		clear(text)
		if err != nil {
			return nil, fmt.Errorf("load private key %s: %w", filepath.Join(dir, privateKey), err)
		}
		break
	}
	files := map[string]string{}
	for _, dir := range l.KeyDirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if _, hidden := files[e.Name()]; !hidden && strings.HasSuffix(e.Name(), publicExt) && e.Name() != publicExt {
				files[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}
	delete(files, records.LocalKey) // the private key says it all
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if err := k.addFile(n, files[n]); err != nil {
			log.Warn("ignoring the key", "file", files[n], "error", err)
		}
	}
	return k, nil
}

func (k *keyring) addFile(name, path string) error {
	// A link to /dev/null, or an empty file, hides the name's key.
	if target, err := os.Readlink(path); err == nil && target == os.DevNull {
		return nil
	}
	text, err := readKeyFile(path, 0o022)
	if err != nil || len(text) == 0 {
		return err
	}
	text, err = records.CanonicalKey(text)
	if err != nil {
		return err
	}
	if !k.fits(name, string(text)) {
		return errors.New("there are too many keys")
	}
	if err := k.Add(name, text); err != nil {
		return err
	}
	k.list = append(k.list, SigningKey{name, string(text)})
	return nil
}

func (k *keyring) setOwn(text []byte) error {
	s, err := records.NewSigner(text)
	if err != nil {
		return err
	}
	if err := k.Add(records.LocalKey, s.PublicPEM()); err != nil {
		s.Close()
		return err
	}
	k.own = s
	k.list = append([]SigningKey{{records.LocalKey, string(s.PublicPEM())}}, k.list...)
	return nil
}

// readKeyFile reads a regular file that only root, or who we run as, may
// change, and that has none of the mode bits.
func readKeyFile(path string, forbidden os.FileMode) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("%s belongs to user %d", path, st.Uid)
	case info.Mode()&forbidden != 0:
		return nil, fmt.Errorf("%s has mode %#o", path, info.Mode().Perm())
	case info.Size() > maxKeyFile:
		return nil, fmt.Errorf("%s is too long", path)
	}
	text := make([]byte, info.Size())
	_, err = io.ReadFull(f, text)
	return text, err
}

// signer returns the key to sign with, which is made on first need. The public
// half is put in place first: a private key without it would look complete.
func (k *keyring) signer() (*records.Signer, error) {
	if k.own != nil {
		return k.own, nil
	}
	const op = "make signing key"
	private, public, err := records.GenerateKey(k.rand)
	if err != nil {
		return nil, fault.New(fault.NoPrivateKey, op, err)
	}
	defer clear(private)
	if err := os.MkdirAll(k.dir, 0o755); err != nil {
		return nil, fault.New(fault.NoPrivateKey, op, err)
	}
	publicPath := filepath.Join(k.dir, records.LocalKey)
	if err := replaceFile(publicPath, public, 0o444); err != nil {
		return nil, fault.New(fault.NoPrivateKey, op, err)
	}
	if err := replaceFile(filepath.Join(k.dir, privateKey), private, 0o400); err != nil {
		_ = os.Remove(publicPath)
		return nil, fault.New(fault.NoPrivateKey, op, err)
	}
	if err := k.setOwn(private); err != nil {
		return nil, fault.New(fault.NoPrivateKey, op, err)
	}
	k.log.Info("made a key to sign records with", "file", filepath.Join(k.dir, privateKey))
	return k.own, nil
}

// keyBytes bounds the keys that count, as a worker is told of them: it reads up
// to 16 MiB of parameters.
const keyBytes = 15 << 20

// fits reports whether there is room for another key. A byte of a name may take
// six in JSON.
func (k *keyring) fits(name, pem string) bool {
	weight := func(key SigningKey) int { return 6*len(key.Name) + 2*len(key.PEM) }
	n := weight(SigningKey{name, pem})
	for _, o := range k.list {
		n += weight(o)
	}
	return n <= keyBytes
}

// public returns the public keys by name.
func (k *keyring) public() map[string]string {
	keys := map[string]string{}
	for _, key := range k.list {
		keys[key.Name] = key.PEM
	}
	return keys
}
