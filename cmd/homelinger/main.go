// Command homelinger runs once while the machine boots: it asks, on the console
// or the splash screen, for what opens the homes of users whose services run
// without a login, and has the home service open them. It knows passwords for
// the time of the question, is a bus client like any other, and fails nothing:
// a home that stays closed is asked for again when its user's services start.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/config"
	"hearth/homed/home1"
	"hearth/internal/fault"
	"hearth/internal/journal"
	"hearth/internal/secret"
	"hearth/pamhome/askpassword"
	"hearth/records"
)

const (
	lingerDir = "/var/lib/systemd/linger" // a file per user, logind's
	// tries is how many answers may be rejected per home.
	tries = 3
	// opening bounds what an answer sets off. With the longest question it
	// stays below the unit's 90 s.
	opening = 29 * time.Second
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "homelinger: This program takes no arguments. It is started at boot by homed-linger.service.")
		os.Exit(1)
	}
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	log := slog.New(journal.NewHandler(journal.Options{Ident: "homed-linger"}))
	slog.SetDefault(log)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := run(ctx, log); err != nil {
		// No exit status: nobody else's boot is to depend on an open home.
		log.Warn("the homes of lingering users stay closed for now", "error", err)
	}
}

func run(ctx context.Context, log *slog.Logger) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	conf, err := config.Load(config.DefaultLayout(filepath.Dir(self)), slog.New(slog.DiscardHandler)) // the daemon complains
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	limit := conf.LingerLimit()
	if limit == 0 {
		return nil
	}
	files, err := os.ReadDir(lingerDir)
	if err != nil {
		return fmt.Errorf("read who lingers: %w", err)
	}
	lingering := map[string]bool{}
	for _, f := range files {
		lingering[f.Name()] = true
	}
	client, err := home1.Dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	r := round{homes: client, dir: askpassword.SystemDir, limit: limit, log: log}
	asked, err := r.wake(ctx, lingering)
	if asked > 0 {
		dismiss(r.dir)
	}
	return err
}

// homes is the home service, as far as this program needs it.
type homes interface {
	ListHomes(ctx context.Context) ([]home1.HomeInfo, error)
	ActivateHome(ctx context.Context, name string, secrets *secret.Bytes) error
}

// round is the questions of one boot.
type round struct {
	homes homes
	dir   string
	limit time.Duration // for all of them
	log   *slog.Logger
}

// wake asks for the closed homes among those, all at once, and returns for how
// many it did.
func (r *round) wake(ctx context.Context, lingering map[string]bool) (int, error) {
	list, err := r.homes.ListHomes(ctx)
	if err != nil {
		return 0, err
	}
	until, cancel := context.WithTimeoutCause(ctx, r.limit, askpassword.ErrExpired)
	defer cancel()
	var questions sync.WaitGroup
	asked := 0
	for _, h := range list {
		if !lingering[h.UserName] || h.State != "inactive" && h.State != "dirty" {
			continue
		}
		asked++
		questions.Go(func() {
			log := r.log.With("HOME_USER", h.UserName)
			if err := r.open(ctx, until, h.UserName); err != nil {
				log.Warn("the home of a lingering user stays closed for now", "error", err)
			} else {
				log.Info("the home of a lingering user is open")
			}
		})
	}
	questions.Wait()
	return asked, nil
}

var (
	errNotNow   = errors.New("the answer was empty, which means not now")
	errRejected = errors.New("no password that was given opens it")
)

// open asks until the home is active. until ends the questions; an answer that
// came in time may still open the home.
func (r *round) open(ctx, until context.Context, user string) error {
	var known []*secret.Bytes
	defer func() { secret.CloseAll(known) }()
	what := "Password"
	for rejected := range tries {
		end, _ := until.Deadline()
		list, err := askpassword.Ask(until, r.dir, askpassword.ForHome(user, what, rejected > 0, max(time.Until(end), time.Millisecond)))
		if err != nil {
			return err
		}
		if list[0].Len() == 0 {
			secret.CloseAll(list)
			return errNotNow
		}
		before := known
		known = append(list, before...)
		err = r.activate(ctx, user, known)
		switch fault.KindOf(err) {
		case "", fault.HomeAlreadyActive:
			return nil
		case fault.BadPassword, fault.BadPasswordAndNoToken,
			// Nobody sits at a token here; a password does as well.
			fault.TokenPresenceNeeded, fault.TokenVerifyNeeded, fault.TokenPinNeeded:
			what = "Password"
		case fault.BadRecoveryKey:
			what = "Recovery key"
		case fault.InvalidArgs: // not text, so no home can have it as its password
			secret.CloseAll(list)
			known = before
		default:
			return err
		}
	}
	return errRejected
}

func (r *round) activate(ctx context.Context, user string, known []*secret.Bytes) error {
	section, err := records.EncodeSecrets(known)
	if err != nil {
		return err
	}
	defer section.Close()
	ctx, cancel := context.WithTimeout(ctx, opening)
	defer cancel()
	return r.homes.ActivateHome(ctx, user, section)
}

// dismiss sends the console's password agent away once nothing is asked any
// more. Where one of the units is missing that systemd means to stop for the
// same purpose, it stops none of them; the agent then shares the console with
// the login prompt, and was seen to take the password typed there.
func dismiss(dir string) {
	if left, _ := filepath.Glob(filepath.Join(dir, "ask.*")); len(left) > 0 {
		return
	}
	for _, unit := range []string{"systemd-ask-password-console.path", "systemd-ask-password-console.service"} {
		// A unit that is not there needs no stopping.
		_ = exec.Command("systemctl", "--no-ask-password", "stop", unit).Run()
	}
}
