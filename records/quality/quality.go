// Package quality tells a person what a new password is worth. It knows what
// people choose: common words, names, dates, rows of keys. It refuses nothing,
// which is for the rules in records, and it is linked where a person chooses a
// password and nowhere else.
package quality

import (
	"bytes"
	_ "embed"
	"math"
	"slices"
	"strings"
	"sync"

	"hearth/internal/secret"
)

// words.txt has the words and passwords that are used most, the most common
// first: the heads of the frequency lists that come with zxcvbn (Dropbox, MIT
// license), merged by rank.
//
//go:embed words.txt
var words string

// ranks are made when they are first asked for: most runs never do.
var ranks = sync.OnceValue(func() map[string]int {
	m := map[string]int{}
	for w := range strings.Lines(words) {
		m[strings.TrimSuffix(w, "\n")] = len(m) + 1
	}
	return m
})

const (
	// easy is the logarithm of the number of guesses that somebody with a
	// copy of the home makes in a few days.
	easy = 8

	// A longer password is judged by its begin: that is enough.
	maxJudged = 64
)

// Advice returns a sentence for whoever chose a password that is easy to guess,
// "" for a good one. names are what others know of the person, the user name
// among them.
func Advice(p *secret.Bytes, names ...string) string {
	advice := ""
	// The only error is that of a closed password, which nobody chose.
	_ = p.Use(func(b []byte) error {
		guesses, why := estimate(b[:min(len(b), maxJudged)], names)
		if guesses < easy {
			advice = "This password is easy to guess: " + why + ". Some words that have nothing to do with each other make a better one."
		}
		return nil
	})
	return advice
}

// A pattern is one way to make part of a password.
type pattern string

const (
	short    pattern = "it is short"
	common   pattern = "it is not much more than a common word or password"
	name     pattern = "it contains a name that others know"
	row      pattern = "it follows the alphabet or a row of keys"
	repeated pattern = "it repeats itself"
	date     pattern = "it is not much more than a date"
)

// estimate returns the logarithm, to base 10, of the guesses it takes who
// knows all these patterns, and the pattern that most of p is made of.
func estimate(p []byte, names []string) (guesses float64, why string) {
	lower := lowered(p)
	plain := unleet(lower)
	backward := bytes.Clone(lower)
	slices.Reverse(backward)
	defer clear(lower)
	defer clear(plain)
	defer clear(backward)

	// The cheapest way to make the first n bytes, and its last part.
	type way struct {
		cost  float64
		begin int
		by    pattern
	}
	best := make([]way, len(p)+1)
	for end := 1; end <= len(p); end++ {
		best[end] = way{best[end-1].cost + 1, end - 1, short}
		try := func(begin int, cost float64, by pattern) {
			// A part costs something beside the others, whatever it is.
			if begin > 0 || end < len(p) {
				cost = max(cost, 1.5)
			}
			if cost += best[begin].cost; cost < best[end].cost {
				best[end] = way{cost, begin, by}
			}
		}
		for begin := range end - 2 {
			part := lower[begin:end]
			extra := 0.0
			if !bytes.Equal(part, p[begin:end]) {
				extra = 0.3 // with capitals
			}
			for i, spelled := range [][]byte{part, plain[begin:end], backward[len(p)-end : len(p)-begin]} {
				if i > 0 {
					extra += 0.3
				}
				if known(spelled, names) {
					try(begin, 0.5+extra, name)
				} else if r := ranks()[string(spelled)]; r > 0 {
					try(begin, math.Log10(float64(r))+extra, common)
				}
			}
			if isRow(part) {
				try(begin, 1+math.Log10(float64(len(part)))+extra, row)
			}
			if isDate(part) {
				try(begin, 0.55*float64(len(part)), date) // a third of the digits are free
			}
			if n := period(part); n > 0 {
				try(begin, float64(n)+math.Log10(float64(len(part)/n)), repeated)
			}
		}
	}
	share := map[pattern]int{}
	for at := len(p); at > 0; at = best[at].begin {
		share[best[at].by] += at - best[at].begin
	}
	by := short
	for _, k := range []pattern{common, row, repeated, date, name} {
		if share[k] > 0 && share[k] >= share[by] {
			by = k
		}
	}
	return best[len(p)].cost, string(by)
}

func known(part []byte, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return len(n) > 2 && strings.EqualFold(n, string(part)) })
}

// lowered keeps the length, unlike bytes.ToLower.
func lowered(p []byte) []byte {
	out := bytes.Clone(p)
	for i, c := range out {
		if c >= 'A' && c <= 'Z' {
			out[i] = c + 'a' - 'A'
		}
	}
	return out
}

// unleet undoes the usual substitutions.
func unleet(p []byte) []byte {
	out := bytes.Clone(p)
	for i, c := range out {
		if j := strings.IndexByte("4@831!0$57+2", c); j >= 0 {
			out[i] = "aabeiiossttz"[j]
		}
	}
	return out
}

var rows = []string{"abcdefghijklmnopqrstuvwxyz", "01234567890", "qwertyuiop", "qwertzuiop", "azertyuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm", "1qaz2wsx3edc4rfv5tgb", "!@#$%^&*()"}

// isRow reports whether the part stands in a row of keys or letters, in either
// direction.
func isRow(part []byte) bool {
	back := bytes.Clone(part)
	defer clear(back)
	slices.Reverse(back)
	return slices.ContainsFunc(rows, func(r string) bool {
		return bytes.Contains([]byte(r), part) || bytes.Contains([]byte(r), back)
	})
}

// isDate reports whether the part is a year of this age or a date with one.
func isDate(part []byte) bool {
	digits := 0
	for _, c := range part {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case !bytes.ContainsRune([]byte("-./"), rune(c)):
			return false
		}
	}
	year := func(y []byte) bool { return bytes.HasPrefix(y, []byte("19")) || bytes.HasPrefix(y, []byte("20")) }
	switch {
	case len(part) == 4:
		return digits == 4 && year(part)
	case digits == 8, digits >= 6 && len(part) == digits+2:
		return year(part) || year(part[len(part)-4:])
	}
	return false
}

// period returns the length of what the part repeats, 0 if it does not.
func period(part []byte) int {
	for n := 1; n <= len(part)/2; n++ {
		if len(part)%n == 0 && bytes.Equal(part[n:], part[:len(part)-n]) {
			return n
		}
	}
	return 0
}
