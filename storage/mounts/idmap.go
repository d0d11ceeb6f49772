package mounts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// idRange is a line of a uid map: count ids from inside (on disk) on show as
// those from outside (in the mount) on.
type idRange struct{ inside, outside, count uint32 }

// idMap is the map of a home whose files belong to stored on disk and to
// exposed in the mount. Ids that mean the same on every machine, and those of
// containers, pass through; all others do not exist in the mount. The order
// is systemd-homed's.
//
// stored and exposed are cut out of the ranges that pass through, since the
// kernel refuses a map in which an id occurs twice on either side.
// (systemd-homed does not cut exposed, which is why its uid 60513 fails.)
func idMap(stored, exposed uint32) []idRange {
	through := func(from, to uint32) []idRange {
		var list []idRange
		for _, cut := range []uint32{min(stored, exposed), max(stored, exposed)} {
			if cut < from || cut > to {
				continue
			}
			if cut > from {
				list = append(list, idRange{from, from, cut - from})
			}
			from = cut + 1
		}
		if from <= to {
			list = append(list, idRange{from, from, to - from + 1})
		}
		return list
	}
	m := through(0, 60000)
	m = append(m, idRange{stored, exposed, 1})
	m = append(m, through(60513, 65533)...)
	m = append(m, through(0x80000, 0x6FFFFFFF)...)    // containers
	m = append(m, through(0x7FFE0000, 0x7FFEFFFF)...) // foreign
	return append(m, through(0x7FFFFFFE, 0x7FFFFFFE)...)
}

// ShiftUID mounts the directory dir once more on top of itself, so that files
// that belong to the ids stored on disk show as exposed, and returns that
// directory, opened anew. dir stays the caller's; it still shows the ids as
// they are on disk. Kernel or file system unable: ErrUnsupported, and nothing
// has changed.
func ShiftUID(dir *os.File, stored, exposed uint32) (*os.File, error) {
	var tree int
	err := onFD(dir, "clone mount", func(fd int) (err error) {
		tree, err = unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		return err
	})
	if err != nil {
		return nil, unsupported(err)
	}
	// Left open it would keep the mount busy.
	defer func() { _ = unix.Close(tree) }()
	ns, err := userNamespace(idMap(stored, exposed))
	if err != nil {
		return nil, unsupported(err)
	}
	defer func() { _ = ns.Close() }()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		if errors.Is(err, unix.EINVAL) { // the file system has no idmapped mounts
			return nil, fmt.Errorf("map ids: %w: %w", ErrUnsupported, err)
		}
		return nil, unsupported(fmt.Errorf("map ids: %w", err))
	}
	err = onFD(dir, "attach mapped mount", func(fd int) error {
		return unix.MoveMount(tree, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	})
	if err != nil {
		return nil, unsupported(err)
	}
	fd, err := unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open mapped mount: %w", err)
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}

func unsupported(err error) error {
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// userNamespace returns a user namespace with the given map for uids and gids.
//
// A namespace needs a process to be born in. That process is cat, waiting on a
// pipe: it runs nothing of ours, so no code meets the worker's descriptors in
// a state it does not expect (which starting ourselves anew would risk), and
// the pipe ends it even if the worker is killed in between (which a sleeping
// process would survive). A bare fork without exec is closed to Go.
func userNamespace(m []idRange) (*os.File, error) {
	maps := make([]syscall.SysProcIDMap, len(m))
	for i, r := range m {
		maps[i] = syscall.SysProcIDMap{ContainerID: int(r.inside), HostID: int(r.outside), Size: int(r.count)}
	}
	cat := "/usr/bin/cat"
	if unix.Access(cat, unix.X_OK) != nil {
		cat = "/bin/cat"
	}
	cmd := exec.Cmd{Path: cat, Args: []string{"cat"}, Env: []string{}, Dir: "/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: maps, GidMappings: maps}
	wait, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	if err := cmd.Start(); err != nil {
		_ = wait.Close()
		// An administrator may have forbidden user namespaces: EPERM, or
		// ENOSPC for a limit of 0, which has nothing to do with disks.
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS) {
			return nil, fmt.Errorf("make user namespace: %w (%v)", ErrUnsupported, err)
		}
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	// It is not reaped yet, so its number is still its own.
	ns, err := open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid), unix.O_RDONLY)
	_ = wait.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	return ns, nil
}
