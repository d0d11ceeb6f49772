package records

// Effective answers for single fields what a record says on one machine,
// without the defaults that View puts in: for those who show a record. Fields
// of the wrong type count as unset.
type Effective struct {
	all, privileged layers
	doc             *value
}

// Effective returns the fields as they hold on machine m.
func (r *Record) Effective(m Machine) Effective {
	return Effective{r.layers(m), layers{{privileged, r.doc.get("privileged")}}, r.doc}
}

// Has reports whether a field is set.
func (e Effective) Has(name string) bool { return e.all.last(name) != nil }

// Text returns a string field, "" if unset.
func (e Effective) Text(name string) string { return e.all.text(name, "") }

// Bool returns a boolean field, nil if unset.
func (e Effective) Bool(name string) *bool { return e.all.maybe(name) }

// Number returns an unsigned field, nil if unset.
func (e Effective) Number(name string) *uint64 { return e.all.u64(name) }

// Mode returns an access mode, nil if unset.
func (e Effective) Mode(name string) *uint32 { return e.all.mode(name) }

// Texts returns a list of strings, nil if unset.
func (e Effective) Texts(name string) []string { return e.all.texts(name) }

// Entries returns how many entries a list of the privileged section has.
func (e Effective) Entries(name string) int {
	if n := len(e.privileged.entries(name)); n > 0 {
		return n
	}
	return len(e.privileged.texts(name))
}

// Manifest returns the names and hashes of the blobs.
func (e Effective) Manifest() Manifest {
	x, _ := e.all.manifest()
	return x
}
