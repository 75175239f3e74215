package caddyoauth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [--client <id> [--realm <name>] | --token -] [--from <ip>] [--header '<name>: <value>']... [--json] <method> <url>",
		Short: "Shows which way a request would go, and why it would be refused",
		Long: `
Shows which way a request would go: the handlers that it would meet, in that order, what
each wants and does, the first that refuses and why, and which clients would pass. Nothing
is sent, counted, logged or stored.

By default it reads the configuration, as 'caddy validate' does, from --config or the
Caddyfile in the current folder. A client stands for the best token that it can fetch.
Without --client, the request has no token.

With --token - it asks the gateway that is running about a token, by way of Caddy's admin
endpoint, whose address it finds as Caddy's own commands do. The token is asked for at the
terminal or read from standard input. It is never an argument, since other users of the
machine can see those, and the shell keeps them in its history. With --address it asks
that gateway about a client, too.

The exit status is 0 if the request would pass, 1 if it would be refused, and 2 if that
can't be found out.`,
		Args: cobra.ArbitraryArgs, // a token among them must not be repeated in an error
	}
	var asked explainRequest
	flags := cmd.Flags()
	flags.StringVar(&asked.Client, "client", "", "client that sends the request, with the best token that it can fetch")
	flags.StringVar(&asked.Realm, "realm", "", "realm of the client, if several have one with that name")
	flags.StringVar(&asked.From, "from", "", "IP address that the request comes from; without it, this machine for a URL on this machine, and another for any other")
	token := flags.String("token", "", "-, to read a token from standard input")
	headers := flags.StringArray("header", nil, "header of the request, as 'Name: value'; may repeat")
	config := flags.StringP("config", "c", "", "configuration file; without it, the Caddyfile in the current folder")
	adapter := flags.StringP("adapter", "a", "", "name of the config adapter; without it, that of Caddyfiles for a file with such a name")
	address := flags.String("address", "", "address of the admin endpoint of the gateway to ask")
	asJSON := flags.Bool("json", false, "print a JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		status, err := func() (int, error) {
			if *token != "" && *token != "-" {
				return 2, errors.New("the token must come from standard input, with --token -, and not from an argument: it is now in the history of your shell, so revoke it")
			}
			if len(args) != 2 {
				return 2, errors.New("give a method and a URL, as in 'explain GET https://api.example.com/orders'")
			}
			asked.Method, asked.URL = args[0], args[1]
			asked.Header = make(map[string][]string)
			for _, line := range *headers {
				name, value, ok := strings.Cut(line, ":")
				if !ok {
					return 2, errors.New("a header is a name, a colon and a value, as in --header 'Accept: text/html'")
				}
				if strings.EqualFold(strings.TrimSpace(name), "authorization") {
					return 2, errors.New("credentials must not be an argument: give a token with --token -; what you gave is now in the history of your shell")
				}
				asked.Header[strings.TrimSpace(name)] = append(asked.Header[strings.TrimSpace(name)], strings.TrimSpace(value))
			}
			if *token == "-" {
				text, err := readToken(cmd)
				if err != nil {
					return 2, err
				}
				asked.Token = text
			}
			var e *explanation
			var err error
			if *token == "-" || *address != "" {
				e, err = explainRunning(&asked, *address, *config, *adapter)
			} else {
				e, err = explainOffline(cmd.Context(), &asked, *config, *adapter)
			}
			if err != nil {
				return 2, err
			}
			return e.status(), e.write(cmd.OutOrStdout(), *asJSON)
		}()
		if err != nil { // not to the log, which may be quiet by now
			fmt.Fprintln(cmd.ErrOrStderr(), "Error:", err)
		}
		cmd.SilenceErrors = true // all has been said
		if status == 1 {
			return errRefused
		}
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return status, nil })(cmd, args)
	}
	return cmd
}

// errRefused is the exit status 1 of a command that has said everything.
var errRefused = errors.New("the request would not pass")

// status is the exit status.
func (e *explanation) status() int {
	switch {
	case e.Outcome.Kind == outcomeUnknown:
		return 2
	case e.Outcome.passes():
		return 0
	}
	return 1
}

func (e *explanation) write(w io.Writer, asJSON bool) error {
	if !asJSON {
		return e.print(w)
	}
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, printableJSON(text))
	return err
}

// explainOffline asks a configuration that is not running.
func explainOffline(ctx context.Context, asked *explainRequest, file, adapter string) (*explanation, error) {
	q, err := asked.question()
	if err != nil {
		return nil, err
	}
	p, end, err := loadPolicy(file, adapter)
	if err != nil {
		return nil, err
	}
	defer end()
	return p.explain(ctx, q)
}

// explainRunning asks the gateway that is running.
func explainRunning(asked *explainRequest, address, file, adapter string) (*explanation, error) {
	e := new(explanation)
	return e, askAdmin("/oauth/explain", asked, e, address, file, adapter)
}

// maxAdminAnswer is how much of an answer is read, in bytes: an export of a million clients.
const maxAdminAnswer = 1 << 30

// askAdmin asks the gateway whose admin endpoint is at an address, or where the configuration file
// says, or at Caddy's default, and reads the answer. The question is posted, unless it is nil.
func askAdmin(path string, question, answer any, address, file, adapter string) error {
	address, err := caddycmd.DetermineAdminAPIAddress(address, nil, file, adapter)
	if err != nil {
		return err
	}
	method, body := http.MethodGet, []byte(nil)
	if question != nil {
		method = http.MethodPost
		if body, err = json.Marshal(question); err != nil {
			return err
		}
	}
	response, err := caddycmd.AdminAPIRequest(address, method, path, nil, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("asking the gateway at %s: %w", address, err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAdminAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("reading the answer of %s: %w", address, err)
	}
	return nil
}
