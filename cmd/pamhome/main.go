// Command pamhome is the helper that pam_home.so starts for one PAM call. It
// speaks to the login program over descriptor 3 and to the home service over
// the system bus, holds no rights of its own, and ends with the call. What it
// does is package pamhome's; this is the process around it.
package main

import (
	"context"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/home1"
	"hearth/pamhome"
	"hearth/pamhome/frame"
	"hearth/pamhome/login1"
)

const (
	notStarted = 64 // exit status where nobody's shim started us
	broken     = 65
	// lastResort ends a helper whose login program neither goes away nor
	// hears the result.
	lastResort = 1000 * time.Second
	// grace is for what must be undone once the login program is gone.
	grace = 900 * time.Millisecond
)

func main() { os.Exit(run()) }

func run() int {
	kind, err := unix.GetsockoptInt(3, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_SEQPACKET {
		_, _ = os.Stderr.WriteString("pamhome: started by pam_home.so only\n")
		return notStarted
	}
	unix.CloseOnExec(3)
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	// An attribute of each thread.
	_, _, _ = syscall.AllThreadsSyscall6(syscall.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	// A panic would print what it holds to a terminal that is not ours.
	debug.SetTraceback("none")
	time.AfterFunc(lastResort, func() { os.Exit(broken) })

	conn, start, err := frame.New(os.NewFile(3, "pam_home"))
	if err != nil {
		return broken
	}
	defer start.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go leave(ctx, cancel, conn, start.Host)

	hook := pamhome.Hook{
		Conv: conn, Start: start, Now: time.Now, Agents: pamhome.SystemAgents(), Bounding: pamhome.OwnBounding,
		Dial: func(ctx context.Context) (pamhome.Homes, error) {
			c, err := home1.Dial(ctx)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		DialLogins: func(ctx context.Context) (pamhome.Sessions, error) {
			c, err := login1.Dial(ctx)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		Users: func(ctx context.Context, name string) ([]byte, error) {
			return pamhome.UserRecord(ctx, pamhome.Multiplexer, name)
		},
	}
	// Without an id no part of a record is about this machine alone.
	if id, err := os.ReadFile("/etc/machine-id"); err == nil {
		hook.MachineID = strings.TrimSpace(string(id))
	}
	hook.Hostname, _ = os.Hostname()
	code := pamhome.Run(ctx, hook)
	if err := conn.Result(code); err != nil {
		return broken
	}
	return 0
}

// leave ends the process soon after the login program, whatever it is waiting
// for: a reference that arrived meanwhile goes with it. A child that the login
// program forked may hold the socket for longer than its parent lives, so its
// pidfd counts as well.
func leave(ctx context.Context, cancel func(), conn *frame.Conn, host *os.File) {
	gone := make(chan struct{})
	if host != nil {
		fd := int32(host.Fd())
		go func() {
			for {
				fds := []unix.PollFd{{Fd: fd, Events: unix.POLLIN}}
				if n, err := unix.Poll(fds, -1); err == unix.EINTR {
					continue
				} else if err == nil && n > 0 {
					close(gone)
				}
				return
			}
		}()
	}
	select {
	case <-conn.Done():
	case <-gone:
	case <-ctx.Done():
		return
	}
	cancel()
	time.Sleep(grace)
	os.Exit(broken)
}
