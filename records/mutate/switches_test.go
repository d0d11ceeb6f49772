package mutate

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A room is a package in which breaks are made by rule, all of them compiled in
// at once, each behind a switch of its own.
type room struct {
	path string // below the module
	// checks are the functions in which each condition is dropped: an if never
	// holds. Those are the places where a verdict or an error is looked at.
	checks []string
	// comparisons are the functions in which each comparison is inverted.
	comparisons []string
	// bounds are the files in which what a number is compared with is moved by
	// one, either way, and the functions whose argument is such a bound.
	bounds    []string
	boundArgs []string
	// masks, lists and keeps: see the methods.
	masks, lists, keeps string
}

var rooms = []room{
	{
		path: "records",
		checks: []string{"Keys.Vouch", "Keys.Reconcile", "Keys.reconcile", "Keys.Judge", "Verified.vouched", "Authenticate", "plaintexts",
			"Record.CheckUpdate", "Record.Touched", "Signer.Sign", "Keys.Verify", "Record.signatures", "load", "Record.Manageable", "Record.Suitable"},
		comparisons: []string{"Keys.Reconcile", "Keys.reconcile", "compareChange", "Record.SameUser", "Record.CheckUpdate", "Keys.Verify", "Record.HasSignature"},
		bounds:      []string{"fields.go", "names.go", "blobs.go", "accept.go", "view.go", "uids.go", "status.go"},
		boundArgs:   []string{"modeUpTo", "uintBetween"},
		masks:       "sections.go", lists: "selfmodify.go", keeps: "mask.go",
	},
	{
		path: "storage",
		checks: []string{"flow.verified", "flow.check", "flow.copyOf", "flow.admit", "flow.grant", "flow.embedded", "flow.reconcile",
			"flow.openWith"},
		comparisons: []string{"flow.admit", "flow.embedded"},
	},
	{
		path: "homed/manager",
		checks: []string{"Manager.loadRecord", "Manager.accept", "Manager.vet", "Manager.updated", "Manager.signedElsewhere", "Manager.judgeInspect",
			"Manager.judgeChange", "Manager.keepEarly", "Manager.launchUpdate", "Manager.conflict"},
	},
	{
		path:   "homed/userdb",
		checks: []string{"server.memberships"},
	},
}

// sameAs are switches that change nothing anybody could notice, with the reason.
var sameAs = map[string]string{
	"records/sections.go load: check of !doc.is(object) dropped":                          "what is no object has no regular section either, and is refused in the same words",
	"records/view.go r < 0x20 moved at 0x20":                                              "it replaces a space by a space",
	"homed/manager/operate.go Manager.vet: check of aerr != nil || err != nil dropped":    "names are looked at again once the record is vetted",
	"homed/manager/operate.go Manager.vet: check of aerr != nil || err != nil dropped #2": "uids likewise",
	"homed/manager/operate.go Manager.vet: check of aerr != nil dropped":                  "the loop has ended, as the next question to it says too",
	"homed/manager/change.go Manager.keepEarly: check of err != nil dropped #2":           "it is for the log",
	"storage/run.go flow.admit: check of f.overruled dropped":                             "it is for the log",
	"storage/run.go flow.grant: check of err != nil dropped":                              "a zero Verified authenticates nobody, with the same fault",
}

// A change is an insertion at a place of a file, before or after an expression.
type change struct {
	at     int
	text   string
	before bool
}

// A broken is one way to break a room.
type broken struct {
	number int
	line   int
	what   string
}

// a switchboard gathers what is inserted into the files of a room.
type switchboard struct {
	t       *testing.T
	room    string
	fset    *token.FileSet
	changes map[string][]change
	list    []broken
	alike   map[string]int
}

// add returns the number of a new break.
func (s *switchboard) add(at token.Pos, format string, args ...any) string {
	p := s.fset.Position(at)
	n := len(s.list) + 1
	what := s.room + "/" + filepath.Base(p.Filename) + " " + fmt.Sprintf(format, args...)
	if s.alike[what]++; s.alike[what] > 1 {
		what += fmt.Sprintf(" #%d", s.alike[what])
	}
	s.list = append(s.list, broken{n, p.Line, what})
	return fmt.Sprint(n)
}

// around puts text before and after an expression.
func (s *switchboard) around(e ast.Node, before, after string) {
	from, to := s.fset.Position(e.Pos()), s.fset.Position(e.End())
	s.changes[from.Filename] = append(s.changes[from.Filename], change{from.Offset, before, true}, change{to.Offset, after, false})
}

// apply returns a file with everything inserted. What was added later stands
// further outside.
func (s *switchboard) apply(name string, text []byte) []byte {
	var list []change
	for _, c := range s.changes[name] {
		if c.before {
			list = slices.Insert(list, 0, c)
		} else {
			list = append(list, c)
		}
	}
	slices.SortStableFunc(list, func(a, b change) int { return a.at - b.at })
	var out bytes.Buffer
	done := 0
	for _, c := range list {
		out.Write(text[done:c.at])
		out.WriteString(c.text)
		done = c.at
	}
	out.Write(text[done:])
	return out.Bytes()
}

// text prints an expression on one line.
func text(e ast.Expr) string { return types.ExprString(e) }

func functionName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	typ := f.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	return typ.(*ast.Ident).Name + "." + f.Name.Name
}

var opposite = map[token.Token]bool{token.EQL: true, token.NEQ: true, token.LSS: true, token.GTR: true, token.LEQ: true, token.GEQ: true}

// wire makes the switches of a room.
func wire(t *testing.T, r room) *switchboard {
	t.Helper()
	s := &switchboard{t: t, room: r.path, fset: token.NewFileSet(), changes: map[string][]change{}, alike: map[string]int{}}
	files, err := filepath.Glob(filepath.Join(top, r.path, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(s.fset, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(path)
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			fn := functionName(f)
			found[fn] = true
			if slices.Contains(r.comparisons, fn) {
				s.comparisons(f, fn)
			}
			if slices.Contains(r.checks, fn) {
				s.checks(f, fn)
			}
		}
		if slices.Contains(r.bounds, name) {
			s.bounds(file)
		}
		if len(r.boundArgs) > 0 {
			s.boundArgs(file, r.boundArgs)
		}
		switch name {
		case r.masks:
			s.masks(file)
		case r.lists:
			s.lists(file)
		case r.keeps:
			s.keeps(file)
		}
	}
	for _, fn := range slices.Concat(r.checks, r.comparisons) {
		if !found[fn] {
			t.Errorf("%s has no function %s any more", r.path, fn)
		}
	}
	return s
}

func (s *switchboard) comparisons(f *ast.FuncDecl, fn string) {
	ast.Inspect(f, func(n ast.Node) bool {
		if e, ok := n.(*ast.BinaryExpr); ok && opposite[e.Op] {
			s.around(e, "(off("+s.add(e.Pos(), "%s: %s inverted", fn, text(e))+") != (", "))")
		}
		return true
	})
}

func (s *switchboard) checks(f *ast.FuncDecl, fn string) {
	ast.Inspect(f, func(n ast.Node) bool {
		// What mounts are there only root's tests know.
		if i, ok := n.(*ast.IfStmt); ok && !strings.Contains(text(i.Cond), "SeenMounted") {
			s.around(i.Cond, "(!off("+s.add(i.Pos(), "%s: check of %s dropped", fn, text(i.Cond))+") && (", "))")
		}
		return true
	})
}

// bounds moves what numbers are compared with, where that is a number or a
// named bound.
func (s *switchboard) bounds(file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		e, ok := n.(*ast.BinaryExpr)
		if !ok {
			return true
		}
		b, ok := e.Y.(*ast.BasicLit)
		if !ok || b.Kind != token.INT || len(b.Value) < 2 {
			return true
		}
		switch a := text(e.X); e.Op {
		case token.LEQ, token.GTR:
			// As "not above": b, or b+1, is let in, or not.
			for _, v := range []string{b.Value, b.Value + "+1"} {
				s.around(e, "(off("+s.add(e.Pos(), "%s moved at %s", text(e), v)+") && "+a+" == "+v+") != (", ")")
			}
		case token.LSS, token.GEQ:
			for _, v := range []string{b.Value, b.Value + "-1"} {
				s.around(e, "(off("+s.add(e.Pos(), "%s moved at %s", text(e), v)+") && "+a+" == "+v+") != (", ")")
			}
		}
		return true
	})
}

// boundArgs moves numbers that are given to functions as bounds.
func (s *switchboard) boundArgs(file *ast.File, functions []string) {
	ast.Inspect(file, func(n ast.Node) bool {
		c, ok := n.(*ast.CallExpr)
		if !ok || !slices.Contains(functions, text(c.Fun)) {
			return true
		}
		for _, a := range c.Args {
			if _, ok := a.(*ast.BasicLit); !ok {
				continue
			}
			s.around(a, "(", " + one("+s.add(a.Pos(), "%s: %s+1", text(c), text(a))+"))")
			if text(a) != "0" {
				s.around(a, "(", " - one("+s.add(a.Pos(), "%s: %s-1", text(c), text(a))+"))")
			}
		}
		return true
	})
}

var sections = []string{"regular", "privileged", "perMachine", "binding", "status", "signature", "secretSection"}

// masks flips each cell of the table that says what each context lets in and
// what it takes away.
func (s *switchboard) masks(file *ast.File) {
	rows := 0
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || v.Names[0].Name != "masks" {
			return true
		}
		for _, row := range v.Values[0].(*ast.CompositeLit).Elts {
			rows++
			context := text(row.(*ast.KeyValueExpr).Key)
			cells := row.(*ast.KeyValueExpr).Value.(*ast.CompositeLit)
			fields := map[string]ast.Expr{}
			for _, f := range cells.Elts {
				fields[text(f.(*ast.KeyValueExpr).Key)] = f.(*ast.KeyValueExpr).Value
			}
			stripped := ""
			if fields["strip"] != nil {
				stripped = text(fields["strip"])
			}
			strips := ", strip: 0"
			for _, section := range sections[1:] { // without a regular section there is no record
				if !strings.Contains(stripped, section) {
					s.around(fields["allow"], "(", ")^bit("+s.add(row.Pos(), "%s: %s allowed or not", context, section)+", "+section+")")
				}
				number := s.add(row.Pos(), "%s: %s stripped or not", context, section)
				if fields["strip"] != nil {
					s.around(fields["strip"], "(", ")^bit("+number+", "+section+")")
				} else {
					strips += "^bit(" + number + ", " + section + ")"
				}
			}
			if fields["strip"] == nil {
				s.around(fields["allow"], "", strips)
			}
		}
		return false
	})
	if rows < 10 {
		s.t.Errorf("the table of masks has %d rows", rows)
	}
}

// lists takes each word out of each list.
func (s *switchboard) lists(file *ast.File) {
	words := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			words++
			s.around(l, "word("+s.add(l.Pos(), "%s missing", l.Value)+", ", ")")
		}
		return true
	})
	if words < 20 {
		s.t.Errorf("the lists have %d words", words)
	}
}

// keeps flips each section that a call of keep keeps.
func (s *switchboard) keeps(file *ast.File) {
	calls := 0
	ast.Inspect(file, func(n ast.Node) bool {
		c, ok := n.(*ast.CallExpr)
		if !ok || text(c.Fun) != "r.keep" {
			return true
		}
		calls++
		for _, section := range sections {
			s.around(c.Args[0], "(", ")^bit("+s.add(c.Pos(), "%s: %s kept or not", text(c), section)+", "+section+")")
		}
		return true
	})
	if calls != 2 {
		s.t.Errorf("%d calls of keep, want 2", calls)
	}
}

// panel is the file that has the switches' functions.
const panel = `
import (
	"os"
	"strconv"
)

var thrown, _ = strconv.Atoi(os.Getenv("MUTANT"))

// off reports whether a check is to be broken.
func off(n int) bool { return n == thrown }
`

// panelOfRecords is what only that room needs.
const panelOfRecords = `
func one(n int) uint64 {
	if off(n) {
		return 1
	}
	return 0
}

func bit(n int, s section) section {
	if off(n) {
		return s
	}
	return 0
}

func word(n int, s string) string {
	if off(n) {
		return "none"
	}
	return s
}
`
