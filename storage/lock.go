package storage

import (
	"context"
	"errors"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/storage/mounts"
)

// A Suspender takes the key of an active area out of memory and puts it back.
// While the area is suspended every access to the home waits, ours too: whoever
// may meet such a home asks Suspended first.
type Suspender interface {
	// Suspended looks at the area without touching the home.
	Suspended(a Area) (bool, error)
	// Suspend writes everything out, has further access wait and wipes the
	// key. On an area that is suspended it wipes the key again: what a killed
	// worker began is finished. On error access goes on, unless it was
	// suspended before. HomeNotActive: nothing is open.
	Suspend(ctx context.Context, a Area) error
	// Resume puts the key back and lets access go on; on an area that is not
	// suspended it only checks the credentials. Faults as those of Open, and
	// HomeNotActive.
	Resume(ctx context.Context, a Area, c *Credentials) error
}

// suspender is the only place that asks whether the storage can be locked.
func (f *flow) suspender() (Suspender, error) {
	s, ok := f.backend.(Suspender)
	if !ok {
		// In the words that scripts know.
		return nil, fault.Newf(fault.NotSupported, f.verb, "Operation not supported on storage backend")
	}
	mounted, err := mounts.IsMountPoint(f.view.HomeDirectory)
	if err != nil {
		return nil, fault.New(fault.Unknown, "look at home directory", err)
	}
	if !mounted {
		return nil, fault.New(fault.HomeNotActive, f.verb, errors.New("the home directory is no mount point"))
	}
	f.area.Active = true
	return s, nil
}

// lock takes the volume key of an active home out of memory. Who is in the home
// waits until it is unlocked.
func (f *flow) lock(ctx context.Context) error {
	s, err := f.suspender()
	if err != nil {
		return err
	}
	return s.Suspend(ctx, f.area)
}

// unlock lets a locked home go on. It reads no copy of the record in the home,
// which cannot be touched before.
func (f *flow) unlock(ctx context.Context) error {
	s, err := f.suspender()
	if err != nil {
		return err
	}
	passphrases, err := f.secrets.Candidates()
	if err != nil {
		return err
	}
	defer secret.CloseAll(passphrases)
	f.auth = f.authenticate(false)
	// The goroutine ends before the secrets are wiped.
	defer func() { _ = f.auth.wait() }()
	if _, ok := f.backend.(HeaderKeeper); !ok {
		// Nobody will ask admit.
		if err := f.auth.wait(); err != nil {
			return err
		}
	}
	f.area.Admit = f.admit
	err = s.Resume(ctx, f.area, &Credentials{Passphrases: passphrases})
	if authErr := f.auth.wait(); authErr != nil && !f.overruled {
		return authErr
	}
	return err
}

// touchable refuses with HomeLocked what would wait for a suspended home.
func (f *flow) touchable() error {
	s, ok := f.backend.(Suspender)
	if !ok {
		return nil
	}
	suspended, err := s.Suspended(f.area)
	if err != nil {
		return err
	}
	if suspended {
		return fault.New(fault.HomeLocked, f.verb, nil)
	}
	return nil
}
