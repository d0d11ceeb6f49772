package presence

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSuspended(t *testing.T) {
	dir := t.TempDir()
	for device, is := range map[string][2]string{"dm-0": {"home-ann", "0"}, "dm-1": {"home-bob", "1"}, "dm-2": {"vg-home-carl", "1"}, "dm-3": {}, "sda": {}} {
		at := filepath.Join(dir, device, "dm")
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if is[0] == "" {
			continue // on its way out
		}
		for i, name := range []string{"name", "suspended"} {
			if err := os.WriteFile(filepath.Join(at, name), []byte(is[i]+"\n"), 0o444); err != nil {
				t.Fatal(err)
			}
		}
	}
	for user, want := range map[string]bool{"ann": false, "bob": true, "carl": false, "dora": false} {
		if got, err := suspended(dir, "home-"+user); err != nil || got != want {
			t.Errorf("%s: %v, %v", user, got, err)
		}
	}
	if got, err := Suspended("nobody-of-that-name"); err != nil || got {
		t.Errorf("a home that is not there: %v, %v", got, err)
	}
}
