package records

// Group returns the record of the user's own group, compact: the group that
// goes by the user's name and holds nobody else.
func Group(s Subject, m Machine) []byte {
	r, v := s.Record(), s.View(m)
	g := newObject(member{"groupName", newText(v.UserName)})
	if v.Realm != "" {
		g = g.with("realm", newText(v.Realm))
	}
	g = g.with("description", newText("Primary Group of User "+v.UserName))
	if v.HasUID {
		g = g.with("binding", newObject(member{m.ID, newObject(member{"gid", newUnsigned(uint64(v.GID))})}))
	}
	if d := r.doc.get("disposition"); d != nil && fields["disposition"].valid(d) {
		g = g.with("disposition", d)
	}
	g = g.with("status", newObject(member{m.ID, newObject(member{"service", newText(Service)})}))
	return appendCompact(nil, g)
}
