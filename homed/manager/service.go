package manager

import (
	"context"

	"hearth/homed/config"
)

// Reconfigure has what an administrator set hold for all operations that start
// from now on.
func (m *Manager) Reconfigure(ctx context.Context, c config.Config) error {
	return m.ask(ctx, func() { m.Config = c })
}

// Alive returns once the loop has answered: a manager that does not is stuck.
func (m *Manager) Alive(ctx context.Context) error { return m.ask(ctx, func() {}) }
