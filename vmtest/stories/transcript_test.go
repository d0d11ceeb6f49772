package stories

import (
	"strings"
	"testing"

	"hearth/internal/testenv"
)

// A transcript is what a script of named cases showed: the lines of each.
type transcript map[string][]string

// cases cuts what a script printed at its lines "### NAME".
func cases(text string) transcript {
	shown := transcript{}
	for part := range strings.SplitSeq("\n"+text, "\n### ") {
		name, lines, ok := strings.Cut(part, "\n")
		if ok || name != "" {
			shown[name] = strings.Split(strings.TrimRight(lines, "\n"), "\n")
		}
	}
	return shown
}

// compare holds ours against theirs, case by case in the order of names.
func compare(t testing.TB, names []string, theirs, ours transcript, allowed *testenv.Differences, suffix string) {
	t.Helper()
	for _, name := range names {
		a, b := theirs[name], ours[name]
		if a == nil && b == nil {
			continue
		}
		bad := false
		for _, d := range testenv.Diff(a, b) {
			if !allowed.Take(name+suffix, d) {
				t.Errorf("%s%s: %s", name, suffix, d)
				bad = true
			}
		}
		if bad {
			t.Logf("%s%s, theirs:\n%s\nours:\n%s", name, suffix, strings.Join(a, "\n"), strings.Join(b, "\n"))
		}
	}
}
