package luks

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"hearth/storage/luks2"
)

// TestCostsKept: a second home of this boot is made without measuring.
func TestCostsKept(t *testing.T) {
	a := area(t, t.TempDir())
	a.RunDir = filepath.Join(t.TempDir(), "run")
	a.LUKS.PBKDFForceIterations, a.LUKS.PBKDFTimeCostUSec = nil, 1000
	image(t, a, "one")
	first := costs(a)
	if len(first.List) != 2 {
		t.Fatalf("kept %+v, want keyslot and digest", first.List)
	}
	info, err := os.Stat(filepath.Join(a.RunDir, costsName))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// A measurement would not find these numbers.
	odd := &luks2.Costs{Changed: true}
	for _, c := range first.List {
		c.Iterations += 12345
		odd.List = append(odd.List, c)
	}
	keepCosts(a, odd)
	if err := os.Remove(a.ImagePath); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	image(t, a, "one")
	now := costs(a)
	if len(now.List) != 2 || now.List[0] != odd.List[0] || now.List[1] != odd.List[1] {
		t.Errorf("measured again: %+v, want %+v", now.List, odd.List)
	}
	left, err := os.ReadDir(a.RunDir)
	if err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestCostsRefused: what somebody else could have written counts for nothing,
// nor does what another boot measured.
func TestCostsRefused(t *testing.T) {
	good := kept{thisBoot(), []luks2.Cost{{Type: "pbkdf2", Hash: "sha512", TimeMS: 500, Bytes: 32, Iterations: 5000}}}
	for name, spoil := range map[string]func(path string) error{
		"":                  func(string) error { return nil },
		"open to others":    func(p string) error { return os.Chmod(p, 0o620) },
		"readable":          func(p string) error { return os.Chmod(p, 0o604) },
		"no JSON":           func(p string) error { return os.WriteFile(p, []byte("{"), 0o600) },
		"unknown field":     func(p string) error { return os.WriteFile(p, []byte(`{"x":1}`), 0o600) },
		"too long":          func(p string) error { return os.Truncate(p, maxCosts+1) },
		"link":              func(p string) error { return errors.Join(os.Rename(p, p+"2"), os.Symlink(p+"2", p)) },
		"directory":         func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) },
		"of another's file": func(p string) error { return os.Chown(p, 1, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			if name == "of another's file" && os.Geteuid() != 0 {
				t.Skip("only root gives files away")
			}
			a := area(t, t.TempDir())
			a.RunDir = t.TempDir()
			if err := writeCosts(a, good); err != nil {
				t.Fatal(err)
			}
			if err := spoil(filepath.Join(a.RunDir, costsName)); err != nil {
				t.Fatal(err)
			}
			if got := len(costs(a).List); got != 0 && name != "" || got != 1 && name == "" {
				t.Errorf("%d costs believed", got)
			}
		})
	}
	a := area(t, t.TempDir())
	a.RunDir = t.TempDir()
	if err := writeCosts(a, kept{"another", good.Costs}); err != nil {
		t.Fatal(err)
	}
	if got := costs(a); len(got.List) != 0 {
		t.Errorf("another boot's: %+v", got.List)
	}
}
