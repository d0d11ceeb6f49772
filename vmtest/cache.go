package vmtest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// cacheDir is where images, kernels and the state of running guests are kept:
// $HEARTH_CACHE, else $XDG_CACHE_HOME/hearth, else ~/.cache/hearth.
func cacheDir() (string, error) {
	dir := os.Getenv("HEARTH_CACHE")
	if dir == "" {
		base := os.Getenv("XDG_CACHE_HOME")
		if base == "" {
			home := os.Getenv("HOME")
			if home == "" { // CI runners and services may have none
				home = "/var/tmp"
			}
			base = filepath.Join(home, ".cache")
		}
		dir = filepath.Join(base, "hearth")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// User-mode Linux takes its disks as one word with these between the parts.
	if strings.ContainsAny(dir, ",: \t\n") {
		return "", fmt.Errorf("cache directory %q: no comma, colon or space, please; set HEARTH_CACHE", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cache directory: %w", err)
	}
	return dir, nil
}

// recipe is a hash over everything that decides what a cached thing is.
func recipe(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// flock is an advisory lock on a file; the kernel drops it with the process.
type flock struct{ f *os.File }

var errLocked = errors.New("locked by another process")

// lock takes the file's lock, shared or exclusive. Without wait it returns
// errLocked where somebody else has it.
func lock(path string, shared, wait bool) (*flock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &flock{f}, nil
}

func (l *flock) release() {
	if l != nil {
		l.f.Close()
	}
}

// cached returns the path of the thing that kind and key name, made by build
// where it is not there yet. build writes to a temporary path; final is where
// the result will be. Of two processes one builds and the other waits. Older
// things of the same kind that nobody uses are removed.
func cached(log io.Writer, kind, key string, build func(dir, tmp, final string) error) (string, error) {
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	final := filepath.Join(dir, kind+"-"+key)
	if exists(final) {
		return final, nil
	}
	lockPath := filepath.Join(dir, kind+".lock")
	l, err := lock(lockPath, false, false)
	if err == errLocked {
		fmt.Fprintf(log, "%s: waiting for another process that builds it\n", kind)
		l, err = lock(lockPath, false, true)
	}
	if err != nil {
		return "", err
	}
	defer l.release()
	if exists(final) {
		return final, nil
	}
	tmp := final + ".building"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(dir, "building-"+kind+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := build(work, tmp, final); err != nil {
		os.RemoveAll(tmp)
		return "", fmt.Errorf("build %s: %w", kind, err)
	}
	if err := os.Rename(tmp, final); err != nil {
		return "", err
	}
	old, _ := filepath.Glob(filepath.Join(dir, kind+"-????????????"))
	for _, o := range old {
		if o != final {
			removeUnused(o)
		}
	}
	return final, nil
}

// use marks a cached thing as in use until the lock returned is released.
func use(path string) (*flock, error) { return lock(path+".use", true, true) }

func removeUnused(path string) {
	l, err := lock(path+".use", false, false)
	if err != nil {
		return
	}
	os.RemoveAll(path)
	os.Remove(path + ".use")
	l.release()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
