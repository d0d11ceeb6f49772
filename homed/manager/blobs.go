package manager

import (
	"io"
	"os"

	"hearth/records"
)

// WithManifest puts the hashes of the blobs into the record that came along
// with them. One that names blobs itself, as a signed one must, has to name
// these. Fault: InvalidArgs.
func WithManifest(r *records.Record, files map[string]*os.File, m records.Machine) (*records.Record, error) {
	if named, ok := r.Manifest(m); ok {
		names := make([]string, 0, len(files))
		for name := range files {
			names = append(names, name)
		}
		return r, named.CheckNames(names)
	}
	manifest, left := records.Manifest{}, int64(records.MaxBlobBytes)
	for name, f := range files {
		hash, size, err := records.HashBlob(name, io.NewSectionReader(f, 0, left+1), left)
		if err != nil {
			return nil, err
		}
		manifest[name] = hash
		left -= size
	}
	if len(manifest) == 0 {
		// Nothing to sign.
		return r, nil
	}
	return r.WithManifest(manifest), nil
}
