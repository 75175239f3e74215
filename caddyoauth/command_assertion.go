package caddyoauth

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/keys"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// The commands for clients that authenticate by private_key_jwt.

// madeKey is what generate-key prints as JSON.
type madeKey struct {
	KeyID     string          `json:"kid"`
	Algorithm string          `json:"alg"`
	JWK       json.RawMessage `json:"jwk"`
	// One of these has the private key.
	Private string `json:"private_key,omitempty"`
	File    string `json:"private_key_file,omitempty"`
}

func generateKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "generate-key [--algorithm <name>] [--out <file>] [--json]",
		Short: "Generates a key pair for a client, and the Caddyfile lines for it",
		Long: `
Generates a key pair for a client that authenticates by private_key_jwt, so that it
needs no secret. The private key, in PEM (PKCS #8), is for the client program. It is
written to a new file that only you can read, with --out, or printed; the command keeps
no copy. The lines after it go into the client's block in the Caddyfile: they have the
public key, as a JWK, and are no secret.

The exit status is 0, or 2 if there is no key.`,
		Args: cobra.NoArgs,
	}
	algorithm := cmd.Flags().StringP("algorithm", "a", keys.Algorithms[0], "one of "+strings.Join(keys.Algorithms, ", "))
	out := cmd.Flags().StringP("out", "o", "", "new file for the private key")
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object")
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
		if !slices.Contains(keys.Algorithms, *algorithm) {
			return 2, fmt.Errorf("unknown algorithm %q (known: %s)", *algorithm, strings.Join(keys.Algorithms, ", "))
		}
		if err := generateKey(cmd, *algorithm, *out, *asJSON); err != nil {
			return 2, err
		}
		return 0, nil
	})
	return cmd
}

func generateKey(cmd *cobra.Command, algorithm, out string, asJSON bool) error {
	key, err := keys.NewSigningKey(algorithm)
	if err != nil {
		return err
	}
	private, err := key.PrivatePEM()
	if err != nil {
		return err
	}
	jwk, err := key.JWK()
	if err != nil {
		return err
	}
	if out != "" {
		if err := writeNewPrivate(out, private); err != nil {
			return err
		}
	}
	made := madeKey{KeyID: key.ID(), Algorithm: key.Algorithm(), JWK: jwk, File: out}
	if out == "" {
		made.Private = string(private)
	}
	if asJSON {
		return writeJSONLine(cmd.OutOrStdout(), made)
	}
	// For scripts, standard output has the key and the lines, and nothing else.
	if out == "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "The private key for the client program, shown only now:")
		fmt.Fprint(cmd.OutOrStdout(), made.Private)
	} else {
		fmt.Fprintln(cmd.ErrOrStderr(), "The private key for the client program is in "+out+".")
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "The lines for the client's block in the Caddyfile:")
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "auth %s\njwk `%s`\n", oauth.AuthPrivateKeyJWT, jwk)
	return err
}

// writeNewPrivate writes a file that only its owner can read, and that must not exist yet. If it can't be
// written whole, it is removed.
func writeNewPrivate(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already; it is left as it is", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = cmp.Or(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func writeJSONLine(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, printableJSON(text))
	return err
}

// madeAssertion is what assertion prints as JSON: what goes into the form, and for how long it is good.
type madeAssertion struct {
	Type      string    `json:"client_assertion_type"`
	Assertion string    `json:"client_assertion"`
	Until     time.Time `json:"until"`
}

// longestAssertion is the longest that the gateway accepts.
const longestAssertion = 5 * time.Minute

func assertionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "assertion --key <file> --client-id <id> --audience <issuer> [--lifetime <duration>] [--algorithm <name>] [--json]",
		Short: "Makes an assertion by which a client authenticates, for trying",
		Long: `
Makes one assertion by which a client with private_key_jwt authenticates, and prints it,
for trying with curl. It goes into the form as client_assertion, beside
client_assertion_type. It is good once, and for a minute unless --lifetime says otherwise;
until then, whoever sees it can use it.

The key is the client's private key: a file in PEM or a JWK, such as generate-key writes.
An assertion says which key has signed it by the thumbprint of the key, which is the kid
that generate-key gives it.

The exit status is 0, or 2 if there is no assertion.`,
		Args: cobra.NoArgs,
	}
	file := cmd.Flags().StringP("key", "k", "", "file with the client's private key")
	id := cmd.Flags().String("client-id", "", "the client's ID, for iss and sub")
	audience := cmd.Flags().String("audience", "", "the issuer of the realm, for aud")
	lifetime := cmd.Flags().Duration("lifetime", time.Minute, "how long the assertion is good, up to 5m")
	algorithm := cmd.Flags().StringP("algorithm", "a", "", "RS256 or PS256, for a key of RSA that doesn't say")
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object")
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
		for flag, value := range map[string]string{"--key": *file, "--client-id": *id, "--audience": *audience} {
			if value == "" {
				return 2, fmt.Errorf("%s is missing: give --key, --client-id and --audience", flag)
			}
		}
		if err := conf.CheckClientID(*id); err != nil {
			return 2, err
		}
		if *lifetime < time.Second || *lifetime > longestAssertion {
			return 2, fmt.Errorf("--lifetime %s is not between 1s and %s", *lifetime, longestAssertion)
		}
		key, err := readClientKey(*file, *algorithm)
		if err != nil {
			return 2, err
		}
		made, err := makeAssertion(key, *id, *audience, time.Now(), *lifetime)
		if err != nil {
			return 2, err
		}
		if *asJSON {
			err = writeJSONLine(cmd.OutOrStdout(), made)
		} else {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), made.Assertion)
		}
		if err != nil {
			return 2, err
		}
		return 0, nil
	})
	return cmd
}

// readClientKey returns the private key in a file. No error repeats anything of it.
func readClientKey(file, algorithm string) (*keys.SigningKey, error) {
	if algorithm != "" && !slices.Contains(keys.Algorithms, algorithm) {
		return nil, fmt.Errorf("unknown algorithm %q (known: %s)", algorithm, strings.Join(keys.Algorithms, ", "))
	}
	if strings.ContainsAny(file, "\n{") {
		return nil, errors.New("--key takes the name of a file, not a key, which other users of the machine can see there")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	all, err := keys.ReadKeyFile(data, algorithm)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	all = slices.DeleteFunc(all, func(k *keys.SigningKey) bool { return !k.Signs() })
	switch {
	case len(all) == 0:
		return nil, fmt.Errorf("%s has public keys alone: give the client's private key", file)
	case len(all) > 1:
		return nil, fmt.Errorf("%s has several private keys: give a file with one", file)
	case algorithm != "" && all[0].Algorithm() != algorithm:
		return nil, fmt.Errorf("the key in %s signs by %s, not by %s", file, all[0].Algorithm(), algorithm)
	}
	return all[0], nil
}

// makeAssertion makes an assertion as the gateway wants it.
func makeAssertion(key *keys.SigningKey, id, audience string, now time.Time, lifetime time.Duration) (madeAssertion, error) {
	until := now.Add(lifetime).Truncate(time.Second)
	payload, err := json.Marshal(struct {
		Issuer   string `json:"iss"`
		Subject  string `json:"sub"`
		Audience string `json:"aud"`
		IssuedAt int64  `json:"iat"`
		Expiry   int64  `json:"exp"`
		ID       string `json:"jti"`
	}{id, id, audience, now.Unix(), until.Unix(), rand.Text()})
	if err != nil {
		return madeAssertion{}, err
	}
	text, err := key.For("client-authentication+jwt").Sign(payload)
	return madeAssertion{Type: oauth.AssertionType, Assertion: text, Until: until.UTC()}, err
}
