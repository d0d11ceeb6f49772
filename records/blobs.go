package records

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"hearth/internal/fault"
)

// MaxBlobBytes bounds the files of a blob directory taken together.
const MaxBlobBytes = 64 << 20

// ValidBlobName reports whether a blob may have that file name.
func ValidBlobName(name string) bool { return isBlobName(name) }

// A Manifest holds the SHA-256 of each blob, 64 hex digits in lower case, by
// the blob's name.
type Manifest map[string]string

// Manifest returns what blobs the record has on machine m, and whether it says
// anything of blobs at all: an empty manifest means none.
func (r *Record) Manifest(m Machine) (Manifest, bool) { return r.layers(m).manifest() }

func (l layers) manifest() (Manifest, bool) {
	v := l.last("blobManifest")
	if v == nil {
		return nil, false
	}
	x := Manifest{}
	for _, b := range v.members {
		x[b.key] = strings.ToLower(b.value.str)
	}
	return x, true
}

// WithManifest returns the record with that manifest in its regular section.
// It has to be signed again.
func (r *Record) WithManifest(x Manifest) *Record {
	v := newObject()
	for _, name := range slices.Sorted(maps.Keys(x)) {
		v.members = append(v.members, member{name, newText(x[name])})
	}
	return &Record{r.doc.set("blobManifest", v)}
}

// CheckNames checks that blobs of just these names were given. What is in them
// is looked at while they are copied: see Fits. Fault: InvalidArgs.
func (x Manifest) CheckNames(names []string) error {
	if !slices.Equal(slices.Sorted(maps.Keys(x)), slices.Sorted(slices.Values(names))) {
		return fault.Newf(fault.InvalidArgs, "check blobs", "Provided blob files do not correspond to blob manifest.")
	}
	return nil
}

// Fits reports whether a blob may be copied: its name is valid and it has the
// hash that the manifest names. What does not fit is left out, not an error.
func (x Manifest) Fits(name, hash string) bool {
	want, ok := x[name]
	return ok && ValidBlobName(name) && hash == want
}

// HashBlob returns hash and size in bytes of a blob, for a Manifest. left is
// what remains of MaxBlobBytes. Fault: InvalidArgs for a blob that is longer.
func HashBlob(name string, from io.Reader, left int64) (hash string, size int64, err error) {
	h := sha256.New()
	size, err = io.Copy(h, io.LimitReader(from, left+1))
	switch {
	case err != nil:
		return "", size, fmt.Errorf("hash blob %s: %w", name, err)
	case size > left:
		return "", size, fault.Newf(fault.InvalidArgs, "hash blob", "Failed to generate hash for blob %s: File too large", name)
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}
