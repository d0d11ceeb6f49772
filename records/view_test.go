package records

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/fault"
)

func host(t testing.TB, name string) *Record {
	t.Helper()
	return mustParse(t, read(t, fixtures, "records", name, "host.identity"), HostFile)
}

func num(n uint64) *uint64 { return &n }

func show(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

func TestPerMachine(t *testing.T) {
	m := machine(t)
	for _, c := range []struct{ name, location, nice, tasks string }{
		{"pmatch", "top", "1", "10"},
		{"pmatch2", "OR match by hostname", "4", "10"},
		{"pmnull", "top", "null", "null"},
	} {
		v := host(t, c.name).View(m)
		if v.Login.Location != c.location || show(v.Login.NiceLevel) != c.nice || show(v.Login.TasksMax) != c.tasks {
			t.Errorf("%s: %s, %s, %s", c.name, v.Login.Location, show(v.Login.NiceLevel), show(v.Login.TasksMax))
		}
	}
	entry := func(s string) *value {
		v, err := parseDocument([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	other := Machine{ID: m.ID, Hostname: "localhost"}
	for s, want := range map[string][2]bool{
		`{"matchMachineId":"C01D7426-1ba9-4128-b41c-f8eb6c7d90e7"}`:  {true, true},
		`{"matchNotMachineId":["c01d74261ba94128b41cf8eb6c7d90e7"]}`: {false, false},
		`{"matchNotMachineId":7}`:                                    {true, true},
		`{"matchMachineId":[7,"x"]}`:                                 {false, false},
		`{"matchHostname":["a","vm"]}`:                               {true, false},
		`{"matchHostname":"localhost"}`:                              {false, false},
		`{"matchNotHostname":"vm"}`:                                  {false, true},
		`{}`:                                                         {false, false},
		`7`:                                                          {false, false},
	} {
		if got := [2]bool{m.matches(entry(s)), other.matches(entry(s))}; got != want {
			t.Errorf("%s: %v, want %v", s, got, want)
		}
	}
}

func TestViewDefaults(t *testing.T) {
	r := mustParse(t, []byte(`{"userName":"ann","realm":"example.org"}`), HostFile)
	v := r.View(Machine{ID: "0123456789abcdef0123456789abcdef", Hostname: "vm"})
	if v.RealName != "ann" || v.HomeDirectory != "/home/ann" || v.ImagePath != "" || v.Storage != "" || v.Shell != "/bin/bash" || v.HasUID ||
		v.SkeletonDirectory != "/etc/skel" || v.AccessMode != 0o700 || !v.NoDevices || !v.NoSuid || v.NoExec || v.FileSystemType != "btrfs" || v.HasFileSystemType ||
		v.RateLimitBurst != 30 || v.RateLimitIntervalUSec != 60e6 || v.AutoResizeMode != "off" || v.RebalanceWeight != 100 || v.DropCaches {
		t.Errorf("%+v", v)
	}
	want := LUKSView{Cipher: "aes", CipherMode: "xts-plain64", VolumeKeySize: 32, PBKDFType: "argon2id", PBKDFHash: "sha512", PBKDFTimeCostUSec: 500000, PBKDFMemoryCost: 64 << 20, PBKDFParallel: 1}
	if v.LUKS != want {
		t.Errorf("%+v", v.LUKS)
	}
	m := Machine{ID: "0123456789abcdef0123456789abcdef", HomeRoot: "/tmp/h"}
	bound := r.WithBinding(m.ID, Binding{Storage: "luks"})
	if v := bound.View(m); v.ImagePath != "/tmp/h/ann@example.org.home" || v.HomeDirectory != "/tmp/h/ann" || v.AutoResizeMode != "shrink-and-grow" || !v.LUKS.OfflineDiscard || v.LUKS.Discard {
		t.Errorf("%+v", v)
	}
	if v := r.WithBinding(m.ID, Binding{Storage: "luks", ImagePath: "/dev/sda1"}).View(m); !v.LUKS.OfflineDiscard || !v.LUKS.Discard {
		t.Errorf("%+v", v.LUKS)
	}
	for sector, want := range map[string]uint32{"0": 512, "600": 512, "1024": 1024, "5000": 4096, "1e6": 4096, "null": 0} {
		r := mustParse(t, []byte(`{"userName":"ann","luksSectorSize":`+sector+`}`), HostFile)
		if got := r.View(m).LUKS.SectorSize; got != want {
			t.Errorf("sector size %s is %d, want %d", sector, got, want)
		}
	}
}

func TestViewOfRealRecords(t *testing.T) {
	m := machine(t)
	v := host(t, "lukspbkdf2").View(m)
	if v.Storage != "luks" || v.FileSystemType != "ext4" || v.LUKS.VolumeKeySize != 64 || v.LUKS.PBKDFType != "pbkdf2" || v.LUKS.PBKDFHash != "sha256" || v.LUKS.PBKDFMemoryCost != 0 ||
		v.LUKS.OfflineDiscard || v.AutoResizeMode != "off" || *v.DiskSize != 64<<20 || v.RebalanceWeight != 0 || v.ImagePath != "/home/lukspbkdf2.home" || len(v.LUKSUUID) != 36 || !v.HasUID || v.UID != v.GID {
		t.Errorf("%+v", v)
	}
	full := host(t, "dirfull")
	v = full.View(m)
	if v.Realm != "example.org" || v.UID != 60200 || len(v.RecoveryHashes) != 1 || len(v.HashedPasswords) != 1 || len(v.MemberOf) == 0 || len(v.Environment) == 0 || len(v.Login.ResourceLimits) == 0 {
		t.Errorf("%+v", v)
	}
	for name, want := range map[string]bool{"dirfull": true, "dirfull@example.org": true, "dirfull@example.com": false, "example.org": false, "": false, full.Aliases()[0]: true, full.Aliases()[0] + "@example.org": true} {
		if full.Matches(name) != want {
			t.Errorf("matches %q: %v", name, !want)
		}
	}
	if full.FullName() != "dirfull@example.org" || full.LastChangeUSec() == 0 {
		t.Error(full.FullName(), full.LastChangeUSec())
	}
	// Bad fields are kept and do not count.
	bad := host(t, "badfieldsu").View(m)
	if bad.Login.NiceLevel != nil || bad.Login.Umask != nil || bad.Login.TimeZone != "" || bad.Storage != "directory" && bad.Storage != "" || bad.Environment != nil || bad.Login.CPUWeight != nil {
		t.Errorf("%+v", bad)
	}
	zero := host(t, "zerotsu").View(m)
	if *zero.NotBeforeUSec != 0 || zero.AutoResizeMode != "shrink-and-grow" || zero.RebalanceWeight != 0 || !zero.HasRebalanceWeight || !zero.HasStopDelay || zero.RateLimitIntervalUSec != 1 {
		t.Errorf("%+v", zero)
	}
	all := host(t, "allfields").View(m)
	if !all.HasTokens || all.Login.KillProcesses == nil {
		t.Errorf("%+v", all)
	}
	for _, path := range fixtureFiles(t, "host.identity") {
		// Strings in a real record never become something else on the way.
		v := mustParse(t, read(t, path), HostFile).View(m)
		if v.UserName == "" || v.HomeDirectory == "" {
			t.Errorf("%s: %+v", path, v)
		}
	}
}

func TestStrictFieldsOfRealRecords(t *testing.T) {
	m := machine(t)
	bad := map[string]bool{"badfieldsu": true, "pmnull": true, "allfields": true, "canon": true}
	for _, path := range fixtureFiles(t, "input.json") {
		err := mustParse(t, read(t, path), BusRegister).Validate(m)
		if (err != nil) != bad[owner(path)] {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestBinding(t *testing.T) {
	m := machine(t)
	r := host(t, "lukspbkdf2-active")
	b, ok := r.Binding(m.ID)
	if !ok || b.Storage != "luks" || b.LUKSVolumeKeySize != 64 || !b.HasUID || b.UID != b.GID || len(b.PartitionUUID) != 36 || b.BlobDirectory == "" || b.HomeDirectory == "" {
		t.Fatalf("%+v", b)
	}
	if same := r.WithBinding(m.ID, b); !same.Equal(r) {
		t.Errorf("a binding changed on its way: %s", same.Compact())
	}
	moved := r.WithBinding(m.ID, Binding{ImagePath: "/srv/x.home", LUKSUUID: strings.ToUpper(strings.ReplaceAll(b.LUKSUUID, "-", ""))})
	c, _ := moved.Binding(m.ID)
	b.ImagePath = "/srv/x.home"
	if c != b {
		t.Errorf("%+v, want %+v", c, b)
	}
	if _, ok := r.Binding("ffffffffffffffffffffffffffffffff"); ok {
		t.Error("bound to another machine")
	}
	two := r.WithBinding("ffffffffffffffffffffffffffffffff", Binding{Storage: "directory"})
	if c, _ := two.Binding(m.ID); c.ImagePath == "" {
		t.Error("the binding of the other machine is lost")
	}
	e := r.Embedded()
	if _, ok := e.Binding(m.ID); ok {
		t.Error("an embedded record is bound")
	}
	if !e.WithBindingOf(r).WithStatusOf(r).Equal(r) {
		t.Error("sections do not come back")
	}
}

// TestAugment makes the replies of the real daemon from its host files.
func TestAugment(t *testing.T) {
	m := machine(t)
	n := 0
	for _, path := range fixtureFiles(t, "inspect-full.json") {
		reply := mustParse(t, read(t, path), ClientReply)
		st := reply.doc.get("status").get(m.ID)
		l := layers{{status, st}}
		live := LiveStatus{
			State: l.text("state", ""), Active: !l.bool("useFallback", true), DiskSize: l.u64("diskSize"), DiskUsage: l.u64("diskUsage"), DiskFree: l.u64("diskFree"),
			DiskCeiling: l.u64("diskCeiling"), DiskFloor: l.u64("diskFloor"), SignedLocally: l.maybe("signedLocally"), FileSystemType: l.text("fileSystemType", ""), AccessMode: l.mode("accessMode"),
		}
		got := reply.WithStatusOf(mustParse(t, read(t, filepath.Dir(path), "host.identity"), HostFile)).Augment(m.ID, live)
		if !got.Equal(reply) {
			t.Errorf("%s: %s", path, appendCompact(nil, got.doc.get("status")))
		}
		if last := got.doc.members[len(got.doc.members)-1].key; last != "status" {
			t.Errorf("%s: %s is last", path, last)
		}
		if masked, incomplete := got.Mask(false); masked.doc.get("privileged") != nil || incomplete != (reply.doc.get("privileged") != nil) {
			t.Errorf("%s: masked badly", path)
		}
		if masked, incomplete := got.Mask(true); !masked.Equal(got) || incomplete {
			t.Errorf("%s: root sees less", path)
		}
		n++
	}
	if n != 40 {
		t.Errorf("%d replies", n)
	}
	if s := string(mustParse(t, []byte(`{"userName":"a"}`), HostFile).Augment("x", LiveStatus{State: "inactive", DiskUsage: num(6 << 20), DiskCeiling: num(7 << 40)}).Compact()); !strings.Contains(s, `"diskCeiling":5497558138880,"diskFloor":6291456`) {
		t.Error(s)
	}
}

func TestGroups(t *testing.T) {
	m := machine(t)
	for _, path := range fixtureFiles(t, "userdbctl-group.json") {
		want, err := parseDocument(read(t, path))
		if err != nil {
			t.Fatal(err)
		}
		got := Group(vouched(mustParse(t, read(t, filepath.Dir(path), "host.identity"), HostFile)), m)
		if string(got) != string(appendCompact(nil, want)) {
			t.Errorf("%s: got %s", path, got)
		}
	}
}

func TestCountersAndRateLimit(t *testing.T) {
	m := machine(t)
	r := host(t, "ratelim")
	c := r.Counters(m.ID)
	if c.Good != 3 || c.RateCount != 3 || c.RateLimitBeginUSec != 1795335425922383 {
		t.Fatalf("%+v", c)
	}
	if !r.WithCounters(m.ID, c).Equal(r) {
		t.Error("counters change on their way")
	}
	v := r.View(m)
	now := c.RateLimitBeginUSec + 60e6
	if _, next, ok := c.Attempt(v, now); ok || next != c.RateLimitBeginUSec+3600e6 {
		t.Errorf("limit not hit: %d", next)
	}
	if next, known := c.NextTry(v, now); !known || next != c.RateLimitBeginUSec+3600e6 {
		t.Errorf("next try %d", next)
	}
	after, _, ok := c.Attempt(v, c.RateLimitBeginUSec+3600e6)
	if !ok || after.RateCount != 1 || after.RateLimitBeginUSec != c.RateLimitBeginUSec+3600e6 {
		t.Errorf("%+v", after)
	}
	var fresh Counters
	if _, known := fresh.NextTry(v, now); known {
		t.Error("known without an attempt")
	}
	for i := range 3 {
		if fresh, _, ok = fresh.Attempt(v, now); !ok || fresh.RateCount != uint64(i+1) {
			t.Errorf("attempt %d: %+v", i, fresh)
		}
	}
	if _, _, ok = fresh.Attempt(v, now); ok {
		t.Error("a fourth attempt")
	}
	if back, _, ok := fresh.Attempt(v, now-1); !ok || back.RateCount != 1 {
		t.Error("a clock that went back locks out")
	}
	if c := (Counters{}).Failed(7).Succeeded(9); c.Bad != 1 || c.Good != 1 || c.LastBadUSec != 7 || c.LastGoodUSec != 9 {
		t.Errorf("%+v", c)
	}
	if got := mustParse(t, []byte(`{"userName":"a"}`), HostFile).WithCounters("x", Counters{Good: 2}); !strings.Contains(string(got.Compact()), `"status":{"x":{"goodAuthenticationCounter":2}}`) {
		t.Errorf("%s", got.Compact())
	}
}

// TestVerdictsOfRealRecords: what homectl inspect said of them.
func TestVerdictsOfRealRecords(t *testing.T) {
	const now = 1795336000000000
	blocked := map[string]Blocked{"lockedu": IsLocked, "notyetu": NotYetValid, "expiredu": NoLongerValid, "futureu": FromFuture}
	password := map[string]PasswordVerdict{"lockedu": ChangeNow, "notyetu": ChangeNotPermitted, "expiredu": PasswordExpired, "inactpwu": PasswordDead,
		"warnpwu": ExpiresSoon, "nostampu": NoPasswordTimestamp, "futureu": PasswordFromFuture, "dirmin": PasswordOK}
	for name, want := range password {
		v := host(t, name).View(machine(t))
		if got := v.PasswordChange(now); got != want {
			t.Errorf("%s: password %d, want %d", name, got, want)
		}
		if got := v.Blocked(now); got != blocked[name] {
			t.Errorf("%s: blocked %d, want %d", name, got, blocked[name])
		}
	}
	v := View{PasswordChangeMaxUSec: num(5)}
	if v.PasswordChange(now) != PasswordOK {
		t.Error("a maximum age without a date counts")
	}
	if PasswordDead.MayChange() || !ExpiresSoon.MayChange() || !PasswordFromFuture.MayChange() {
		t.Error("MayChange is wrong")
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{"ann": true, "Ann-9_x": true, strings.Repeat("a", 31): true, strings.Repeat("a", 32): false, "": false, "9a": false, "root": false, "nobody": false,
		"nogroup": false, "systemd-x": false, "_x": false, "a.b": false, "a b": false, "ä": false, "-a": false, "a/b": false} {
		if ValidName(name) != want {
			t.Errorf("ValidName(%q) is %v", name, !want)
		}
	}
	for name, want := range map[string]bool{"ä.b c": true, "": false, "12": false, "-12": false, "1a": true, "a:b": false, "a/b": false, ".": false, "..": false, " a": false, "a ": false, "a\x7f": false, "\xff": false, "a\nb": false, "4294967295": false} {
		if RelaxedName(name) != want {
			t.Errorf("RelaxedName(%q) is %v", name, !want)
		}
	}
	for realm, want := range map[string]bool{"example.org": true, "Example.ORG": true, "local": true, ".": false, "": false, "a.": false, "a..b": false, strings.Repeat("a", 63) + ".b": true, strings.Repeat("a", 64): false,
		`a\.b.c`: true, `a\046b`: false, `a\032b`: true, `a b`: false, "a\\": false, strings.Repeat("abc.", 63) + "a": true, strings.Repeat("abc.", 64) + "a": false} {
		if ValidRealm(realm) != want {
			t.Errorf("ValidRealm(%q) is %v", realm, !want)
		}
	}
}

func TestUIDs(t *testing.T) {
	free := func(uint32) bool { return false }
	for name, want := range map[string]uint32{"dirmin": 60209, "luksargon": 60204, "lukspbkdf2": 0, "recov": 60406, "fxext": 60061, "fxdir": 60325} {
		if want == 0 {
			want = host(t, name).View(machine(t)).UID
		}
		if got, err := UIDForName(name, free, nil); err != nil || got != want {
			t.Errorf("%s: %d (%v), want %d", name, got, err, want)
		}
	}
	asked := 0
	got, err := UIDForName("dirmin", func(uint32) bool { asked++; return asked == 1 }, bytes.NewReader([]byte{5, 0, 0, 0}))
	if err != nil || got != 60006 {
		t.Errorf("%d, %v", got, err)
	}
	if _, err := UIDForName("dirmin", func(uint32) bool { return true }, bytes.NewReader(make([]byte, 4096))); !fault.Is(err, fault.TooManyHomes) {
		t.Errorf("%v", err)
	}
	if got, _ := AllocateUID(60100, "x", free, nil); got != 60100 {
		t.Errorf("start is %d", got)
	}
	if got, _ := AllocateUID(1000, "dirmin", free, nil); got != 60209 {
		t.Errorf("a start outside the range gives %d", got)
	}
}

func TestAccept(t *testing.T) {
	m := machine(t)
	for name, want := range map[string]string{
		"dispx": "Cannot manage anything but regular users.", "cuid": "User record has to have matching UID/GID fields.", "svcx": "Not accepted with service",
		"bloby": "Cannot manage custom blob directories.", "realmcase": "", "realmone": "",
	} {
		err := mustParse(t, read(t, fixtures, "refused", name+".json"), BusRegister).Manageable(m)
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(fault.Public(err), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, want := range map[string]fault.Kind{"realmcase": "", "realmone": "", "realmroot": fault.InvalidArgs, "sysuid": fault.BadAddress, "dynuid": fault.BadAddress, "badname.dot": fault.InvalidArgs} {
		r := mustParse(t, read(t, fixtures, "refused", name+".json"), BusRegister)
		if !r.View(m).HasUID {
			r = r.WithBinding(m.ID, Binding{UID: 60100, GID: 60100, HasUID: true})
		}
		if err := r.Suitable(m); fault.KindOf(err) != want {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	for _, path := range fixtureFiles(t, "host.identity") {
		r := mustParse(t, read(t, path), HostFile)
		if owner(path) == "badfieldsu" {
			continue
		}
		if err := r.Manageable(m); err != nil && r.doc.get("binding") == nil {
			t.Errorf("%s: %v", path, err)
		}
		if err := r.Suitable(m); err != nil && owner(path) != "unsigned2" && owner(path) != "tampered" && owner(path) != "sanat" {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestTimespan(t *testing.T) {
	for _, c := range []struct {
		t, accuracy uint64
		want        string
	}{
		{0, 1, "0"}, {1<<64 - 1, 1, "infinity"}, {1250000, 0, "1.250000s"}, {30500000, 1, "30.500000s"}, {30500000, 1e6, "30s"}, {180 * 86400e6, 1, "5month 3w 6d 19h 30min"}, {1500, 1, "1.500ms"},
		{90500000, 1, "1min 30.500000s"}, {60e6, 0, "1min"}, {1, 0, "1us"}, {3540000001, 1e6, "59min"}, {500000, 0, "500ms"}, {86400e6, 1, "1d"},
	} {
		if got := Timespan(c.t, c.accuracy); got != c.want {
			t.Errorf("%d at %d: %s, want %s", c.t, c.accuracy, got, c.want)
		}
	}
}

func TestBuilder(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	b := NewBuilder("ann").Set("disposition", "regular").Set("lastChangeUSec", uint64(1<<63)).Set("niceLevel", -5).Set("mountNoSuid", true).
		SetPrivileged("hashedPassword", []string{"$6$x"}).AppendPrivileged("recoveryKey", Object{{"type", "modhex64"}, {"hashedPassword", "$6$y"}}).
		SetPerMachine(id, "storage", "luks").SetPerMachine(id, "diskSize", uint64(7)).Append("memberOf", "b", "a").Append("memberOf", "b").
		Set("resourceLimits", Object{{"RLIMIT_CORE", Object{{"cur", nil}, {"max", uint64(1)}}}}).Set("disposition", "regular")
	r, err := b.Record()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"userName":"ann","disposition":"regular","lastChangeUSec":9223372036854775808,"niceLevel":-5,"mountNoSuid":true,` +
		`"privileged":{"hashedPassword":["$6$x"],"recoveryKey":[{"type":"modhex64","hashedPassword":"$6$y"}]},` +
		`"perMachine":[{"matchMachineId":"` + id + `","storage":"luks","diskSize":7}],"memberOf":["b","a"],"resourceLimits":{"RLIMIT_CORE":{"cur":null,"max":1}}}`
	if string(r.Compact()) != want {
		t.Errorf("got %s", r.Compact())
	}
	if err := r.Validate(Machine{ID: id}); err != nil {
		t.Error(err)
	}
	if v := r.View(Machine{ID: id}); v.Storage != "luks" || *v.DiskSize != 7 || v.Login.ResourceLimits["RLIMIT_CORE"] != (ResourceLimit{1<<64 - 1, 1}) {
		t.Errorf("%+v", v)
	}
	e := r.Edit().Drop(id, "storage").Drop(id, "diskSize").Drop(id, "hashedPassword").Drop(id, "recoveryKey").Drop(id, "niceLevel")
	r2, err := e.Record()
	if err != nil || strings.Contains(string(r2.Compact()), "perMachine") || strings.Contains(string(r2.Compact()), "privileged") || strings.Contains(string(r2.Compact()), "niceLevel") {
		t.Errorf("%s, %v", r2.Compact(), err)
	}
	if string(r.Compact()) != want {
		t.Error("the record changed under an edit")
	}
	if _, err := NewBuilder("ann").Set("x", struct{}{}).Record(); !fault.Is(err, fault.InvalidArgs) {
		t.Errorf("%v", err)
	}
	if _, err := NewBuilder("").Record(); !fault.Is(err, fault.InvalidArgs) {
		t.Errorf("%v", err)
	}
	if !e.Has("userName") || e.Has("storage") {
		t.Error("Has is wrong")
	}
}

func TestReconcile(t *testing.T) {
	ours, keys := signer(t, fixtures, "keys/local.private"), keyring(t, false)
	rec := func(change int, location string, more string) *Record {
		s := `{"userName":"ann","location":"` + location + `"`
		if change > 0 {
			s += fmt.Sprintf(`,"lastChangeUSec":%d`, change)
		}
		v, err := ours.Sign(mustParse(t, []byte(s+more+`}`), HostFile))
		if err != nil {
			t.Fatal(err)
		}
		return v.Record()
	}
	bound := func(change int, location string) Verified {
		v, err := keys.Vouch(rec(change, location, `,"binding":{"m":{"uid":60100}},"status":{"m":{"goodAuthenticationCounter":1}}`))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	const stale = fault.StaleRecord
	type outcome struct {
		w    Winner
		kind fault.Kind
	}
	for _, c := range []struct {
		host     Verified
		embedded *Record
		want     [3]outcome // Any, NewerOrEqual, Newer
	}{
		{bound(2, "x"), rec(1, "y", ""), [3]outcome{{w: HostWon}, {w: HostWon}, {w: HostWon}}},
		{bound(2, "x"), rec(0, "y", ""), [3]outcome{{w: HostWon}, {w: HostWon}, {w: HostWon}}},
		{bound(2, "x"), rec(2, "x", ""), [3]outcome{{w: Identical}, {w: Identical}, {kind: stale}}},
		{bound(0, "x"), rec(0, "x", ""), [3]outcome{{w: Identical}, {w: Identical}, {kind: stale}}},
		{bound(2, "x"), rec(2, "y", ""), [3]outcome{{w: HostWon}, {w: HostWon}, {w: HostWon}}},
		{bound(1, "x"), rec(2, "y", ""), [3]outcome{{w: EmbeddedWon}, {kind: stale}, {w: EmbeddedWon}}},
		{bound(0, "x"), rec(2, "y", ""), [3]outcome{{w: EmbeddedWon}, {kind: stale}, {w: EmbeddedWon}}},
	} {
		for m, want := range c.want {
			got, err := keys.Reconcile(c.host, nil, c.embedded, Mode(m))
			if fault.KindOf(err) != want.kind || err == nil && got.Embedded != want.w {
				t.Errorf("%s and %s, mode %d: %v, %v", c.host.Record().Compact(), c.embedded.Compact(), m, got.Embedded, err)
				continue
			}
			if err != nil {
				continue
			}
			if b, ok := got.Record.Record().Binding("m"); !ok || b.UID != 60100 {
				t.Errorf("the result is not bound: %s", got.Record.Record().Compact())
			}
			if hasStatus := got.Record.Counters("m").Good > 0; hasStatus != (want.w != EmbeddedWon) {
				t.Errorf("status of %s", got.Record.Record().Compact())
			}
			if got.WriteHeader || got.WriteEmbedded != (want.w == HostWon) {
				t.Errorf("mode %d, %v: write header %v, embedded %v", m, want.w, got.WriteHeader, got.WriteEmbedded)
			}
		}
	}
	for _, c := range []struct {
		name                       string
		host, header, embedded     int
		m                          Mode
		winner                     int
		kind                       fault.Kind
		writeHeader, writeEmbedded bool
	}{
		{"all the same", 2, 2, 2, Any, 2, "", false, false},
		{"embedded newest", 1, 2, 3, Any, 3, "", true, false},
		{"header newest", 1, 3, 2, Any, 3, "", false, true},
		{"host newest", 3, 1, 2, Any, 3, "", true, true},
		{"update", 3, 1, 1, Newer, 3, "", true, true},
		{"update that reached the header only", 3, 3, 1, Newer, 3, "", false, true},
		{"update that reached the embedded copy only", 3, 1, 3, Newer, 3, "", true, false},
		{"update that is there already", 3, 3, 3, Newer, 0, stale, false, false},
		{"update older than the header", 2, 3, 1, Newer, 0, stale, false, false},
		{"passwd on a stale host copy", 2, 2, 3, NewerOrEqual, 0, stale, false, false},
	} {
		copyOf := func(n int) *Record { return rec(n, fmt.Sprint(n), "") }
		got, err := keys.Reconcile(bound(c.host, fmt.Sprint(c.host)), copyOf(c.header), copyOf(c.embedded), c.m)
		if fault.KindOf(err) != c.kind {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil && (got.Record.Record().LastChangeUSec() != uint64(c.winner) || got.WriteHeader != c.writeHeader || got.WriteEmbedded != c.writeEmbedded) {
			t.Errorf("%s: %s wins, write header %v, embedded %v", c.name, got.Record.Record().Compact(), got.WriteHeader, got.WriteEmbedded)
		}
	}
	other := mustParse(t, []byte(`{"userName":"bob"}`), EmbeddedFile)
	if _, err := keys.Reconcile(bound(1, "x"), nil, other, Any); !fault.Is(err, fault.OtherUser) {
		t.Errorf("%v", err)
	}
	if _, err := keys.Reconcile(bound(1, "x"), nil, bound(1, "x").Record(), Any); !fault.Is(err, fault.InvalidArgs) {
		t.Errorf("%v", err)
	}
	realm := mustParse(t, []byte(`{"userName":"ann","realm":"x"}`), EmbeddedFile)
	if _, err := keys.Reconcile(bound(1, "x"), nil, realm, Any); !fault.Is(err, fault.OtherUser) {
		t.Errorf("%v", err)
	}
}

func TestEffective(t *testing.T) {
	e := host(t, "dirfull").Effective(machine(t))
	if e.Text("realName") == "" || len(e.Manifest()) != 3 || e.Entries("recoveryKey") != 1 || e.Entries("hashedPassword") != 1 || e.Text("noSuchField") != "" {
		t.Errorf("%q, %v", e.Text("realName"), e.Manifest())
	}
}
