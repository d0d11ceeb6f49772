package fault_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"

	"hearth/internal/fault"
)

// TestTableIsComplete reads the kinds from the source, so that a kind without
// a row, or with two, cannot be added.
func TestTableIsComplete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "table.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]int{}
	names := map[string]fault.Kind{}
	for _, r := range fault.Table() {
		rows[string(r.Kind)]++
		if prev, ok := names[r.Bus]; ok {
			t.Errorf("%s and %s share the bus name %s", prev, r.Kind, r.Bus)
		}
		names[r.Bus] = r.Kind
		if r.Bus == "" || r.PAM == "" || r.Text == "" {
			t.Errorf("row %s is incomplete", r.Kind)
		}
		if fault.FromBus(r.Bus) != r.Kind {
			t.Errorf("%s does not map back", r.Bus)
		}
	}
	kinds := 0
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := v.Type.(*ast.Ident); !ok || id.Name != "Kind" {
			return true
		}
		kinds++
		value := strings.Trim(v.Values[0].(*ast.BasicLit).Value, `"`)
		if rows[value] != 1 {
			t.Errorf("kind %s has %d rows, want 1", v.Names[0].Name, rows[value])
		}
		return true
	})
	if kinds == 0 || kinds != len(fault.Table()) {
		t.Errorf("%d kinds, %d rows", kinds, len(fault.Table()))
	}
}

func TestPublicNeverShowsTheChain(t *testing.T) {
	err := fmt.Errorf("outer: %w", fault.New(fault.BadPassword, "open keyslot", errors.New("inner detail")))
	if fault.KindOf(err) != fault.BadPassword {
		t.Fatalf("kind is %s", fault.KindOf(err))
	}
	pub := fault.Public(fault.For("ann", err))
	if pub != "Password for home ann is incorrect or not sufficient for authentication." {
		t.Errorf("public text is %q", pub)
	}
	if fault.Public(errors.New("secret path")) != "Operation failed." {
		t.Error("an unknown error leaks its text")
	}
	if got := fault.For("ann", err).Error(); !strings.Contains(got, "inner detail") || !strings.Contains(got, "outer") {
		t.Errorf("the chain lost its words: %q", got)
	}
}
