package main

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"hearth/records"
)

// A property is an option that sets one field of the record.
type property struct {
	name  string
	short byte
	alias string // a second, hidden long name
	// metavar and help are for --help.
	metavar, help string
	field         string
	bucket        string // "any", "this", "priv"
	matchable     bool
	mandatory     bool // an empty value is an error and does not reset
	// value reads the argument; its error is the whole text for the user.
	value func(p *property, arg string) (any, error)
	// set replaces the common way of storing the value.
	set func(a *assembly, p *property, arg string) error
}

// Ways to read an argument. A reader that fails says so in the words that
// scripts of systemd's homectl know.

func text(_ *property, arg string) (any, error) { return arg, nil }

func boolean(p *property, arg string) (any, error) {
	b, err := parseBool(arg)
	if err != nil {
		return nil, usagef("Failed to parse boolean parameter %s: %s", p.field, arg)
	}
	return b, nil
}

func number(read func(string) (uint64, error)) func(*property, string) (any, error) {
	return func(p *property, arg string) (any, error) {
		n, err := read(arg)
		if err != nil {
			return nil, usagef("Failed to parse %s parameter: %s", p.field, arg)
		}
		return n, nil
	}
}

var (
	size  = number(parseSize)
	span  = number(parseSpan)
	u64   = number(func(s string) (uint64, error) { return parseUnsigned(s, 64) })
	u32   = number(func(s string) (uint64, error) { return parseUnsigned(s, 32) })
	stamp = number(func(s string) (uint64, error) { return parseTimestamp(s, time.Now(), time.Local) })
)

func safe(p *property, arg string) (any, error) {
	if !safeString(arg) {
		return nil, usagef("Parameter for field %s not valid: %s", p.field, arg)
	}
	return arg, nil
}

func fileName(p *property, arg string) (any, error) {
	if arg == "." || arg == ".." || len(arg) > 255 || strings.ContainsAny(arg, "/\x00") {
		return nil, usagef("Parameter for %s field not a valid filename: %s", p.field, arg)
	}
	return arg, nil
}

func gecos(_ *property, arg string) (any, error) {
	if !utf8.ValidString(arg) || strings.ContainsFunc(arg, func(r rune) bool { return r < ' ' || r == 0x7f || r == ':' }) {
		return nil, usagef("Invalid GECOS field '%s'.", arg)
	}
	return arg, nil
}

func path(p *property, arg string) (any, error) {
	s, err := parsePath(arg)
	if err != nil {
		return nil, usagef("Failed to parse %s parameter: %s", p.field, arg)
	}
	return s, nil
}

func mode(_ *property, arg string) (any, error) {
	n, err := parseMode(arg)
	if err != nil {
		return nil, usagef("Access mode '%s' not valid.", arg)
	}
	return n, nil
}

func oneOf(words ...string) func(*property, string) (any, error) {
	return func(p *property, arg string) (any, error) {
		if !slices.Contains(words, arg) {
			return nil, usagef("Failed to parse %s parameter: %s", p.field, arg)
		}
		return arg, nil
	}
}

func weight(p *property, arg string) (any, error) {
	n, err := parseUnsigned(arg, 64)
	if err != nil {
		return nil, usagef("Failed to parse %s parameter: %s", p.field, arg)
	}
	if n < 1 || n > 10000 {
		return nil, usagef("Weight %d is out of valid range for field %s.", n, p.field)
	}
	return n, nil
}

// Ways to store a value.

func setNames(a *assembly, p *property, arg string) error {
	for _, n := range strings.Split(arg, ",") {
		if n != "" && !records.ValidName(n) {
			return usagef("Invalid group name %s.", n)
		}
	}
	b := a.target(p)
	if list := names(b[p.field], arg, ","); len(list) > 0 {
		b[p.field] = sorted(list)
	}
	return nil
}

func setLanguages(a *assembly, _ *property, arg string) error {
	all := names(nil, "", "")
	if first, ok := a.any["preferredLanguage"]; ok {
		more, _ := a.any["additionalLanguages"].([]any)
		all = append([]any{first}, more...)
	}
	for _, l := range strings.FieldsFunc(arg, func(r rune) bool { return r == ',' || r == ':' }) {
		if !localeName().MatchString(l) {
			return usagef("Locale '%s' is not valid.", l)
		}
		all = names(all, l, ",")
	}
	if len(all) == 0 {
		return nil
	}
	a.any["preferredLanguage"] = all[0]
	if len(all) > 1 {
		a.any["additionalLanguages"] = all[1:]
	} else {
		a.reset("additionalLanguages")
	}
	return nil
}

var localeName = form(`^[A-Za-z0-9_.@-]{1,127}$`)

func setEnvironment(a *assembly, p *property, arg string) error {
	name, value, given := strings.Cut(arg, "=")
	if !envName().MatchString(name) || !utf8.ValidString(value) {
		return usagef("Cannot assign environment variable %s: Invalid argument", arg)
	}
	if !given {
		value = os.Getenv(name)
	}
	b := a.target(p)
	list, _ := b[p.field].([]any)
	list = slices.DeleteFunc(list, func(e any) bool { return strings.HasPrefix(e.(string), name+"=") })
	b[p.field] = sorted(append(list, name+"="+value))
	return nil
}

func setKeys(a *assembly, p *property, arg string) error {
	lines := []string{arg}
	if file, ok := strings.CutPrefix(arg, "@"); ok {
		f, err := os.Open(file)
		if err != nil {
			return usagef("Failed to open '%s': %s", file, reason(err))
		}
		defer f.Close()
		lines = nil
		for s := bufio.NewScanner(f); s.Scan(); {
			if l := strings.TrimSpace(s.Text()); l != "" && l[0] != '#' {
				lines = append(lines, l)
			}
		}
	}
	list, _ := a.priv[p.field].([]any)
	for _, l := range lines {
		if strings.HasPrefix(l, "#") {
			return usagef("Specified key is a comment?")
		}
		if strings.ContainsFunc(l, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return usagef("Authorized key contains control characters, refusing.")
		}
		if !slices.Contains(list, any(l)) {
			list = append(list, l)
		}
	}
	a.priv[p.field] = list
	return nil
}

func setDiskSize(a *assembly, p *property, arg string) error {
	var field string
	var n uint64
	if share, ok := parsePercent(arg); ok {
		field, n = "diskSizeRelative", share
	} else {
		field = "diskSize"
		switch arg {
		case "min":
			n = 0
		case "max":
			n = ^uint64(0) - 1
		default:
			var err error
			if n, err = parseSize(arg); err != nil {
				return usagef("Failed to parse disk size parameter: %s", arg)
			}
		}
	}
	a.reset("diskSize", "diskSizeRelative")
	b := a.target(p)
	b[field] = n
	// Whoever says a size does not want it balanced away.
	b["rebalanceWeight"] = uint64(0)
	return nil
}

// setLimit stores a size or a share under field or field+"Scale".
func setLimit(a *assembly, p *property, arg string) error {
	scale := p.field + "Scale"
	field := p.field
	n, share := parsePercent(arg)
	if share {
		field = scale
	} else {
		var err error
		if n, err = parseSize(arg); err != nil {
			return usagef("Failed to parse %s/%s parameter: %s", p.field, scale, arg)
		}
	}
	a.reset(p.field, scale)
	a.target(p)[field] = n
	return nil
}

func setRebalance(a *assembly, p *property, arg string) error {
	var n uint64
	if arg != "off" {
		var err error
		if n, err = parseUnsigned(arg, 64); err != nil {
			return usagef("Failed to parse rebalance weight parameter: %s", arg)
		}
		if n < 1 || n > 10000 {
			return usagef("Rebalancing weight out of valid range 1…10000: %s", arg)
		}
	}
	a.reset(p.field)
	a.target(p)[p.field] = n
	return nil
}

func setRlimit(a *assembly, _ *property, arg string) error {
	if arg == "" {
		a.reset("resourceLimits")
		clear(a.rlimits)
		for n := range rlimitKinds {
			a.rlimitFilter["RLIMIT_"+n] = true
		}
		return nil
	}
	name, value, ok := strings.Cut(arg, "=")
	if !ok {
		return usagef("Can't parse resource limit assignment: %s", arg)
	}
	short := strings.TrimPrefix(strings.TrimPrefix(name, "RLIMIT_"), "Limit")
	kind, known := rlimitKinds[short]
	if !known {
		return usagef("Unknown resource limit type: %s", name)
	}
	if value == "" {
		a.rlimitFilter["RLIMIT_"+short] = true
		delete(a.rlimits, "RLIMIT_"+short)
		return nil
	}
	cur, hard, err := parseRlimit(kind, value)
	if err != nil {
		return usagef("Failed to parse resource limit value: %s", value)
	}
	a.rlimits["RLIMIT_"+short] = map[string]any{"cur": cur, "max": hard}
	return nil
}

// setCapabilities adds to the set that earlier options made or, after a ~,
// takes away from it.
func setCapabilities(a *assembly, p *property, arg string) error {
	rest, invert := strings.CutPrefix(arg, "~")
	given, unknown := records.ParseCapabilities(strings.Fields(rest))
	if len(unknown) > 0 {
		return usagef("Invalid capabilities in capability string '%s'.", arg)
	}
	b := a.target(p)
	var before []string
	former, collected := b[p.field].([]any)
	for _, name := range former {
		before = append(before, name.(string))
	}
	set, _ := records.ParseCapabilities(before)
	switch {
	case !invert:
		set |= given
	case collected:
		set &^= given
	default:
		set = records.AllCapabilities &^ given
	}
	list := []any{}
	for _, name := range set.Names() {
		list = append(list, name)
	}
	b[p.field] = list
	return nil
}

// refuse is the answer to an option whose feature is not built yet.
func refuse(_ *assembly, p *property, _ string) error {
	return usagef("Option --%s is not available yet.", p.name)
}

var properties = []property{
	{name: "real-name", short: 'c', alias: "comment", metavar: "NAME", help: "Full name", field: "realName", matchable: true, value: gecos},
	{name: "realm", metavar: "REALM", help: "Organisation the user belongs to, a DNS domain", field: "realm", value: func(_ *property, arg string) (any, error) {
		if !records.ValidRealm(arg) {
			return nil, usagef("Realm '%s' is not a valid DNS domain.", arg)
		}
		return arg, nil
	}},
	{name: "alias", metavar: "NAME", help: "More names of the same user, comma separated", field: "aliases", set: setNames},
	{name: "email-address", metavar: "EMAIL", help: "E-mail address", field: "emailAddress", matchable: true, value: text},
	{name: "location", metavar: "LOCATION", help: "Where to find the user", field: "location", matchable: true, value: text},
	{name: "birth-date", metavar: "YYYY-MM-DD", help: "Day of birth", field: "birthDate", value: func(_ *property, arg string) (any, error) {
		t, err := time.Parse(time.DateOnly, arg)
		if err != nil || t.Year() < 1900 || t.After(time.Now()) {
			return nil, usagef("Invalid birth date (expected YYYY-MM-DD): %s", arg)
		}
		return arg, nil
	}},
	{name: "icon-name", metavar: "NAME", help: "Icon of the account, by theme name", field: "iconName", matchable: true, value: text},
	{name: "home-dir", short: 'd', metavar: "PATH", help: "Where the home appears, /home/NAME by default", field: "homeDirectory", value: func(p *property, arg string) (any, error) {
		s, err := parsePath(arg)
		if err != nil || !safePath(s) {
			return nil, usagef("Home directory '%s' not valid.", arg)
		}
		return s, nil
	}},
	{name: "uid", short: 'u', metavar: "UID", help: "Numeric user ID, chosen by the daemon by default", field: "uid", value: func(_ *property, arg string) (any, error) { return anyOf(parseUID(arg)) }},
	{name: "member-of", short: 'G', alias: "groups", metavar: "GROUP", help: "More groups, comma separated", field: "memberOf", matchable: true, set: setNames},
	{name: "capability-bounding-set", metavar: "CAPS", help: "Capabilities the user can have at most", field: "capabilityBoundingSet", matchable: true, set: setCapabilities},
	{name: "capability-ambient-set", metavar: "CAPS", help: "Capabilities a session starts with", field: "capabilityAmbientSet", matchable: true, set: setCapabilities},
	{name: "access-mode", metavar: "MODE", help: "Permissions of the home directory, octal", field: "accessMode", value: mode},
	{name: "umask", metavar: "MODE", help: "File mode mask of sessions, octal", field: "umask", matchable: true, value: func(p *property, arg string) (any, error) {
		n, err := parseMode(arg)
		if err != nil || n > 0o777 {
			return nil, usagef("Access mode '%s' not valid.", arg)
		}
		return n, nil
	}},
	{name: "skel", short: 'k', metavar: "PATH", help: "What a new home is filled with, /etc/skel by default", field: "skeletonDirectory", bucket: "this", matchable: true, value: path},
	{name: "shell", short: 's', metavar: "PATH", help: "Login shell", field: "shell", matchable: true, value: func(_ *property, arg string) (any, error) {
		if !safePath(arg) {
			return nil, usagef("Shell '%s' not valid.", arg)
		}
		return arg, nil
	}},
	{name: "setenv", metavar: "VARIABLE[=VALUE]", help: "Environment variable of sessions", field: "environment", matchable: true, set: setEnvironment},
	{name: "timezone", metavar: "TIMEZONE", help: "Time zone of sessions", field: "timeZone", matchable: true, value: func(_ *property, arg string) (any, error) {
		if _, err := time.LoadLocation(arg); err != nil || arg == "Local" {
			return nil, usagef("Timezone '%s' is not valid.", arg)
		}
		return arg, nil
	}},
	{name: "language", metavar: "LOCALE", help: "Languages of sessions, best first", field: "preferredLanguage", set: setLanguages},
	{name: "default-area", metavar: "AREA", help: "Area that a login without one gets", field: "defaultArea", matchable: true, value: fileName},

	{name: "ssh-authorized-keys", metavar: "KEYS", help: "SSH public key, or @FILE with one per line", field: "sshAuthorizedKeys", bucket: "priv", set: setKeys},
	{name: "pkcs11-token-uri", metavar: "URI", help: "URI to PKCS#11 security token (not yet)", field: "pkcs11TokenUri", set: refuse},
	{name: "fido2-device", metavar: "PATH", help: "Path to FIDO2 device (not yet)", field: "fido2HmacCredential", set: refuse},
	{name: "fido2-credential-algorithm", metavar: "STRING", field: "fido2HmacCredential", set: refuse},
	{name: "fido2-with-client-pin", metavar: "BOOL", field: "fido2HmacCredential", set: refuse},
	{name: "fido2-with-user-presence", metavar: "BOOL", field: "fido2HmacCredential", set: refuse},
	{name: "fido2-with-user-verification", metavar: "BOOL", field: "fido2HmacCredential", set: refuse},
	{name: "blob", short: 'b', metavar: "[NAME=]PATH", help: "Files beside the record: a directory, or one of them", field: "blobManifest", set: setBlob},
	{name: "avatar", metavar: "PATH", help: "Picture of the user", field: "blobManifest", set: setNamedBlob},
	{name: "login-background", metavar: "PATH", help: "Background of the login screen", field: "blobManifest", set: setNamedBlob},

	{name: "locked", metavar: "BOOL", help: "Refuse logins", field: "locked", matchable: true, value: boolean},
	{name: "not-before", metavar: "TIMESTAMP", help: "Refuse logins before this time", field: "notBeforeUSec", matchable: true, value: stamp},
	{name: "not-after", short: 'e', alias: "expiredate", metavar: "TIMESTAMP", help: "Refuse logins after this time", field: "notAfterUSec", matchable: true, value: stamp},
	{name: "rate-limit-interval", metavar: "SECS", help: "Period for which attempts are counted", field: "rateLimitIntervalUSec", matchable: true, value: span},
	{name: "rate-limit-burst", metavar: "NUMBER", help: "Attempts allowed in that period", field: "rateLimitBurst", matchable: true, value: u32},
	{name: "password-hint", metavar: "HINT", help: "Hint that helps to remember the password", field: "passwordHint", bucket: "priv", value: text},
	{name: "enforce-password-policy", metavar: "BOOL", help: "Refuse weak passwords", field: "enforcePasswordPolicy", matchable: true, value: boolean},
	{name: "password-change-now", metavar: "BOOL", help: "Demand a new password at the next login", field: "passwordChangeNow", matchable: true, value: boolean},
	{name: "password-change-min", metavar: "TIME", help: "Least age of a password before it may be changed", field: "passwordChangeMinUSec", matchable: true, value: span},
	{name: "password-change-max", metavar: "TIME", help: "Age at which a password must be changed", field: "passwordChangeMaxUSec", matchable: true, value: span},
	{name: "password-change-warn", metavar: "TIME", help: "How long before that to warn", field: "passwordChangeWarnUSec", matchable: true, value: span},
	{name: "password-change-inactive", metavar: "TIME", help: "How long after that it may still be changed", field: "passwordChangeInactiveUSec", matchable: true, value: span},

	{name: "disk-size", metavar: "BYTES", help: "Size of the storage: 5G, 20%, min or max", field: "diskSize", bucket: "this", matchable: true, set: setDiskSize},
	{name: "nice", metavar: "NICE", help: "Nice level of sessions", field: "niceLevel", matchable: true, value: func(_ *property, arg string) (any, error) {
		var n int
		if _, err := fmt.Sscanf(arg+"\n", "%d\n", &n); err != nil {
			return nil, usagef("Failed to parse nice level '%s': Invalid argument", arg)
		} else if n < -20 || n > 19 {
			return nil, usagef("Failed to parse nice level '%s': Numerical result out of range", arg)
		}
		return n, nil
	}},
	{name: "rlimit", metavar: "LIMIT=VALUE[:VALUE]", help: "Resource limit of sessions", field: "resourceLimits", set: setRlimit},
	{name: "tasks-max", metavar: "MAX", help: "Most tasks of the user", field: "tasksMax", matchable: true, value: u64},
	{name: "memory-high", metavar: "BYTES", help: "Memory above which the user is slowed down", field: "memoryHigh", bucket: "this", matchable: true, value: size},
	{name: "memory-max", metavar: "BYTES", help: "Most memory of the user", field: "memoryMax", bucket: "this", matchable: true, value: size},
	{name: "cpu-weight", metavar: "WEIGHT", help: "Share of the processor, 1…10000", field: "cpuWeight", matchable: true, value: weight},
	{name: "io-weight", metavar: "WEIGHT", help: "Share of disk bandwidth, 1…10000", field: "ioWeight", matchable: true, value: weight},
	{name: "tmp-limit", metavar: "BYTES|PERCENT", help: "Most the user may keep in /tmp", field: "tmpLimit", matchable: true, set: setLimit},
	{name: "dev-shm-limit", metavar: "BYTES|PERCENT", help: "Most the user may keep in /dev/shm", field: "devShmLimit", matchable: true, set: setLimit},

	{name: "storage", metavar: "STORAGE", help: "Kind of storage: luks", field: "storage", bucket: "this", matchable: true, mandatory: true, value: safe},
	{name: "image-path", metavar: "PATH", help: "Where the storage is, /home/NAME.home by default", field: "imagePath", bucket: "this", matchable: true, value: path},
	{name: "drop-caches", metavar: "BOOL", help: "Flush the file system caches at deactivation", field: "dropCaches", matchable: true, value: boolean},
	{name: "fs-type", metavar: "TYPE", help: "File system in the image: btrfs, ext4 or xfs", field: "fileSystemType", bucket: "this", matchable: true, mandatory: true, value: safe},
	{name: "luks-discard", metavar: "BOOL", help: "Give free blocks back while the home is open", field: "luksDiscard", matchable: true, value: boolean},
	{name: "luks-offline-discard", metavar: "BOOL", help: "Give free blocks back when it closes", field: "luksOfflineDiscard", matchable: true, value: boolean},
	{name: "luks-cipher", metavar: "CIPHER", help: "Cipher of the volume", field: "luksCipher", matchable: true, mandatory: true, value: safe},
	{name: "luks-cipher-mode", metavar: "MODE", help: "Mode of the cipher", field: "luksCipherMode", matchable: true, mandatory: true, value: safe},
	{name: "luks-volume-key-size", metavar: "BYTES", help: "Length of the volume key, in bytes", field: "luksVolumeKeySize", matchable: true, value: u32},
	{name: "luks-pbkdf-type", metavar: "TYPE", help: "Key derivation: argon2id, argon2i or pbkdf2", field: "luksPbkdfType", matchable: true, mandatory: true, value: safe},
	{name: "luks-pbkdf-hash-algorithm", metavar: "ALGORITHM", help: "Hash of the key derivation", field: "luksPbkdfHashAlgorithm", matchable: true, mandatory: true, value: safe},
	{name: "luks-pbkdf-time-cost", metavar: "SECS", help: "How long an unlock shall take", field: "luksPbkdfTimeCostUSec", matchable: true, value: span},
	{name: "luks-pbkdf-memory-cost", metavar: "BYTES", help: "Memory an unlock shall take", field: "luksPbkdfMemoryCost", bucket: "this", matchable: true, value: size},
	{name: "luks-pbkdf-parallel-threads", metavar: "NUMBER", help: "Threads an unlock shall take", field: "luksPbkdfParallelThreads", matchable: true, value: u32},
	{name: "luks-pbkdf-force-iterations", metavar: "NUMBER", field: "luksPbkdfForceIterations", matchable: true, value: u32},
	{name: "luks-sector-size", metavar: "BYTES", help: "Sector size of the volume: 512…4096", field: "luksSectorSize", matchable: true, value: func(_ *property, arg string) (any, error) {
		n, err := parseUnsigned(arg, 64)
		switch {
		case err != nil:
			return nil, usagef("Failed to parse sector size parameter %s", arg)
		case n < 512 || n > 4096:
			return nil, usagef("Sector size not between 512 and 4096: %s", arg)
		case n&(n-1) != 0:
			return nil, usagef("Sector size not power of 2: %s", arg)
		}
		return n, nil
	}},
	{name: "luks-extra-mount-options", metavar: "OPTIONS", help: "More options for the mount", field: "luksExtraMountOptions", matchable: true, value: text},
	{name: "auto-resize-mode", metavar: "MODE", help: "Resize at login and logout: off, grow, shrink-and-grow", field: "autoResizeMode", matchable: true, value: oneOf("off", "grow", "shrink-and-grow")},
	{name: "rebalance-weight", metavar: "WEIGHT", help: "Share of free space when homes are rebalanced", field: "rebalanceWeight", matchable: true, set: setRebalance},
	{name: "nosuid", metavar: "BOOL", help: "Ignore set-user-ID bits in the home", field: "mountNoSuid", matchable: true, value: boolean},
	{name: "nodev", metavar: "BOOL", help: "Ignore device nodes in the home", field: "mountNoDevices", matchable: true, value: boolean},
	{name: "noexec", metavar: "BOOL", help: "Run no programs from the home", field: "mountNoExecute", matchable: true, value: boolean},
	{name: "cifs-domain", metavar: "DOMAIN", help: "Domain on the file server", field: "cifsDomain", matchable: true, value: text},
	{name: "cifs-user-name", metavar: "USER", help: "User name on the file server", field: "cifsUserName", matchable: true, value: text},
	{name: "cifs-service", metavar: "SERVICE", help: "Share on the file server", field: "cifsService", matchable: true, value: func(_ *property, arg string) (any, error) {
		if !cifsService(arg) {
			return nil, usagef("Failed to validate CIFS service name: %s", arg)
		}
		return arg, nil
	}},
	{name: "cifs-extra-mount-options", metavar: "OPTIONS", help: "More options for the mount of a share", field: "cifsExtraMountOptions", matchable: true, value: text},
	{name: "stop-delay", metavar: "SECS", help: "How long services outlive the last session", field: "stopDelayUSec", matchable: true, value: span},
	{name: "kill-processes", metavar: "BOOL", help: "End the user's processes with the last session", field: "killProcesses", matchable: true, value: boolean},
	{name: "auto-login", metavar: "BOOL", help: "Log the user in at boot", field: "autoLogin", matchable: true, value: boolean},
	{name: "session-launcher", metavar: "LAUNCHER", help: "Desktop to start", field: "preferredSessionLauncher", matchable: true, value: text},
	{name: "session-type", metavar: "TYPE", help: "Kind of session: wayland, x11, tty, …", field: "preferredSessionType", matchable: true, value: text},
}

func anyOf(n uint64, err error) (any, error) { return n, err }

var hostName = form(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)

// cifsService accepts //host/share[/dir…]; the first character is the
// delimiter, slash or backslash.
func cifsService(s string) bool {
	if len(s) < 5 || s[0] != s[1] || s[0] != '/' && s[0] != '\\' {
		return false
	}
	parts := strings.Split(s[2:], s[:1])
	if len(parts) < 2 {
		return false
	}
	if _, err := netip.ParseAddr(parts[0]); err != nil && !hostName().MatchString(parts[0]) {
		return false
	}
	for _, p := range parts[1:] {
		if p == "" || p == "." || p == ".." {
			return false
		}
	}
	return true
}

// alsoReset names fields that an option resets beside its own.
var alsoReset = map[string][]string{
	"disk-size":     {"diskSizeRelative", "rebalanceWeight"},
	"language":      {"additionalLanguages"},
	"tmp-limit":     {"tmpLimitScale"},
	"dev-shm-limit": {"devShmLimitScale"},
}

// options turns the table into command line options.
func (p *property) options() []option {
	apply := func(c *command, arg string, _ bool) error {
		a := c.assembly
		if p.set != nil && p.name == "rlimit" {
			return p.set(a, p, arg)
		}
		if arg == "" && !p.mandatory {
			a.reset(append([]string{p.field}, alsoReset[p.name]...)...)
			return nil
		}
		if p.set != nil {
			return p.set(a, p, arg)
		}
		v, err := p.value(p, arg)
		if err != nil {
			return err
		}
		a.target(p)[p.field] = v
		return nil
	}
	kind := requiredArgument
	if p.name == "birth-date" {
		kind = optionalArgument
	}
	list := []option{{name: p.name, short: p.short, argument: kind, metavar: p.metavar, help: p.help, group: groupOf(p), apply: apply}}
	if p.alias != "" {
		list = append(list, option{name: p.alias, argument: kind, apply: apply})
	}
	return list
}

// groupOf returns the heading of --help below which a property stands.
func groupOf(p *property) string {
	heading := ""
	for i := range properties {
		if h, ok := headings[properties[i].name]; ok {
			heading = h
		}
		if properties[i].name == p.name {
			break
		}
	}
	return heading
}

// headings says before which property a new section of --help begins.
var headings = map[string]string{
	"real-name":           "General User Record Properties",
	"ssh-authorized-keys": "Authentication User Record Properties",
	"blob":                "Blob Directory User Record Properties",
	"locked":              "Account Management User Record Properties",
	"password-hint":       "Password Policy User Record Properties",
	"disk-size":           "Resource Management User Record Properties",
	"storage":             "Storage User Record Properties",
	"luks-discard":        "LUKS Storage User Record Properties",
	"nosuid":              "Mounting User Record Properties",
	"cifs-domain":         "CIFS User Record Properties",
	"stop-delay":          "Login Behavior User Record Properties",
}
