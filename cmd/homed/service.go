package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/config"
)

// loop is what reload and watch need of the manager.
type loop interface {
	Reconfigure(context.Context, config.Config) error
	Alive(context.Context) error
}

const serving = "READY=1\nSTATUS=Processing requests..."

// reload reads homed.conf anew, on SIGHUP. What cannot be read leaves all as it
// was. The service manager waits for READY.
func reload(ctx context.Context, m loop, l config.Layout, notify notifier, log *slog.Logger) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		log.Warn("cannot read the clock", "error", err)
	}
	notify.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=Reading the configuration...", now.Nano()/1000))
	defer notify.send(serving)
	conf, err := config.Load(l, log)
	if err == nil {
		err = m.Reconfigure(ctx, conf)
	}
	if err != nil {
		log.Error("cannot read the configuration, keeping the one that holds", "error", err)
		return
	}
	log.Info("read the configuration; it holds for homes that are made from now on. Signing keys and the environment, paths and names among it, are read at start alone: restart to change those",
		"DefaultStorage", conf.DefaultStorage, "DefaultFileSystemType", conf.DefaultFileSystemType)
}

// watchdogInterval is how often the service manager wants to hear from us, 0
// for never (sd_watchdog_enabled(3)). It is taken out of the environment, so
// that no child answers for us.
func watchdogInterval() time.Duration {
	usec, pid := os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	_, _ = os.Unsetenv("WATCHDOG_USEC"), os.Unsetenv("WATCHDOG_PID")
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 || n > int64(24*time.Hour/time.Microsecond) || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	return time.Duration(n) * time.Microsecond
}

// watch tells the service manager that we live, as long as the manager's loop
// answers: a loop that is stuck is ended, and a new start finds all homes as
// they are.
func watch(ctx context.Context, m loop, interval time.Duration, notify notifier, log *slog.Logger) {
	if interval == 0 {
		return
	}
	t := time.NewTicker(interval / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		asked, stop := context.WithTimeout(ctx, interval)
		err := m.Alive(asked)
		stop()
		if err == nil {
			notify.send("WATCHDOG=1")
		} else if ctx.Err() == nil {
			log.Error("the service does not get on", "error", err)
		}
	}
}
