package records

import (
	"math"
	"math/bits"
	"slices"
	"strings"
)

// A View is what a record means on one machine: the regular section, over it
// the perMachine entries that match, the binding and the status, with the
// defaults put in. Times are microseconds, since 1970 where they are points in
// time; sizes are bytes. nil and "" mean unset.
type View struct {
	UserName, Realm, RealName, HomeDirectory, ImagePath, Shell string
	// Storage is "" when nobody chose one yet; ImagePath's default follows it.
	Storage, Disposition, SkeletonDirectory string
	Service                                 string
	UID, GID                                uint32
	HasUID                                  bool
	FileSystemType                          string // default btrfs; HasFileSystemType: chosen by someone
	HasFileSystemType                       bool
	AccessMode                              uint32
	NoDevices, NoSuid, NoExec               bool
	DiskSize                                *uint64
	DiskSizeRelative                        *uint64 // of 2^32-1
	LUKS                                    LUKSView
	CIFSService, CIFSUserName, CIFSDomain   string
	CIFSExtraMountOptions                   string
	AutoResizeMode                          string // off, grow or shrink-and-grow
	HasAutoResizeMode                       bool
	RebalanceWeight                         uint64 // 0: off
	HasRebalanceWeight                      bool
	DropCaches                              bool
	StopDelayUSec                           uint64
	HasStopDelay                            bool

	HashedPasswords []string
	RecoveryHashes  []string
	HasTokens       bool
	// PasswordOnly: nothing but a password opens the home.
	PasswordOnly bool

	RateLimitIntervalUSec, RateLimitBurst uint64
	EnforcePasswordPolicy                 *bool

	Locked                                             bool
	NotBeforeUSec, NotAfterUSec                        *uint64
	LastChangeUSec, LastPasswordChangeUSec             *uint64
	PasswordChangeMinUSec, PasswordChangeMaxUSec       *uint64
	PasswordChangeWarnUSec, PasswordChangeInactiveUSec *uint64
	PasswordChangeNow                                  bool

	MemberOf, Environment []string

	PartitionUUID, LUKSUUID, FileSystemUUID string // dashed, lower case

	// What the status says in a reply. While UseFallback is set a login gets
	// the fallback shell and directory.
	UseFallback                          bool
	FallbackShell, FallbackHomeDirectory string
	State                                string
	SignedLocally                        *bool
	RateLimitBeginUSec, RateLimitCount   *uint64

	Login LoginView
}

// LUKSView holds the fields that a LUKS2 home is made and opened by.
type LUKSView struct {
	Discard, OfflineDiscard bool
	Cipher, CipherMode      string
	VolumeKeySize           int
	PBKDFType, PBKDFHash    string
	PBKDFForceIterations    *uint64
	PBKDFTimeCostUSec       uint64
	PBKDFMemoryCost         uint64 // 0 for pbkdf2
	PBKDFParallel           uint32 // 0 for pbkdf2
	SectorSize              uint32 // 0: choose
	ExtraMountOptions       string
}

// LoginView holds what a session is set up by.
type LoginView struct {
	Umask                                                        *uint32
	NiceLevel                                                    *int
	TimeZone, EmailAddress, IconName, Location, DefaultArea      string
	Languages                                                    []string // preferred first
	ResourceLimits                                               map[string]ResourceLimit
	CapabilityBounding, CapabilityAmbient                        []string // nil: unset
	PreferredSessionType, PreferredSessionLauncher, PasswordHint string
	AutoLogin                                                    bool
	KillProcesses                                                *bool
	TasksMax, MemoryHigh, MemoryMax, CPUWeight, IOWeight         *uint64
	SSHAuthorizedKeys                                            []string
	TmpLimit, DevShmLimit                                        ShareLimit
}

// A ShareLimit bounds what a user may keep in a file system of the machine:
// the lower of both values counts. Bytes 2^64-1 is no bound in bytes.
type ShareLimit struct {
	Bytes uint64
	Scale uint32 // of 2^32-1, the whole file system
	Set   bool   // the record says so; otherwise it is the default of users like this
}

// A ResourceLimit holds both values of one limit; 2^64-1 is infinity.
type ResourceLimit struct{ Cur, Max uint64 }

type layer struct {
	in  section
	obj *value
}

// layers are the objects that count on a machine, the last one wins.
type layers []layer

func (r *Record) layers(m Machine) layers {
	l := layers{{regular, r.doc}}
	if entries := r.doc.get("perMachine"); entries.is(array) {
		for _, e := range entries.list {
			if m.matches(e) {
				l = append(l, layer{perMachine, e})
			}
		}
	}
	for _, s := range []struct {
		in  section
		key string
	}{{binding, "binding"}, {status, "status"}} {
		if obj := r.doc.get(s.key).get(m.ID); obj.is(object) {
			l = append(l, layer{s.in, obj})
		}
	}
	return l
}

// matches reports whether any of the conditions of a perMachine entry holds.
func (m Machine) matches(entry *value) bool {
	id := parseID(m.ID)
	hasID := func(v *value) bool {
		return slices.ContainsFunc(texts(v), func(s string) bool { return id != "" && parseID(s) == id })
	}
	hasHost := func(v *value) bool { return !localHost(m.Hostname) && slices.Contains(texts(v), m.Hostname) }
	for _, c := range []struct {
		key  string
		want bool
		test func(*value) bool
	}{{"matchMachineId", true, hasID}, {"matchNotMachineId", false, hasID}, {"matchHostname", true, hasHost}, {"matchNotHostname", false, hasHost}} {
		if v := entry.get(c.key); v != nil && c.test(v) == c.want {
			return true
		}
	}
	return false
}

// localHost reports whether a node name says nothing about the machine.
func localHost(name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for _, l := range []string{"localhost", "localhost.localdomain", "localhost4", "localhost4.localdomain4", "localhost6", "localhost6.localdomain6"} {
		if name == l {
			return true
		}
	}
	return name == "" || name == "(none)" || strings.HasSuffix(name, ".localhost") || strings.HasSuffix(name, ".localhost.localdomain")
}

// last returns the value that counts, or nil. What has a wrong type does not
// count; null unsets a field that may be null.
func (l layers) last(name string) *value {
	f := fields[name]
	var got *value
	for _, y := range l {
		if f.in&y.in == 0 {
			continue
		}
		v := y.obj.get(name)
		switch {
		case v == nil:
		case f.flex && v.kind == null:
			got = nil
		case f.valid(v):
			got = v
		}
	}
	return got
}

func (l layers) text(name, unset string) string { return l.last(name).textOr(unset) }

func (l layers) bool(name string, unset bool) bool {
	if v := l.last(name); v.is(boolean) {
		return v.num != 0
	}
	return unset
}

func (l layers) maybe(name string) *bool {
	v := l.last(name)
	if !v.is(boolean) {
		return nil
	}
	b := v.num != 0
	return &b
}

func (l layers) u64(name string) *uint64 {
	n, ok := toU64(l.last(name))
	if !ok {
		return nil
	}
	return &n
}

func (l layers) u64Or(name string, unset uint64) uint64 {
	if n := l.u64(name); n != nil {
		return *n
	}
	return unset
}

func (l layers) mode(name string) *uint32 {
	v := l.last(name)
	if v == nil {
		return nil
	}
	n, _ := toMode(v)
	m := uint32(n)
	return &m
}

// texts returns a list of strings, nil when unset or empty. A later layer
// replaces what earlier ones say, but for the few lists that add up.
func (l layers) texts(name string) []string {
	switch name {
	case "memberOf", "aliases":
		return unique(l.all(name))
	case "fido2HmacCredential":
		return l.all(name)
	}
	if list := texts(l.last(name)); len(list) > 0 {
		return list
	}
	return nil
}

// all joins a list over all layers.
func (l layers) all(name string) []string {
	f := fields[name]
	var out []string
	for _, y := range l {
		if v := y.obj.get(name); f.in&y.in != 0 && f.valid(v) {
			out = append(out, texts(v)...)
		}
	}
	return out
}

// View returns what the record means on machine m.
func (r *Record) View(m Machine) View {
	l := r.layers(m)
	p := layers{{privileged, r.doc.get("privileged")}}
	name := r.UserName()
	v := View{
		UserName:          name,
		Realm:             r.Realm(),
		RealName:          mangleGECOS(l.text("realName", name)),
		Storage:           l.text("storage", ""),
		SkeletonDirectory: l.text("skeletonDirectory", "/etc/skel"),
		Service:           l.text("service", ""),
		FileSystemType:    l.text("fileSystemType", "btrfs"),
		HasFileSystemType: l.last("fileSystemType") != nil,
		AccessMode:        0o700,
		NoDevices:         l.bool("mountNoDevices", true),
		NoSuid:            l.bool("mountNoSuid", true),
		NoExec:            l.bool("mountNoExecute", false),
		DiskSize:          l.u64("diskSize"),
		DiskSizeRelative:  l.u64("diskSizeRelative"),

		CIFSService:           l.text("cifsService", ""),
		CIFSUserName:          l.text("cifsUserName", name),
		CIFSDomain:            l.text("cifsDomain", ""),
		CIFSExtraMountOptions: l.text("cifsExtraMountOptions", ""),

		StopDelayUSec: l.u64Or("stopDelayUSec", 0),
		HasStopDelay:  l.last("stopDelayUSec") != nil,

		HashedPasswords: p.texts("hashedPassword"),
		HasTokens:       p.hasEntries("pkcs11EncryptedKey") || p.hasEntries("fido2HmacSalt"),

		RateLimitIntervalUSec: l.u64Or("rateLimitIntervalUSec", 60e6),
		RateLimitBurst:        l.u64Or("rateLimitBurst", 30),
		EnforcePasswordPolicy: l.maybe("enforcePasswordPolicy"),

		Locked:                     l.bool("locked", false),
		NotBeforeUSec:              l.u64("notBeforeUSec"),
		NotAfterUSec:               l.u64("notAfterUSec"),
		LastChangeUSec:             l.u64("lastChangeUSec"),
		LastPasswordChangeUSec:     l.u64("lastPasswordChangeUSec"),
		PasswordChangeMinUSec:      l.u64("passwordChangeMinUSec"),
		PasswordChangeMaxUSec:      l.u64("passwordChangeMaxUSec"),
		PasswordChangeWarnUSec:     l.u64("passwordChangeWarnUSec"),
		PasswordChangeInactiveUSec: l.u64("passwordChangeInactiveUSec"),
		PasswordChangeNow:          l.bool("passwordChangeNow", false),

		MemberOf:    l.texts("memberOf"),
		Environment: environment(l.texts("environment")),

		PartitionUUID:  dashed(l.text("partitionUuid", "")),
		LUKSUUID:       dashed(l.text("luksUuid", "")),
		FileSystemUUID: dashed(l.text("fileSystemUuid", "")),

		UseFallback:           l.bool("useFallback", false),
		FallbackShell:         l.text("fallbackShell", ""),
		FallbackHomeDirectory: l.text("fallbackHomeDirectory", ""),
		State:                 l.text("state", ""),
		SignedLocally:         l.maybe("signedLocally"),
		RateLimitBeginUSec:    l.u64("rateLimitBeginUSec"),
		RateLimitCount:        l.u64("rateLimitCount"),
	}
	if mode := l.mode("accessMode"); mode != nil {
		v.AccessMode = *mode
	}
	if uid := l.u64("uid"); uid != nil {
		v.UID, v.GID, v.HasUID = uint32(*uid), uint32(*uid), true
	}
	if gid := l.u64("gid"); gid != nil {
		v.GID = uint32(*gid)
	}
	v.Disposition = l.text("disposition", derivedDisposition(name, v.UID, v.HasUID))
	v.paths(l, m)
	v.LUKS = luksView(l, v.ImagePath)
	v.AutoResizeMode, v.HasAutoResizeMode = autoResize(l.last("autoResizeMode"), v.Storage)
	v.RebalanceWeight, v.HasRebalanceWeight = rebalanceWeight(l.last("rebalanceWeight"))
	v.DropCaches = l.bool("dropCaches", v.Storage == "fscrypt")
	for _, e := range p.entries("recoveryKey") {
		v.RecoveryHashes = append(v.RecoveryHashes, e.get("hashedPassword").str)
	}
	v.PasswordOnly = len(v.HashedPasswords) > 0 && !v.HasTokens && len(v.RecoveryHashes) == 0 &&
		len(l.texts("recoveryKeyType")) == 0 && len(l.texts("pkcs11TokenUri")) == 0 && len(l.texts("fido2HmacCredential")) == 0
	v.Login = loginView(l, p)
	v.Login.TmpLimit = l.shareLimit("tmpLimit", v.Disposition)
	v.Login.DevShmLimit = l.shareLimit("devShmLimit", v.Disposition)
	return v
}

// paths fills in home directory, image path and shell.
func (v *View) paths(l layers, m Machine) {
	v.HomeDirectory = l.text("homeDirectory", "")
	if v.HomeDirectory == "" {
		switch {
		// A record without disposition becomes a regular user as soon as it
		// has a uid.
		case v.Disposition == "regular", v.Disposition == "":
			v.HomeDirectory = m.homeRoot() + "/" + v.UserName
		case v.UserName == "root":
			v.HomeDirectory = "/root"
		default:
			v.HomeDirectory = "/"
		}
	}
	v.ImagePath = l.text("imagePath", "")
	if v.ImagePath == "" {
		switch v.Storage {
		case "luks":
			v.ImagePath = m.homeRoot() + "/" + withRealm(v.UserName, v.Realm) + ".home"
		case "directory", "subvolume", "fscrypt":
			v.ImagePath = m.homeRoot() + "/" + withRealm(v.UserName, v.Realm) + ".homedir"
		case "classic":
			v.ImagePath = v.HomeDirectory
		}
	}
	v.Shell = l.text("shell", "")
	if v.Shell == "" {
		switch {
		case v.UserName == "root":
			v.Shell = "/bin/sh"
		case v.Disposition == "regular", v.Disposition == "":
			v.Shell = "/bin/bash"
		default:
			v.Shell = "/usr/sbin/nologin"
		}
	}
}

func luksView(l layers, image string) LUKSView {
	device := strings.HasPrefix(image, "/dev/")
	k := LUKSView{
		Discard:              l.bool("luksDiscard", device),
		Cipher:               l.text("luksCipher", "aes"),
		CipherMode:           l.text("luksCipherMode", "xts-plain64"),
		VolumeKeySize:        int(min(l.u64Or("luksVolumeKeySize", 32), math.MaxInt32)),
		PBKDFType:            l.text("luksPbkdfType", "argon2id"),
		PBKDFHash:            l.text("luksPbkdfHashAlgorithm", "sha512"),
		PBKDFForceIterations: l.u64("luksPbkdfForceIterations"),
		PBKDFTimeCostUSec:    l.u64Or("luksPbkdfTimeCostUSec", 500000),
		PBKDFMemoryCost:      l.u64Or("luksPbkdfMemoryCost", 64<<20),
		PBKDFParallel:        uint32(min(l.u64Or("luksPbkdfParallelThreads", 1), math.MaxUint32)),
		ExtraMountOptions:    l.text("luksExtraMountOptions", ""),
	}
	k.OfflineDiscard = l.bool("luksOfflineDiscard", image != "" && (k.Discard || !device))
	if k.PBKDFType == "pbkdf2" {
		k.PBKDFMemoryCost, k.PBKDFParallel = 0, 0
	}
	if n := k.PBKDFForceIterations; n != nil {
		*n = min(max(*n, 1), math.MaxUint32)
	}
	if n := l.u64("luksSectorSize"); n != nil {
		k.SectorSize = 512
		if *n > 0 {
			k.SectorSize = uint32(min(max(uint64(1)<<(bits.Len64(*n)-1), 512), 4096))
		}
	}
	return k
}

func autoResize(v *value, storage string) (mode string, set bool) {
	switch {
	case v.is(text):
		return v.str, true
	case v.is(boolean) && v.num == 0:
		return "off", true
	case v.is(boolean):
		return "shrink-and-grow", true
	case storage == "luks":
		return "shrink-and-grow", false
	}
	return "off", false
}

func rebalanceWeight(v *value) (weight uint64, set bool) {
	switch {
	case v == nil, v.is(boolean) && v.num != 0:
		return 100, v != nil
	case v.is(boolean):
		return 0, true
	}
	_, n := v.canonical()
	return n, true
}

func loginView(l, p layers) LoginView {
	v := LoginView{
		Umask:                    l.mode("umask"),
		TimeZone:                 l.text("timeZone", ""),
		EmailAddress:             l.text("emailAddress", ""),
		IconName:                 l.text("iconName", ""),
		Location:                 l.text("location", ""),
		DefaultArea:              l.text("defaultArea", ""),
		Languages:                l.texts("additionalLanguages"),
		ResourceLimits:           l.limits(),
		CapabilityBounding:       l.texts("capabilityBoundingSet"),
		CapabilityAmbient:        l.texts("capabilityAmbientSet"),
		PreferredSessionType:     l.text("preferredSessionType", ""),
		PreferredSessionLauncher: l.text("preferredSessionLauncher", ""),
		PasswordHint:             p.text("passwordHint", ""),
		AutoLogin:                l.bool("autoLogin", false),
		KillProcesses:            l.maybe("killProcesses"),
		TasksMax:                 l.u64("tasksMax"),
		MemoryHigh:               l.u64("memoryHigh"),
		MemoryMax:                l.u64("memoryMax"),
		CPUWeight:                l.u64("cpuWeight"),
		IOWeight:                 l.u64("ioWeight"),
		SSHAuthorizedKeys:        p.texts("sshAuthorizedKeys"),
	}
	if first := l.text("preferredLanguage", ""); first != "" {
		v.Languages = append([]string{first}, v.Languages...)
	}
	v.Languages = unique(v.Languages)
	if n, ok := toInt(orNull(l.last("niceLevel"))); ok {
		i := int(n)
		v.NiceLevel = &i
	}
	return v
}

func orNull(v *value) *value {
	if v == nil {
		return &value{}
	}
	return v
}

// limits merges the resource limits, limit by limit.
func (l layers) limits() map[string]ResourceLimit {
	var out map[string]ResourceLimit
	for _, y := range l {
		v := y.obj.get("resourceLimits")
		if y.in&rM == 0 || v == nil {
			continue
		}
		if v.kind == null {
			out = nil
		} else if isLimits(v) {
			for _, m := range v.members {
				if out == nil {
					out = map[string]ResourceLimit{}
				}
				bound := func(key string) uint64 {
					if n, ok := toU64(m.value.get(key)); ok {
						return n
					}
					return math.MaxUint64
				}
				out[m.key] = ResourceLimit{bound("cur"), bound("max")}
			}
		}
	}
	return out
}

// shareLimit merges a limit in bytes and its share of the whole. null for
// either takes back both.
func (l layers) shareLimit(name, disposition string) ShareLimit {
	const all, regular = math.MaxUint32, 3435973836 // 100 %, 80 %
	var size, scale *uint64
	for _, y := range l {
		a, b := y.obj.get(name), y.obj.get(name+"Scale")
		if y.in&rM == 0 {
			continue
		}
		if a.is(null) || b.is(null) {
			size, scale = nil, nil
		}
		if n, ok := toU64(a); ok && fields[name].valid(a) {
			size = &n
		}
		if n, ok := toU64(b); ok && fields[name+"Scale"].valid(b) {
			scale = &n
		}
	}
	out := ShareLimit{Bytes: math.MaxUint64, Scale: all, Set: size != nil || scale != nil}
	if size != nil {
		out.Bytes = *size
	}
	if scale != nil {
		out.Scale = uint32(*scale)
	} else if !out.Set && disposition == "regular" {
		out.Scale = regular
	}
	return out
}

// entries returns the objects of a list field of one section, those left out
// that break its rules: the others still open a home.
func (l layers) entries(name string) []*value {
	var out []*value
	for _, y := range l {
		f := fields[name]
		if v := y.obj.get(name); f.in&y.in != 0 && f.each != nil && v.is(array) {
			out = nil
			for _, e := range v.list {
				if f.each(e) {
					out = append(out, e)
				}
			}
		}
	}
	return out
}

func (l layers) hasEntries(name string) bool { return len(l.entries(name)) > 0 }

// environment lets a later assignment replace an earlier one in its place.
func environment(list []string) []string {
	var out []string
	place := make(map[string]int, len(list))
	for _, s := range list {
		name, _, _ := strings.Cut(s, "=")
		if i, ok := place[name]; ok {
			out[i] = s
			continue
		}
		place[name] = len(out)
		out = append(out, s)
	}
	return out
}

// mangleGECOS replaces what /etc/passwd cannot hold by spaces.
func mangleGECOS(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == ':' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// Ranges of uids that a distribution hands out for itself.
const (
	systemMax              = 999
	firstHome, lastHome    = 60001, 60513
	firstGreet, lastGreet  = 60578, 60705
	firstDyn, lastDyn      = 61184, 65519
	nobodyUID              = 65534
	firstNspawn, lastNsp   = 524288, 1879048191
	firstForeign, lastFrgn = 2147352576, 2147418111
)

// DispositionOf says what kind of user a name and uid make where no record
// says so.
func DispositionOf(name string, uid uint32) string { return derivedDisposition(name, uid, true) }

// derivedDisposition says what kind of user a uid makes.
func derivedDisposition(name string, uid uint32, has bool) string {
	switch {
	case !has:
		return ""
	case uid == 0 || name == "root" || uid == nobodyUID || name == "nobody":
		return "intrinsic"
	case uid <= systemMax:
		return "system"
	case uid >= firstDyn && uid <= lastDyn, uid >= firstGreet && uid <= lastGreet:
		return "dynamic"
	case uid >= firstNspawn && uid <= lastNsp:
		return "container"
	case uid >= firstForeign && uid <= lastFrgn:
		return "foreign"
	case uid > math.MaxInt32:
		return "reserved"
	}
	return "regular"
}

// LastChangeUSec returns when the record was last changed; 0 if it does not
// say, which counts as older than anything.
func (r *Record) LastChangeUSec() uint64 {
	return layers{{regular, r.doc}}.u64Or("lastChangeUSec", 0)
}

// compareChange orders two records by age: -1 when a is older. A record that
// does not say is older than one that says 0.
func compareChange(a, b *Record) int {
	x, y := layers{{regular, a.doc}}.u64("lastChangeUSec"), layers{{regular, b.doc}}.u64("lastChangeUSec")
	switch {
	case x == nil && y == nil:
		return 0
	case x == nil:
		return -1
	case y == nil:
		return 1
	case *x < *y:
		return -1
	case *x > *y:
		return 1
	}
	return 0
}
