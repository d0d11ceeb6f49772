package luks

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"hearth/internal/secret"
	"hearth/storage"
	"hearth/storage/luks2"
	"hearth/storage/memory"
)

// Rekey implements storage.Backend. The volume key stays, so what is open
// remains open. The passphrases get the lowest free keyslots; every other
// keyslot goes with Retire, also those that somebody else made.
func (Backend) Rekey(ctx context.Context, s *storage.Setup, c *storage.Credentials) error {
	o, ok := s.Private.(*opened)
	if !ok {
		return errors.New("the setup has no LUKS2 header")
	}
	r := &rekeying{header: o.header, device: o.window, old: o.header.Keyslots()}
	o.pbkdf.Costs = costs(o.area)
	err := r.add(ctx, s.VolumeKey, c.Passphrases, o.pbkdf)
	keepCosts(o.area, o.pbkdf.Costs)
	if err != nil {
		return err
	}
	s.OnRekey(r.retire, r.revert)
	return nil
}

// rekeying is a change of keyslots between its two halves.
type rekeying struct {
	header *luks2.Header
	device luks2.Device
	old    []int
}

// add makes the new keyslots. On error none of them is left.
func (r *rekeying) add(ctx context.Context, volumeKey *secret.Bytes, passphrases []*secret.Bytes, p luks2.PBKDF) error {
	if len(passphrases) == 0 {
		return errors.New("rekey: no passphrase given")
	}
	for i, passphrase := range passphrases {
		err := ctx.Err()
		if err == nil {
			memory.Prepare(p.Memory())
			if _, err = r.header.AddKeyslot(r.device, volumeKey, passphrase, p); err == nil {
				continue
			}
		}
		return errors.Join(storage.SpaceFault(fmt.Sprintf("add keyslot for passphrase %d", i), err), r.revert())
	}
	return nil
}

// retire destroys the keyslots that were there before.
func (r *rekeying) retire() error { return r.remove(r.old) }

// revert destroys those that came since, also one that was said to have failed.
func (r *rekeying) revert() error {
	return r.remove(slices.DeleteFunc(r.header.Keyslots(), func(n int) bool { return slices.Contains(r.old, n) }))
}

func (r *rekeying) remove(slots []int) error {
	var errs []error
	for _, n := range slots {
		if err := r.header.RemoveKeyslot(r.device, n); err != nil {
			errs = append(errs, storage.SpaceFault(fmt.Sprintf("destroy keyslot %d", n), err))
		}
	}
	return errors.Join(errs...)
}

// pbkdf is how the record wants its passwords derived.
func pbkdf(a storage.Area) luks2.PBKDF {
	p := luks2.PBKDF{
		Type: a.LUKS.PBKDFType, Hash: a.LUKS.PBKDFHash, TimeMS: (a.LUKS.PBKDFTimeCostUSec + 999) / 1000,
		MemoryKiB: memoryCost(a.LUKS.PBKDFMemoryCost), Threads: min(a.LUKS.PBKDFParallel, uint32(runtime.NumCPU())),
	}
	if n := a.LUKS.PBKDFForceIterations; n != nil {
		p.ForceIterations = *n
	}
	return p
}
