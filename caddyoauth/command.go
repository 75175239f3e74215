package caddyoauth

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "oauth",
		Usage: "generate-secret | hash-secret [--algorithm <name>] | generate-key [--out <file>] | assertion --key <file> --client-id <id> --audience <issuer> | explain [--client <id>] <method> <url> | keys list | keys rotate | lint [--config <file>] | routes [--config <file>] | token inspect | token revoke --client <id>",
		Short: "Makes client secrets and keys for the oauth app, explains and checks its configuration, rotates its keys, and reads and revokes tokens",
		Long: `
Makes client secrets and keys for the oauth app, explains and checks its configuration,
rotates its keys, and reads and revokes tokens.

'caddy oauth generate-secret' generates a secret of 256 random bits and prints it, with
the Caddyfile line that lets a client authenticate with it.

'caddy oauth hash-secret' reads an existing secret from the terminal or from standard
input, and prints the Caddyfile line for it.

'caddy oauth generate-key' generates a key pair for a client that needs no secret, and
'caddy oauth assertion' makes an assertion by which such a client authenticates.

'caddy oauth explain' shows which way a request would go, and why it would be refused.

'caddy oauth keys list' and 'caddy oauth keys rotate' list the keys that seal and sign
tokens, and make new ones.

'caddy oauth lint' finds what loads in silence and should not.

'caddy oauth routes' lists who gets in where, what is open, and where nobody gets in.

'caddy oauth token inspect' reads a token in the same way, and prints what it is, the
token_id by which the log names it, and what it says about itself.

'caddy oauth token revoke' ends a token, or all tokens of a client or of a realm.

'caddy oauth client' lists clients, and adds and changes managed ones, by asking the gateway
that is running. 'caddy oauth console' shows all that to a browser.

'caddy oauth import' turns the clients of another server into a Caddyfile.
`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.AddCommand(clientCommand(), consoleCommand(), generateSecretCommand(), hashSecretCommand(), generateKeyCommand(), assertionCommand(), explainCommand(), importOthersCommand(), keysCommand(), lintCommand(), routesCommand(), tokenCommand())
			cmd.Args = cobra.ArbitraryArgs // RunE checks them
			cmd.RunE = helpOrUnknown
		},
	})
}

// helpOrUnknown runs 'caddy oauth' without a command. It prints the help, as 'caddy' does. Any
// argument is an error, because it must be a mistyped command: a script must not go on without its
// secret.
func helpOrUnknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	var known []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			known = append(known, c.Name())
		}
	}
	return fmt.Errorf("unknown command %q for %q (known: %s)", args[0], cmd.CommandPath(), strings.Join(known, ", "))
}

func generateSecretCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "generate-secret",
		Short: "Generates a client secret and the Caddyfile line for it",
		Long: `
Generates a client secret of 256 random bits. The secret is printed once and stored
nowhere. The line below it goes into the client's block in the Caddyfile.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			secret := oauth.GenerateSecret()
			hash, err := oauth.HashGenerated(secret)
			if err != nil {
				return err
			}
			// For scripts, standard output has the secret and the line, and nothing else.
			fmt.Fprintln(cmd.ErrOrStderr(), "The secret for the client program, shown only now:")
			fmt.Fprintln(cmd.OutOrStdout(), secret)
			fmt.Fprintln(cmd.ErrOrStderr(), "The line for the client's block in the Caddyfile:")
			fmt.Fprintln(cmd.OutOrStdout(), "secret_hash "+hash)
			return nil
		},
	}
}

func hashSecretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hash-secret [--algorithm argon2id|bcrypt|sha256]",
		Short: "Hashes a client secret and prints the Caddyfile line for it",
		Long: `
Hashes a client secret for the client's block in the Caddyfile.

The secret is asked for at the terminal or read from standard input; one trailing line
end is dropped. It is never an argument, since other users of the machine can see those,
and the shell keeps them in its history.

argon2id, the default, and bcrypt are for secrets that a person may have chosen; bcrypt
takes at most 72 bytes. sha256 is for secrets made by generate-secret.`,
		Args: cobra.NoArgs,
	}
	algorithm := cmd.Flags().StringP("algorithm", "a", "argon2id", "argon2id, bcrypt or sha256")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		hash, ok := map[string]func(string) (string, error){
			"argon2id": oauth.HashArgon2id, "bcrypt": oauth.HashBcrypt, "sha256": oauth.HashGenerated,
		}[*algorithm]
		if !ok {
			return fmt.Errorf("unknown algorithm %q (known: argon2id, bcrypt, sha256)", *algorithm)
		}
		secret, err := readSecret(cmd)
		if err != nil {
			return err
		}
		hashed, err := hash(secret)
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), "secret_hash "+hashed)
		return nil
	}
	return cmd
}

// readSecret reads a secret without echoing it. At a terminal it asks twice.
func readSecret(cmd *cobra.Command) (string, error) {
	in := cmd.InOrStdin()
	file, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		// The limit is more than any secret may have, so that one too long is refused and not cut.
		b, err := io.ReadAll(bufio.NewReader(io.LimitReader(in, 64<<10)))
		if err != nil {
			return "", fmt.Errorf("reading the secret: %w", err)
		}
		return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), nil
	}
	ask := func(prompt string) (string, error) {
		fmt.Fprint(cmd.ErrOrStderr(), prompt)
		b, err := term.ReadPassword(int(file.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		return string(b), err
	}
	first, err := ask("Secret: ")
	if err != nil {
		return "", fmt.Errorf("reading the secret: %w", err)
	}
	second, err := ask("Repeat the secret: ")
	if err != nil {
		return "", fmt.Errorf("reading the secret: %w", err)
	}
	if first != second {
		return "", errors.New("the two secrets differ")
	}
	return first, nil
}
