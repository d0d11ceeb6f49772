package luks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hearth/storage"
	"hearth/storage/luks2"
)

const (
	costsName = "kdf-costs"
	// maxCosts bounds the file, in bytes.
	maxCosts = 64 << 10
	bootID   = "/proc/sys/kernel/random/boot_id"
)

// kept is what the file holds: the next boot may be of another machine.
type kept struct {
	BootID string
	Costs  []luks2.Cost
}

// costs returns what was measured since the machine booted. Without a place to
// keep it, or where nothing there can be trusted, that is nothing.
func costs(a storage.Area) *luks2.Costs {
	c := &luks2.Costs{}
	if a.RunDir == "" {
		return c
	}
	k, err := readCosts(filepath.Join(a.RunDir, costsName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		a.Log.Warn("what key derivations cost is measured anew", "error", err)
	case k.BootID == thisBoot():
		c.List = k.Costs
	}
	return c
}

// readCosts believes root alone: whoever could write here would choose how
// cheap the keyslots of others are to guess.
func readCosts(path string) (k kept, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return k, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return k, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != uint32(os.Geteuid()) || st.Mode&0o077 != 0 {
		return k, fmt.Errorf("%s is not a file of ours alone", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxCosts+1))
	if err != nil {
		return k, err
	}
	if len(text) > maxCosts {
		return k, fmt.Errorf("%s is too long", path)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	return k, dec.Decode(&k)
}

// keepCosts remembers what was measured, until the machine boots. That it
// cannot costs time only.
func keepCosts(a storage.Area, c *luks2.Costs) {
	boot := thisBoot()
	if a.RunDir == "" || !c.Changed || boot == "" {
		return
	}
	if err := writeCosts(a, kept{boot, c.List}); err != nil {
		a.Log.Warn("what key derivations cost is not kept", "error", err)
	}
}

func writeCosts(a storage.Area, k kept) error {
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.RunDir, 0o755); err != nil {
		return err
	}
	name, err := storage.TempName(a.Rand, costsName, "")
	if err != nil {
		return err
	}
	temp := filepath.Join(a.RunDir, name)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, filepath.Join(a.RunDir, costsName))
	}
	if err != nil {
		err = errors.Join(err, os.Remove(temp))
	}
	return err
}

func thisBoot() string {
	text, err := os.ReadFile(bootID)
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(text))
}
