// Command homed is the home service: it wires configuration, manager, front
// ends and signals together and decides nothing itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"hearth/homed/bus"
	"hearth/homed/config"
	"hearth/homed/manager"
	"hearth/homed/udev"
	"hearth/homed/userdb"
	"hearth/internal/journal"
	"hearth/records"
)

// version is what --version prints; "make build" fills in the commit.
var version = "development"

const usage = `Usage: homed [OPTIONS...]

The home service. It is started by the system's service manager and takes no
arguments; homectl is the command to talk to it.

  -h --help      show this help
     --version   show the version

Environment: SYSTEMD_HOME_ROOT, SYSTEMD_HOME_RECORD_DIR,
SYSTEMD_HOME_SYSTEM_BLOB_DIR, SYSTEMD_HOMEWORK_PATH, SYSTEMD_HOME_DEBUG_SUFFIX,
SYSTEMD_HOME_LOCK_FREEZE_SESSION, SYSTEMD_LOG_LEVEL.
`

func main() {
	if done, code := arguments(os.Args[1:], os.Stdout, os.Stderr); done {
		os.Exit(code)
	}
	// Before anything looks up an account: the answer to that would have to
	// come from us.
	bypass := os.Getenv("SYSTEMD_BYPASS_USERDB")
	if err := os.Setenv("SYSTEMD_BYPASS_USERDB", "io.systemd.Home"); err != nil {
		fmt.Fprintln(os.Stderr, "homed: set environment:", err)
		os.Exit(1)
	}
	level := new(slog.LevelVar)
	level.Set(logLevel(os.Getenv("SYSTEMD_LOG_LEVEL")))
	// The name under which systemd-homed logs, so that habits and filters hold.
	log := slog.New(journal.NewHandler(journal.Options{Ident: "systemd-homed", Level: level}))
	slog.SetDefault(log)
	if bypass != "" && bypass != "io.systemd.Home" {
		log.Warn("SYSTEMD_BYPASS_USERDB was set to something else", "value", bypass)
	}
	if err := run(log, level); err != nil {
		log.Error("the home service ends", "error", err)
		os.Exit(1)
	}
}

// arguments handles what ends the program before it starts.
func arguments(args []string, out, errOut io.Writer) (done bool, code int) {
	f := flag.NewFlagSet("homed", flag.ContinueOnError)
	f.SetOutput(errOut)
	f.Usage = func() {}
	showVersion := f.Bool("version", false, "")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, _ = io.WriteString(out, usage)
		return true, 0
	case err != nil:
		return true, 1
	case f.NArg() > 0:
		_, _ = fmt.Fprintln(errOut, "homed: This program takes no arguments.")
		return true, 1
	case *showVersion:
		_, _ = fmt.Fprintln(out, "hearth homed", version)
		return true, 0
	}
	return false, 0
}

// harden keeps passwords that pass through out of core dumps and away from
// debuggers.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make process undumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	unix.Umask(0o022)
	return nil
}

func run(log *slog.Logger, level *slog.LevelVar) error {
	if err := harden(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	layout := config.DefaultLayout(filepath.Dir(self)).WithEnvironment(os.Getenv, log)
	conf, err := config.Load(layout, log)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	machine, err := thisMachine(layout)
	if err != nil {
		return err
	}
	o := manager.Options{Config: conf, Layout: layout, Machine: machine, Log: log, Devices: udev.System{Log: log}, Ahead: true}
	if freezes(os.Getenv("SYSTEMD_HOME_LOCK_FREEZE_SESSION"), log) {
		o.Freezer = bus.Freezer{Address: layout.SystemBus}
	}
	m, err := manager.New(o)
	if err != nil {
		return err
	}
	notify, interval := newNotifier(), watchdogInterval()

	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	rescan, reread := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(rescan, unix.SIGUSR1)
	defer signal.Stop(rescan)
	signal.Notify(reread, unix.SIGHUP)
	defer signal.Stop(reread)

	// The first part that fails ends the others.
	var parts sync.WaitGroup
	start := func(name string, f func() error) {
		parts.Go(func() {
			if err := f(); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	start("manager", func() error { return m.Run(ctx) })
	start("bus", func() error {
		return bus.Serve(ctx, bus.Options{
			Manager: m, Address: layout.SystemBus, Name: layout.BusName, Machine: machine, Log: log, Level: level,
			Acquired: func() { notify.send(serving) },
		})
	})
	start("userdb", func() error {
		return userdb.Serve(ctx, userdb.Options{
			Manager: m, Socket: layout.UserDBSocket, Machine: machine, Version: version, Log: log, Level: level,
			Environment: os.Environ(),
		})
	})
	if _, err := os.Stat("/run/systemd/system"); errors.Is(err, fs.ErrNotExist) {
		// systemd-sleep has homes locked. With another init nobody does.
		start("sleep", func() error {
			return bus.Sleep{Homes: m, Address: layout.SystemBus, Log: log}.Watch(ctx)
		})
	}
	start("watchdog", func() error {
		watch(ctx, m, interval, notify, log)
		return nil
	})
	for ctx.Err() == nil {
		select {
		case <-reread:
			reload(ctx, m, layout, notify, log)
		case <-rescan:
			log.Info("looking for homes again")
			m.Rescan()
		case <-ctx.Done():
		}
	}
	notify.send("STOPPING=1\nSTATUS=Shutting down...")
	parts.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func thisMachine(l config.Layout) (records.Machine, error) {
	text, err := os.ReadFile(l.MachineID)
	if err != nil {
		return records.Machine{}, fmt.Errorf("read machine id: %w", err)
	}
	id := strings.TrimSpace(string(text))
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		return records.Machine{}, fmt.Errorf("read machine id: %s holds no machine id", l.MachineID)
	}
	name, err := os.Hostname()
	if err != nil {
		return records.Machine{}, fmt.Errorf("read host name: %w", err)
	}
	return records.Machine{ID: id, Hostname: name, HomeRoot: l.HomeRoot}, nil
}

// freezes says whether a user's sessions are frozen while the home is locked.
func freezes(setting string, log *slog.Logger) bool {
	switch strings.ToLower(setting) {
	case "0", "no", "n", "false", "f", "off":
		return false
	case "", "1", "yes", "y", "true", "t", "on":
	default:
		log.Warn("SYSTEMD_HOME_LOCK_FREEZE_SESSION is neither yes nor no", "value", setting)
	}
	return true
}

func logLevel(s string) slog.Level {
	switch s {
	case "debug", "7":
		return slog.LevelDebug
	case "warning", "4":
		return slog.LevelWarn
	case "err", "3", "crit", "2", "alert", "1", "emerg", "0":
		return slog.LevelError
	}
	return slog.LevelInfo
}
