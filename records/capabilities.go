package records

import (
	"strconv"
	"strings"
)

// Capabilities is a set, one bit per capability of capabilities(7).
type Capabilities uint64

// capabilityNames of the kernel, by number (linux/capability.h, 6.x), without
// cap_.
var capabilityNames = [...]string{
	"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
	"linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
	"sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
	"sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
	"mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
	"checkpoint_restore",
}

// AllCapabilities holds every capability that has a name.
const AllCapabilities Capabilities = 1<<len(capabilityNames) - 1

// capability finds a name, with or without cap_, in any case, or a number.
func capability(name string) (Capabilities, bool) {
	if n, err := strconv.ParseUint(name, 10, 8); err == nil && n < uint64(len(capabilityNames)) {
		return 1 << n, true
	}
	name = strings.TrimPrefix(strings.ToLower(name), "cap_")
	for i, n := range capabilityNames {
		if n == name {
			return 1 << i, true
		}
	}
	return 0, false
}

// ParseCapabilities reads names as a user record lists them, and returns those
// it does not know: a newer kernel's capability must not cost a session.
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

// Names returns the set as a record lists it: by number, lower case, with cap_.
func (c Capabilities) Names() []string {
	var out []string
	for i, n := range capabilityNames {
		if c&(1<<i) != 0 {
			out = append(out, "cap_"+n)
		}
	}
	return out
}
