package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/records"
)

// systemBlobs is where the service keeps the files beside each record.
const systemBlobs = "/var/cache/systemd/home"

// blobChanges is what the options say of the files beside a record.
type blobChanges struct {
	touched bool
	// empty: start from nothing; base: start from the files of this directory.
	empty bool
	base  string
	// files are paths by name; "" takes a file away.
	files map[string]string
}

func setBlob(a *assembly, _ *property, arg string) error {
	b := &a.blobs
	i := strings.LastIndexByte(arg, '=')
	if i < 0 {
		if arg == "" {
			b.files = nil
		}
		b.touched, b.empty, b.base = true, arg == "", arg
		return nil
	}
	name, path := arg[:i], arg[i+1:]
	if name == "" {
		return usagef("Can't parse blob file assignment: %s", arg)
	}
	return b.assign(name, path)
}

// setNamedBlob is for --avatar and its like: the option's name is the file's.
func setNamedBlob(a *assembly, p *property, arg string) error { return a.blobs.assign(p.name, arg) }

func (b *blobChanges) assign(name, path string) error {
	if !records.ValidBlobName(name) {
		return usagef("Invalid blob filename: %s", name)
	}
	if path != "" {
		f, err := openBlob(path)
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	if b.files == nil {
		b.files = map[string]string{}
	}
	b.touched, b.files[name] = true, path
	return nil
}

func openBlob(path string) (*os.File, error) {
	// Without waiting for who writes to a pipe.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, usagef("Failed to open %s: %s", path, reason(err))
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return nil, usagef("Provided blob is not a regular file: %s", path)
	}
	// The service takes no other flags than those of plain reading.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
	return os.NewFile(uintptr(fd), path), nil
}

// gather opens the files that the blob directory is to have: those of the
// directory that there is now, or of another one, with the changes applied. The
// caller closes them.
func (c *command) gather(b *blobChanges, now string) (_ map[string]*os.File, err error) {
	files := map[string]*os.File{}
	defer func() {
		if err != nil {
			closeBlobs(files)
		}
	}()
	dir := now
	switch {
	case b.base != "":
		dir = b.base
	case b.empty:
		dir = ""
	}
	if dir != "" {
		if err := c.gatherFrom(dir, b, files); err != nil {
			return nil, err
		}
	}
	for name, path := range b.files {
		if path == "" {
			continue
		}
		if files[name], err = openBlob(path); err != nil {
			delete(files, name)
			return nil, err
		}
	}
	return files, nil
}

func (c *command) gatherFrom(dir string, b *blobChanges, files map[string]*os.File) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) && dir != b.base {
		return nil
	}
	if err != nil {
		return usagef("Failed to open %s: %s", dir, reason(err))
	}
	for _, e := range entries {
		name := e.Name()
		if _, changed := b.files[name]; changed {
			continue
		}
		if !records.ValidBlobName(name) {
			c.warn("File %s in blob directory %s has an invalid filename. Skipping.", name, dir)
			continue
		}
		if !e.Type().IsRegular() {
			c.warn("Entry %s in blob directory %s is not a regular file. Skipping.", name, dir)
			continue
		}
		if files[name], err = openBlob(filepath.Join(dir, name)); err != nil {
			delete(files, name)
			return err
		}
	}
	return nil
}

func closeBlobs(files map[string]*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// newBlobs are those of a home to be made; nil where none were given. A record
// that was exported names the blobs that it had elsewhere: without them, and
// without a signature over them, the new home has none.
func (c *command) newBlobs(record map[string]any) (map[string]*os.File, error) {
	if !c.assembly.blobs.touched {
		if record["signature"] == nil {
			delete(record, "blobManifest")
		}
		return nil, nil
	}
	return c.gather(&c.assembly.blobs, "")
}

// changedBlobs are those of a home whose record changes; nil where it has none
// and gets none. The service makes the manifest anew of what it is given.
func (c *command) changedBlobs(record map[string]any, user string) (map[string]*os.File, error) {
	if record["blobManifest"] == nil && !c.assembly.blobs.touched {
		return nil, nil
	}
	return c.gather(&c.assembly.blobs, filepath.Join(systemBlobs, user))
}
