package main

import "context"

const (
	basicVerbs     = "Basic User Manipulation Commands"
	advancedVerbs  = "Advanced User Manipulation Commands"
	migrationVerbs = "User Migration Commands"
	keyVerbs       = "Signing Keys Commands"
	lockVerbs      = "Lock/Unlock Commands"
	otherVerbs     = "Other Commands"
)

// verbs lists every verb that systemd's homectl has, in its order, and ours
// behind them. Those that are not built yet say so.
func verbs() []verb {
	notYet := func(name string) func(*command, context.Context, []string) error {
		return func(*command, context.Context, []string) error {
			return usagef("The verb '%s' is not available yet. Nothing was changed.", name)
		}
	}
	return []verb{
		{"list", "", 0, 0, "List the home areas", basicVerbs, runList},
		{"inspect", "[USER…]", 0, -1, "Show a home area", basicVerbs, runInspect},
		{"create", "USER", 0, 1, "Create a home area", basicVerbs, runCreate},
		{"update", "USER", 0, 1, "Change a home area's record", basicVerbs, runUpdate},
		{"passwd", "USER", 0, 1, "Change the password of a home area", basicVerbs, runPasswd},
		{"resize", "USER SIZE", 1, 2, "Change the size of a home area", basicVerbs, runResize},
		{"remove", "USER…", 1, -1, "Remove a home area and all its files", basicVerbs, runRemove},
		{"activate", "USER…", 1, -1, "Open a home area", advancedVerbs, runActivate},
		{"deactivate", "USER…", 1, -1, "Close a home area", advancedVerbs, runDeactivate},
		{"deactivate-all", "", 0, 0, "Close all home areas", advancedVerbs, runDeactivateAll},
		{"with", "USER [COMMAND…]", 1, -1, "Run a command while a home area is open", advancedVerbs, runWith},
		{"authenticate", "[USER…]", 0, -1, "Check the password of a home area", advancedVerbs, runAuthenticate},
		{"adopt", "PATH…", 1, -1, "Take a home area from elsewhere into the list", migrationVerbs, runAdopt},
		{"register", "[PATH…]", 0, -1, "Take a record into the list, without storage", migrationVerbs, runRegister},
		{"unregister", "USER…", 1, -1, "Forget a record, keep the storage", migrationVerbs, runUnregister},
		{"list-signing-keys", "", 0, 0, "List the keys that may sign records", keyVerbs, runListSigningKeys},
		{"get-signing-key", "[NAME…]", 0, -1, "Print such a key", keyVerbs, runGetSigningKey},
		{"add-signing-key", "[FILE…]", 0, -1, "Add such a key", keyVerbs, runAddSigningKey},
		{"remove-signing-key", "NAME…", 1, -1, "Remove such a key", keyVerbs, runRemoveSigningKey},
		{"lock", "USER…", 1, -1, "Take an open home area's key out of memory", lockVerbs, runLock},
		{"unlock", "USER…", 1, -1, "Let a locked home area go on", lockVerbs, runUnlock},
		{"lock-all", "", 0, 0, "Lock all suitable home areas", lockVerbs, runLockAll},
		{"rebalance", "", 0, 0, "Share free space out among home areas", otherVerbs, runRebalance},
		{"firstboot", "", 0, 0, "Create the first user (not yet)", otherVerbs, notYet("firstboot")},
		{"ssh-authorized-keys", "USER", 1, 1, "Print the SSH keys of a user record, for sshd", otherVerbs, runSSHAuthorizedKeys},
		// For the shell's completion alone.
		{"complete", "LINE WORD", 2, 2, "", "", runComplete},
		{"help", "", 0, -1, "", "", func(c *command, _ context.Context, _ []string) error { c.help(); return nil }},
	}
}
