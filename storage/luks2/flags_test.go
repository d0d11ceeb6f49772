package luks2

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestFlag: a flag comes and goes, others stay, and cryptsetup passes over what
// it does not know.
func TestFlag(t *testing.T) {
	d, h, _ := formatted(t, Params{}, cheap, `{"userName":"ann"}`, "pw")
	for _, set := range []struct {
		name string
		on   bool
		want []string
	}{
		{"mine", false, nil}, {"mine", true, []string{"mine"}}, {"mine", true, []string{"mine"}},
		{"allow-discards", true, []string{"mine", "allow-discards"}}, {"mine", false, []string{"allow-discards"}},
		{"allow-discards", false, nil}, {"mine", true, []string{"mine"}},
	} {
		if err := h.SetFlag(d, set.name, set.on); err != nil {
			t.Fatal(err)
		}
		again, err := Read(d, testSize)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []*Header{h, again} {
			_, list, err := x.flags()
			if err != nil || len(list) != len(set.want) {
				t.Fatalf("after %+v: %q, %v", set, list, err)
			}
			for _, f := range set.want {
				if !x.Flag(f) {
					t.Errorf("after %+v %q is missing", set, f)
				}
			}
			if len(x.Keyslots()) != 1 || x.Damaged != Neither {
				t.Errorf("after %+v: keyslots %v, damaged %v", set, x.Keyslots(), x.Damaged)
			}
		}
	}
	program, err := exec.LookPath("cryptsetup")
	if err != nil {
		t.Skip(err)
	}
	b := make([]byte, testSize)
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "open", "--test-passphrase", "--key-file", "-", path)
	if cmd.Stdin, err = os.Open(word(t, "pw")); err != nil {
		t.Fatal(err)
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("cryptsetup: %v\n%s", err, text)
	}
}

func word(t *testing.T, text string) string {
	path := filepath.Join(t.TempDir(), "word")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
