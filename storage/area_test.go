package storage

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"hearth/internal/fault"
)

// TestPutInPlaceFails: an area that is said not to be in place is not.
func TestPutInPlaceFails(t *testing.T) {
	dir := t.TempDir()
	temp, path := filepath.Join(dir, ".#ann.home"), filepath.Join(dir, "ann.home")
	if err := os.WriteFile(temp, []byte("image"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("input/output error")
	there := false
	err := putInPlace(temp, path, func(string) error {
		_, err := os.Stat(path)
		there = err == nil
		return broken
	})
	if !errors.Is(err, broken) || !there {
		t.Errorf("in place %v, %v", there, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the area stayed in place: %v", err)
	}
	if err := PutInPlace(temp, path); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "image" {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.WriteFile(temp, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := PutInPlace(temp, path); !fault.Is(err, fault.FileExists) {
		t.Errorf("over another area: %v", err)
	}
}
