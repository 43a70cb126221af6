// Identcase finds identifiers that differ by case only, such as a method sum
// beside a field Sum. A reader who hears or remembers one of them cannot tell
// it from the other.
//
//	identcase [DIR...]
//
// It reads the Go packages in the directories and below, "." without any. It
// compares the names at package level with each other, and the fields and
// methods of each type. Tests and generated files are left out, as are testdata
// and directories whose name starts with a dot. It exits with status 1 if it
// finds something.
package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	dirs := os.Args[1:]
	if len(dirs) == 0 {
		dirs = []string{"."}
	}

	found := 0
	for _, dir := range dirs {
		n, err := check(os.Stdout, dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, "identcase:", err)
			os.Exit(2)
		}
		found += n
	}
	if found > 0 {
		os.Exit(1)
	}
}

// check prints the findings in a directory and below, and returns their number.
func check(out io.Writer, dir string) (count int, err error) {
	visit := func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		case path != dir && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		}

		n, err := readDir(path)
		if err != nil {
			return err
		}
		for _, f := range n.findings() {
			fmt.Fprintln(out, f)
			count++
		}
		return nil
	}
	err = filepath.WalkDir(dir, visit) //nolint:gosec // any directory may be read
	return count, err
}

// scope is where names must not collide: a package, or a type in it.
type scope struct{ pkg, typeName string }

// names are the identifiers of each scope, with the place of their first
// declaration. The same name can be declared again under another build tag.
type names struct {
	fset   *token.FileSet
	scopes map[scope]map[string]token.Pos
}

// readDir reads the names of the packages in a directory.
func readDir(dir string) (*names, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}

	n := &names{fset: token.NewFileSet(), scopes: make(map[scope]map[string]token.Pos)}
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		file, err := parser.ParseFile(n.fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		if !ast.IsGenerated(file) {
			n.addFile(file)
		}
	}
	return n, nil
}

func (n *names) addFile(file *ast.File) {
	pkg := scope{pkg: file.Name.Name}
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			s := pkg
			if d.Recv != nil {
				s.typeName = typeName(d.Recv.List[0].Type)
			}
			n.add(s, d.Name)
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				n.addSpec(pkg, spec)
			}
		}
	}
}

func (n *names) addSpec(pkg scope, spec ast.Spec) {
	switch s := spec.(type) {
	case *ast.ValueSpec:
		n.add(pkg, s.Names...)
	case *ast.TypeSpec:
		n.add(pkg, s.Name)
		members := scope{pkg.pkg, s.Name.Name}
		switch t := s.Type.(type) {
		case *ast.StructType:
			n.addFields(members, t.Fields)
		case *ast.InterfaceType:
			n.addFields(members, t.Methods)
		}
	}
}

// addFields adds the fields of a struct or the methods of an interface. An
// embedded field has the name of its type.
func (n *names) addFields(members scope, fields *ast.FieldList) {
	for _, f := range fields.List {
		n.add(members, f.Names...)
		if name := typeName(f.Type); len(f.Names) == 0 && name != "" {
			n.add(members, &ast.Ident{Name: name, NamePos: f.Pos()})
		}
	}
}

func (n *names) add(s scope, idents ...*ast.Ident) {
	if n.scopes[s] == nil {
		n.scopes[s] = make(map[string]token.Pos)
	}
	for _, id := range idents {
		if _, ok := n.scopes[s][id.Name]; !ok && id.Name != "_" {
			n.scopes[s][id.Name] = id.Pos()
		}
	}
}

// typeName returns the name of a type behind pointers, type arguments and a
// package; "" if it has none.
func typeName(t ast.Expr) string {
	switch t := t.(type) {
	case *ast.Ident:
		return t.Name
	case *ast.StarExpr:
		return typeName(t.X)
	case *ast.IndexExpr:
		return typeName(t.X)
	case *ast.IndexListExpr:
		return typeName(t.X)
	case *ast.SelectorExpr:
		return t.Sel.Name
	default:
		return ""
	}
}

// findings are the names of each scope that differ by case only, one line for
// each pair of neighbors.
func (n *names) findings() (lines []string) {
	for s, idents := range n.scopes {
		byFolded := make(map[string][]string)
		for name := range idents {
			byFolded[strings.ToLower(name)] = append(byFolded[strings.ToLower(name)], name)
		}

		where := "package " + s.pkg
		if s.typeName != "" {
			where = "type " + s.typeName
		}
		for _, same := range byFolded {
			slices.SortFunc(same, func(a, b string) int { return cmp.Compare(idents[a], idents[b]) })
			for i := 1; i < len(same); i++ {
				lines = append(lines, fmt.Sprintf("%s: %s of %s differs by case only from %s at %s",
					n.place(idents[same[i]]), same[i], where, same[i-1], n.place(idents[same[i-1]])))
			}
		}
	}
	slices.Sort(lines)
	return lines
}

func (n *names) place(p token.Pos) string {
	at := n.fset.Position(p)
	return fmt.Sprintf("%s:%d", at.Filename, at.Line)
}
