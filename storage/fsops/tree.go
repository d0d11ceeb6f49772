package fsops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The trees handled here belong to users who may be at work in them, so every
// inode is pinned by a descriptor before it is asked or changed, and no
// symlink is followed.

// modeMask are the mode bits that ChownTree leaves.
const modeMask = 0o777

// How deep and how wide a tree is, its owner chooses.
const (
	batch    = 1024 // names of a directory held at once
	nameKept = 512  // bytes of the path that an open file is known by in errors
)

// MakeSubvolume makes a btrfs subvolume in dir. Elsewhere it fails with
// ENOTTY or EOPNOTSUPP.
func MakeSubvolume(dir *os.File, name string) error {
	// struct btrfs_ioctl_vol_args of linux/btrfs.h.
	const create = 0x5000940E // BTRFS_IOC_SUBVOL_CREATE
	var args struct {
		fd   int64
		name [4088]byte
	}
	if name == "" || len(name) >= len(args.name) || strings.ContainsRune(name, '/') {
		return fmt.Errorf("make subvolume %q: %w", name, unix.EINVAL)
	}
	copy(args.name[:], name)
	err := onFD(dir, func(fd int) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), create, uintptr(unsafe.Pointer(&args))); errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make subvolume %s: %w", name, err)
	}
	return nil
}

// CopySkeleton copies what is in the directory from into the directory to,
// where it replaces what has the same name; directories are merged. All of it
// belongs to uid and gid then, and keeps modes, times and user attributes. to
// itself stays as it is. A skeleton that does not exist is an empty one;
// device nodes and sockets in it are left out.
func CopySkeleton(ctx context.Context, from string, to *os.File, uid, gid uint32) error {
	fd, err := unix.Open(from, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open skeleton %s: %w", from, err)
	}
	src := os.NewFile(uintptr(fd), from)
	defer func() { _ = src.Close() }()
	if err := copyDir(ctx, src, to, owner{int(uid), int(gid)}); err != nil {
		return fmt.Errorf("copy skeleton: %w", err)
	}
	return nil
}

type owner struct{ uid, gid int }

func copyDir(ctx context.Context, from, to *os.File, o owner) error {
	return eachName(from, func(name string) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return copyEntry(ctx, from, to, name, o)
	})
}

// eachName calls f for every name in a directory.
func eachName(dir *os.File, f func(name string) error) error {
	for {
		names, err := dir.Readdirnames(batch)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := f(name); err != nil {
				return err
			}
		}
	}
}

func copyEntry(ctx context.Context, from, to *os.File, name string, o owner) error {
	src, dst := int(from.Fd()), int(to.Fd())
	fail := func(err error) error { return fmt.Errorf("%s/%s: %w", from.Name(), name, err) }
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail(err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		in, err := openat(from, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return fail(err)
		}
		defer func() { _ = in.Close() }()
		err = unix.Mkdirat(dst, name, 0o700)
		if errors.Is(err, unix.EEXIST) {
			// What is in the way and no directory is replaced.
			var there unix.Stat_t
			if serr := unix.Fstatat(dst, name, &there, unix.AT_SYMLINK_NOFOLLOW); serr == nil && there.Mode&unix.S_IFMT == unix.S_IFDIR {
				err = nil
			} else if err = unix.Unlinkat(dst, name, 0); err == nil {
				err = unix.Mkdirat(dst, name, 0o700)
			}
		}
		if err != nil {
			return fail(err)
		}
		out, err := openat(to, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return fail(err)
		}
		defer func() { _ = out.Close() }()
		if err := copyDir(ctx, in, out, o); err != nil {
			return err
		}
		if err := dress(in, out, &st, o); err != nil {
			return fail(err)
		}
	case unix.S_IFREG:
		in, err := openat(from, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err != nil {
			return fail(err)
		}
		defer func() { _ = in.Close() }()
		if err := away(dst, name); err != nil {
			return fail(err)
		}
		out, err := openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
		if err != nil {
			return fail(err)
		}
		defer func() { _ = out.Close() }()
		if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) != nil {
			if _, err := io.Copy(out, in); err != nil {
				return fail(err)
			}
		}
		if err := dress(in, out, &st, o); err != nil {
			return fail(err)
		}
		if err := out.Close(); err != nil {
			return fail(err)
		}
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(src, name, target)
		if err != nil {
			return fail(err)
		}
		if err := away(dst, name); err != nil {
			return fail(err)
		}
		if err := unix.Symlinkat(string(target[:n]), dst, name); err != nil {
			return fail(err)
		}
		return plain(dst, name, &st, o, fail)
	case unix.S_IFIFO:
		if err := away(dst, name); err != nil {
			return fail(err)
		}
		if err := unix.Mkfifoat(dst, name, st.Mode&modeMask); err != nil {
			return fail(err)
		}
		return plain(dst, name, &st, o, fail)
	}
	return nil
}

// plain gives owner and times to what cannot be opened.
func plain(dst int, name string, st *unix.Stat_t, o owner, fail func(error) error) error {
	if err := unix.Fchownat(dst, name, o.uid, o.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail(err)
	}
	if err := unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail(err)
	}
	return nil
}

// dress gives out the owner, and mode, user attributes and times of in. The
// owner first: changing it takes setuid and setgid away.
func dress(in, out *os.File, st *unix.Stat_t, o owner) error {
	if err := out.Chown(o.uid, o.gid); err != nil {
		return err
	}
	if err := unix.Fchmod(int(out.Fd()), st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyAttributes(in, out); err != nil {
		return err
	}
	// futimens(3) is utimensat without a path.
	times := [2]unix.Timespec{st.Atim, st.Mtim}
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, out.Fd(), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func copyAttributes(in, out *os.File) error {
	src, dst := int(in.Fd()), int(out.Fd())
	n, err := unix.Flistxattr(src, nil)
	if err != nil || n == 0 {
		return ignoreUnsupported(err)
	}
	list := make([]byte, n)
	if n, err = unix.Flistxattr(src, list); err != nil {
		return ignoreUnsupported(err)
	}
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		size, err := unix.Fgetxattr(src, name, nil)
		if err != nil {
			return err
		}
		value := make([]byte, size)
		if size, err = unix.Fgetxattr(src, name, value); err != nil {
			return err
		}
		if err := unix.Fsetxattr(dst, name, value[:size], 0); err != nil {
			return ignoreUnsupported(err)
		}
	}
	return nil
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

func away(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOENT) {
		return nil // a directory in the way fails where it is replaced
	}
	return err
}

// ChownTree gives root and all below it to uid and gid, without setuid, setgid
// and sticky bits and without ACLs. If root has that owner and no such bits
// already, nothing is touched: through an idmapped mount a home looks right.
//
// A hard link to what belongs to neither the user nor the former owner of root
// is left alone: in a directory of the host a user may link others' files, and
// would get them for his own that way.
//
// root itself comes last, so a tree that was interrupted is done again.
func ChownTree(ctx context.Context, root *os.File, uid, gid uint32) error {
	var st unix.Stat_t
	if err := onFD(root, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return fmt.Errorf("give home to its user: %w", err)
	}
	if st.Uid == uid && st.Gid == gid && st.Mode&0o7777&^modeMask == 0 {
		return nil
	}
	pin, err := openat(root, ".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		err = errors.Join(chownTree(ctx, pin, st.Uid, owner{int(uid), int(gid)}), pin.Close())
	}
	if err != nil {
		return fmt.Errorf("give home to its user: %w", err)
	}
	return nil
}

// chownTree works on an O_PATH descriptor. former is who the tree's top
// belonged to.
func chownTree(ctx context.Context, pin *os.File, former uint32, o owner) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	fd := int(pin.Fd())
	fail := func(err error) error { return fmt.Errorf("%s: %w", pin.Name(), err) }
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail(err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		dir, err := openat(pin, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		err = eachName(dir, func(name string) error {
			child, err := openat(pin, name, unix.O_PATH, 0)
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			if err != nil {
				return err
			}
			return errors.Join(chownTree(ctx, child, former, o), child.Close())
		})
		if err := errors.Join(err, dir.Close()); err != nil {
			return err
		}
	} else if st.Nlink > 1 && st.Uid != former && int(st.Uid) != o.uid {
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		// What is pinned with O_PATH is changed through its name in /proc.
		path := fmt.Sprintf("/proc/self/fd/%d", fd)
		for _, acl := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
			err := unix.Removexattr(path, acl)
			if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EACCES) {
				return fail(err)
			}
		}
		if st.Mode&0o7777&^modeMask != 0 {
			if err := unix.Chmod(path, st.Mode&modeMask); err != nil {
				return fail(err)
			}
		}
	}
	if int(st.Uid) != o.uid || int(st.Gid) != o.gid {
		if err := unix.Fchownat(fd, "", o.uid, o.gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fail(err)
		}
	}
	return nil
}

func openat(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	var fd int
	err := onFD(dir, func(at int) (err error) {
		fd, err = unix.Openat(at, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		return err
	})
	path := below(dir, name)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// below is the path of name in dir, of which the end is kept: one file is open
// per level, and whole paths would take the square of the depth.
func below(dir *os.File, name string) string {
	path := dir.Name()
	if over := len(path) - nameKept; over > 0 {
		path = "..." + path[over+3:]
	}
	return path + "/" + name
}

func onFD(f *os.File, call func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		for {
			if inner = call(int(fd)); !errors.Is(inner, unix.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, inner)
}
