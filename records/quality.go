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
	DifOK     int // least edit distance to the old password
	MinLength int // at least 6
	// Per class of characters: below zero how many there must be, above zero
	// how much they may shorten MinLength.
	DigitCredit, UpperCredit, LowerCredit, OtherCredit int
	MinClass, MaxRepeat, MaxClassRepeat, MaxSequence   int
	UserCheck                                          bool
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
		"maxsequence": &p.MaxSequence, "usercheck": &user,
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		name, number, _ := strings.Cut(line, "=")
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 32)
		if to := settings[strings.TrimSpace(name)]; to != nil && err == nil {
			*to = int(n)
		}
	}
	p.MinLength = max(p.MinLength, 6)
	p.UserCheck = user != 0
	return p
}

// PasswordQuality checks the passwords that are new in r by the default
// policy: see QualityPolicy.Check.
func PasswordQuality(r *Record, s *Secrets) error { return DefaultQuality().Check(r, s) }

// Check checks those passwords of s that fit r's hashes against the policy and
// against the other passwords of s, which count as old ones. Whether the record
// wants that (View.EnforcePasswordPolicy) is for the caller to ask. Fault:
// LowPasswordQuality, with the reason.
func (q QualityPolicy) Check(r *Record, s *Secrets) error {
	a, err := newMatcher(r, s, nil)
	if err != nil {
		return err
	}
	var fresh, old []*secret.Bytes
	for _, p := range a.passwords {
		fits := false
		for _, h := range a.hashes {
			if fits, err = a.cache.check(h, p); err != nil {
				return err
			} else if fits {
				break
			}
		}
		if fits {
			fresh = append(fresh, p)
		} else {
			old = append(old, p)
		}
	}
	for _, p := range fresh {
		if len(old) == 0 {
			err = q.refuse(p, nil, r.UserName())
		}
		for _, o := range old {
			if err = q.refuse(p, o, r.UserName()); err != nil {
				break
			}
		}
		if err != nil {
			return err
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

// maxCompared bounds what the edit distance costs; crypt(3) takes no longer
// passwords.
const maxCompared = 512

// reason says why a password is refused, "" if it is not. old is nil where
// there is none. The order of the rules decides which reason is given.
func (q QualityPolicy) reason(p, old []byte, user string) string {
	folded, oldFolded := fold(p), fold(old)
	defer clear(folded)
	defer clear(oldFolded)
	if len(p) == 0 {
		return "No password supplied"
	}
	if old != nil {
		switch {
		case bytes.Equal(p, old):
			return "The password is the same as the old one"
		case bytes.Equal(folded, oldFolded):
			return "The password differs with case changes only"
		case q.DifOK > 1 && len(p) < 2*len(old) && len(old) <= maxCompared && editDistance(old, p) < q.DifOK:
			return "The password is too similar to the old one"
		}
	}
	if why := q.counts(p); why != "" {
		return why
	}
	if isPalindrome(folded) {
		return "The password is a palindrome"
	}
	if old != nil {
		twice := slices.Concat(oldFolded, oldFolded)
		rotated := bytes.Contains(twice, folded)
		clear(twice)
		if rotated {
			return "The password is just rotated old one"
		}
	}
	if name := fold([]byte(user)); q.UserCheck && len(name) >= 4 {
		forward := bytes.Contains(folded, name)
		slices.Reverse(name)
		if forward || bytes.Contains(folded, name) {
			return "The password contains the user name in some form"
		}
	}
	return ""
}

// counts applies the rules that look at one password alone and count.
func (q QualityPolicy) counts(p []byte) string {
	var n [4]int
	same, sameClass, up, down := 0, 0, 0, 0         // the longest runs
	nowSame, nowClass, nowUp, nowDown := 0, 0, 0, 0 // the present ones
	run := func(now, longest *int, on bool) {
		if !on {
			*now = 0
		}
		*now++
		*longest = max(*longest, *now)
	}
	for i, c := range p {
		k := class(c)
		n[k]++
		run(&nowSame, &same, i > 0 && c == p[i-1])
		run(&nowClass, &sameClass, i > 0 && k == class(p[i-1]))
		run(&nowUp, &up, i > 0 && int(c) == int(p[i-1])+1)
		run(&nowDown, &down, i > 0 && int(c) == int(p[i-1])-1)
	}
	least, classes := q.MinLength, 0
	for k, credit := range []int{q.DigitCredit, q.UpperCredit, q.LowerCredit, q.OtherCredit} {
		if n[k] > 0 {
			classes++
		}
		if credit < 0 && n[k] < -credit {
			return fmt.Sprintf("The password contains less than %d %s", -credit,
				[]string{"digits", "uppercase letters", "lowercase letters", "non-alphanumeric characters"}[k])
		}
		least -= max(0, min(n[k], credit))
	}
	switch {
	case len(p) < least:
		return fmt.Sprintf("The password is shorter than %d characters", q.MinLength)
	case classes < q.MinClass:
		return fmt.Sprintf("The password contains less than %d character classes", q.MinClass)
	case q.MaxRepeat > 0 && same > q.MaxRepeat:
		return fmt.Sprintf("The password contains more than %d same characters consecutively", q.MaxRepeat)
	case q.MaxClassRepeat > 0 && sameClass > q.MaxClassRepeat:
		return fmt.Sprintf("The password contains more than %d characters of the same class consecutively", q.MaxClassRepeat)
	case q.MaxSequence > 0 && max(up, down) > q.MaxSequence:
		return fmt.Sprintf("The password contains monotonic sequence longer than %d characters", q.MaxSequence)
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

// editDistance counts the bytes to insert, delete or replace.
func editDistance(a, b []byte) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		diagonal := row[0]
		row[0] = i + 1
		for j := range b {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
