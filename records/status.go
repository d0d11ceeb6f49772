package records

import (
	"cmp"
	"math"
)

// LiveStatus is what the daemon knows of a home right now. nil and "" mean
// that it does not know. Sizes are bytes.
type LiveStatus struct {
	State                                                 string
	Active                                                bool // in any of the active states
	FallbackShell                                         string
	DiskSize, DiskUsage, DiskFree, DiskCeiling, DiskFloor *uint64
	SignedLocally                                         *bool
	FileSystemType                                        string
	AccessMode                                            *uint32 // LUKS, while active
}

// Same reports whether both say the same.
func (s LiveStatus) Same(o LiveStatus) bool {
	for _, n := range [][2]*uint64{
		{s.DiskSize, o.DiskSize}, {s.DiskUsage, o.DiskUsage}, {s.DiskFree, o.DiskFree}, {s.DiskCeiling, o.DiskCeiling}, {s.DiskFloor, o.DiskFloor},
	} {
		if !alike(n[0], n[1]) {
			return false
		}
	}
	return s.State == o.State && s.Active == o.Active && s.FallbackShell == o.FallbackShell && s.FileSystemType == o.FileSystemType &&
		alike(s.SignedLocally, o.SignedLocally) && alike(s.AccessMode, o.AccessMode)
}

func alike[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

const (
	// Service is who manages the records.
	Service = "io.systemd.Home"

	defaultFallbackShell = "/usr/bin/systemd-home-fallback-shell"

	minDiskSize = 5 << 20
	maxDiskSize = 5 << 40
)

// Augment returns the record as a reply carries it: with the status of this
// moment merged into what is kept of it. The status comes last.
func (r *Record) Augment(machineID string, s LiveStatus) *Record {
	set := newObject(
		member{"state", newText(s.State)},
		member{"service", newText(Service)},
		member{"useFallback", newBool(!s.Active)},
		member{"fallbackShell", newText(cmp.Or(s.FallbackShell, defaultFallbackShell))},
		member{"fallbackHomeDirectory", newText("/")},
	)
	size := func(key string, n *uint64) {
		if n != nil {
			set = set.with(key, newUnsigned(*n))
		}
	}
	size("diskSize", s.DiskSize)
	size("diskUsage", s.DiskUsage)
	size("diskFree", s.DiskFree)
	ceiling := uint64(maxDiskSize)
	if s.DiskCeiling != nil {
		ceiling = min(ceiling, *s.DiskCeiling)
	}
	floor := uint64(minDiskSize)
	for _, n := range []*uint64{s.DiskFloor, s.DiskUsage} {
		if n != nil {
			floor = max(floor, *n)
		}
	}
	size("diskCeiling", &ceiling)
	size("diskFloor", &floor)
	if s.SignedLocally != nil {
		set = set.with("signedLocally", newBool(*s.SignedLocally))
	}
	if s.FileSystemType != "" {
		set = set.with("fileSystemType", newText(s.FileSystemType))
	}
	if s.AccessMode != nil {
		set = set.with("accessMode", newUnsigned(uint64(*s.AccessMode&0o7777)))
	}
	all := r.doc.get("status")
	own := all.get(machineID).without("diskSize", "diskUsage", "diskFree", "diskCeiling", "diskFloor", "signedLocally")
	return r.withSection("status", all.with(machineID, own.merge(set)))
}

// Counters is the part of the status that the host file keeps. Times are
// microseconds since 1970. 0 is the same as unset.
type Counters struct {
	Good, Bad                     uint64
	LastGoodUSec, LastBadUSec     uint64
	RateLimitBeginUSec, RateCount uint64
}

func (c *Counters) fields() []struct {
	key string
	p   *uint64
} {
	return []struct {
		key string
		p   *uint64
	}{
		{"goodAuthenticationCounter", &c.Good}, {"lastGoodAuthenticationUSec", &c.LastGoodUSec},
		{"badAuthenticationCounter", &c.Bad}, {"lastBadAuthenticationUSec", &c.LastBadUSec},
		{"rateLimitBeginUSec", &c.RateLimitBeginUSec}, {"rateLimitCount", &c.RateCount},
	}
}

// Counters returns what the record has counted on that machine.
func (r *Record) Counters(machineID string) Counters {
	var c Counters
	l := layers{{status, r.doc.get("status").get(machineID)}}
	for _, f := range c.fields() {
		*f.p = l.u64Or(f.key, 0)
	}
	return c
}

// WithCounters returns the record with those counters.
func (r *Record) WithCounters(machineID string, c Counters) *Record {
	set := newObject()
	for _, f := range c.fields() {
		if *f.p != 0 {
			set = set.with(f.key, newUnsigned(*f.p))
		}
	}
	all := r.doc.get("status")
	own := all.get(machineID)
	for _, f := range c.fields() {
		own = own.without(f.key)
	}
	return r.withSection("status", all.with(machineID, own.merge(set)))
}

// Succeeded returns the counters after a successful authentication.
func (c Counters) Succeeded(now uint64) Counters {
	c.Good, c.LastGoodUSec = min(addSat(c.Good, 1), math.MaxUint64-1), now
	return c
}

// Failed returns the counters after a password or key was not accepted.
func (c Counters) Failed(now uint64) Counters {
	c.Bad, c.LastBadUSec = min(addSat(c.Bad, 1), math.MaxUint64-1), now
	return c
}

// Attempt is the function of that name on counters that no record keeps.
func (c Counters) Attempt(v View, now uint64) (after Counters, next uint64, ok bool) {
	begin, interval := c.RateLimitBeginUSec, v.RateLimitIntervalUSec
	switch {
	case begin == 0, begin > now, addSat(begin, interval) <= now:
		c.RateLimitBeginUSec, c.RateCount = now, 1
		return c, 0, true
	case c.RateCount < v.RateLimitBurst:
		c.RateCount++
		return c, 0, true
	}
	return c, addSat(begin, interval), false
}

// NextTry returns when another attempt may be made: 0 is at any time. known is
// false while nothing has been counted.
func (c Counters) NextTry(v View, now uint64) (next uint64, known bool) {
	switch {
	case c.RateLimitBeginUSec == 0, c.RateCount == 0, c.RateLimitBeginUSec > now:
		return 0, false
	case c.RateCount < v.RateLimitBurst:
		return 0, true
	}
	return addSat(c.RateLimitBeginUSec, v.RateLimitIntervalUSec), true
}

// addSat adds times; what is beyond the end of time is infinity.
func addSat(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
