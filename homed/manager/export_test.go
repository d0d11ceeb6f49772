package manager

import "hearth/records"

// Strangers is the limit on callers whom nobody authorized.
type Strangers struct{ s strangers }

// Admit counts an attempt.
func (s *Strangers) Admit(v records.View, uid uint32, now uint64) (uint64, bool) {
	return s.s.admit(v, uid, now)
}
