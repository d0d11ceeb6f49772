package pamhome

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/pamhome/frame"
	"hearth/records"
)

// at returns a path of the machine; tests keep theirs below Root.
func (c *call) at(path string) string { return filepath.Join("/", c.Root, path) }

func (c *call) isDirectory(path string) bool {
	info, err := os.Lstat(c.at(path))
	return err == nil && info.IsDir()
}

// hasZone reports whether a time zone exists here. The name is a record's:
// nothing that leaves the folder of zones.
func (c *call) hasZone(name string) bool {
	if name == "UTC" {
		return true
	}
	if !filepath.IsLocal(name) {
		return false
	}
	info, err := os.Stat(filepath.Join(c.at("/usr/share/zoneinfo"), name))
	return err == nil && info.Mode().IsRegular()
}

// hasLocale reports whether a locale is installed: one that is built in, has a
// folder, or stands in the archive of glibc.
func (c *call) hasLocale(name string) bool {
	language, codeset, has := strings.Cut(name, ".")
	if !filepath.IsLocal(name) || strings.ContainsRune(name, '/') {
		return false
	}
	modifier := ""
	if has {
		codeset, modifier, _ = strings.Cut(codeset, "@")
	} else {
		language, modifier, _ = strings.Cut(language, "@")
	}
	if (name == "C" || name == "POSIX") || language == "C" && normalCodeset(codeset) == "utf8" && modifier == "" {
		return true
	}
	normal := language
	if codeset != "" {
		normal += "." + normalCodeset(codeset)
	}
	if modifier != "" {
		normal += "@" + modifier
	}
	for _, n := range []string{name, normal} {
		if c.isDirectory(filepath.Join("/usr/lib/locale", n)) {
			return true
		}
	}
	archive, err := os.Open(c.at("/usr/lib/locale/locale-archive"))
	if err != nil {
		return false
	}
	defer func() { _ = archive.Close() }()
	names, err := archiveNames(archive)
	return err == nil && slices.Contains(names, normal)
}

// normalCodeset spells a codeset as locale folders do: UTF-8 is utf8.
func normalCodeset(s string) string {
	s = strings.ToLower(s)
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, s)
}

// archiveNames lists the locales of an archive of glibc (locarchive.h): a
// header of 32-bit numbers, a hash table of (hash, offset of the name, offset
// of the locale), and the names. Debian's holds some dozens.
func archiveNames(r io.ReaderAt) ([]string, error) {
	const magic, maxNames = 0xde020109, 1 << 16
	var head [16]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, err
	}
	word := func(b []byte, n int) uint32 { return binary.NativeEndian.Uint32(b[4*n:]) }
	// After magic and serial: offset, used and size of the table; the size
	// stands in a fifth word.
	var size [4]byte
	if _, err := r.ReadAt(size[:], 16); err != nil {
		return nil, err
	}
	offset, entries := word(head[:], 2), binary.NativeEndian.Uint32(size[:])
	if word(head[:], 0) != magic || entries > maxNames {
		return nil, errors.New("no locale archive")
	}
	table := make([]byte, 12*entries)
	if _, err := r.ReadAt(table, int64(offset)); err != nil {
		return nil, err
	}
	var names []string
	for ; len(table) > 0; table = table[12:] {
		if word(table, 2) == 0 {
			continue
		}
		var name [64]byte
		n, err := r.ReadAt(name[:], int64(word(table, 1)))
		if err != nil && n == 0 {
			return nil, err
		}
		text, _, _ := strings.Cut(string(name[:n]), "\x00")
		names = append(names, text)
	}
	return names, nil
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
