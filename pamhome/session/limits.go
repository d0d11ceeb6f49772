package session

import (
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// Property is one resource setting of the session's scope, by its name on the
// login manager's bus interface. Value is a uint64 or, for a share, a uint32.
type Property struct {
	Name  string
	Value any
}

// LimitKeys are the PAM data in which an earlier module may have left limits
// for the session.
var LimitKeys = []string{"systemd.memory_max", "systemd.tasks_max", "systemd.cpu_weight", "systemd.io_weight", "systemd.runtime_max_sec"}

// Limit reads one of them. ok is false where nothing is to be set: warn then
// says whether that is because the value cannot be read.
func Limit(key, value string) (p Property, ok, warn bool) {
	value = strings.TrimSpace(value)
	infinite := value == "infinity"
	switch key {
	case "systemd.memory_max":
		if infinite {
			return Property{"MemoryMax", uint64(math.MaxUint64)}, true, false
		}
		if share, ok := parseShare(value); ok {
			return Property{"MemoryMaxScale", share}, true, false
		}
		if n, ok := parseSize(value); ok {
			return Property{"MemoryMax", n}, true, false
		}
	case "systemd.tasks_max":
		if infinite {
			return p, false, false
		}
		if n, err := strconv.ParseUint(value, 10, 64); err == nil && n > 0 {
			return Property{"TasksMax", n}, true, false
		}
	case "systemd.cpu_weight", "systemd.io_weight":
		name := "CPUWeight"
		if key == "systemd.io_weight" {
			name = "IOWeight"
		}
		if value == "idle" && name == "CPUWeight" {
			return Property{name, uint64(0)}, true, false
		}
		if n, err := strconv.ParseUint(value, 10, 64); err == nil && n >= 1 && n <= 10000 {
			return Property{name, n}, true, false
		}
	case "systemd.runtime_max_sec":
		if infinite {
			return p, false, false
		}
		if n, ok := parseSpan(value); ok {
			return Property{"RuntimeMaxUSec", n}, true, false
		}
	}
	return p, false, true
}

// parseShare reads percent, permille or permyriad as a part of 2^32-1.
func parseShare(s string) (uint32, bool) {
	for _, unit := range []struct {
		suffix string
		whole  int64
		digits int
	}{{"‱", 10000, 0}, {"‰", 1000, 1}, {"%", 100, 2}} {
		number, ok := strings.CutSuffix(s, unit.suffix)
		if !ok {
			continue
		}
		whole, fraction, _ := strings.Cut(number, ".")
		if len(fraction) > unit.digits || whole == "" {
			return 0, false
		}
		r, ok := new(big.Rat).SetString(number)
		if !ok || strings.ContainsAny(number, "+-/eE_xX") || r.Cmp(big.NewRat(unit.whole, 1)) > 0 {
			return 0, false
		}
		r.Mul(r, big.NewRat(math.MaxUint32, unit.whole))
		return uint32(new(big.Int).Quo(r.Num(), r.Denom()).Uint64()), true
	}
	return 0, false
}

// parseSize reads bytes with suffixes to the base 1024.
func parseSize(s string) (uint64, bool) {
	shift := uint(0)
	s = strings.TrimSuffix(s, "B")
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMGTPE", s[n-1]); i >= 0 {
			s, shift = strings.TrimSpace(s[:n-1]), uint(i+1)*10
		}
	}
	whole, fraction, _ := strings.Cut(s, ".")
	n, err := strconv.ParseUint(whole, 10, 64)
	if err != nil || n > math.MaxUint64>>shift {
		return 0, false
	}
	n <<= shift
	if fraction != "" {
		f, err := strconv.ParseFloat("0."+fraction, 64)
		if err != nil || strings.ContainsAny(fraction, "eE+-_xX") {
			return 0, false
		}
		n += uint64(f * float64(uint64(1)<<shift))
	}
	return n, n > 0
}

// spans are the units of systemd.time(7), in microseconds.
var spans = map[string]float64{
	"us": 1, "usec": 1, "µs": 1, "μs": 1, "ms": 1e3, "msec": 1e3, "": 1e6, "s": 1e6, "sec": 1e6, "second": 1e6, "seconds": 1e6,
	"m": 60e6, "min": 60e6, "minute": 60e6, "minutes": 60e6, "h": 3600e6, "hr": 3600e6, "hour": 3600e6, "hours": 3600e6,
	"d": 86400e6, "day": 86400e6, "days": 86400e6, "w": 604800e6, "week": 604800e6, "weeks": 604800e6,
	"M": 2629800e6, "month": 2629800e6, "months": 2629800e6, "y": 31557600e6, "year": 31557600e6, "years": 31557600e6,
}

// parseSpan reads a time span, in microseconds; a number alone is seconds.
func parseSpan(s string) (uint64, bool) {
	var total float64
	rest := strings.TrimSpace(s)
	for rest != "" {
		n := 0
		for n < len(rest) && (rest[n] >= '0' && rest[n] <= '9' || rest[n] == '.') {
			n++
		}
		number, err := strconv.ParseFloat(rest[:n], 64)
		if err != nil {
			return 0, false
		}
		rest = strings.TrimLeft(rest[n:], " ")
		n = strings.IndexAny(rest, " 0123456789")
		if n < 0 {
			n = len(rest)
		}
		unit, known := spans[rest[:n]]
		if !known {
			return 0, false
		}
		total += number * unit
		rest = strings.TrimLeft(rest[n:], " ")
	}
	if total <= 0 || total > float64(math.MaxInt64/int64(time.Microsecond)) {
		return 0, false
	}
	return uint64(total), true
}
