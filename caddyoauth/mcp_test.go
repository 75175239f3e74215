package caddyoauth_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

// mcpClient gets in as a client of the Model Context Protocol does that knows nothing but a URL, its
// ID and its secret. It sends what the SDK for TypeScript sends, version 1.32 with its
// ClientCredentialsProvider, in the same order, and demands of the answers what its schemas do.
// TestMCPClient compares it with the original.
type mcpClient struct {
	id, secret string
	// deaf is set for one that doesn't read challenges.
	deaf bool
	http *http.Client
	// sent are the requests, each with the status of its answer.
	sent []string
	// resource and metadata are what it was told; token is what it got.
	resource string
	metadata map[string]any
	token    string
}

// call sends an MCP message and returns the body of the answer.
func (c *mcpClient) call(server string) (string, error) {
	send := func(token string) (answer, error) {
		const message = `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"agent","version":"1.0.0"}}}`
		headers := []string{"Content-Type", "application/json", "Accept", "application/json, text/event-stream"}
		if token != "" {
			headers = append(headers, "Authorization", "Bearer "+token)
		}
		return c.send("POST", server, message, headers...)
	}
	a, err := send("")
	if err == nil && a.StatusCode == http.StatusUnauthorized {
		if err = c.authorize(server, a); err != nil {
			return "", err
		}
		a, err = send(c.token)
	}
	if err == nil && a.StatusCode != http.StatusOK {
		err = fmt.Errorf("the server answers %d, %v", a.StatusCode, a.Header)
	}
	return a.Body, err
}

func (c *mcpClient) send(method, target, body string, headers ...string) (answer, error) {
	r, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	a, err := (&gateway{Client: c.http}).try(r)
	if err == nil {
		c.sent = append(c.sent, fmt.Sprint(method, " ", target, " ", a.StatusCode))
	}
	return a, err
}

var mcpChallenge = regexp.MustCompile(`resource_metadata=(?:"([^"]+)"|([^\s,]+))`)

// authorize fetches a token for a server that has refused a request without one.
func (c *mcpClient) authorize(server string, refusal answer) error {
	at, err := url.Parse(server)
	if err != nil {
		return err
	}
	origin := at.Scheme + "://" + at.Host

	// The document about the server (RFC 9728), where the challenge says that it is, or else where it
	// may be.
	challenge := strings.Join(refusal.Header["Www-Authenticate"], ", ")
	words := strings.Split(challenge, " ")
	named := mcpChallenge.FindStringSubmatch(challenge)
	var a answer
	if !c.deaf && strings.EqualFold(words[0], "bearer") && len(words) > 1 && named != nil {
		a, err = c.send("GET", named[1]+named[2], "", "MCP-Protocol-Version", "2025-11-25")
	} else {
		path := strings.TrimSuffix(at.Path, "/")
		a, err = c.send("GET", origin+"/.well-known/oauth-protected-resource"+path, "", "MCP-Protocol-Version", "2025-11-25")
		if err == nil && a.StatusCode/100 != 2 && a.StatusCode < 500 && path != "" {
			a, err = c.send("GET", origin+"/.well-known/oauth-protected-resource", "", "MCP-Protocol-Version", "2025-11-25")
		}
	}
	if err != nil {
		return err
	}
	if a.StatusCode/100 != 2 {
		return fmt.Errorf("no document about the resource: %d", a.StatusCode)
	}
	var protected map[string]any
	if err := json.Unmarshal([]byte(a.Body), &protected); err != nil {
		return err
	}
	if err := mcpSchema(protected, "resource url!", "authorization_servers urls", "scopes_supported strings", "bearer_methods_supported strings"); err != nil {
		return err
	}
	c.resource = protected["resource"].(string)
	issuers, _ := protected["authorization_servers"].([]any)
	if len(issuers) == 0 {
		return fmt.Errorf("the document names no authorization server: %s", a.Body)
	}

	// The metadata of the first authorization server (RFC 8414), or that of OpenID Connect.
	issuer, err := url.Parse(issuers[0].(string))
	if err != nil {
		return err
	}
	path := strings.TrimSuffix(issuer.Path, "/")
	origin = issuer.Scheme + "://" + issuer.Host
	places := []string{"/.well-known/oauth-authorization-server" + path, "/.well-known/openid-configuration" + path}
	if path != "" {
		places = append(places, path+"/.well-known/openid-configuration")
	}
	for i, place := range places {
		a, err := c.send("GET", origin+place, "", "MCP-Protocol-Version", "2025-11-25", "Accept", "application/json")
		switch {
		case err != nil:
			return err
		case a.StatusCode >= 500:
			return fmt.Errorf("the metadata gets %d", a.StatusCode)
		case a.StatusCode/100 != 2:
			continue
		}
		if err := json.Unmarshal([]byte(a.Body), &c.metadata); err != nil {
			return err
		}
		members := []string{
			"issuer string!", "authorization_endpoint url!", "token_endpoint url!", "registration_endpoint url", "scopes_supported strings",
			"response_types_supported strings!", "response_modes_supported strings", "grant_types_supported strings",
			"token_endpoint_auth_methods_supported strings", "token_endpoint_auth_signing_alg_values_supported strings", "service_documentation url",
			"revocation_endpoint url", "revocation_endpoint_auth_methods_supported strings", "revocation_endpoint_auth_signing_alg_values_supported strings",
			"introspection_endpoint string", "introspection_endpoint_auth_methods_supported strings",
			"introspection_endpoint_auth_signing_alg_values_supported strings", "code_challenge_methods_supported strings",
		}
		if i > 0 {
			members = append(members, "jwks_uri url!", "subject_types_supported strings!", "id_token_signing_alg_values_supported strings!")
		}
		if err := mcpSchema(c.metadata, members...); err != nil {
			return err
		}
		break
	}
	if c.metadata == nil {
		return fmt.Errorf("no metadata of %s", issuer)
	}

	// The document must be about the server, or about what it is part of.
	about, err := url.Parse(c.resource)
	if err != nil {
		return err
	}
	slashed := func(path string) string { return strings.TrimSuffix(path, "/") + "/" }
	if about.Scheme != at.Scheme || about.Host != at.Host || !strings.HasPrefix(slashed(at.Path), slashed(about.Path)) {
		return fmt.Errorf("the document is about %s", c.resource)
	}

	// The token, for just that (RFC 8707).
	methods := fmt.Sprint(c.metadata["token_endpoint_auth_methods_supported"])
	if !strings.Contains(methods, "client_secret_basic") {
		return fmt.Errorf("it can't authenticate by any of %s", methods)
	}
	form := url.Values{"grant_type": {"client_credentials"}, "resource": {c.resource}}
	a, err = c.send("POST", c.metadata["token_endpoint"].(string), form.Encode(),
		"Content-Type", "application/x-www-form-urlencoded", "Accept", "application/json", "Authorization", rawBasic(c.id+":"+c.secret))
	if err != nil {
		return err
	}
	if a.StatusCode != http.StatusOK {
		return fmt.Errorf("no token: %d %s", a.StatusCode, a.Body)
	}
	var granted map[string]any
	if err := json.Unmarshal([]byte(a.Body), &granted); err != nil {
		return err
	}
	c.token, _ = granted["access_token"].(string)
	return mcpSchema(granted, "access_token string!", "token_type string!", "expires_in number", "scope string", "refresh_token string", "id_token string")
}

// mcpSchema checks the members of an object, each given by its name and its type, and by an
// exclamation mark if it must be there.
func mcpSchema(object map[string]any, members ...string) error {
	for _, member := range members {
		name, kind, _ := strings.Cut(member, " ")
		kind, required := strings.CutSuffix(kind, "!")
		value, ok := object[name]
		if !ok && !required {
			continue
		}
		values := []any{value}
		if list, isList := strings.CutSuffix(kind, "s"); isList {
			if values, ok = value.([]any); !ok {
				return fmt.Errorf("%s is %v, want a list", name, value)
			}
			kind = list
		}
		for _, v := range values {
			text, isText := v.(string)
			_, isNumber := v.(float64)
			u, err := url.Parse(text)
			if kind == "number" && !isNumber || kind != "number" && !isText || kind == "url" && (err != nil || u.Host == "") {
				return fmt.Errorf("%s is %v, want a %s", name, v, kind)
			}
		}
	}
	return nil
}

// A client of the Model Context Protocol that is refused finds the way to a token from the answer
// alone, wherever its authorization server is and whatever that is called.
func TestMCPClient(t *testing.T) {
	whole, notes := t, "" // the address of the MCP server
	const (
		protected = "GET http://HERE/.well-known/oauth-protected-resource"
		server    = "GET http://HERE/.well-known/oauth-authorization-server"
	)
	for _, c := range []struct {
		name, issuer string
		// options are more of the oauth block; site and other are those of two sites, in which
		// PROTECT has the options of the oauth_protect.
		options, site, other string
		resource, url        string
		realm                string
		deaf                 bool // it does not read the challenge
		// between are the requests between the refused one and the one for the token, at token.
		between []string
		token   string
	}{
		{name: "an issuer with a path", issuer: "http://HERE/oauth2",
			between: []string{protected + "/mcp 200", server + "/oauth2 200"}},
		{name: "an issuer without a path", issuer: "http://HERE",
			between: []string{protected + "/mcp 200", server + " 200"}},
		{name: "an issuer that is only a slash longer", issuer: "http://HERE/",
			between: []string{protected + "/mcp 200", server + " 200"}},
		{name: "an issuer with a slash at its end", issuer: "http://HERE/oauth2/",
			between: []string{protected + "/mcp 200", server + "/oauth2 200"}},
		{name: "another base path", issuer: "http://HERE/am/oauth2",
			site:    "oauth_server {\nbase_path /am/oauth2\n}\nhandle /mcp {\nPROTECT\n}",
			between: []string{protected + "/mcp 200", server + "/am/oauth2 200"}, token: "http://HERE/am/oauth2/access_token"},
		{name: "a realm", issuer: "http://HERE/oauth2", realm: "alpha",
			between: []string{protected + "/mcp 200", server + "/oauth2/realms/root/realms/alpha 200"}, token: "http://HERE/oauth2/realms/root/realms/alpha/access_token"},
		{name: "a realm with an issuer of its own", issuer: "http://HERE/alpha", realm: "alpha",
			between: []string{protected + "/mcp 200", server + "/alpha 200"}, token: "http://HERE/oauth2/realms/root/realms/alpha/access_token"},
		{name: "another site", issuer: "http://THERE/oauth2", site: "PROTECT", other: "oauth_server",
			between: []string{protected + "/mcp 200", "GET http://THERE/.well-known/oauth-authorization-server/oauth2 200"}, token: "http://THERE/oauth2/access_token"},
		{name: "a source that is asked", issuer: "http://THERE/oauth2", other: "oauth_server",
			site: "oauth_protect {\nsource introspect http://THERE/oauth2/introspect {\nissuer http://THERE/oauth2\nclient_id agent\nclient_secret {env.MCP_SECRET}\n}\n" +
				"resource RESOURCE\naudience RESOURCE\n}\nreverse_proxy BACKEND",
			between: []string{protected + "/mcp 200", "GET http://THERE/.well-known/oauth-authorization-server/oauth2 200"}, token: "http://THERE/oauth2/access_token"},
		{name: "endpoints that come last", issuer: "http://HERE/oauth2",
			site:    "route {\nhandle /mcp {\nPROTECT\n}\nhandle {\noauth_server\n}\n}",
			between: []string{protected + "/mcp 200", server + "/oauth2 200"}},
		{name: "no OpenID Connect", issuer: "http://HERE/oauth2", options: "no_openid_configuration",
			between: []string{protected + "/mcp 200", server + "/oauth2 200"}},
		{name: "a path below the resource", issuer: "http://HERE/oauth2", url: "http://HERE/mcp/v2", site: "oauth_server\nhandle /mcp/* {\nPROTECT\n}",
			between: []string{protected + "/mcp 200", server + "/oauth2 200"}},
		{name: "a resource without a path", issuer: "http://HERE/oauth2", resource: "http://HERE",
			between: []string{protected + " 200", server + "/oauth2 200"}},
		{name: "a resource that is only a slash longer", issuer: "http://HERE/oauth2", resource: "http://HERE/",
			between: []string{protected + " 200", server + "/oauth2 200"}},
		{name: "Basic at the same route", issuer: "http://HERE/oauth2", site: "oauth_server\noauth_protect {\nbasic\nresource RESOURCE\naudience RESOURCE\n}\nreverse_proxy BACKEND",
			between: []string{protected + "/mcp 200", server + "/oauth2 200"}},
		{name: "a client that guesses", issuer: "http://HERE/oauth2", deaf: true,
			between: []string{protected + "/mcp 200", server + "/oauth2 200"}},
		{name: "a client that guesses about all of a host", issuer: "http://HERE/oauth2", resource: "http://HERE", deaf: true, site: "oauth_server\nPROTECT",
			between: []string{protected + "/mcp 401", protected + " 200", server + "/oauth2 200"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.site == "" {
				c.site = "oauth_server\nhandle /mcp {\nPROTECT\n}"
			}
			if c.resource == "" {
				c.resource = "http://HERE/mcp"
			}
			if c.url == "" {
				c.url = "http://HERE/mcp"
			}
			if c.token == "" {
				c.token = "http://HERE/oauth2/access_token"
			}
			const client = "client agent {\nsecret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0\nscopes tools\ndefault_scopes tools\naudience RESOURCE http://elsewhere.example\n}\n"
			text := "{\nadmin off\npersist_config off\nauto_https off\noauth {\nstore memory\nissuer " + c.issuer + "\n" + c.options + "\n" + client + "}\n}\n"
			if c.realm != "" {
				issuer := "issuer " + c.issuer
				if c.issuer == "http://HERE/oauth2" {
					issuer = "" // from root's
				}
				text = strings.Replace(text, client, client+"realm "+c.realm+" {\n"+issuer+"\n"+client+"}\n", 1)
				if issuer != "" {
					text = strings.Replace(text, issuer, "issuer https://root.example/oauth2", 1)
				}
			}
			text += "HERE {\nbind 127.0.0.1\n" + c.site + "\n}\n"
			if c.other != "" {
				text += "THERE {\nbind 127.0.0.1\n" + c.other + "\n}\n"
			}
			protect := "oauth_protect " + c.realm + " {\nresource RESOURCE\naudience RESOURCE\nscopes tools\n}\nreverse_proxy BACKEND"
			here, there := porttest.Address(t), porttest.Address(t)
			moved := strings.NewReplacer("HERE {", "http://"+here+" {", "THERE {", "http://"+there+" {", "HERE", here, "THERE", there)
			text = moved.Replace(strings.NewReplacer("PROTECT", strings.ReplaceAll(protect, "RESOURCE", c.resource), "RESOURCE", c.resource).Replace(text))
			want := []string{"POST " + c.url + " 401"}
			want = append(append(want, c.between...), "POST "+c.token+" 200", "POST "+c.url+" 200")
			for i := range want {
				want[i] = moved.Replace(want[i])
			}

			t.Setenv("MCP_SECRET", testSecret)
			g := startCaddyfile(t, text)
			own := &mcpClient{id: "agent", secret: testSecret, deaf: c.deaf, http: g.Client}
			if _, err := own.call(moved.Replace(c.url)); err != nil {
				t.Errorf("%v; it sent\n%s", err, strings.Join(own.sent, "\n"))
			} else if got := g.Backend.last(t).Header; got.Get("X-OAuth-Client-Id") != "agent" || got.Get("X-OAuth-Scope") != "tools" || got.Get("Authorization") != "" {
				t.Errorf("the backend has %v", got)
			}
			if got := strings.Join(own.sent, "\n"); got != strings.Join(want, "\n") {
				t.Errorf("it sent\n%s\nwant\n%s", got, strings.Join(want, "\n"))
			}
			if t.Failed() || c.deaf {
				return
			}
			endpoint := strings.TrimSuffix(moved.Replace(c.token), "/access_token")
			r, err := http.NewRequest("POST", endpoint+"/introspect", strings.NewReader("token="+own.token))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.SetBasicAuth("agent", testSecret)
			if about := g.do(r).json(t); about["active"] != true || about["aud"] != moved.Replace(c.resource) {
				t.Errorf("the token is %v, want one for %s alone", about, own.resource)
			}
			if got := own.metadata["authorization_endpoint"]; got != endpoint+"/authorize" {
				t.Errorf("the authorization endpoint is %v", got)
			}

			t.Run("the SDK", func(t *testing.T) {
				nodeIn(t, "examples/mcp")
				if notes == "" {
					notes = startNode(whole, "examples/mcp/server.mjs")
				}
				g.Backend.Config.Handler = nil // it must not be asked
				if err := g.loadCaddyfile(strings.ReplaceAll(text, "BACKEND", notes)); err != nil {
					t.Fatal(err)
				}
				said := runNode(t, "examples/mcp/client.mjs", []string{"--trace", moved.Replace(c.url), "read_notes"},
					[]string{"CLIENT_ID=agent", "CLIENT_SECRET=" + testSecret, "ISSUER=" + own.metadata["issuer"].(string)})
				if !strings.HasPrefix(said, strings.Join(want, "\n")+"\n") || !strings.HasSuffix(said, "\nTo agent: Water the plants.\n") {
					t.Errorf("it says\n%s\nwant\n%s", said, strings.Join(want, "\n"))
				}
			})
		})
	}
}

// What a configuration may lack has its own message, in the client's own words or in ours.
func TestMCPClientInVain(t *testing.T) {
	for _, c := range []struct{ name, client, resource, want string }{
		{"no default scopes", "audience http://HERE/mcp", "http://HERE/mcp", "no scope was requested and the client has no default"},
		{"no audience", "default_scopes tools", "http://HERE/mcp", "the client may not have a token for a resource that was requested"},
		{"another audience", "default_scopes tools\naudience http://HERE/mcp/", "http://HERE/mcp", "the client may not have a token for a resource that was requested"},
		{"a document about another path", "default_scopes tools\naudience http://HERE/notes", "http://HERE/notes", "http://HERE/notes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			here := porttest.Address(t)
			text := strings.NewReplacer("HERE", here, "CLIENT", c.client, "RESOURCE", c.resource).Replace(
				"{\nadmin off\npersist_config off\nauto_https off\noauth {\nstore memory\nissuer http://HERE/oauth2\nclient agent {\nsecret_hash " + hashOf(testSecret) +
					"\nscopes tools\nCLIENT\n}\n}\n}\nhttp://HERE {\nbind 127.0.0.1\noauth_server\nhandle /mcp {\noauth_protect {\nresource RESOURCE\n}\nreverse_proxy BACKEND\n}\n}\n")
			text = strings.ReplaceAll(text, "HERE", here)
			want := strings.ReplaceAll(c.want, "HERE", here)
			g := startCaddyfile(t, text)
			own := &mcpClient{id: "agent", secret: testSecret, http: g.Client}
			if _, err := own.call("http://" + here + "/mcp"); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q, after %q", err, want, own.sent)
			}
			if n := g.Backend.count(); n > 0 || own.token != "" {
				t.Errorf("the backend had %d requests, and there is a token: %t", n, own.token != "")
			}
			t.Run("the SDK", func(t *testing.T) {
				said := runNode(t, "examples/mcp/client.mjs", []string{"http://" + here + "/mcp", "read_notes"},
					[]string{"CLIENT_ID=agent", "CLIENT_SECRET=" + testSecret, "ISSUER=http://" + here + "/oauth2"})
				if !strings.Contains(said, "Error") || !strings.Contains(said, want) {
					t.Errorf("it says %s, want %q", said, want)
				}
			})
		})
	}
}

// At the authorization endpoint that metadata names for those who ask for one, nobody can log in. It
// is there only while a resource says that its tokens come from the realm.
func TestAuthorizationEndpoint(t *testing.T) {
	const options = "store memory\nissuer " + testIssuer + "\n" + testClients + "realm alpha {\n" + testClients + "}\n"
	const protected = "oauth_server\nhandle /v1/* {\noauth_protect {\nresource https://api.example.com/v1\n}\n}\nrespond next 418"
	g := startGateway(t, options, protected)
	const target = "?response_type=code&client_id=reader&redirect_uri=https://evil.example/&state=x"
	for _, path := range []string{"/oauth2/authorize", "/oauth2/realms/root/authorize"} {
		for method, want := range map[string]int{"GET": 400, "HEAD": 400, "POST": 400, "PUT": 405, "DELETE": 405, "OPTIONS": 405} {
			a := g.do(g.request(method, path+target, ""))
			h := a.Header
			if a.StatusCode != want || h.Get("Location") != "" || h.Get("Cache-Control") != "no-store" || h.Get("Content-Type") != "application/json" || h.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s %s: %d %v", method, path, a.StatusCode, h)
			}
			if strings.Contains(a.Body, "evil") || method != "HEAD" && a.json(t)["error"] != map[int]string{400: "unsupported_response_type", 405: "invalid_request"}[want] {
				t.Errorf("%s %s: %s", method, path, a.Body)
			}
			if allow := h.Get("Allow"); (want == 405) != (allow == "GET, HEAD, POST") {
				t.Errorf("%s %s: Allow %q", method, path, allow)
			}
		}
	}
	named := func(path string) any { return g.get(path, "").json(t)["authorization_endpoint"] }
	for _, path := range []string{wellKnown + "/oauth2", "/oauth2/.well-known/openid-configuration"} {
		if got := named(path); got != testIssuer+"/authorize" {
			t.Errorf("%s names %v", path, got)
		}
	}
	// alpha's tokens are good at no resource.
	if got := named(wellKnown + "/oauth2" + alphaSuffix); got != nil {
		t.Errorf("alpha's metadata names %v", got)
	}
	for _, path := range []string{"/oauth2" + alphaSuffix + "/authorize", "/oauth2/authorize/x", "/authorize", "/oauth2/Authorize"} {
		if a := g.get(path, ""); a.StatusCode != 418 {
			t.Errorf("%s: %d", path, a.StatusCode)
		}
	}

	if err := g.load(options, strings.Replace(protected, "resource https://api.example.com/v1\n", "", 1)); err != nil {
		t.Fatal(err)
	}
	if got := named(wellKnown + "/oauth2"); got != nil {
		t.Errorf("without a resource, the metadata names %v", got)
	}
	if a := g.get("/oauth2/authorize", ""); a.StatusCode != 418 {
		t.Errorf("without a resource: %d", a.StatusCode)
	}

	// The resource may be at another gateway.
	const option = "authorization_endpoint\n"
	for name, c := range map[string]struct{ root, alpha string }{"for one realm": {"", option}, "for all": {option, ""}} {
		if err := g.load(strings.Replace(c.root+options, "realm alpha {\n", "realm alpha {\n"+c.alpha, 1), "oauth_server\nrespond next 418"); err != nil {
			t.Fatal(err)
		}
		if a := g.get("/oauth2"+alphaSuffix+"/authorize", ""); a.StatusCode != 400 || named(wellKnown+"/oauth2"+alphaSuffix) != testIssuer+alphaSuffix+"/authorize" {
			t.Errorf("%s: alpha's endpoint answers %d", name, a.StatusCode)
		}
		if a := g.get("/oauth2/authorize", ""); (a.StatusCode == 400) != (c.root != "") || (named(wellKnown+"/oauth2") != nil) != (c.root != "") {
			t.Errorf("%s: root's endpoint answers %d", name, a.StatusCode)
		}
	}
}
