package records

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"hearth/internal/fault"
)

// A field says where a known field may stand and what it may hold.
type field struct {
	in   section
	flex bool // null means "unset" instead of being a wrong type
	test func(*value) bool
}

func (f field) valid(v *value) bool { return v != nil && f.test != nil && f.test(v) }

const (
	rM   = regular | perMachine
	rmB  = rM | binding
	rmS  = rM | status
	rS   = regular | status
	rB   = regular | binding
	rmBS = rmB | status
)

// fields has a row for every field of USER_RECORD; the value tests stand
// below. What is not here is kept and ignored.
var fields = map[string]field{}

func init() {
	add := func(in section, flex bool, test func(*value) bool, names ...string) {
		for _, n := range names {
			fields[n] = field{in, flex, test}
		}
	}
	// Identity.
	add(regular, false, isRelaxedName, "userName")
	add(regular, false, textWhere(validDNS), "realm")
	add(rS, false, listOf(isRelaxedName), "aliases")
	add(regular, false, textWhere(isID128), "uuid")
	add(regular, false, isText, "realName")
	add(regular, false, isStrict, "emailAddress")
	add(rM, false, isStrict, "iconName")
	add(rM, false, isText, "location")
	add(regular, false, textWhere(isDate), "birthDate")
	add(regular, false, oneOf("intrinsic", "system", "dynamic", "regular", "container", "foreign", "reserved"), "disposition")
	add(rS, false, isStrict, "service")
	add(regular, true, isU64, "lastChangeUSec", "lastPasswordChangeUSec")
	add(rM, false, listOf(isStrict), "selfModifiableFields", "selfModifiableBlobs", "selfModifiablePrivileged")
	// Login environment.
	add(rM, false, textWhere(isShell), "shell")
	add(status, false, textWhere(isShell), "fallbackShell")
	add(rM, true, modeUpTo(0o777), "umask")
	add(rM, false, isEnvironment, "environment")
	add(rM, false, isStrict, "timeZone", "preferredSessionType", "preferredSessionLauncher")
	add(rM, false, textWhere(isLocale), "preferredLanguage")
	add(rM, false, listOf(textWhere(isLocale)), "additionalLanguages")
	add(rM, true, isNice, "niceLevel")
	add(rM, true, isLimits, "resourceLimits")
	add(rM, false, listOf(isStrict), "capabilityBoundingSet", "capabilityAmbientSet")
	add(rmS, false, textWhere(isFileName), "defaultArea")
	add(rM, false, isBool, "autoLogin", "killProcesses", "dropCaches", "locked", "enforcePasswordPolicy", "passwordChangeNow",
		"mountNoDevices", "mountNoSuid", "mountNoExecute")
	add(rM, true, isU64, "stopDelayUSec", "tmpLimit", "devShmLimit")
	add(rM, true, isU32, "tmpLimitScale", "devShmLimitScale")
	// Account state.
	add(rM, true, isU64, "notBeforeUSec", "notAfterUSec", "rateLimitIntervalUSec", "rateLimitBurst",
		"passwordChangeMinUSec", "passwordChangeMaxUSec", "passwordChangeWarnUSec", "passwordChangeInactiveUSec")
	// Authentication material.
	add(rM, false, listOf(textWhere(isTokenURI)), "pkcs11TokenUri")
	add(rM, false, listOf(textWhere(isBase64)), "fido2HmacCredential")
	add(regular, false, listOf(isText), "recoveryKeyType")
	add(privileged, false, isText, "passwordHint")
	add(privileged, true, oneOrMore(isStrict), "hashedPassword")
	add(privileged, true, oneOrMore(isText), "sshAuthorizedKeys")
	add(privileged, false, listOf(entry{
		"uri": must(textWhere(isTokenURI)), "data": must(textWhere(isBase64)), "hashedPassword": must(isText),
		"padding": may(oneOf("pkcs1", "oaep-sha1", "oaep-sha256")),
	}.test), "pkcs11EncryptedKey")
	add(privileged, false, listOf(entry{
		"credential": must(textWhere(isBase64)), "salt": must(textWhere(isBase64)), "hashedPassword": must(isText),
		"up": may(isBool), "uv": may(isBool), "clientPin": may(isBool),
	}.test), "fido2HmacSalt")
	add(privileged, false, listOf(entry{"type": must(isText), "hashedPassword": must(isText)}.test), "recoveryKey")
	// Storage.
	add(rmB, false, oneOf("classic", "luks", "directory", "subvolume", "fscrypt", "cifs"), "storage")
	add(rmB, false, textWhere(isImagePath), "imagePath")
	add(rB, false, textWhere(isHomePath), "homeDirectory")
	add(status, false, textWhere(isHomePath), "fallbackHomeDirectory")
	add(status, false, isBool, "useFallback", "removable")
	add(status, true, isBool, "signedLocally")
	add(rmB, false, isUID, "uid", "gid")
	add(rM, false, listOf(isRelaxedName), "memberOf")
	add(rM, false, textWhere(isPath), "skeletonDirectory")
	add(rmS, true, modeUpTo(0o7777), "accessMode")
	add(rmS, true, isU64, "diskSize")
	add(rM, true, isU64, "diskSizeRelative")
	add(rmBS, false, isStrict, "fileSystemType")
	add(rmB, false, textWhere(isID128), "partitionUuid", "luksUuid", "fileSystemUuid")
	add(rM, true, isBool, "luksDiscard", "luksOfflineDiscard")
	add(rmB, false, isStrict, "luksCipher", "luksCipherMode")
	add(rmB, true, isU64, "luksVolumeKeySize")
	add(rM, false, isStrict, "luksPbkdfType", "luksPbkdfHashAlgorithm")
	add(rM, true, isU64, "luksPbkdfForceIterations", "luksPbkdfTimeCostUSec", "luksPbkdfMemoryCost", "luksPbkdfParallelThreads", "luksSectorSize")
	add(rM, false, isText, "luksExtraMountOptions", "cifsExtraMountOptions")
	add(rM, true, isResizeMode, "autoResizeMode")
	add(rM, true, isRebalance, "rebalanceWeight")
	add(rM, false, isStrict, "cifsDomain", "cifsUserName", "cifsService")
	add(rM, false, uintBetween(1, math.MaxUint64-1), "tasksMax", "memoryHigh", "memoryMax")
	add(rM, false, uintBetween(1, 10000), "cpuWeight", "ioWeight")
	add(rmB, false, textWhere(isPath), "blobDirectory")
	add(rM, false, isManifest, "blobManifest")
	// Status.
	add(status, true, isU64, "diskUsage", "diskFree", "diskCeiling", "diskFloor", "goodAuthenticationCounter", "badAuthenticationCounter",
		"lastGoodAuthenticationUSec", "lastBadAuthenticationUSec", "rateLimitBeginUSec", "rateLimitCount")
	add(status, false, isStrict, "state")
	// The conditions of perMachine entries are read by matches, which
	// forgives what it does not understand.
	add(perMachine, false, func(*value) bool { return true }, "matchMachineId", "matchNotMachineId", "matchHostname", "matchNotHostname")
}

// Value tests and conversions.

func isText(v *value) bool { return v.kind == text }
func isBool(v *value) bool { return v.kind == boolean }

// isStrict: a text that needs no quoting anywhere.
func isStrict(v *value) bool {
	return v.kind == text && !strings.ContainsFunc(v.str, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' || r == '"' || r == '\'' })
}

func textWhere(test func(string) bool) func(*value) bool {
	return func(v *value) bool { return v.kind == text && test(v.str) }
}

func oneOf(words ...string) func(*value) bool {
	return textWhere(func(s string) bool { return slices.Contains(words, s) })
}

func listOf(test func(*value) bool) func(*value) bool {
	return func(v *value) bool {
		return v.kind == array && !slices.ContainsFunc(v.list, func(e *value) bool { return !test(e) })
	}
}

// oneOrMore also takes a bare element for a list of one.
func oneOrMore(test func(*value) bool) func(*value) bool {
	list := listOf(test)
	return func(v *value) bool { return test(v) || list(v) }
}

// entry describes the objects of a list: known members and their tests.
// Unknown members pass.
type entry map[string]part

type part struct {
	must bool
	test func(*value) bool
}

func must(test func(*value) bool) part { return part{true, test} }
func may(test func(*value) bool) part  { return part{false, test} }

func (e entry) test(v *value) bool {
	if v.kind != object {
		return false
	}
	for name, rule := range e {
		m := v.get(name)
		if m == nil && rule.must || m != nil && !rule.test(m) {
			return false
		}
	}
	return true
}

// toU64 reads what counts as an unsigned number: a number, an integral real,
// or a text holding one in Go's and C's notations.
func toU64(v *value) (uint64, bool) {
	if v == nil {
		return 0, false
	}
	switch k, n := v.canonical(); k {
	case unsigned:
		return n, true
	case text:
		if strings.ContainsAny(v.str, "_+ ") {
			return 0, false
		}
		n, err := strconv.ParseUint(v.str, 0, 64)
		return n, err == nil
	}
	return 0, false
}

func isU64(v *value) bool { _, ok := toU64(v); return ok }
func isU32(v *value) bool { n, ok := toU64(v); return ok && n <= math.MaxUint32 }

// uintBetween takes numbers only.
func uintBetween(low, high uint64) func(*value) bool {
	return func(v *value) bool {
		k, n := v.canonical()
		return k == unsigned && n >= low && n <= high
	}
}

func isUID(v *value) bool {
	k, n := v.canonical()
	return k == unsigned && validUID(n)
}

// validUID: 65535 and 4294967295 mean "no user" to the kernel.
func validUID(n uint64) bool { return n < math.MaxUint32 && n != 65535 }

// toMode reads a mode: a number, or a text in octal.
func toMode(v *value) (uint64, bool) {
	switch k, n := v.canonical(); k {
	case unsigned:
		return n, true
	case text:
		n, err := strconv.ParseUint(v.str, 8, 32)
		return n, err == nil
	}
	return 0, false
}

func modeUpTo(limit uint64) func(*value) bool {
	return func(v *value) bool { n, ok := toMode(v); return ok && n <= limit }
}

func toInt(v *value) (int64, bool) {
	switch k, n := v.canonical(); k {
	case unsigned:
		return int64(n), n <= math.MaxInt64
	case integer:
		return int64(n), true
	case text:
		n, err := strconv.ParseInt(v.str, 10, 64)
		return n, err == nil
	}
	return 0, false
}

func isNice(v *value) bool { n, ok := toInt(v); return ok && n >= -20 && n <= 19 }

func isRelaxedName(v *value) bool { return v.kind == text && RelaxedName(v.str) }

// isPath: absolute, no empty, "." or ".." component.
func isPath(s string) bool {
	if !strings.HasPrefix(s, "/") || len(s) >= 4096 || strings.Contains(s, "//") {
		return false
	}
	for p := range strings.SplitSeq(s[1:], "/") {
		if p == "." || p == ".." || len(p) > 255 {
			return false
		}
	}
	return true
}

func isImagePath(s string) bool { return isPath(s) && s != "/" }

// isHomePath: a path that fits into /etc/passwd.
func isHomePath(s string) bool {
	return isPath(s) && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == ':' })
}

func isShell(s string) bool { return isHomePath(s) && !strings.HasSuffix(s, "/") }

func isFileName(s string) bool {
	return s != "" && len(s) <= 255 && s != "." && s != ".." && !strings.Contains(s, "/")
}

var (
	localeRE   = regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,127}$`)
	tokenRE    = regexp.MustCompile(`^pkcs11:[A-Za-z0-9.~/_?;&%=-]+$`)
	variableRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)
	dashedRE   = regexp.MustCompile(`^[0-9A-Fa-f]{8}-([0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}$`)
	plainRE    = regexp.MustCompile(`^[0-9A-Fa-f]{32}$`)
	hashRE     = regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)
	blobRE     = regexp.MustCompile(`^[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,254}$`)
)

func isLocale(s string) bool   { return localeRE.MatchString(s) && s != "." && s != ".." }
func isTokenURI(s string) bool { return tokenRE.MatchString(s) }

func isDate(s string) bool {
	_, err := time.Parse("2006-1-2", s)
	return err == nil
}

// parseID returns the 32 lower-case digits of an id, "" if it is none.
func parseID(s string) string {
	if rest := len(s) - 36; rest == len("urn:uuid:") && strings.EqualFold(s[:rest], "urn:uuid:") {
		s = s[rest:]
	} else if plainRE.MatchString(s) {
		return strings.ToLower(s)
	}
	if !dashedRE.MatchString(s) {
		return ""
	}
	return strings.ToLower(strings.ReplaceAll(s, "-", ""))
}

func isID128(s string) bool { return parseID(s) != "" }

// dashed returns an id as records write it, "" if it is none.
func dashed(s string) string {
	id := parseID(s)
	if id == "" {
		return ""
	}
	return id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
}

// isBase64: padding is mandatory, white space is ignored, unused bits are 0.
func isBase64(s string) bool {
	s = strings.Join(strings.Fields(s), "")
	_, err := base64.StdEncoding.Strict().DecodeString(s)
	return err == nil
}

func isEnvironment(v *value) bool {
	return listOf(textWhere(variableRE.MatchString))(v) && len(v.list) <= 16384
}

var limitNames = []string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"}

func isLimits(v *value) bool {
	if v.kind != object {
		return false
	}
	for _, m := range v.members {
		name, ok := strings.CutPrefix(m.key, "RLIMIT_")
		if !ok || !slices.Contains(limitNames, name) || !m.value.is(object) || len(m.value.members) != 2 {
			return false
		}
		for _, key := range []string{"cur", "max"} {
			l := m.value.get(key)
			if l == nil {
				return false
			}
			if k, n := l.canonical(); k != null && (k != unsigned || n == math.MaxUint64) {
				return false
			}
		}
	}
	return true
}

func isResizeMode(v *value) bool {
	return v.kind == boolean || oneOf("off", "grow", "shrink-and-grow")(v)
}

func isRebalance(v *value) bool {
	return v.kind == boolean || uintBetween(0, 10000)(v)
}

func isManifest(v *value) bool {
	if v.kind != object {
		return false
	}
	return !slices.ContainsFunc(v.members, func(m member) bool {
		return !blobRE.MatchString(m.key) || m.value.kind != text || !isHash(m.value.str)
	})
}

func isHash(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && hashRE.MatchString(s)
}

func texts(v *value) []string {
	if v.is(text) {
		return []string{v.str}
	}
	if !v.is(array) {
		return nil
	}
	out := make([]string, 0, len(v.list))
	for _, e := range v.list {
		if e.kind == text {
			out = append(out, e.str)
		}
	}
	return out
}

func unique(list []string) []string {
	var out []string
	seen := make(map[string]bool, len(list))
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

// Validate checks every known field that counts on machine m as strictly as
// CreateHome does. Fault: InvalidArgs.
func (r *Record) Validate(m Machine) error { return r.checkFields(&m) }

// Ignored lists the fields that do not count on machine m because of their
// type, value or place, each with its reason, for the log.
func (r *Record) Ignored(m Machine) []string {
	var out []string
	r.badFields(&m, func(name, why string) { out = append(out, name+": "+why) })
	return out
}

func (r *Record) checkFields(m *Machine) error {
	var err error
	r.badFields(m, func(name, why string) {
		if err == nil {
			err = &fault.Error{Kind: fault.InvalidArgs, Op: "check fields of user record", Text: notARecord, Err: errors.New("field " + name + ": " + why)}
		}
	})
	return err
}

// badFields reports what does not count in the sections of m, or, when m is
// nil, in those that count everywhere.
func (r *Record) badFields(m *Machine, report func(name, why string)) {
	check := func(in section, v *value) {
		for _, e := range v.members {
			if in == regular && sectionOf(e.key) != regular {
				continue
			}
			f, known := fields[e.key]
			switch {
			case !known || f.in&in == 0:
				// A newer release may know it, and its clients need not ask
				// us. In the sections that are ours alone it is a slip.
				if in&(regular|privileged) == 0 {
					report(e.key, "not known here")
				}
			case f.flex && e.value.kind == null:
			case !f.valid(e.value):
				report(e.key, "wrong type or value")
			}
		}
	}
	check(regular, r.doc)
	if p := r.doc.get("privileged"); p.is(object) {
		check(privileged, p)
	} else if p != nil {
		report("privileged", "not an object")
	}
	if list := r.doc.get("perMachine"); list != nil && !listOf(func(v *value) bool { return v.kind == object })(list) {
		report("perMachine", "not an array of objects")
	}
	if m == nil {
		return
	}
	for _, l := range r.layers(*m) {
		if l.in != regular {
			check(l.in, l.obj)
		}
	}
}
