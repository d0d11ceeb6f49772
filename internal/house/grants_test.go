package house

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// granting are the functions that hand out a uid, groups, a directory, a shell,
// limits, an attempt or a way in, each with the parameter by which it grants
// ("" is the receiver). That has to be a records.Subject, or a records.Verified
// where a name and this machine's own binding are not enough. No other
// parameter may be a plain record, but for copies that are judged.
var granting = []struct{ pkg, function, by string }{
	{"records", "Authenticate", "v"},
	{"records", "RequirePlaintexts", "v"},
	{"records", "Verified.EffectivePassphrases", ""},
	{"records", "Group", "s"},
	{"records", "Attempt", "s"},
	{"records", "Bind", "s"},
	{"records", "Count", "s"},
	{"records", "Keys.Reconcile", "host"},
	{"storage", "Run", "subject"},
	{"storage", "flow.bind", "v"},
	{"storage", "flow.populate", "record"},
	{"homed/manager", "Manager.add", "s"},
	{"homed/manager", "Manager.adopt", "s"},
	{"homed/manager", "Manager.storeRecord", "s"},
	{"homed/manager", "Manager.count", "counted"},
	{"homed/manager", "Manager.work", "subject"},
}

// copies are the parameters that lose, or are vouched for inside.
var copies = map[string]bool{"Keys.Reconcile header": true, "Keys.Reconcile embedded": true}

// rooms act by records. In them the fields of a plain record are out of reach:
// what they know of a user comes from a Subject.
var rooms = []string{"records", "storage/...", "homed/manager", "homed/userdb", "homed/bus", "cmd/homework", "cmd/homed"}

// unreachable are the methods of a plain record that tell what it means. The
// programs that only show a record, and those that get it from the bus, whose
// daemon has judged it, use them.
var unreachable = map[string]bool{"View": true, "Effective": true, "Counters": true}

// makers are the functions that may make a records.Verified: by a signature, or
// from one by sections that a signature does not cover; Verified.pack changes
// nothing but the form.
var makers = map[string]bool{"Keys.Vouch": true, "Signer.Sign": true,
	"Verified.WithBindingOf": true, "Verified.WithStatusOf": true, "Verified.bound": true, "Verified.counted": true,
	"Verified.pack": true}

// typed is a package with the types of everything in it.
type typed struct {
	files []*ast.File
	info  *types.Info
	fset  *token.FileSet
	pkg   *types.Package
}

// check type-checks the rooms by the export data of what they import.
func check(t *testing.T) map[string]typed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-export", "-deps", "-json=ImportPath,Dir,GoFiles,Export"}, paths()...)...)
	cmd.Dir, cmd.Stderr = "../..", os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	type source struct {
		ImportPath, Dir, Export string
		GoFiles                 []string
	}
	all := map[string]source{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var s source
		if err := dec.Decode(&s); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all[s.ImportPath] = s
	}
	fset := token.NewFileSet()
	imports := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(all[path].Export) })
	checked := map[string]typed{}
	for path, s := range all {
		room, ours := strings.CutPrefix(path, module)
		if !ours || strings.HasSuffix(room, "test") || !slices.ContainsFunc(rooms, func(r string) bool {
			return match(r, room) || strings.TrimSuffix(r, "/...") == room
		}) {
			continue
		}
		p := typed{fset: fset, info: &types.Info{Uses: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{}}}
		for _, f := range s.GoFiles {
			file, err := parser.ParseFile(fset, filepath.Join(s.Dir, f), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			p.files = append(p.files, file)
		}
		conf := types.Config{Importer: imports}
		if p.pkg, err = conf.Check(path, fset, p.files, p.info); err != nil {
			t.Fatal(err)
		}
		checked[room] = p
	}
	return checked
}

func paths() (list []string) {
	for _, room := range rooms {
		list = append(list, module+room)
	}
	return list
}

// kind says what of package records a type is, "" if it is nothing of it.
func kind(typ types.Type) string {
	if p, ok := typ.(*types.TypeParam); ok {
		typ = p.Constraint()
	}
	name := strings.ReplaceAll(types.TypeString(typ, nil), module, "")
	if !strings.Contains(name, "records.") {
		return ""
	}
	return name
}

// function finds NAME or TYPE.NAME.
func function(p *types.Package, name string) *types.Func {
	typ, method, ok := strings.Cut(name, ".")
	if !ok {
		f, _ := p.Scope().Lookup(name).(*types.Func)
		return f
	}
	of := p.Scope().Lookup(typ)
	if of == nil {
		return nil
	}
	o, _, _ := types.LookupFieldOrMethod(types.NewPointer(of.Type()), true, p, method)
	f, _ := o.(*types.Func)
	return f
}

// TestNobodyGrantsByPlainRecords: a record that nobody vouches for cannot reach
// what hands out rights.
func TestNobodyGrantsByPlainRecords(t *testing.T) {
	checked := check(t)
	for _, g := range granting {
		f := function(checked[g.pkg].pkg, g.function)
		if f == nil {
			t.Errorf("%s has no %s", g.pkg, g.function)
			continue
		}
		sig := f.Signature()
		params := []*types.Var{}
		if sig.Recv() != nil && g.by == "" {
			params = append(params, types.NewParam(token.NoPos, nil, "", sig.Recv().Type()))
		}
		for v := range sig.Params().Variables() {
			params = append(params, v)
		}
		grants := false
		for _, v := range params {
			switch k := kind(v.Type()); {
			case v.Name() == g.by:
				if grants = k == "records.Subject" || k == "records.Verified"; !grants {
					t.Errorf("%s.%s grants by %s, a %s", g.pkg, g.function, v.Name(), k)
				}
			case (strings.Contains(k, "records.Record") || strings.Contains(k, "records.View")) && !copies[g.function+" "+v.Name()]:
				t.Errorf("%s.%s takes %s, a %s", g.pkg, g.function, v.Name(), k)
			}
		}
		if !grants {
			t.Errorf("%s.%s has no %q that grants", g.pkg, g.function, g.by)
		}
	}
}

// TestRoomsReadNoPlainRecord: see unreachable.
func TestRoomsReadNoPlainRecord(t *testing.T) {
	for room, p := range check(t) {
		if room == "records" {
			continue
		}
		for id, o := range p.info.Uses {
			f, ok := o.(*types.Func)
			if !ok || !unreachable[f.Name()] || f.Signature().Recv() == nil {
				continue
			}
			if kind(f.Signature().Recv().Type()) == "*records.Record" {
				t.Errorf("%v: %s uses Record.%s: a plain record means nothing there, take a Subject", p.fset.Position(id.Pos()), room, f.Name())
			}
		}
	}
}

// TestWhoVouches: only makers write a Verified that is not zero.
func TestWhoVouches(t *testing.T) {
	p := check(t)["records"]
	seen := 0
	for _, file := range p.files {
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			name := f.Name.Name
			if f.Recv != nil {
				name = strings.TrimPrefix(types.ExprString(f.Recv.List[0].Type), "*") + "." + name
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CompositeLit:
					if kind(p.info.Types[n].Type) == "records.Verified" && len(n.Elts) > 0 {
						if seen++; !makers[name] {
							t.Errorf("%s makes a Verified", name)
						}
					}
				case *ast.AssignStmt:
					for _, to := range n.Lhs {
						if s, ok := to.(*ast.SelectorExpr); ok && kind(p.info.Types[s.X].Type) == "records.Verified" {
							t.Errorf("%s changes a Verified", name)
						}
					}
				}
				return true
			})
		}
	}
	if seen < len(makers) {
		t.Errorf("%d places make a Verified, %d are known", seen, len(makers))
	}
}
