package secret

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Seals are what a sealed memfd has: nobody changes it or its length any more,
// nor the seals, whoever else has a descriptor of it.
const Seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// Sealed returns a memfd with the data that nobody can change any more, read
// from its start. The caller closes it. Memory of the kind can reach swap, so it
// is for a hand-over and no place to keep a secret.
func Sealed(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("create memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, Seals)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("fill memfd: %w", err)
	}
	return f, nil
}
