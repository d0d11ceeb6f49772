package session

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestZone(t *testing.T) {
	if _, err := os.Stat("/usr/share/zoneinfo/UTC"); err != nil {
		t.Skip(err)
	}
	for name, want := range map[string]bool{"UTC": true, "Mars/Olympus": false, "../zoneinfo/UTC": false, "/etc/passwd": false, "": false} {
		if Zone(name) != want {
			t.Errorf("Zone(%q) is %v", name, !want)
		}
	}
}

// TestLocale has localedef make the archive, and reads broken ones.
func TestLocale(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "fr_FR.utf8"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fr_FR.utf8/LC_CTYPE"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"C": true, "POSIX": true, "fr_FR.UTF-8": true, "fr_FR.utf8": true, "fr_FR": false, "": false, "../x": false, "de_DE.UTF-8": false}
	check := func() {
		t.Helper()
		for name, want := range want {
			if localeBelow(dir, name) != want {
				t.Errorf("locale %q is %v", name, !want)
			}
		}
	}
	check()
	archive := filepath.Join(dir, "locale-archive")
	for _, broken := range []string{"", "x", strings.Repeat("\xff", 60), "\x09\x01\x02\xde" + strings.Repeat("\xff", 52), "\x09\x01\x02\xde" + strings.Repeat("\x01", 52)} {
		if err := os.WriteFile(archive, []byte(broken), 0o644); err != nil {
			t.Fatal(err)
		}
		check()
	}
	if err := os.Remove(archive); err != nil {
		t.Fatal(err)
	}
	// localedef writes below a prefix, at the compiled-in path.
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "usr/lib/locale"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("localedef", "--prefix="+root, "-i", "de_DE", "-f", "ISO-8859-15", "de_DE.ISO-8859-15@euro").CombinedOutput()
	if err != nil {
		t.Skipf("localedef: %v\n%s", err, out)
	}
	for name, want := range map[string]bool{"de_DE.ISO-8859-15@euro": true, "de_DE.iso885915@euro": true, "de_DE.UTF-8": false} {
		if localeBelow(filepath.Join(root, "usr/lib/locale"), name) != want {
			t.Errorf("locale %q is %v", name, !want)
		}
	}
}
