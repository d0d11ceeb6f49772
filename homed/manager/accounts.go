package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// getent asks the system's name service for accounts. The daemon itself serves
// that: SYSTEMD_BYPASS_USERDB, which cmd/homed sets first of all and getent
// inherits, keeps the question from coming back to us. A program without libc
// has no other way to see what is not in /etc/passwd.
type getent struct{}

// getentTime bounds a look-up: a directory server may be far.
const getentTime = 30 * time.Second

func (getent) UserExists(ctx context.Context, key string) (bool, error) {
	return ask(ctx, "passwd", key)
}

func (getent) GroupExists(ctx context.Context, key string) (bool, error) {
	return ask(ctx, "group", key)
}

func ask(ctx context.Context, database, key string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, getentTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "getent", "--", database, key)
	cmd.Stderr = os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &exit) && exit.ExitCode() == 2:
		return false, nil
	}
	return false, fmt.Errorf("look up %s in %s: %w", key, database, err)
}

// accountExists says whether a "user" or a "group" has that name or id; "" if
// neither. A look-up that fails counts as a yes: better no home than two owners.
func (m *Manager) accountExists(ctx context.Context, key string) string {
	for _, a := range []struct {
		kind   string
		exists func(context.Context, string) (bool, error)
	}{{"user", m.Accounts.UserExists}, {"group", m.Accounts.GroupExists}} {
		yes, err := a.exists(ctx, key)
		if err != nil {
			m.log.Warn("cannot tell whether an account exists, taking it that it does", "account", key, "error", err)
			return a.kind
		}
		if yes {
			return a.kind
		}
	}
	return ""
}
