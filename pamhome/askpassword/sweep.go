package askpassword

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxRequest bounds what is read of somebody's request.
const maxRequest = 64 << 10

// sweep removes our user's questions whose programs were killed: agents pass
// them over by the process id, but only until that is given out again.
func sweep(dir string) {
	names, _ := filepath.Glob(filepath.Join(dir, "ask.*"))
	for _, name := range names {
		if pid, socket := parseRequest(readOwn(name)); pid > 0 && filepath.Dir(socket) == dir && unix.Kill(pid, 0) == unix.ESRCH && refuses(socket) {
			_ = os.Remove(name)
			_ = os.Remove(socket)
		}
	}
}

// readOwn reads a file of our own user; anything else is empty.
func readOwn(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() {
		return ""
	}
	text, err := io.ReadAll(io.LimitReader(f, maxRequest))
	if err != nil {
		return ""
	}
	return string(text)
}

// parseRequest returns who asks and where answers go, zeros where the text does
// not say.
func parseRequest(text string) (pid int, socket string) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), "=")
		switch key {
		case "PID":
			pid, _ = strconv.Atoi(value)
		case "Socket":
			socket = filepath.Clean(value)
		}
	}
	return pid, socket
}

// refuses reports whether nobody listens at a socket.
func refuses(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	return err == unix.ECONNREFUSED || err == unix.ENOENT
}
