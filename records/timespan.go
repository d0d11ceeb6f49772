package records

import (
	"math"
	"strconv"
	"strings"
)

// Timespan writes a duration in microseconds as people read it, "5min 3s",
// down to accuracy, also in microseconds. 2^64-1 is "infinity".
func Timespan(t, accuracy uint64) string {
	if t == math.MaxUint64 {
		return "infinity"
	}
	if t == 0 {
		return "0"
	}
	accuracy = max(accuracy, 1)
	units := []struct {
		name string
		usec uint64
	}{
		{"y", 31557600e6}, {"month", 2629800e6}, {"w", 604800e6}, {"d", 86400e6}, {"h", 3600e6}, {"min", 60e6}, {"s", 1e6}, {"ms", 1e3}, {"us", 1},
	}
	var out []string
	for _, u := range units {
		if t == 0 || t < accuracy && len(out) > 0 {
			break
		}
		if t < u.usec {
			continue
		}
		n, rest := t/u.usec, t%u.usec
		// From here on down the rest is written as decimals of this unit.
		if t < 60e6 && rest > 0 {
			digits := digitsOf(u.usec) - digitsOf(accuracy)
			if digits > 0 {
				frac := strconv.FormatUint(u.usec+rest, 10)[1:]
				out = append(out, strconv.FormatUint(n, 10)+"."+frac[:digits]+u.name)
				break
			}
		}
		out = append(out, strconv.FormatUint(n, 10)+u.name)
		t = rest
	}
	return strings.Join(out, " ")
}

// digitsOf is the decimal logarithm, rounded down.
func digitsOf(n uint64) int { return len(strconv.FormatUint(n, 10)) - 1 }
