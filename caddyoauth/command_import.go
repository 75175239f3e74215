package caddyoauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func importOthersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Turns the clients of another server into a Caddyfile",
		Long: `
Turns the clients of another server, as that exports them, into a Caddyfile on standard
output, and says on standard error what could be carried over, what could not, and why.

A secret that the export has is hashed, and stays good. In the place of one that nobody can
read, as most servers export them, the client gets a new one: those go to the file that
--secrets names, which only you can read, and nowhere else.

The exit status is 0 if everything was carried over, 1 if something was not, and 2 if there
is no result.`,
		Args: cobra.ArbitraryArgs, // RunE checks them
		RunE: helpOrUnknown,
	}
	cmd.AddCommand(importAMCommand(), importKeycloakCommand(), importHydraCommand())
	return cmd
}

func importAMCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "am <file or folder>... [--realm <name>] [--issuer <url>] [--secrets <file>] [--certificates <folder>] [--output <file>] [--managed] [--json]",
		Short: "Imports the OAuth2 clients and providers of ForgeRock AM 6.5 to 8",
		Long: `
Imports the OAuth2 clients and providers of ForgeRock AM, or PingAM, 6.5 to 8, from what AM's
REST interface answers, or what Amster or frodo exports. A folder stands for all files .json
in it and below it; - is standard input.`,
		Args: cobra.MinimumNArgs(1),
	}
	realm := cmd.Flags().String("realm", "/", "realm in AM of what doesn't say where it is from")
	certificates := cmd.Flags().String("certificates", "", "folder for files with certificates of clients")
	addImport(cmd, func(m *migration, files []importedFile) error {
		m.certificates = *certificates
		return m.readAM(files, *realm)
	})
	return cmd
}

func importKeycloakCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keycloak <file or folder>... [--issuer <url>] [--secrets <file>] [--output <file>] [--managed] [--json]",
		Short: "Imports the clients of Keycloak's realms",
		Long: `
Imports the clients with service accounts of Keycloak's realms, from what 'kc.sh export' or
the admin console exports. A folder stands for all files .json in it and below it; - is
standard input.`,
		Args: cobra.MinimumNArgs(1),
	}
	addImport(cmd, (*migration).readKeycloak)
	return cmd
}

func importHydraCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hydra <file>... [--issuer <url>] [--secrets <file>] [--output <file>] [--managed] [--json]",
		Short: "Imports the clients of Ory Hydra",
		Long: `
Imports the clients of Ory Hydra, from what 'hydra list clients --format json' prints, all
pages of it, one after the other or in several files; - is standard input. They become
clients of the realm root.`,
		Args: cobra.MinimumNArgs(1),
	}
	addImport(cmd, (*migration).readHydra)
	return cmd
}

// importFlags are the options of all imports.
type importFlags struct {
	issuer, secrets, output, existing *string
	managed, asJSON                   *bool
	admin                             adminFlags
}

// addImport has a command import what read finds.
func addImport(cmd *cobra.Command, read func(*migration, []importedFile) error) {
	set := cmd.Flags()
	flags := importFlags{
		issuer:   set.String("issuer", "", "issuer of root, which clients need that sign assertions, and JWTs"),
		secrets:  set.String("secrets", "", "new file for the secrets that are made, which only you can read"),
		output:   set.StringP("output", "o", "", "new file for the Caddyfile, which only you can read; it is not printed then"),
		managed:  set.Bool("managed", false, "add managed clients to the gateway that is running, and print no Caddyfile"),
		existing: set.String("existing", existingRefuse, "with --managed, what becomes of a client that is there with other settings: keep, refuse or replace"),
		admin:    addAdminFlags(cmd),
		asJSON:   set.Bool("json", false, "print the report as a JSON object"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		status, err := flags.run(cmd, args, read)
		if err != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "Error:", printable(err.Error()))
		}
		cmd.SilenceErrors = true // all has been said
		if status == 1 {
			return errNotWhole
		}
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return status, nil })(cmd, args)
	}
}

var errNotWhole = errors.New("something was not carried over")

// run imports what read finds in the files, and returns the exit status. Nothing is written before all is
// known to be good.
func (f importFlags) run(cmd *cobra.Command, paths []string, read func(*migration, []importedFile) error) (int, error) {
	if *f.managed && *f.issuer+*f.output != "" {
		return 2, errors.New("with --managed there is no Caddyfile: leave out --issuer and --output")
	}
	files, err := readImported(cmd.InOrStdin(), paths)
	if err != nil {
		return 2, err
	}
	m := &migration{issuer: *f.issuer, managed: *f.managed}
	if err := read(m, files); err != nil {
		return 2, err
	}
	failed := m.finish()
	if err := f.report(cmd, m); err != nil || failed != nil {
		return 2, errors.Join(failed, err)
	}
	if err := f.checkFiles(m); err != nil {
		return 2, err
	}
	if *f.managed {
		err = f.addManaged(cmd, m)
	} else {
		err = f.write(cmd, m)
	}
	switch {
	case err != nil:
		return 2, err
	case !m.report.whole():
		return 1, nil
	}
	return 0, nil
}

// addManaged adds the clients to the gateway that is running. The secrets are kept before it has them: if
// it can't say what has become of the clients, they may be there.
func (f importFlags) addManaged(cmd *cobra.Command, m *migration) error {
	export := exportedClients{Version: exportVersion}
	realms := m.realmsByName()
	for _, realm := range sortedKeys(realms) {
		for _, id := range sortedKeys(realms[realm].Clients) {
			export.Clients = append(export.Clients, exportedClient{Realm: realm, ID: id, Settings: *realms[realm].Clients[id], Created: time.Now().UTC()})
		}
	}
	if _, err := f.admin.importAll(export, *f.existing, true); err != nil {
		return err
	}
	if err := f.writeSecrets(m); err != nil {
		return err
	}
	answer, err := f.admin.importAll(export, *f.existing, false)
	if err != nil {
		return err
	}
	return answer.print(cmd.OutOrStdout())
}

// write writes the Caddyfile and what belongs to it.
func (f importFlags) write(cmd *cobra.Command, m *migration) error {
	if err := f.writeFiles(m); err != nil {
		return err
	}
	text, err := writeRealms(m.realmsByName())
	if err != nil {
		return err
	}
	if err := f.writeSecrets(m); err != nil {
		return err
	}
	if *f.output != "" {
		return writeNewPrivate(*f.output, []byte(text))
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), text)
	return err
}

// report writes the report to standard error: standard output is for the Caddyfile.
func (f importFlags) report(cmd *cobra.Command, m *migration) error {
	return writeAnswer(cmd.ErrOrStderr(), &m.report, *f.asJSON)
}

// checkFiles finds what would keep files from being written, before the first is.
func (f importFlags) checkFiles(m *migration) error {
	if len(m.secrets) > 0 && *f.secrets == "" {
		return fmt.Errorf("%d clients need new secrets: give --secrets, a new file for them", len(m.secrets))
	}
	for _, path := range append([]string{*f.secrets, *f.output}, sortedKeys(m.files)...) {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s exists already; it is left as it is", path)
		}
	}
	return nil
}

// writeFiles writes the files that the configuration refers to. They are public, and none is replaced.
func (f importFlags) writeFiles(m *migration) error {
	for _, path := range sortedKeys(m.files) {
		if err := writeNewPrivate(path, []byte(m.files[path])); err != nil {
			return err
		}
	}
	return nil
}

// writeSecrets writes the secrets that were made, a JSON object in each line.
func (f importFlags) writeSecrets(m *migration) error {
	if len(m.secrets) == 0 {
		return nil
	}
	var text strings.Builder
	for _, secret := range m.secrets {
		line, err := json.Marshal(secret) //nolint:gosec // this is the file that they are for
		if err != nil {
			return err
		}
		text.Write(append(line, '\n'))
	}
	return writeNewPrivate(*f.secrets, []byte(text.String()))
}
