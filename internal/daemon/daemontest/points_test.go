package daemontest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Whoever adds a fault point has it swept: every constant of that kind in the
// tree is in the table, and nothing else is hit.
func TestEachFaultPointIsSwept(t *testing.T) {
	swept := make(map[string]bool)
	for _, p := range slices.Concat(Points, JailPoints, NetworkPoints) {
		swept[p.Name] = true
	}
	found := 0
	root := filepath.Join("..", "..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != root):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for name, point := range faultPoints(f) {
			found++
			if !swept[point] {
				t.Errorf("%s: no test breaks %s (%q); add it to the package's list of fault points, or to the table of internal/daemon/daemontest",
					path, name, point)
			}
		}
		for _, at := range unnamedHits(f) {
			t.Errorf("%s: the fault point %s has no constant", path, at)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 40 {
		t.Errorf("%d fault points were found, which cannot be all", found)
	}
}

// The check finds what it is there for.
func TestFaultPointsAreFound(t *testing.T) {
	const code = `package p
const (
	FaultOne = "p.one"
	FaultTwo, other = "p.two", "x"
)
func f() {
	s.Hit(FaultOne)
	s.Hit(step.fault)
	s.Hit("p.three")
	s.Hit(other)
}`
	f, err := parser.ParseFile(token.NewFileSet(), "p.go", code, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := faultPoints(f); len(got) != 2 || got["FaultOne"] != "p.one" || got["FaultTwo"] != "p.two" {
		t.Errorf("constants: %v", got)
	}
	if got := unnamedHits(f); !slices.Equal(got, []string{`"p.three"`, "other"}) {
		t.Errorf("hits: %v", got)
	}
}

// faultPoints are the constants of a file that name fault points.
func faultPoints(f *ast.File) map[string]string {
	found := make(map[string]string)
	for _, decl := range f.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.CONST {
			continue
		}
		for _, spec := range gen.Specs {
			values := spec.(*ast.ValueSpec)
			for i, name := range values.Names {
				if !strings.HasPrefix(name.Name, "Fault") || i >= len(values.Values) {
					continue
				}
				if lit, ok := values.Values[i].(*ast.BasicLit); ok {
					found[name.Name], _ = strconv.Unquote(lit.Value)
				}
			}
		}
	}
	return found
}

// unnamedHits are the calls of Hit with something else than such a constant, or
// a field called fault that holds one.
func unnamedHits(f *ast.File) (found []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) != 1 {
			return true
		}
		if method, ok := call.Fun.(*ast.SelectorExpr); !ok || method.Sel.Name != "Hit" {
			return true
		}
		switch arg := call.Args[0].(type) {
		case *ast.BasicLit:
			found = append(found, arg.Value)
		case *ast.Ident:
			if !strings.HasPrefix(arg.Name, "Fault") {
				found = append(found, arg.Name)
			}
		case *ast.SelectorExpr:
			if arg.Sel.Name != "fault" && !strings.HasPrefix(arg.Sel.Name, "Fault") {
				found = append(found, arg.Sel.Name)
			}
		}
		return true
	})
	return found
}
