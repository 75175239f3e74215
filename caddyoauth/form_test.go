package caddyoauth_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// These tests guard the form of the code, which no compiler does.

const modulePath = "github.com/caddyoauth/gateway"

// listed is what 'go list' says about a package.
type listed struct {
	ImportPath string
	Imports    []string // what it names itself
	Deps       []string // everything that it reaches
}

func listPackages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// Imports go down only: cmd → caddyoauth → internal/{conf,store} → internal/oauth → introspect, and
// caddyoauth → internal/access → introspect. Everything that a package reaches counts, not only
// what it names itself, except what introspect needs to ask other servers.
func TestImportsGoDown(t *testing.T) {
	const (
		caddyIsTheTop   = "the rules and stores must be tested, and understood, without compiling Caddy"
		driversAreAbove = "the rules use a TokenStore and must not know which one"
		noServer        = "the rules decide; what is read from and written to the wire is the handler's"
		opensNothing    = "a configuration is read and checked beside a running server: nothing is opened, nobody is asked"
		publicAndAlone  = "a Go backend imports introspect without the gateway"
	)
	reachedByFacts := []string{"net/http", "context", "os"}
	forbidden := map[string]map[string]string{
		"introspect": {
			"github.com/caddyserver":   publicAndAlone,
			modulePath + "/caddyoauth": publicAndAlone,
			"go.etcd.io/bbolt":         publicAndAlone,
			"github.com/redis":         publicAndAlone,
			"github.com/prometheus":    "metrics come in as functions, for whatever a backend counts with",
			"go.uber.org/zap":          "a library does not choose its user's logger",
			"github.com/spf13":         publicAndAlone,
			modulePath + "/cmd":        publicAndAlone,
		},
		"caddyoauth/internal/oauth": {
			"github.com/caddyserver": caddyIsTheTop,
			"net/http":               noServer,
			"go.etcd.io/bbolt":       driversAreAbove,
			"github.com/redis":       driversAreAbove,
			"database/sql":           driversAreAbove,
			modulePath + "/caddyoauth/internal/store": driversAreAbove,
			"github.com/prometheus":                   "an Outcome says what happened; who counts it is above",
			"go.uber.org/zap":                         "an Outcome says what happened; who logs it is above",
		},
		"caddyoauth/internal/access": {
			"github.com/caddyserver":   caddyIsTheTop,
			modulePath + "/caddyoauth": "a decision needs a rule and facts; it asks no realm and no store",
			"net/http":                 noServer,
			"context":                  "a decision waits for nothing",
			"os":                       "a decision depends on its arguments alone",
			"github.com/prometheus":    "a Cause says what happened; who counts it is above",
			"go.uber.org/zap":          "a Cause says what happened; who logs it is above",
		},
		"caddyoauth/internal/conf": {
			"github.com/caddyserver/caddy/v2/modules":  "a block is read in the same way for every module; what it configures is above",
			modulePath + "/caddyoauth/internal/access": "what is written is read before a rule is made of it",
			modulePath + "/caddyoauth/internal/store":  opensNothing,
			"go.etcd.io/bbolt":                         opensNothing,
			"github.com/redis":                         opensNothing,
			"net/http":                                 opensNothing,
			"context":                                  opensNothing,
		},
		"caddyoauth/internal/keys": {
			"github.com/caddyserver":                  caddyIsTheTop,
			modulePath + "/caddyoauth/internal/store": "a ring is bytes; who puts them into a store is above",
			"net/http":        noServer,
			"os":              opensNothing,
			"go.uber.org/zap": "keys return their errors; who logs them is above",
		},
		"caddyoauth/internal/store": {
			"github.com/caddyserver": caddyIsTheTop,
			"net/http":               "a store answers calls, not requests",
			"go.uber.org/zap":        "a store returns its errors; who logs them is above",
		},
		"caddyoauth": {
			modulePath + "/cmd": "what Caddy loads must not depend on one program that loads it",
			"testing":           "test code has no place in a server",
		},
	}
	seen := 0
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, modulePath+"/")
		rules, ok := forbidden[name]
		if !ok {
			continue
		}
		seen++
		for prefix, reason := range rules {
			reached := p.Deps
			if slices.Contains(reachedByFacts, prefix) {
				reached = p.Imports
			}
			for _, dep := range reached {
				if dep == prefix || strings.HasPrefix(dep, prefix+"/") {
					t.Errorf("%s reaches %s: %s", name, dep, reason)
				}
			}
		}
	}
	if seen != len(forbidden) {
		t.Errorf("%d of the %d packages with rules exist", seen, len(forbidden))
	}
}

// sourceFiles calls visit with every Go file of the repository, path from its root.
func sourceFiles(t *testing.T, visit func(name string, file *ast.File)) {
	t.Helper()
	n := 0
	err := filepath.WalkDir("..", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == "testdata" || strings.HasPrefix(entry.Name(), ".") && entry.Name() != "..") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		n++
		visit(filepath.ToSlash(strings.TrimPrefix(name, ".."+string(filepath.Separator))), file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 20 {
		t.Fatalf("only %d files were checked, so the test no longer sees the repository", n)
	}
}

// Handlers tell the app what they need by one call, App.register. If they wrote its fields, nobody
// could say any more who sets what, and when it is complete. Exported fields are the
// configuration, which the Caddyfile parser fills in.
func TestOnlyTheAppSetsItsFields(t *testing.T) {
	fset := token.NewFileSet()
	var files []*ast.File
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	// What is imported stays unknown, and costs errors that don't matter: the types of this package
	// are all that is looked at.
	info := types.Info{Selections: make(map[*ast.SelectorExpr]*types.Selection)}
	config := types.Config{Importer: noImports{}, Error: func(error) {}}
	pkg, _ := config.Check("caddyoauth", fset, files, &info)
	app := pkg.Scope().Lookup("App").Type()

	fieldOfApp := func(target ast.Expr) (name string) {
		ast.Inspect(target, func(n ast.Node) bool {
			selector, ok := n.(*ast.SelectorExpr)
			if !ok || info.Selections[selector] == nil || ast.IsExported(selector.Sel.Name) {
				return true
			}
			receiver := info.Selections[selector].Recv()
			if pointer, ok := receiver.(*types.Pointer); ok {
				receiver = pointer.Elem()
			}
			if types.Identical(receiver, app) {
				name = selector.Sel.Name
			}
			return true
		})
		return name
	}
	seen := 0
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			var targets []ast.Expr
			switch n := n.(type) {
			case *ast.AssignStmt:
				targets = n.Lhs
			case *ast.IncDecStmt:
				targets = []ast.Expr{n.X}
			}
			for _, target := range targets {
				field := fieldOfApp(target)
				if field == "" {
					continue
				}
				seen++
				if at := fset.Position(target.Pos()); at.Filename != "app.go" && at.Filename != "lifecycle.go" {
					t.Errorf("%s sets the field %s of App; have App.register do it", at, field)
				}
			}
			return true
		})
	}
	if seen < 10 {
		t.Errorf("only %d places set a field of App, so the test no longer sees them", seen)
	}
}

// noImports is an importer for whoever needs no types of other packages.
type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not imported") }

// doc.go says which functions a token request and a protected request go through, and where they
// are. Whoever renames or moves one of them finds out here.
func TestTheMapIsRight(t *testing.T) {
	parse := func(name string) *ast.File {
		t.Helper()
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	doc := parse("doc.go").Doc.Text()
	for _, name := range regexp.MustCompile(`[\w./]+\.go\b`).FindAllString(doc, -1) {
		parse(name)
	}
	steps := regexp.MustCompile(`(?m)^\t([\w.]+\w) +([\w./]+\.go)\b`).FindAllStringSubmatch(doc, -1)
	if len(steps) != 12 {
		t.Errorf("doc.go has %d steps, want six for each request", len(steps))
	}
	for _, step := range steps {
		// Methods have their type before them, and others' functions their package.
		path := strings.Split(step[1], ".")
		name, before := path[len(path)-1], path[:len(path)-1]
		found := slices.ContainsFunc(parse(step[2]).Decls, func(d ast.Decl) bool {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Name.Name != name {
				return false
			}
			if f.Recv == nil {
				return len(before) <= 1
			}
			receiver := f.Recv.List[0].Type
			if pointer, ok := receiver.(*ast.StarExpr); ok {
				receiver = pointer.X
			}
			ident, ok := receiver.(*ast.Ident)
			return ok && len(before) > 0 && ident.Name == before[len(before)-1]
		})
		if !found {
			t.Errorf("%s is not in %s", step[1], step[2])
		}
	}
}

// The comment of a package says what it is, and begins as Go's conventions have it.
func TestEveryPackageHasAComment(t *testing.T) {
	comments := make(map[string]string)
	sourceFiles(t, func(name string, file *ast.File) {
		if strings.HasSuffix(name, "_test.go") {
			return
		}
		folder := path.Dir(name)
		comments[folder] += file.Doc.Text()
		begins := "Package " + file.Name.Name + " "
		if file.Name.Name == "main" {
			begins = "Command " + path.Base(folder) + " "
		}
		if doc := file.Doc.Text(); doc != "" && !strings.HasPrefix(doc, begins) {
			t.Errorf("%s: the package comment must begin with %q", name, begins)
		}
	})
	for folder, comment := range comments {
		if comment == "" {
			t.Errorf("package %s has no package comment", folder)
		}
	}
}

// Comments and messages say a rule in words. A code such as a letter and two digits would refer to
// a document that readers don't have.
func TestRulesAreInWords(t *testing.T) {
	code := regexp.MustCompile(`(?:^|[^-\w])([A-Z]{1,2}-\d\d|[A-Z]#\d+)(?:[^-\w]|$)`)
	sourceFiles(t, func(name string, _ *ast.File) {
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(string(text)) {
			n++
			if m := code.FindStringSubmatch(line); m != nil {
				t.Errorf("%s:%d: write the rule in words instead of %s", name, n, m[1])
			}
		}
	})
}

// Whatever is random here is secret, or must not be guessed, but for a simulation, which has to be repeatable.
func TestRandomnessIsCryptographic(t *testing.T) {
	sourceFiles(t, func(name string, file *ast.File) {
		if name == "cmd/scale/model.go" {
			return
		}
		for _, spec := range file.Imports {
			if importPath := strings.Trim(spec.Path.Value, `"`); strings.HasPrefix(importPath, "math/rand") && !strings.HasSuffix(name, "_test.go") {
				t.Errorf("%s imports %s; use crypto/rand", name, importPath)
			}
		}
	})
}

// Metrics are named like Caddy's own, and no label can have a value that a caller chooses.
func TestMetricsAreNamedAndBounded(t *testing.T) {
	g := startGateway(t, "store memory\nmanaged_clients\n"+testClients, gatewaySite)
	// Count everything once, including refusals of requests with hostile words.
	token := g.token("reader")
	g.get("/x", token)
	g.get("/x", "hostile")
	g.get("/x", "")
	g.introspect("reader", token)
	g.introspect("hostile", "hostile")
	g.revoke("reader", token)
	g.revoke("reader", token)
	g.fetch("reader", "hostile")
	g.post("/oauth2/access_token", "hostile", "hostile", map[string][]string{"grant_type": {"hostile"}})
	g.post("/oauth2/hostile/access_token", "hostile", "hostile", nil)
	g.do(g.request("POST", "/oauth2/token", "grant_type=hostile", "Content-Type", "hostile/hostile"))

	ctx := caddy.ActiveContext()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]*regexp.Regexp{
		"realm":     regexp.MustCompile(`^[a-z0-9_/-]+$|^External$|^None$`), // other tests' realms included
		"endpoint":  regexp.MustCompile(`^(token|introspect|revoke|tokeninfo)$`),
		"operation": regexp.MustCompile(`^(put|get|revoke|denied|deny|end_tokens|once|proof)$`),
		"client_id": regexp.MustCompile(`^[a-z-]*$|^External$`), // from the configuration, or empty for managed ones
		"secret":    regexp.MustCompile(`^[1-9]$`),
		"days":      regexp.MustCompile(`^(7|30|90)$`),
		"state":     regexp.MustCompile(`^(active|disabled|unusable)$`),
		"source":    regexp.MustCompile(`^(https?|spiffe)://[A-Za-z0-9.:/_-]+$`), // from the configuration
		"result":    regexp.MustCompile(`^[a-z_]+$`),
		"cause":     regexp.MustCompile(`^[a-z_]*$`), // empty if the request was let in
	}
	ours := 0
	for _, family := range families {
		name := family.GetName()
		if !strings.Contains(name, "oauth") {
			continue
		}
		ours++
		if !strings.HasPrefix(name, "caddy_oauth_") || name != strings.ToLower(name) {
			t.Errorf("%s does not begin with caddy_oauth_", name)
		}
		if family.GetType().String() == "COUNTER" && !strings.HasSuffix(name, "_total") {
			t.Errorf("counter %s does not end with _total", name)
		}
		if !strings.HasSuffix(family.GetHelp(), ".") {
			t.Errorf("the help of %s is not a sentence: %q", name, family.GetHelp())
		}
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				allowed := labels[label.GetName()]
				if allowed == nil {
					t.Errorf("%s has the unknown label %s", name, label.GetName())
				} else if !allowed.MatchString(label.GetValue()) || strings.Contains(label.GetValue(), "hostile") {
					t.Errorf("%s has the label %s=%q", name, label.GetName(), label.GetValue())
				}
			}
		}
	}
	if ours < 6 {
		t.Errorf("only %d metrics are ours", ours)
	}
}
