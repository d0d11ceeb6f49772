package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReadPasswordRules(t *testing.T) {
	l := Layout{PasswordRules: filepath.Join(t.TempDir(), "pwquality.conf")}
	if got := l.ReadPasswordRules(); len(got) != 0 {
		t.Errorf("nothing is there, read %q", got)
	}
	if err := os.Mkdir(l.PasswordRules+".d", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"": "minlen = 12", ".d/b.conf": "minlen = 10", ".d/a.conf": "minlen = 9\n", ".d/c.other": "minlen = 1"} {
		if err := os.WriteFile(l.PasswordRules+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(l.ReadPasswordRules()); got != "minlen = 9\n\nminlen = 10\nminlen = 12" {
		t.Errorf("read %q", got)
	}
}
