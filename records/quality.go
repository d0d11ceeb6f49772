package records

import (
	"bufio"
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// A QualityPolicy says which passwords are refused, by the rules and names of
// libpwquality, whose answers people and scripts know. Lengths count bytes; 0
// turns a rule off. There is no dictionary: libpwquality looks for one under a
// name that nothing installs, and then does without.
type QualityPolicy struct {
	DifOK     int // least distance to the old password; 0: it only has to be another one
	MinLength int // at least 6
	// Per class of characters: below zero how many there must be, above zero
	// how much they may shorten MinLength.
	DigitCredit, UpperCredit, LowerCredit, OtherCredit int
	MinClass, MaxRepeat, MaxClassRepeat, MaxSequence   int
	UserCheck                                          bool
	UserSubstring                                      int // length of the parts of the user name that may not occur; 0: the whole
	BadWords                                           []string
}

// DefaultQuality is what holds where nobody configured anything.
func DefaultQuality() QualityPolicy {
	return QualityPolicy{DifOK: 1, MinLength: 8, UserCheck: true}
}

// ParseQualityPolicy reads pwquality.conf over the defaults. What it does not
// know or cannot read it leaves alone.
func ParseQualityPolicy(text []byte) QualityPolicy {
	p := DefaultQuality()
	user := 1
	settings := map[string]*int{
		"difok": &p.DifOK, "minlen": &p.MinLength, "dcredit": &p.DigitCredit, "ucredit": &p.UpperCredit, "lcredit": &p.LowerCredit,
		"ocredit": &p.OtherCredit, "minclass": &p.MinClass, "maxrepeat": &p.MaxRepeat, "maxclassrepeat": &p.MaxClassRepeat,
		"maxsequence": &p.MaxSequence, "usercheck": &user, "usersubstr": &p.UserSubstring,
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		name, value, _ := strings.Cut(line, "=")
		if name = strings.TrimSpace(name); name == "badwords" {
			p.BadWords = strings.Fields(value)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 32)
		if to := settings[name]; to != nil && err == nil {
			*to = int(n)
		}
	}
	p.MinLength = max(p.MinLength, 6)
	p.UserCheck = user != 0
	return p
}

// Check checks those passwords of s that fit r's hashes against the policy and
// against the other passwords of s, which count as old ones. Whether the record
// wants that (View.EnforcePasswordPolicy) is for the caller to ask. Fault:
// LowPasswordQuality, with the reason.
func (q QualityPolicy) Check(r *Record, s *Secrets) error {
	a, err := newMatcher(r, s, nil)
	if err != nil {
		return err
	}
	var fresh []*secret.Bytes
	for _, p := range a.passwords {
		for _, h := range a.hashes {
			fits, err := a.cache.check(h, p)
			if err != nil {
				return err
			}
			if fits {
				fresh = append(fresh, p)
				break
			}
		}
	}
	return q.CheckNew(fresh, a.passwords, r.UserName())
}

// CheckNew checks new passwords against the policy and against known ones, of
// which those that are among the new do not count. It computes no hash. Fault:
// LowPasswordQuality, with the reason.
func (q QualityPolicy) CheckNew(fresh, known []*secret.Bytes, user string) error {
	var old []*secret.Bytes
	for _, k := range known {
		if !slices.ContainsFunc(fresh, k.Equal) {
			old = append(old, k)
		}
	}
	if len(old) == 0 {
		old = []*secret.Bytes{nil}
	}
	for _, p := range fresh {
		for _, o := range old {
			if err := q.refuse(p, o, user); err != nil {
				return err
			}
		}
	}
	return nil
}

func (q QualityPolicy) refuse(p, old *secret.Bytes, user string) error {
	reason := ""
	err := p.Use(func(b []byte) error {
		if old == nil {
			reason = q.reason(b, nil, user)
			return nil
		}
		return old.Use(func(o []byte) error { reason = q.reason(b, o, user); return nil })
	})
	if err == nil && reason != "" {
		err = fault.Newf(fault.LowPasswordQuality, "check password quality", "Password too weak: %s", reason)
	}
	return err
}

// reason says why a password is refused, "" if it is not. old is nil where
// there is none. The order of the rules decides which reason is given.
func (q QualityPolicy) reason(p, old []byte, user string) string {
	folded, oldFolded := fold(p), fold(old)
	defer clear(folded)
	defer clear(oldFolded)
	if len(p) == 0 {
		return "No password supplied"
	}
	if old != nil && bytes.Equal(p, old) {
		return "The password is the same as the old one"
	}
	if q.DifOK == 0 {
		old = nil
	}
	if old != nil {
		switch {
		case bytes.Equal(folded, oldFolded):
			return "The password differs with case changes only"
		case len(p) < 2*len(old) && len(old) <= maxPassword && distance(oldFolded, folded) < q.DifOK:
			return "The password is too similar to the old one"
		}
	}
	n := count(p)
	if why := q.tooSimple(n, len(p)); why != "" {
		return why
	}
	if old != nil {
		twice := slices.Concat(oldFolded, oldFolded)
		rotated := bytes.Contains(twice, folded)
		clear(twice)
		if rotated {
			return "The password is just rotated old one"
		}
	}
	switch {
	case n.classes() < q.MinClass:
		return fmt.Sprintf("The password contains less than %d character classes", q.MinClass)
	case isPalindrome(folded):
		return "The password is a palindrome"
	case q.MaxRepeat > 0 && n.same > q.MaxRepeat:
		return fmt.Sprintf("The password contains more than %d same characters consecutively", q.MaxRepeat)
	case q.MaxSequence > 0 && n.sequence > q.MaxSequence:
		return fmt.Sprintf("The password contains monotonic sequence longer than %d characters", q.MaxSequence)
	}
	if q.UserCheck && q.containsUser(folded, fold([]byte(user))) {
		return "The password contains the user name in some form"
	}
	if slices.ContainsFunc(q.BadWords, func(w string) bool { return len(w) >= minWord && contains(folded, fold([]byte(w))) }) {
		return "The password contains forbidden words in some form"
	}
	return ""
}

// minWord: shorter words may occur by accident.
const minWord = 4

// contains reports whether a word occurs, forwards or backwards.
func contains(p, word []byte) bool {
	if bytes.Contains(p, word) {
		return true
	}
	word = bytes.Clone(word)
	slices.Reverse(word)
	return bytes.Contains(p, word)
}

func (q QualityPolicy) containsUser(p, user []byte) bool {
	if n := q.UserSubstring; n >= minWord && n < len(user) {
		for i := range len(user) - n + 1 {
			if contains(p, user[i:i+n]) {
				return true
			}
		}
		return false
	}
	return len(user) >= minWord && contains(p, user)
}

// counted is what a password is made of: how many of each class, the longest
// run of one character, of one class, and of neighbours in the alphabet.
type counted struct {
	of                        [4]int
	same, sameClass, sequence int
}

func count(p []byte) counted {
	var n counted
	same, sameClass, up, down := 0, 0, 0, 0 // the present runs
	run := func(now, longest *int, on bool) {
		if !on {
			*now = 0
		}
		*now++
		*longest = max(*longest, *now)
	}
	for i, c := range p {
		k := class(c)
		n.of[k]++
		run(&same, &n.same, i > 0 && c == p[i-1])
		run(&sameClass, &n.sameClass, i > 0 && k == class(p[i-1]))
		run(&up, &n.sequence, i > 0 && int(c) == int(p[i-1])+1)
		run(&down, &n.sequence, i > 0 && int(c) == int(p[i-1])-1)
	}
	return n
}

func (n counted) classes() int {
	some := 0
	for _, k := range n.of {
		some += min(k, 1)
	}
	return some
}

// tooSimple says why a password is refused by what it is made of, "" if it is
// not. Characters with credit shorten what is asked for.
func (q QualityPolicy) tooSimple(n counted, length int) string {
	if q.MaxClassRepeat > 0 && n.sameClass > q.MaxClassRepeat {
		return fmt.Sprintf("The password contains more than %d characters of the same class consecutively", q.MaxClassRepeat)
	}
	least := q.MinLength
	for k, credit := range []int{q.DigitCredit, q.UpperCredit, q.LowerCredit, q.OtherCredit} {
		if credit < 0 && n.of[k] < -credit {
			return fmt.Sprintf("The password contains less than %d %s", -credit,
				[]string{"digits", "uppercase letters", "lowercase letters", "non-alphanumeric characters"}[k])
		}
		least -= max(0, min(n.of[k], credit))
	}
	if length < least {
		return fmt.Sprintf("The password is shorter than %d characters", least)
	}
	return ""
}

func class(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return 0
	case c >= 'A' && c <= 'Z':
		return 1
	case c >= 'a' && c <= 'z':
		return 2
	}
	return 3
}

// fold returns a copy without differences of case. Beyond ASCII case counts.
func fold(p []byte) []byte {
	out := make([]byte, len(p))
	for i, c := range p {
		if class(c) == 1 {
			c += 'a' - 'A'
		}
		out[i] = c
	}
	return out
}

func isPalindrome(p []byte) bool {
	for i := range len(p) / 2 {
		if p[i] != p[len(p)-1-i] {
			return false
		}
	}
	return true
}

// distance is how far the library finds two passwords apart. Unlike an edit
// distance it costs nothing to insert what stands there already: from "abc" to
// "abcc" it is 0.
func distance(a, b []byte) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		diagonal := row[0]
		row[0] = i + 1
		for j := range b {
			least := min(diagonal, row[j], row[j+1])
			if a[i] != b[j] {
				least++
			}
			diagonal, row[j+1] = row[j+1], least
		}
	}
	return row[len(b)]
}
