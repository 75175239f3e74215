package caddyoauth_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"image/png"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/caddyoauth/gateway/caddyoauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/porttest"
)

var updateConsole = flag.Bool("update-console", false, "write the pictures of the console into docs/images")

// consolePage is the console in a real browser without a window. Everything that the browser asks for
// and that the page says on the browser's own console is kept.
type consolePage struct {
	t    *testing.T
	ctx  context.Context
	base string

	mu       sync.Mutex
	asked    []string // URLs
	messages []chromedp.ConsoleMessage
}

// browserOf opens the console of a gateway.
func browserOf(t *testing.T, adminAddress string) *consolePage {
	t.Helper()
	path := ""
	for _, name := range []string{"google-chrome-stable", "google-chrome", "chrome", "chromium", "chromium-browser"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("there is no Chromium and no Chrome on PATH; install one to run this test")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:len(chromedp.DefaultExecAllocatorOptions):len(chromedp.DefaultExecAllocatorOptions)],
		chromedp.ExecPath(path), chromedp.Flag("no-proxy-server", true), chromedp.Flag("lang", "en-US"),
		// What the browser itself would like to fetch is elsewhere, and can't be found.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, end := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(end)
	ctx, end = chromedp.NewContext(ctx)
	t.Cleanup(end)
	p := &consolePage{t: t, ctx: ctx, base: "http://" + adminAddress + "/oauth/console/"}
	messages := chromedp.Console(ctx)
	go func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			p.mu.Lock()
			p.messages = append(p.messages, m)
			p.mu.Unlock()
		}
	}()
	p.must(chromedp.Listen(ctx, func(event any) {
		if e, ok := event.(*network.EventRequestWillBeSent); ok {
			p.mu.Lock()
			p.asked = append(p.asked, e.Request.URL)
			p.mu.Unlock()
		}
	}))
	_, err := chromedp.Call(ctx, network.Enable, network.EnableParams{})
	p.must(err)
	p.look(1440, 900, "light")
	p.load()
	return p
}

func (p *consolePage) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// load loads the page anew.
func (p *consolePage) load() {
	p.t.Helper()
	p.must(chromedp.Do(p.ctx, chromedp.Navigate("about:blank"), chromedp.Navigate(p.base)))
	p.wait("document.querySelector('#state').textContent !== ''")
}

// look sets the size of the window and the colours that the user prefers.
func (p *consolePage) look(width, height int64, colours string) {
	p.t.Helper()
	_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: colours}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}})
	p.must(err)
	p.must(chromedp.Do(p.ctx, chromedp.EmulateViewport(width, height)))
}

// eval returns what an expression is in the page; a promise is waited for.
func eval[T any](p *consolePage, expression string) T {
	p.t.Helper()
	value, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// wait waits until an expression is true in the page.
func (p *consolePage) wait(expression string) {
	p.t.Helper()
	done := false
	defer func() {
		if !done {
			text, _ := chromedp.Run(p.ctx, chromedp.Evaluate[string]("document.body.innerText"))
			p.t.Logf("the page has %q", text)
		}
	}()
	waitUntil(p.t, expression, func() bool {
		is, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool]("Boolean("+expression+")"))
		return err == nil && is // an error may mean that the page has just been loaded anew
	})
	done = true
}

const nothingLoads = "document.querySelector('[aria-busy]') === null"

// open goes to a screen and waits until all of it is there.
func (p *consolePage) open(hash string) {
	p.t.Helper()
	eval[bool](p, fmt.Sprintf("new Promise((done) => { if (location.hash === %[1]q) done(true); addEventListener('hashchange', () => setTimeout(() => done(true)), { once: true }); location.hash = %[1]q })", hash))
	p.wait(nothingLoads)
}

// says waits until the page has a text.
func (p *consolePage) says(text string) {
	p.t.Helper()
	p.wait(fmt.Sprintf("document.body.innerText.includes(%q)", text))
}

// press presses keys, one after the other.
func (p *consolePage) press(keys string) {
	p.t.Helper()
	p.must(chromedp.Do(p.ctx, chromedp.KeyEvent(keys)))
}

// focused describes what has the focus.
func (p *consolePage) focused() string {
	p.t.Helper()
	return eval[string](p, `((e) => e === null || e === document.body ? "" : (e.getAttribute("aria-label") ?? e.closest("label")?.firstElementChild?.textContent ?? e.textContent).trim())(document.activeElement)`)
}

// tabTo presses Tab until something of that name has the focus.
func (p *consolePage) tabTo(name string) {
	p.t.Helper()
	var seen []string
	for range 200 {
		p.press(kb.Tab)
		at := p.focused()
		if strings.HasPrefix(at, name) {
			return
		}
		seen = append(seen, at)
	}
	p.t.Fatalf("Tab never comes to %q, but to %q", name, seen)
}

// noDialog waits until no dialog is open.
func (p *consolePage) noDialog() {
	p.t.Helper()
	p.wait("document.querySelector('dialog') === null")
	p.wait(nothingLoads)
}

// pageFaults is what the page itself can be asked about: what sticks out of the window or is cut off,
// text and borders of controls that are hard to see, and IDs that are there twice.
const pageFaults = `(() => {
	const faults = [];
	const of = (e) => e.tagName.toLowerCase() + "." + (e.getAttribute("class") ?? "") + " " + JSON.stringify((e.textContent ?? "").trim().slice(0, 50));
	const colour = (c) => { const n = c.match(/[\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
	const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
	const ground = (e) => {
		const all = [];
		for (let at = e; at; at = at.parentElement) all.push(colour(getComputedStyle(at).backgroundColor));
		return all.reverse().reduce((under, top) => over(top, under), matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0, 1] : [255, 255, 255, 1]);
	};
	const light = (c) => { const l = c.slice(0, 3).map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)); return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
	const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((m, n) => n - m); return (x + 0.05) / (y + 0.05); };
	const wanted = (e, what, least, c, on) => { const is = contrast(over(c, on), on); if (is < least) faults.push(what + " has a contrast of " + is.toFixed(2) + ": " + of(e)); };
	const seen = (e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && !e.closest(".hidden, .skip");

	if (document.documentElement.scrollWidth > innerWidth) faults.push("the page is " + document.documentElement.scrollWidth + " wide in a window of " + innerWidth);
	const dialog = document.querySelector("dialog");
	const walker = document.createTreeWalker(dialog ?? document.body, NodeFilter.SHOW_TEXT);
	while (walker.nextNode()) {
		const node = walker.currentNode, e = node.parentElement;
		if (node.data.trim() === "" || !seen(e) || ["OPTION", "STYLE", "SCRIPT", "NOSCRIPT"].includes(e.tagName)) continue;
		const range = document.createRange();
		range.selectNodeContents(node);
		const style = getComputedStyle(e);
		wanted(e, "text", 4.5, colour(e.namespaceURI.endsWith("svg") ? style.fill : style.color), ground(e));
		for (const r of range.getClientRects()) {
			if (r.width === 0 || r.height === 0 || getComputedStyle(e.closest("table thead") ?? e).clipPath !== "none") continue;
			if (r.left < -0.5 || r.right > innerWidth + 0.5) faults.push("text sticks out of the window: " + of(e));
			for (let at = e; at && at !== document.documentElement; at = at.parentElement) {
				const s = getComputedStyle(at), b = at.getBoundingClientRect();
				if (s.overflowX === "auto") break;
				if ((["hidden", "clip"].includes(s.overflowX) || at.matches(".panel, dialog, .notice, .bar, button")) && (r.left < b.left - 1 || r.right > b.right + 1)) faults.push("text is cut off, or sticks out of what it is in: " + of(e));
			}
		}
	}
	for (const e of (dialog ?? document).querySelectorAll("input, select, textarea, button")) {
		if (!seen(e) || e.disabled || ["radio", "checkbox"].includes(e.type)) continue;
		const style = getComputedStyle(e);
		if (e.tagName !== "BUTTON") wanted(e, "what is typed", 4.5, colour(style.color), ground(e));
		if (parseFloat(style.borderTopWidth) > 0) wanted(e, "the border", 3, colour(style.borderTopColor), ground(e.parentElement));
	}
	const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
	for (const id of ids.filter((id, i) => ids.indexOf(id) !== i && !id.endsWith("-pattern"))) faults.push("there are two elements with the ID " + id);
	if (document.querySelectorAll("h1").length !== 1) faults.push("the page has not one main heading");
	for (const e of document.querySelectorAll("[style], [onclick], [onerror], [onload]")) faults.push("style or script in an attribute: " + of(e));
	return [...new Set(faults)];
})()`

// check looks for faults of what is shown.
func (p *consolePage) check(what string) {
	p.t.Helper()
	for _, fault := range eval[[]string](p, pageFaults) {
		p.t.Errorf("%s: %s", what, fault)
	}
	tree, err := chromedp.Call(p.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	p.must(err)
	text := func(v *accessibility.Value) (s string) {
		if v != nil {
			_ = json.Unmarshal(v.Value, &s)
		}
		return s
	}
	named := []string{"button", "link", "textbox", "searchbox", "combobox", "checkbox", "radio", "dialog", "img", "image", "table", "navigation", "heading", "columnheader", "rowheader", "group", "Date"}
	found := 0
	for _, node := range tree.Nodes {
		role := text(node.Role)
		if node.Ignored || !slices.Contains(named, role) {
			continue
		}
		found++
		if text(node.Name) == "" && role != "group" {
			p.t.Errorf("%s: a %s has no name", what, role)
		}
	}
	if found < 3 {
		p.t.Errorf("%s: those who can't see the page get only %d parts of it", what, found)
	}
}

// checkTab goes through what is shown with Tab alone. All that can be used must be reached, and must
// look different then.
func (p *consolePage) checkTab(what string) {
	p.t.Helper()
	// The page itself notes where the focus comes to: on the way from the end to the beginning, which
	// leads through the browser, it may move only after the key has been answered.
	eval[bool](p, `(() => {
		document.activeElement?.blur();
		getSelection().removeAllRanges();
		removeEventListener("focusin", window.visit);
		window.stops = new Set();
		window.unseen = [];
		window.round = false;
		window.place = (e) => (e.parentElement ? place(e.parentElement) + "/" + [...e.parentElement.children].indexOf(e) : "");
		window.visit = ({ target }) => {
			if (stops.size > 1 && place(target) === stops.values().next().value) round = true;
			const s = getComputedStyle(target);
			if (s.outlineStyle === "none" || parseFloat(s.outlineWidth) < 2) unseen.push(target.outerHTML.slice(0, 80));
			stops.add(place(target)); // the element itself may be replaced meanwhile
		};
		addEventListener("focusin", visit);
		return true;
	})()`)
	for range 400 {
		p.press(kb.Tab)
		if eval[bool](p, "round") {
			break
		}
	}
	missing := eval[[]string](p, `[...(document.querySelector("dialog") ?? document).querySelectorAll("a[href], button:not([disabled]), input, select, textarea, summary, [tabindex='0']")]
		.filter((e) => e.checkVisibility() && !stops.has(place(e)) && !(e.type === "radio" && !e.checked)).map((e) => e.outerHTML.slice(0, 120))`)
	for _, element := range missing {
		p.t.Errorf("%s: Tab does not come to %s", what, element)
	}
	for _, element := range eval[[]string](p, "unseen") {
		p.t.Errorf("%s: with the focus, it looks as without: %s", what, element)
	}
}

// The names by which hostile callers would like to get into the page.
const (
	hostileID   = `<img src=x onerror=document.title='owned'>`
	hostilePath = "/x/%3Cimg%20src=x%20onerror=document.title='owned'%3E/%E2%80%AEgnp.exe%07"
)

var longID = strings.Repeat("long-", 50) + "client"

// An operator sees and does by the console, in a real browser, what there is to see and do.
func TestConsoleInABrowser(t *testing.T) {
	away := "http://" + porttest.Address(t) + "/introspect"
	site := "oauth_server\nhandle /x* {\noauth_protect {\nscopes read\n}\nreverse_proxy BACKEND\n}\n" +
		"handle /admin* {\noauth_protect {\nscopes admin\n}\nreverse_proxy BACKEND\n}\nhandle /elsewhere {\noauth_protect {\nsource local\nsource introspect " + away + "\n}\nreverse_proxy BACKEND\n}\nhandle /open {\nrespond ok\n}"
	options := "store bbolt " + filepath.Join(t.TempDir(), "tokens.db") + "\nencryption_key {file." + encryptionKeyFile(t) + "}\ntoken_format sealed\n" + managedOptions
	config, address := withAdmin(t, caddyfileOf(options, site))
	_, port, _ := strings.Cut(porttest.Address(t), ":")
	config = strings.Replace(config, "\n:0 {", "\n:"+port+" {", 1) // where a refused request was sent is known by that
	config = strings.Replace(config, "admin "+address, "admin "+address+" {\norigins "+address+" \"\"\n}", 1)
	writable := strings.Replace(config, "oauth {\n", "oauth {\nconsole write\n", 1)
	g := startCaddyfile(t, writable)
	a := admin{g, address}
	for _, id := range []string{hostileID, longID, "batch"} {
		a.must(201, "PUT", "/oauth/clients/root/"+url.PathEscape(id), `{"scopes":["read"]}`)
	}
	p := browserOf(t, address)

	hostile := func() { g.do(g.request("GET", hostilePath, "")) }
	explainIt := "#/explain?method=GET&url=" + url.QueryEscape(g.URL+"/x")
	screens := []struct{ hash, title, says string }{
		{"#/live", "Live", "Refusals as they happen"},
		{"#/clients", "Clients", "batch"},
		{"#/clients/root/reader", "reader", "in the configuration"},
		{"#/clients/root/writer", "writer", "0 checks at this gateway"},
		{"#/clients/root/batch", "batch", "New secret"},
		{"#/clients/root/" + url.PathEscape(hostileID), hostileID, "New secret"},
		{"#/clients/root/" + longID, longID, "New secret"},
		{"#/routes", "Routes", "OPEN"},
		{explainIt, "Explain", "It is refused with 401: missing"},
		{explainIt + "&client=reader", "Explain", "It passes"},
		{"#/keys", "Keys", "seals tokens"},
		{"#/sources", "Sources and store", "bbolt"},
		{"#/nowhere", "Not found", "Go to Live"},
	}
	t.Run("every screen", func(t *testing.T) {
		p.t = t
		g.get("/elsewhere", "some-token-of-another-server")
		p.open("#/live")
		p.says("connected")
		hostile()
		p.says("%3Cimg%20src=x")
		for _, colours := range []string{"light", "dark"} {
			for _, width := range []int64{400, 700, 1000, 1280} {
				p.look(width, 900, colours)
				for _, s := range screens {
					p.open(s.hash)
					p.says(s.says)
					what := fmt.Sprintf("%s, %s, %d pixels", s.hash, colours, width)
					if title := eval[string](p, "document.title"); title != s.title+" – OAuth gateway" && len(s.title) < 200 {
						t.Errorf("%s: the title is %q", what, title)
					}
					p.check(what)
				}
			}
		}
		p.look(1440, 900, "light")
	})

	t.Run("by keyboard alone", func(t *testing.T) {
		p.t = t
		for _, s := range screens {
			p.open(s.hash)
			p.says(s.says)
			p.checkTab(s.hash)
		}
	})

	t.Run("a client from its beginning to its end", func(t *testing.T) {
		p.t = t
		p.open("#/clients")
		p.tabTo("Add client")
		p.press(kb.Enter)
		p.wait("document.querySelector('dialog')")
		p.check("adding a client")
		p.checkTab("adding a client")
		p.press(kb.Escape)
		p.noDialog()
		if at := p.focused(); at != "Add client" {
			t.Errorf("after the dialog, the focus is at %q", at)
		}
		p.press(kb.Enter)
		p.wait("document.querySelector('dialog')")
		p.press("nightly" + kb.Tab)
		p.press("read" + kb.Enter)
		secret := p.takeSecret()
		p.says("nightly")
		token := g.tokenBy("nightly", secret)
		g.wants("a token of the client that the console has added", token, 200)

		// The ID is taken now.
		p.open("#/clients")
		p.tabTo("Add client")
		p.press(kb.Enter + "nightly" + kb.Enter)
		p.says("has a client of this ID already")
		p.press(kb.Escape)
		p.noDialog()

		// Another secret.
		p.open("#/clients/root/nightly")
		p.tabTo("New secret")
		p.press(kb.Enter)
		p.wait("document.querySelector('dialog')")
		p.check("making a secret")
		p.checkTab("making a secret")
		p.tabTo("Make the secret")
		p.press(kb.Enter)
		second := p.takeSecret()
		g.tokenBy("nightly", second)
		g.tokenBy("nightly", secret)
		p.wait("document.querySelectorAll('section:first-of-type table tbody tr').length === 2")

		// Somebody else changes the client meanwhile.
		p.tabTo("Change settings")
		p.press(kb.Enter)
		p.wait("document.querySelector('dialog')")
		a.must(200, "PUT", "/oauth/clients/root/nightly", `{"scopes":["read","write"]}`)
		p.tabTo("Save")
		p.press(kb.Enter)
		p.says("Somebody else has changed the client")
		p.check("a change that came too late")
		p.tabTo("Show the client as it is now")
		p.press(kb.Enter)
		p.noDialog()
		p.says("write")
		p.tabTo("Change settings")
		p.press(kb.Enter)
		p.wait("document.querySelector('dialog')")
		eval[bool](p, `((e) => { e.value = JSON.stringify({ ...JSON.parse(e.value), audience: ["https://api.example.com"] }); return true })(document.querySelector("dialog textarea"))`)
		p.tabTo("Save")
		p.press(kb.Enter)
		p.noDialog()
		p.says("https://api.example.com")

		// All of its tokens end.
		token = g.tokenBy("nightly", secret)
		g.wants("a token", token, 200)
		p.tabTo("Revoke tokens")
		p.press(kb.Enter)
		p.says("Revoke all its tokens?")
		p.check("a question")
		if at := p.focused(); at != "Cancel" {
			t.Errorf("a question begins at %q", at)
		}
		p.press(kb.Enter)
		p.noDialog()
		g.wants("after Cancel", token, 200)
		p.tabTo("Revoke tokens")
		p.press(kb.Enter + kb.Tab + kb.Enter)
		p.noDialog()
		g.wants("a token that was revoked", token, 401)

		token = g.tokenBy("nightly", secret)
		p.tabTo("Disable")
		p.press(kb.Enter + kb.Tab + kb.Enter)
		p.noDialog()
		p.says("disabled")
		g.wants("a token of a disabled client", token, 401)
		p.tabTo("Enable")
		p.press(kb.Enter)
		p.wait("!document.body.innerText.includes('disabled')")
		g.tokenBy("nightly", secret)

		p.tabTo("Remove secret")
		p.press(kb.Enter + kb.Tab + kb.Enter)
		p.noDialog()
		p.wait("document.querySelectorAll('section:first-of-type table tbody tr').length === 1")

		p.tabTo("Remove")
		p.press(kb.Enter + "nightl" + kb.Enter)
		a.must(200, "GET", "/oauth/clients/root/nightly", "")
		p.press("y" + kb.Enter)
		p.wait("location.hash === '#/clients'")
		a.must(404, "GET", "/oauth/clients/root/nightly", "")
	})

	t.Run("keys that were stolen", func(t *testing.T) {
		p.t = t
		token := g.token("reader", "read")
		p.open("#/keys")
		keys := "document.querySelectorAll('main tbody tr').length"
		p.wait(keys + " === 1")
		p.tabTo("Make next keys")
		p.press(kb.Enter)
		p.says("No token is refused.")
		p.tabTo("Make keys")
		p.press(kb.Enter)
		p.noDialog()
		p.wait(keys + " === 2")
		g.wants("a token, with the next keys", token, 200)
		p.tabTo("Withdraw keys")
		p.press(kb.Enter)
		p.check("withdrawing keys")
		p.press("root" + kb.Enter)
		p.noDialog()
		p.wait(keys + " === 1")
		g.wants("a token of a key that was withdrawn", token, 401)
	})

	t.Run("from a refusal to its explanation", func(t *testing.T) {
		p.t = t
		caddyoauth.WriteEvents() // those of before don't come any more
		p.open("#/live")
		p.says("connected")
		p.tabTo("Pause")
		p.press(kb.Enter)
		g.get("/x/paused", "")
		p.says("Paused, 1 new")
		p.press(kb.Enter)
		p.says("/x/paused")
		token := g.token("writer", "write")
		g.get("/x/of-writer", token)
		p.says("/x/of-writer")
		p.tabTo("GET")
		p.press(kb.Enter)
		p.says("the best token that the client can fetch gets it through")
		p.check("a refusal that need not be")
		p.must(chromedp.Do(p.ctx, chromedp.NavigateBack()))
		p.says("/x/of-writer")
		refused := g.request("GET", "/admin/of-writer", "", "Authorization", "Bearer "+token)
		refused.Host = "api.example.com:" + port
		g.do(refused)
		p.says("api.example.com:" + port + "/admin/of-writer")
		p.tabTo("GET")
		p.press(kb.Enter)
		p.says("It is refused with 403: scope")
		p.says("What to do:")
		if explained := eval[string](p, "document.querySelectorAll('main input')[1].value"); explained != "http://"+refused.Host+"/admin/of-writer" {
			t.Errorf("what is explained is %q", explained)
		}
		p.must(chromedp.Do(p.ctx, chromedp.NavigateBack()))
		p.says("/x/of-writer")

		// While nobody looks at the page, it asks for nothing.
		const hide = `(() => { Object.defineProperty(document, "hidden", { value: %t, configurable: true }); document.dispatchEvent(new Event("visibilitychange")); return true })()`
		eval[bool](p, fmt.Sprintf(hide, true))
		g.get("/x/unseen", "")
		caddyoauth.WriteEvents()
		eval[bool](p, fmt.Sprintf(hide, false))
		p.says("connected")
		g.get("/x/seen-again", "")
		p.says("/x/seen-again")
		if eval[bool](p, "document.body.innerText.includes('/x/unseen')") {
			t.Error("the page listens while it is hidden")
		}

		// A token stays where it was pasted.
		pasted := g.token("reader", "read")
		p.open("#/explain?method=GET&url=" + url.QueryEscape(g.URL+"/x"))
		eval[bool](p, `(() => { document.querySelector("[value=token]").click(); return true })()`)
		p.must(chromedp.Do(p.ctx, chromedp.SendKeys(chromedp.CSS("input[type=password]"), pasted+kb.Enter)))
		p.says("It passes")
		p.keepsNothing(pasted)
	})

	t.Run("in a hurry", func(t *testing.T) {
		p.t = t
		for _, hash := range []string{"#/constructor", "#/clients/root", "#/clients/../keys", "#/clients/root/..", "#/clients/root/batch/secrets", "#/keys/root"} {
			p.open("#/live")
			p.open(hash)
			p.says("There is no such screen.")
		}
		for _, screen := range []string{"#/clients", "#/routes"} {
			p.open(screen)
			p.must(chromedp.Do(p.ctx, chromedp.SendKeys(chromedp.CSS("input[type=search]"), "x")))
			p.open("#/keys")
			if at := eval[string](p, "new Promise((done) => setTimeout(() => done(location.hash), 400))"); at != "#/keys" {
				t.Errorf("a search that nobody waited for leads from %s to %s", screen, at)
			}
		}
		// What is kept for a way back to the page has no secrets.
		p.open("#/explain")
		eval[bool](p, `(() => { document.querySelector("input[type=password]").value = "secret"; return true })()`)
		if kept := eval[string](p, `(() => { dispatchEvent(new Event("pagehide")); return document.querySelector("input[type=password]").value })()`); kept != "" {
			t.Errorf("a page that was left keeps the token %q", kept)
		}
		p.open("#/clients")
		p.tabTo("Add client")
		p.press(kb.Enter)
		if !eval[bool](p, `(() => { const was = document.querySelector("dialog"); dispatchEvent(new Event("pagehide")); return was !== null && was.textContent === "" && !was.isConnected })()`) {
			t.Error("a page that was left keeps its dialog")
		}
		// The last minute is the one in course.
		eval[bool](p, `(() => {
			const real = fetch;
			window.fetch = (url, request) => {
				if (!String(url).endsWith("/oauth/live")) return real(url, request);
				window.fetch = real;
				return Promise.resolve(new Response(JSON.stringify({ now: "2026-01-02T12:01:30Z", step_seconds: 60, series: [] })));
			};
			return true;
		})()`)
		p.open("#/live")
		eval[bool](p, `(() => { document.querySelector("details.figures").open = true; return true })()`)
		p.wait(`document.querySelector("details.figures tbody th")`)
		if minute := eval[string](p, `document.querySelector("details.figures tbody th").textContent`); !strings.HasSuffix(minute, ":01") {
			t.Errorf("at half past 12:01, the last minute is %s", minute)
		}
	})

	t.Run("only looking", func(t *testing.T) {
		p.t = t
		p.must(g.loadCaddyfile(config))
		p.load()
		for _, hash := range []string{"#/clients", "#/clients/root/batch"} {
			p.open(hash)
			p.says("This page only shows.")
			if buttons := eval[[]string](p, "[...document.querySelectorAll('main button')].map((e) => e.textContent)"); len(buttons) > 0 {
				t.Errorf("%s has %q", hash, buttons)
			}
			p.check(hash + ", only looking")
		}
	})

	t.Run("a gateway that is gone", func(t *testing.T) {
		p.t = t
		p.open("#/keys")
		p.must(g.loadCaddyfile(strings.Replace(config, "admin "+address, "admin "+porttest.Address(t), 1)))
		p.open("#/clients")
		p.says("The gateway doesn't answer.")
		p.check("a gateway that is gone")
		p.must(g.loadCaddyfile(config))
		p.tabTo("Try again")
		p.press(kb.Enter)
		p.says("batch")
	})

	p.t = t
	p.saysNothing()
	if *updateConsole {
		takePictures(p, a)
	}
}

// takeSecret returns the secret that is shown, and closes its dialog. It is nowhere then.
func (p *consolePage) takeSecret() string {
	p.t.Helper()
	p.wait("document.querySelector('dialog .secret')")
	p.check("a new secret")
	secret := eval[string](p, "document.querySelector('dialog .secret').textContent")
	p.press(kb.Escape)
	p.noDialog()
	p.keepsNothing(secret)
	return secret
}

// keepsNothing checks that the page doesn't keep a text.
func (p *consolePage) keepsNothing(text string) {
	p.t.Helper()
	if kept := eval[string](p, `[document.documentElement.outerHTML, location.href, JSON.stringify(history.state), JSON.stringify({ ...localStorage }), JSON.stringify({ ...sessionStorage }), document.cookie, document.title].join("\n")`); strings.Contains(kept, text) {
		p.t.Error("the page keeps a secret")
	}
}

// saysNothing checks that the browser had nothing to complain about, such as a policy that was broken,
// and that the page was asked for by nobody else than the gateway.
func (p *consolePage) saysNothing() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.messages {
		// The test makes some answers fail; the browser says so.
		if m.Source == "network" && strings.HasPrefix(m.Text, "Failed to load resource") {
			continue
		}
		p.t.Errorf("the browser says: %s %s", m, m.URL)
	}
	for _, asked := range p.asked {
		if asked != "about:blank" && !strings.HasPrefix(asked, "data:") && !strings.HasPrefix(asked, strings.TrimSuffix(p.base, "console/")) {
			p.t.Errorf("the page asks %s", asked)
		}
	}
	if len(p.asked) < 20 {
		p.t.Errorf("only %d requests were seen", len(p.asked))
	}
}

// pictured is the configuration of the pictures.
const pictured = `{
	admin ADMIN {
		origins ADMIN ""
	}
	persist_config off
	skip_install_trust
	auto_https off
	grace_period 1s
	oauth {
		console write
		store bbolt FILE
		encryption_key {file.KEY}
		token_format sealed
		managed_clients
		client erp {
			secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
			scopes orders:read orders:write invoices:read
		}
		client reporting {
			secret_hash $sha256$ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0
			scopes orders:read
		}
	}
}
http://api.example.com:8080 {
	bind 127.0.0.1
	oauth_server
	handle /orders* {
		oauth_protect {
			on GET HEAD {
				scopes orders:read
			}
			on * {
				scopes orders:write
			}
		}
		reverse_proxy BACKEND
	}
	handle /invoices* {
		oauth_protect {
			scopes invoices:read
		}
		reverse_proxy BACKEND
	}
	handle /health {
		respond ok
	}
}
`

// takePictures takes the pictures for the documents. What they show is the work of a real gateway, but
// for the figures of the last hour, which would take one.
func takePictures(p *consolePage, a admin) {
	t := p.t
	address := strings.TrimSuffix(strings.TrimPrefix(p.base, "http://"), "/oauth/console/")
	config := strings.NewReplacer("ADMIN", address, "FILE", filepath.Join(t.TempDir(), "tokens.db"), "KEY", encryptionKeyFile(t)).Replace(pictured)
	p.must(a.loadCaddyfile(config))
	secrets := map[string]string{"erp": testSecret, "reporting": testSecret}
	for id, settings := range map[string]string{
		"billing": `"scopes":["invoices:read","orders:read"]`, "ci-deploy": `"scopes":["orders:read"]`, "data-lake": `"scopes":["orders:read","invoices:read"]`,
		"invoice-bot": `"scopes":["invoices:read"]`, "kiosk": `"scopes":["orders:read"],"disabled":true`, "nightly-report": `"scopes":["orders:read"],"token_lifetime":"10m"`,
		"partner-acme": `"scopes":["orders:read","orders:write"],"audience":["https://api.example.com"]`, "partner-globex": `"scopes":["orders:read"]`, "warehouse": `"scopes":["orders:read","orders:write"]`,
	} {
		added := a.must(201, "PUT", "/oauth/clients/root/"+id, "{"+settings+"}")
		secrets[id] = fmt.Sprint(added.json(t)["secret"])
	}
	fetch := func(id, scope string) string {
		r := a.request("POST", "/oauth2/access_token", "grant_type=client_credentials&scope="+scope, "Content-Type", "application/x-www-form-urlencoded")
		r.Host = "api.example.com:8080"
		r.SetBasicAuth(id, secrets[id])
		return fmt.Sprint(a.do(r).json(t)["access_token"])
	}
	call := func(id, scope, method, path string) {
		r := a.request(method, path, "", "Authorization", "Bearer "+fetch(id, scope))
		r.Host = "api.example.com:8080"
		a.do(r)
	}
	until := time.Now().AddDate(0, 0, 12).UTC().Format(time.RFC3339)
	a.must(200, "POST", "/oauth/clients/root/partner-acme/secrets", `{"others_until":"`+until+`"}`)
	a.must(200, "POST", "/oauth/clients/root/billing/secrets", `{"until":"`+time.Now().AddDate(1, 0, 0).UTC().Format(time.RFC3339)+`","others_retire_unused":"168h"}`)

	p.look(1280, 1080, "light")
	p.load()
	eval[bool](p, `(() => {
		const wave = (base, spread, seed) => Array.from({ length: 60 }, (_, i) => Math.max(0, Math.round(base * (1 + 0.3 * Math.sin((i + seed) / 9)) + spread * Math.sin(i * i * seed))));
		const burst = (n) => Array.from({ length: 60 }, (_, i) => (i > 38 && i < 46 ? n : i > 45 ? Math.round(n / 8) : 0));
		const series = [["route", "ok", "", wave(840, 90, 3)], ["route", "insufficient_scope", "scope", burst(150)], ["route", "invalid_token", "expired", wave(14, 9, 5)],
			["route", "missing_token", "missing", wave(6, 5, 7)], ["route", "temporarily_unavailable", "outage", burst(40).map((n, i) => (i < 43 ? n : 0))],
			["token", "ok", "", wave(42, 12, 2)], ["token", "invalid_client", "", wave(2, 2, 4)], ["introspect", "ok", "", wave(9, 4, 6)]];
		const live = { now: new Date(), step_seconds: 60, series: series.map(([kind, outcome, cause, counts]) => ({ realm: "root", kind, outcome, cause, counts })) };
		const real = window.fetch;
		window.fetch = (url, request) => (String(url).endsWith("/oauth/live") ? Promise.resolve(new Response(JSON.stringify(live))) : real(url, request));
		return true;
	})()`)
	p.open("#/keys")
	p.open("#/live")
	p.says("connected")
	for _, c := range [][4]string{
		{"billing", "orders:read", "POST", "/orders/4711"}, {"nightly-report", "orders:read", "GET", "/orders"}, {"data-lake", "orders:read", "GET", "/invoices"},
		{"partner-acme", "orders:write", "PATCH", "/orders/4711"}, {"ci-deploy", "orders:read", "PUT", "/orders/12"}, {"partner-globex", "orders:read", "GET", "/invoices/2026-11"},
		{"erp", "invoices:read", "GET", "/invoices/2026-11"}, {"invoice-bot", "invoices:read", "GET", "/orders/9001"}, {"warehouse", "orders:write", "POST", "/orders/77"},
		{"reporting", "orders:read", "DELETE", "/orders/77"},
	} {
		call(c[0], c[1], c[2], c[3])
	}
	p.says("/orders/77")
	p.says("/invoices/2026-11")
	p.picture("live")
	p.look(400, 860, "dark")
	p.open("#/keys")
	p.open("#/live")
	p.picture("live-narrow")
	p.look(1280, 860, "light")
	p.open("#/clients")
	p.picture("clients")
	p.open("#/explain?method=POST&url=" + url.QueryEscape("http://api.example.com:8080/orders/4711") + "&client=reporting&realm=root&from=127.0.0.1")
	p.says("It is refused")
	p.picture("explain")
	p.open("#/routes")
	p.says("OPEN")
	p.picture("routes")
	p.look(1280, 860, "dark")
	p.open("#/clients/root/billing")
	p.says("retires when unused")
	p.picture("client")
}

// picture writes what the window shows into docs/images.
func (p *consolePage) picture(name string) {
	p.t.Helper()
	p.check("the picture " + name)
	eval[bool](p, "(() => { document.activeElement?.blur(); return true })()")
	taken, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	p.must(err)
	decoded, err := png.Decode(bytes.NewReader(taken))
	p.must(err)
	var smaller bytes.Buffer
	p.must((&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&smaller, decoded))
	folder := filepath.Join(repositoryRoot, "docs", "images")
	p.must(os.MkdirAll(folder, 0o755))
	p.must(os.WriteFile(filepath.Join(folder, "console-"+name+".png"), smaller.Bytes(), 0o644))
}
