package dm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEncrypted(t *testing.T) {
	// Devices as sysfs shows them: a name, its dm uuid, the names it lies on.
	sys := t.TempDir()
	add := func(name, uuid string, slaves ...string) {
		if err := os.MkdirAll(filepath.Join(sys, name, "slaves"), 0o755); err != nil {
			t.Fatal(err)
		}
		if uuid != "" {
			if err := os.Mkdir(filepath.Join(sys, name, "dm"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(sys, name, "dm/uuid"), []byte(uuid+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range slaves {
			if err := os.Symlink("../../"+s, filepath.Join(sys, name, "slaves", s)); err != nil {
				t.Fatal(err)
			}
		}
	}
	add("disk", "")
	add("crypt", "CRYPT-LUKS2-0123-root", "disk")
	add("volume", "LVM-abc", "crypt")
	add("plain", "LVM-def", "disk")
	add("half", "LVM-ghi", "crypt", "disk")
	add("whole", "LVM-jkl", "crypt", "volume")
	add("ring", "LVM-mno", "ring")
	below := "crypt"
	for i := range stackDepth + 1 {
		name := "deep" + strings.Repeat("x", i)
		add(name, "LVM-pqr", below)
		below = name
	}
	for name, want := range map[string]bool{
		"disk": false, "crypt": true, "volume": true, "plain": false, "half": false, "whole": true,
		"ring": false, "missing": false, below: false, "deep": true,
	} {
		if got := encrypted(filepath.Join(sys, name), stackDepth); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
