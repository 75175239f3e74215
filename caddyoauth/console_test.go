package caddyoauth_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

// chrome are the headers by which a browser is known, and that it sends with everything.
var chrome = []string{"User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36", "Accept-Language", "en"}

// The console is a page that loads nothing from elsewhere, and that nobody else can frame or script.
func TestConsoleIsServed(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+testClients, managedSite))
	a := admin{startCaddyfile(t, config), address}
	for path, mediaType := range map[string]string{"": "text/html", "console.css": "text/css", "console.js": "text/javascript"} {
		res := a.must(200, "GET", "/oauth/console/"+path, "")
		if got := res.Header.Get("Content-Type"); !strings.HasPrefix(got, mediaType+";") || res.Body == "" {
			t.Errorf("%q is %s", path, got)
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
			"X-Content-Type-Options":  "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%q has %s %q, want %q", path, name, got, want)
			}
		}
	}
	a.must(404, "GET", "/oauth/console/other.js", "")
	a.must(405, "POST", "/oauth/console/", "{}")

	// Caddy's admin endpoint refuses what a browser loads in the mode no-cors, which is the default of
	// elements.
	page := a.must(200, "GET", "/oauth/console/", "").Body
	for _, element := range regexp.MustCompile(`(?s)<(?:link|script|img)\b[^>]*>`).FindAllString(page, -1) {
		if !strings.Contains(element, "crossorigin") && !strings.Contains(element, `type="module"`) && !strings.Contains(element, `href="data:`) {
			t.Errorf("Caddy would refuse to serve this to the page: %s", element)
		}
	}
}

// A page from elsewhere can't call the admin endpoint by an operator's browser, not even with a name
// that its owner has made point to this machine, and the console changes nothing unless the
// configuration says so. Commands and other programs are not browsers.
func TestBrowsersAreGuarded(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+managedOptions, managedSite))
	// All addresses are where Caddy itself doesn't look at the Host header.
	_, port, _ := strings.Cut(address, ":")
	config = strings.Replace(config, "admin "+address, "admin 0.0.0.0:"+port+" {\norigins "+address+" gw.example.com:"+port+" \"\"\n}", 1)
	a := admin{startCaddyfile(t, config), address}
	const put, body = "/oauth/clients/root/batch", `{"scopes":["read"]}`
	ours := "http://" + address
	cases := map[string]struct {
		method, path, body string
		headers            []string
		status             int
		says               string
	}{
		"the address is typed":                {"GET", "/oauth/keys", "", []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Site", "none"}, 200, ""},
		"the page asks":                       {"GET", "/oauth/keys", "", []string{"Sec-Fetch-Mode", "cors", "Sec-Fetch-Site", "same-origin", "Referer", ours + "/oauth/console/"}, 200, ""},
		"a link from elsewhere":               {"GET", "/oauth/console/", "", []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Site", "cross-site"}, 403, "from elsewhere"},
		"another port of this machine":        {"GET", "/oauth/keys", "", []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Site", "same-site"}, 403, "from elsewhere"},
		"a referer from elsewhere":            {"GET", "/oauth/keys", "", append([]string{"Referer", "http://evil.example/"}, chrome...), 403, "from elsewhere"},
		"an origin that is allowed elsewhere": {"GET", "/oauth/keys", "", append([]string{"Origin", "http://gw.example.com:" + port}, chrome...), 403, "from elsewhere"},
		"a name that an attacker chose":       {"GET", "/oauth/keys", "", append([]string{"Host", "evil.example:" + port}, chrome...), 403, "caddy oauth console"},
		"with a referer, which Caddy ignores": {"GET", "/oauth/keys", "", append([]string{"Host", "evil.example:" + port, "Referer", "http://evil.example:" + port + "/"}, chrome...), 403, "caddy oauth console"},
		"and a page calls the browser curl":   {"GET", "/oauth/keys", "", []string{"Host", "evil.example:" + port, "User-Agent", "curl/8.5.0", "Accept-Language", ""}, 403, "caddy oauth console"},
		"a name that Caddy is told of":        {"GET", "/oauth/keys", "", append([]string{"Host", "gw.example.com:" + port, "Origin", "http://gw.example.com:" + port}, chrome...), 200, ""},
		"localhost":                           {"GET", "/oauth/keys", "", append([]string{"Host", "localhost:" + port}, chrome...), 200, ""},
		"an IPv6 address":                     {"GET", "/oauth/keys", "", append([]string{"Host", "[::1]:" + port}, chrome...), 200, ""},
		"localhost in capitals":               {"GET", "/oauth/keys", "", append([]string{"Host", "LOCALHOST:" + port}, chrome...), 200, ""},
		"localhost with a dot":                {"GET", "/oauth/keys", "", append([]string{"Host", "localhost.:" + port}, chrome...), 403, "attacker"},
		"an address with a name behind it":    {"GET", "/oauth/keys", "", append([]string{"Host", "127.0.0.1.evil.example:" + port}, chrome...), 403, "attacker"},
		"an origin of no page":                {"GET", "/oauth/keys", "", append([]string{"Origin", "null"}, chrome...), 400, "null"},
		"an origin that is no URL":            {"GET", "/oauth/keys", "", append([]string{"Origin", "file://"}, chrome...), 403, "from elsewhere"},
		"an element of a page":                {"GET", "/oauth/keys", "", []string{"Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Site", "cross-site"}, 400, "Disabling"},
		"a form":                              {"POST", "/oauth/keys/rotate", "", []string{"Content-Type", "text/plain", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Site", "cross-site"}, 403, ""},
		"a header that renames the method":    {"POST", "/oauth/clients/root/batch", body, append([]string{"X-HTTP-Method-Override", "GET", "Origin", ours}, chrome...), 403, "console write"},
		"a WebSocket":                         {"GET", "/oauth/events", "", append([]string{"Upgrade", "websocket", "Connection", "Upgrade", "Origin", ours}, chrome...), 400, "WebSocket"},
		"the page changes":                    {"PUT", put, body, append([]string{"Sec-Fetch-Site", "same-origin", "Origin", ours}, chrome...), 403, "console write"},
		"without fetch metadata":              {"DELETE", put, "", append([]string{"Origin", ours}, chrome...), 403, "console write"},
		"without an origin":                   {"DELETE", put, "", chrome, 403, "console write"},
		"the page asks why":                   {"POST", "/oauth/explain", `{"method":"GET","url":"http://127.0.0.1/x"}`, append([]string{"Sec-Fetch-Site", "same-origin", "Origin", ours}, chrome...), 200, ""},
		"a page elsewhere asks why":           {"POST", "/oauth/explain", `{"method":"GET","url":"http://127.0.0.1/x"}`, append([]string{"Sec-Fetch-Site", "cross-site", "Origin", ours}, chrome...), 403, "from elsewhere"},
		"a command":                           {"PUT", "/oauth/clients/root/by-command", body, []string{"Origin", ours}, 201, ""},
		"curl":                                {"PUT", "/oauth/clients/root/by-curl", body, []string{"User-Agent", "curl/8.5.0"}, 201, ""},
		"curl by another name":                {"GET", "/oauth/keys", "", []string{"Host", "gateway.internal:" + port}, 200, ""},
		"PowerShell":                          {"PUT", "/oauth/clients/root/by-powershell", body, []string{"User-Agent", "Mozilla/5.0 (Windows NT; en-US) PowerShell/7.4"}, 201, ""},
	}
	for name, c := range cases {
		res := a.send(c.method, c.path, c.body, c.headers...)
		if res.StatusCode != c.status || !strings.Contains(res.Body, c.says) {
			t.Errorf("%s: %d %s, want %d", name, res.StatusCode, res.Body, c.status)
		}
	}
	a.must(404, "GET", put, "")

	// With console write, the page changes, and still nobody else does.
	if err := a.loadCaddyfile(strings.Replace(config, "oauth {\n", "oauth {\nconsole write\n", 1)); err != nil {
		t.Fatal(err)
	}
	a.must(201, "PUT", put, body, append([]string{"Sec-Fetch-Site", "same-origin", "Origin", ours}, chrome...)...)
	a.must(403, "DELETE", put, "", append([]string{"Sec-Fetch-Site", "cross-site"}, chrome...)...)
	a.must(415, "POST", put+"/secrets", "{}", append([]string{"Content-Type", "text/plain", "Origin", ours}, chrome...)...)
}

// GET /oauth/routes says of the configuration in force what the command says of a file.
func TestRoutesInForce(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+testClients, managedSite))
	a := admin{startCaddyfile(t, config), address}
	var table struct {
		Sites []struct {
			Rows []struct {
				Paths   []string
				Who     string
				Clients []struct{ ID string }
				Rules   []string
			}
		}
	}
	res := a.must(200, "GET", "/oauth/routes", "")
	if err := json.Unmarshal([]byte(res.Body), &table); err != nil || len(table.Sites) != 1 || res.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%v: %s", err, res.Body)
	}
	found := false
	for _, row := range table.Sites[0].Rows {
		if row.Paths[0] == "/x" {
			found = row.Who == "clients" && len(row.Clients) == 2 && len(row.Rules) == 1 && strings.HasPrefix(row.Rules[0], "Caddyfile:")
		}
	}
	if !found {
		t.Errorf("not as it is: %s", res.Body)
	}
	a.must(405, "POST", "/oauth/routes", "{}")
}
