package records

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"hearth/internal/fault"
)

// catalogue has the fields of USER_RECORD as systemd 262 reads them: the
// sections that each counts in (regular, perMachine, binding, status,
// privileged; ~: null unsets it), a value that it may have and one that it may
// not.
var catalogue = []struct{ name, in, good, bad string }{
	{"userName", "R", `"bob"`, `"a/b"`},
	{"realm", "R", `"example.org"`, `"a..b"`},
	{"aliases", "RS", `["al"]`, `["a/b"]`},
	{"uuid", "R", `"1234567890abcdef1234567890ABCDEF"`, `"1234"`},
	{"realName", "R", `"Ann"`, `7`},
	{"emailAddress", "R", `"a@b"`, `"a\\b"`},
	{"iconName", "RM", `"icon"`, `"a\"b"`},
	{"location", "RM", `"here"`, `[]`},
	{"birthDate", "R", `"1959-02-28"`, `"1959-02-30"`},
	{"disposition", "R", `"system"`, `"other"`},
	{"service", "RS", `"x"`, `"a\nb"`},
	{"lastChangeUSec", "R~", `5`, `-5`},
	{"lastPasswordChangeUSec", "R~", `"5"`, `"x"`},
	{"selfModifiableFields", "RM", `["x"]`, `"x"`},
	{"selfModifiableBlobs", "RM", `["x"]`, `["a'b"]`},
	{"selfModifiablePrivileged", "RM", `["x"]`, `[1]`},
	{"shell", "RM", `"/bin/zsh"`, `"/bin/"`},
	{"fallbackShell", "S", `"/bin/zsh"`, `"bin/zsh"`},
	{"umask", "RM~", `"027"`, `"0o27"`},
	{"environment", "RM", `["A=b"]`, `["1A=b"]`},
	{"timeZone", "RM", `"Europe/Berlin"`, `"a'b"`},
	{"preferredLanguage", "RM", `"de_DE.UTF-8"`, `"de DE"`},
	{"additionalLanguages", "RM", `["fr"]`, `["."]`},
	{"niceLevel", "RM~", `5`, `20`},
	{"resourceLimits", "RM~", `{"RLIMIT_CORE":{"cur":1,"max":null}}`, `{"RLIMIT_CORE":{"cur":1}}`},
	{"capabilityBoundingSet", "RM", `["cap_kill"]`, `"cap_kill"`},
	{"capabilityAmbientSet", "RM", `["cap_kill"]`, `["a\\b"]`},
	{"defaultArea", "RMS", `"area"`, `".."`},
	{"preferredSessionType", "RM", `"wayland"`, `"a\tb"`},
	{"preferredSessionLauncher", "RM", `"kde"`, `1`},
	{"autoLogin", "RM", `true`, `1`},
	{"stopDelayUSec", "RM~", `5`, `"5 s"`},
	{"killProcesses", "RM", `true`, `null`},
	{"tmpLimit", "RM~", `5`, `true`},
	{"tmpLimitScale", "RM~", `5`, `4294967296`},
	{"devShmLimit", "RM~", `5`, `"-5"`},
	{"devShmLimitScale", "RM~", `5`, `[]`},
	{"locked", "RM", `true`, `"true"`},
	{"notBeforeUSec", "RM~", `5`, `{}`},
	{"notAfterUSec", "RM~", `5`, `{}`},
	{"rateLimitIntervalUSec", "RM~", `5`, `false`},
	{"rateLimitBurst", "RM~", `5`, `false`},
	{"enforcePasswordPolicy", "RM", `false`, `0`},
	{"passwordChangeMinUSec", "RM~", `5`, `""`},
	{"passwordChangeMaxUSec", "RM~", `5`, `"5s"`},
	{"passwordChangeWarnUSec", "RM~", `5`, `" 5"`},
	{"passwordChangeInactiveUSec", "RM~", `5`, `"+5"`},
	{"passwordChangeNow", "RM", `true`, `"yes"`},
	{"pkcs11TokenUri", "RM", `["pkcs11:token=x"]`, `["pkcs11:"]`},
	{"fido2HmacCredential", "RM", `["AAAA"]`, `["AAA"]`},
	{"recoveryKeyType", "R", `["modhex64"]`, `"modhex64"`},
	{"passwordHint", "P", `"hint"`, `1`},
	{"hashedPassword", "P~", `["$6$x"]`, `["a'b"]`},
	{"sshAuthorizedKeys", "P~", `"ssh-ed25519 A"`, `[1]`},
	{"pkcs11EncryptedKey", "P", `[{"uri":"pkcs11:x","data":"AAAA","hashedPassword":"h","padding":"oaep-sha1"}]`, `[{"uri":"pkcs11:x","data":"AAAA","hashedPassword":"h","padding":"none"}]`},
	{"fido2HmacSalt", "P", `[{"credential":"AAAA","salt":"AAAA","hashedPassword":"h","up":true}]`, `[{"credential":"AAAA","salt":"AAAA","hashedPassword":"h","up":1}]`},
	{"recoveryKey", "P", `[{"type":"modhex64","hashedPassword":"h"}]`, `[{"type":"modhex64"}]`},
	{"storage", "RMB", `"cifs"`, `"nfs"`},
	{"imagePath", "RMB", `"/dev/x"`, `"/a/../b"`},
	{"homeDirectory", "RB", `"/srv/ann"`, `"/srv:ann"`},
	{"fallbackHomeDirectory", "S", `"/x"`, `"x"`},
	{"useFallback", "S", `true`, `1`},
	{"uid", "RMB", `60123`, `65535`},
	{"gid", "RMB", `60123`, `"60123"`},
	{"memberOf", "RM", `["wheel"]`, `["-1"]`},
	{"skeletonDirectory", "RM", `"/skel"`, `"skel"`},
	{"accessMode", "RMS~", `493`, `"8"`},
	{"diskSize", "RMS~", `5`, `-1`},
	{"diskSizeRelative", "RM~", `5`, `-1`},
	{"fileSystemType", "RMBS", `"ext4"`, `"a\\b"`},
	{"partitionUuid", "RMB", `"12345678-90ab-cdef-1234-567890abcdef"`, `"x"`},
	{"luksUuid", "RMB", `"urn:uuid:12345678-90ab-cdef-1234-567890abcdef"`, `"urn:uuid:1234567890abcdef1234567890abcdef"`},
	{"fileSystemUuid", "RMB", `"12345678-90ab-cdef-1234-567890abcdef"`, `1`},
	{"luksDiscard", "RM~", `true`, `1`},
	{"luksOfflineDiscard", "RM~", `true`, `"x"`},
	{"luksCipher", "RMB", `"serpent"`, `"a\"b"`},
	{"luksCipherMode", "RMB", `"cbc-plain"`, `1`},
	{"luksVolumeKeySize", "RMB~", `64`, `"x"`},
	{"luksPbkdfType", "RM", `"pbkdf2"`, `1`},
	{"luksPbkdfHashAlgorithm", "RM", `"sha256"`, `1`},
	{"luksPbkdfForceIterations", "RM~", `1000`, `"x"`},
	{"luksPbkdfTimeCostUSec", "RM~", `5`, `"x"`},
	{"luksPbkdfMemoryCost", "RM~", `5`, `"x"`},
	{"luksPbkdfParallelThreads", "RM~", `5`, `"x"`},
	{"luksSectorSize", "RM~", `4096`, `"x"`},
	{"luksExtraMountOptions", "RM", `"ro"`, `1`},
	{"dropCaches", "RM", `true`, `1`},
	{"autoResizeMode", "RM~", `"grow"`, `"shrink"`},
	{"rebalanceWeight", "RM~", `7`, `10001`},
	{"mountNoDevices", "RM", `false`, `0`},
	{"mountNoSuid", "RM", `false`, `0`},
	{"mountNoExecute", "RM", `true`, `0`},
	{"cifsDomain", "RM", `"d"`, `"a\\b"`},
	{"cifsUserName", "RM", `"u"`, `1`},
	{"cifsService", "RM", `"//h/s"`, `"\\\\h\\s"`},
	{"cifsExtraMountOptions", "RM", `"ro"`, `1`},
	{"tasksMax", "RM", `5`, `"5"`},
	{"memoryHigh", "RM", `5`, `0`},
	{"memoryMax", "RM", `5`, `18446744073709551615`},
	{"cpuWeight", "RM", `5`, `10001`},
	{"ioWeight", "RM", `5`, `0`},
	{"blobDirectory", "RMB", `"/blobs"`, `"blobs"`},
	{"blobManifest", "RM", `{"a":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`, `{".a":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`},
	{"diskUsage", "S~", `5`, `"x"`},
	{"diskFree", "S~", `5`, `"x"`},
	{"diskCeiling", "S~", `5`, `"x"`},
	{"diskFloor", "S~", `5`, `"x"`},
	{"state", "S", `"active"`, `1`},
	{"signedLocally", "S~", `true`, `1`},
	{"goodAuthenticationCounter", "S~", `5`, `"x"`},
	{"badAuthenticationCounter", "S~", `5`, `"x"`},
	{"lastGoodAuthenticationUSec", "S~", `5`, `"x"`},
	{"lastBadAuthenticationUSec", "S~", `5`, `"x"`},
	{"rateLimitBeginUSec", "S~", `5`, `"x"`},
	{"rateLimitCount", "S~", `5`, `"x"`},
	{"removable", "S", `true`, `1`},
	{"matchMachineId", "M", ``, ``},
	{"matchNotMachineId", "M", ``, ``},
	{"matchHostname", "M", ``, ``},
	{"matchNotHostname", "M", ``, ``},
}

var sectionLetters = map[rune]section{'R': regular, 'M': perMachine, 'B': binding, 'S': status, 'P': privileged}

// fieldIn returns a record with one field in one section. Its machine is "m".
func fieldIn(t *testing.T, in section, name, value string) *Record {
	t.Helper()
	const id = "0123456789abcdef0123456789abcdef"
	member := fmt.Sprintf(`%q:%s`, name, value)
	text := map[section]string{
		regular:    `{"userName":"ann",` + member + `}`,
		perMachine: `{"userName":"ann","perMachine":[{"matchMachineId":"` + id + `",` + member + `}]}`,
		binding:    `{"userName":"ann","binding":{"` + id + `":{` + member + `}}}`,
		status:     `{"userName":"ann","status":{"` + id + `":{` + member + `}}}`,
		privileged: `{"userName":"ann","privileged":{` + member + `}}`,
	}[in]
	if name == "userName" && in == regular {
		text = `{` + member + `}`
	}
	return mustParse(t, []byte(text), HostFile)
}

// meaning is all that anybody learns of a record from this package, and what
// they learn who ask for one field by its name.
func meaning(r *Record, m Machine, name string) string {
	v := r.View(m)
	e := r.Effective(m)
	blobs, _ := r.Manifest(m)
	bound, _ := r.Binding(m.ID)
	return fmt.Sprintf("%#v %#v %v %v %v", r.Counters(m.ID), bound, blobs, r.Aliases(), deref(v)) +
		fmt.Sprintln(e.Text(name), e.Texts(name), deref(e.Number(name)), deref(e.Bool(name)))
}

// deref prints what pointers lead to, in which %v would not be interested.
func deref(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// TestCatalogue: every field counts where it may stand and nowhere else, its
// rule holds, what breaks it is named without telling what is private, and
// somebody can ask for it.
func TestCatalogue(t *testing.T) {
	m := Machine{ID: "0123456789abcdef0123456789abcdef", Hostname: "vm"}
	seen := map[string]bool{}
	for _, c := range catalogue {
		seen[c.name] = true
		f, ok := fields[c.name]
		if !ok {
			t.Errorf("%s is not known", c.name)
			continue
		}
		var in section
		for letter, s := range sectionLetters {
			if strings.ContainsRune(c.in, letter) {
				in |= s
			}
		}
		if in != f.in || strings.Contains(c.in, "~") != f.flex {
			t.Errorf("%s counts in sections %b, null unsets: %v, want %s", c.name, f.in, f.flex, c.in)
		}
		if c.good == "" {
			continue // the conditions of perMachine, see TestMatching
		}
		for _, s := range sectionLetters {
			if c.name == "userName" {
				continue // no record is without
			}
			bare, good, bad := meaning(fieldIn(t, s, "x-none", "1"), m, c.name), fieldIn(t, s, c.name, c.good), fieldIn(t, s, c.name, c.bad)
			if s&in == 0 {
				if meaning(good, m, c.name) != bare {
					t.Errorf("%s counts in section %b: %s", c.name, s, good.Compact())
				}
				continue
			}
			if meaning(good, m, c.name) == bare {
				t.Errorf("nobody can ask for %s in section %b: %s", c.name, s, good.Compact())
			}
			if err := good.Validate(m); err != nil {
				t.Errorf("%s: %v", good.Compact(), err)
			}
			if meaning(bad, m, c.name) != bare {
				t.Errorf("%s counts though it is wrong: %s", c.name, bad.Compact())
			}
			err := bad.Validate(m)
			if !fault.Is(err, fault.InvalidArgs) || !strings.Contains(err.Error(), "field "+c.name+": ") || !strings.Contains(err.Error(), " is not "+f.rule) {
				t.Errorf("%s: %v", bad.Compact(), err)
				continue
			}
			private := s == privileged || c.name == "realName" || c.name == "location" || c.name == "emailAddress" || c.name == "birthDate"
			if strings.Contains(err.Error(), ": "+c.bad+" is not ") == (private || len(c.bad) > 64) {
				t.Errorf("%s: %v", bad.Compact(), err)
			}
			null := fieldIn(t, s, c.name, "null")
			if err := null.Validate(m); (err == nil) != f.flex || meaning(null, m, c.name) != bare {
				t.Errorf("%s: %v", null.Compact(), err)
			}
			over := mustParse(t, []byte(strings.Replace(string(good.Compact()), `"userName":"ann",`, `"userName":"ann","x":1,`, 1)), HostFile)
			if meaning(over, m, c.name) != meaning(good, m, c.name) {
				t.Errorf("%s means something else beside an unknown field", c.name)
			}
		}
	}
	for name := range fields {
		if !seen[name] {
			t.Errorf("%s is in no catalogue", name)
		}
	}
	if len(catalogue) != len(seen) {
		t.Error("a field stands there twice")
	}
}

// TestNullUnsetsForHere: null in an entry for this machine takes the regular
// value back where null may stand, and is ignored where it may not.
func TestNullUnsetsForHere(t *testing.T) {
	m := Machine{ID: "0123456789abcdef0123456789abcdef", Hostname: "vm"}
	for _, c := range catalogue {
		if !strings.Contains(c.in, "R") || !strings.Contains(c.in, "M") {
			continue
		}
		with := func(name, here string) string {
			text := fmt.Sprintf(`{"userName":"ann",%q:%s,"perMachine":[{"matchMachineId":%q,%q:null}]}`, name, c.good, m.ID, here)
			return meaning(mustParse(t, []byte(text), HostFile), m, c.name)
		}
		got, want := with(c.name, c.name), with(c.name, "x-none")
		if strings.Contains(c.in, "~") {
			want = with("x-none", "x-none")
		}
		if got != want {
			t.Errorf("%s: null in an entry leaves %s, want %s", c.name, got, want)
		}
	}
}

// TestLongValuesStayOutOfMessages: a message is read by people.
func TestLongValuesStayOutOfMessages(t *testing.T) {
	for value, want := range map[string]string{
		`"` + strings.Repeat("/a", 100) + `/"`: "field shell: its value is not an absolute",
		`"a\u0007\u009bb"`:                     `field shell: "a\u0007?b" is not an absolute`,
	} {
		_, err := Parse([]byte(`{"userName":"ann","shell":`+value+`}`), BusCreate)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
