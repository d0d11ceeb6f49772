package session

import (
	"fmt"
	"strings"

	"hearth/records"
)

// Capabilities is a set, one bit per capability of capabilities(7).
type Capabilities = records.Capabilities

// All holds every capability that has a name.
const All = records.AllCapabilities

// WakeAlarm lets a person's programs set a timer that wakes the machine.
const WakeAlarm Capabilities = 1 << 35

// Option adds the value of a module option to the set that earlier ones made
// (nil: none yet): names with commas between them, a leading ~ meaning all but
// these.
func Option(before *Capabilities, value string) (set *Capabilities, warnings []string) {
	rest, invert := strings.CutPrefix(value, "~")
	var list []string
	for _, name := range strings.Split(rest, ",") {
		if name = strings.TrimSpace(name); name != "" {
			list = append(list, name)
		}
	}
	got, unknown := records.ParseCapabilities(list)
	for _, name := range unknown {
		warnings = append(warnings, fmt.Sprintf("Unknown capability '%s', ignoring.", name))
	}
	switch {
	case invert && before != nil:
		got = *before &^ got
	case invert:
		got = All &^ got
	case before != nil:
		got |= *before
	}
	return &got, warnings
}
