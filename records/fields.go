package records

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"hearth/internal/fault"
)

// A field says where a known field may stand and what it may hold.
type field struct {
	in   section
	flex bool // null means "unset" instead of being a wrong type
	values
}

// values are what a field may hold: the rule in words, and as a test.
type values struct {
	rule  string
	holds func(*value) bool
	each  func(*value) bool // of a list of objects: the rule for one of them
}

func (f field) valid(v *value) bool { return v != nil && f.holds != nil && f.holds(v) }

const (
	rM   = regular | perMachine
	rmB  = rM | binding
	rmS  = rM | status
	rS   = regular | status
	rB   = regular | binding
	rmBS = rmB | status
)

// fields has a row for every field of USER_RECORD but those of the secret
// section; the values stand below. What is not here is kept and ignored.
var fields = make(map[string]field, 160)

// tokenKey, tokenSalt and recoveryKey are the objects in the lists of what
// unlocks a home.
var (
	tokenKey = objectOf("a token's key", entry{
		"uri": must(tokenURI), "data": must(base64Text), "hashedPassword": must(anyText),
		"padding": may(oneOf("pkcs1", "oaep-sha1", "oaep-sha256")),
	})
	tokenSalt = objectOf("a token's credential and salt", entry{
		"credential": must(base64Text), "salt": must(base64Text), "hashedPassword": must(anyText),
		"up": may(yesOrNo), "uv": may(yesOrNo), "clientPin": may(yesOrNo),
	})
	recoveryKey = objectOf("a recovery key's type and hash", entry{"type": must(anyText), "hashedPassword": must(anyText)})
)

func init() {
	const flex = true
	add := func(in section, flex bool, v values, names ...string) {
		for _, n := range names {
			fields[n], words[n] = field{in, flex, v}, n
		}
	}
	// Identity.
	add(regular, !flex, userName, "userName")
	add(regular, !flex, textWhere("a DNS name", validDNS), "realm")
	add(rS, !flex, listOf(userName), "aliases")
	add(regular, !flex, id128, "uuid")
	add(regular, !flex, anyText, "realName")
	add(regular, !flex, strictText, "emailAddress")
	add(rM, !flex, strictText, "iconName")
	add(rM, !flex, anyText, "location")
	add(regular, !flex, textWhere("a date like 1990-12-31", isDate), "birthDate")
	add(regular, !flex, oneOf("intrinsic", "system", "dynamic", "regular", "container", "foreign", "reserved"), "disposition")
	add(rS, !flex, strictText, "service")
	add(regular, flex, number, "lastChangeUSec", "lastPasswordChangeUSec")
	add(rM, !flex, listOf(strictText), "selfModifiableFields", "selfModifiableBlobs", "selfModifiablePrivileged")
	// Login environment.
	add(rM, !flex, shellPath, "shell")
	add(status, !flex, shellPath, "fallbackShell")
	add(rM, flex, modeUpTo(0o777), "umask")
	add(rM, !flex, environmentList, "environment")
	add(rM, !flex, strictText, "timeZone", "preferredSessionType", "preferredSessionLauncher")
	add(rM, !flex, locale, "preferredLanguage")
	add(rM, !flex, listOf(locale), "additionalLanguages")
	add(rM, flex, values{rule: "a number from -20 to 19", holds: isNice}, "niceLevel")
	add(rM, flex, values{rule: "an object of RLIMIT_ names, each with just cur and max", holds: isLimits}, "resourceLimits")
	add(rM, !flex, listOf(strictText), "capabilityBoundingSet", "capabilityAmbientSet")
	add(rmS, !flex, textWhere("a file name", isFileName), "defaultArea")
	add(rM, !flex, yesOrNo, "autoLogin", "killProcesses", "dropCaches", "locked", "enforcePasswordPolicy", "passwordChangeNow",
		"mountNoDevices", "mountNoSuid", "mountNoExecute")
	add(rM, flex, number, "stopDelayUSec", "tmpLimit", "devShmLimit")
	add(rM, flex, values{rule: "an unsigned number of 32 bits", holds: isU32}, "tmpLimitScale", "devShmLimitScale")
	// Account state.
	add(rM, flex, number, "notBeforeUSec", "notAfterUSec", "rateLimitIntervalUSec", "rateLimitBurst",
		"passwordChangeMinUSec", "passwordChangeMaxUSec", "passwordChangeWarnUSec", "passwordChangeInactiveUSec")
	// Authentication material.
	add(rM, !flex, listOf(tokenURI), "pkcs11TokenUri")
	add(rM, !flex, listOf(base64Text), "fido2HmacCredential")
	add(regular, !flex, listOf(anyText), "recoveryKeyType")
	add(privileged, !flex, anyText, "passwordHint")
	add(privileged, flex, oneOrMore(strictText), "hashedPassword")
	add(privileged, flex, oneOrMore(anyText), "sshAuthorizedKeys")
	add(privileged, !flex, listOf(tokenKey), "pkcs11EncryptedKey")
	add(privileged, !flex, listOf(tokenSalt), "fido2HmacSalt")
	add(privileged, !flex, listOf(recoveryKey), "recoveryKey")
	// Storage.
	add(rmB, !flex, oneOf("classic", "luks", "directory", "subvolume", "fscrypt", "cifs"), "storage")
	add(rmB, !flex, textWhere("an absolute, normalised path other than /", isImagePath), "imagePath")
	add(rB, !flex, homePath, "homeDirectory")
	add(status, !flex, homePath, "fallbackHomeDirectory")
	add(status, !flex, yesOrNo, "useFallback", "removable")
	add(status, flex, yesOrNo, "signedLocally")
	add(rmB, !flex, values{rule: "a number that can be a user's, but 65535 and 4294967295", holds: isUID}, "uid", "gid")
	add(rM, !flex, listOf(userName), "memberOf")
	add(rM, !flex, path, "skeletonDirectory")
	add(rmS, flex, modeUpTo(0o7777), "accessMode")
	add(rmS, flex, number, "diskSize")
	add(rM, flex, number, "diskSizeRelative")
	add(rmBS, !flex, strictText, "fileSystemType")
	add(rmB, !flex, id128, "partitionUuid", "luksUuid", "fileSystemUuid")
	add(rM, flex, yesOrNo, "luksDiscard", "luksOfflineDiscard")
	add(rmB, !flex, strictText, "luksCipher", "luksCipherMode")
	add(rmB, flex, number, "luksVolumeKeySize")
	add(rM, !flex, strictText, "luksPbkdfType", "luksPbkdfHashAlgorithm")
	add(rM, flex, number, "luksPbkdfForceIterations", "luksPbkdfTimeCostUSec", "luksPbkdfMemoryCost", "luksPbkdfParallelThreads", "luksSectorSize")
	add(rM, !flex, anyText, "luksExtraMountOptions", "cifsExtraMountOptions")
	add(rM, flex, values{rule: "off, grow, shrink-and-grow, true or false", holds: isResizeMode}, "autoResizeMode")
	add(rM, flex, values{rule: "a number up to 10000, true or false", holds: isRebalance}, "rebalanceWeight")
	add(rM, !flex, strictText, "cifsDomain", "cifsUserName", "cifsService")
	add(rM, !flex, uintBetween(1, math.MaxUint64-1), "tasksMax", "memoryHigh", "memoryMax")
	add(rM, !flex, uintBetween(1, 10000), "cpuWeight", "ioWeight")
	add(rmB, !flex, path, "blobDirectory")
	add(rM, !flex, values{rule: "an object of file names, each with a SHA-256 of 64 hex digits", holds: isManifest}, "blobManifest")
	// Status.
	add(status, flex, number, "diskUsage", "diskFree", "diskCeiling", "diskFloor", "goodAuthenticationCounter", "badAuthenticationCounter",
		"lastGoodAuthenticationUSec", "lastBadAuthenticationUSec", "rateLimitBeginUSec", "rateLimitCount")
	add(status, !flex, strictText, "state")
	// The conditions of perMachine entries are read by matches, which
	// forgives what it does not understand.
	add(perMachine, !flex, values{rule: "anything", holds: func(*value) bool { return true }},
		"matchMachineId", "matchNotMachineId", "matchHostname", "matchNotHostname")
}

// The values that several fields have in common.
var (
	anyText         = values{rule: "a string", holds: func(v *value) bool { return v.kind == text }}
	strictText      = values{rule: "a string without control characters, quotes and backslashes", holds: isStrict}
	yesOrNo         = values{rule: "true or false", holds: func(v *value) bool { return v.kind == boolean }}
	number          = values{rule: "an unsigned number", holds: isU64}
	userName        = textWhere("a user name", RelaxedName)
	id128           = textWhere("a UUID", isID128)
	path            = textWhere("an absolute, normalised path", isPath)
	homePath        = textWhere("an absolute, normalised path that /etc/passwd can hold", isHomePath)
	shellPath       = textWhere("an absolute, normalised path of a program that /etc/passwd can hold", isShell)
	locale          = textWhere("a locale", isLocale)
	tokenURI        = textWhere("a pkcs11: URI", isTokenURI)
	base64Text      = textWhere("base64", isBase64)
	environmentList = values{rule: "a list of at most 16384 assignments NAME=VALUE", holds: isEnvironment}
)

// Value tests and conversions.

// isStrict: a text that needs no quoting anywhere.
func isStrict(v *value) bool {
	return v.kind == text && !strings.ContainsFunc(v.str, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' || r == '"' || r == '\'' })
}

func textWhere(rule string, test func(string) bool) values {
	return values{rule: rule, holds: func(v *value) bool { return v.kind == text && test(v.str) }}
}

func oneOf(words ...string) values {
	return textWhere("one of "+strings.Join(words, ", "), func(s string) bool { return slices.Contains(words, s) })
}

func listOf(v values) values {
	return values{"a list, each " + v.rule, func(l *value) bool {
		return l.kind == array && !slices.ContainsFunc(l.list, func(e *value) bool { return !v.holds(e) })
	}, v.holds}
}

// oneOrMore also takes a bare element for a list of one.
func oneOrMore(v values) values {
	list := listOf(v)
	return values{rule: v.rule + ", or a list of such", holds: func(e *value) bool { return v.holds(e) || list.holds(e) }}
}

// entry describes the objects of a list: known members and what they hold.
// Unknown members pass.
type entry map[string]part

type part struct {
	must bool
	values
}

func must(v values) part { return part{true, v} }
func may(v values) part  { return part{false, v} }

func objectOf(rule string, e entry) values {
	return values{rule: rule, holds: func(v *value) bool {
		if v.kind != object {
			return false
		}
		for name, p := range e {
			m := v.get(name)
			if m == nil && p.must || m != nil && !p.holds(m) {
				return false
			}
		}
		return true
	}}
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
func uintBetween(low, high uint64) values {
	return values{rule: fmt.Sprintf("a number from %d to %d", low, high), holds: func(v *value) bool {
		k, n := v.canonical()
		return k == unsigned && n >= low && n <= high
	}}
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

func modeUpTo(limit uint64) values {
	return values{rule: fmt.Sprintf("an access mode up to %#o, or a string with its octal digits", limit),
		holds: func(v *value) bool { n, ok := toMode(v); return ok && n <= limit }}
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

// No regular expressions: each program of ours would compile them when it
// starts, which costs a login more than all else that it does in these rooms.
const (
	letters     = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	digits      = "0123456789"
	hexadecimal = digits + "ABCDEFabcdef"
)

// only reports whether s has from least to most bytes, all of the set.
func only(s, set string, least, most int) bool {
	return len(s) >= least && len(s) <= most && strings.Trim(s, set) == ""
}

// startsOnly is only for what may start with fewer bytes than it goes on with.
func startsOnly(s, first, rest string, most int) bool {
	return s != "" && strings.IndexByte(first, s[0]) >= 0 && only(s[1:], rest, 0, most-1)
}

func isDashedID(s string) bool {
	part := strings.Split(s, "-")
	if len(part) != 5 || len(s) != 36 {
		return false
	}
	for i, n := range []int{8, 4, 4, 4, 12} {
		if !only(part[i], hexadecimal, n, n) {
			return false
		}
	}
	return true
}

func isVariable(s string) bool {
	name, _, ok := strings.Cut(s, "=")
	return ok && startsOnly(name, letters+"_", letters+digits+"_", len(s))
}

func isBlobName(s string) bool {
	return startsOnly(s, letters+digits+"_~-", letters+digits+"._~-", 255)
}

func isLocale(s string) bool { return only(s, letters+digits+"_.@-", 1, 127) && s != "." && s != ".." }
func isTokenURI(s string) bool {
	rest, ok := strings.CutPrefix(s, "pkcs11:")
	return ok && only(rest, letters+digits+".~/_?;&%=-", 1, len(rest))
}

func isDate(s string) bool {
	_, err := time.Parse("2006-1-2", s)
	return err == nil
}

// parseID returns the 32 lower-case digits of an id, "" if it is none.
func parseID(s string) string {
	if rest := len(s) - 36; rest == len("urn:uuid:") && strings.EqualFold(s[:rest], "urn:uuid:") {
		s = s[rest:]
	} else if only(s, hexadecimal, 32, 32) {
		return strings.ToLower(s)
	}
	if !isDashedID(s) {
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
	assignments := listOf(textWhere("", isVariable))
	return assignments.holds(v) && len(v.list) <= 16384
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
	return v.kind == boolean || v.is(text) && slices.Contains([]string{"off", "grow", "shrink-and-grow"}, v.str)
}

func isRebalance(v *value) bool {
	return v.kind == boolean || uintBetween(0, 10000).holds(v)
}

func isManifest(v *value) bool {
	if v.kind != object {
		return false
	}
	return !slices.ContainsFunc(v.members, func(m member) bool {
		return !isBlobName(m.key) || m.value.kind != text || !isHash(m.value.str)
	})
}

func isHash(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && only(s, hexadecimal, 64, 64)
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

// personal fields are about the person; what they hold is for no log.
var personal = []string{"realName", "location", "emailAddress", "birthDate"}

// quote shows a field's value in a message, unless it is private or long.
func quote(in section, m member) string {
	text := string(appendCompact(nil, m.value))
	if in == privileged || slices.Contains(personal, m.key) || len(text) > 64 {
		return "its value"
	}
	return printable(text)
}

// printable keeps control characters of a record out of logs.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
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
					report(printable(e.key), "not known here")
				}
			case f.flex && e.value.kind == null:
			case !f.valid(e.value):
				report(e.key, quote(in, e)+" is not "+f.rule)
			}
		}
	}
	check(regular, r.doc)
	if p := r.doc.get("privileged"); p.is(object) {
		check(privileged, p)
	} else if p != nil {
		report("privileged", "not an object")
	}
	if list := r.doc.get("perMachine"); list != nil && !listOf(values{holds: func(v *value) bool { return v.kind == object }}).holds(list) {
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
