package house

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestQuirksAreHeld: docs/quirks.md speaks of each quirk once, and names tests
// that exist.
func TestQuirksAreHeld(t *testing.T) {
	text, err := os.ReadFile("../../docs/quirks.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := allTests(t)
	rows := regexp.MustCompile(`(?m)^\| (Q\d+) \|.*\| ([^|]*) \| ([^|]*) ?\|$`).FindAllStringSubmatch(string(text), -1)
	if len(rows) != 25 {
		t.Errorf("%d rows, want 25", len(rows))
	}
	for i, r := range rows {
		if want := fmt.Sprintf("Q%d", i+1); r[1] != want {
			t.Errorf("row %d is %s, want %s", i+1, r[1], want)
		}
		named := regexp.MustCompile(`Test\w+`).FindAllString(r[3], -1)
		if len(named) == 0 && !strings.Contains(r[2], "not yet") {
			t.Errorf("%s: no test holds it", r[1])
		}
		for _, n := range named {
			if !tests[n] {
				t.Errorf("%s: there is no %s", r[1], n)
			}
		}
		if strings.Contains(r[2], "seen") != strings.Contains(r[3], "TestQuirks") {
			t.Errorf("%s: what is seen, TestQuirks has to hold", r[1])
		}
	}
}

// TestHostileInputIsTried: each row of docs/hostile.md names tests that exist.
func TestHostileInputIsTried(t *testing.T) {
	text, err := os.ReadFile("../../docs/hostile.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := allTests(t)
	rows := regexp.MustCompile(`(?m)^\| (.*) \| .* \| (.*) \|$`).FindAllStringSubmatch(string(text), -1)
	if len(rows) < 25 {
		t.Errorf("%d rows only", len(rows))
	}
	for _, r := range rows {
		if r[1] == "what" {
			continue
		}
		names := regexp.MustCompile(`\b(?:Test|Fuzz)\w+`).FindAllString(r[2], -1)
		if len(names) == 0 {
			t.Errorf("%s: no test tries it", r[1])
		}
		for _, n := range names {
			if !tests[n] {
				t.Errorf("%s: there is no %s", r[1], n)
			}
		}
	}
}

// allTests returns the names of all tests and fuzz targets.
func allTests(t *testing.T) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range function.FindAllStringSubmatch(string(source), -1) {
			tests[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}
