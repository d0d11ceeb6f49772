package vmtest

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Item is something that a guest gets at its first boot, owned by root. It is
// there before any service of the guest starts.
type Item struct {
	Host  string      // file or directory on the host; empty for Data
	Guest string      // absolute path in the guest, of the thing itself
	Data  []byte      // the content, where there is no Host
	Mode  fs.FileMode // permissions of Data, 0644 for zero
}

// The agent travels with every payload, so that a change to it needs no new
// image.
const agentPath = "/usr/lib/hearth-guest/agent"

// writePayload writes the items as a tar to file, which becomes a guest's
// second disk, and returns its hash.
func writePayload(file string, items []Item) (string, error) {
	f, err := os.Create(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	w := tar.NewWriter(io.MultiWriter(f, h))
	for _, it := range items {
		if !path.IsAbs(it.Guest) {
			return "", fmt.Errorf("payload %q: not an absolute path", it.Guest)
		}
		if it.Host == "" {
			err = addData(w, it)
		} else {
			err = addTree(w, it)
		}
		if err != nil {
			return "", fmt.Errorf("payload %s: %w", it.Guest, err)
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	// A disk is a whole number of blocks; tar stops at its own end mark.
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return "", err
	}
	if err := f.Truncate((size + 1<<20 - 1) &^ (1<<20 - 1)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil))[:16], f.Close()
}

func addData(w *tar.Writer, it Item) error {
	mode := it.Mode.Perm()
	if mode == 0 {
		mode = 0o644
	}
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path.Clean(it.Guest), "/"),
		Size: int64(len(it.Data)), Mode: int64(mode), ModTime: time.Now(),
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(it.Data)
	return err
}

func addTree(w *tar.Writer, it Item) error {
	return filepath.WalkDir(it.Host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(it.Host, p)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Join(it.Guest, filepath.ToSlash(rel)), "/")
		info, err := d.Info()
		if err != nil || name == "" { // the root directory stays as it is
			return err
		}
		var target string
		switch t := info.Mode().Type(); t {
		case 0, fs.ModeDir:
		case fs.ModeSymlink:
			if target, err = os.Readlink(p); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: neither file, directory nor symlink", p)
		}
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		h.Name, h.Uname, h.Gname, h.Uid, h.Gid = name, "root", "root", 0, 0
		h.AccessTime, h.ChangeTime, h.Format = time.Time{}, time.Time{}, tar.FormatPAX
		if d.IsDir() {
			h.Name += "/"
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		src, err := os.Open(p)
		if err != nil {
			return err
		}
		defer src.Close()
		_, err = io.Copy(w, src)
		return err
	})
}

// agentBinary returns the agent, built for the guest. HEARTH_AGENT names one
// made before, for machines without Go.
func agentBinary(dir string) (string, error) {
	if p := os.Getenv("HEARTH_AGENT"); p != "" {
		return p, nil
	}
	out := filepath.Join(dir, "agent")
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, "hearth/vmtest/agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the guest's agent: %w\n%s", err, text)
	}
	return out, nil
}
