package caddyoauth_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"go/format"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// The documents are run here. In every Markdown file of the repository, a fenced block is one of
//
//	caddyfile         a whole configuration: adapted and provisioned
//	caddyfile oauth   lines of the oauth block: wrapped into one, then the same
//	caddyfile site    lines of a site: wrapped into one, then the same
//	json              exactly what the caddyfile block before it adapts to
//	console           "$ " commands, each with its output, run by sh against the Caddyfile
//	                  beside the document, or Caddyfile.example for the README and docs;
//	                  "…" stands for anything in a line, or, alone in a line, for any lines
//	go                a whole program, run like that; it must print what its comment
//	                  "Output:" says. The variable CLIENT_SECRET has its secret
//	log               lines of the log, which TestManualHasMetricsAndEvents causes; "…" as above
//	sh                commands that are checked and not run; see checkCommand
//	mermaid           a sequence diagram, which GitHub draws; see checkDiagram
//
// and any other block fails, since nothing would notice when it becomes stale.

// repositoryRoot is where the documents are, relative to this package.
const repositoryRoot = ".."

// docBlock is a fenced block of a document.
type docBlock struct {
	file string
	line int // of its first line
	kind string
	text string
}

func (b docBlock) String() string { return fmt.Sprintf("%s:%d", b.file, b.line) }

// documents returns the Markdown files of the repository, relative to its root.
func documents(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(repositoryRoot, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != repositoryRoot && (strings.HasPrefix(d.Name(), ".") || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			rel, _ := filepath.Rel(repositoryRoot, path)
			files = append(files, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(files, "README.md") {
		t.Fatal("README.md is missing")
	}
	return files
}

func readDocument(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repositoryRoot, filepath.FromSlash(file)))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}

// manual returns the README and all of docs as one text, for tests that don't care on which
// page something stands. Options and errors at load are looked up in docs/configuration.md,
// metrics and events in docs/operations.md: those tests read that page alone.
func manual(t *testing.T) string {
	t.Helper()
	text := readDocument(t, "README.md")
	for _, page := range pages(t) {
		text += readDocument(t, page)
	}
	return text
}

// pages returns the Markdown files in docs.
func pages(t *testing.T) []string {
	t.Helper()
	return slices.DeleteFunc(documents(t), func(file string) bool { return !strings.HasPrefix(file, "docs/") })
}

// docBlocks takes the fenced blocks out of a document.
func docBlocks(t *testing.T, file string) []docBlock {
	t.Helper()
	var blocks []docBlock
	var open *docBlock
	for i, line := range strings.Split(readDocument(t, file), "\n") {
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && !strings.HasPrefix(line, "```"):
			t.Errorf("%s:%d: a block inside a list is not tested; move it to the margin", file, i+1)
		case fence && open == nil:
			open = &docBlock{file: file, line: i + 2, kind: strings.TrimPrefix(line, "```")}
		case fence:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		}
	}
	if open != nil {
		t.Errorf("%v: the block is not closed", *open)
	}
	return blocks
}

// storyOf returns the Caddyfile that a document's console blocks talk to, or "".
func storyOf(file string) string {
	switch dir := filepath.ToSlash(filepath.Dir(file)); {
	case file == "README.md", dir == "docs":
		return "Caddyfile.example"
	case strings.HasPrefix(dir, "examples/"):
		return dir + "/Caddyfile"
	}
	return ""
}

// Every block of every document is of a kind that something checks, and passes.
func TestDocumentBlocks(t *testing.T) {
	for _, file := range documents(t) {
		var previous docBlock
		for _, b := range docBlocks(t, file) {
			t.Run(b.String(), func(t *testing.T) {
				switch b.kind {
				case "caddyfile":
					provisionCaddyfile(t, b.text, b.text)
				case "caddyfile oauth":
					clients := ""
					if !strings.Contains(b.text, "client ") {
						clients = docClients
					}
					provisionCaddyfile(t, b.text, "{\nadmin off\nauto_https off\noauth {\n"+b.text+clients+"}\n}\n:0 {\noauth_server\n}\n")
				case "caddyfile site":
					provisionCaddyfile(t, b.text, "{\nadmin off\nauto_https off\noauth {\n"+docClients+"}\n}\n:0 {\n"+b.text+"}\n:1 {\noauth_server\n}\n")
				case "json":
					if previous.kind != "caddyfile" {
						t.Fatal("a json block must follow the caddyfile block that it equals")
					}
					compareJSON(t, previous.text, b.text)
				case "console", "go":
					if storyOf(file) == "" {
						t.Error("there is no Caddyfile to run it against")
					}
					// TestExamples runs it.
				case "log":
					if file != "docs/operations.md" {
						t.Error("nothing causes these lines; they belong into docs/operations.md")
					}
				case "sh":
					for command := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", "")) {
						checkCommand(t, strings.TrimSpace(command))
					}
				case "mermaid":
					checkDiagram(t, b.text)
				default:
					t.Errorf("a block of kind %q is not tested", b.kind)
				}
			})
			previous = b
		}
	}
}

// docClients is what a site block in a document may rely on.
const docClients = `
	issuer https://auth.example.com/oauth2
	client myClient {
		secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
		scopes read write admin
	}
	realm alpha {
		client myClient {
			secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
			scopes read
		}
	}
`

func adaptDocument(t *testing.T, text string) []byte {
	t.Helper()
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatalf("adapting: %v", err)
	}
	for _, w := range warnings {
		// A wrapped fragment is formatted as it is shown, not as a whole.
		if !strings.Contains(w.Message, "not formatted") {
			t.Errorf("adapting warns: %v", w)
		}
	}
	return config
}

var (
	envReference  = regexp.MustCompile(`\{env\.([A-Za-z0-9_]+)\}`)
	fileReference = regexp.MustCompile(`\{file\.[^{}]+\}`)
	keysFile      = regexp.MustCompile(`"jwks_file":"[^"]+"`)
	authorities   = regexp.MustCompile(`"ca":"[^"]+"`)
	certificates  = regexp.MustCompile(`"(certificate_files|trusted_ca_files|pem_files)":\["[^\]]+\]`)
)

// provisionCaddyfile checks that shown is formatted and that whole can be loaded. Files and
// variables that whole refers to are made up.
func provisionCaddyfile(t *testing.T, shown, whole string) {
	t.Helper()
	checkFormat(t, shown)
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for _, m := range envReference.FindAllStringSubmatch(whole, -1) {
		t.Setenv(m[1], "the secret "+m[1])
	}
	config := fileReference.ReplaceAllFunc(adaptDocument(t, whole), func(reference []byte) []byte {
		secret := filepath.Join(dir, fmt.Sprintf("%x", reference))
		if err := os.WriteFile(secret, fmt.Appendf(nil, "the secret %x\n", reference), 0o600); err != nil {
			t.Fatal(err)
		}
		made, _ := json.Marshal("{file." + secret + "}")
		return made[1 : len(made)-1]
	})
	config = keysFile.ReplaceAllFunc(config, func([]byte) []byte {
		return []byte(`"jwks_file":"` + newKeyClient(t, "a").file + `"`)
	})
	config = authorities.ReplaceAllFunc(config, func([]byte) []byte {
		return []byte(`"ca":"` + newAuthority(t).file + `"`)
	})
	config = certificates.ReplaceAllFunc(config, func(files []byte) []byte {
		return append(bytes.SplitAfter(files, []byte(":"))[0], `["`+newAuthority(t).file+`"]`...)
	})

	var parsed caddy.Config
	if err := json.Unmarshal(config, &parsed); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(&parsed); err != nil {
		t.Errorf("provisioning: %v", err)
	}
	if parsed.AppsRaw["oauth"] == nil {
		return // there is nothing to lint
	}
	// A document shows no mistakes. What lint may find is its secrets, of which readers make their
	// own, and that it is old.
	expected := []string{"published-secret", "report-only-ended", "basic-ended"}
	for _, f := range lintJSON(t, config) {
		if f.Silenced == nil && !slices.Contains(expected, f.Code) {
			t.Errorf("lint finds %s: %s: %s", f.At, f.Code, f.Text)
		}
	}
}

func checkFormat(t *testing.T, text string) {
	t.Helper()
	if formatted := caddyfile.Format([]byte(text)); string(formatted) != text {
		t.Errorf("not formatted; 'caddy fmt' makes it\n%s", formatted)
	}
}

func compareJSON(t *testing.T, caddyfile, want string) {
	t.Helper()
	var got, wanted any
	config := adaptDocument(t, caddyfile)
	if err := json.Unmarshal(withoutPlaces(t, config), &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &wanted); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, wanted) {
		var indented bytes.Buffer
		json.Indent(&indented, config, "", "\t")
		t.Errorf("the Caddyfile before it adapts to\n%s", indented.String())
	}
}

// checkCommand checks a command that can't be run, because it would not end or takes too long.
func checkCommand(t *testing.T, command string) {
	t.Helper()
	module, caddyVersion := moduleAndCaddy(t)
	words := strings.Fields(command)
	for len(words) > 0 && strings.Contains(words[0], "=") {
		words = words[1:] // an assignment
	}
	switch command = strings.Join(words, " "); {
	case strings.HasPrefix(command, "go run ./cmd/caddy run --config "):
		// TestExamples loads every one of these.
		if config := words[len(words)-1]; !slices.Contains(stories(t), strings.TrimSuffix(config, ".second")) {
			t.Errorf("%s is not among the examples", config)
		}
	case command == "go test ./...", command == "go test -race ./...", command == ".ci/run":
		ci := readDocument(t, ".ci/run")
		if command != ".ci/run" && !strings.Contains(ci, command) {
			t.Errorf("%q is not in .ci/run", command)
		}
	case command == "go run ./cmd/bench", strings.HasPrefix(command, "go run ./cmd/bench --"), strings.HasPrefix(command, "go run ./cmd/scale"):
		// They have their own tests.
	case command == makeKeyCommand, command == tryKeyCommand:
		// TestTryingWithCurl runs them.
	case strings.HasPrefix(command, "caddy oauth import "):
		importAsShown(t, words[2:])
	case strings.HasPrefix(command, "go test -v -run Battery "):
		// Its short form is part of every test run.
	case strings.HasPrefix(command, "go test -run '^$' -bench ") && words[len(words)-1] == "./caddyoauth":
		// A benchmark takes too long; check only that there is one of the name.
		files, err := filepath.Glob("*bench*_test.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("no files with benchmarks: %v", err)
		}
		if !slices.ContainsFunc(files, func(file string) bool {
			return strings.Contains(readDocument(t, "caddyoauth/"+file), "func Benchmark"+words[5])
		}) {
			t.Errorf("no benchmark begins with %s", words[5])
		}
	case strings.HasPrefix(command, "prometheus --config.file="):
		if _, err := os.Stat(filepath.Join(repositoryRoot, strings.TrimPrefix(words[1], "--config.file="))); err != nil || len(words) != 2 {
			t.Errorf("%q: %v", command, err)
		}
	case strings.HasPrefix(command, "go -C examples/") && strings.HasSuffix(command, " run ."):
		// TestExamples starts every one.
		if len(words) != 5 || !exists(words[2]+"/server.go") || !exists(words[2]+"/go.mod") {
			t.Errorf("%q is not among the examples", command)
		}
	case strings.HasPrefix(command, "npm ci --prefix "):
		if len(words) != 4 || !exists(words[3]+"/package-lock.json") {
			t.Errorf("%q: there is no lock of packages", command)
		}
	case strings.HasPrefix(command, "node "):
		// TestExamples starts every server.
		if len(words) != 2 || !strings.HasSuffix(command, "/server.mjs") || !slices.Contains(stories(t), strings.TrimSuffix(words[1], "server.mjs")+"Caddyfile") {
			t.Errorf("%q is not among the examples", command)
		}
	case command == "redis-server --port 6390 --save ''":
		// startFleet does it.
	case command == "go install github.com/caddyserver/xcaddy/cmd/xcaddy@latest":
	case command == `export GOPROXY="$(go env GOPROXY | cut -d, -f1)|off"`: // for xcaddy
	case command == "xcaddy build "+caddyVersion+" --with "+module+"/caddyoauth":
	case command == "xcaddy build "+caddyVersion+" --with "+module+"/caddyoauth --replace "+module+"=.":
	case strings.HasPrefix(command, "./caddy-oauth_") && strings.HasSuffix(command, " run --config Caddyfile"):
		// A downloaded release. TestReleaseNames checks how it is called.
	case strings.HasPrefix(command, "sudo "), strings.HasPrefix(command, "docker "):
		// For a server. Check only that what it takes from the repository exists.
		for _, word := range words {
			if strings.HasPrefix(word, "examples/") {
				if _, err := os.Stat(filepath.Join(repositoryRoot, word)); err != nil {
					t.Errorf("%q: %v", command, err)
				}
			}
		}
	default:
		t.Errorf("nothing checks the command %q; put it into a console block, if it can be run", command)
	}
}

// checkDiagram checks a sequence diagram of Mermaid as far as our own need it: each line is
// a participant, a note, or a message, and those who take part are declared. A semicolon or
// a # would end the text.
func checkDiagram(t *testing.T, text string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if lines[0] != "sequenceDiagram" {
		t.Fatalf("the diagram is %q, and only sequence diagrams are checked", lines[0])
	}
	participant := regexp.MustCompile(`^    participant ([A-Z]) as [A-Za-z ]+$`)
	message := regexp.MustCompile(`^    (?:([A-Z])--?>>|Note over )([A-Z]): [^;#]+$`)
	declared := map[string]bool{"": true}
	for _, line := range lines[1:] {
		if m := participant.FindStringSubmatch(line); m != nil {
			declared[m[1]] = true
		} else if m := message.FindStringSubmatch(line); m == nil || !declared[m[1]] || !declared[m[2]] {
			t.Errorf("the diagram has %q", line)
		}
	}
}

// The README names the files and the image that the release workflow makes, and no others.
// That the workflow is well-formed is checked by actionlint, in .ci/run.
func TestReleaseNames(t *testing.T) {
	release := readDocument(t, ".github/workflows/release.yml")
	targets := regexp.MustCompile(`for target in ([a-z0-9/ ]+); do`).FindStringSubmatch(release)
	if targets == nil || !strings.Contains(release, "name=caddy-oauth_${GITHUB_REF_NAME}_${target%/*}_${target#*/}\n") {
		t.Fatal("the release workflow names its files in another way")
	}
	var made []string
	for target := range strings.FieldsSeq(targets[1]) {
		name := "caddy-oauth_<version>_" + strings.ReplaceAll(target, "/", "_")
		if strings.HasPrefix(target, "windows/") {
			name += ".exe"
		}
		made = append(made, name)
	}
	const image = "ghcr.io/caddyoauth/gateway"
	if strings.Contains(release, "image="+image+"\n") && strings.Contains(release, `"$image:$GITHUB_REF_NAME"`) && strings.Contains(release, `"$image:latest"`) {
		made = append(made, image+":<version>")
	}
	if strings.Contains(release, "sha256sum -- * >SHA256SUMS") {
		made = append(made, "SHA256SUMS")
	}
	readme := readDocument(t, "README.md")
	named := regexp.MustCompile("`(caddy-oauth_[^`]+|ghcr\\.io/[^`]+|[A-Z0-9]+SUMS)`").FindAllStringSubmatch(readme, -1)
	var names []string
	for _, m := range named {
		names = append(names, m[1])
	}
	slices.Sort(made)
	slices.Sort(names)
	if !slices.Equal(made, names) {
		t.Errorf("a release has %q, the README names %q", made, names)
	}
	// Its commands are for one version.
	for _, m := range regexp.MustCompile(`(?m)^(?:\./|docker .* )((?:caddy-oauth_|ghcr\.io/)\S+)`).FindAllStringSubmatch(readme, -1) {
		if name := strings.Replace(m[1], "v1.2.3", "<version>", 1); !slices.Contains(made, name) {
			t.Errorf("the README starts %s, and a release has %q", m[1], made)
		}
	}
}

// moduleAndCaddy returns this module's path and the version of Caddy that it is built with.
func moduleAndCaddy(t *testing.T) (module, caddyVersion string) {
	t.Helper()
	for line := range strings.Lines(readDocument(t, "go.mod")) {
		words := strings.Fields(line)
		switch {
		case len(words) == 2 && words[0] == "module":
			module = words[1]
		case len(words) == 2 && words[0] == "github.com/caddyserver/caddy/v2":
			caddyVersion = words[1]
		}
	}
	if module == "" || caddyVersion == "" {
		t.Fatal("go.mod names no module or no Caddy")
	}
	return module, caddyVersion
}

// stories returns the Caddyfiles that come with the repository.
func stories(t *testing.T) []string {
	t.Helper()
	dirs, err := os.ReadDir(filepath.Join(repositoryRoot, "examples"))
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"Caddyfile.example"}
	for _, dir := range dirs {
		all = append(all, "examples/"+dir.Name()+"/Caddyfile")
	}
	return all
}

// Every example runs, and answers what its README says it answers.
func TestExamples(t *testing.T) {
	for _, story := range stories(t) {
		t.Run(strings.TrimSuffix(strings.TrimPrefix(story, "examples/"), "/Caddyfile"), func(t *testing.T) {
			var told []string // the documents that tell it
			for _, file := range documents(t) {
				runs := func(b docBlock) bool { return b.kind == "console" || b.kind == "go" }
				if storyOf(file) == story && slices.ContainsFunc(docBlocks(t, file), runs) {
					told = append(told, file)
				}
			}
			if len(told) == 0 {
				t.Fatal("no document has a console block for it")
			}
			text := readDocument(t, story)
			checkFormat(t, text)
			pairs := freePorts(t, text)
			// A backend may have to know the gateway's address.
			issuer := "ISSUER=" + strings.NewReplacer(pairs...).Replace(issuerOf(text))
			folder := strings.TrimSuffix(story, "Caddyfile")
			if server := folder + "server.mjs"; exists(server) {
				pairs = append(pairs, backendOf(t, server, text), startNode(t, server, issuer))
			}
			if server := folder + "server.go"; exists(server) {
				pairs = append(pairs, backendOf(t, server, text), startGo(t, folder, issuer))
			}
			// Paths in the commands are relative to the root of the repository.
			t.Chdir(repositoryRoot)
			var moved *strings.Replacer
			if second, err := os.ReadFile(story + ".second"); err == nil {
				moved = startFleet(t, text, string(second))
			} else {
				moved = strings.NewReplacer(append(pairs, furtherSteps(t, story, pairs)...)...)
			}
			startStory(t, moved.Replace(text))
			t.Chdir("caddyoauth")
			for _, document := range told {
				runConsole(t, document, moved)
				for _, b := range docBlocks(t, document) {
					if b.kind == "go" {
						runProgram(t, b, moved)
					}
				}
			}
		})
	}
}

// exists reports whether there is a file of that name, relative to the root of the repository.
func exists(file string) bool {
	_, err := os.Stat(filepath.Join(repositoryRoot, filepath.FromSlash(file)))
	return err == nil
}

// furtherSteps returns what to replace in commands, in pairs, for an example with several Caddyfiles to which
// its gateway is reloaded, such as Caddyfile.both: their paths with those of copies that are moved as the
// first one is.
func furtherSteps(t *testing.T, story string, pairs []string) (paths []string) {
	t.Helper()
	files, err := filepath.Glob(story + ".*")
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		checkFormat(t, string(text))
		// The gateway reads the files of an example from another folder.
		moved := strings.ReplaceAll(strings.NewReplacer(pairs...).Replace(string(text)), "{$CREDENTIALS_DIRECTORY:examples/", "{$CREDENTIALS_DIRECTORY:"+filepath.ToSlash(root)+"/examples/")
		step := filepath.Join(t.TempDir(), filepath.Base(file))
		if err := os.WriteFile(step, []byte(moved), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, file, filepath.ToSlash(step))
	}
	return paths
}

// backendOf returns the address at which an example expects its server.
func backendOf(t *testing.T, server, caddyfile string) string {
	t.Helper()
	port := regexp.MustCompile(`process\.env\.PORT \?\? (\d+)|os\.Getenv\("PORT"\), "(\d+)"`).FindStringSubmatch(readDocument(t, server))
	if port == nil || !regexp.MustCompile(`(reverse_proxy |(?:federated|source jwt) http://)127\.0\.0\.1:`+port[1]+port[2]+`\b`).MatchString(caddyfile) {
		t.Fatalf("%s doesn't listen where the Caddyfile expects it", server)
	}
	return "127.0.0.1:" + port[1] + port[2]
}

// issuerOf returns the issuer of an example's root realm, or "".
func issuerOf(caddyfile string) string {
	m := regexp.MustCompile(`(?m)^\t\tissuer (\S+)$`).FindStringSubmatch(caddyfile)
	if m == nil {
		return ""
	}
	return m[1]
}

// startGo builds the program in a folder, which is a module of its own, and runs it as startNode
// does. Without the modules that it needs, and without a network to get them from, the test is
// skipped, which .ci/run does not accept.
func startGo(t *testing.T, folder string, variables ...string) (address string) {
	t.Helper()
	folder = filepath.Join(repositoryRoot, folder)
	if output, err := exec.Command("go", "-C", folder, "mod", "download").CombinedOutput(); err != nil {
		t.Skipf("the modules for %s can't be had: %s", folder, output)
	}
	program := filepath.Join(t.TempDir(), "server.exe") // Windows wants the name to end like that
	if output, err := exec.Command("go", "-C", folder, "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("building %s: %s", folder, output)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = append(os.Environ(), variables...)
	return startBackend(t, folder, cmd)
}

// siteAddress matches a site's port, its name in the example of a deployment, or the port of the
// admin endpoint.
var siteAddress = regexp.MustCompile(`(?m)^(:\d+|[a-z.]+\.example\.com) \{|^\tadmin 127\.0\.0\.1(:\d+)$`)

// freePorts returns what to replace in a Caddyfile, in pairs: ports with ports that are free here, and
// sites that have names with sites on loopback, without TLS.
func freePorts(t *testing.T, text string) (pairs []string) {
	t.Helper()
	for _, m := range siteAddress.FindAllStringSubmatch(text, -1) {
		port := fmt.Sprintf(":%d", porttest.Reserve(t))
		if m[1] == "" || m[1][0] == ':' {
			pairs = append(pairs, m[1]+m[2], port)
		} else {
			pairs = append(pairs, "https://"+m[1], "http://127.0.0.1"+port, m[0], port+" {\n\tbind 127.0.0.1")
		}
	}
	if len(siteAddress.FindString(text)) == 0 {
		t.Fatal("the Caddyfile has no site with a port or a name")
	}
	return pairs
}

// startFleet starts what the example of a fleet needs besides its first gateway: a Redis in place
// of the one on port 6390, and the second gateway, in a process of its own.
func startFleet(t *testing.T, first, second string) *strings.Replacer {
	t.Helper()
	checkFormat(t, second)
	redis := redistest.Start(t)
	_, port, _ := net.SplitHostPort(redis.Addr)
	// The example stops that one and starts another in its place.
	t.Cleanup(func() { exec.Command("redis-cli", "-p", port, "shutdown", "nosave").Run() })
	moved := strings.NewReplacer(append(freePorts(t, first+second), "store redis 127.0.0.1:6390\n", at(redis.Addr), "6390", port)...)
	runProcess(t, moved.Replace(second), "127.0.0.1"+moved.Replace(siteAddress.FindStringSubmatch(second)[1]))
	return moved
}

// runProcess runs a Caddyfile in a process of its own, in the root of the repository, until it
// listens on these addresses. It begins with one after the other, in any order.
func runProcess(t *testing.T, text string, addresses ...string) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestCalledAsCaddy$", "--", "run", "--config", config)
	cmd.Dir = repositoryRoot
	cmd.Env = append(os.Environ(), calledAsCaddy+"=1", "XDG_DATA_HOME="+t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for _, address := range addresses {
		waitUntil(t, "the process listens on "+address, func() bool {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
}

// The secret of both clients in the example of a deployment, and its hash.
const (
	deployedSecret = "cos_bLn_YPImI7rmufXr8Y2IiF71Ij7x20egEJaI_UDdeU8"
	deployedHash   = "$sha256$v5tDTgJZiCU1P6ax79sJUhYHoKwhGPfC/OFisNq64es"
)

// startStory loads a Caddyfile into this process, with its state in a temporary folder.
func startStory(t *testing.T, text string) (logFile string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	t.Setenv("MAILER_SECRET", "demo-secret-from-env")
	// Must not be inherited from whatever runs the tests.
	t.Setenv("CREDENTIALS_DIRECTORY", "") // restores the old value at the end
	os.Unsetenv("CREDENTIALS_DIRECTORY")
	// What the deployment's unit sets, and the files that it puts there.
	t.Setenv("GATEWAY_SECRETS", dir)
	for name, content := range map[string]string{"reports": deployedSecret, "billing": deployedHash} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	logFile = filepath.Join(dir, "log")
	// A reload finds the files of an example although the test has moved on.
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	text = strings.ReplaceAll(text, "{$CREDENTIALS_DIRECTORY:examples/", "{$CREDENTIALS_DIRECTORY:"+filepath.ToSlash(root)+"/examples/")

	var config map[string]any
	if err := json.Unmarshal(adaptDocument(t, text), &config); err != nil {
		t.Fatal(err)
	}
	// An example that uses the admin endpoint has its own on loopback; no other is touched.
	if admin, _ := config["admin"].(map[string]any); !strings.HasPrefix(fmt.Sprint(admin["listen"]), "127.0.0.1:") {
		config["admin"] = map[string]any{"disabled": true, "config": map[string]any{"persist": false}}
	}
	config["storage"] = map[string]any{"module": "file_system", "root": dir}
	config["logging"] = map[string]any{"logs": map[string]any{"default": map[string]any{
		"level": "DEBUG", "writer": map[string]any{"output": "file", "filename": logFile},
	}}}
	for name, server := range config["apps"].(map[string]any)["http"].(map[string]any)["servers"].(map[string]any) {
		for _, address := range server.(map[string]any)["listen"].([]any) {
			if !strings.HasPrefix(address.(string), "127.0.0.1:") {
				t.Errorf("server %s listens on %v; an example binds loopback", name, address)
			}
		}
	}
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping Caddy: %v", err)
		}
	})
	if err := caddy.Load(raw, true); err != nil {
		t.Fatalf("loading: %v", err)
	}
	// An issuer in the same example may have started a moment after the gateway asked it.
	if strings.Contains(text, "source jwt") {
		waitUntil(t, "fetched the issuer's keys", func() bool {
			log, err := os.ReadFile(logFile)
			return err == nil && bytes.Contains(log, []byte("fetched the issuer's keys"))
		})
	}
	return logFile
}

// consoleStep is a command and what it prints.
type consoleStep struct {
	line          int
	command, want string
}

func consoleSteps(t *testing.T, document string, moved *strings.Replacer) []consoleStep {
	t.Helper()
	var steps []consoleStep
	for _, b := range docBlocks(t, document) {
		if b.kind != "console" {
			continue
		}
		goesOn := false
		for i, line := range strings.Split(strings.TrimSuffix(moved.Replace(b.text), "\n"), "\n") {
			command, isCommand := strings.CutPrefix(line, "$ ")
			switch {
			case goesOn:
				steps[len(steps)-1].command += "\n" + line
				command = line
			case isCommand:
				steps = append(steps, consoleStep{line: b.line + i, command: command})
			case i == 0:
				t.Fatalf("%v: a console block begins with a command", b)
			default:
				steps[len(steps)-1].want += line + "\n"
				continue
			}
			goesOn = strings.HasSuffix(command, `\`)
		}
	}
	return steps
}

// runConsole runs a document's console blocks in order and in one shell, so that a variable set in
// one block is there in the next.
func runConsole(t *testing.T, document string, moved *strings.Replacer) {
	t.Helper()
	steps := consoleSteps(t, document, moved)
	if runtime.GOOS == "windows" {
		t.Skip("the commands are for a POSIX shell")
	}
	for _, program := range []string{"sh", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: the commands in %s can't be run", program, document)
		}
	}

	// Separates the outputs of two commands.
	const separator = "\n\x1e\n"
	script := "exec 2>&1\n"
	for _, s := range steps {
		script += s.command + "\nprintf '\\n\\036\\n'\n"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	sh := exec.CommandContext(ctx, "sh", "-c", script)
	sh.Dir = repositoryRoot
	// Without the user's settings: no .curlrc, no proxy.
	sh.Env = []string{"HOME=" + t.TempDir(), "PATH=" + caddyCommand(t) + ":" + os.Getenv("PATH"), "LC_ALL=C.UTF-8",
		"REPORTS_SECRET=" + deployedSecret, "BILLING_SECRET=" + deployedSecret}
	output, err := sh.Output()
	if err != nil {
		t.Fatalf("running the commands in %s: %v\n%s", document, err, output)
	}
	outputs := strings.Split(string(output), separator)
	if len(outputs) != len(steps)+1 {
		t.Fatalf("%s: %d commands had %d outputs", document, len(steps), len(outputs)-1)
	}
	for i, s := range steps {
		got := strings.ReplaceAll(outputs[i], "\r\n", "\n")
		if !consolePattern(s.want).MatchString(strings.TrimRight(got, "\n")) {
			t.Errorf("%s:%d: $ %s\ngot:\n%s\nwant:\n%s", document, s.line, s.command, got, s.want)
		}
	}
}

// runProgram runs a Go program of a document.
func runProgram(t *testing.T, b docBlock, moved *strings.Replacer) {
	t.Helper()
	if formatted, err := format.Source([]byte(b.text)); err != nil || string(formatted) != b.text {
		t.Errorf("%v: not formatted by gofmt (%v)", b, err)
	}
	_, want, _ := strings.Cut(b.text, "// Output: ")
	want, _, _ = strings.Cut(want, "\n")
	if want == "" {
		t.Fatalf("%v: the program doesn't say what it prints", b)
	}
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, []byte(moved.Replace(b.text)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "run", file) // in this module, for its dependencies
	cmd.Env = append(os.Environ(), "CLIENT_SECRET=mySecret", "NO_PROXY=127.0.0.1")
	if output, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(output)) != want {
		t.Errorf("%v prints %q (%v), want %q", b, output, err, want)
	}
}

// consolePattern returns a pattern for what want describes.
func consolePattern(want string) *regexp.Regexp {
	lines := strings.Split(strings.TrimRight(want, "\n"), "\n")
	var pattern strings.Builder
	pattern.WriteString(`\A`)
	for i, line := range lines {
		if line == "…" {
			pattern.WriteString(`(?s:.*?)`)
		} else {
			pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), "…", `[^\n]*?`))
		}
		if i < len(lines)-1 {
			pattern.WriteString(`\n`)
		}
	}
	return regexp.MustCompile(pattern.String() + `\z`)
}

// caddyCommand returns a folder with a program `caddy`, which is this test binary.
func caddyCommand(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := "#!/bin/sh\n" + calledAsCaddy + "=1 exec '" + self + "' -test.run='^TestCalledAsCaddy$' -- \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "caddy"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

const calledAsCaddy = "CADDYOAUTH_TEST_CALLED_AS_CADDY"

// TestCalledAsCaddy is Caddy's command line, for the commands in console blocks. It does nothing
// in an ordinary test run.
func TestCalledAsCaddy(t *testing.T) {
	if os.Getenv(calledAsCaddy) == "" {
		return
	}
	os.Args = append([]string{"caddy"}, flag.Args()...)
	caddycmd.Main() // ends the process itself if the command fails
	os.Exit(0)
}

// The wildcards of console blocks match what they should, and no more.
func TestConsolePattern(t *testing.T) {
	for _, c := range []struct {
		name, want, got string
		match           bool
	}{
		{"equal lines", "a\nb\n", "a\nb", true},
		{"another line", "a\nb\n", "a\nc", false},
		{"one line too many", "a\n", "a\nb", false},
		{"nothing expected, nothing there", "", "", true},
		{"nothing expected, something there", "", "a", false},
		{"a wildcard in a line", "a…c\n", "abbc", true},
		{"a wildcard ends with the line", "a…c\n", "ab\nc", false},
		{"a wildcard for lines", "a\n…\nd\n", "a\nb\nc\nd", true},
		{"a dot is a dot", "a.c\n", "abc", false},
	} {
		if got := consolePattern(c.want).MatchString(c.got); got != c.match {
			t.Errorf("%s: match is %v", c.name, got)
		}
	}
}

// Every example has a README and vice versa, the README links to every page of docs, and no link
// between documents is broken.
func TestDocumentLinks(t *testing.T) {
	for _, story := range stories(t)[1:] {
		for _, name := range []string{story, strings.TrimSuffix(story, "Caddyfile") + "README.md"} {
			if _, err := os.Stat(filepath.Join(repositoryRoot, name)); err != nil {
				t.Error(err)
			}
		}
	}
	readme := readDocument(t, "README.md")
	for _, page := range pages(t) {
		if !strings.Contains(readme, "]("+page) {
			t.Errorf("the README does not link to %s", page)
		}
	}
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	// A Go file, and perhaps what is declared in it: `path/file.go`, `Name`, `Type.Method`
	source := regexp.MustCompile("`([a-z_/]+/[a-z_]+\\.go)`((?:,\\s`[A-Za-z.]+`)*)")
	for _, file := range documents(t) {
		text := readDocument(t, file)
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			inside := file
			if target != "" {
				inside = filepath.ToSlash(filepath.Join(filepath.Dir(file), target))
			}
			if _, err := os.Stat(filepath.Join(repositoryRoot, inside)); err != nil {
				t.Errorf("%s: the link to %s is broken", file, m[1])
			} else if anchor != "" && !slices.Contains(anchorsOf(readDocument(t, inside)), anchor) {
				t.Errorf("%s: %s has no heading for #%s", file, inside, anchor)
			}
		}
		for _, m := range source.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(repositoryRoot, m[1])); err != nil {
				t.Errorf("%s: there is no %s", file, m[1])
				continue
			}
			for _, name := range regexp.MustCompile(`[A-Za-z.]+`).FindAllString(m[2], -1) {
				name = name[strings.LastIndex(name, ".")+1:]
				declared := regexp.MustCompile(`(?m)^(?:func (?:\([^)]*\) )?|type |var |const |\t)` + name + `\b`)
				if !declared.MatchString(readDocument(t, m[1])) {
					t.Errorf("%s: %s declares no %s", file, m[1], name)
				}
			}
		}
	}
}

// A page of docs begins with a table of contents that has all its sections, in their order:
// links in a list, or in a table that says more about each. The README stays short.
func TestTablesOfContents(t *testing.T) {
	heading := regexp.MustCompile(`^(##|###) (.+)$`)
	entry := regexp.MustCompile(`^(?:- |  - |\| )\[([^\]]+)\]\(#([^)]+)\)`)
	for _, page := range pages(t) {
		var headings, contents []string
		inBlock := false
		for line := range strings.SplitSeq(readDocument(t, page), "\n") {
			if strings.HasPrefix(line, "```") {
				inBlock = !inBlock
			}
			if inBlock {
				continue
			}
			if m := heading.FindStringSubmatch(line); m != nil {
				headings = append(headings, m[2])
			} else if m := entry.FindStringSubmatch(line); m != nil && len(headings) == 0 {
				contents = append(contents, m[1])
			}
		}
		if len(headings) > 1 && !slices.Equal(contents, headings) {
			t.Errorf("%s: the table of contents has\n%q\nand the sections are\n%q", page, contents, headings)
		}
	}
	if size := len(readDocument(t, "README.md")); size > 14<<10 {
		t.Errorf("the README has %d bytes; it says what this is and where to read on: put options into docs/configuration.md, running it into docs/operations.md", size)
	}
}

// anchorsOf returns the anchors that GitHub gives a document's headings.
func anchorsOf(text string) (anchors []string) {
	dropped := regexp.MustCompile(`[^\p{L}\p{N}\- _]`)
	for line := range strings.Lines(text) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			title = dropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
			anchors = append(anchors, strings.ReplaceAll(title, " ", "-"))
		}
	}
	return anchors
}

// docs/configuration.md explains every option there is. What there is, the parser says itself.
func TestManualHasEveryOption(t *testing.T) {
	configuration := readDocument(t, "docs/configuration.md")
	known := regexp.MustCompile(`\(known: ([^)]+)\)`)
	for _, c := range []struct{ where, oauth, site string }{
		{"oauth", "nonsense", ""},
		{"cache", "cache {\nnonsense\n}", ""},
		{"realm", "realm a {\nnonsense\n}", ""},
		{"client", "client a {\nnonsense\n}", ""},
		{"auth", "client a {\nauth nonsense\n}", ""},
		{"grant_types", "client a {\ngrant_types nonsense\n}", ""},
		{"bbolt", "store bbolt {\nnonsense\n}", ""},
		{"redis", "store redis 127.0.0.1:6379 {\nnonsense\n}", ""},
		{"redis tls", "store redis 127.0.0.1:6379 {\ntls {\nnonsense\n}\n}", ""},
		{"oauth_server", "", "oauth_server {\nnonsense\n}"},
		{"oauth_protect", "", "oauth_protect {\nnonsense\n}"},
		{"introspect", "", "oauth_protect {\nsource introspect https://a.example {\nnonsense\n}\n}"},
		{"jwt", "", "oauth_protect {\nsource jwt https://a.example {\nnonsense\n}\n}"},
	} {
		_, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfileOf(c.oauth, c.site)), nil)
		m := known.FindStringSubmatch(fmt.Sprint(err))
		if m == nil {
			t.Errorf("%s: the error does not say what is known: %v", c.where, err)
			continue
		}
		for option := range strings.SplitSeq(m[1], ", ") {
			option, _, _ = strings.Cut(option, " ") // "none alone" is none
			if option = strings.TrimPrefix(option, "or "); option == "or" {
				option = "none"
			}
			if !regexp.MustCompile("`" + regexp.QuoteMeta(option) + "[` ]").MatchString(configuration) {
				t.Errorf("%s: docs/configuration.md does not explain %q", c.where, option)
			}
		}
	}
	// The names of the stores come from the source, because tests register others.
	stores, err := filepath.Glob("store_*.go")
	if err != nil || len(stores) < 3 {
		t.Fatalf("only the stores %v are looked at (%v)", stores, err)
	}
	for _, file := range stores {
		m := regexp.MustCompile(`"oauth\.stores\.([a-z]+)"`).FindStringSubmatch(readDocument(t, "caddyoauth/"+file))
		if m == nil || !regexp.MustCompile("`store "+m[1]+"[` ]").MatchString(configuration) {
			t.Errorf("docs/configuration.md does not explain the store in %s: %q", file, m)
		}
	}
}

// docs/configuration.md has every command of caddy oauth, with its options.
func TestManualHasEveryCommand(t *testing.T) {
	configuration := readDocument(t, "docs/configuration.md")
	oauth := &cobra.Command{Use: "oauth"}
	caddycmd.Commands()["oauth"].CobraFunc(oauth)
	(&cobra.Command{Use: "caddy"}).AddCommand(oauth)
	found := 0
	var look func(*cobra.Command)
	look = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			look(c)
		}
		if cmd.HasSubCommands() {
			return
		}
		found++
		_, row, ok := strings.Cut(configuration, "\n| `"+cmd.CommandPath()+"` |")
		if !ok {
			t.Errorf("docs/configuration.md has no row for %s", cmd.CommandPath())
		}
		row, _, _ = strings.Cut(row, "\n")
		for _, flag := range regexp.MustCompile(`--[a-z-]+`).FindAllString(cmd.LocalFlags().FlagUsages(), -1) {
			if !strings.Contains(row, "`"+flag+"`") {
				t.Errorf("docs/configuration.md doesn't explain %s of %s", flag, cmd.CommandPath())
			}
		}
	}
	look(oauth)
	if found < 3 {
		t.Errorf("only %d commands were found", found)
	}
}

// Each mistake that docs/configuration.md explains is answered with the words that it quotes.
func TestManualHasTheErrors(t *testing.T) {
	configuration := readDocument(t, "docs/configuration.md")
	for _, c := range []struct{ message, caddyfile string }{
		{"needs an 'oauth' block in the global options", ":0 {\noauth_protect\n}"},
		{"unknown realm", caddyfileOf(testClients, "oauth_protect beta")},
		{"a secret must be given as {env.NAME} or {file./path}, never literally", caddyfileOf("client a {\nsecret abc\n}", "")},
		{"the hash is of an unknown kind", caddyfileOf("client a {\nsecret_hash abc\n}", "")},
		{"it has no secret", caddyfileOf("client a {\nscopes read\n}", "oauth_server")},
		{"is not set, empty, or can't be read", caddyfileOf("client a {\nsecret {env.CADDYOAUTH_TEST_NOT_SET}\n}", "oauth_server")},
		{"is not among its scopes", caddyfileOf("client a {\nscopes read\ndefault_scopes write\n}", "")},
		{"must be an https URL", caddyfileOf("issuer http://auth.example.com\n"+testClients, "oauth_server")},
		{"duplicate option", caddyfileOf("token_lifetime 1h\ntoken_lifetime 2h", "")},
		{"oauth is already configured", "{\noauth {\n}\noauth {\n}\n}"},
	} {
		if !strings.Contains(configuration, "`"+c.message+"`") {
			t.Errorf("docs/configuration.md does not explain %q", c.message)
		}
		config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(c.caddyfile), nil)
		if err == nil {
			var parsed caddy.Config
			if err = json.Unmarshal(config, &parsed); err == nil {
				err = caddy.Validate(&parsed)
			}
		}
		if err == nil || !strings.Contains(err.Error(), c.message) {
			t.Errorf("docs/configuration.md promises %q, and the error is: %v", c.message, err)
		}
	}

	// Every message that the page quotes is one of ours, except those of Redis, in capitals.
	_, table, _ := strings.Cut(configuration, "| message has |")
	source := ""
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			source += readDocument(t, "caddyoauth/"+filepath.ToSlash(path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for row := range strings.SplitSeq(table, "\n| ") {
		cell, _, _ := strings.Cut(row, " |")
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
			if !strings.Contains(source, m[1]) && strings.ToUpper(m[1]) != m[1] {
				t.Errorf("docs/configuration.md explains the message %q, which nothing says", m[1])
			}
		}
	}

	// A damaged store is discovered when it is opened.
	damaged := filepath.Join(t.TempDir(), "tokens.db")
	if err := os.WriteFile(damaged, []byte("no store"), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := adapt(t, formatted(caddyfileOf("store bbolt "+damaged+"\n"+testClients, "oauth_server")))
	if err != nil {
		t.Fatal(err)
	}
	const noStore = "is damaged or not a token store"
	if err := caddy.Load(config, true); err == nil || !strings.Contains(err.Error(), noStore) || !strings.Contains(configuration, "`"+noStore+"`") {
		t.Errorf("docs/configuration.md does not explain %q, or it is not what is said of a damaged file: %v", noStore, err)
	}

	// A locked store takes two processes that want it.
	path := filepath.Join(t.TempDir(), "tokens.db")
	startGateway(t, "store bbolt "+path+"\n"+testClients, "oauth_server")
	held := secondCaddyOn(t, path)
	message := "is in use by another process"
	if !strings.Contains(configuration, "`"+message+"`") || !strings.Contains(held, message) {
		t.Errorf("docs/configuration.md does not explain %q, or it is not what a second process says: %s", message, held)
	}
}

// secondCaddyOn runs a second Caddy on the same store and returns what it says when it gives up.
func secondCaddyOn(t *testing.T, path string) string {
	t.Helper()
	config := filepath.Join(t.TempDir(), "Caddyfile")
	text := caddyfileOf("store bbolt "+path+"\n"+testClients, "oauth_server")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	second := exec.CommandContext(ctx, self, "-test.run=^TestCalledAsCaddy$", "--", "run", "--config", config)
	second.Env = append(os.Environ(), calledAsCaddy+"=1", "XDG_DATA_HOME="+t.TempDir())
	output, err := second.CombinedOutput()
	if err == nil {
		t.Error("a second process opened the same store")
	}
	return string(output)
}

// family returns the name of the metric that a series belongs to: those of a histogram have others.
func family(name string) string {
	for _, suffix := range []string{"_bucket", "_count", "_sum"} {
		if histogram, ok := strings.CutSuffix(name, suffix); ok {
			return histogram
		}
	}
	return name
}

// docs/operations.md names every metric and every event, and none that don't exist.
func TestManualHasMetricsAndEvents(t *testing.T) {
	operations := readDocument(t, "docs/operations.md")
	text := strings.Replace(readDocument(t, "Caddyfile.example"), "token_lifetime 1h", "token_lifetime 1h\n\t\tmanaged_clients\n\t\tcache {\n\t\t\tmax_tokens 1\n\t\t}", 1)
	moved := strings.NewReplacer(freePorts(t, text)...)
	text, admin := withAdmin(t, moved.Replace(text))
	logFile := startStory(t, text)
	g := &gateway{t: t, Client: newClient(t), URL: "http://127.0.0.1" + moved.Replace(":8080")}
	form := map[string][]string{"grant_type": {"client_credentials"}}
	token, _ := g.post("/oauth2/token", "myClient", "mySecret", form).json(t)["access_token"].(string)
	if a := g.get("/api/x", token); a.StatusCode != 200 {
		t.Errorf("with a token: %d", a.StatusCode)
	}
	g.get("/api/x", "")
	g.post("/oauth2/token", "myClient", "wrong", form)
	for _, path := range []string{"/oauth2/introspect", "/oauth2/revoke"} {
		g.post(path, "myClient", "wrong", form)
		g.post(path, "myClient", "mySecret", map[string][]string{"token": {token}})
	}

	g.post("/oauth2/introspect", "myClient", "mySecret", map[string][]string{"token": {token}})
	g.post("/oauth2/nobody/token", "myClient", "mySecret", form)
	g.mustRevokeAll(admin, `{"client":"myClient"}`, `{"realm":"root","client":"myClient","clients":1}`)

	// Metrics, both ways.
	active := caddy.ActiveContext()
	families, err := active.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var exist []string
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "caddy_oauth_") {
			exist = append(exist, f.GetName())
			for _, label := range f.GetMetric()[0].GetLabel() {
				if !strings.Contains(operations, "`"+label.GetName()+"`") {
					t.Errorf("docs/operations.md does not name the label %s of %s", label.GetName(), f.GetName())
				}
			}
		}
	}
	// These exist once another server has been asked, or if a route takes Basic, only reports, or takes
	// tokens of a realm beside others.
	for _, name := range []string{"caddy_oauth_source_duration_seconds", "caddy_oauth_source_up", "caddy_oauth_client_basic_total", "caddy_oauth_client_elsewhere_total", "caddy_oauth_report_only_total"} {
		if !slices.Contains(exist, name) {
			exist = append(exist, name)
		}
	}
	slices.Sort(exist)
	named := regexp.MustCompile(`caddy_oauth_[a-z_]+`).FindAllString(operations, -1)
	for i, name := range named { // an alert may count what a histogram has observed
		named[i] = family(name)
	}
	slices.Sort(named)
	if named = slices.Compact(named); !slices.Equal(named, exist) {
		t.Errorf("docs/operations.md names the metrics %v, there are %v", named, exist)
	}

	// Events, both ways.
	if err := caddy.Stop(); err != nil { // flushes the log
		t.Fatal(err)
	}
	log, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	events := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(log))
	for lines.Scan() {
		var line struct{ Event string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Event != "" {
			events[line.Event] = true
		}
		if bytes.Contains(lines.Bytes(), []byte(cmp.Or(token, "no token"))) {
			t.Errorf("the log holds a token: %s", lines.Text())
		}
	}
	for _, event := range []string{"token_issued", "token_introspected", "token_revoked", "token_refused", "introspect_refused", "revoke_refused", "no_such_endpoint", "request_refused", "tokens_revoked_all"} {
		if !strings.Contains(operations, "`"+event+"`") {
			t.Errorf("docs/operations.md does not explain the event %s", event)
		}
		if !strings.Contains(operations, `"event":"`+event+`"`) {
			t.Errorf("docs/operations.md has no sample line of the event %s", event)
		}
		if !events[event] {
			t.Errorf("the log has no event %s", event)
		}
		delete(events, event)
	}
	for _, b := range docBlocks(t, "docs/operations.md") {
		if b.kind != "log" {
			continue
		}
		for line := range strings.Lines(b.text) {
			sample := consolePattern(line)
			if !slices.ContainsFunc(strings.Split(string(log), "\n"), sample.MatchString) {
				t.Errorf("%v: the log has no line like %s", b, line)
			}
		}
	}
	for event := range events {
		t.Errorf("the event %s is new; explain it in docs/operations.md", event)
	}
	reasons := regexp.MustCompile(`(?:invalidClient\(|reason\w* +:?= (?:nil, )?)"([a-z_]+)"`).FindAllStringSubmatch(readDocument(t, "caddyoauth/internal/oauth/authenticate.go")+readDocument(t, "caddyoauth/internal/oauth/certificate_auth.go"), -1)
	if len(reasons) < 5 {
		t.Errorf("the source has no more than %d reasons why a client is not authenticated", len(reasons))
	}
	for _, m := range reasons {
		if !strings.Contains(operations, "`"+m[1]+"`") {
			t.Errorf("docs/operations.md does not explain the reason %s", m[1])
		}
	}
}
