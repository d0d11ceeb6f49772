package luks2

import (
	"slices"
	"time"
)

// A Cost is what a measurement found: with so much of Iterations and MemoryKiB
// a derivation takes TimeMS on this machine.
type Cost struct {
	// What was asked for. MostKiB and Threads are of argon2, Hash of pbkdf2.
	Type, Hash       string
	TimeMS           uint64
	MostKiB, Threads uint32
	Bytes            int // of key
	// What was found. Iterations are the passes of argon2.
	Iterations, MemoryKiB uint64
}

// asked is the part of c that says what was measured.
func (c Cost) asked() Cost {
	c.Iterations, c.MemoryKiB = 0, 0
	return c
}

// mostCosts bounds what Costs remember.
const mostCosts = 32

// Costs remember measurements, which take longer than what is measured. Results
// hold for as long as the machine is the same one: the caller keeps them for a
// boot. What cannot be right is measured anew. The zero value remembers none;
// nil never will.
type Costs struct {
	// Changed says that List is not what it was set to.
	Changed bool
	List    []Cost
}

// of returns what is remembered of the question in c, else what measure finds.
func (s *Costs) of(c Cost, sound func(Cost) bool, measure func() (Cost, error)) (Cost, error) {
	if s != nil {
		if i := slices.IndexFunc(s.List, func(o Cost) bool { return o.asked() == c && sound(o) }); i >= 0 {
			return s.List[i], nil
		}
	}
	found, err := measure()
	if err != nil || s == nil {
		return found, err
	}
	s.forget(c)
	s.List = append(s.List, found)
	s.List = s.List[max(len(s.List)-mostCosts, 0):]
	s.Changed = true
	return found, nil
}

func (s *Costs) forget(c Cost) {
	n := len(s.List)
	s.List = slices.DeleteFunc(s.List, func(o Cost) bool { return o.asked() == c.asked() })
	s.Changed = s.Changed || n != len(s.List)
}

// check forgets a measurement that was taken while the machine was busy: what
// was to take its time took less than half of that. A busy machine now proves
// nothing.
func (s *Costs) check(c Cost, took time.Duration) {
	if s != nil && c.TimeMS > 0 && took < time.Duration(c.TimeMS)*time.Millisecond/2 {
		s.forget(c)
	}
}
