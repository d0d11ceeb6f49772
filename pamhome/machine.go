package pamhome

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/pamhome/frame"
	"hearth/pamhome/session"
	"hearth/records"
)

// at returns a path of the machine; tests keep theirs below Root.
func (c *call) at(path string) string { return filepath.Join("/", c.Root, path) }

func (c *call) isDirectory(path string) bool {
	info, err := os.Lstat(c.at(path))
	return err == nil && info.IsDir()
}

// serverTerminal finds the virtual terminal of the X server of a local
// display: who listens on its socket, and where that process has its terminal.
// 0: none.
func (c *call) serverTerminal(display string) uint32 {
	rest, ok := strings.CutPrefix(display, ":")
	if !ok {
		return 0
	}
	rest, _, _ = strings.Cut(rest, ".")
	n, err := strconv.ParseUint(rest, 10, 16)
	if err != nil {
		return 0
	}
	path := fmt.Sprintf("/tmp/.X11-unix/X%d", n)
	var conn *net.UnixConn
	for _, address := range []string{"@" + path, path} {
		if conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: address, Net: "unix"}); err == nil {
			break
		}
	}
	if err != nil {
		return 0
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	var peer *unix.Ucred
	if raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return 0
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", peer.Pid))
	if err != nil {
		return 0
	}
	return terminalOf(string(stat))
}

// terminalOf returns the virtual terminal of a line of /proc/PID/stat, 0 if it
// has none. The command may hold anything, so fields count from its end.
func terminalOf(stat string) uint32 {
	i := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[i+1:])
	if len(fields) < 5 {
		return 0
	}
	device, err := strconv.ParseInt(fields[4], 10, 32)
	if err != nil || unix.Major(uint64(uint32(device))) != 4 {
		return 0
	}
	if minor := unix.Minor(uint64(uint32(device))); minor >= 1 && minor <= 63 {
		return minor
	}
	return 0
}

// checkRuntime says why a directory is not the runtime directory of a user.
func (c *call) checkRuntime(path string, uid uint32) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q is no absolute path", path)
	}
	var st unix.Stat_t
	if err := unix.Lstat(c.at(path), &st); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != uid {
		return fmt.Errorf("%s is no directory of user %d", path, uid)
	}
	return nil
}

// homeEnv sets HOME, and with an area what belongs to it. runtime is the
// runtime directory that was just set, "" for none.
func (c *call) homeEnv(v records.View, area, runtime string) {
	home := v.HomeDirectory
	if v.UseFallback {
		// Until the home is active its owner stands outside.
		home = v.FallbackHomeDirectory
		if home == "" {
			home = "/"
		}
	}
	if area != "" {
		home, area = c.areaHome(home, area, v.UID)
	}
	if home != "" {
		c.putEnv("HOME=" + home)
	}
	_, had := c.Start.Env("XDG_AREA")
	switch {
	case area != "":
		c.putEnv("XDG_AREA=" + area)
	case had, c.area != "":
		c.putEnv("XDG_AREA")
	}
	// With "settings" an earlier module has set the directory.
	if before, _ := c.Start.Env("XDG_RUNTIME_DIR"); runtime == "" && before != "" && c.checkRuntime(before, v.UID) == nil {
		runtime = before
	}
	if area != "" {
		if runtime != "" {
			sub, err := c.areaRuntime(runtime, area, v)
			if err != nil {
				c.log(logErr, "Cannot make the runtime directory of area '%s': %v", area, err)
			}
			runtime = sub
		}
		if runtime == "" {
			c.putEnv("XDG_RUNTIME_DIR")
		} else {
			c.putEnv("XDG_RUNTIME_DIR=" + runtime)
		}
	}
	if runtime == "" {
		return
	}
	if _, err := os.Stat(c.at(runtime + "/bus")); err == nil {
		c.putEnv("DBUS_SESSION_BUS_ADDRESS=unix:path=" + runtime + "/bus")
	}
}

// areaHome returns the home of an area, or the regular one and no area where
// the area cannot be used, which it says.
func (c *call) areaHome(home, area string, uid uint32) (string, string) {
	path := filepath.Join(home, "Areas", area)
	if area == "." || area == ".." || strings.ContainsRune(area, '/') || len(area) > 255 {
		c.log(logWarning, "'%s' cannot be the name of an area, ignoring.", area)
		return home, ""
	}
	resolved, err := filepath.EvalSymlinks(c.at(path))
	var st unix.Stat_t
	if err == nil {
		err = unix.Stat(resolved, &st)
	}
	switch {
	case err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR:
		c.tell(frame.Info, "Path '%s' of requested user area '%s' is not accessible, reverting to regular home directory.", path, area)
		return home, ""
	case st.Uid != uid:
		c.tell(frame.Info, "Path '%s' of requested user area '%s' is not owned by user, reverting to regular home directory.", path, area)
		return home, ""
	}
	if root := c.at("/"); root != "/" {
		resolved = strings.TrimPrefix(resolved, root)
	}
	return resolved, area
}

// areaRuntime makes the runtime directory of an area below the user's own. The
// user may do anything there meanwhile, and we may be root: every step is
// relative to a descriptor and follows no link.
func (c *call) areaRuntime(runtime, area string, v records.View) (string, error) {
	fd, err := unix.Open(c.at(runtime), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", runtime, err)
	}
	defer func() { _ = unix.Close(fd) }()
	for _, name := range []string{"Areas", area} {
		next, err := ownDirectory(fd, name, v.UID, v.GID)
		if err != nil {
			return "", err
		}
		_ = unix.Close(fd)
		fd = next
	}
	return filepath.Join(runtime, "Areas", area), nil
}

// ownDirectory opens a directory of a user, or makes it: complete under a
// temporary name, so that nobody finds one of root's there.
func ownDirectory(at int, name string, uid, gid uint32) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	for n := range 5 {
		fd, err := unix.Openat(at, name, flags, 0)
		if err == nil {
			var st unix.Stat_t
			if err = unix.Fstat(fd, &st); err == nil && st.Uid != uid {
				err = fmt.Errorf("directory %s is not the user's", name)
			}
			if err != nil {
				_ = unix.Close(fd)
				return -1, err
			}
			return fd, nil
		}
		if err != unix.ENOENT {
			return -1, fmt.Errorf("open %s: %w", name, err)
		}
		temp := fmt.Sprintf(".#%s.%d.%d", clipName(name), os.Getpid(), n)
		if err := makeOwned(at, temp, uid, gid); err != nil {
			return -1, err
		}
		err = unix.Renameat2(at, temp, at, name, unix.RENAME_NOREPLACE)
		if err != nil {
			_ = unix.Unlinkat(at, temp, unix.AT_REMOVEDIR)
			if err != unix.EEXIST {
				return -1, fmt.Errorf("name %s: %w", name, err)
			}
		}
	}
	return -1, fmt.Errorf("make %s: others make and remove it", name)
}

// OwnBounding is this process's bounding set, which it has from the one that
// started it.
func OwnBounding() session.Capabilities {
	var set session.Capabilities
	for n := range uintptr(64) {
		if in, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, n, 0, 0, 0); err != nil {
			break // beyond the last of this kernel
		} else if in == 1 {
			set |= 1 << n
		}
	}
	return set
}

func clipName(s string) string { return s[:min(len(s), 200)] }

func makeOwned(at int, name string, uid, gid uint32) error {
	if err := unix.Mkdirat(at, name, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		if err = unix.Fchown(fd, int(uid), int(gid)); err == nil {
			err = unix.Fchmod(fd, 0o755)
		}
		_ = unix.Close(fd)
	}
	if err != nil {
		_ = unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
		return fmt.Errorf("give directory to its user: %w", err)
	}
	return nil
}

// readBounded reads a small file; a larger one is an error.
func readBounded(path string, limit int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return string(b), err
}
