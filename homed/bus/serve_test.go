package bus

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"hearth/homed/config"
	"hearth/homed/home1"
	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/records"
)

const machineID = "1e36d111fc5f48a2b78ad6694f4b2b13"

// nobody is a host without accounts of its own.
type nobody struct{}

func (nobody) User(context.Context, string) (string, error)  { return "", nil }
func (nobody) Group(context.Context, string) (string, error) { return "", nil }
func (nobody) Free(context.Context, []string) bool           { return true }

// rig is a real manager on directories of the test's own, served on a bus of
// the test's own.
type rig struct {
	address string
	client  *home1.Client
	raw     *dbus.Conn // another client, for what home1.Client does not do
	level   *slog.LevelVar
}

func tempLayout(t *testing.T) config.Layout {
	t.Helper()
	dir := t.TempDir()
	layout := config.DefaultLayout(dir)
	layout.RecordDir = filepath.Join(dir, "records")
	layout.KeyDirs, layout.NewKeyDir = []string{layout.RecordDir}, layout.RecordDir
	layout.BlobDir = filepath.Join(dir, "blobs")
	layout.RunDir = filepath.Join(dir, "run")
	layout.HomeRoot = filepath.Join(dir, "home")
	for _, d := range []string{layout.RecordDir, layout.BlobDir, layout.RunDir, layout.HomeRoot} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return layout
}

func serve(t *testing.T) *rig { return serveWith(t, "") }

// serveWith starts that program for the work on storage.
func serveWith(t *testing.T, worker string) *rig {
	t.Helper()
	r := &rig{address: testenv.Bus(t), level: new(slog.LevelVar)}
	layout := tempLayout(t)
	layout.Worker = cmp.Or(worker, layout.Worker)
	machine := records.Machine{ID: machineID, Hostname: "test", HomeRoot: layout.HomeRoot}
	m, err := manager.New(manager.Options{Layout: layout, Machine: machine, Accounts: nobody{}, SharedMounts: worker == "", Grace: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Errorf("manager: %v", err)
		}
	})
	acquired := make(chan struct{})
	running.Go(func() {
		err := Serve(ctx, Options{Manager: m, Address: r.address, Machine: machine, Log: slog.New(slog.DiscardHandler), Level: r.level, Acquired: func() { close(acquired) }})
		if err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	select {
	case <-acquired:
	case <-time.After(10 * time.Second):
		t.Fatal("the name was not taken")
	}
	if r.client, err = home1.DialAddress(ctx, r.address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.client.Close() })
	if r.raw, err = dbus.Connect(r.address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.raw.Close() })
	return r
}

// register adds a home without storage.
func (r *rig) register(t *testing.T, name string, more map[string]any) {
	t.Helper()
	rec := map[string]any{"userName": name, "disposition": "regular", "storage": "luks",
		"privileged": map[string]any{"hashedPassword": []string{"$6$abcdefgh$Is3kZSztnMPZAznDT2TCAPxT9phlTw5Pdn18vOhvb7Xdi.wDEuVZcrX3YdfoOhgdEOLvVEE/l8Vev0nuc3Obx0"}}}
	for k, v := range more {
		rec[k] = v
	}
	text, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.client.RegisterHome(context.Background(), text); err != nil {
		t.Fatalf("register %s: %v", name, err)
	}
}

func (r *rig) call(path, method string, args ...any) *dbus.Call {
	return r.raw.Object(home1.Name, dbus.ObjectPath(path)).Call(method, 0, args...)
}

// errName is the D-Bus error name of a call's outcome.
func errName(err error) string {
	var d dbus.Error
	if errors.As(err, &d) {
		return d.Name
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func TestLookUps(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	ctx := context.Background()
	if list, err := r.client.ListHomes(ctx); err != nil || len(list) != 0 {
		t.Errorf("homes at first: %v, %v", list, err)
	}
	r.register(t, "ann", map[string]any{"realName": "Ann A", "uid": 60456, "aliases": []string{"anna"}, "realm": "example.com"})
	for _, name := range []string{"ann", "anna", "ann@example.com"} {
		h, err := r.client.GetHomeByName(ctx, name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if h.UID != 60456 || h.GID != 60456 || h.RealName != "Ann A" || h.Shell != "/bin/bash" || h.State != "absent" || h.Path != "/org/freedesktop/home1/home/ann" ||
			!strings.HasSuffix(h.HomeDirectory, "/home/ann") {
			t.Errorf("%s: %+v", name, h)
		}
	}
	if _, err := r.client.GetHomeByName(ctx, "ghost"); fault.KindOf(err) != fault.NoSuchHome {
		t.Errorf("ghost: %v", err)
	}
	// The empty name is the caller's own home, and root has none.
	if _, err := r.client.GetHomeByName(ctx, ""); fault.KindOf(err) != fault.NoSuchHome {
		t.Errorf("root's: %v", err)
	}
	text, incomplete, err := r.client.GetUserRecordByName(ctx, "ann")
	if err != nil || incomplete || !strings.Contains(string(text), "hashedPassword") || !strings.Contains(string(text), `"state":"absent"`) {
		t.Errorf("record: %s, %v, %v", text, incomplete, err)
	}
	body, err := r.client.Query(ctx, "GetHomeByUID", uint32(60456))
	if err != nil || body[0] != "ann" || body[6] != dbus.ObjectPath("/org/freedesktop/home1/home/60456") {
		t.Errorf("by uid: %v, %v", body, err)
	}
	for _, uid := range []uint32{65535, 1<<32 - 1} {
		if _, err := r.client.Query(ctx, "GetUserRecordByUID", uid); fault.KindOf(err) != fault.InvalidArgs {
			t.Errorf("uid %d: %v", uid, err)
		}
	}
	list, err := r.client.ListHomes(ctx)
	if err != nil || len(list) != 1 || list[0].UserName != "ann" {
		t.Errorf("homes: %v, %v", list, err)
	}
	keys, err := r.client.Query(ctx, "ListSigningKeys")
	if err != nil || len(keys) != 1 {
		t.Errorf("keys: %v, %v", keys, err)
	}
	if body, err := r.client.Query(ctx, "GetSigningKey", "local.public"); err != nil || !strings.HasPrefix(body[0].(string), "-----BEGIN PUBLIC KEY-----") {
		t.Errorf("our key: %v, %v", body, err)
	}
	if _, err := r.client.Query(ctx, "GetSigningKey", "other.public"); fault.KindOf(err) != fault.NoSuchKey {
		t.Errorf("no such key: %v", err)
	}
}

func TestGenericFailures(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	r.register(t, "ann", map[string]any{"aliases": []string{"anna"}, "uid": 60456})
	pipe, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = pipe.Close(), other.Close() }()
	const (
		m    = home1.ManagerPath
		ann  = home1.HomesPath + "/ann"
		get  = home1.PropertiesInterface + ".Get"
		errs = "org.freedesktop.DBus.Error."
	)
	for _, c := range []struct {
		path, method string
		args         []any
		want         string
	}{
		{m, home1.ManagerInterface + ".GetHomeByName", []any{uint32(1)}, errs + "InvalidArgs"},
		{m, home1.ManagerInterface + ".Frobnicate", nil, errs + "UnknownMethod"},
		{m, "org.foo.Bar.ListHomes", nil, errs + "UnknownMethod"},
		{m, home1.HomeInterface + ".Deactivate", nil, errs + "UnknownMethod"},
		{m, home1.ObjectManagerInterface + ".GetManagedObjects", nil, errs + "UnknownMethod"},
		{ann, home1.ObjectManagerInterface + ".GetManagedObjects", nil, errs + "UnknownMethod"},
		{home1.HomesPath + "/ghost", home1.HomeInterface + ".Deactivate", nil, errs + "UnknownObject"},
		{home1.HomesPath + "/ghost", get, []any{home1.HomeInterface, "State"}, errs + "UnknownObject"},
		{"/foo", home1.ManagerInterface + ".Frobnicate", nil, errs + "UnknownObject"},
		{ann, get, []any{home1.HomeInterface, "Nope"}, errs + "UnknownProperty"},
		{ann, get, []any{"org.foo.Bar", "Nope"}, errs + "UnknownProperty"},
		{ann, home1.PropertiesInterface + ".GetAll", []any{"org.foo.Bar"}, errs + "UnknownInterface"},
		{ann, home1.PropertiesInterface + ".Set", []any{home1.HomeInterface, "State", dbus.MakeVariant("x")}, errs + "PropertyReadOnly"},
		{home1.LogControlPath, home1.PropertiesInterface + ".Set", []any{home1.LogControlInterface, "LogLevel", dbus.MakeVariant("foo")}, errs + "InvalidArgs"},
		{home1.LogControlPath, home1.PropertiesInterface + ".Set", []any{home1.LogControlInterface, "LogLevel", dbus.MakeVariant(uint32(3))}, errs + "InvalidArgs"},
		{home1.LogControlPath, home1.PropertiesInterface + ".Set", []any{home1.LogControlInterface, "LogLevel", dbus.MakeVariant("debug")}, ""},
		{m, home1.ManagerInterface + ".ActivateHome", []any{"ann", "[]"}, errs + "InvalidArgs"},
		{m, home1.ManagerInterface + ".ActivateHome", []any{"ghost", "[]"}, home1.Name + ".NoSuchHome"},
		{m, home1.ManagerInterface + ".ActivateHome", []any{"ann", "{}"}, home1.Name + ".HomeAbsent"},
		{m, home1.ManagerInterface + ".ActivateHomeIfReferenced", []any{"ann", "{}"}, home1.Name + ".HomeNotReferenced"},
		{m, home1.ManagerInterface + ".CreateHome", []any{"{"}, errs + "InvalidArgs"},
		{m, home1.ManagerInterface + ".CreateHome", []any{`{"userName":"bob","binding":{}}`}, errs + "InvalidArgs"},
		{m, home1.ManagerInterface + ".CreateHomeEx", []any{`{"userName":"bob"}`, map[string]dbus.UnixFD{}, uint64(1)}, errs + "InvalidArgs"},
		{m, home1.ManagerInterface + ".CreateHomeEx", []any{`{"userName":"bob"}`, map[string]dbus.UnixFD{"a/b": 0}, uint64(0)}, errs + "InvalidArgs"},
		{m, home1.ManagerInterface + ".CreateHomeEx", []any{`{"userName":"bob"}`, map[string]dbus.UnixFD{"a": dbus.UnixFD(pipe.Fd())}, uint64(0)}, errs + "InvalidArgs"},
		{m, home1.ManagerInterface + ".AdoptHome", []any{"/x", uint64(1)}, errs + "InvalidArgs"},
		{m, home1.ManagerInterface + ".AdoptHome", []any{"/none.home", uint64(0)}, errs + "FileNotFound"},
		{m, home1.ManagerInterface + ".AdoptHome", []any{"/", uint64(0)}, errs + "BadAddress"},
		{m, home1.ManagerInterface + ".AdoptHome", []any{"/etc/passwd", uint64(0)}, home1.Name + ".UnrecognizedHomeFormat"},
		{m, home1.ManagerInterface + ".AdoptHome", []any{"home/x.home", uint64(0)}, errs + "InvalidArgs"},
		{m, home1.ManagerInterface + ".AdoptHome", []any{"/home/../x.home", uint64(0)}, errs + "InvalidArgs"},
		{m, home1.ManagerInterface + ".LockHome", []any{"ann"}, home1.Name + ".HomeNotActive"},
		{m, home1.ManagerInterface + ".LockHome", []any{"ghost"}, home1.Name + ".NoSuchHome"},
		{m, home1.ManagerInterface + ".UnlockHome", []any{"ann", "[]"}, errs + "InvalidArgs"},
		{m, home1.ManagerInterface + ".UnlockHome", []any{"ann", "{}"}, home1.Name + ".HomeNotLocked"},
		{ann, home1.HomeInterface + ".Lock", nil, home1.Name + ".HomeNotActive"},
		{m, home1.ManagerInterface + ".LockAllHomes", nil, ""},
		{m, home1.ManagerInterface + ".Rebalance", nil, home1.Name + ".RebalanceNotNeeded"},
		{m, home1.PeerInterface + ".Ping", nil, ""},
	} {
		if got := errName(r.call(c.path, c.method, c.args...).Err); got != c.want {
			t.Errorf("%s on %s: %q, want %q", c.method, c.path, got, c.want)
		}
	}
	if r.level.Level() != slog.LevelDebug {
		t.Error("the log level was not set")
	}
	var id string
	if err := r.call("/", home1.PeerInterface+".GetMachineId").Store(&id); err != nil || id != machineID {
		t.Errorf("machine id %q, %v", id, err)
	}
	for _, p := range []string{"ann", "anna", "60456", "_360456"} {
		var v dbus.Variant
		if err := r.call(home1.HomesPath+"/"+p, get, home1.HomeInterface, "UserName").Store(&v); err != nil || v.Value() != "ann" {
			t.Errorf("%s: %v, %v", p, v, err)
		}
	}
	// A path has no length limit, and must not cost us the connection.
	long := dbus.ObjectPath("/" + strings.Repeat("x", 1<<20))
	if got := errName(r.raw.Object(home1.Name, long).Call(home1.PropertiesInterface+".GetAll", 0, "").Err); got != errs+"UnknownObject" {
		t.Errorf("a long path: %s", got)
	}
	// A member without interface is looked for in all of them.
	if err := r.raw.Object(home1.Name, ann).Call("GetAll", 0, home1.HomeInterface).Err; err != nil {
		t.Error(err)
	}
	var xml string
	if err := r.call(home1.HomesPath, home1.IntrospectableInterface+".Introspect").Store(&xml); err != nil || !strings.Contains(xml, `<node name="ann"/>`) {
		t.Errorf("introspection: %v\n%s", err, xml)
	}
	var objects map[dbus.ObjectPath]map[string]map[string]dbus.Variant
	if err := r.call(home1.HomesPath, home1.ObjectManagerInterface+".GetManagedObjects").Store(&objects); err != nil {
		t.Fatal(err)
	}
	if got := objects[ann]; len(got) != 4 || len(got[home1.HomeInterface]) != 5 || len(got[home1.PeerInterface]) != 0 {
		t.Errorf("objects are %v", objects)
	}
}

// TestShownWhileTheyComeAndGo: whoever looks at the tree of objects while homes
// appear and vanish finds those that stay, whole, and of the others all or
// nothing.
func TestShownWhileTheyComeAndGo(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	r.register(t, "ann", map[string]any{"uid": 60456})
	const ann, guest = home1.HomesPath + "/ann", home1.HomesPath + "/guest"
	var over atomic.Bool
	var lookers sync.WaitGroup
	defer func() {
		over.Store(true)
		lookers.Wait()
	}()
	looks := [...]func(c *dbus.Conn) error{
		func(c *dbus.Conn) error {
			var text string
			if err := c.Object(home1.Name, home1.HomesPath).Call(home1.IntrospectableInterface+".Introspect", 0).Store(&text); err != nil {
				return err
			}
			var node struct {
				Nodes []struct {
					Name string `xml:"name,attr"`
				} `xml:"node"`
			}
			if err := xml.Unmarshal([]byte(text), &node); err != nil {
				return err
			}
			for _, n := range node.Nodes { // in no order
				if n.Name == "ann" {
					return nil
				}
			}
			return fmt.Errorf("children are %v", node.Nodes)
		},
		func(c *dbus.Conn) error {
			var objects map[dbus.ObjectPath]map[string]map[string]dbus.Variant
			if err := c.Object(home1.Name, home1.HomesPath).Call(home1.ObjectManagerInterface+".GetManagedObjects", 0).Store(&objects); err != nil {
				return err
			}
			for path, o := range objects {
				if len(o) != 4 || len(o[home1.HomeInterface]) != 5 {
					return fmt.Errorf("%s is %v", path, o)
				}
			}
			if objects[ann] == nil {
				return errors.New("ann is not there")
			}
			return nil
		},
		func(c *dbus.Conn) error {
			var all map[string]dbus.Variant
			err := c.Object(home1.Name, guest).Call(home1.PropertiesInterface+".GetAll", 0, home1.HomeInterface).Store(&all)
			if errName(err) == "org.freedesktop.DBus.Error.UnknownObject" || err == nil && len(all) == 5 {
				return nil
			}
			return fmt.Errorf("the guest has %v, %w", all, err)
		},
		func(c *dbus.Conn) error {
			var text string
			err := c.Object(home1.Name, guest).Call(home1.IntrospectableInterface+".Introspect", 0).Store(&text)
			if errName(err) == "org.freedesktop.DBus.Error.UnknownObject" || err == nil && strings.Contains(text, home1.HomeInterface) {
				return nil
			}
			return fmt.Errorf("the guest is %s, %w", text, err)
		},
	}
	var looked [len(looks)]atomic.Int64
	for i, look := range looks {
		c, err := dbus.Connect(r.address)
		if err != nil {
			t.Fatal(err)
		}
		lookers.Go(func() {
			defer func() { _ = c.Close() }()
			for !over.Load() {
				if err := look(c); err != nil {
					t.Error(err)
					return
				}
				looked[i].Add(1)
			}
		})
	}
	for range 20 {
		r.register(t, "guest", nil)
		if err := r.call(guest, home1.HomeInterface+".Unregister").Err; err != nil {
			t.Fatal(err)
		}
	}
	for i := range looks {
		settles(t, "one does not look", func() bool { return t.Failed() || looked[i].Load() > 0 })
	}
}

// TestReferences passes a descriptor through the bus and sees its end.
func TestReferences(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	ctx := context.Background()
	r.register(t, "ann", nil)
	before := openFiles(t)
	ref, err := r.client.RefHomeUnrestricted(ctx, "ann", true)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := unix.FcntlInt(ref.Fd(), unix.F_GETFL, 0); err != nil || m&unix.O_ACCMODE != unix.O_WRONLY {
		t.Errorf("the reference is open as %o, %v", m, err)
	}
	if err := r.client.ReleaseHome(ctx, "ann"); fault.KindOf(err) != fault.HomeBusy {
		t.Errorf("release of a referenced home: %v", err)
	}
	if _, err := r.client.RefHome(ctx, "ann", false); fault.KindOf(err) != fault.HomeAbsent && fault.KindOf(err) != fault.HomeNotActive {
		t.Errorf("reference on an absent home: %v", err)
	}
	ref.Close()
	pw, err := secret.Copy([]byte(`{"password":["geheim"]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close()
	if _, err := r.client.AcquireHome(ctx, "ann", pw, false); fault.KindOf(err) != fault.HomeAbsent {
		t.Errorf("acquire of an absent home: %v", err)
	}
	// Descriptors of calls that are refused, and of signals, are closed.
	for range 20 {
		r.call(home1.ManagerPath, home1.ManagerInterface+".CreateHomeEx", "x", map[string]dbus.UnixFD{"a": 0, "b": 1}, uint64(0))
		r.call(home1.ManagerPath, home1.ManagerInterface+".Frobnicate", []dbus.UnixFD{0, 1})
		owner := ""
		if err := r.raw.BusObject().Call(driverIface+".GetNameOwner", 0, home1.Name).Store(&owner); err != nil {
			t.Fatal(err)
		}
		msg := &dbus.Message{Type: dbus.TypeSignal, Body: []any{[]dbus.UnixFD{0, 1}}, Headers: headers(map[dbus.HeaderField]any{
			dbus.FieldPath: dbus.ObjectPath("/x"), dbus.FieldInterface: "a.b", dbus.FieldMember: "C", dbus.FieldDestination: owner}, []any{[]dbus.UnixFD{0, 1}})}
		r.raw.Send(msg, nil)
	}
	if err := r.call("/", home1.PeerInterface+".Ping").Err; err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if after := openFiles(t); after > before+3 {
		t.Errorf("%d files open, %d before", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestSignals(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	if err := r.raw.AddMatchSignal(dbus.WithMatchPathNamespace(home1.ManagerPath)); err != nil {
		t.Fatal(err)
	}
	ch := make(chan *dbus.Signal, 20)
	r.raw.Signal(ch)
	next := func() *dbus.Signal {
		select {
		case s := <-ch:
			if s.Name == driverIface+".NameAcquired" {
				s = <-ch
			}
			return s
		case <-time.After(5 * time.Second):
			t.Fatal("no signal")
			return nil
		}
	}
	r.register(t, "ann", map[string]any{"autoLogin": true, "uid": 60456})
	s := next()
	if s.Name != home1.ObjectManagerInterface+".InterfacesAdded" || s.Path != home1.HomesPath || s.Body[0] != dbus.ObjectPath(home1.HomesPath+"/ann") {
		t.Fatalf("first signal is %+v", s)
	}
	ifaces := s.Body[1].(map[string]map[string]dbus.Variant)
	own := ifaces[home1.HomeInterface]
	if len(ifaces) != 4 || len(own) != 4 || own["UserName"].Value() != "ann" || own["UID"].Value() != uint32(60456) {
		t.Errorf("interfaces are %v", ifaces)
	}
	if s = next(); s.Name != home1.PropertiesInterface+".PropertiesChanged" || s.Path != home1.ManagerPath {
		t.Errorf("second signal is %+v", s)
	}
	if err := r.client.UnregisterHome(context.Background(), "ann"); err != nil {
		t.Fatal(err)
	}
	if s = next(); s.Name != home1.ObjectManagerInterface+".InterfacesRemoved" || len(s.Body[1].([]string)) != 4 {
		t.Errorf("third signal is %+v", s)
	}
}

// polkit has a answer on the bus as polkit, until the test ends.
func (r *rig) polkit(t *testing.T, a any) {
	t.Helper()
	pk, err := dbus.Connect(r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pk.Close() })
	if err := pk.Export(a, polkitPath, polkitIface); err != nil {
		t.Fatal(err)
	}
	if _, err := pk.RequestName(polkitName, 0); err != nil {
		t.Fatal(err)
	}
}

// authority is polkit as far as we ask it.
type authority struct {
	mu    sync.Mutex
	asked []string
}

func (a *authority) CheckAuthorization(who struct {
	Kind    string
	Details map[string]dbus.Variant
}, action string, details map[string]string, flags uint32, _ string) (struct {
	Yes, Challenge bool
	Details        map[string]string
}, *dbus.Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, who.Kind+" "+action+" "+details["username"]+" "+details["uid"])
	type answer = struct {
		Yes, Challenge bool
		Details        map[string]string
	}
	switch action {
	case home1.ActionActivate:
		return answer{Yes: true}, nil
	case home1.ActionAuthenticate:
		return answer{Challenge: true}, nil
	case home1.ActionPasswd:
		return answer{}, &dbus.Error{Name: polkitName + ".Error.Failed", Body: []any{"x"}}
	}
	return answer{}, nil
}

// as calls a manager method as another user and returns its error output.
func (r *rig) as(t *testing.T, uid uint32, method string, args ...string) string {
	t.Helper()
	cmd := exec.Command("busctl", append([]string{"--address=" + r.address, "call", home1.Name, home1.ManagerPath, home1.ManagerInterface, method}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err == nil {
		return "ok " + string(out)
	}
	return string(out)
}

func TestGates(t *testing.T) {
	testenv.Need(t, "root", "busctl")
	r := serve(t)
	r.register(t, "ann", map[string]any{"uid": 60456})
	expect := func(what, got, want string) {
		t.Helper()
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	expect("open to all", r.as(t, 1500, "GetHomeByName", "s", "ann"), `ok usussso`)
	expect("the caller's own", r.as(t, 60456, "GetHomeByName", "s", ""), `ok usussso 60456`)
	if out := r.as(t, 1500, "GetUserRecordByName", "s", "ann"); strings.Contains(out, "hashedPassword") || !strings.Contains(out, "true") {
		t.Errorf("a stranger sees %s", out)
	}
	expect("the owner", r.as(t, 60456, "GetUserRecordByName", "s", "ann"), "hashedPassword")
	// The privileged flag comes before the signature.
	expect("privileged", r.as(t, 1500, "LockHome", "u", "5"), "Access denied")
	expect("acquire is open", r.as(t, 1500, "AcquireHome", "ssb", "ann", "{}", "false"), "missing or not plugged in")
	expect("without polkit", r.as(t, 1500, "RemoveHome", "s", "ann"), "Access denied")

	a := &authority{}
	r.polkit(t, a)
	expect("no", r.as(t, 1500, "RemoveHome", "s", "ann"), "Access denied")
	expect("challenge", r.as(t, 1500, "AuthenticateHome", "ss", "ann", "{}"), "requires interactive authentication")
	expect("polkit fails", r.as(t, 1500, "ChangePasswordHome", "sss", "ann", "{}", "{}"), "Access denied")
	expect("yes", r.as(t, 1500, "ActivateHome", "ss", "ann", "{}"), "missing or not plugged in")
	expect("the owner needs none", r.as(t, 60456, "AuthenticateHome", "ss", "ann", "{}"), "missing or not plugged in")
	expect("a bad secret before polkit", r.as(t, 1500, "AuthenticateHome", "ss", "ann", "x"), "JSON")
	// Her name is ann's own to change, her nice level and a time to come are not.
	own := func(field string) string {
		return r.as(t, 60456, "UpdateHome", "s", `{"userName":"ann","disposition":"regular","storage":"luks","uid":60456,`+field+
			`,"privileged":{"hashedPassword":["$6$abcdefgh$Is3kZSztnMPZAznDT2TCAPxT9phlTw5Pdn18vOhvb7Xdi.wDEuVZcrX3YdfoOhgdEOLvVEE/l8Vev0nuc3Obx0"]}}`)
	}
	for _, field := range []string{`"realName":"Ann","lastChangeUSec":5`, `"niceLevel":5,"lastChangeUSec":5`, `"realName":"Ann","lastChangeUSec":18446744073709551614`} {
		expect(field, own(field), "Access denied")
	}
	want := []string{
		"system-bus-name " + home1.ActionRemove + " ann 60456",
		"system-bus-name " + home1.ActionAuthenticate + " ann 60456",
		"system-bus-name " + home1.ActionPasswd + " ann 60456",
		"system-bus-name " + home1.ActionActivate + "  ",
		"system-bus-name " + home1.ActionUpdateByOwner + " ann 60456",
		"system-bus-name " + home1.ActionUpdate + " ann 60456",
		"system-bus-name " + home1.ActionUpdate + " ann 60456",
	}
	if strings.Join(a.asked, "\n") != strings.Join(want, "\n") {
		t.Errorf("polkit was asked %q", a.asked)
	}
}

// TestOrder pipelines calls: each must find what the one before it left.
func TestOrder(t *testing.T) {
	testenv.Need(t, "root")
	r := serve(t)
	obj := r.raw.Object(home1.Name, home1.ManagerPath)
	for range 30 {
		ch := make(chan *dbus.Call, 3)
		rec := `{"userName":"ann","disposition":"regular","storage":"luks","privileged":{"hashedPassword":["$y$j9T$x$y"]}}`
		obj.Go(home1.ManagerInterface+".RegisterHome", 0, ch, rec)
		obj.Go(home1.ManagerInterface+".GetHomeByName", 0, ch, "ann")
		obj.Go(home1.ManagerInterface+".UnregisterHome", 0, ch, "ann")
		for range 3 {
			if c := <-ch; c.Err != nil {
				t.Fatalf("%s: %v", c.Method, c.Err)
			}
		}
	}
}

func TestLosingTheNameEndsServe(t *testing.T) {
	address := testenv.Bus(t)
	m, err := manager.New(manager.Options{Layout: tempLayout(t), Machine: records.Machine{ID: machineID}, Accounts: nobody{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = m.Run(ctx) })
	defer running.Wait()
	defer cancel()
	other, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.RequestName(home1.Name, 0); err != nil {
		t.Fatal(err)
	}
	if err := Serve(ctx, Options{Manager: m, Address: address, Machine: records.Machine{ID: machineID}, Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "another service owns") {
		t.Errorf("the name is taken: %v", err)
	}
	if _, err := other.ReleaseName(home1.Name); err != nil {
		t.Fatal(err)
	}
	acquired := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, Options{Manager: m, Address: address, Machine: records.Machine{ID: machineID}, Log: slog.New(slog.DiscardHandler), Acquired: func() { close(acquired) }})
	}()
	<-acquired
	var pid uint32
	if err := other.BusObject().Call(driverIface+".GetConnectionUnixProcessID", 0, driverName).Store(&pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(int(pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, ErrLost) {
			t.Errorf("without a bus Serve returns %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Serve outlives the bus")
	}
}
