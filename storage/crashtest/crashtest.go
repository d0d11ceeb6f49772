// Package crashtest shows what a power cut leaves of an operation. It knows
// disks as a sequence of writes and flushes: a Recorder takes that of anything
// that writes through an io.WriterAt, Record that of a whole operation on a
// mounted file system. From a Log it makes the disks that a cut may leave. What
// has to be true of such a disk it leaves to the tests. No shipped program
// imports it.
package crashtest

import (
	"fmt"
	"io"
	"math/rand/v2"
)

// A Step is one thing that happened to a disk.
type Step struct {
	At    int64  // bytes
	Data  []byte // what was written; empty for a bare flush or a mark
	Flush bool   // before this, everything written earlier became stable
	Now   bool   // Data itself is stable once written (FUA)
	Mark  string // not the disk's: what the test says here
}

// A Log is what happened to a disk, in order.
type Log []Step

// A State is what a power cut after the first Cut steps may leave.
type State struct {
	Cut    int
	Random bool // of what was not flushed, chance decides what is there
	log    Log
	unit   int64
	rng    *rand.Rand
}

func (s State) String() string {
	if s.Random {
		return fmt.Sprintf("cut after %d of %d steps, some unflushed writes lost", s.Cut, len(s.log))
	}
	return fmt.Sprintf("cut after %d of %d steps", s.Cut, len(s.log))
}

// Prefix is the state in which all of the first cut steps reached the disk.
func (l Log) Prefix(cut int) State { return State{Cut: cut, log: l} }

// Subset is a state in which a random part of what was not flushed is missing,
// in units of so many bytes: the disk is promised to write none of them by
// halves. The same seed makes the same state.
func (l Log) Subset(cut int, unit int64, seed1, seed2 uint64) State {
	return State{Cut: cut, Random: true, log: l, unit: unit, rng: rand.New(rand.NewPCG(seed1, seed2))}
}

// Stable is how many of the first cut steps are on the disk for certain.
func (l Log) Stable(cut int) int {
	for i := cut; i > 0; i-- {
		if l[i-1].Flush {
			// Its own data came after the flush.
			if len(l[i-1].Data) > 0 && !l[i-1].Now {
				return i - 1
			}
			return i
		}
	}
	return 0
}

// Apply writes the state onto a disk that is as it was before the log; or, with
// from, as it was after so many steps, which must have been stable.
func (s State) Apply(d io.WriterAt, from int) error {
	stable := s.log.Stable(s.Cut)
	// One disk forgets nearly everything, the next nearly nothing.
	keep := 1.0
	if s.Random {
		keep = []float64{0.1, 0.5, 0.9}[s.rng.IntN(3)]
	}
	for i := from; i < s.Cut; i++ {
		step := s.log[i]
		if !s.Random || i < stable || step.Now {
			if err := put(d, step.Data, step.At); err != nil {
				return err
			}
			continue
		}
		for b, at := step.Data, step.At; len(b) > 0; {
			n := min(int64(len(b)), s.unit-at%s.unit)
			if s.rng.Float64() < keep {
				if err := put(d, b[:n], at); err != nil {
					return err
				}
			}
			b, at = b[n:], at+n
		}
	}
	return nil
}

func put(d io.WriterAt, b []byte, at int64) error {
	if len(b) == 0 {
		return nil
	}
	_, err := d.WriteAt(b, at)
	return err
}

// Writes counts the steps that wrote something.
func (l Log) Writes() int {
	n := 0
	for _, s := range l {
		if len(s.Data) > 0 {
			n++
		}
	}
	return n
}

// Find returns where a mark is, -1 if nowhere.
func (l Log) Find(mark string) int {
	for i, s := range l {
		if s.Mark == mark {
			return i
		}
	}
	return -1
}

// Device is what formats are written to.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// A Recorder is a device that remembers what was done to it.
type Recorder struct {
	Device
	Log Log
}

// WriteAt is that of io.WriterAt.
func (r *Recorder) WriteAt(b []byte, at int64) (int, error) {
	n, err := r.Device.WriteAt(b, at)
	r.Log = append(r.Log, Step{At: at, Data: append([]byte(nil), b[:n]...)})
	return n, err
}

// Sync makes what was written stable.
func (r *Recorder) Sync() error {
	err := r.Device.Sync()
	r.Log = append(r.Log, Step{Flush: true})
	return err
}

// States calls check with every prefix of the log, and with random subsets of
// what was not flushed in each. It returns how many there were.
func (l Log) States(subsets int, unit int64, seed uint64, check func(State)) int {
	n := 0
	for cut := 0; cut <= len(l); cut++ {
		check(l.Prefix(cut))
		n++
		if l.Stable(cut) == cut {
			continue
		}
		for i := range subsets {
			check(l.Subset(cut, unit, seed, uint64(cut)<<16|uint64(i)))
			n++
		}
	}
	return n
}
