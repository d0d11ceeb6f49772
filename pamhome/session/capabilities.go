package session

import (
	"fmt"
	"strings"
)

// Capabilities is a set, one bit per capability of capabilities(7).
type Capabilities uint64

// names of the kernel's capabilities, by number (linux/capability.h, 6.x).
var names = []string{
	"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
	"linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
	"sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
	"sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
	"mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
	"checkpoint_restore",
}

// All holds every capability that has a name.
const All Capabilities = 1<<41 - 1

// WakeAlarm lets a person's programs set a timer that wakes the machine.
const WakeAlarm Capabilities = 1 << 35

// capability finds a name, with or without cap_, in any case.
func capability(name string) (Capabilities, bool) {
	name = strings.TrimPrefix(strings.ToLower(name), "cap_")
	for i, n := range names {
		if n == name {
			return 1 << i, true
		}
	}
	return 0, false
}

// ParseCapabilities reads names as a user record lists them. Unknown ones are
// returned: a newer kernel's capability must not cost the session.
func ParseCapabilities(list []string) (set Capabilities, unknown []string) {
	for _, name := range list {
		if c, ok := capability(name); ok {
			set |= c
		} else {
			unknown = append(unknown, name)
		}
	}
	return set, unknown
}

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
	got, unknown := ParseCapabilities(list)
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
