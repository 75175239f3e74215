package caddyoauth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf16"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/introspect"
)

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Commands about tokens",
		Long:  "\nCommands about tokens. A token itself is read from standard input.",
		Args:  cobra.ArbitraryArgs, // RunE checks them
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errors.New("unknown command for 'caddy oauth token' (known: inspect, revoke)") // it may be a token: don't repeat it
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(inspectTokenCommand(), revokeTokensCommand())
	return cmd
}

func inspectTokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect [--json]",
		Short: "Shows what can be read from a token without asking anybody",
		Long: `
Shows what can be read from a token without asking anybody: what kind it is, its
token_id, by which the gateway's log names it, when it expires, and for a JWT what it
claims. Nothing of that is verified. Only the gateway knows whether a token is genuine
and still counts.

The token is asked for at the terminal or read from standard input; one trailing line
end is dropped. It is never an argument, since other users of the machine can see those,
and the shell keeps them in its history. It is not printed.

The exit status is 0, or 2 if there was no token that could be read.`,
		Args: cobra.ArbitraryArgs, // a token among them must not be repeated in an error
	}
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		inspect := func(caddycmd.Flags) (int, error) {
			if len(args) > 0 {
				return 2, errors.New("the token must come from standard input, not from an argument: it is now in the history of your shell, so revoke it")
			}
			token, err := readToken(cmd)
			if err != nil {
				return 2, err
			}
			told, err := inspectToken(token)
			if err != nil {
				return 2, err
			}
			if *asJSON {
				err = told.printJSON(cmd.OutOrStdout())
			} else {
				err = told.print(cmd.OutOrStdout(), time.Now())
			}
			if err != nil {
				return 2, err
			}
			return 0, nil
		}
		return caddycmd.WrapCommandFuncForCobra(inspect)(cmd, args)
	}
	return cmd
}

func revokeTokensCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke --client <id> [--realm <name>] | --realm <name> --all | --token -",
		Short: "Ends a token, or all tokens of a client or of a realm",
		Long: `
Ends all tokens of a client, or of all clients of a realm, at once and for good, without
changing the configuration. The clients can fetch new tokens.

With --token - it ends one token, whichever client has it. The token is asked for at the
terminal or read from standard input. It is never an argument, since other users of the
machine can see those, and the shell keeps them in its history.

It asks the gateway that is running, by way of Caddy's admin endpoint, whose address it
finds as Caddy's own commands do. Other gateways that share the token store hear of it
within two seconds. Tokens of other issuers are not touched.

The exit status is 0 if the tokens have ended, and 2 if that is not known.`,
		Args: cobra.ArbitraryArgs, // a token among them must not be repeated in an error
	}
	var asked revokeRequest
	flags := cmd.Flags()
	flags.StringVar(&asked.Client, "client", "", "client whose tokens end")
	flags.StringVar(&asked.Realm, "realm", "", "realm of the client, if several have one with that name; or, with --all, the realm whose tokens end")
	flags.BoolVar(&asked.All, "all", false, "end the tokens of all clients of the realm")
	token := flags.String("token", "", "-, to end the token that standard input has")
	config := flags.StringP("config", "c", "", "configuration file that says where the admin endpoint is")
	adapter := flags.StringP("adapter", "a", "", "name of the config adapter; without it, that of Caddyfiles for a file with such a name")
	address := flags.String("address", "", "address of the admin endpoint")
	asJSON := flags.Bool("json", false, "print a JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		revoke := func(caddycmd.Flags) (int, error) {
			if len(args) > 0 {
				return 2, errors.New("it takes no arguments; if that was a token, it is now in the history of your shell")
			}
			switch *token {
			case "":
			case "-":
				var err error
				if asked.Token, err = readToken(cmd); err != nil {
					return 2, err
				}
			default:
				return 2, errors.New("the token must come from standard input, with --token -, and not from an argument: it is now in the history of your shell, so revoke it")
			}
			if err := asked.check(); err != nil {
				return 2, err
			}
			var answer revokeAnswer
			if err := askAdmin("/oauth/tokens/revoke", asked, &answer, *address, *config, *adapter); err != nil {
				return 2, err
			}
			if err := answer.write(cmd.OutOrStdout(), *asJSON); err != nil {
				return 2, err
			}
			return 0, nil
		}
		return caddycmd.WrapCommandFuncForCobra(revoke)(cmd, args)
	}
	return cmd
}

func (a revokeAnswer) write(w io.Writer, asJSON bool) error {
	if asJSON {
		text, err := json.Marshal(a)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, printableJSON(text))
		return err
	}
	of := fmt.Sprintf("client %q", a.Client)
	switch {
	case a.TokenID != "":
		_, err := fmt.Fprintf(w, "The token %s of %s of realm %q is revoked.\n", a.TokenID, of, a.Realm)
		return err
	case a.Clients == nil:
		_, err := fmt.Fprintf(w, "The token was issued by realm %q and was no longer good.\n", a.Realm)
		return err
	case a.Client == "":
		of = fmt.Sprintf("all %d clients", *a.Clients)
	}
	_, err := fmt.Fprintf(w, "All tokens of %s of realm %q that were issued until now are revoked.\n", of, a.Realm)
	return err
}

// readToken reads a token without echoing it. No error repeats any of it.
func readToken(cmd *cobra.Command) (string, error) {
	var text []byte
	var err error
	in := cmd.InOrStdin()
	if file, ok := in.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		fmt.Fprint(cmd.ErrOrStderr(), "Token: ")
		text, err = term.ReadPassword(int(file.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
	} else {
		text, err = io.ReadAll(io.LimitReader(in, introspect.MaxTokenLength+3)) // with the line end, more than fits
	}
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	token := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	switch {
	case token == "":
		return "", errors.New("standard input has no token")
	case len(token) > introspect.MaxTokenLength:
		return "", fmt.Errorf("the token is longer than %d bytes, which the gateway accepts from nobody", introspect.MaxTokenLength)
	case strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }):
		return "", errors.New("standard input has more than one token: give it the token alone, in one line, without 'Bearer' and without spaces")
	}
	return token, nil
}

// tokenKind is what a token looks like.
type tokenKind string

const (
	kindGateway tokenKind = "gateway" // the form of opaque tokens that are issued here
	kindSealed  tokenKind = "sealed"  // the form of sealed tokens that are issued here
	kindJWT     tokenKind = "jwt"     // signed
	kindJWE     tokenKind = "jwe"     // encrypted: the claims can't be read
	kindOther   tokenKind = "other"
)

// toldByToken is what a token itself says. Nobody has verified any of it.
type toldByToken struct {
	Kind    tokenKind            `json:"kind"`
	ID      string               `json:"token_id"`
	Expires *time.Time           `json:"expires,omitempty"` // of kindGateway
	Header  map[string]claimText `json:"header,omitempty"`
	Claims  map[string]claimText `json:"claims,omitempty"`
	// Verified is always false. It is there for those who read the JSON.
	Verified bool `json:"verified"`
}

// claimText is the JSON of one value.
type claimText = json.RawMessage

// What is shown of a JWT, in this order. Others may be personal, and the gateway goes by none of
// them unless it is told to.
var (
	shownHeader = []string{"alg", "typ", "kid"}
	shownClaims = []string{"iss", "sub", "aud", "client_id", "azp", "scope", "scp", "iat", "nbf", "exp", "jti"}
)

// inspectToken reads a token. An error means that it looks like a token which it can't be.
func inspectToken(token string) (*toldByToken, error) {
	told := &toldByToken{Kind: kindOther, ID: introspect.IDOf(token).String()}
	if strings.HasPrefix(token, oauth.TokenPrefix) {
		expiry, ok := oauth.ExpiryIn(token)
		if !ok {
			return nil, fmt.Errorf("the token begins as those of this gateway do, with %s, but can't be one: part of it is missing or changed, or its expiry is beyond the year 9999", oauth.TokenPrefix)
		}
		told.Kind, told.Expires = kindGateway, &expiry
		return told, nil
	}
	if strings.HasPrefix(token, oauth.SealedPrefix) {
		if !oauth.HasForm(token) {
			return nil, fmt.Errorf("the token begins as the sealed tokens of this gateway do, with %s, but can't be one: part of it is missing", oauth.SealedPrefix)
		}
		told.Kind = kindSealed
		return told, nil
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 && len(parts) != 5 {
		return told, nil
	}
	header, ok := membersOf(parts[0], shownHeader)
	if !ok || header["alg"] == nil {
		if strings.HasPrefix(token, "eyJ") { // the base64url of {"
			return nil, errors.New("the token looks like a JWT, but its header can't be read: part of it is missing or changed")
		}
		return told, nil
	}
	told.Header = header
	if len(parts) == 5 {
		told.Kind = kindJWE
		return told, nil
	}
	told.Kind = kindJWT
	if told.Claims, ok = membersOf(parts[1], shownClaims); !ok {
		return nil, errors.New("the token is a JWT, but its claims can't be read: part of it is missing or changed")
	}
	return told, nil
}

// membersOf returns some members of a JSON object in base64url.
func membersOf(encoded string, names []string) (map[string]claimText, bool) {
	raw, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return nil, false
	}
	var all map[string]claimText
	if json.Unmarshal(raw, &all) != nil || all == nil {
		return nil, false
	}
	shown := make(map[string]claimText)
	for _, name := range names {
		if value, ok := all[name]; ok {
			shown[name] = value
		}
	}
	return shown, true
}

// printJSON writes a JSON object in one line. Its strings are escaped like those of print: it may be
// shown by a terminal, too.
func (t *toldByToken) printJSON(w io.Writer) error {
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, printableJSON(text))
	return err
}

// print writes what people read. Values of a JWT are quoted: whoever made the token may have put
// anything into it, even what a terminal obeys.
func (t *toldByToken) print(w io.Writer, now time.Time) error {
	var rows strings.Builder
	fmt.Fprintf(&rows, "kind\t%s\n", map[tokenKind]string{
		kindGateway: "issued by this gateway or another one, by its form",
		kindSealed:  "sealed by this gateway or another one, by its form: only that can read it",
		kindJWT:     "JWT",
		kindJWE:     "encrypted JWT: only its recipient can read the claims",
		kindOther:   "other: only the server that issued it can tell",
	}[t.Kind])
	fmt.Fprintf(&rows, "token_id\t%s\n", t.ID)
	if t.Expires != nil {
		fmt.Fprintf(&rows, "expires\t%s\n", when(*t.Expires, now))
	}
	rows.WriteString("verified\tno: this is only what the token says\n")
	for _, name := range shownHeader {
		if value, ok := t.Header[name]; ok {
			fmt.Fprintf(&rows, "header %s\t%s\n", name, quoted(value))
		}
	}
	for _, name := range shownClaims {
		value, ok := t.Claims[name]
		if !ok {
			continue
		}
		text := quoted(value)
		if name == "iat" || name == "nbf" || name == "exp" {
			if seconds, err := strconv.ParseFloat(string(value), 64); err == nil && math.Abs(seconds) < 1e11 {
				text += " = " + time.Unix(int64(seconds), 0).UTC().Format(time.RFC3339)
				switch passed := seconds <= float64(now.Unix()); {
				case name == "exp" && passed:
					text += ", which has passed"
				case name != "exp" && !passed:
					text += ", which is still to come"
				}
			}
		}
		fmt.Fprintf(&rows, "claim %s\t%s\n", name, text)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if _, err := io.WriteString(table, rows.String()); err != nil {
		return err
	}
	return table.Flush()
}

func when(t, now time.Time) string {
	text := t.Format(time.RFC3339Nano)
	if !now.Before(t) {
		text += ", which has passed"
	}
	return text
}

// quoted returns a JSON value as a terminal can show it: what is not printable is escaped.
func quoted(value claimText) string {
	var list []any
	if json.Unmarshal(value, &list) == nil && list != nil {
		texts := make([]string, len(list))
		for i, one := range list {
			texts[i] = quotedValue(one)
		}
		return strings.Join(texts, ", ")
	}
	var one any
	if json.Unmarshal(value, &one) != nil {
		return "?"
	}
	if _, number := one.(float64); number {
		return string(value) // as it stands: a float64 would round it
	}
	return quotedValue(one)
}

func quotedValue(value any) string {
	if text, ok := value.(string); ok {
		return strconv.Quote(text)
	}
	text, err := json.Marshal(value)
	if err != nil {
		return "?"
	}
	return printableJSON(text)
}

// printableJSON returns compact JSON with everything escaped that is not printable. In such JSON that
// stands only inside strings, where the escape means the same.
func printableJSON(text []byte) string {
	var shown strings.Builder
	for _, c := range string(text) {
		if strconv.IsPrint(c) {
			shown.WriteRune(c)
			continue
		}
		for _, unit := range utf16.Encode([]rune{c}) {
			fmt.Fprintf(&shown, `\u%04x`, unit)
		}
	}
	return shown.String()
}
