package main

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

var errSyntax = errors.New("not understood")

// fraction of 100 % as records store it.
const scaleMax = math.MaxUint32

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, nil
	case "0", "no", "n", "false", "f", "off":
		return false, nil
	}
	return false, errSyntax
}

// parseUnsigned reads C-style numbers: decimal, 0x, 0b, 0o and a leading 0 for
// octal; leading blanks and one + are tolerated.
func parseUnsigned(s string, bits int) (uint64, error) {
	s = strings.TrimPrefix(strings.TrimLeft(s, " \t"), "+")
	if strings.Contains(s, "_") {
		return 0, errSyntax
	}
	return strconv.ParseUint(s, 0, bits)
}

// splitTerm splits off one "N[.frac]" and the letters behind it.
func splitTerm(s string) (whole, frac, unit, rest string, ok bool) {
	s = strings.TrimLeft(s, " \t")
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	whole = s[:i]
	s = s[i:]
	if strings.HasPrefix(s, ".") {
		j := 1
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		if j == 1 {
			return "", "", "", "", false
		}
		frac = s[1:j]
		s = s[j:]
	}
	if whole == "" && frac == "" {
		return "", "", "", "", false
	}
	s = strings.TrimLeft(s, " \t")
	k := 0
	for k < len(s) {
		r, n := utf8.DecodeRuneInString(s[k:])
		if r != 'µ' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			break
		}
		k += n
	}
	return whole, frac, s[:k], s[k:], true
}

// scaled returns (whole.frac) * unit, refusing overflow.
func scaled(whole, frac string, unit uint64) (uint64, error) {
	var n uint64
	if whole != "" {
		var err error
		if n, err = strconv.ParseUint(whole, 10, 64); err != nil {
			return 0, err
		}
	}
	if n != 0 && unit > math.MaxUint64/n {
		return 0, strconv.ErrRange
	}
	n *= unit
	if len(frac) > 0 {
		// Digits beyond these are below one byte or microsecond.
		digits := frac[:min(len(frac), 19)]
		part, err := strconv.ParseUint(digits, 10, 64)
		if err != nil {
			return 0, err
		}
		whole := uint64(1)
		for range digits {
			whole *= 10
		}
		high, low := bits.Mul64(part, unit)
		share, _ := bits.Div64(high, low, whole)
		if n+share < n {
			return 0, strconv.ErrRange
		}
		n += share
	}
	return n, nil
}

// parseSize reads bytes: terms of N[.frac][B|K|M|G|T|P|E], base 1024, largest
// unit first.
func parseSize(s string) (uint64, error) {
	const units = "BKMGTPE"
	last := len(units)
	var sum uint64
	for first := true; first || strings.TrimSpace(s) != ""; first = false {
		whole, frac, unit, rest, ok := splitTerm(s)
		if !ok || len(unit) > 1 {
			return 0, errSyntax
		}
		at := 0
		if unit != "" {
			if at = strings.Index(units, unit); at < 0 {
				return 0, errSyntax
			}
		}
		if at >= last {
			return 0, errSyntax
		}
		last = at
		n, err := scaled(whole, frac, 1<<(10*at))
		if err != nil {
			return 0, err
		}
		if sum+n < sum {
			return 0, strconv.ErrRange
		}
		sum += n
		s = rest
	}
	return sum, nil
}

// form is a regular expression that is made when it is needed: most commands need
// none, and all of them together take a third of a command's start.
func form(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

var percentForm = form(`^([0-9]+)(?:\.([0-9]{1,2}))?(%|‰|‱)$`)

// parsePercent reads a share and returns it scaled to 2^32-1, with a resolution
// of a hundredth of a percent.
func parsePercent(s string) (uint64, bool) {
	m := percentForm().FindStringSubmatch(s)
	if m == nil {
		return 0, false
	}
	n, err := strconv.ParseUint(m[1], 10, 32)
	if err != nil {
		return 0, false
	}
	digits := map[string]int{"%": 2, "‰": 1, "‱": 0}[m[3]]
	if len(m[2]) > digits {
		return 0, false
	}
	for i := 0; i < digits; i++ {
		n *= 10
		if i < len(m[2]) {
			n += uint64(m[2][i] - '0')
		}
	}
	if n > 10000 {
		return 0, false
	}
	return (n*scaleMax + 5000) / 10000, true
}

var spanUnits = map[string]uint64{
	"us": 1, "usec": 1, "µs": 1, "ms": 1e3, "msec": 1e3,
	"": 1e6, "s": 1e6, "sec": 1e6, "second": 1e6, "seconds": 1e6,
	"m": 60e6, "min": 60e6, "minute": 60e6, "minutes": 60e6,
	"h": 3600e6, "hr": 3600e6, "hour": 3600e6, "hours": 3600e6,
	"d": 86400e6, "day": 86400e6, "days": 86400e6, "w": 604800e6, "week": 604800e6, "weeks": 604800e6,
	"M": 2629800e6, "month": 2629800e6, "months": 2629800e6, "y": 31557600e6, "year": 31557600e6, "years": 31557600e6,
}

// parseSpan reads a time span and returns microseconds; "infinity" is 2^64-1.
func parseSpan(s string) (uint64, error) {
	if strings.TrimSpace(s) == "infinity" {
		return math.MaxUint64, nil
	}
	var sum uint64
	for first := true; first || strings.TrimSpace(s) != ""; first = false {
		whole, frac, unit, rest, ok := splitTerm(s)
		if !ok {
			return 0, errSyntax
		}
		scale, known := spanUnits[unit]
		if !known {
			return 0, errSyntax
		}
		n, err := scaled(whole, frac, scale)
		if err != nil {
			return 0, err
		}
		if sum+n < sum {
			return 0, strconv.ErrRange
		}
		sum += n
		s = rest
	}
	return sum, nil
}

// parseTimestamp reads a point in time and returns microseconds since 1970.
// zone is the local zone, now the clock.
func parseTimestamp(s string, now time.Time, zone *time.Location) (uint64, error) {
	micros := func(t time.Time) (uint64, error) {
		if t.UnixMicro() <= 0 {
			return 0, errSyntax
		}
		return uint64(t.UnixMicro()), nil
	}
	shift := func(span string, sign int64) (uint64, error) {
		n, err := parseSpan(span)
		if err != nil || n > math.MaxInt64/1000 {
			return 0, errSyntax
		}
		return micros(now.Add(time.Duration(sign * int64(n) * 1000)))
	}
	switch {
	case strings.HasPrefix(s, "+"):
		return shift(s[1:], 1)
	case strings.HasPrefix(s, "-"):
		return shift(s[1:], -1)
	case strings.HasSuffix(s, " ago"):
		return shift(strings.TrimSuffix(s, " ago"), -1)
	case strings.HasSuffix(s, " left"):
		return shift(strings.TrimSuffix(s, " left"), 1)
	case strings.HasPrefix(s, "@"):
		n, err := parseSpan(s[1:])
		if err != nil || n == 0 {
			return 0, errSyntax
		}
		return n, nil
	}
	if i := strings.LastIndexByte(s, ' '); i > 0 {
		if z, ok := parseZone(s[i+1:]); ok {
			zone, s = z, strings.TrimSpace(s[:i])
		}
	}
	day := func(offset int) time.Time {
		y, m, d := now.In(zone).Date()
		return time.Date(y, m, d+offset, 0, 0, 0, 0, zone)
	}
	switch s {
	case "now":
		return micros(now)
	case "today":
		return micros(day(0))
	case "yesterday":
		return micros(day(-1))
	case "tomorrow":
		return micros(day(1))
	}
	weekday := ""
	if i := strings.IndexByte(s, ' '); i > 0 && s[0] > '9' {
		weekday, s = s[:i], s[i+1:]
	}
	for _, date := range []string{"2006-01-02", "06-01-02", ""} {
		for _, clock := range []string{"15:04:05.999999", "15:04", ""} {
			for _, sep := range []string{" ", "T"} {
				layout := date + sep + clock
				if date == "" || clock == "" {
					layout = date + clock
				}
				t, err := time.ParseInLocation(layout, s, zone)
				if layout == "" || err != nil {
					continue
				}
				if date == "" {
					t = day(0).Add(t.Sub(time.Date(0, 1, 1, 0, 0, 0, 0, zone)))
				}
				if weekday != "" && !strings.EqualFold(weekday, t.Weekday().String()) && !strings.EqualFold(weekday, t.Weekday().String()[:3]) {
					return 0, errSyntax
				}
				return micros(t)
			}
		}
	}
	return 0, errSyntax
}

func parseZone(s string) (*time.Location, bool) {
	if s == "UTC" || s == "Z" {
		return time.UTC, true
	}
	for _, layout := range []string{"-07", "-0700", "-07:00"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.Location(), true
		}
	}
	if s == "" || s == "Local" || s[0] < 'A' {
		return nil, false
	}
	z, err := time.LoadLocation(s)
	return z, err == nil
}

// parsePath makes a path absolute and drops double and trailing slashes; ".."
// stays, for the checks of the single options to refuse.
func parsePath(s string) (string, error) {
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return "", errSyntax
	}
	if !strings.HasPrefix(s, "/") {
		wd, err := os.Getwd()
		if err != nil {
			return "", err
		}
		s = wd + "/" + s
	}
	var parts []string
	for _, p := range strings.Split(s, "/") {
		if p != "" && p != "." {
			parts = append(parts, p)
		}
	}
	return "/" + strings.Join(parts, "/"), nil
}

// safePath demands an absolute, normalised path without what passwd(5) cannot
// hold.
func safePath(s string) bool {
	return filepath.IsAbs(s) && filepath.Clean(s) == s && !strings.ContainsFunc(s, func(r rune) bool { return r == ':' || r < ' ' || r == 0x7f }) && utf8.ValidString(s)
}

// safeString is text without control characters, quotes and backslashes.
func safeString(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' || r == 0x7f || r == '"' || r == '\'' || r == '\\'
	})
}

func parseMode(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o7777 {
		return 0, errSyntax
	}
	return n, nil
}

var uidForm = form(`^(0|[1-9][0-9]*)$`)

// parseUID refuses what no person may have.
func parseUID(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || !uidForm().MatchString(s) || n == 65535 || n == math.MaxUint32 {
		return 0, usagef("Failed to parse UID '%s'.", s)
	}
	switch {
	case n < 1000:
		return 0, usagef("UID %d is in system range, refusing.", n)
	case n >= 60578 && n <= 60705:
		return 0, usagef("UID %d is in greeter range, refusing.", n)
	case n >= 61184 && n <= 65519:
		return 0, usagef("UID %d is in dynamic range, refusing.", n)
	case n == 65534:
		return 0, usagef("UID %d is nobody UID, refusing.", n)
	}
	return n, nil
}

var envName = form(`^[A-Za-z_][A-Za-z0-9_]*$`)

var rlimitKinds = map[string]string{
	"FSIZE": "size", "DATA": "size", "STACK": "size", "CORE": "size", "RSS": "size", "AS": "size", "MEMLOCK": "size", "MSGQUEUE": "size",
	"CPU": "seconds", "RTTIME": "micros", "NICE": "nice",
	"NOFILE": "number", "NPROC": "number", "LOCKS": "number", "SIGPENDING": "number", "RTPRIO": "number",
}

// parseRlimit reads SOFT[:HARD] of one kind of limit; nil stands for infinity.
func parseRlimit(kind, s string) (cur, max any, err error) {
	one := func(v string) (any, uint64, error) {
		if v == "infinity" && kind != "nice" {
			return nil, math.MaxUint64, nil
		}
		var n uint64
		var err error
		switch kind {
		case "size":
			n, err = parseSize(v)
		case "seconds":
			if n, err = parseSpan(v); err == nil {
				n = n/1e6 + min(n%1e6, 1)
			}
		case "micros":
			if n, err = parseUnsigned(v, 64); err != nil {
				n, err = parseSpan(v)
			}
		case "nice":
			switch {
			case strings.HasPrefix(v, "+"):
				if n, err = strconv.ParseUint(v[1:], 10, 8); err == nil && n > 18 {
					err = errSyntax
				}
				n = 20 - n
			case strings.HasPrefix(v, "-"):
				if n, err = strconv.ParseUint(v[1:], 10, 8); err == nil && n > 20 {
					err = errSyntax
				}
				n = 20 + n
			default:
				if n, err = strconv.ParseUint(v, 10, 8); err == nil && n > 40 {
					err = errSyntax
				}
			}
		default:
			n, err = parseUnsigned(v, 64)
		}
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %s", errSyntax, v)
		}
		return n, n, nil
	}
	soft, hard, both := strings.Cut(s, ":")
	if !both {
		hard = soft
	}
	cur, c, err := one(soft)
	if err != nil {
		return nil, nil, err
	}
	max, m, err := one(hard)
	if err != nil || c > m {
		return nil, nil, errSyntax
	}
	return cur, max, nil
}
