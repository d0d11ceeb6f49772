// Package steps follows a process from one system call that changes something
// outside of it to the next (seccomp_unotify(2)), so that a test can end it
// there, or see in which order it does things. It knows calls, paths and what a
// flush is for; what has to come of it is left to the tests. No shipped program
// imports it.
package steps

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How a call says what it works on.
type shape int

const (
	plain  shape = iota // of no file
	file                // a descriptor
	at                  // a folder's descriptor and a path
	second              // the same, one argument later
	two                 // twice the same
	create              // at, where the flags say that a file may be made
)

// A kind is a system call that changes something that outlives the process, or
// takes what the kernel has to take back from it.
type kind struct {
	name  string
	shape shape
}

var kinds = map[int]kind{
	unix.SYS_MOUNT: {"mount", plain}, unix.SYS_UMOUNT2: {"umount", plain}, unix.SYS_MOVE_MOUNT: {"move_mount", plain},
	unix.SYS_OPEN_TREE: {"open_tree", plain}, unix.SYS_MOUNT_SETATTR: {"mount_setattr", plain},
	unix.SYS_KEYCTL: {"keyctl", plain}, unix.SYS_ADD_KEY: {"add_key", plain}, unix.SYS_SENDMSG: {"sendmsg", plain},
	unix.SYS_OPENAT: {"create", create}, unix.SYS_MKDIRAT: {"mkdir", at}, unix.SYS_UNLINKAT: {"unlink", at},
	unix.SYS_RENAMEAT: {"rename", two}, unix.SYS_RENAMEAT2: {"rename", two}, unix.SYS_LINKAT: {"link", two}, unix.SYS_SYMLINKAT: {"symlink", second},
	unix.SYS_FCHOWNAT: {"chown", at}, unix.SYS_FCHMODAT: {"chmod", at},
	unix.SYS_FCHOWN: {"chown", file}, unix.SYS_FCHMOD: {"chmod", file}, unix.SYS_FSETXATTR: {"setxattr", file}, unix.SYS_FREMOVEXATTR: {"removexattr", file},
	unix.SYS_WRITE: {"write", file}, unix.SYS_PWRITE64: {"write", file}, unix.SYS_COPY_FILE_RANGE: {"copy", file},
	unix.SYS_FTRUNCATE: {"truncate", file}, unix.SYS_FALLOCATE: {"allocate", file},
	unix.SYS_FSYNC: {"sync", file}, unix.SYS_FDATASYNC: {"sync", file}, unix.SYS_SYNCFS: {"syncfs", file},
	unix.SYS_IOCTL: {"ioctl", file}, unix.SYS_FLOCK: {"flock", file},
}

// A Step is a call that a process is about to make.
type Step struct {
	Name string
	// Path is what it works on, where that is a file, To the new name of a
	// rename or link: as the process sees them.
	Path, To string
}

func (s Step) String() string { return strings.TrimSpace(s.Name + " " + s.Path + " " + s.To) }

const (
	// descriptor is where the process has its end.
	descriptor = 100
	patience   = 10 * time.Second
	number     = 0  // offsets in struct seccomp_data
	arguments  = 16 // of 8 bytes each, little endian: the flags are the third
)

// Ask has the kernel stop each thread of this process, and of what it starts,
// before each step until who follows it lets it go on. Call it first of all:
// until somebody follows, the process waits at its first step.
func Ask() error {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(how uint16, k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | how, Jf: skip, K: k}
	}
	notify := stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_USER_NOTIF)
	allow := stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW)
	program := []unix.SockFilter{stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, number)}
	for nr, k := range kinds {
		if k.shape != create {
			program = append(program, jump(unix.BPF_JEQ, uint32(nr), 1), notify)
			continue
		}
		program = append(program, jump(unix.BPF_JEQ, uint32(nr), 4),
			stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, arguments+2*8), jump(unix.BPF_JSET, unix.O_CREAT, 1), notify, allow)
	}
	program = append(program, allow)
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// Go interrupts its own threads, which would make a step of each interruption.
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC |
		unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno == unix.EACCES { // not root: nothing that it starts may be more than it is
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("ask before steps: %w", err)
		}
		fd, _, errno = unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	}
	if errno != 0 {
		return fmt.Errorf("ask before steps: %w", errno)
	}
	return unix.Dup3(int(fd), descriptor, unix.O_CLOEXEC)
}

// notice is struct seccomp_notif, reply struct seccomp_notif_resp.
type notice struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type reply struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// Run starts a program that calls Ask, follows it, and returns how it ended.
func Run(cmd *exec.Cmd, before func(Step) bool) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	wait, err := Follow(cmd.Process.Pid, before)
	if err != nil {
		return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	ended := cmd.Wait()
	if err := wait(); err != nil {
		return err
	}
	return ended
}

// Follow calls before with each step of the process pid, which called Ask; what
// that has started is let go on. The process is killed where before returns
// false. wait returns when the process and what it has started are gone.
func Follow(pid int, before func(Step) bool) (wait func() error, err error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("follow process: %w", err)
	}
	defer func() { _ = unix.Close(process) }()
	fd := -1
	for end := time.Now().Add(patience); fd < 0; time.Sleep(time.Millisecond) {
		if fd, err = unix.PidfdGetfd(process, descriptor, 0); err != nil && time.Now().After(end) {
			return nil, fmt.Errorf("follow process: %w", err)
		}
	}
	done := make(chan error, 1)
	go func() {
		defer func() { _ = unix.Close(fd) }()
		done <- follow(fd, pid, before)
	}()
	return func() error { return <-done }, nil
}

func follow(fd, pid int, before func(Step) bool) error {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return err
		}
		if p[0].Revents&unix.POLLIN == 0 {
			if p[0].Revents&unix.POLLHUP != 0 {
				return nil // nobody is left
			}
			continue // POLLERR says that a signal came while it looked
		}
		var n notice
		if errno := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); errno != 0 {
			if errno == unix.ENOENT || errno == unix.EINTR {
				continue // killed meanwhile
			}
			return fmt.Errorf("take notice: %w", errno)
		}
		// Pipes and sockets are the process's own affair.
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", pid, n.pid)); err == nil {
			if s, ok := n.step(); ok && !before(s) {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					return fmt.Errorf("kill process: %w", err)
				}
				continue
			}
		}
		r := reply{id: n.id, flags: 1} // SECCOMP_USER_NOTIF_FLAG_CONTINUE
		if errno := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)); errno != 0 && errno != unix.ENOENT {
			return fmt.Errorf("answer notice: %w", errno)
		}
	}
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	return errno
}

// step says what the call is, while its process waits; false if it changes
// nothing but the process's own affairs.
func (n *notice) step() (Step, bool) {
	k := kinds[int(n.nr)]
	s := Step{Name: k.name}
	switch k.shape {
	case file:
		s.Path = n.open(n.args[0])
		if k.name == "write" && (!strings.HasPrefix(s.Path, "/") || strings.HasPrefix(s.Path, "/dev/null")) {
			return s, false
		}
	case at, create:
		s.Path = n.path(n.args[0], n.args[1])
	case second:
		s.Path = n.path(n.args[1], n.args[2])
	case two:
		s.Path, s.To = n.path(n.args[0], n.args[1]), n.path(n.args[2], n.args[3])
	}
	return s, true
}

// open names what is open under a descriptor.
func (n *notice) open(fd uint64) string {
	name := fmt.Sprintf("fd/%d", int32(fd))
	if int32(fd) == unix.AT_FDCWD {
		name = "cwd"
	}
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/%s", n.pid, name))
	return path
}

// path reads a path argument.
func (n *notice) path(dir, address uint64) string {
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", n.pid))
	if err != nil {
		return ""
	}
	defer func() { _ = memory.Close() }()
	b := make([]byte, unix.PathMax)
	got, _ := memory.ReadAt(b, int64(address))
	text, _, ok := bytes.Cut(b[:got], []byte{0})
	if !ok {
		return ""
	}
	if filepath.IsAbs(string(text)) {
		return string(text)
	}
	return filepath.Join(n.open(dir), string(text))
}
