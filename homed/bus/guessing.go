package bus

import (
	"context"
	"time"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// badPasswordPause is the unit of time that a refused password takes.
const badPasswordPause = 3 * time.Second

// slowDown makes guessing take its time: a refused password is answered after a
// multiple of three seconds, one that was never given at once. The caller waits
// here and not in the worker, so that nobody waits with him: neither who wants
// the same home nor the daemon.
func slowDown(ctx context.Context, err error, spent time.Duration) {
	p := penalty(err, spent)
	if p == 0 {
		return
	}
	t := time.NewTimer(p)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// penalty is how long the caller has yet to wait.
func penalty(err error, spent time.Duration) time.Duration {
	if !fault.Is(err, fault.BadPassword) && !fault.Is(err, fault.BadRecoveryKey) {
		return 0
	}
	return badPasswordPause - spent%badPasswordPause
}

// guesses reports whether any of the secret sections offers a password.
func guesses(sections ...*secret.Bytes) bool {
	for _, section := range sections {
		s, err := records.ParseSecrets(section)
		if err != nil {
			continue
		}
		given := len(s.Passwords) > 0
		s.Close()
		if given {
			return true
		}
	}
	return false
}
