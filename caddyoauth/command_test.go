package caddyoauth_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// caddyCLI runs a 'caddy oauth' command in this process, with input as its standard input.
func caddyCLI(t testing.TB, input string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	command, ok := caddycmd.Commands()["oauth"]
	if !ok {
		t.Fatal("Caddy has no command oauth")
	}
	// This is what Caddy's main does. Its own root command would end the process on errors.
	root := &cobra.Command{Use: "caddy", SilenceUsage: true, SilenceErrors: true}
	oauth := &cobra.Command{Use: command.Name + " " + command.Usage, Short: command.Short, Long: command.Long}
	command.CobraFunc(oauth)
	root.AddCommand(oauth)
	var out, errs bytes.Buffer
	root.SetIn(strings.NewReader(input))
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append([]string{"oauth"}, args...))
	err = root.Execute()
	return out.String(), errs.String(), err
}

// worksAsSecret checks that a line printed by a command, pasted into a Caddyfile, lets a client in
// with the secret and with nothing else.
func worksAsSecret(t *testing.T, line, secret string) {
	t.Helper()
	g := startGateway(t, "store memory\nclient c {\n"+line+"\nscopes read\ndefault_scopes read\n}\n", gatewaySite)
	g.Client.Timeout = 0 // with the race detector, on a busy machine, bcrypt may take longer than any
	fetch := func(secret string) answer {
		t.Helper()
		return g.post("/oauth2/access_token", "c", secret, url.Values{"grant_type": {"client_credentials"}})
	}
	if a := fetch(secret); a.StatusCode != 200 {
		t.Errorf("the secret gets %d %s", a.StatusCode, a.Body)
	}
	if a := fetch(secret + "x"); a.StatusCode != 401 {
		t.Errorf("another secret gets %d", a.StatusCode)
	}
}

// caddy oauth generate-secret prints a new secret, and its hash for the Caddyfile.
func TestGenerateSecret(t *testing.T) {
	stdout, stderr, err := caddyCLI(t, "", "generate-secret")
	if err != nil {
		t.Fatal(err)
	}
	// Standard output is for scripts: the secret, then the line for the Caddyfile, and nothing else.
	m := regexp.MustCompile(`^(cos_([A-Za-z0-9_-]{43}))\n(secret_hash \$sha256\$[A-Za-z0-9+/]{43})\n$`).FindStringSubmatch(stdout)
	if m == nil {
		t.Fatalf("standard output is %q", stdout)
	}
	if raw, err := base64.RawURLEncoding.DecodeString(m[2]); err != nil || len(raw) != 32 {
		t.Errorf("the secret has %d random bytes, %v", len(raw), err)
	}
	// Standard error explains it to people.
	if !strings.Contains(stderr, "shown only now") || strings.Contains(stderr, m[1]) {
		t.Errorf("standard error is %q", stderr)
	}
	worksAsSecret(t, m[3], m[1])

	again, _, err := caddyCLI(t, "", "generate-secret")
	if err != nil || again == stdout {
		t.Errorf("the second secret is the first: %v", err)
	}
	if _, _, err := caddyCLI(t, "", "generate-secret", "extra"); err == nil {
		t.Error("an argument was accepted")
	}
}

// caddy oauth hash-secret reads a secret and prints its hash for the Caddyfile.
func TestHashSecret(t *testing.T) {
	generated := "cos_" + base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	for _, c := range []struct {
		name, input string
		args        []string
		want        string
		// secret must let a client in. Slow hashes take seconds under the race detector, so each
		// algorithm is tried only once.
		secret string
	}{
		{"argon2id is the default", "correct horse\n", nil, `^secret_hash \$argon2id\$v=19\$m=19456,t=2,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}\n$`, "correct horse"},
		{"argon2id by name, of the longest secret", strings.Repeat("密码", 170) + "1234", []string{"--algorithm", "argon2id"}, `^secret_hash \$argon2id\$`, ""},
		{"bcrypt of as much as it can hash", strings.Repeat("x", 72) + "\n", []string{"-a", "bcrypt"}, `^secret_hash \$2[aby]\$12\$[A-Za-z0-9./]{53}\n$`, strings.Repeat("x", 72)},
		{"sha256 of a generated secret", generated + "\n", []string{"-a", "sha256"}, `^secret_hash \$sha256\$[A-Za-z0-9+/]{43}\n$`, generated},
		{"no line break", generated, []string{"-a", "sha256"}, `^secret_hash `, generated},
		{"a Windows line break", generated + "\r\n", []string{"-a", "sha256"}, `^secret_hash `, generated},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, err := caddyCLI(t, c.input, append([]string{"hash-secret"}, c.args...)...)
			if err != nil {
				t.Fatal(err)
			}
			if !regexp.MustCompile(c.want).MatchString(stdout) {
				t.Fatalf("standard output is %q, want %s", stdout, c.want)
			}
			if stderr != "" {
				t.Errorf("standard error is %q", stderr)
			}
			if c.secret != "" {
				worksAsSecret(t, strings.TrimSpace(stdout), c.secret)
			}
		})
	}
}

// What can't be a secret, or not with that algorithm, is refused without being repeated.
func TestHashSecretRefuses(t *testing.T) {
	for _, c := range []struct {
		name, input string
		args        []string
		want        string
	}{
		{"nothing", "", nil, "the secret is empty"},
		{"an empty line", "\n", nil, "the secret is empty"},
		{"an empty Windows line", "\r\n", nil, "the secret is empty"},
		{"nothing, with bcrypt", "\n", []string{"-a", "bcrypt"}, "the secret is empty"},
		{"more than bcrypt can hash", leakedSecret + strings.Repeat("x", 66), []string{"-a", "bcrypt"}, "bcrypt reads only the first 72 bytes of a secret; use argon2id"},
		{"more than a secret may have", leakedSecret + strings.Repeat("x", 1018), nil, "longer than 1024 bytes"},
		{"more than is read", leakedSecret + strings.Repeat("x", 100_000), nil, "longer than 1024 bytes"},
		{"a NUL", leakedSecret + "\x00", nil, "contains a NUL"},
		{"not text", leakedSecret + "\xff", nil, "not UTF-8"},
		{"a person's secret with sha256", leakedSecret + "\n", []string{"-a", "sha256"}, "hash others with argon2id"},
		{"a generated secret, cut short", "cos_" + leakedSecret, []string{"-a", "sha256"}, "hash others with argon2id"},
		{"two line breaks, of which only one is removed", "cos_" + strings.Repeat("A", 43) + "\n\n", []string{"-a", "sha256"}, "hash others with argon2id"},
		{"a space, which is part of the secret", " cos_" + strings.Repeat("A", 43), []string{"-a", "sha256"}, "hash others with argon2id"},
		{"an unknown algorithm", leakedSecret, []string{"-a", "md5"}, `unknown algorithm "md5" (known: argon2id, bcrypt, sha256)`},
		{"an unknown flag", leakedSecret, []string{"--plain"}, "unknown flag"},
		{"an argument", "", []string{"extra"}, "unknown command"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, err := caddyCLI(t, c.input, append([]string{"hash-secret"}, c.args...)...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			if stdout != "" {
				t.Errorf("standard output is %q", stdout)
			}
			if strings.Contains(err.Error()+stderr, leakedSecret) {
				t.Errorf("the secret is repeated: %v, %q", err, stderr)
			}
		})
	}
}

// The command and its subcommands have help.
func TestOAuthCommandHasHelp(t *testing.T) {
	for _, args := range [][]string{nil, {"--help"}, {"hash-secret", "--help"}, {"generate-secret", "--help"}, {"generate-key", "--help"}} {
		stdout, _, err := caddyCLI(t, "", args...)
		if err != nil || !strings.Contains(stdout, "secret") || !strings.Contains(stdout, "Usage:") {
			t.Errorf("caddy oauth %s: %v\n%s", strings.Join(args, " "), err, stdout)
		}
	}
}

// A command that does not exist is an error that names those that do.
func TestOAuthCommandRefusesUnknownSubcommands(t *testing.T) {
	for _, args := range [][]string{{"nonsense"}, {"generate-secrets"}, {"Hash-Secret"}, {"nonsense", "hash-secret"}, {""}} {
		stdout, _, err := caddyCLI(t, "", args...)
		if err == nil || !strings.Contains(err.Error(), `unknown command "`+args[0]+`" for "caddy oauth" (known: assertion, client, console, explain, generate-key, generate-secret, hash-secret, import, keys, lint, routes, token)`) || stdout != "" {
			t.Errorf("caddy oauth %q: %v, and prints %q", args, err, stdout)
		}
	}
}

// The command is part of Caddy's own main, reads what is piped in, and ends with the right status.
func TestCommandInAProcess(t *testing.T) {
	program := filepath.Join(caddyCommand(t), "caddy")
	run := func(input io.Reader, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Stdin = input
		out, err := cmd.Output()
		return string(out), err
	}
	// A standard input that is silent and does not end keeps nobody waiting.
	silent, mouth, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	defer mouth.Close()
	stdout, err := run(silent, "oauth", "generate-secret")
	if err != nil || !strings.HasPrefix(stdout, "cos_") {
		t.Errorf("generate-secret: %v %q", err, stdout)
	}
	stdout, err = run(strings.NewReader("correct horse\n"), "oauth", "hash-secret")
	if err != nil || !strings.HasPrefix(stdout, "secret_hash $argon2id$") {
		t.Errorf("hash-secret: %v %q", err, stdout)
	}
	if stdout, err = run(strings.NewReader("x"), "oauth", "hash-secret", "-a", "md5"); err == nil || stdout != "" {
		t.Errorf("a bad algorithm ends with %v and prints %q", err, stdout)
	}
	var exit *exec.ExitError
	if stdout, err = run(nil, "oauth", "nonsense"); !errors.As(err, &exit) || exit.ExitCode() != 1 || stdout != "" || !strings.Contains(string(exit.Stderr), "known: assertion, client, console, explain, generate-key, generate-secret, hash-secret, import, keys, lint, routes, token") {
		t.Errorf("an unknown command ends with %v and prints %q", err, stdout)
	}
	if stdout, err = run(nil, "oauth", "explain", "GET"); !errors.As(err, &exit) || exit.ExitCode() != 2 || stdout != "" || !strings.Contains(string(exit.Stderr), "give a method and a URL") {
		t.Errorf("half a question ends with %v and prints %q", err, stdout)
	}
	if stdout, err = run(nil, "oauth", "assertion", "--client-id", "ci"); !errors.As(err, &exit) || exit.ExitCode() != 2 || stdout != "" || !strings.Contains(string(exit.Stderr), "is missing") {
		t.Errorf("an assertion by no key ends with %v and prints %q", err, stdout)
	}
	if stdout, err = run(strings.NewReader("a token\n"), "oauth", "token", "inspect"); !errors.As(err, &exit) || exit.ExitCode() != 2 || stdout != "" {
		t.Errorf("what is no token ends with %v and prints %q", err, stdout)
	}
	if stdout, err = run(strings.NewReader("a-token\n"), "oauth", "token", "inspect"); err != nil || !strings.Contains(stdout, "token_id") {
		t.Errorf("a token ends with %v and prints %q", err, stdout)
	}
	if stdout, err = run(nil, "oauth"); err != nil || !strings.Contains(stdout, "generate-secret") {
		t.Errorf("the command alone ends with %v and prints %q", err, stdout)
	}
}
