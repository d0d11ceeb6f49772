package vmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// runners lists the ways to run guests, best first.
var runners = []runner{qemu{"kvm"}, uml{}, qemu{"tcg"}}

// pick returns the runner asked for, by name or by $HEARTH_VM_RUNNER, or the
// first that works on this machine.
func pick(ctx context.Context, name string, log io.Writer) (runner, error) {
	if name == "" {
		name = os.Getenv("HEARTH_VM_RUNNER")
	}
	var why []error
	for _, r := range runners {
		if name != "" && r.name() != name {
			continue
		}
		err := r.available(ctx, log)
		if err == nil {
			return r, nil
		}
		why = append(why, fmt.Errorf("%s: %w", r.name(), err))
	}
	if len(why) == 0 {
		return nil, fmt.Errorf("%w: there is no runner called %q", ErrNoRunner, name)
	}
	return nil, fmt.Errorf("%w: %w", ErrNoRunner, errors.Join(why...))
}
