// Package blobs keeps blob directories: the small files beside a user record,
// such as a picture, that its manifest names with their hashes. It knows how
// one directory is replaced by another, whole, from a source that may belong to
// an enemy. Which of two directories counts is left to its caller.
package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"hearth/records"
	"hearth/storage/fsops"
)

// A Source opens the blob of a name. The file is the caller's to close, and is
// read by offset: its position may be shared.
type Source func(name string) (*os.File, error)

// In is the source of the files in a directory. Its owner may have put
// anything there: no link is followed, and no pipe waited for.
func In(dir *os.File) Source {
	return func(name string) (*os.File, error) {
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// Of is the source of files that are open already. They stay the caller's.
func Of(files map[string]*os.File) Source {
	return func(name string) (*os.File, error) {
		f, ok := files[name]
		if !ok {
			return nil, os.ErrNotExist
		}
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// Directory is where a blob directory is to be.
type Directory struct {
	Parent *os.File // borrowed
	Name   string
	// UID, GID and Mode are the directory's; files are the same user's, 0644.
	UID, GID, Mode uint32
}

// Staged is a directory that is complete, but does not bear its name yet.
type Staged struct {
	at   Directory
	temp string
}

// Stage makes a directory, under a temporary name beside its own, of those
// blobs of the manifest that have the hash which that names. The others are
// left out and logged: a file that is not there misleads nobody. It is durable
// when Stage returns. The caller ends with Commit or Abandon.
func Stage(ctx context.Context, at Directory, temp string, m records.Manifest, from Source, log *slog.Logger) (_ *Staged, err error) {
	parent := int(at.Parent.Fd())
	if err := unix.Mkdirat(parent, temp, 0o700); err != nil {
		return nil, fmt.Errorf("make blob directory: %w", err)
	}
	s := &Staged{at, temp}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Abandon())
		}
	}()
	fd, err := unix.Openat(parent, temp, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open blob directory: %w", err)
	}
	dir := os.NewFile(uintptr(fd), temp)
	defer func() { err = errors.Join(err, dir.Close()) }()
	left := int64(records.MaxBlobBytes)
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		size, why, err := add(dir, at, name, m, from, left)
		if err != nil {
			return nil, fmt.Errorf("copy blob %s: %w", name, err)
		}
		if why != "" {
			log.Warn("a blob is left out", "blob", name, "reason", why)
		}
		left -= size
	}
	if err := errors.Join(dir.Chown(int(at.UID), int(at.GID)), dir.Chmod(os.FileMode(at.Mode)), dir.Sync()); err != nil {
		return nil, fmt.Errorf("finish blob directory: %w", err)
	}
	return s, nil
}

// add copies one blob and returns its size, or why it is left out. What is
// hashed is what was written, so it does not matter who changes the source.
func add(dir *os.File, at Directory, name string, m records.Manifest, from Source, left int64) (size int64, why string, err error) {
	if !records.ValidBlobName(name) {
		return 0, "its name is not valid", nil
	}
	in, err := from(name)
	if err != nil {
		return 0, err.Error(), nil
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return 0, err.Error(), nil
	}
	if !info.Mode().IsRegular() {
		return 0, "it is no regular file", nil
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, "", err
	}
	out := os.NewFile(uintptr(fd), name)
	defer func() {
		err = errors.Join(err, out.Close())
		if err != nil || why != "" {
			err = errors.Join(err, unix.Unlinkat(int(dir.Fd()), name, 0))
			size = 0
		}
	}()
	reader := &failing{from: io.NewSectionReader(in, 0, left+1)}
	hash, size, err := records.HashBlob(name, io.TeeReader(reader, out), left)
	switch {
	case reader.err != nil:
		return 0, reader.err.Error(), nil
	case size > left:
		return 0, "the blobs are too large together", nil
	case err != nil:
		return 0, "", err
	case !m.Fits(name, hash):
		return 0, "its content is not what the manifest says", nil
	}
	return size, "", errors.Join(out.Chmod(0o644), out.Chown(int(at.UID), int(at.GID)), out.Sync())
}

// failing keeps apart that a source cannot be read, which costs one blob, and
// that the copy cannot be written, which ends it all.
type failing struct {
	from io.Reader
	err  error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.from.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

// Commit gives the directory its name, in one step, and removes what bore it.
// A power cut leaves the old or the new directory, and perhaps the other under
// the temporary name.
func (s *Staged) Commit(ctx context.Context) error {
	parent := int(s.at.Parent.Fd())
	err := unix.Renameat2(parent, s.temp, parent, s.at.Name, unix.RENAME_NOREPLACE)
	old := errors.Is(err, unix.EEXIST)
	if old {
		err = unix.Renameat2(parent, s.temp, parent, s.at.Name, unix.RENAME_EXCHANGE)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// A file system without these: for a moment there is none.
		if err = remove(ctx, s.at.Parent, s.at.Name); err == nil {
			err = unix.Renameat(parent, s.temp, parent, s.at.Name)
		}
		old = false
	}
	if err != nil {
		return errors.Join(fmt.Errorf("name blob directory: %w", err), s.Abandon())
	}
	if err := s.at.Parent.Sync(); err != nil {
		return fmt.Errorf("name blob directory: %w", err)
	}
	if !old {
		return nil
	}
	return remove(ctx, s.at.Parent, s.temp)
}

// Abandon removes the directory that bears no name yet.
func (s *Staged) Abandon() error {
	return remove(context.Background(), s.at.Parent, s.temp)
}

// remove deletes whatever bears a name.
func remove(ctx context.Context, parent *os.File, name string) error {
	err := unix.Unlinkat(int(parent.Fd()), name, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = fsops.RemoveTree(ctx, parent, name)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// Open opens a blob directory; os.ErrNotExist: there is none, or something
// else bears its name.
func Open(parent *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		err = os.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Complete reports whether a directory has a file of every name of the
// manifest. What is in them is not read.
func Complete(dir *os.File, m records.Manifest) bool {
	for name := range m {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return false
		}
	}
	return true
}
