// Package udev knows the block devices of this machine as udev sees them: what
// its database has on each, and what it tells of those that come and go. It
// reads and listens only; what a device is good for is its callers'.
//
// No library is used: libudev's format is a header and a list of properties.
package udev

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Device is a block device that udev's rules have run for.
type Device struct {
	// SysPath is its directory in sysfs, which stays its name while it is there.
	SysPath string
	// Properties are ID_FS_UUID and the like.
	Properties map[string]string
}

// An Event says what became of a device.
type Event struct {
	Device
	// Removed devices are gone; any other event tells of one that is there.
	Removed bool
}

// System is the devices of this machine. The zero value asks the usual places.
type System struct {
	Sys, Run string // "" is /sys, /run/udev
	Log      *slog.Logger
}

func (s System) sys() string {
	if s.Sys == "" {
		return "/sys"
	}
	return s.Sys
}

func (s System) database() string {
	if s.Run == "" {
		return "/run/udev/data"
	}
	return filepath.Join(s.Run, "data")
}

// Blocks returns the block devices that udev knows, in no order. One that
// vanishes meanwhile is left out.
func (s System) Blocks() ([]Device, error) {
	class := filepath.Join(s.sys(), "class/block")
	names, err := os.ReadDir(class)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list block devices: %w", err)
	}
	var list []Device
	for _, n := range names {
		path, err := filepath.EvalSymlinks(filepath.Join(class, n.Name()))
		if err != nil {
			continue
		}
		number, err := os.ReadFile(filepath.Join(path, "dev"))
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(s.database(), "b"+strings.TrimSpace(string(number))))
		if err != nil {
			continue // not looked at yet: an event will follow
		}
		list = append(list, Device{path, properties(text)})
	}
	return list, nil
}

// properties reads a file of the database: lines of a letter, a colon and a
// value, where E is a property.
func properties(text []byte) map[string]string {
	m := map[string]string{}
	for line := range bytes.Lines(text) {
		if entry, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("E:")); ok {
			put(m, entry)
		}
	}
	return m
}

func put(m map[string]string, entry []byte) {
	if key, value, ok := strings.Cut(string(entry), "="); ok && key != "" {
		m[key] = value
	}
}

// What udev sends, in the machine's byte order but for the magic:
//
//	offset  len  field
//	     0    8  "libudev", NUL
//	     8    4  magic FE ED CA FE
//	    12    4  size of this header
//	    16    4  where the properties are
//	    20    4  how long they are
//	    24   16  hashes for socket filters
//
// then the properties, KEY=VALUE each with a NUL behind it (systemd,
// sd-device/device-monitor.c).
const (
	headerSize = 40
	magic      = 0xfeedcafe
)

// errNotBlock is an event of another kind of device.
var errNotBlock = errors.New("not about a block device")

// parse reads one message of the group that udevd sends to.
func parse(b []byte) (Event, error) {
	var e Event
	if len(b) < headerSize || string(b[:8]) != "libudev\x00" || binary.BigEndian.Uint32(b[8:]) != magic {
		return e, errors.New("not a message of udevd")
	}
	at, n := uint64(binary.NativeEndian.Uint32(b[16:])), uint64(binary.NativeEndian.Uint32(b[20:]))
	if at < headerSize || at+n > uint64(len(b)) {
		return e, errors.New("the properties lie outside of the message")
	}
	e.Properties = map[string]string{}
	for entry := range bytes.SplitSeq(b[at:at+n], []byte{0}) {
		put(e.Properties, entry)
	}
	if e.Properties["SUBSYSTEM"] != "block" {
		return e, errNotBlock
	}
	path := e.Properties["DEVPATH"]
	if !strings.HasPrefix(path, "/") {
		return e, errors.New("no device path")
	}
	e.SysPath = path
	e.Removed = e.Properties["ACTION"] == "remove"
	return e, nil
}

// Events listens until ctx ends. The channel is closed then, and when events
// were lost: whoever goes on listening asks Blocks once more.
func (s System) Events(ctx context.Context) (<-chan Event, error) {
	sock, err := listen()
	if err != nil {
		return nil, fmt.Errorf("listen to udev: %w", err)
	}
	log := s.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	stop := context.AfterFunc(ctx, func() { _ = sock.Close() })
	out := make(chan Event)
	go func() {
		defer close(out)
		defer func() { _ = sock.Close() }()
		defer stop()
		buf := make([]byte, 64<<10)
		for {
			n, err := receive(sock, buf)
			if err != nil {
				if ctx.Err() == nil {
					log.Info("events of udev were lost", "error", err)
				}
				return
			}
			e, err := parse(buf[:n])
			if err != nil {
				if !errors.Is(err, errNotBlock) {
					log.Debug("ignoring a message", "error", err)
				}
				continue
			}
			e.SysPath = filepath.Join(s.sys(), e.SysPath)
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// udevdGroup is the multicast group of events that the rules have run for.
const udevdGroup = 2

func listen() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	// Best effort: what does not fit any more shows as lost.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20)
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: udevdGroup})
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "udev"), nil
}

// receive reads the next message that root sent. Others need a privilege to
// send here at all, but need not be who they say they are.
func receive(sock *os.File, buf []byte) (int, error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return 0, err
	}
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		var n, on int
		var got error
		err := raw.Read(func(fd uintptr) bool {
			n, on, _, _, got = unix.Recvmsg(int(fd), buf, oob, 0)
			return !errors.Is(got, syscall.EAGAIN)
		})
		if err == nil {
			err = got
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if fromRoot(oob[:on]) {
			return n, nil
		}
	}
}

func fromRoot(oob []byte) bool {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return false
	}
	for i := range list {
		if cred, err := unix.ParseUnixCredentials(&list[i]); err == nil {
			return cred.Uid == 0
		}
	}
	return false
}
