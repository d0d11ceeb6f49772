// Package askpassword puts questions to the system's password agents: the
// console's, Plymouth's, a terminal's, a desktop's. It speaks systemd's
// ask-password protocol (the PASSWORD_AGENTS document), and reads and writes
// what that protocol's programs keep in the kernel's keyrings. When a question
// may be asked, and what an answer opens, is its callers' matter.
package askpassword

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/secret"
)

// SystemDir is where root's questions go; every agent of the system looks there.
const SystemDir = "/run/systemd/ask-password"

// UserDir returns where the questions of one user's programs go, "" if that
// user has no runtime directory.
func UserDir(runtimeDir string) string {
	if !filepath.IsAbs(runtimeDir) {
		return ""
	}
	return filepath.Join(runtimeDir, "systemd/ask-password")
}

// How a question ends without an answer, besides its context.
var (
	ErrDeclined = errors.New("the question was declined")
	ErrExpired  = errors.New("nobody answered in time")
)

// Ask puts a question into dir and waits for an answer: at least one secret,
// each the caller's to close, the first the best. An answer may be empty. The
// question disappears when Ask returns, whatever the reason.
func Ask(ctx context.Context, dir string, r Request) ([]*secret.Bytes, error) {
	if err := openTo(dir); err != nil {
		return nil, err
	}
	sweep(dir)
	number := make([]byte, 16)
	_, _ = rand.Read(number)
	socket := filepath.Join(dir, fmt.Sprintf("sck.%x", binary.NativeEndian.Uint64(number)))
	conn, err := listen(ctx, socket)
	if err != nil {
		return nil, err
	}
	// The request goes first: an agent that still sees it finds the socket.
	defer func() {
		_ = os.Remove(socket)
		_ = conn.Close()
	}()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return nil, os.NewSyscallError("clock_gettime", err)
	}
	var notAfter int64
	if r.Limit > 0 {
		notAfter = (now.Nano() + r.Limit.Nanoseconds()) / 1000
	}
	text, err := r.encode(os.Getpid(), socket, notAfter)
	if err != nil {
		return nil, err
	}
	request := filepath.Join(dir, fmt.Sprintf("ask.%d", binary.NativeEndian.Uint64(number[8:])))
	if err := publish(request, text); err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(request) }()
	return await(ctx, conn, r.Limit)
}

// openTo makes the directory if need be. Where somebody else could exchange
// what is in it, no question is asked.
func openTo(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory of questions: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is no directory", dir)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid(), st.Mode&0o022 != 0:
		return fmt.Errorf("%s belongs to others", dir)
	}
	return nil
}

// listen binds the socket of the answers. The mode set before bind is the mode
// of the file, so nobody else can send even for a moment; the credentials of
// each sender are looked at all the same.
func listen(ctx context.Context, path string) (*net.UnixConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) {
			if err = unix.Fchmod(int(fd), 0o600); err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
			}
		}); e != nil {
			return e
		}
		return err
	}}
	c, err := lc.ListenPacket(ctx, "unixgram", path)
	if err != nil {
		return nil, fmt.Errorf("listen for answers: %w", err)
	}
	return c.(*net.UnixConn), nil
}

// publish writes the request under a name that agents pass over, then gives it
// its own: what an agent opens is always whole.
func publish(path string, text []byte) error {
	dir, name := filepath.Split(path)
	tmp := filepath.Join(dir, ".#"+name)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return fmt.Errorf("write question: %w", err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(0o644) // agents of other users list it
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write question: %w", err)
	}
	return nil
}

// await reads datagrams until one of them is an answer by somebody who may
// answer.
func await(ctx context.Context, conn *net.UnixConn, limit time.Duration) ([]*secret.Bytes, error) {
	if limit > 0 {
		var cancel func()
		ctx, cancel = context.WithTimeoutCause(ctx, limit, ErrExpired)
		defer cancel()
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buffer, err := secret.New(maxReply)
	if err != nil {
		return nil, err
	}
	defer buffer.Close()
	var answers []*secret.Bytes
	err = buffer.Use(func(p []byte) error {
		oob := make([]byte, 512)
		for {
			n, oobn, flags, _, err := conn.ReadMsgUnix(p, oob)
			if err != nil {
				if cause := context.Cause(ctx); cause != nil {
					return cause
				}
				return fmt.Errorf("wait for an answer: %w", err)
			}
			if !mayAnswer(oob[:oobn]) || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
				clear(p)
				continue
			}
			list, v, err := readReply(p[:n])
			clear(p)
			switch {
			case err != nil:
				return err
			case v == declines:
				return ErrDeclined
			case v == answersIt:
				answers = list
				return nil
			}
		}
	})
	return answers, err
}

// mayAnswer reads the ancillary part of a datagram: true for root and for
// ourselves. Descriptors that came along are closed.
func mayAnswer(oob []byte) bool {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return false
	}
	known := false
	for _, m := range messages {
		if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			known = cred.Uid == 0 || int(cred.Uid) == os.Getuid()
		}
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
	}
	return known
}
