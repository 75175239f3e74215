package caddyoauth

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func routesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "routes [--config <path>] [--adapter <name>] [--open] [--nobody] [--json]",
		Short: "Lists who gets in where, what is open, and where nobody gets in",
		Long: `
Lists the sites of a configuration, and for each path and method who gets in, where the
request goes, and which oauth_protect decides. Nothing is started, opened or asked: this
works beside a running gateway.

Of several rows that fit a request, the first counts. A client stands for the best token
that it can fetch. OPEN is what everybody can enter without a token, and NOBODY what no
token opens that a client here can fetch.

With --open, only what is open is listed, or may be, and with --nobody only what nobody
can enter. The exit status is then 1 if there is any. It is 2 if the configuration can't
be read or isn't valid, and otherwise 0.`,
		Args: cobra.NoArgs,
	}
	config := cmd.Flags().StringP("config", "c", "", "the configuration file; default: Caddyfile")
	adapter := cmd.Flags().StringP("adapter", "a", "", "the config adapter; default: caddyfile for files of that name")
	asJSON := cmd.Flags().Bool("json", false, "prints JSON, with all clients")
	open := cmd.Flags().Bool("open", false, "lists only what is open")
	nobody := cmd.Flags().Bool("nobody", false, "lists only what nobody can enter")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var kinds []routeAccess
		if *open {
			kinds = append(kinds, routeOpen, routeUnknown)
		}
		if *nobody {
			kinds = append(kinds, routeNobody)
		}
		status, err := routes(cmd.Context(), cmd.OutOrStdout(), *config, *adapter, kinds, *asJSON)
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

// routes prints the rows of a configuration, only those of some kinds if there are any, and returns
// the exit status.
func routes(ctx context.Context, out io.Writer, file, adapter string, kinds []routeAccess, asJSON bool) (int, error) {
	policy, end, err := loadPolicy(file, adapter)
	if err != nil {
		return 2, err
	}
	defer end()
	table, err := listRoutes(ctx, policy)
	if err != nil {
		return 2, err
	}
	if len(kinds) > 0 {
		table.only(kinds...)
	}
	if asJSON {
		err = table.printJSON(out)
	} else {
		err = table.print(out, terminalWidth(out), len(policy.app.realms) > 1)
	}
	switch {
	case err != nil:
		return 2, err
	case len(kinds) > 0 && len(table.Sites) > 0:
		return 1, nil
	}
	return 0, nil
}

// printJSON prints the table as JSON, each row in a line of its own, so that tables can be compared.
func (t *routeTable) printJSON(out io.Writer) error {
	var text strings.Builder
	text.WriteString(`{"sites":[`)
	for i, site := range t.Sites {
		head := *site
		head.Rows = nil
		encoded, err := json.Marshal(head)
		if err != nil {
			return err
		}
		rows := make([]string, len(site.Rows))
		for k, row := range site.Rows {
			encoded, err := json.Marshal(row)
			if err != nil {
				return err
			}
			rows[k] = "\n" + printableJSON(encoded)
		}
		if i > 0 {
			text.WriteString(",")
		}
		// The rows are the last member.
		text.WriteString("\n" + strings.TrimSuffix(printableJSON(encoded), "null}") + "[" + strings.Join(rows, ",") + "\n]}")
	}
	fmt.Fprintf(&text, "\n],\"cut\":%t}\n", t.Cut)
	_, err := io.WriteString(out, text.String())
	return err
}

// terminalWidth returns how wide a table may be: as the terminal, or 100 if out is none.
func terminalWidth(out io.Writer) int {
	if file, ok := out.(*os.File); ok {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil {
			return min(max(width, 80), 140)
		}
	}
	return 100
}

// print prints the table for people.
func (t *routeTable) print(out io.Writer, width int, realms bool) error {
	var text strings.Builder
	head := []string{"METHOD", "PATH", "WHO", "GOES TO", "RULE"}
	all := [][]string{head}
	servers := make(map[string]int)
	for _, site := range t.Sites {
		servers[site.Server]++
		var before *routeRow
		for i := range site.Rows {
			all = append(all, site.Rows[i].cells(realms, before))
			before = &site.Rows[i]
		}
	}
	sizes := columnSizes(all, width)
	line := func(row []string) {
		columns := make([][]string, len(row))
		lines := 0
		for i, cell := range row {
			columns[i] = wrap(cell, sizes[i])
			lines = max(lines, len(columns[i]))
		}
		for n := range lines {
			at := ""
			for i := range columns {
				cell := ""
				if n < len(columns[i]) {
					cell = columns[i][n]
				}
				at += "  " + cell + strings.Repeat(" ", sizes[i]-utf8.RuneCountInString(cell))
			}
			text.WriteString(strings.TrimRight(at, " ") + "\n")
		}
	}
	next := 0
	for i, site := range t.Sites {
		if i > 0 {
			text.WriteString("\n")
		}
		text.WriteString(site.title(servers[site.Server] == 1) + "\n")
		for _, note := range site.Notes {
			for _, line := range wrap("  ("+note+")", width) {
				text.WriteString(line + "\n")
			}
		}
		line(head)
		for range site.Rows {
			next++
			line(all[next])
		}
	}
	if t.Cut {
		text.WriteString("\nThere is more than is looked into: some rows depend on paths or hosts that have no rows of\ntheir own.\n")
	}
	// The configuration may have anything in it, even what a terminal obeys.
	_, err := io.WriteString(out, strings.Map(func(c rune) rune {
		if c == '\n' || strconv.IsPrint(c) {
			return c
		}
		return utf8.RuneError
	}, text.String()))
	return err
}

// columnSizes returns how wide columns can be, with two spaces before each.
func columnSizes(all [][]string, width int) []int {
	sizes := make([]int, len(all[0]))
	total := 0
	for i := range sizes {
		for _, row := range all {
			for line := range strings.SplitSeq(row[i], "\n") {
				sizes[i] = max(sizes[i], utf8.RuneCountInString(line))
			}
		}
		total += sizes[i] + 2
	}
	for ; total > width; total-- {
		widest := 0
		for i := range sizes {
			if sizes[i] > sizes[widest] {
				widest = i
			}
		}
		sizes[widest]--
	}
	return sizes
}

// title names a site as a URL begins. Alone says that its server has no other.
func (s *routeSite) title(alone bool) string {
	scheme := "http://"
	if s.TLS {
		scheme = "https://"
	}
	var names []string
	for _, host := range s.Hosts {
		names = append(names, scheme+host)
	}
	for _, address := range s.Listen {
		if len(s.Hosts) == 0 {
			names = append(names, scheme+address)
		}
	}
	title := strings.Join(names, ", ")
	switch {
	case len(s.Hosts) == 0 && !alone:
		title += ", any other host"
	case len(s.Hosts) > 0 && !slices.Contains(s.Listen, map[bool]string{true: ":443", false: ":80"}[s.TLS]):
		title += " at " + strings.Join(s.Listen, ", ")
	}
	return title
}

// shownClients is how many clients a row names.
const shownClients = 3

// maxPaths is how many characters the paths of a row take, unless one alone is longer.
const maxPaths = 24

// cells returns what the columns have. Before is the row before, if it is of the same site.
func (r *routeRow) cells(realms bool, before *routeRow) []string {
	path := r.Paths[0]
	for i, other := range r.Paths[1:] {
		if left := len(r.Paths) - 1 - i; utf8.RuneCountInString(path+other) > maxPaths {
			path += fmt.Sprintf(", +%d more", left)
			break
		}
		path += ", " + other
	}
	switch {
	case len(r.When) > 0:
		path += "\nif " + strings.Join(r.When, "\nand ")
	case before != nil && len(before.When) > 0 && slices.Equal(r.Paths, before.Paths) && slices.Equal(r.Methods, before.Methods):
		path += "\notherwise"
	}
	var who []string
	switch r.Who {
	case routeOpen:
		who = append(who, "OPEN")
	case routeNobody:
		who = append(who, "NOBODY: "+r.Why)
	case routeAnswered:
		who = append(who, "-")
	case routeEndpoint:
		who = append(who, cmp.Or(r.Why, "clients, with their secrets"))
	case routeUnknown:
		who = append(who, "? "+r.Why)
	case routeClients:
		var names []string
		for i, client := range r.Clients {
			if i == shownClients && len(r.Clients) > shownClients+1 {
				names = append(names, fmt.Sprintf("+%d more", len(r.Clients)-i))
				break
			}
			name := client.ID
			if realms {
				name = clientName(client.Realm, client.ID)
			}
			names = append(names, name)
		}
		if len(names) > 0 {
			who = append(who, strings.Join(names, ", "))
		}
		for _, foreign := range r.Foreign {
			text := "tokens of " + foreign.Source
			if len(foreign.Needs) > 0 {
				text += " with " + strings.Join(foreign.Needs, ", ")
			}
			who = append(who, text)
		}
	}
	for _, note := range r.Notes {
		who = append(who, "("+note+")")
	}
	to := strings.Join(r.To, "\n")
	if r.Who == routeAnswered && to == "" {
		to = "nothing"
	}
	return []string{strings.Join(r.Methods, " "), path, strings.Join(who, "\n"), to, strings.Join(sameFile(r.Rules), "\n")}
}

// sameFile joins places of one file, as in Caddyfile:12, 15, and leaves out its folder.
func sameFile(places []string) (joined []string) {
	file := ""
	for _, place := range places {
		name, line, ok := cutLast(place, ":")
		if ok {
			name = filepath.Base(name)
			place = name + ":" + line
		}
		if ok && name == file {
			joined[len(joined)-1] += ", " + line
			continue
		}
		file = name
		joined = append(joined, place)
	}
	return joined
}

func cutLast(text, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(text, separator); i >= 0 {
		return text[:i], text[i+len(separator):], true
	}
	return text, "", false
}

// wrap breaks a text into lines of at most size characters, at spaces or
// after slashes where it can. Lines that go on are indented.
func wrap(text string, size int) (lines []string) {
	const indent = 2
	size = max(size, 2*indent)
	for line := range strings.SplitSeq(text, "\n") {
		rest := []rune(line)
		for len(rest) > size {
			cut := size
			for i := indent + 1; i <= size; i++ { // each line must get shorter
				if rest[i] == ' ' || rest[i-1] == '/' && rest[i-2] != ' ' && i > size/2 {
					cut = i
				}
			}
			lines = append(lines, string(rest[:cut]))
			rest = []rune(strings.Repeat(" ", indent) + strings.TrimLeft(string(rest[cut:]), " "))
		}
		lines = append(lines, string(rest))
	}
	return lines
}
