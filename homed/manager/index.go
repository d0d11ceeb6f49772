package manager

// index finds homes by what their records claim. With thousands of homes, and a
// look-up for each account that anything asks for, none of it may search.
type index struct {
	names map[string]*entry // user names, aliases, and both with realm
	uids  map[uint32]*entry
}

// claims is what an entry has in the index.
type claims struct {
	names  []string
	uid    uint32
	hasUID bool
}

// put gives an entry what its record claims and nobody else has; the user name
// is its own whatever others call it.
func (x *index) put(e *entry) {
	x.remove(e)
	claim := func(n string) {
		x.names[n] = e
		e.claims.names = append(e.claims.names, n)
	}
	for _, n := range namesOf(e.subject.Record()) {
		if x.names[n] == nil {
			claim(n)
		}
	}
	if x.names[e.name] != e {
		claim(e.name)
	}
	if e.HasUID && x.uids[e.UID] == nil {
		x.uids[e.UID] = e
		e.claims.uid, e.claims.hasUID = e.UID, true
	}
}

func (x *index) remove(e *entry) {
	for _, n := range e.claims.names {
		if x.names[n] == e {
			delete(x.names, n)
		}
	}
	if e.claims.hasUID {
		delete(x.uids, e.claims.uid)
	}
	e.claims = claims{}
}

// find returns the home that key names, or nil.
func (x *index) find(key Key) *entry {
	if key.ByUID {
		return x.uids[key.UID]
	}
	return x.names[key.Name]
}
