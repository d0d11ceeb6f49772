package records

// signedBytes are what a signature covers: the signable sections, normalised,
// compact. Without pairs it is the variant that systemd-homed signs in two
// situations and does not accept itself afterwards.
func (r *Record) signedBytes(pairs bool) []byte {
	return appendCompact(nil, normal(r.Signable().doc, pairs))
}
