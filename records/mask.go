package records

// Mask returns what an audience may see. A trusted one, root or the home's
// owner, sees all but secrets; others do not see the privileged section.
// incomplete reports that something was held back.
//
// It is the only place that decides who sees which section.
func (r *Record) Mask(trusted bool) (masked *Record, incomplete bool) {
	if trusted {
		return r.keep(allParts), false
	}
	return r.keep(allParts &^ privileged), r.doc.get("privileged") != nil
}
