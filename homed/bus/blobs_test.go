package bus

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/busconn"
	"hearth/internal/fault"
)

// TestTakeBlobs: what strangers send in place of small readable files.
func TestTakeBlobs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("picture"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "p"), 0o600); err != nil {
		t.Fatal(err)
	}
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	fds := []int{sockets[0], sockets[1]}
	for name, flags := range map[string]int{"f": unix.O_RDONLY, "f ": unix.O_RDWR, "f  ": unix.O_RDONLY | unix.O_PATH, "f   ": unix.O_WRONLY, "f    ": unix.O_RDWR | unix.O_APPEND, "p": unix.O_RDWR | unix.O_NONBLOCK, ".": unix.O_RDONLY} {
		fd, err := unix.Open(filepath.Join(dir, name[:1]), flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if good := name == "f" || name == "f "; good != (unfit(fd) == "") {
			t.Errorf("%q with %#x: %q", name, flags, unfit(fd))
		}
		if name == "f" {
			fds = append([]int{fd}, fds...)
		} else {
			fds = append(fds, fd)
		}
	}
	defer busconn.CloseAll(fds)
	for name, ok := range map[string]bool{"avatar": true, "a.b-c_d~": true, ".x": false, "a/b": false, "": false, "..": false, "a b": false, "ä": false} {
		files, err := takeBlobs(blobs{name: 0}, fds)
		if (err == nil) != ok || !ok && fault.KindOf(err) != fault.InvalidArgs {
			t.Errorf("name %q: %v", name, err)
		}
		closeFiles(files)
	}
	if _, err := takeBlobs(blobs{"avatar": 0, "x": 1}, fds); fault.KindOf(err) != fault.InvalidArgs {
		t.Errorf("a socket: %v", err)
	}
}
