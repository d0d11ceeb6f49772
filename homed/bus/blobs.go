package bus

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/records"
)

// takeBlobs makes files of the descriptors that came with a call, by name. The
// caller closes them. What was sent is a stranger's: it has to be a regular
// file that can be read, under a name that a blob may have. Fault: InvalidArgs.
func takeBlobs(b blobs, fds []int) (_ map[string]*os.File, err error) {
	const op = "read blobs"
	files := map[string]*os.File{}
	defer func() {
		if err != nil {
			closeFiles(files)
		}
	}()
	for name, index := range b {
		if !records.ValidBlobName(name) {
			return nil, fault.Newf(fault.InvalidArgs, op, "Invalid blob directory filename: %s", name)
		}
		fd, err := unix.FcntlInt(uintptr(fds[index]), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, fmt.Errorf("keep descriptor: %w", err)
		}
		files[name] = os.NewFile(uintptr(fd), name)
		if why := unfit(fd); why != "" {
			return nil, fault.Newf(fault.InvalidArgs, op, "FD for '%s' %s", name, why)
		}
	}
	return files, nil
}

// unfit says why a descriptor cannot be a blob's, "" if it can. Flags beyond
// the access mode are refused as the reference refuses them: O_PATH cannot be
// read, and the others change what reading does.
func unfit(fd int) string {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	const large = 0o100000 // O_LARGEFILE, which x/sys has as 0 on 64 bits
	if err != nil || flags&^(unix.O_ACCMODE|unix.O_NOFOLLOW|unix.O_LARGEFILE|large) != 0 || flags&unix.O_ACCMODE == unix.O_WRONLY {
		return "has unexpected flags set"
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "is not a regular file"
	}
	return ""
}

func (s *server) addManifest(op *manager.Operation) (err error) {
	if op.Blobs != nil {
		op.Record, err = manager.WithManifest(op.Record, op.Blobs, s.o.Machine)
	}
	return err
}

func closeFiles(files map[string]*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
