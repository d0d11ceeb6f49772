package mounts

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
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
// Administrators may have forbidden them: ErrUnsupported.
func userNamespace(m []idRange) (*os.File, error) {
	const op = "make user namespace"
	if c := takeCradle(); c != nil {
		// One that waited for long may have been killed meanwhile.
		if ns, err := c.bear(m); err == nil {
			return ns, nil
		}
	}
	c, err := newCradle()
	if err != nil {
		// EPERM, or ENOSPC for a limit of 0, which has nothing to do with disks.
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS) {
			return nil, fmt.Errorf("%s: %w (%v)", op, ErrUnsupported, err)
		}
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	ns, err := c.bear(m)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return ns, nil
}

// A cradle is the process that a user namespace is born in, which has no map
// yet. It is cat, waiting on a pipe: it runs nothing of ours, so no code meets
// the worker's descriptors in a state it does not expect (which starting
// ourselves anew would risk), and the pipe ends it even if the worker is killed
// in between (which a sleeping process would survive). A bare fork without exec
// is closed to Go.
type cradle struct {
	cmd  *exec.Cmd
	wait io.Closer
}

func newCradle() (*cradle, error) {
	cat := "/usr/bin/cat"
	if unix.Access(cat, unix.X_OK) != nil {
		cat = "/bin/cat"
	}
	c := &cradle{cmd: &exec.Cmd{Path: cat, Args: []string{"cat"}, Env: []string{}, Dir: "/"}}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	pipe, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	c.wait = pipe
	if err := c.cmd.Start(); err != nil {
		_ = pipe.Close()
		return nil, err
	}
	return c, nil
}

// bear gives the namespace its map, and returns it. The process ends.
func (c *cradle) bear(m []idRange) (*os.File, error) {
	defer c.close()
	var text strings.Builder
	for _, r := range m {
		fmt.Fprintln(&text, r.inside, r.outside, r.count)
	}
	for _, kind := range []string{"uid_map", "gid_map"} {
		if err := c.setMap(kind, text.String()); err != nil {
			return nil, err
		}
	}
	return open(c.path("ns/user"), unix.O_RDONLY)
}

// path is below the process's directory in /proc. It is not reaped yet, so its
// number is still its own.
func (c *cradle) path(name string) string { return fmt.Sprintf("/proc/%d/%s", c.cmd.Process.Pid, name) }

// setMap writes a map, which the kernel takes once, and in one piece.
func (c *cradle) setMap(kind, text string) error {
	f, err := open(c.path(kind), unix.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func (c *cradle) close() {
	_ = c.wait.Close()
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// ahead is a cradle that was made before anybody asked for it.
var ahead struct {
	sync.Mutex
	*cradle
}

// PrepareShift makes ready what ShiftUID takes longest for, once. It is for a
// process that waits for its work. What cannot be made ready is met again then.
func PrepareShift() {
	ahead.Lock()
	defer ahead.Unlock()
	if ahead.cradle == nil {
		ahead.cradle, _ = newCradle()
	}
}

func takeCradle() *cradle {
	ahead.Lock()
	defer ahead.Unlock()
	c := ahead.cradle
	ahead.cradle = nil
	return c
}
