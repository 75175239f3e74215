package caddyoauth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

func clientCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "client",
		Short: "Lists clients, and adds and changes managed ones",
		Long: `
Lists clients, and adds and changes managed ones, which lie in the token store of a realm
with managed_clients.

All of these commands ask the gateway that is running, by way of Caddy's admin endpoint,
whose address they find as Caddy's own commands do. The exit status is 0, or 2 if the
gateway refused or could not say.`,
		Args: cobra.ArbitraryArgs, // RunE checks them
		RunE: helpOrUnknown,
	}
	cmd.AddCommand(listClientsCommand(), showClientCommand(), addClientCommand(), rotateSecretCommand(), removeSecretCommand(), disableCommand(true), disableCommand(false), removeClientCommand(), revokeOfClientCommand(), exportCommand(), importCommand())
	return cmd
}

// clientFlags are the options of each command about one client.
type clientFlags struct {
	admin  adminFlags
	realm  *string
	asJSON *bool
}

func addClientFlags(cmd *cobra.Command) clientFlags {
	return clientFlags{
		realm:  cmd.Flags().String("realm", rootRealm, "realm of the client"),
		admin:  addAdminFlags(cmd),
		asJSON: cmd.Flags().Bool("json", false, "print a JSON object"),
	}
}

// path is where the client of that ID is on the admin endpoint.
func (f clientFlags) path(id string, rest ...string) string {
	path := "/oauth/clients"
	for _, part := range append([]string{adminRealm(*f.realm), id}, rest...) {
		if part = url.PathEscape(part); strings.Trim(part, ".") == "" {
			part = strings.ReplaceAll(part, ".", "%2E") // or it would lead elsewhere
		}
		path += "/" + part
	}
	return path
}

// send sends a request to the admin endpoint and decodes the answer. It returns the answer's ETag.
func (f adminFlags) send(method, path string, header http.Header, question, answer any) (tag string, err error) {
	address, err := caddycmd.DetermineAdminAPIAddress(*f.address, nil, *f.config, *f.adapter)
	if err != nil {
		return "", err
	}
	var body []byte
	if question != nil {
		if body, err = json.Marshal(question); err != nil {
			return "", err
		}
		if header == nil {
			header = make(http.Header)
		}
		header.Set("Content-Type", "application/json")
	}
	response, err := caddycmd.AdminAPIRequest(address, method, path, header, bytes.NewReader(body))
	if err != nil {
		return "", fmt.Errorf("asking the gateway at %s: %w", address, err)
	}
	defer response.Body.Close()
	if answer != nil {
		if err := json.NewDecoder(io.LimitReader(response.Body, maxAdminAnswer)).Decode(answer); err != nil {
			return "", fmt.Errorf("reading the answer of %s: %w", address, err)
		}
	}
	return response.Header.Get("ETag"), nil
}

func listClientsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [--realm <name>] [--unused <duration>] [--expiring <duration>] [--search <text>] [--state active|disabled|unusable] [--managed true|false] [--json]",
		Short: "Lists all clients, those of the configuration and managed ones",
		Long: `
Lists all clients, those of the configuration and managed ones, or those that all options
name together.

USED is the day when the client last did anything, and "-" if it is not known to have done
anything. ENDS is the day when its first secret ends: "over" if all have ended, and "-" if
none ends. Below the table is why clients that are "unusable" are so.`,
		Args: cobra.NoArgs,
	}
	filters := map[string]*string{
		"realm":    cmd.Flags().String("realm", "", "realm whose clients to list; without it, all"),
		"search":   cmd.Flags().String("search", "", "part of their IDs"),
		"state":    cmd.Flags().String("state", "", "active, disabled or unusable; without it, all"),
		"managed":  cmd.Flags().String("managed", "", "true for managed clients, false for those of the configuration; without it, both"),
		"unused":   cmd.Flags().String("unused", "", "for how long they have done nothing, and been there, such as 90d"),
		"expiring": cmd.Flags().String("expiring", "", "how soon a secret ends, such as 30d; also those all of whose secrets have ended"),
	}
	admin := addAdminFlags(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object")
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
		all := listedClients{Clients: []shownClient{}}
		query := url.Values{"limit": {fmt.Sprint(maxClientsPage)}}
		for name, value := range filters {
			if cmd.Flags().Changed(name) { // an empty one is refused: a script may have lost its value
				query.Set(name, *value)
			}
		}
		for {
			var page listedClients
			if _, err := admin.send(http.MethodGet, "/oauth/clients?"+query.Encode(), nil, nil, &page); err != nil {
				return 2, err
			}
			all.Clients = append(all.Clients, page.Clients...)
			if all.UsesSince.Before(page.UsesSince) {
				all.UsesSince = page.UsesSince
			}
			if page.Next == "" {
				break
			}
			query.Set("after", page.Next)
		}
		if err := writeAnswer(cmd.OutOrStdout(), all, *asJSON); err != nil {
			return 2, err
		}
		if unused, err := caddy.ParseDuration(*filters["unused"]); err == nil && (all.UsesSince.IsZero() || time.Since(all.UsesSince) < unused) {
			since := "It is not known yet what clients do"
			if !all.UsesSince.IsZero() {
				since = "What clients do is known since " + all.UsesSince.Local().Format(time.DateTime)
			}
			fmt.Fprintln(cmd.ErrOrStderr(), since+": one that has done nothing since may have done something before, and is not listed.")
		}
		return 0, nil
	})
	return cmd
}

func (l listedClients) print(w io.Writer) error {
	lines := []string{"REALM\tCLIENT\tFROM\tSTATE\tUSED\tENDS"}
	for _, c := range l.Clients {
		from := "config"
		if c.Managed {
			from = "managed"
		}
		lines = append(lines, strings.Join([]string{shortened(c.Realm, 10), shortened(c.ID, 25), from, c.state(), c.usedText(), c.endsText()}, "\t"))
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if _, err := fmt.Fprintln(table, strings.Join(lines, "\n")); err != nil {
		return err
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, c := range l.Clients {
		if c.Unusable == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "client %q of realm %q can't be used: %s\n", c.ID, c.Realm, printable(c.Unusable)); err != nil {
			return err
		}
	}
	return nil
}

// shortened returns a text that fits a column of that width. Realms and client IDs are ASCII.
func shortened(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return text[:most-1] + "…"
}

func (c shownClient) state() string {
	switch {
	case c.Unusable != "":
		return stateUnusable
	case c.Settings.Disabled:
		return stateDisabled
	}
	return stateActive
}

// usedText says on which day the client last did anything.
func (c shownClient) usedText() string {
	if c.Use == nil {
		return "-"
	}
	return dayOf(slices.MaxFunc([]time.Time{c.Use.Token, c.Use.Seen, c.Use.Authenticated}, time.Time.Compare))
}

// endsText says on which day the first of its secrets ends.
func (c shownClient) endsText() string {
	secrets := make([]*oauth.Secret, len(c.Secrets))
	for i, s := range c.Secrets {
		secrets[i] = &oauth.Secret{From: s.From, Until: s.Until}
	}
	first, all := oauth.AllEnd(secrets, time.Now())
	if all {
		return "over"
	}
	return dayOf(first)
}

// dayOf is the local date of a time, or - for none.
func dayOf(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.Local().Format(time.DateOnly)
}

func showClientCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show <id> [--realm <name>] [--json]",
		Short: "Shows a client's settings, and no secrets",
		Args:  cobra.ExactArgs(1),
	}
	flags := addClientFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
			return flags.answer(cmd, func(answer *shownClient) error {
				_, err := flags.admin.send(http.MethodGet, flags.path(args[0]), nil, nil, answer)
				return err
			})
		})(cmd, args)
	}
	return cmd
}

// answer asks, and prints the client that is the answer.
func (f clientFlags) answer(cmd *cobra.Command, ask func(*shownClient) error) (int, error) {
	var answer shownClient
	if err := ask(&answer); err != nil {
		return 2, err
	}
	if err := writeAnswer(cmd.OutOrStdout(), answer, *f.asJSON); err != nil {
		return 2, err
	}
	return 0, nil
}

func (c shownClient) print(w io.Writer) error {
	settings, err := json.Marshal(c.Settings)
	if err != nil {
		return err
	}
	from := "of the configuration"
	if c.Managed {
		from = "managed"
		if !c.Created.IsZero() { // otherwise it can't be read
			from += ", added " + c.Created.Local().Format(time.DateTime) + ", changed " + c.Changed.Local().Format(time.DateTime)
		}
	}
	lines := []string{fmt.Sprintf("client %q of realm %q: %s, %s", c.ID, c.Realm, c.state(), from), "settings: " + printableJSON(settings)}
	if c.Unusable != "" {
		lines = append(lines, "can't be used: "+printable(c.Unusable))
	}
	if c.Introspects != "" {
		lines = append(lines, "introspects: "+c.Introspects+", by its scopes")
	}
	for _, s := range c.Secrets {
		lines = append(lines, "secret "+s.ID+": "+s.text())
	}
	if c.Use != nil {
		lines = append(lines, "use: "+c.Use.text())
	}
	if c.Elsewhere != nil {
		lines = append(lines, fmt.Sprintf("checks of tokens from elsewhere: %d, at this gateway", *c.Elsewhere))
	}
	_, err = fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

// text says when a secret is good.
func (s shownSecret) text() string {
	text := "without end"
	if !s.Until.IsZero() {
		text = "until " + s.Until.Local().Format(time.DateTime)
	}
	if !s.From.IsZero() {
		text = "from " + s.From.Local().Format(time.DateTime) + ", " + text
	}
	if s.RetireUnused != "" {
		text += ", or once unused for " + s.RetireUnused
	}
	if !s.Used.IsZero() {
		text += ", last used " + s.Used.Local().Format(time.DateTime)
	}
	return text
}

// text says what the client did last.
func (u *shownUse) text() string {
	var parts []string
	for what, at := range map[string]time.Time{"last token": u.Token, "last seen": u.Seen, "last authenticated": u.Authenticated} {
		if !at.IsZero() {
			parts = append(parts, what+" "+at.Local().Format(time.DateTime))
		}
	}
	slices.Sort(parts)
	if u.Credential != "" {
		parts[0] += " by " + u.Method + " with " + loggedText(u.Credential)
	}
	if u.From != "" {
		parts = append(parts, "from "+u.From)
	}
	return strings.Join(parts, ", ")
}

func addClientCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add <id> [--realm <name>] [--scopes <scope>,...] [--caddyfile] [--json]",
		Short: "Adds a managed client, and prints its secret",
		Long: `
Adds a managed client. Its secret is made by the gateway, is printed on standard output,
and is shown only now: the gateway keeps no more than its hash. A client with --jwk has a
key instead, by which it signs (private_key_jwt).

With --caddyfile nothing is asked or added: the secret and a block for the Caddyfile are
printed instead.`,
		Args: cobra.ExactArgs(1),
	}
	flags := addClientFlags(cmd)
	var settings Client
	var jwks []string
	var file string
	set := cmd.Flags()
	set.StringSliceVar(&settings.Scopes, "scopes", nil, "scopes that it may ask for, separated by commas")
	set.StringSliceVar(&settings.DefaultScopes, "default-scopes", nil, "scopes that it gets if it asks for none")
	set.StringSliceVar(&settings.Audience, "audience", nil, "audience of its tokens, separated by commas")
	set.StringSliceVar(&settings.Auth, "auth", nil, "methods by which it may authenticate, separated by commas")
	set.StringArrayVar(&jwks, "jwk", nil, "public key of the client as a JWK, for private_key_jwt; may repeat")
	set.StringVar(&settings.JWKSURI, "jwks-uri", "", "where the client publishes its public keys, for private_key_jwt")
	set.StringVar(&file, "settings", "", "file with settings as a configuration in JSON has them, or - for standard input; other options count before those")
	set.StringVar(&settings.TokenFormat, "token-format", "", "what its tokens look like: opaque, sealed or jwt")
	lifetime := set.Duration("token-lifetime", 0, "how long its tokens live")
	set.StringVar(&settings.Introspect, "introspect", "", "whose tokens it may ask about: own, audience or realm")
	asBlock := set.Bool("caddyfile", false, "print a block for the Caddyfile, and ask nobody")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
			settings.TokenLifetime = caddy.Duration(*lifetime)
			for _, jwk := range jwks {
				settings.JWK = append(settings.JWK, json.RawMessage(jwk))
			}
			if file != "" {
				if *asBlock {
					return 2, errors.New("--settings and --caddyfile don't go together")
				}
				if err := readSettings(cmd, file, &settings); err != nil {
					return 2, err
				}
			}
			if (len(jwks) > 0 || settings.JWKSURI != "") && len(settings.Auth) == 0 {
				settings.Auth = []string{"private_key_jwt"}
			}
			if _, err := jwkSet(args[0], settings.JWK); err != nil {
				return 2, err
			}
			if *asBlock {
				return printBlock(cmd, args[0], settings)
			}
			var answer shownClient
			if _, err := flags.admin.send(http.MethodPut, flags.path(args[0]), http.Header{"If-None-Match": {"*"}}, settings, &answer); err != nil {
				return 2, err
			}
			return flags.printSecret(cmd, answer)
		})(cmd, args)
	}
	return cmd
}

// readSettings reads settings from a file, or from standard input. Those that are there already count
// before them. No error repeats a setting.
func readSettings(cmd *cobra.Command, path string, settings *Client) error {
	in := cmd.InOrStdin()
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
	}
	given, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	var read Client
	decoder := json.NewDecoder(io.LimitReader(in, maxAdminBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&read); err != nil {
		return errors.New("the settings must be a JSON object, as a configuration has it for a client")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the settings")
	}
	if err := json.Unmarshal(given, &read); err != nil {
		return err
	}
	*settings = read
	return nil
}

// printSecret prints a secret that was just made. For scripts, standard output has nothing else, unless
// JSON is asked for.
func (f clientFlags) printSecret(cmd *cobra.Command, answer shownClient) (int, error) {
	if *f.asJSON || answer.Secret == "" {
		if err := writeAnswer(cmd.OutOrStdout(), answer, *f.asJSON); err != nil {
			return 2, err
		}
		return 0, nil
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "The secret of the client, shown only now:")
	fmt.Fprintln(cmd.OutOrStdout(), answer.Secret)
	return 0, nil
}

// printBlock prints the block of a client for the Caddyfile, and its secret.
func printBlock(cmd *cobra.Command, id string, c Client) (int, error) {
	if err := conf.CheckClientID(id); err != nil {
		return 2, err
	}
	out := cmd.OutOrStdout()
	for _, texts := range [][]string{c.Scopes, c.DefaultScopes, c.Audience, c.Auth, {id, c.TokenFormat, c.Introspect}} {
		for _, text := range texts {
			if !canBeWritten(text) {
				return 2, fmt.Errorf("%q can't be written in a Caddyfile: a brace could begin a placeholder", text)
			}
		}
	}
	if len(c.Auth) == 0 || takesSecrets(c.Auth) {
		secret, hash, err := newSecret()
		if err != nil {
			return 2, err
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "The secret for the client program, shown only now:")
		fmt.Fprintln(out, secret)
		fmt.Fprintln(cmd.ErrOrStderr(), "The block for the Caddyfile:")
		c.Secrets = []ClientSecret{{Hash: hash}}
	}
	if _, err := fmt.Fprintln(out, caddyfileBlock(id, &c)); err != nil {
		return 2, err
	}
	return 0, nil
}

func rotateSecretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate <id> [--realm <name>] [--overlap <duration>] [--retire-unused <duration>] [--from <time>] [--until <time>] [--revoke-tokens] [--json]",
		Short: "Gives a managed client another secret, and ends those of before",
		Long: `
Gives a managed client another secret, which is printed on standard output and shown only
now. Those of before go on for the overlap, so that the program can change over. With
--retire-unused they go on until the program no longer uses them.

After a theft, --revoke-tokens ends the secrets of before at once, unless --overlap says
otherwise, and all tokens of the client.`,
		Args: cobra.ExactArgs(1),
	}
	flags := addClientFlags(cmd)
	overlap := cmd.Flags().String("overlap", "", "how long the secrets of before go on, such as 12h or 7d; 0 ends them at once (default 24h)")
	retire := cmd.Flags().String("retire-unused", "", "removes each secret of before once it has not been used for this long, such as 7d")
	from := cmd.Flags().String("from", "", "when the new secret begins to be accepted, such as 2027-01-01T00:00:00Z")
	until := cmd.Flags().String("until", "", "when the new secret stops being accepted")
	revoke := cmd.Flags().Bool("revoke-tokens", false, "end all tokens of the client, too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
			asked, err := rotation{*overlap, *retire, *from, *until, *revoke}.asked(time.Now())
			if err != nil {
				return 2, err
			}
			var answer shownClient
			if _, err := flags.admin.send(http.MethodPost, flags.path(args[0], "secrets"), nil, asked, &answer); err != nil {
				return 2, err
			}
			return flags.printSecret(cmd, answer)
		})(cmd, args)
	}
	return cmd
}

// rotation are the options of 'rotate'; empty for those that are not given.
type rotation struct {
	overlap, retireUnused, from, until string
	revokeTokens                       bool
}

// asked returns what these options ask the gateway for.
func (r rotation) asked(now time.Time) (asked secretRequest, err error) {
	asked.RevokeTokens = r.revokeTokens
	if r.from != "" {
		if asked.From, err = conf.ParseTime("--from", r.from); err != nil {
			return asked, err
		}
	}
	if r.until != "" {
		if asked.Until, err = conf.ParseTime("--until", r.until); err != nil {
			return asked, err
		}
	}
	if r.retireUnused != "" {
		unused, err := conf.ParseDuration("--retire-unused", r.retireUnused)
		if err != nil {
			return asked, err
		}
		asked.OthersRetireUnused = unused
	}
	switch {
	case r.overlap != "":
	case r.revokeTokens: // or a thief would fetch other tokens
		r.overlap = "0"
	case r.retireUnused != "":
		return asked, nil // they go by themselves
	default:
		r.overlap = "24h"
	}
	overlap, err := conf.ParseDuration("--overlap", r.overlap)
	switch {
	case err != nil:
		return asked, err
	case overlap < 0:
		return asked, errors.New("--overlap must not be negative")
	}
	switch {
	case asked.From.After(now):
		now = asked.From
	case overlap == 0:
		now = now.Add(-time.Hour) // at once, also for a gateway whose clock is behind this one
	}
	asked.OthersUntil = now.Add(time.Duration(overlap)).UTC()
	return asked, nil
}

func removeSecretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove-secret <id> <secret> [--realm <name>] [--revoke-tokens] [--json]",
		Short: "Takes a secret away from a managed client",
		Long: `
Takes a secret away from a managed client: it is refused from now on. 'caddy oauth client
show' has the IDs of secrets, and when each was last used.

After a theft, --revoke-tokens ends all tokens of the client, too.`,
		Args: cobra.ExactArgs(2),
	}
	flags := addClientFlags(cmd)
	revoke := cmd.Flags().Bool("revoke-tokens", false, "end all tokens of the client, too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
			return flags.answer(cmd, func(answer *shownClient) error {
				path := flags.path(args[0], "secrets", args[1]) + "?revoke_tokens=" + strconv.FormatBool(*revoke)
				_, err := flags.admin.send(http.MethodDelete, path, nil, nil, answer)
				return err
			})
		})(cmd, args)
	}
	return cmd
}

// disableCommand is 'disable', or 'enable'.
func disableCommand(disable bool) *cobra.Command {
	name, short := "disable", "Locks a managed client out, and ends its tokens for good"
	if !disable {
		name, short = "enable", "Lets a managed client in again that was disabled"
	}
	cmd := &cobra.Command{Use: name + " <id> [--realm <name>] [--json]", Short: short, Args: cobra.ExactArgs(1)}
	flags := addClientFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
			return flags.answer(cmd, func(answer *shownClient) error {
				tag, err := flags.admin.send(http.MethodGet, flags.path(args[0]), nil, nil, answer)
				if err != nil {
					return err
				}
				if !answer.Managed {
					return fmt.Errorf("client %q is in the configuration: change it there, and reload", args[0])
				}
				settings := answer.Settings
				settings.Disabled = disable
				*answer = shownClient{} // the next answer leaves out what is false
				_, err = flags.admin.send(http.MethodPut, flags.path(args[0]), http.Header{"If-Match": {tag}}, settings, answer)
				return err
			})
		})(cmd, args)
	}
	return cmd
}

func removeClientCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove <id> [--realm <name>]",
		Short: "Removes a managed client, and ends its tokens for good",
		Args:  cobra.ExactArgs(1),
	}
	realm := cmd.Flags().String("realm", rootRealm, "realm of the client")
	flags := clientFlags{realm: realm, admin: addAdminFlags(cmd)}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
			if _, err := flags.admin.send(http.MethodDelete, flags.path(args[0]), nil, nil, nil); err != nil {
				return 2, err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "Client %q of realm %q is removed.\n", args[0], *realm)
			if err != nil {
				return 2, err
			}
			return 0, nil
		})(cmd, args)
	}
	return cmd
}

func revokeOfClientCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke-tokens <id> [--realm <name>] [--json]",
		Short: "Ends all tokens of a client, as 'caddy oauth token revoke --client' does",
		Args:  cobra.ExactArgs(1),
	}
	flags := addClientFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
			var answer revokeAnswer
			if err := flags.admin.ask("/oauth/tokens/revoke", revokeRequest{Realm: *flags.realm, Client: args[0]}, &answer); err != nil {
				return 2, err
			}
			if err := answer.write(cmd.OutOrStdout(), *flags.asJSON); err != nil {
				return 2, err
			}
			return 0, nil
		})(cmd, args)
	}
	return cmd
}
