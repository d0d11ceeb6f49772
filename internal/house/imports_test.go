package house

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A rule allows the packages that match from (a path, or a prefix ending in
// "/...") to import, of this module, only what matches one of to.
type rule struct {
	from   string
	to     []string
	reason string
}

// leaves may be imported by everyone and import nothing but themselves.
var leaves = []string{"internal/..."}

var rules = []rule{
	{"internal/...", nil, "the cellar holds up the house and rests on nothing of it"},
	{"records", nil, "records is pure: it rests on the leaves alone, so that the same input gives the same signature bytes"},
	{"records/...", []string{"records", "records/..."}, "show and quality explain a record; they know nothing of homes or buses"},

	{"storage/luks2", nil, "a format package opens no file and asks no kernel: it fuzzes without root"},
	{"storage/gpt", nil, "a format package opens no file and asks no kernel: it fuzzes without root"},
	{"storage/dm", nil, "a kernel package knows no format and reads side by side with the kernel's documents"},
	{"storage/disk", nil, "a kernel package knows no format and reads side by side with the kernel's documents"},
	{"storage/loop", nil, "a kernel package knows no format and reads side by side with the kernel's documents"},
	{"storage/keyring", nil, "a kernel package knows no format and reads side by side with the kernel's documents"},
	{"storage/memory", nil, "a kernel package knows no format and reads side by side with the kernel's documents"},
	{"storage/mounts", nil, "a kernel package knows no format and reads side by side with the kernel's documents"},
	{"storage/holders", nil, "a kernel package knows no format and reads side by side with the kernel's documents"},
	{"storage/blobs", []string{"records", "storage/fsops"}, "one directory becomes another; which of them counts is the flow's to say"},
	{"storage/fsops", nil, "a kernel package knows no format and reads side by side with the kernel's documents"},
	{"storage/quota", nil, "a kernel package knows no format and reads side by side with the kernel's documents"},
	{"storage/presence", []string{"storage/mounts", "storage/quota"}, "presence looks from outside; the daemon links it, so it must not be able to open a home"},
	{"storage", []string{"records", "storage/dm", "storage/loop", "storage/keyring", "storage/mounts", "storage/fsops", "storage/blobs", "storage/memory", "storage/quota", "storage/presence"}, "flows order steps; which backend does them is the worker's choice"},
	{"storage/luks", []string{"records", "storage", "storage/luks2", "storage/gpt", "storage/disk", "storage/dm", "storage/loop", "storage/memory", "storage/keyring", "storage/mounts", "storage/fsops"}, "a backend rests on formats and kernel, never on another backend or the daemon"},
	{"storage/directory", []string{"records", "storage", "storage/mounts", "storage/fsops"}, "a backend rests on formats and kernel, never on another backend or the daemon"},
	{"storage/subvolume", []string{"records", "storage", "storage/mounts", "storage/fsops", "storage/quota"}, "a backend rests on formats and kernel, never on another backend or the daemon"},
	{"storage/crashtest", []string{"storage/dm", "storage/loop"}, "it records disks; which operation is recorded, and what must come of it, is the tests'"},
	{"storage/storagetest", []string{"records", "storage", "storage/..."}, "the suite every backend passes"},

	{"homed/home", nil, "the state machine is pure: a table tests the whole of it"},
	{"homed/config", nil, "configuration is read once and decides nothing"},
	{"homed/worker", []string{"records"}, "the protocol carries; the daemon's half must not link storage, or the daemon could hold a volume key"},
	{"homed/udev", nil, "what udev says of devices reads side by side with its sources"},
	{"homed/manager", []string{"records", "homed/home", "homed/worker", "homed/config", "homed/udev", "storage/presence"}, "front ends import the manager, never the reverse; of storage it sees presence alone"},
	{"homed/manager/managertest", []string{"records", "homed/manager", "homed/config"}, "it runs a manager for tests; what stands before it is theirs"},
	{"homed/home1", []string{"records"}, "clients link home1 and must not get the daemon with it"},
	{"homed/bus", []string{"records", "homed/manager", "homed/home", "homed/home1"}, "a front end translates"},
	{"homed/userdb", []string{"records", "homed/manager", "homed/home"}, "a front end translates"},

	{"pamhome/frame", nil, "the wire knows no policy"},
	{"pamhome/askpassword", nil, "a protocol of the system's: it knows no home and no login"},
	{"pamhome/session", []string{"records"}, "what a session is to be is decided without asking anybody"},
	{"pamhome/varlink", nil, "a wire that knows no method"},
	{"pamhome/login1", []string{"pamhome/session", "pamhome/varlink"}, "the login manager's interface carries requests; it decides none"},
	{"pamhome", []string{"records", "homed/home1", "pamhome/frame", "pamhome/askpassword", "pamhome/session", "pamhome/login1", "pamhome/varlink"}, "the helper speaks the bus only, so it works with systemd-homed as well"},
	{"pamhome/...", []string{"records", "homed/home1", "pamhome", "pamhome/..."}, "the helper speaks the bus only, so it works with systemd-homed as well"},

	{"cmd/homed/system", nil, "files that are installed, and their test"},
	{"cmd/homed", []string{"homed/...", "records"}, "the daemon must not link storage: it then cannot hold a volume key"},
	{"cmd/homework", []string{"homed/worker", "storage", "storage/...", "records"}, "the worker is the one place where daemon protocol and storage meet"},
	{"cmd/homectl", []string{"homed/home1", "homed/config", "pamhome/askpassword", "records", "records/..."}, "homectl is a bus client like any other; of the configuration it knows where things lie"},
	{"cmd/pamhome", []string{"pamhome", "pamhome/...", "homed/home1"}, "the helper speaks the bus only"},
	{"cmd/homelinger", []string{"homed/home1", "homed/config", "pamhome/askpassword", "records"}, "a bus client that asks; it opens no home itself"},
	{"cmd/homeshell", []string{"homed/home1", "records", "pamhome/session"}, "the shell is a bus client that gives a session what its record says"},
	{"vmtest", []string{"vmtest/..."}, "the harness looks at the product from outside"},
	{"vmtest/cmd/kdftime", []string{"records", "storage/luks2", "storage/memory"}, "it times what the worker does with a header and a password"},
	{"vmtest/...", []string{"vmtest", "vmtest/...", "records", "homed/home1"}, "guest tests look at the product from outside"},
}

// linkOnly are packages that a program must not contain, however they would
// come in.
var neverLinked = []struct{ program, pkg, reason string }{
	{"cmd/homed", "storage/luks2", "the daemon must not be able to hold a volume key"},
	{"cmd/homed", "storage/dm", "the daemon must not be able to open a home"},
	{"cmd/homed", "records/show", "what only a person reads is not linked where secrets work"},
	{"cmd/homed", "records/quality", "what only a person reads is not linked where secrets work"},
	{"cmd/homework", "records/show", "what only a person reads is not linked where secrets work"},
	{"cmd/homework", "records/quality", "advice on passwords is for those who choose one, and linked nowhere else"},
	{"cmd/pamhome", "records/quality", "advice on passwords is for those who choose one, and linked nowhere else"},
	{"cmd/homeshell", "records/quality", "advice on passwords is for those who choose one, and linked nowhere else"},
	{"cmd/homework", "homed/manager", "the worker knows one home and no daemon"},
	{"cmd/homework", "homed/home1", "the worker knows no bus"},
	{"cmd/pamhome", "homed/manager", "the helper is a bus client"},
	{"cmd/homectl", "homed/manager", "homectl is a bus client"},
}

const module = "hearth/"

type pkg struct {
	ImportPath string
	Dir        string
	Doc        string
	Imports    []string
	Deps       []string
	GoFiles    []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Imports,Deps,GoFiles", "hearth/...")
	cmd.Stderr = os.Stderr
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 3 {
		t.Fatalf("go list knows %d packages only", len(all))
	}
	return all
}

func match(pattern, path string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return strings.HasPrefix(path, prefix+"/")
	}
	return pattern == path
}

// find returns the most exact rule for a package.
func find(path string) *rule {
	var best *rule
	for i := range rules {
		r := &rules[i]
		if match(r.from, path) && (best == nil || !strings.HasSuffix(r.from, "/...") || len(r.from) > len(best.from)) {
			if best != nil && !strings.HasSuffix(best.from, "/...") {
				continue
			}
			best = r
		}
	}
	return best
}

func TestImports(t *testing.T) {
	for _, p := range list(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		r := find(path)
		if r == nil {
			t.Errorf("%s: no rule for this package. Which room is it? See docs/architecture.md", path)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			allowed := false
			for _, pattern := range append(append([]string(nil), leaves...), r.to...) {
				allowed = allowed || match(pattern, to)
			}
			if !allowed {
				t.Errorf("%s imports %s: not allowed, because %s", path, to, r.reason)
			}
		}
	}
}

func TestPrograms(t *testing.T) {
	all := map[string]pkg{}
	for _, p := range list(t) {
		all[strings.TrimPrefix(p.ImportPath, module)] = p
	}
	for _, n := range neverLinked {
		for _, d := range all[n.program].Deps {
			if d == module+n.pkg {
				t.Errorf("%s contains %s: %s", n.program, n.pkg, n.reason)
			}
		}
	}
}

// TestPackageDocs demands one doc comment per package: what it knows, and
// what it leaves to others.
func TestPackageDocs(t *testing.T) {
	for _, p := range list(t) {
		with := 0
		for _, f := range p.GoFiles {
			ast, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if ast.Doc != nil {
				with++
			}
		}
		if with != 1 && len(p.GoFiles) > 0 {
			t.Errorf("%s: %d doc comments, want one", strings.TrimPrefix(p.ImportPath, module), with)
		}
	}
}

// TestOnlyCommandsExit keeps os.Exit, os.Args and the environment out of
// everything that a test may want to run inside its own process.
func TestOnlyCommandsExit(t *testing.T) {
	for _, p := range list(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasPrefix(path, "cmd/") || strings.HasPrefix(path, "vmtest") || strings.HasPrefix(path, "internal/") {
			continue
		}
		for _, f := range p.GoFiles {
			text, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range []string{"os.Exit(", "os.Args", "log.Fatal"} {
				if strings.Contains(string(text), word) {
					t.Errorf("%s/%s uses %s: only cmd may", path, f, strings.TrimSuffix(word, "("))
				}
			}
		}
	}
}
