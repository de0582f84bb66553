// Package layers holds the rules of the source tree that a compiler does not check: who may import whom, and the budgets
// that keep files and functions readable.
package layers

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/nfs-fleet/nfs-fleet/"

// order lists the packages from the top down: a package imports only what stands on a later line. A package that is not
// listed belongs to its nearest listed parent; packages of one line may import each other.
var order = [][]string{
	{"cmd"},
	{"fleet/master", "fleet/slave"},
	{"fleet/console"},
	{"fleet/dns"},
	{"fleet/spread"},
	{"fleet"},
	{"fleet/etcd"},
	{"fleet/trust"},
	{"election"},
	{"replicator"},
	{"replicator/peer"},
	{"replicator/source"},
	{"replicator/store"},
	{"exporter"},
	{"exporter/nfs3", "exporter/mount3", "exporter/portmap"},
	{"exporter/export"},
	{"exporter/volume"},
	{"exporter/rpc"},
	{"replicator/tree"},
}

// families never import each other, except for the one leaf that they share.
var families = []string{"election", "replicator", "exporter"}

const sharedLeaf = "replicator/tree"

// Budgets, and who may exceed them. Every exception says why.
const (
	maxFileLines = 500
	maxFuncLines = 60
)

var longFiles = map[string]string{}

var longFuncs = map[string]string{}

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath, Dir                    string
	GoFiles, IgnoredGoFiles            []string
	Imports, TestImports, XTestImports []string
}

func (p pkg) name() string { return strings.TrimPrefix(p.ImportPath, module) }

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,GoFiles,IgnoredGoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("go list: %v\n%s", err, exit.Stderr)
	} else if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		t.Fatal("go list names no package")
	}
	return all
}

// line returns the line of order that a package stands on; ok is false when it has none.
func line(name string) (n int, ok bool) {
	for ; ; name = path.Dir(name) {
		for i, l := range order {
			if slices.Contains(l, name) {
				return i, true
			}
		}
		if !strings.Contains(name, "/") {
			return 0, false
		}
	}
}

// within says whether a package is dir or below it.
func within(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

// arrow says what is wrong with package from importing package to; both without the module's prefix. "": nothing.
func arrow(from, to string) string {
	if within(from, "e2e") || within(to, "e2e") {
		if within(from, "e2e") && within(to, "e2e") {
			return ""
		}
		return "e2e stands apart: it sees the product from outside, and no product code needs it"
	}
	a, okA := line(from)
	b, okB := line(to)
	if !okA || !okB {
		return "has no place in the order of layers (e2e/layers): give it one"
	}
	if a > b {
		return "points up"
	}
	for _, f := range families {
		for _, g := range families {
			if f != g && within(from, f) && within(to, g) && !within(to, sharedLeaf) {
				return "joins two families that must not know each other"
			}
		}
	}
	return ""
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range packages(t) {
		for _, list := range [][]string{p.Imports, p.TestImports, p.XTestImports} {
			for _, to := range list {
				if !strings.HasPrefix(to, module) || to == p.ImportPath {
					continue
				}
				if wrong := arrow(p.name(), strings.TrimPrefix(to, module)); wrong != "" {
					t.Errorf("%s imports %s: %s", p.name(), strings.TrimPrefix(to, module), wrong)
				}
			}
		}
		if _, ok := line(p.name()); !ok && !within(p.name(), "e2e") {
			t.Errorf("%s has no place in the order of layers: give it one", p.name())
		}
	}
}

// The rule itself: the arrows of the design are allowed, and those that it forbids are found.
func TestArrow(t *testing.T) {
	for _, c := range []struct {
		from, to string
		allowed  bool
	}{
		{"cmd/nfs-fleet", "fleet/master", true},
		{"fleet/master", "exporter/volume", true},
		{"fleet/console", "fleet", true},
		{"fleet", "election", true},
		{"exporter/nfs3", "exporter/rpc", true},
		{"exporter/volume", "replicator/tree", true},
		{"replicator/source", "replicator/tree", true},
		{"e2e", "e2e/wire", true},
		{"fleet", "fleet/console", false},
		{"election", "fleet", false},
		{"exporter", "replicator/store", false},
		{"replicator/tree", "replicator/store", false},
		{"replicator", "election", false},
		{"exporter/rpc", "exporter/nfs3", false},
		{"e2e", "fleet/console", false},
		{"fleet/master", "e2e/wire", false},
		{"elsewhere", "fleet", false},
	} {
		if got := arrow(c.from, c.to) == ""; got != c.allowed {
			t.Errorf("%s importing %s: allowed %v, want %v", c.from, c.to, got, c.allowed)
		}
	}
}

var vagueName = regexp.MustCompile(`(^|/)(utils?|common|helpers?|misc|shared)$`)

func TestPackagesSayWhatTheyAreFor(t *testing.T) {
	for _, p := range packages(t) {
		if vagueName.MatchString(p.name()) {
			t.Errorf("package %s: name it after what it does", p.name())
		}
		documented := len(p.GoFiles) == 0 // tests only
		for _, name := range p.GoFiles {
			f := parse(t, filepath.Join(p.Dir, name), parser.PackageClauseOnly|parser.ParseComments)
			documented = documented || f.file.Doc != nil
		}
		if !documented {
			t.Errorf("package %s has no package comment", p.name())
		}
	}
}

func TestFilesAndFunctionsStayReadable(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range slices.Concat(p.GoFiles, p.IgnoredGoFiles) {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			checkBudgets(t, path.Join(p.name(), name), parse(t, filepath.Join(p.Dir, name), parser.ParseComments))
		}
	}
}

func checkBudgets(t *testing.T, name string, s source) {
	t.Helper()
	if ast.IsGenerated(s.file) {
		return
	}
	if n := s.set.File(s.file.Pos()).LineCount(); n > maxFileLines && longFiles[name] == "" {
		t.Errorf("%s has %d lines, more than %d", name, n, maxFileLines)
	}
	for _, d := range s.file.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		first, last := s.set.Position(fn.Pos()), s.set.Position(fn.End())
		where := fmt.Sprintf("%s:%s", name, fn.Name.Name)
		if n := last.Line - first.Line + 1; n > maxFuncLines && longFuncs[where] == "" {
			t.Errorf("%s (line %d) has %d lines, more than %d", where, first.Line, n, maxFuncLines)
		}
	}
}

// source is a parsed file.
type source struct {
	set  *token.FileSet
	file *ast.File
}

func parse(t *testing.T, name string, mode parser.Mode) source {
	t.Helper()
	s := source{set: token.NewFileSet()}
	var err error
	if s.file, err = parser.ParseFile(s.set, name, nil, mode); err != nil {
		t.Fatal(err)
	}
	return s
}
