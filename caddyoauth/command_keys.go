package caddyoauth

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Lists and rotates the keys of realms",
		Long:  "\nLists and rotates the keys that seal and sign the tokens of realms.",
		Args:  cobra.ArbitraryArgs, // RunE checks them
		RunE:  helpOrUnknown,
	}
	cmd.AddCommand(listKeysCommand(), rotateKeysCommand())
	return cmd
}

// adminFlags are the options that say where the admin endpoint is.
type adminFlags struct{ address, config, adapter *string }

func addAdminFlags(cmd *cobra.Command) adminFlags {
	return adminFlags{
		address: cmd.Flags().String("address", "", "address of the admin endpoint"),
		config:  cmd.Flags().StringP("config", "c", "", "configuration file that says where the admin endpoint is"),
		adapter: cmd.Flags().StringP("adapter", "a", "", "name of the config adapter; without it, that of Caddyfiles for a file with such a name"),
	}
}

func (f adminFlags) ask(path string, question, answer any) error {
	return askAdmin(path, question, answer, *f.address, *f.config, *f.adapter)
}

func listKeysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [--realm <name>] [--json]",
		Short: "Lists the keys that seal and sign tokens",
		Long: `
Lists the keys that seal and sign the tokens of realms: the next ones, which are known so
that they can come into use, those in use, and old ones, which are kept until the last of
their tokens has expired. It shows no secrets.

It asks the gateway that is running, by way of Caddy's admin endpoint, whose address it
finds as Caddy's own commands do.

The exit status is 0, or 2 if the gateway could not say.`,
		Args: cobra.NoArgs,
	}
	realm := cmd.Flags().String("realm", "", "realm whose keys to list; without it, all")
	admin := addAdminFlags(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object")
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
		path := "/oauth/keys"
		if *realm != "" {
			path += "?" + url.Values{"realm": {*realm}}.Encode()
		}
		var answer listedKeys
		if err := admin.ask(path, nil, &answer); err != nil {
			return 2, err
		}
		if err := writeAnswer(cmd.OutOrStdout(), answer, *asJSON); err != nil {
			return 2, err
		}
		return 0, nil
	})
	return cmd
}

func rotateKeysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate [--realm <name>] [--withdraw [--key <id>]...] [--json]",
		Short: "Gives a realm new keys",
		Long: `
Gives a realm new keys. The one that signs JWTs is published at once, and comes into use
half an hour later, when those who verify have had the time to fetch it; the one that
seals tokens comes into use a minute later. Old keys are kept until the last of their
tokens has expired, so no token is refused.

With --withdraw, for keys that somebody may have stolen, the keys of before are gone at
once, and all their tokens are refused: here when the command ends, and within two seconds
at other gateways that share the token store. Programs that verify JWTs themselves go on
accepting them until they fetch the key set again. With --key, just the keys of these IDs
are gone, and a new one is made only for one that was in use.

It asks the gateway that is running, by way of Caddy's admin endpoint, whose address it
finds as Caddy's own commands do. Keys from key_file are not the gateway's to rotate.

The exit status is 0 if the keys have been rotated, and 2 if that is not known.`,
		Args: cobra.NoArgs,
	}
	var asked rotateRequest
	cmd.Flags().StringVar(&asked.Realm, "realm", "", "realm whose keys to rotate, if several have some")
	cmd.Flags().BoolVar(&asked.Withdraw, "withdraw", false, "end the keys of before at once, and with them their tokens")
	cmd.Flags().StringArrayVar(&asked.Keys, "key", nil, "with --withdraw, the ID of a key to withdraw; may repeat")
	admin := addAdminFlags(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object")
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
		if len(asked.Keys) > 0 && !asked.Withdraw {
			return 2, errors.New("--key says which keys to withdraw: it needs --withdraw")
		}
		var answer rotatedKeys
		if err := admin.ask("/oauth/keys/rotate", asked, &answer); err != nil {
			return 2, err
		}
		if err := writeAnswer(cmd.OutOrStdout(), answer, *asJSON); err != nil {
			return 2, err
		}
		return 0, nil
	})
	return cmd
}

// writeAnswer writes an answer of the admin endpoint, for people or in one line of JSON.
func writeAnswer(w io.Writer, answer interface{ print(io.Writer) error }, asJSON bool) error {
	if !asJSON {
		return answer.print(w)
	}
	text, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, printableJSON(text))
	return err
}

func (l listedKeys) print(w io.Writer) error {
	var parts []string
	for _, realm := range l.Realms {
		parts = append(parts, realm.text())
	}
	_, err := io.WriteString(w, strings.Join(parts, "\n"))
	return err
}

func (r rotatedKeys) print(w io.Writer) error {
	text := "new: " + cmp.Or(strings.Join(r.New, ", "), "none") + "\n"
	if len(r.Withdrawn) > 0 {
		text += "withdrawn: " + strings.Join(r.Withdrawn, ", ") + "\n"
	}
	_, err := io.WriteString(w, text+r.text())
	return err
}

// text is what people read.
func (k *realmKeys) text() string {
	if len(k.Keys) == 0 {
		return "realm " + k.Realm + " has no keys\n"
	}
	var text strings.Builder
	text.WriteString("realm " + k.Realm)
	if k.Epoch != "" {
		text.WriteString(", epoch " + k.Epoch)
	}
	at := func(t *time.Time) string {
		if t == nil {
			return "-"
		}
		return t.Format(time.RFC3339)
	}
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0) // writing to it never fails
	fmt.Fprintln(table, "\nuse\tstate\tid\talgorithm\tmade\tfrom\tuntil")
	for _, key := range k.Keys {
		made := at(key.Made)
		if key.File {
			made = "in a file"
		}
		fmt.Fprintln(table, strings.Join([]string{key.Use, string(key.State), key.ID, cmp.Or(key.Algorithm, "-"), made, at(key.From), at(key.Until)}, "\t"))
	}
	_ = table.Flush()
	return text.String()
}
