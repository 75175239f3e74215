package caddyoauth_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/redistest"
)

// listOf returns the IDs that a question has, from all pages of a size.
func (a admin) listOf(query string, limit int) string {
	a.t.Helper()
	var ids []string
	for after := ""; ; {
		page := a.must(200, "GET", fmt.Sprintf("/oauth/clients?limit=%d&after=%s&%s", limit, url.QueryEscape(after), query), "").json(a.t)
		clients, _ := page["clients"].([]any)
		for _, client := range clients {
			ids = append(ids, fmt.Sprint(client.(map[string]any)["id"]))
		}
		if len(clients) > limit {
			a.t.Fatalf("a page of %d clients, want %d at most", len(clients), limit)
		}
		var more bool
		if after, more = page["next"].(string); !more {
			return strings.Join(ids, " ")
		}
	}
}

// day is the beginning of a day that many days from now, as a Caddyfile has it.
func day(n int) string { return time.Now().UTC().AddDate(0, 0, n).Format(time.RFC3339) }

// listedOptions are clients of all kinds, beside the managed ones that a test adds.
func listedOptions() string {
	const scopes = "scopes read\ndefault_scopes read\n}\n"
	return "managed_clients\nlimit failures off\n" +
		"client Quiet {\nsecret_hash " + testHash + "\n" + scopes +
		"client reader {\nsecret_hash " + testHash + "\n" + scopes +
		"client soon {\nsecret_hash " + testHash + " until " + day(5) + "\nsecret_hash " + testHash + " until " + day(100) + "\n" + scopes +
		"client changed {\nsecret_hash " + testHash + " until " + day(-5) + "\nsecret_hash " + testHash + " until " + day(100) + "\n" + scopes +
		"client over {\nsecret_hash " + testHash + " until " + day(-5) + "\n" + scopes +
		"client over-and-off {\ndisabled\nsecret_hash " + testHash + " until " + day(-5) + "\n" + scopes +
		"realm beta {\nclient reader {\nsecret_hash " + testHash + "\n" + scopes + "}\n"
}

// The list has the clients that are asked for, whatever the pages are like, and refuses questions that it
// might misunderstand.
func TestListFilters(t *testing.T) {
	redis := redistest.Start(t)
	config, address := withAdmin(t, caddyfileOf(at(redis.Addr)+listedOptions(), "oauth_server\nreverse_proxy BACKEND"))
	g := startCaddyfile(t, config)
	a := admin{g, address}
	for _, id := range []string{"m-one", "m-two", "reader-of-a-partner"} {
		a.must(201, "PUT", "/oauth/clients/root/"+id, `{"scopes":["read"]}`)
	}
	a.must(201, "PUT", "/oauth/clients/root/m-off", `{"scopes":["read"],"disabled":true}`)
	a.must(200, "POST", "/oauth/clients/root/m-two/secrets", fmt.Sprintf(`{"others_until":%q}`, day(2)))
	const all = "Quiet changed m-off m-one m-two over over-and-off reader reader-of-a-partner soon"
	wants := func(query, want string) {
		t.Helper()
		for _, limit := range []int{1, 3, 1000} {
			if got := a.listOf(query, limit); got != want {
				t.Errorf("%s, %d at a time: %q, want %q", query, limit, got, want)
			}
		}
	}
	wants("", "reader "+all)
	wants("realm=root", all)
	wants("search=READER", "reader reader reader-of-a-partner")
	wants("search=quiet&realm=root", "Quiet")
	wants("state=disabled", "m-off over-and-off")
	wants("state=active&managed=true", "m-one m-two reader-of-a-partner")
	wants("managed=false&search=o", "over over-and-off soon")
	wants("expiring=30d", "m-two over soon")
	wants("expiring=1d", "over")
	wants("expiring=200d&managed=false", "changed over soon")
	wants("search=nobody", "")

	// Of who has done nothing since that is known, nobody can tell how long before.
	caddyoauth.WriteUses()
	wants("unused=90d", "")
	if since, _ := a.must(200, "GET", "/oauth/clients?unused=90d", "").json(t)["uses_since"].(string); !strings.HasPrefix(since, time.Now().UTC().Format("2006-01-02T")) {
		t.Errorf("uses are known since %q", since)
	}
	for _, realm := range []string{"root", "beta"} {
		redis.CLI("hset", "caddy-oauth:{realm:"+realm+"}:uses", "", fmt.Sprint(time.Now().AddDate(0, 0, -200).UnixMilli()))
	}
	long := time.Now().AddDate(0, 0, -100)
	if err := caddyoauth.KeepUses("root", map[string]oauth.Use{
		"Quiet": {Token: long}, "changed": {Seen: long}, "m-one": {Seen: long}, "over": {Credentials: map[string]time.Time{"x": time.Now()}}, "soon": {Token: long, Seen: time.Now()},
	}); err != nil {
		t.Fatal(err)
	}
	wants("unused=90d", "reader Quiet changed m-one over-and-off reader")
	wants("unused=90d&managed=true", "m-one") // the others have just been added
	wants("unused=150d&realm=root", "over-and-off reader")
	wants("unused=300d", "")
	g.token("reader")
	wants("unused=90d&search=reader", "reader") // that of the other realm
	if res := a.must(200, "GET", "/oauth/clients?search=quiet", ""); strings.Contains(res.Body, "uses_since") {
		t.Errorf("nobody asked about uses: %s", res.Body)
	}

	for query, says := range map[string]string{
		"unusd=90d":               "unknown parameter 'unusd' (known: after, expiring, limit, managed, realm, search, state, unused)",
		"unused=often":            "unused must be a duration, such as 90d",
		"expiring=-1h":            "expiring must be a duration",
		"unused=0s":               "unused must be a duration",
		"state=gone":              "state must be active, disabled or unusable",
		"managed=1":               "managed must be true or false",
		"state=active&state=gone": "there is more than one state",
		"unused=90d;managed=true": "the query can't be read", // and would list all
		"state=%zz":               "the query can't be read",
		"unused=":                 "unused is empty",
	} {
		if res := a.must(400, "GET", "/oauth/clients?"+query, ""); !strings.Contains(res.Body, says) {
			t.Errorf("%s: %s, want %s", query, res.Body, says)
		}
	}
	after := fmt.Sprint(a.must(200, "GET", "/oauth/clients?unused=90d&limit=1", "").json(t)["next"])
	a.must(400, "GET", "/oauth/clients?unused=150d&limit=1&after="+after, "")
}

// The list is a table that fits a terminal, and says what it can't know.
func TestListCommand(t *testing.T) {
	redis := redistest.Start(t)
	long := "client " + strings.Repeat("long", 20) + " {\nsecret_hash " + testHash + " until " + day(3) + "\nscopes read\n}\n"
	config, address := withAdmin(t, caddyfileOf(at(redis.Addr)+listedOptions()+"realm "+strings.Repeat("wide", 10)+" {\n"+long+"}\n", "oauth_server\nreverse_proxy BACKEND"))
	g := startCaddyfile(t, config)
	run := func(args ...string) (stdout, stderr string) {
		t.Helper()
		stdout, stderr, err := caddyCLI(t, "", append(append([]string{"client"}, args...), "--address", address)...)
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return stdout, stderr
	}
	g.token("reader")
	stdout, stderr := run("list")
	today := time.Now().Format(time.DateOnly)
	for _, line := range []string{
		"REALM       CLIENT                     FROM    STATE     USED        ENDS",
		"root        reader                     config  active    " + today + "  -",
		"root        over                       config  active    -           over",
		"root        over-and-off               config  disabled  -           over",
		"widewidew…  longlonglonglonglonglong…  config  active    -           " + time.Now().AddDate(0, 0, 3).Format(time.DateOnly),
	} {
		if !strings.Contains(stdout, line+"\n") {
			t.Errorf("there is no line %q in\n%s", line, stdout)
		}
	}
	for line := range strings.Lines(stdout) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("a line has %d characters: %s", n, line)
		}
	}
	if stderr != "" {
		t.Errorf("it says %q", stderr)
	}
	if stdout, _ := run("list", "--realm", "root", "--search", "OVER", "--state", "active", "--managed", "false", "--expiring", "1d"); strings.Count(stdout, "\n") != 2 || !strings.Contains(stdout, "over") {
		t.Errorf("with all options:\n%s", stdout)
	}
	if stdout, stderr := run("list", "--unused", "90d"); strings.Count(stdout, "\n") != 1 || !strings.Contains(stderr, "It is not known yet what clients do") {
		t.Errorf("before anything was kept:\n%s%s", stdout, stderr)
	}
	caddyoauth.WriteUses()
	if stdout, stderr := run("list", "--unused", "90d", "--json"); !strings.HasPrefix(stdout, `{"clients":[],"uses_since":`) || !strings.Contains(stderr, "What clients do is known since "+today) {
		t.Errorf("after a day:\n%s%s", stdout, stderr)
	}
	if _, _, err := caddyCLI(t, "", "client", "list", "--unused", "often", "--address", address); err == nil || !strings.Contains(err.Error(), "unused must be a duration") {
		t.Errorf("a duration that is none: %v", err)
	}
	stdout, _ = run("show", "reader")
	for _, says := range []string{", last used " + today, "use: last authenticated " + today, " by client_secret_basic with ", ", last token " + today, ", from 127.0.0.0/24\n"} {
		if !strings.Contains(stdout, says) {
			t.Errorf("there is no %q in\n%s", says, stdout)
		}
	}
}
