package storage

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestSweepHome(t *testing.T) {
	dir := t.TempDir()
	stays := []string{
		".#.identity", ".#.identity0123456789abcdeg", ".#.identity0123456789abcdef0", ".#.profile0123456789abcdef",
		".identity", ".identity-blob", "letter", "x.#.identity0123456789abcdef",
	}
	for _, name := range append(stays, ".#.identity0123456789abcdef") {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// What a link leads to is not ours.
	if err := os.Symlink(filepath.Join(dir, "letter"), filepath.Join(dir, ".#.identityaaaaaaaaaaaaaaaa")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, ".#.identity-blobfedcba9876543210", "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	sweepHome(t.Context(), root, slog.New(slog.NewTextHandler(t.Output(), nil)))
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(stays)
	if !slices.Equal(got, stays) {
		t.Errorf("left: %q", got)
	}
}
