package show

import (
	"fmt"
	"slices"
	"strings"
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

// capabilityNames in the order of their numbers (linux/capability.h).
var capabilityNames = strings.Fields(`cap_chown cap_dac_override cap_dac_read_search cap_fowner cap_fsetid cap_kill cap_setgid
	cap_setuid cap_setpcap cap_linux_immutable cap_net_bind_service cap_net_broadcast cap_net_admin cap_net_raw cap_ipc_lock
	cap_ipc_owner cap_sys_module cap_sys_rawio cap_sys_chroot cap_sys_ptrace cap_sys_pacct cap_sys_admin cap_sys_boot cap_sys_nice
	cap_sys_resource cap_sys_time cap_sys_tty_config cap_mknod cap_lease cap_audit_write cap_audit_control cap_setfcap
	cap_mac_override cap_mac_admin cap_syslog cap_wake_alarm cap_block_suspend cap_audit_read cap_perfmon cap_bpf
	cap_checkpoint_restore`)

// inOrder sorts capability names by number and drops unknown ones.
func inOrder(names []string) []string {
	var out []string
	for _, n := range capabilityNames {
		if slices.Contains(names, n) {
			out = append(out, n)
		}
	}
	return out
}

// capabilities prints a set, or what is missing from it if that is shorter.
func capabilities(names []string) string {
	in := inOrder(names)
	if len(in)*2 <= len(capabilityNames) {
		return strings.Join(in, " ")
	}
	var out []string
	for _, n := range capabilityNames {
		if !slices.Contains(in, n) {
			out = append(out, n)
		}
	}
	return "~" + strings.Join(out, " ")
}
