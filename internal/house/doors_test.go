package house

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDoors: what docs/pam.md says is compared with systemd's module is: its
// tests are there, and its transactions are played.
func TestDoors(t *testing.T) {
	text, err := os.ReadFile("../../docs/pam.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "## What is compared with systemd's module\n")
	if !ok {
		t.Fatal("docs/pam.md has no table of what is compared")
	}
	checkTestsNamed(t, table)
	code, err := os.ReadFile("../../vmtest/stories/modules_test.go")
	if err != nil {
		t.Fatal(err)
	}
	played := regexp.MustCompile(`\{name: "([^"]+)"`).FindAllStringSubmatch(string(code), -1)
	if len(played) < 30 {
		t.Fatalf("only %d transactions were found", len(played))
	}
	named := map[string]bool{}
	for _, m := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(table, -1) {
		named[m[1]] = true
	}
	for _, m := range played {
		if !named[m[1]] {
			t.Errorf("transaction %q stands in no row", m[1])
		}
		delete(named, m[1])
	}
	for name := range named {
		t.Errorf("there is no transaction %q", name)
	}
}
