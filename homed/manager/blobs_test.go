package manager

import (
	"os"
	"testing"

	"hearth/internal/fault"
	"hearth/records"
)

func TestWithManifest(t *testing.T) {
	file := func(size int64) *os.File {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err == nil {
			err = f.Truncate(size)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	parse := func(fields string) *records.Record {
		r, err := records.Parse([]byte(`{"userName":"ann"`+fields+`}`), records.BusUpdate)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	m := records.Machine{}
	zero := "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	r, err := WithManifest(parse(""), map[string]*os.File{"avatar": file(0)}, m)
	if got, _ := r.Manifest(m); err != nil || len(got) != 1 || got["avatar"] != zero {
		t.Errorf("%v %v", got, err)
	}
	if _, err := WithManifest(parse(`,"blobManifest":{"avatar":"`+zero+`"}`), map[string]*os.File{"other": file(0)}, m); fault.KindOf(err) != fault.InvalidArgs {
		t.Errorf("files that the record does not name: %v", err)
	}
	if _, err := WithManifest(parse(""), map[string]*os.File{"a": file(records.MaxBlobBytes / 2), "b": file(records.MaxBlobBytes/2 + 1)}, m); fault.KindOf(err) != fault.InvalidArgs {
		t.Errorf("files that are too large together: %v", err)
	}
	if r, err := WithManifest(parse(""), map[string]*os.File{}, m); err != nil || string(r.Compact()) != `{"userName":"ann"}` {
		t.Errorf("no files: %s %v", r.Compact(), err)
	}
}
