// Package show renders a user record as a person reads it. It knows labels,
// units and colours; what the fields mean it asks of records. It makes no
// look-up of its own: clock, zone and group names are arguments.
package show

import (
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"hearth/records"
)

// Options are what the text depends on beside the record.
type Options struct {
	Machine records.Machine
	Now     time.Time
	Zone    *time.Location
	Colour  bool
	// ASCII draws the tree of blobs without line characters.
	ASCII bool
	// Incomplete says that the privileged section was withheld.
	Incomplete bool
	// GroupName finds the name of a GID other than the user's own.
	GroupName func(gid uint32) (string, error)
}

// The colours of systemd's tools.
const (
	red    = "\x1b[0;1;31m"
	green  = "\x1b[0;1;32m"
	yellow = "\x1b[0;1;33m"
	bold   = "\x1b[0;1;39m"
	grey   = "\x1b[0;90m"
	plain  = "\x1b[0m"
)

// JSON returns the record pretty printed, members in the record's order, with a
// newline at the end.
func JSON(r *records.Record) []byte { return r.PrettyAsIs() }

type writer struct {
	strings.Builder
	o Options
	e records.Effective
	v records.View
}

// Text returns the description of a record, one "LABEL: VALUE" per line.
func Text(r *records.Record, o Options) string {
	w := &writer{o: o, e: r.Effective(o.Machine), v: r.View(o.Machine)}
	w.identity(r)
	w.place()
	w.account()
	w.limits()
	w.storage()
	w.disk()
	w.authentication(r)
	w.policy()
	w.credentials()
	w.session()
	w.selfModifiable()
	return w.String()
}

func (w *writer) line(label, format string, a ...any) {
	fmt.Fprintf(w, "%12s: %s\n", label, clean(fmt.Sprintf(format, a...)))
}

// clean keeps control characters of a record off the terminal; colours of our
// own pass, since they are added by paint with a marker no record can hold.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == marker:
			return 0x1b
		case r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0:
			return '�'
		}
		return r
	}, s)
}

// marker stands for ESC until clean has run. paint takes it out of whatever
// comes from the record.
const marker = '\U0010FFFF'

func (w *writer) paint(colour, s string) string {
	// Nothing of the record may pose as one of our colours.
	s = strings.ReplaceAll(s, string(marker), "�")
	if !w.o.Colour || colour == "" {
		return s
	}
	return strings.ReplaceAll(colour, "\x1b", string(marker)) + s + string(marker) + "[0m"
}

func (w *writer) list(label string, items []string) {
	for i, s := range items {
		if i == 0 {
			w.line(label, "%s", w.paint("", s))
		} else {
			fmt.Fprintf(w, "%14s%s\n", "", clean(w.paint("", s)))
		}
	}
}

func (w *writer) text(label, field string) {
	if s := w.e.Text(field); s != "" {
		w.line(label, "%s", w.paint("", s))
	}
}

func (w *writer) bool(label, field string) {
	if b := w.e.Bool(field); b != nil {
		w.line(label, "%s", yesNo(*b))
	}
}

func (w *writer) number(label, field string, show func(uint64) string) {
	if n := w.e.Number(field); n != nil {
		w.line(label, "%s", show(*n))
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }

func (w *writer) now() uint64 { return uint64(w.o.Now.UnixMicro()) }

// stamp is a point in time, in microseconds since 1970, in the reader's zone.
func (w *writer) stamp(usec uint64) string {
	switch {
	case usec == 0:
		return "(null)"
	case usec > 253402214399000000:
		return "--- XXXX-XX-XX XX:XX:XX"
	}
	return time.UnixMicro(int64(usec)).In(w.o.Zone).Format("Mon 2006-01-02 15:04:05 MST")
}

var stateColour = map[string]string{"unfixated": grey, "absent": grey, "active": green, "locked": yellow, "dirty": yellow}

func (w *writer) identity(r *records.Record) {
	w.line("User name", "%s", w.paint("", r.FullName()))
	if a := r.Aliases(); len(a) > 0 {
		w.line("Alias", "%s", w.paint("", strings.Join(a, ", ")))
	}
	if w.v.State != "" {
		w.line("State", "%s", w.paint(stateColour[w.v.State], w.v.State))
	}
	w.line("Disposition", "%s", w.paint("", w.v.Disposition))
	if t := w.v.LastChangeUSec; t != nil {
		w.line("Last Change", "%s", w.stamp(*t))
		if *t > w.now() {
			fmt.Fprintf(w, "%14s%s\n", "", clean(w.paint(yellow, "Modification time lies in the future, system clock wrong?")))
		}
	}
	if t := w.v.LastPasswordChangeUSec; t != nil && (w.v.LastChangeUSec == nil || *t != *w.v.LastChangeUSec) {
		w.line("Last Passw.", "%s", w.stamp(*t))
	}
	if problem := w.loginProblem(r); problem != "" {
		w.line("Login OK", "%s", w.paint(red, "no")+" ("+problem+")")
	} else {
		w.line("Login OK", "%s", w.paint(green, "yes"))
	}
	w.passwordOK()
	if w.v.HasUID {
		w.line("UID", "%d", w.v.UID)
		w.line("GID", "%d%s", w.v.GID, w.groupName())
	}
	w.list("Aux. Groups", w.groups())
	w.text("UUID", "uuid")
}

func (w *writer) loginProblem(r *records.Record) string {
	switch w.v.Blocked(w.now()) {
	case records.IsLocked:
		return "record is locked"
	// The second parenthesis is in the text that scripts know.
	case records.NotYetValid:
		return "record not valid yet)"
	case records.NoLongerValid:
		return "record not valid anymore)"
	}
	if records.NoLogin(w.v.Shell) {
		return "nologin shell"
	}
	if next, known := r.Counters(w.o.Machine.ID).NextTry(w.v, w.now()); known && next > w.now() {
		return "ratelimit"
	}
	return ""
}

// passwordOK says how the password stands: by age first, then whether there is
// one at all.
func (w *writer) passwordOK() {
	if colour, text := w.passwordAge(); text != "" {
		w.line("Password OK", "%s", w.paint(colour, text))
		return
	}
	hashes := w.v.HashedPasswords
	switch {
	case len(hashes) == 0:
		if !w.o.Incomplete {
			w.line("Password OK", "%s", w.paint(bold, "no")+" (none set)")
		}
	case slices.Contains(hashes, ""):
		w.line("Password OK", "%s", w.paint(red, "no")+" (empty set)")
	case slices.ContainsFunc(hashes, func(h string) bool { return strings.HasPrefix(h, "$") }):
		w.line("Password OK", "%s", w.paint(green, "yes"))
	default:
		w.line("Password OK", "%s", w.paint(bold, "no")+" (locked)")
	}
}

func (w *writer) passwordAge() (colour, text string) {
	switch w.v.PasswordChange(w.now()) {
	case records.ChangeNow:
		return yellow, "change now"
	case records.PasswordExpired:
		return yellow, "expired (change now!)"
	case records.PasswordDead:
		return red, "expired (for good)"
	case records.ExpiresSoon:
		return yellow, "expires soon"
	case records.PasswordFromFuture:
		return yellow, "last password change in future"
	case records.ChangeNotPermitted:
		return yellow, "change not permitted"
	case records.NoPasswordTimestamp:
		return red, "no timestamp"
	}
	return "", ""
}

func (w *writer) groupName() string {
	if w.v.GID == w.v.UID {
		return " (" + w.paint("", w.v.UserName) + ")"
	}
	if w.o.GroupName == nil {
		return ""
	}
	name, err := w.o.GroupName(w.v.GID)
	if err != nil {
		return " (unresolvable: " + err.Error() + ")"
	}
	return " (" + w.paint("", name) + ")"
}

// groups are those of the record, then the user's own.
func (w *writer) groups() []string {
	if w.v.State == "" {
		return nil
	}
	return append(slices.Clone(w.v.MemberOf), w.v.UserName)
}

var encryption = map[string]string{
	"luks": " (strong encryption)", "fscrypt": " (weak encryption)", "directory": " (no encryption)", "subvolume": " (no encryption)",
}

func (w *writer) place() {
	if n := w.v.RealName; w.e.Text("realName") != "" && n != w.v.UserName {
		w.line("Real Name", "%s", w.paint("", n))
	}
	a := w.v.Account()
	w.orFallback("Directory", a.Directory, a.FallbackDirectory)
	w.text("Default Area", "defaultArea")
	if dir := w.e.Text("blobDirectory"); dir != "" {
		w.line("Blob Dir.", "%s", w.paint("", dir))
		w.blobs()
	}
	storage := w.v.Storage
	if storage == "" {
		storage = "classic"
	}
	w.line("Storage", "%s", w.paint("", storage)+encryption[storage])
	image := w.v.ImagePath
	if image == "" && storage == "classic" {
		image = w.v.HomeDirectory
	}
	if image != "" && image != a.Directory {
		w.line("Image Path", "%s", w.paint("", image))
	}
	if b := w.e.Bool("removable"); b != nil {
		w.line("Removable", "%s", yesNo(*b))
	} else if storage != "classic" {
		w.line("Removable", "%s", yesNo(storage == "luks" && strings.HasPrefix(w.v.ImagePath, "/dev/")))
	}
	w.orFallback("Shell", a.Shell, a.FallbackShell)
}

func (w *writer) orFallback(label, value string, fallback bool) {
	value = w.paint("", value)
	if fallback {
		value += " " + w.paint(yellow, "(fallback)")
	}
	w.line(label, "%s", value)
}

func (w *writer) blobs() {
	m := w.e.Manifest()
	names := slices.Sorted(maps.Keys(m))
	for i, n := range names {
		branch := "├─"
		if i == len(names)-1 {
			branch = "└─"
		}
		if w.o.ASCII {
			branch = map[string]string{"├─": "|-", "└─": "`-"}[branch]
		}
		fmt.Fprintf(w, "%14s%s %s\n", "", branch, clean(w.paint("", n)+" "+w.paint(grey, "("+m[n]+")")))
	}
}

func (w *writer) account() {
	w.text("Email", "emailAddress")
	w.text("Location", "location")
	w.text("Birth Date", "birthDate")
	if h := w.v.Login.PasswordHint; h != "" {
		w.line("Passw. Hint", "%s", w.paint("", h))
	}
	w.text("Icon Name", "iconName")
	w.text("Time Zone", "timeZone")
	if l := w.v.Login.Languages; len(l) > 0 {
		w.line("Languages", "%s", w.paint("", strings.Join(l, ", ")))
	}
	w.bool("Locked", "locked")
	w.number("Not Before", "notBeforeUSec", w.stamp)
	w.number("Not After", "notAfterUSec", w.stamp)
	if m := w.v.Login.Umask; m != nil {
		w.line("UMask", "0%03o", *m)
	}
	if n := w.v.Login.NiceLevel; n != nil {
		w.line("Nice", "%d", *n)
	}
}

// kernel order of resource limits.
var limitNames = []string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"}

func (w *writer) limits() {
	for _, n := range limitNames {
		if l, ok := w.v.Login.ResourceLimits["RLIMIT_"+n]; ok {
			w.line("Limit", "RLIMIT_%s=%d:%d", n, l.Cur, l.Max)
		}
	}
	w.number("Tasks Max", "tasksMax", decimal)
	w.number("Memory High", "memoryHigh", Bytes)
	w.number("Memory Max", "memoryMax", Bytes)
	w.number("CPU Weight", "cpuWeight", decimal)
	w.number("IO Weight", "ioWeight", decimal)
	w.sizeOrShare("TMP Limit", "tmpLimit")
	w.sizeOrShare("SHM Limit", "devShmLimit")
	if m := w.e.Mode("accessMode"); m != nil {
		w.line("Access Mode", "0%03o", *m)
	}
	if c := w.v.Login.CapabilityBounding; c != nil {
		w.line("Bound. Caps", "%s", capabilities(c))
	}
	if c := w.v.Login.CapabilityAmbient; c != nil {
		set, _ := records.ParseCapabilities(c)
		if b := w.v.Login.CapabilityBounding; b != nil {
			bound, _ := records.ParseCapabilities(b)
			set &= bound // what the bounding set lacks cannot be had
		}
		w.line("Ambient Caps", "%s", strings.Join(set.Names(), " "))
	}
}

func (w *writer) sizeOrShare(label, field string) {
	size, share := w.e.Number(field), w.e.Number(field+"Scale")
	var parts []string
	if size != nil {
		parts = append(parts, Bytes(*size))
	}
	if share != nil {
		parts = append(parts, fmt.Sprintf("%d%%", (*share*100+math.MaxUint32/2)/math.MaxUint32))
	}
	if len(parts) > 0 {
		w.line(label, "%s", strings.Join(parts, " or "))
	}
}

func (w *writer) storage() {
	switch w.v.Storage {
	case "luks":
		w.line("LUKS Discard", "online=%s offline=%s", yesNo(w.v.LUKS.Discard), yesNo(w.v.LUKS.OfflineDiscard))
		for _, f := range []struct{ label, id string }{{"LUKS UUID", w.v.LUKSUUID}, {"Part UUID", w.v.PartitionUUID}, {"FS UUID", w.v.FileSystemUUID}} {
			if f.id != "" {
				w.line(f.label, "%s", f.id)
			}
		}
		w.text("File System", "fileSystemType")
		w.text("LUKS MntOpts", "luksExtraMountOptions")
		w.text("LUKS Cipher", "luksCipher")
		w.text("Cipher Mode", "luksCipherMode")
		w.number("Volume Key", "luksVolumeKeySize", func(n uint64) string { return decimal(n*8) + "bit" })
		w.text("PBKDF Type", "luksPbkdfType")
		w.text("PBKDF Hash", "luksPbkdfHashAlgorithm")
		w.number("PBKDF Iters", "luksPbkdfForceIterations", decimal)
		w.number("PBKDF Time", "luksPbkdfTimeCostUSec", func(n uint64) string { return records.Timespan(n, 0) })
		w.number("PBKDF Bytes", "luksPbkdfMemoryCost", Bytes)
		w.number("PBKDF Thread", "luksPbkdfParallelThreads", decimal)
		w.number("Sector Size", "luksSectorSize", decimal)
	case "cifs":
		w.text("CIFS Service", "cifsService")
		w.text("CIFS MntOpts", "cifsExtraMountOptions")
	}
	w.text("CIFS User", "cifsUserName")
	w.text("CIFS Domain", "cifsDomain")
	if w.v.Storage != "" && w.v.Storage != "classic" {
		flag := func(b bool, yes, no string) string {
			if b {
				return yes
			}
			return no
		}
		w.line("Mount Flags", "%s %s %s", flag(w.v.NoSuid, "nosuid", "suid"), flag(w.v.NoDevices, "nodev", "dev"), flag(w.v.NoExec, "noexec", "exec"))
	}
	w.text("Skel. Dir.", "skeletonDirectory")
}

func (w *writer) disk() {
	size := w.e.Number("diskSize")
	share := func(n uint64, up bool) string {
		if size == nil || *size == 0 {
			return ""
		}
		high, low := bits.Mul64(n, 1000)
		if high >= *size {
			return ""
		}
		promille, rest := bits.Div64(high, low, *size)
		if up && rest > 0 {
			promille++
		}
		return fmt.Sprintf(" (= %d.%d%%)", promille/10, promille%10)
	}
	w.number("Disk Size", "diskSize", Bytes)
	w.number("Disk Usage", "diskUsage", func(n uint64) string { return Bytes(n) + share(n, true) })
	w.number("Disk Free", "diskFree", func(n uint64) string {
		s := Bytes(n) + share(n, false)
		if size != nil {
			switch {
			case n <= *size/10 && n < 1<<30:
				return w.paint(red, s)
			case n <= *size/4 && n < 2<<30:
				return w.paint(yellow, s)
			}
		}
		return s
	})
	w.number("Disk Floor", "diskFloor", Bytes)
	w.number("Disk Ceiling", "diskCeiling", Bytes)
}

func (w *writer) authentication(r *records.Record) {
	w.number("Good Auth.", "goodAuthenticationCounter", decimal)
	w.number("Last Good", "lastGoodAuthenticationUSec", w.stamp)
	w.number("Bad Auth.", "badAuthenticationCounter", decimal)
	w.number("Last Bad", "lastBadAuthenticationUSec", w.stamp)
	if next, known := r.Counters(w.o.Machine.ID).NextTry(w.v, w.now()); known {
		if next > w.now() {
			w.line("Next Try", "%s", w.paint(red, "in "+records.Timespan(next-w.now(), 1e6)))
		} else {
			w.line("Next Try", "anytime")
		}
	}
	if w.v.Storage != "" && w.v.Storage != "classic" {
		w.line("Auth. Limit", "%d attempts per %s", w.v.RateLimitBurst, records.Timespan(w.v.RateLimitIntervalUSec, 0))
	}
}

func (w *writer) policy() {
	w.bool("Passwd Pol.", "enforcePasswordPolicy")
	lo, hi := w.v.PasswordChangeMinUSec, w.v.PasswordChangeMaxUSec
	warn, inactive := w.v.PasswordChangeWarnUSec, w.v.PasswordChangeInactiveUSec
	if lo != nil || hi != nil || warn != nil || inactive != nil {
		s := ""
		if lo != nil {
			s += "min " + records.Timespan(*lo, 0)
			if hi != nil {
				s += " … "
			}
		}
		if hi != nil {
			s += "max " + records.Timespan(*hi, 0)
		}
		if warn != nil {
			s += "/warn " + records.Timespan(*warn, 0)
		}
		if inactive != nil {
			s += "/inactive " + records.Timespan(*inactive, 0)
		}
		w.line("Passwd Chg.", "%s", s)
	}
	w.bool("Pas. Ch. Now", "passwordChangeNow")
	if w.e.Bool("dropCaches") != nil || w.v.DropCaches {
		w.line("Drop Caches", "%s", yesNo(w.v.DropCaches))
	}
	if w.e.Has("autoResizeMode") {
		w.line("Auto Resize", "%s", w.v.AutoResizeMode)
	}
	if w.v.HasRebalanceWeight {
		if w.v.RebalanceWeight == 0 {
			w.line("Rebalance", "off")
		} else {
			w.line("Rebalance", "weight %d", w.v.RebalanceWeight)
		}
	}
}

func (w *writer) credentials() {
	count := func(label string, n int) {
		if n > 0 {
			w.line(label, "%d", n)
		}
	}
	count("SSH Pub. Key", len(w.v.Login.SSHAuthorizedKeys))
	w.list("PKCS11 Token", w.e.Texts("pkcs11TokenUri"))
	count("FIDO2 Token", len(w.e.Texts("fido2HmacCredential")))
	count("Recovery Key", len(w.e.Texts("recoveryKeyType")))
	if n := len(w.v.HashedPasswords); n > 0 {
		w.line("Passwords", "%d", n)
	} else {
		w.line("Passwords", "%s", w.paint(yellow, "none"))
	}
}

func (w *writer) session() {
	if b := w.v.SignedLocally; b != nil {
		w.line("Local Sig.", "%s", yesNo(*b))
	}
	w.number("Stop Delay", "stopDelayUSec", func(n uint64) string { return records.Timespan(n, 0) })
	w.bool("Autom. Login", "autoLogin")
	w.text("Sess. Launch", "preferredSessionLauncher")
	w.text("Session Type", "preferredSessionType")
	w.bool("Kill Proc.", "killProcesses")
	w.text("Service", "service")
}

// selfModifiable lists what the owner may change without an administrator.
func (w *writer) selfModifiable() {
	for _, f := range []struct {
		label, field string
		defaults     []string
	}{
		{"Self Modify:", "selfModifiableFields", records.SelfModifiableFields},
		{"(Blobs)", "selfModifiableBlobs", records.SelfModifiableBlobs},
		{"(Privileged)", "selfModifiablePrivileged", records.SelfModifiablePrivileged},
	} {
		list, colour := w.e.Texts(f.field), ""
		if list == nil && w.v.Disposition == "regular" {
			list, colour = f.defaults, grey
		}
		if len(list) == 0 {
			fmt.Fprintf(w, "%13s %s\n", f.label, clean(w.paint(bold, "none")))
		}
		for i, s := range list {
			label := ""
			if i == 0 {
				label = f.label
			}
			fmt.Fprintf(w, "%13s %s\n", label, clean(w.paint(colour, s)))
		}
	}
}
