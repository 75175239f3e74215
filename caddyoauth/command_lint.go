package caddyoauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func lintCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lint [--config <file>] [--adapter <name>] [--json]",
		Short: "Finds what loads in silence and should not",
		Long: `
Reads a configuration, as 'caddy validate' does, and prints what loads in silence and is
probably not meant: doors that are open, doors that nobody can open, and what is doubtful.
Each finding has a code, the place, what it means and what to do about it. A finding that
is meant to be is silenced with the option lint_ignore, the code, and the reason.

The exit status is 0 if nothing was found, 1 if something was, and 2 if the configuration
can't be loaded. Silenced findings don't count; --json shows them, too.`,
		Args: cobra.NoArgs,
	}
	config := cmd.Flags().StringP("config", "c", "", "configuration file; without it, the Caddyfile in the current folder")
	adapter := cmd.Flags().StringP("adapter", "a", "", "name of the config adapter; without it, that of Caddyfiles for a file with such a name")
	asJSON := cmd.Flags().Bool("json", false, "print a JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		status, err := lint(cmd.OutOrStdout(), *config, *adapter, *asJSON)
		if err != nil { // not to the log, which is quiet by now
			fmt.Fprintln(cmd.ErrOrStderr(), "Error:", err)
		}
		cmd.SilenceErrors = true // all has been said
		if status == 1 {
			return errFound
		}
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return status, nil })(cmd, args)
	}
	return cmd
}

var errFound = errors.New("lint has found something")

// lint prints what is found in a configuration, and returns the exit status.
func lint(w io.Writer, file, adapter string, asJSON bool) (int, error) {
	p, end, err := loadPolicy(file, adapter)
	if err != nil {
		return 2, err
	}
	defer end()
	l := newLinted(p.app, p.http)
	l.policy = p
	findings := l.find(lintChecks())
	if asJSON {
		err = printFindingsJSON(w, findings)
	} else {
		err = printFindings(w, findings)
	}
	switch {
	case err != nil:
		return 2, err
	case len(loudOf(findings)) > 0:
		return 1, nil
	}
	return 0, nil
}

// printFindings writes what people read: a paragraph for each finding that is not silenced.
func printFindings(w io.Writer, findings []lintFinding) error {
	var text strings.Builder
	loud := loudOf(findings)
	for _, f := range loud {
		site := ""
		if len(f.place.sites) > 0 {
			site = " (" + strings.Join(f.place.sites, ", ") + ")"
		}
		fmt.Fprintf(&text, "%s: %s: %s%s\n", f.place.where(), f.check.code, f.text, site)
		indent(&text, f.check.means)
		indent(&text, f.check.do)
		text.WriteByte('\n')
	}
	switch n := len(loud); n {
	case 0:
		text.WriteString("Nothing found")
	case 1:
		text.WriteString("1 finding")
	default:
		fmt.Fprintf(&text, "%d findings", n)
	}
	if n := len(findings) - len(loud); n > 0 {
		fmt.Fprintf(&text, ", %d silenced", n)
	}
	text.WriteString(".\n")
	// The configuration may have anything in it, even what a terminal obeys.
	_, err := io.WriteString(w, printable(text.String()))
	return err
}

// indent writes text, which may have Markdown, in lines that fit on a terminal.
func indent(w *strings.Builder, text string) {
	column := 0
	for word := range strings.FieldsSeq(strings.ReplaceAll(text, "`", "'")) {
		switch length := utf8.RuneCountInString(word); {
		case column == 0:
			w.WriteString("    ")
			column = 4 + length
		case column+1+length > 100:
			w.WriteString("\n    ")
			column = 4 + length
		default:
			w.WriteByte(' ')
			column += 1 + length
		}
		w.WriteString(word)
	}
	w.WriteByte('\n')
}

// printFindingsJSON writes a JSON object in one line with all findings.
func printFindingsJSON(w io.Writer, findings []lintFinding) error {
	type silenced struct {
		Reason string `json:"reason"`
		At     string `json:"at,omitempty"`
	}
	type finding struct {
		Code     string    `json:"code"`
		Kind     lintKind  `json:"kind"`
		Certain  bool      `json:"certain"`
		At       string    `json:"at,omitempty"`
		Path     string    `json:"path"`
		Sites    []string  `json:"sites,omitempty"`
		Text     string    `json:"text"`
		Means    string    `json:"means"`
		Do       string    `json:"do"`
		Silenced *silenced `json:"silenced,omitempty"`
	}
	all := make([]finding, len(findings)) // not null if there are none
	for i, f := range findings {
		all[i] = finding{
			Code: f.check.code, Kind: f.check.kind, Certain: f.check.certain,
			At: f.place.at, Path: f.place.path, Sites: f.place.sites,
			Text: f.text, Means: f.check.means, Do: f.check.do,
		}
		if f.silenced != nil {
			all[i].Silenced = &silenced{f.silenced.Reason, f.silenced.At}
		}
	}
	text, err := json.Marshal(map[string]any{"findings": all})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, printableJSON(text))
	return err
}
