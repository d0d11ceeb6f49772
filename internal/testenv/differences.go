package testenv

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Diff returns the lines to take away from a and to add, in order.
func Diff(a, b []string) []string {
	// Longest common subsequence; transcripts are short.
	n := make([][]int, len(a)+1)
	for i := range n {
		n[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				n[i][j] = n[i+1][j+1] + 1
			} else {
				n[i][j] = max(n[i+1][j], n[i][j+1])
			}
		}
	}
	var out []string
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && n[i+1][j] >= n[i][j+1]:
			out = append(out, "- "+a[i])
			i++
		default:
			out = append(out, "+ "+b[j])
			j++
		}
	}
	return out
}

// Differences are the rows of a file that allows ours to differ from the real
// thing. A row is: case | - theirs or + ours | id in the specification | why.
type Differences struct{ rows, met []string }

// ReadDifferences reads such a file; a row without an id or a reason fails.
func ReadDifferences(t testing.TB, file string) *Differences {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := &Differences{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, " | ")
		if len(f) != 4 || !regexp.MustCompile(`^[QPDHN]\d+$`).MatchString(f[2]) || f[3] == "" {
			t.Fatalf("bad row: %s", line)
		}
		d.rows = append(d.rows, f[0]+" "+f[1])
	}
	return d
}

// Take reports whether a difference is allowed in a case.
func (d *Differences) Take(id, difference string) bool {
	row := id + " " + difference
	if !slices.Contains(d.rows, row) {
		return false
	}
	d.met = append(d.met, row)
	return true
}

// Unused fails for rows that no case needed.
func (d *Differences) Unused(t testing.TB) {
	for _, r := range d.rows {
		if !slices.Contains(d.met, r) {
			t.Errorf("no transcript needs this row: %s", r)
		}
	}
}
