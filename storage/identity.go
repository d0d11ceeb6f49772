package storage

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/records"
)

// identityName is the record's copy inside the home.
const identityName = ".identity"

// identityLimit bounds what we read of a file that the user may replace.
const identityLimit = records.MaxFile

// TempName returns a name for a file that is to become name, in the same
// directory: ".#" prefix name and 16 hexadecimal digits.
func TempName(rand io.Reader, prefix, name string) (string, error) {
	var b [8]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return "", fmt.Errorf("draw temporary name: %w", err)
	}
	return ".#" + prefix + name + hex.EncodeToString(b[:]), nil
}

// readIdentity returns the text of the record in the home. The user owns the
// place: whatever is there may be a link, a pipe or a device.
func readIdentity(root *os.File) ([]byte, error) {
	const op = "read " + identityName
	fd, err := unix.Openat(int(root.Fd()), identityName,
		unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, fault.New(fault.FileNotFound, op, err)
	}
	if err != nil {
		var st unix.Stat_t
		if unix.Fstatat(int(root.Fd()), identityName, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil, fault.New(fault.Inconsistent, op, err) // a link, a socket, a device
		}
		return nil, fault.New(fault.Unknown, op, err)
	}
	file := os.NewFile(uintptr(fd), identityName)
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, fault.New(fault.Unknown, op, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Inconsistent, op, errors.New("not a regular file"))
	}
	text, err := io.ReadAll(io.LimitReader(file, identityLimit+1))
	if err != nil {
		return nil, fault.New(fault.IOError, op, err)
	}
	if len(text) > identityLimit {
		return nil, fault.New(fault.Inconsistent, op, errors.New("file is too large"))
	}
	return text, nil
}

// writeIdentity replaces the record in the home, durably: a power cut leaves
// the old or the new one.
func writeIdentity(root *os.File, r *records.Record, uid, gid uint32, rand io.Reader) (err error) {
	const op = "write " + identityName
	defer func() {
		if err != nil {
			err = SpaceFault(op, err)
		}
	}()
	temp, err := TempName(rand, "", identityName)
	if err != nil {
		return err
	}
	dir := int(root.Fd())
	fd, err := unix.Openat(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), temp)
	defer func() {
		if err != nil {
			_ = unix.Unlinkat(dir, temp, 0)
		}
	}()
	_, err = file.Write(r.Embedded().Pretty())
	if err == nil {
		err = file.Chown(int(uid), int(gid))
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	err = unix.Renameat(dir, temp, dir, identityName)
	if errors.Is(err, unix.EISDIR) {
		// The user made a directory of that name. It stays, under another one.
		err = unix.Renameat2(dir, temp, dir, identityName, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		return err
	}
	return root.Sync()
}
