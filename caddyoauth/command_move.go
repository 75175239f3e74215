package caddyoauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func exportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export [--realm <name>] [--out <file>]",
		Short: "Prints all managed clients, for 'caddy oauth client import'",
		Long: `
Prints all managed clients as JSON, with all settings and the hashes of their secrets, for
'caddy oauth client import' at another gateway. Tokens are not in it.

Keep it from others: a secret that a person has chosen can be guessed by its hash.`,
		Args: cobra.NoArgs,
	}
	realm := cmd.Flags().String("realm", "", "realm whose clients to export; without it, all")
	out := cmd.Flags().StringP("out", "o", "", "new file for them, which only you can read; they are not printed then")
	admin := addAdminFlags(cmd)
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
		var export exportedClients
		if err := admin.ask("/oauth/clients/export", exportRequest{Realm: *realm}, &export); err != nil {
			return 2, err
		}
		text, err := json.MarshalIndent(export, "", "\t")
		if err != nil {
			return 2, err
		}
		text = append(text, '\n')
		if *out == "" {
			_, err = cmd.OutOrStdout().Write(text)
		} else if err = writeNewPrivate(*out, text); err == nil {
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "%d clients are in %s.\n", len(export.Clients), *out)
		}
		if err != nil {
			return 2, err
		}
		return 0, nil
	})
	return cmd
}

func importCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import [--existing keep|refuse|replace] [--realm <name>] [--check] [--json] <file>|-",
		Short: "Adds the managed clients that 'caddy oauth client export' has printed",
		Long: `
Adds the managed clients that 'caddy oauth client export' has printed, with their secrets,
from a file, or from standard input with -. Each goes to the realm of the name that it came
from, or all of one realm to that of --realm, which needs managed_clients.

All are checked first. If one is refused, nothing is imported. They are added 500 at a
time, so if that stops halfway, run it again: a client that is here already with the same
settings stays as it is.`,
		Args: cobra.ExactArgs(1),
	}
	existing := cmd.Flags().String("existing", existingRefuse, "what becomes of a client that is here with other settings: keep, refuse or replace")
	realm := cmd.Flags().String("realm", "", "realm for the clients, which must all come from the same one; without it, that one")
	check := cmd.Flags().Bool("check", false, "only say what would be done")
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object")
	admin := addAdminFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
			export, err := readExport(cmd, args[0])
			if err != nil {
				return 2, err
			}
			if err := export.moveTo(*realm); err != nil {
				return 2, err
			}
			answer, err := admin.importAll(export, *existing, true)
			if err == nil && !*check {
				answer, err = admin.importAll(export, *existing, false)
			}
			if err != nil {
				return 2, err
			}
			if err := writeAnswer(cmd.OutOrStdout(), answer, *asJSON); err != nil {
				return 2, err
			}
			return 0, nil
		})(cmd, args)
	}
	return cmd
}

// readExport reads an export from a file, or from standard input. No error repeats it.
func readExport(cmd *cobra.Command, path string) (export exportedClients, err error) {
	in := cmd.InOrStdin()
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return export, err
		}
		defer file.Close()
		in = file
	}
	decoder := json.NewDecoder(in)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&export); err != nil {
		return export, errors.New("this is no export, or not a whole one, or a later version has made it: it must be a JSON object as 'caddy oauth client export' prints it")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return export, errors.New("there is something behind the export")
	}
	return export, nil
}

// moveTo puts clients of one realm into that of another name, unless that is empty.
func (e *exportedClients) moveTo(realm string) error {
	if realm == "" || len(e.Clients) == 0 {
		return nil
	}
	from := e.Clients[0].Realm
	for i := range e.Clients {
		if e.Clients[i].Realm != from {
			return errors.New("these are clients of several realms: export one, with --realm")
		}
		e.Clients[i].Realm = realm
	}
	return nil
}

// importAll imports the clients, or only checks whether it could, as many at a time as may be.
func (f adminFlags) importAll(export exportedClients, existing string, check bool) (all importAnswer, err error) {
	rest := export.Clients
	for first := true; first || len(rest) > 0; first = false { // without clients, the gateway checks the rest
		n := min(len(rest), maxImported)
		asked := importRequest{exportedClients: exportedClients{Version: export.Version, Clients: rest[:n]}, Existing: existing, Check: check}
		var answer importAnswer
		if err := f.ask("/oauth/clients/import", asked, &answer); err != nil {
			return all, err
		}
		all.add(answer)
		rest = rest[n:]
	}
	return all, nil
}

func (a importAnswer) print(w io.Writer) error {
	_, err := fmt.Fprintf(w, "added: %d, replaced: %d, the same as before: %d, kept as they were: %d\n", a.Added, a.Replaced, a.Same, a.Kept)
	return err
}
