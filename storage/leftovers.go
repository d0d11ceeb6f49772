package storage

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/storage/fsops"
)

// leftoverNames bounds how many names of a home are looked at.
const leftoverNames = 10_000

// sweepHome deletes what a worker that was killed, or a power cut, left half
// written at the top of the home: files and directories that were to become the
// record or the pictures there. Nobody but the one worker that a home has at a
// time makes such names, and one that the user makes is none of theirs to keep.
// It is no reason to refuse anything that it cannot.
func sweepHome(ctx context.Context, root *os.File, log *slog.Logger) {
	fd, err := unix.Openat(int(root.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		log.Warn("cannot look for what was left half written", "error", err)
		return
	}
	dir := os.NewFile(uintptr(fd), "home")
	defer func() { _ = dir.Close() }()
	for seen := 0; seen < leftoverNames; {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			if !halfWritten(name) {
				continue
			}
			err := unix.Unlinkat(int(root.Fd()), name, 0)
			if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
				err = fsops.RemoveTree(ctx, root, name)
			}
			log.Info("deleted what was left half written", "name", name, "error", err)
		}
		seen += len(names)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				log.Warn("cannot look for what was left half written", "error", err)
			}
			return
		}
	}
}

// halfWritten reports whether name is one of TempName's for what we write at the
// top of a home.
func halfWritten(name string) bool {
	rest, ok := strings.CutPrefix(name, ".#"+embeddedBlobs)
	if !ok {
		rest, ok = strings.CutPrefix(name, ".#"+identityName)
	}
	_, err := hex.DecodeString(rest)
	return ok && len(rest) == 16 && err == nil
}
