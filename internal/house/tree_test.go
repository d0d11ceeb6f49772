package house

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNoPrograms: "go build" leaves its program in the folder it was called in,
// and a commit of everything would keep it for good.
func TestNoPrograms(t *testing.T) {
	top := filepath.Join("..", "..")
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel, _ := filepath.Rel(top, path); rel == "build" || strings.HasPrefix(rel, ".git") {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		head := make([]byte, 4)
		if n, _ := f.Read(head); bytes.Equal(head[:n], []byte("\x7fELF")) {
			t.Errorf("%s is a program: build into build/", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
