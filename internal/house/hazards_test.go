package house

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestHazards: docs/hazards.md has a line for each hazard, and the tests that
// it names are there.
func TestHazards(t *testing.T) {
	const last = 28
	text, err := os.ReadFile("../../docs/hazards.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^\| (H\d+) \|`)
	var have, want []string
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		have = append(have, m[1])
	}
	for n := range last {
		want = append(want, fmt.Sprint("H", n+1))
	}
	if !slices.Equal(have, want) {
		t.Errorf("the hazards are %q", have)
	}
	checkTestsNamed(t, string(text))
}

// checkTestsNamed checks that the tests that a document names, by room, exist.
func checkTestsNamed(t *testing.T, text string) {
	t.Helper()
	named := regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)[A-Za-z0-9]+)`")
	for _, m := range named.FindAllStringSubmatch(text, -1) {
		files, err := filepath.Glob(filepath.Join("../..", m[1], "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(files, func(f string) bool {
			code, err := os.ReadFile(f)
			return err == nil && strings.Contains(string(code), "\nfunc "+m[2]+"(")
		}) {
			t.Errorf("there is no test %s in %s", m[2], m[1])
		}
	}
}
