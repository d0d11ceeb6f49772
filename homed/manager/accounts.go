package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// getent asks the system's name service for accounts. The daemon itself serves
// that: SYSTEMD_BYPASS_USERDB, which cmd/homed sets first of all and getent
// inherits, keeps the question from coming back to us. A program without libc
// has no other way to see what is not in /etc/passwd.
type getent struct{}

// getentTime bounds a look-up: a directory server may be far.
const getentTime = 30 * time.Second

func (getent) User(ctx context.Context, key string) (string, error) {
	return ask(ctx, "passwd", key)
}

func (getent) Group(ctx context.Context, key string) (string, error) {
	return ask(ctx, "group", key)
}

func ask(ctx context.Context, database, key string) (name string, err error) {
	ctx, cancel := context.WithTimeout(ctx, getentTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "getent", "--", database, key)
	cmd.Stderr = os.Stderr
	line, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case err == nil:
		name, _, _ = strings.Cut(string(line), ":")
		if name == "" {
			return "", fmt.Errorf("look up %s in %s: getent prints %q", key, database, line)
		}
		return name, nil
	case errors.As(err, &exit) && exit.ExitCode() == 2:
		return "", nil
	}
	return "", fmt.Errorf("look up %s in %s: %w", key, database, err)
}

// Free asks once for each database where User and Group ask for each key.
func (getent) Free(ctx context.Context, keys []string) bool {
	ctx, cancel := context.WithTimeout(ctx, getentTime)
	defer cancel()
	for _, database := range []string{"passwd", "group"} {
		cmd := exec.CommandContext(ctx, "getent", append([]string{"--", database}, keys...)...)
		// It prints what it has found, and ends with 2 if that is not everything.
		found, err := cmd.Output()
		var exit *exec.ExitError
		if len(found) > 0 || !errors.As(err, &exit) || exit.ExitCode() != 2 {
			return false
		}
	}
	return true
}

// account says whether a "user" or a "group" has that name or id, and its name;
// "" if neither. A look-up that fails counts as a yes: better no home than two
// owners.
func (m *Manager) account(ctx context.Context, key string) (kind, name string) {
	for _, a := range []struct {
		kind string
		find func(context.Context, string) (string, error)
	}{{"user", m.Accounts.User}, {"group", m.Accounts.Group}} {
		name, err := a.find(ctx, key)
		if err != nil {
			m.log.Warn("cannot tell whether an account exists, taking it that it does", "account", key, "error", err)
			return a.kind, "(unknown)"
		}
		if name != "" {
			return a.kind, name
		}
	}
	return "", ""
}
