package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// runWith keeps a home open while a command runs in it.
func runWith(c *command, ctx context.Context, args []string) error {
	user, argv := args[0], args[1:]
	if len(argv) == 0 {
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		argv = []string{shell}
	}
	client, err := c.bus(ctx)
	if err != nil {
		return err
	}
	k, err := c.harvest(ctx, user)
	defer k.close()
	if err != nil {
		return err
	}
	suspend, _ := parseBool(os.Getenv("SYSTEMD_PLEASE_SUSPEND_HOME"))
	var reference *os.File
	err = c.slow(ctx, user, k, func(ctx context.Context, section *secret.Bytes) error {
		var err error
		reference, err = client.AcquireHome(ctx, user, section, suspend)
		return err
	})
	if err != nil {
		return err
	}
	k.close()
	status, failed := 0, error(nil)
	info, err := client.GetHomeByName(ctx, user)
	if err != nil {
		failed = usagef("Failed to find the home directory of %s: %s", user, fault.Public(err))
	} else {
		status, failed = c.child(info.HomeDirectory, argv)
	}
	reference.Close()
	if err := client.ReleaseHome(ctx, user); fault.Is(err, fault.HomeBusy) {
		c.notice("Not deactivating home directory of %s, as it is still used.", user)
	} else if err != nil {
		c.explain("Failed to release user home", user, err)
		if failed == nil {
			failed = errSaid
		}
	}
	if failed != nil {
		return failed
	}
	return exitStatus(status)
}

// child runs argv in dir and returns its exit status; 255 where it could not
// be started.
func (c *command) child(dir string, argv []string) (int, error) {
	if err := os.Chdir(dir); err != nil {
		c.fail("Failed to change to directory %s: %s", dir, reason(err))
		return 255, nil
	}
	defer func() { _ = os.Chdir("/") }()
	// The child may use the terminal's keys; what they end is the child alone,
	// and we still release the home. Caught, not ignored: a child inherits what
	// is ignored.
	keys := make(chan os.Signal, 1)
	signal.Notify(keys, unix.SIGINT, unix.SIGQUIT)
	defer signal.Stop(keys)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.in, c.out, c.err
	// Without us nothing keeps the home open. The parent of this signal is the
	// thread that forks.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			c.fail("'%s' terminated by signal %s.", argv[0], unix.SignalName(ws.Signal())[3:])
			return 0, errSaid
		}
		return exit.ExitCode(), nil
	}
	var xe *exec.Error
	if errors.As(err, &xe) {
		err = xe.Err
	}
	c.fail("Failed to execute %s: %s", argv[0], reason(err))
	return 255, nil
}
