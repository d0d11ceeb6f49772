package manager

import (
	"math"

	"golang.org/x/sys/unix"

	"hearth/homed/home"
	"hearth/internal/fault"
	"hearth/records"
)

// sizeOnRecord is the size that stands for the record's own.
const sizeOnRecord = math.MaxUint64

// resized is what the home's record becomes when it is to have size bytes. The
// one it states already needs no change, and so no signature of ours. Faults:
// InvalidArgs, RecordSigned, RecordMismatch if the record is from the future.
func (m *Manager) resized(e *entry, size uint64, balances bool) (records.Subject, error) {
	const op = "resize home"
	view := m.view(e)
	if size == sizeOnRecord && view.RebalanceWeight != 0 {
		return nil, fault.Newf(fault.InvalidArgs, op, "Disk size is being determined by automatic disk space rebalancing.")
	}
	if size == sizeOnRecord && view.DiskSize == nil {
		return nil, fault.Newf(fault.InvalidArgs, op, "No disk size to resize to specified.")
	}
	if size == sizeOnRecord || view.DiskSize != nil && *view.DiskSize == size {
		return e.subject, nil
	}
	if err := m.signedElsewhere(e); err != nil {
		return nil, err
	}
	next := e.subject.Record().WithDiskSize(m.Machine, size)
	if balances {
		// It goes on taking part, unlike one that somebody gave a size.
		var weight *uint64
		if view.HasRebalanceWeight {
			weight = &view.RebalanceWeight
		}
		next = next.WithRebalanceWeight(m.Machine, weight)
	}
	next, err := next.Touched(m.now(), false)
	if err != nil {
		return nil, err
	}
	return m.sign(next)
}

// launchResize starts the worker with the record that states the new size.
func (m *Manager) launchResize(e *entry, s home.Start, c *call) error {
	next, err := m.resized(e, c.op.Size, c.balances)
	if err != nil {
		return err
	}
	c.fits = fits(e.ImagePath, next.View(m.Machine))
	return m.work(e, s, next, c.secrets)
}

// fits reports whether a home's image has the size on record. systemd-homed then
// does nothing and counts no login; ours opens the home, in which a resize may
// have been cut off, and counts none either.
func fits(path string, v records.View) bool {
	const unit = 1 << 20 // sizes are rounded down to it
	var st unix.Stat_t
	if v.Storage != "luks" || v.DiskSize == nil || unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	size := uint64(st.Size)
	return *v.DiskSize/unit*unit <= size && size <= *v.DiskSize
}
