package show

import (
	"fmt"
	"math/bits"
	"strings"

	"hearth/records"
)

// Bytes prints a size: base 1024, one decimal, cut and left out if zero.
func Bytes(n uint64) string {
	const units = "BKMGTPE"
	at := 0
	for whole := n; whole >= 1024 && at < len(units)-1; at++ {
		whole /= 1024
	}
	unit := uint64(1) << (10 * at)
	whole, rest := n/unit, n%unit
	// rest < 2^60, so ten times it fits.
	if tenth := rest * 10 / unit; tenth > 0 {
		return fmt.Sprintf("%d.%d%c", whole, tenth, units[at])
	}
	return fmt.Sprintf("%d%c", whole, units[at])
}

// capabilities prints a set, or what is missing from it if that is shorter.
func capabilities(names []string) string {
	set, _ := records.ParseCapabilities(names)
	if bits.OnesCount64(uint64(set))*2 <= bits.Len64(uint64(records.AllCapabilities)) {
		return strings.Join(set.Names(), " ")
	}
	return "~" + strings.Join((records.AllCapabilities&^set).Names(), " ")
}
