// The console: one page over the admin endpoint. It keeps nothing anywhere but in its own memory. What
// it shows was chosen by strangers in part, such as client IDs and paths, so all of it becomes text
// nodes and attributes, and never markup.

// ---- Elements and texts

const svgSpace = "http://www.w3.org/2000/svg";

// el makes an element. Attributes that are functions are listeners; children are nodes or texts, and
// those that are null, undefined or false are left out.
function el(name, attributes = {}, ...children) {
	return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
	return fill(document.createElementNS(svgSpace, name), attributes, children);
}

function fill(node, attributes, children) {
	for (const [key, value] of Object.entries(attributes)) {
		if (typeof value === "function") node.addEventListener(key, value);
		else if (value === true) node.setAttribute(key, "");
		else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
	}
	node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
	return node;
}

// plain shows what a terminal or a reader would obey rather than see, such as a change of the
// direction of writing, and bounds the length.
function plain(text, most = 300) {
	const seen = String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cs}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
	const characters = Array.from(seen);
	return characters.length > most ? characters.slice(0, most).join("") + "…" : seen;
}

// code is a text that was not written for people.
function code(text, most) {
	const seen = plain(text, most);
	return el("code", { class: seen.length > 24 ? "long" : null }, seen);
}

const badge = (kind, text) => el("span", { class: "badge " + kind }, text);

const tag = (text) => el("span", { class: "tag" + (text.length > 24 ? " long" : "") }, plain(text, 120));

const tags = (list) => (list?.length ? el("span", { class: "tags" }, list.map(tag)) : none());

const none = () => el("span", { class: "dim" }, "–");

const number = (n) => Number(n ?? 0).toLocaleString("en-US");

const counted = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;

const two = (n) => String(n).padStart(2, "0");

const clock = (date) => `${two(date.getHours())}:${two(date.getMinutes())}`;

const stamp = (date) => `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(date)}`;

// span says how long a number of seconds is, in the unit that fits.
function span(seconds) {
	for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
		if (seconds >= 1.5 * size || (unit === "day" && seconds >= size)) return counted(Math.round(seconds / size), unit);
	}
	return seconds < 1 ? "a moment" : counted(Math.round(seconds), "second");
}

// moment shows a time from an answer: how far it is from now, and the time itself.
function moment(text, otherwise = "–") {
	const date = text ? new Date(text) : null;
	if (!date || Number.isNaN(date.getTime())) return el("span", { class: "dim" }, otherwise);
	const away = (Date.now() - date.getTime()) / 1000;
	const words = away >= 0 ? `${span(away)} ago` : `in ${span(-away)}`;
	return el("time", { datetime: date.toISOString(), title: date.toISOString() }, `${stamp(date)} `, el("span", { class: "dim nowrap" }, `(${words})`));
}

// shortMoment is moment for a column of a table.
function shortMoment(text, otherwise = "–") {
	const date = text ? new Date(text) : null;
	if (!date || Number.isNaN(date.getTime())) return el("span", { class: "dim" }, otherwise);
	const away = (Date.now() - date.getTime()) / 1000;
	return el("time", { datetime: date.toISOString(), title: stamp(date), class: "nowrap" }, away >= 0 ? `${span(away)} ago` : `in ${span(-away)}`);
}

// table makes a table whose rows are arrays of cells; on a narrow screen each row becomes a card. The
// first cell of a row names it. Numbers are those from which column on there are numbers alone.
function table(caption, columns, rows, numbers = columns.length) {
	const kind = (i) => (i >= numbers ? "number" : null);
	return el("table", { class: "cards" }, el("caption", { class: "hidden" }, caption), el("thead", {}, el("tr", {}, columns.map((c, i) => el("th", { scope: "col", class: kind(i) }, c)))), el("tbody", {}, rows.map((cells) => tableRow(columns, cells, kind))));
}

function tableRow(columns, cells, kind = () => null) {
	return el("tr", {}, cells.map((cell, i) => el(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : null, class: kind(i), "data-label": columns[i] }, el("div", {}, cell))));
}

const panel = (title, ...children) => el("section", { class: "panel" }, el("header", {}, el("h2", {}, title)), children);

const empty = (title, ...text) => el("div", { class: "empty" }, el("strong", {}, title), text);

const facts = (pairs) => el("dl", { class: "facts" }, pairs.filter((p) => p).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));

const notice = (kind, ...children) => el("div", { class: "notice " + kind, role: kind === "bad" ? "alert" : null }, children);

// prose shows a text of the gateway, in which what is between grave accents is code.
const prose = (text, most = 1000) => plain(text, most).split("`").map((part, i) => (i % 2 === 1 ? el("code", {}, part) : part));

// breakable lets a long word break after its underscores.
const breakable = (word) => plain(word, 80).split(/(?<=_)/).map((part, i) => (i > 0 ? [el("wbr"), part] : part));

// ---- The admin endpoint

// Problem is an answer other than what was asked for. Its status is 0 if there was no answer.
class Problem extends Error {
	constructor(status, message) {
		super(message);
		this.status = status;
	}
}

// ask sends a request to a path below /oauth/ and returns what it answers and its ETag.
async function ask(method, path, { body, headers = {}, signal } = {}) {
	const request = { method, signal, headers: { ...headers }, cache: "no-store", redirect: "error" };
	if (body !== undefined) {
		request.headers["Content-Type"] = "application/json";
		request.body = JSON.stringify(body);
	}
	let response, text;
	try {
		response = await fetch(new URL("../" + path, document.baseURI), request);
		text = await response.text();
	} catch (error) {
		if (signal?.aborted) throw error;
		throw new Problem(0, "The gateway doesn't answer. Is Caddy running, with its admin endpoint at the address of this page? If caddy oauth console shows this page, is it still running?");
	}
	let data = null;
	try {
		data = JSON.parse(text);
	} catch {
		// 204 has no body; anything else without JSON is told by its status.
	}
	if (!response.ok) throw new Problem(response.status, data?.error ?? `The gateway answered with ${response.status}.`);
	if (data === null && response.status !== 204) throw new Problem(response.status, "The gateway's answer can't be read.");
	return { data, etag: response.headers.get("ETag") };
}

// trouble says what went wrong, and what to do about it.
function trouble(error, again) {
	const advice = {
		401: "Caddy's remote administration wants a client certificate.",
		403: "The admin endpoint has refused this page. It must be opened at an address that Caddy's admin endpoint accepts, or with caddy oauth console, and may change something only with console write in the oauth block.",
		404: "",
		409: "",
		412: "",
		503: "The token store doesn't answer; see Sources and store.",
	};
	return notice("bad", el("p", {}, sentence(error.message), " ", advice[error.status] ?? ""), again && el("button", { type: "button", click: again }, "Try again"));
}

// sentence makes a sentence of an error of the gateway.
function sentence(text) {
	const shown = plain(text, 1000);
	return shown.charAt(0).toUpperCase() + shown.slice(1) + (/[.!?…]$/.test(shown) ? "" : ".");
}

// clientPath is where a client is on the admin endpoint, where nested realms have ~ in the place of /.
const clientPath = (realm, id, ...rest) => ["clients", realm.replaceAll("/", "~"), id, ...rest].map((part, i) => (i === 0 ? part : encodeURIComponent(part))).join("/");

// addressable is false for IDs that a browser would take for a step in a path.
const addressable = (id) => id !== "" && id !== "." && id !== "..";

// ---- The state of the gateway, which all screens show

const gateway = { overview: null, problem: null, watchers: new Set() };

const mayWrite = () => gateway.overview?.console?.write === true;

const realms = () => (gateway.overview?.realms ?? []).map((r) => r.name);

async function lookAtGateway() {
	try {
		gateway.overview = (await ask("GET", "")).data;
		gateway.problem = null;
	} catch (error) {
		gateway.problem = error;
	}
	showState();
	for (const watcher of gateway.watchers) watcher();
}


// What is said of a part that isn't well: a word, how bad it is, and what to do.
const states = {
	ok: ["good", "works", ""],
	none: ["off", "not needed", "The configuration issues no tokens, so it needs no store."],
	unreachable: ["bad", "unreachable", "The store doesn't answer, so what needs it gets 503. Look at the store itself, and at the log's lines at level error."],
	refuses_writes: ["bad", "refuses writes", "The store can be read, and keeps nothing new: no tokens are issued. Is its disk or memory full?"],
	waiting_for_store: ["warn", "waits for the store", "The realm has not learnt the store's key yet. It works as soon as the store answers."],
	circuit_open: ["bad", "left alone", "It failed several times, so it is left alone for a moment and then tried again. Tokens that only it knows get 503."],
	no_keys: ["bad", "no keys", "It has no keys that fit its algorithms, so none of its tokens can be verified."],
	credentials_denied: ["bad", "credentials refused", "The other server refuses the gateway's own credentials: compare them."],
};

const stateOf = (name) => states[name] ?? ["warn", name ? plain(name) : "unknown", ""];

function showState() {
	const place = document.getElementById("state");
	const o = gateway.overview;
	let kind = "good", text = "All is well";
	if (gateway.problem) {
		[kind, text] = ["bad", gateway.problem.status ? "Refused" : "No answer"];
	} else if (!["ok", "none"].includes(o.store.state)) {
		[kind, text] = [stateOf(o.store.state)[0], `Store: ${stateOf(o.store.state)[1]}`];
	} else if (o.realms.some((r) => !["ok", "none"].includes(r.state))) {
		[kind, text] = ["warn", "A realm waits"];
	} else if (o.sources.some((s) => s.state !== "ok")) {
		[kind, text] = ["warn", "A source fails"];
	} else if (!o.store.coherent) {
		[kind, text] = ["warn", "Link to the store lost"];
	}
	// Only a change is news to those who listen.
	if (place.textContent !== text) place.replaceChildren(el("a", { href: "#/sources" }, badge(kind, text)));
}

// ---- Screens

// shown is the screen that is open: its path, what ends with it, and what takes another query.
let shown = null;

// parse reads the part of the address behind #.
function parse(hash) {
	const rest = hash.replace(/^#\/?/, "");
	const cut = rest.indexOf("?");
	const path = cut < 0 ? rest : rest.slice(0, cut);
	try {
		return { path, parts: path.split("/").map(decodeURIComponent), query: new URLSearchParams(cut < 0 ? "" : rest.slice(cut + 1)) };
	} catch {
		return { path, parts: ["?"], query: new URLSearchParams() };
	}
}

// address is the opposite of parse, without what is empty.
function address(parts, query = {}) {
	const set = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
	const search = new URLSearchParams(set).toString();
	return "#/" + parts.map(encodeURIComponent).join("/") + (search ? "?" + search : "");
}

// keep writes filters into the address, so that it can be sent to somebody or gone back to.
function keep(parts, query) {
	history.replaceState(null, "", address(parts, query));
}

function open() {
	const { path, parts, query } = parse(location.hash);
	if (shown?.path === path && shown.update) {
		shown.update(query);
		return;
	}
	const first = shown === null;
	shown?.leave.abort();
	const leave = new AbortController();
	const name = parts[0] || "live";
	const screens = { live, clients, routes, explain, keys, sources };
	let screen = Object.hasOwn(screens, name) ? screens[name] : unknown;
	if (parts.length > 1) screen = name === "clients" && parts.length === 3 && parts.every(addressable) ? client : unknown;
	const main = document.getElementById("main");
	main.replaceChildren();
	const root = main.appendChild(el("div"));
	shown = { path, leave };
	for (const link of document.querySelectorAll("nav a")) {
		if (link.getAttribute("href") === "#/" + name) link.setAttribute("aria-current", "page");
		else link.removeAttribute("aria-current");
	}
	shown.update = screen({ root, query, signal: leave.signal, parts });
	const title = root.querySelector("h1");
	document.title = `${title.textContent} – OAuth gateway`;
	// Those who can't see it hear that there is another screen.
	if (!first) title.focus({ preventScroll: true });
	window.scrollTo(0, 0);
}

const heading = (title, ...right) => el("div", { class: "head" }, el("h1", { tabindex: "-1" }, title), right.length > 0 && el("div", { class: "push actions" }, right));

function unknown({ root }) {
	root.append(heading("Not found"), el("p", {}, "There is no such screen. ", el("a", { href: "#/live" }, "Go to Live"), "."));
}

// every calls work now and again after some seconds, as long as somebody looks at the screen. It
// returns what does so at once.
function every(seconds, signal, work) {
	let timer, busy = false;
	const run = async () => {
		clearTimeout(timer);
		if (signal.aborted || document.hidden || busy) return;
		busy = true;
		try {
			await work();
		} finally {
			busy = false;
		}
		if (!signal.aborted) timer = setTimeout(run, seconds * 1000);
	};
	document.addEventListener("visibilitychange", run, { signal });
	signal.addEventListener("abort", () => clearTimeout(timer));
	run();
	return run;
}

// watchGateway calls work whenever the state of the gateway has been looked at.
function watchGateway(signal, work) {
	gateway.watchers.add(work);
	signal.addEventListener("abort", () => gateway.watchers.delete(work));
	if (gateway.overview || gateway.problem) work();
}

// load shows what an answer has, or why there is none.
async function load(place, signal, get, show) {
	place.setAttribute("aria-busy", "true");
	try {
		const answer = await get();
		if (!signal.aborted) place.replaceChildren(...[show(answer)].flat(Infinity).filter(Boolean));
	} catch (error) {
		if (!signal.aborted) place.replaceChildren(trouble(error, () => load(place, signal, get, show)));
	}
	place.removeAttribute("aria-busy");
}

// later calls work once nobody has called for a moment, as while somebody types, unless the screen was
// left meanwhile.
function later(signal, work, milliseconds = 250) {
	let timer;
	signal.addEventListener("abort", () => clearTimeout(timer));
	return (...args) => {
		clearTimeout(timer);
		timer = setTimeout(() => work(...args), milliseconds);
	};
}

// select makes a choice. Its method offer replaces the options if they are others, and leaves it alone
// otherwise: somebody may be choosing.
function select(label, change) {
	const control = el("select", { change: () => change(control.value) });
	let offered = "";
	const offer = (options, value) => {
		if (offered !== JSON.stringify(options)) {
			offered = JSON.stringify(options);
			control.replaceChildren(...options.map(([v, text]) => el("option", { value: v }, text)));
		}
		control.value = value;
	};
	return { node: el("label", {}, label, control), offer };
}

const search = (label, value, input) => {
	const control = el("input", { type: "search", value, autocomplete: "off", spellcheck: "false", input: () => input(control.value) });
	return el("label", { class: "wide" }, label, control);
};

// ---- Live

// Outcomes come in three kinds, in the order in which plots stack them.
const outcomeKinds = [
	["passed", "Passed"],
	["refused", "Refused"],
	["failed", "Unavailable"],
];

function kindOf(outcome) {
	if (["ok", "passed", "anonymous", "report_only", "inactive"].includes(outcome)) return "passed";
	if (["temporarily_unavailable", "server_error", "unavailable", "canceled", "outage"].includes(outcome)) return "failed";
	return "refused";
}

const add = (into, counts) => counts.forEach((n, i) => (into[i] = (into[i] ?? 0) + n));

const total = (counts) => counts.reduce((sum, n) => sum + n, 0);

// The forms by which kinds are told apart without colour.
function patterns() {
	return svg("defs", {},
		svg("pattern", { id: "refused-pattern", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, svg("rect", { width: 6, height: 6, class: "refused" }), svg("line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "stripe" })),
		svg("pattern", { id: "failed-pattern", width: 5, height: 5, patternUnits: "userSpaceOnUse" }, svg("rect", { width: 5, height: 5, class: "failed" }), svg("line", { x1: 0, y1: 0, x2: 5, y2: 0, class: "stripe" })));
}

const paint = (kind) => (kind === "passed" ? { class: "passed" } : { fill: `url(#${kind}-pattern)` });

// niceMost returns a round number that is at least n.
function niceMost(n) {
	const size = 10 ** Math.floor(Math.log10(Math.max(n, 1)));
	const step = [1, 2, 4, 5, 10].find((m) => m * size >= n);
	return Math.max(step * size, 4);
}

// plotOf makes a plot of counts by kind. Its method show takes them, and the end of the last one.
function plotOf(title, names) {
	const kinds = outcomeKinds.map(([kind, name]) => [kind, names?.[kind] ?? name]);
	const legend = el("ul", { class: "legend" });
	const drawing = svg("svg", { class: "plot", role: "img", "aria-label": title });
	const readout = el("span", { class: "push dim", "aria-hidden": "true" }, "last hour");
	const body = el("tbody");
	const figures = el("details", { class: "figures" }, el("summary", {}, "Show as a table"), el("div", { tabindex: "0", role: "region", "aria-label": `${title}, as a table` },
		el("table", {}, el("caption", { class: "hidden" }, title), el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "From"), kinds.map(([, name]) => el("th", { scope: "col", class: "number" }, name)))), body)));
	const node = el("section", { class: "panel" }, el("header", {}, el("h2", {}, title), readout), el("figure", { class: "body" }, legend, drawing, figures));
	let data = null;

	const draw = () => {
		if (!data) return;
		const { counts, step, end } = data;
		const width = Math.max(drawing.clientWidth, 200), height = 168, left = 38, top = 8, bottom = 20;
		const n = counts.passed.length;
		const sums = counts.passed.map((p, i) => p + counts.refused[i] + counts.failed[i]);
		const most = niceMost(Math.max(...sums));
		const x = (i) => left + (i * (width - left)) / n;
		const y = (v) => height - bottom - (v * (height - bottom - top)) / most;
		const at = (i) => new Date(end - (n - i) * step * 1000);
		const parts = [patterns()];
		for (const part of [0, 0.5, 1]) {
			const v = most * part;
			parts.push(svg("line", { x1: left, x2: width, y1: y(v), y2: y(v), class: "grid" }), svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, compact(v)));
		}
		for (let i = 0; i < n; i++) {
			if (at(i).getMinutes() % 15 === 0 && x(i) < width - 16) parts.push(svg("text", { x: x(i), y: height - 4, "text-anchor": i === 0 ? "start" : "middle" }, clock(at(i))));
			let base = 0;
			for (const [kind] of kinds) {
				const v = counts[kind][i];
				if (v > 0) {
					// What is there is seen, however little it is.
					const high = Math.max(y(base) - y(base + v), 2);
					parts.push(svg("rect", { x: x(i) + 0.5, y: y(base) - high, width: Math.max(x(i + 1) - x(i) - 1, 1), height: high, ...paint(kind) }));
				}
				base += v;
			}
		}
		const mark = svg("rect", { class: "mark", y: top, height: height - top - bottom, width: x(1) - x(0) });
		parts.push(mark);
		drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
		drawing.setAttribute("aria-label", `${title} in the last hour: ${kinds.map(([kind, name]) => `${number(total(counts[kind]))} ${name.toLowerCase()}`).join(", ")}. The table below has the figures.`);
		drawing.replaceChildren(...parts);
		drawing.onpointermove = (event) => {
			const i = Math.floor(((event.offsetX - left) * n) / (width - left));
			mark.classList.toggle("on", i >= 0 && i < n);
			if (i < 0 || i >= n) return;
			mark.setAttribute("x", x(i));
			readout.textContent = `${clock(at(i))}: ${kinds.map(([kind, name]) => `${number(counts[kind][i])} ${name.toLowerCase()}`).join(", ")}`;
		};
		drawing.onpointerleave = () => {
			mark.classList.remove("on");
			readout.textContent = "last hour";
		};
	};
	new ResizeObserver(draw).observe(node);

	const showFigures = () => {
		if (!data || !figures.open) return;
		const { counts, step, end } = data;
		const n = counts.passed.length;
		const rows = [];
		for (let i = n - 1; i >= 0; i--) {
			rows.push(el("tr", {}, el("th", { scope: "row" }, clock(new Date(end - (n - i) * step * 1000))), kinds.map(([kind]) => el("td", { class: "number" }, number(counts[kind][i])))));
		}
		body.replaceChildren(...rows);
	};
	figures.addEventListener("toggle", showFigures);

	const show = (counts, step, end) => {
		data = { counts, step, end };
		legend.replaceChildren(...kinds.map(([kind, name]) => el("li", {}, el("span", {}, svg("svg", { class: "swatch", viewBox: "0 0 12 12", "aria-hidden": "true" }, svg("rect", { width: 12, height: 12, ...paint(kind) })), name), el("strong", {}, number(total(counts[kind]))))));
		draw();
		showFigures();
	};
	return { node, show };
}

const compact = (n) => (n >= 1e6 ? `${+(n / 1e6).toFixed(1)}M` : n >= 1e4 ? `${+(n / 1e3).toFixed(1)}k` : number(n));

function sparkline(counts, kind) {
	const most = Math.max(...counts, 1);
	return svg("svg", { class: "spark", viewBox: `0 0 ${counts.length * 2} 20`, preserveAspectRatio: "none", "aria-hidden": "true" },
		counts.map((n, i) => n > 0 && svg("rect", { x: i * 2, width: 1.6, y: 20 - Math.max((n * 20) / most, 2), height: Math.max((n * 20) / most, 2), class: kind })));
}

// The latest refusals, newest first. They outlive the screen, so that one can go to an explanation and
// back. No more than mostRefusals are kept.
const refusals = [];
const mostRefusals = 200;
let nextRefusal = 0;

// listen receives refusals while somebody looks at the screen. It connects anew when the stream ends,
// after one second at first and half a minute at most.
function listen(signal, receive, tell) {
	let stream = null, timer, wait = 1;
	const close = () => {
		clearTimeout(timer);
		stream?.close();
		stream = null;
	};
	const connect = () => {
		close();
		if (signal.aborted || document.hidden) return;
		tell("connecting");
		stream = new EventSource(new URL("../events?event=request_refused", document.baseURI));
		stream.addEventListener("open", () => {
			wait = 1;
			tell("connected");
		});
		stream.addEventListener("error", () => {
			close();
			tell("lost", wait);
			timer = setTimeout(connect, wait * 1000);
			wait = Math.min(wait * 2, 30);
		});
		for (const name of ["request_refused", "dropped"]) {
			stream.addEventListener(name, (message) => {
				let data = null;
				try {
					data = JSON.parse(message.data);
				} catch {
					return; // nothing that could be shown
				}
				receive(name, data);
			});
		}
	};
	document.addEventListener("visibilitychange", () => {
		if (document.hidden) close();
		else connect();
	}, { signal });
	signal.addEventListener("abort", close);
	connect();
}

// explainLink is where a refusal is explained. That screen finds out which URL it was: an event has the
// path, the host, and the rule that refused it.
function explainLink(e) {
	const query = { method: e.method, host: e.host, path: e.path, rule: e.rule, cause: e.cause };
	// Without TLS, it matters whether a request comes from this machine.
	if (/^(127\.|::1$)/.test(e.remote_ip ?? "")) query.from = e.remote_ip;
	if (e.client_id && !e.issuer) Object.assign(query, { client: e.client_id, realm: e.realm });
	return address(["explain"], query);
}

const refusalColumns = ["Time", "Cause", "Request", "Client", "Realm", "From", "Rule"];

function refusalRow(e) {
	const link = el("a", { href: explainLink(e), title: "Explain this refusal" }, code(e.method ?? "", 20), " ", code((e.host ?? "") + (e.path ?? ""), 160));
	const when = new Date(e.time);
	const row = tableRow(refusalColumns, [
		el("time", { datetime: e.time, class: "nowrap" }, Number.isNaN(when.getTime()) ? "–" : `${clock(when)}:${two(when.getSeconds())}`),
		[plain(e.cause ?? "unknown"), e.status ? el("span", { class: "dim" }, ` ${e.status}`) : null, e.report_only === true && el("span", { class: "dim" }, " passed: the route only reports")],
		link,
		e.client_id ? code(e.client_id, 80) : none(),
		e.realm ? plain(e.realm, 60) : none(),
		e.remote_ip ? code(e.remote_ip) : none(),
		e.rule ? code(e.rule, 80) : none(),
	]);
	row.className = "does new";
	row.addEventListener("click", (event) => {
		if (!event.target.closest("a") && !getSelection().toString()) location.hash = explainLink(e);
	});
	return row;
}

function live({ root, query, signal }) {
	const filter = { realm: query.get("realm") ?? "", cause: query.get("cause") ?? "", client: query.get("client") ?? "" };
	const routesPlot = plotOf("Requests to protected routes");
	const tokensPlot = plotOf("Requests to the endpoints", { passed: "Answered" });
	const causes = el("div", { "aria-busy": "true" }), endpoints = el("div"), problem = el("div");
	const connection = el("span", { class: "dim", role: "status" });
	const news = el("p", { class: "hidden", role: "status" });
	const rows = el("tbody");
	const rowOf = new Map();
	const nothing = el("div");
	const pause = el("button", { type: "button", "aria-pressed": "false", click: () => setPaused(!paused) }, "Pause");
	const realmChoice = select("Realm", (realm) => set({ realm }));
	const causeChoice = select("Cause", (cause) => set({ cause }));
	let paused = false, held = [], unheard = [], lastSaid = 0, causeNames = new Set();

	const matches = (e) => (!filter.realm || e.realm === filter.realm) && (!filter.cause || e.cause === filter.cause) && (!filter.client || String(e.client_id ?? "").toLowerCase().includes(filter.client.toLowerCase()));
	const setPaused = (value) => {
		paused = value;
		pause.setAttribute("aria-pressed", String(paused));
		if (!paused) {
			const waiting = held;
			held = [];
			take(waiting);
		}
		showPause();
	};
	const showPause = () => (pause.textContent = paused ? (held.length > 0 ? `Paused, ${held.length} new` : "Paused") : "Pause");

	// take puts refusals at the top. Rows that are there stay, and with them the focus.
	const take = (events) => {
		for (const e of events) {
			e.key = nextRefusal++;
			refusals.unshift(e);
		}
		for (const gone of refusals.splice(mostRefusals)) {
			rowOf.get(gone.key)?.remove();
			rowOf.delete(gone.key);
		}
		for (const e of events) {
			if (matches(e) && refusals.includes(e)) {
				const row = refusalRow(e);
				rowOf.set(e.key, row);
				rows.prepend(row);
			}
			if (e.cause && !causeNames.has(e.cause)) {
				causeNames.add(e.cause);
				showFilters();
			}
		}
		showNothing();
	};
	const all = () => {
		rowOf.clear();
		rows.replaceChildren(...refusals.filter(matches).map((e) => {
			const row = refusalRow(e);
			row.classList.remove("new");
			rowOf.set(e.key, row);
			return row;
		}));
		showNothing();
	};
	const showNothing = () => {
		const filtered = filter.realm || filter.cause || filter.client;
		nothing.replaceChildren(rows.childElementCount > 0 ? "" : filtered && refusals.length > 0
			? empty("None of the latest refusals fits the filter.", el("button", { type: "button", class: "plain", click: () => set({ realm: "", cause: "", client: "" }) }, "Show all"))
			: empty("No refusals yet.", "They appear here as they happen, while this page is open. Nothing needs to be reloaded."));
	};

	// Events come in bursts: the table changes four times a second at most, and those who listen hear
	// of them every ten seconds.
	let waiting = [], due = null;
	const receive = (name, data) => {
		if (name === "dropped") {
			connection.textContent = `${counted(data.count ?? 0, "refusal")} left out: they come faster than this page takes them`;
			return;
		}
		waiting.push(data);
		waiting.splice(0, waiting.length - mostRefusals);
		due ??= setTimeout(() => {
			due = null;
			const now = waiting;
			waiting = [];
			if (paused) {
				held.push(...now);
				held.splice(0, held.length - mostRefusals);
				showPause();
				return;
			}
			take(now);
			unheard.push(...now.filter(matches));
			if (unheard.length > 0 && Date.now() - lastSaid > 10000) {
				lastSaid = Date.now();
				const latest = unheard.at(-1);
				news.textContent = `${counted(unheard.length, "new refusal")}, the latest: ${plain(latest.cause ?? "unknown", 40)}, ${plain(latest.method ?? "", 20)} ${plain(latest.path ?? "", 80)}`;
				unheard = [];
			}
			unheard.splice(0, unheard.length - mostRefusals);
		}, 250);
	};
	signal.addEventListener("abort", () => clearTimeout(due));

	const set = (changed) => {
		Object.assign(filter, changed);
		keep(["live"], filter);
		showFilters();
		all();
	};
	const clientSearch = search("Client", filter.client, (value) => {
		filter.client = value;
		keep(["live"], filter);
		all();
	});
	const showFilters = () => {
		const listed = (names) => [["", "All"], ...[...new Set(names)].filter(Boolean).sort().map((name) => [name, plain(name, 60)])];
		realmChoice.offer(listed([...realms(), filter.realm]), filter.realm);
		causeChoice.offer(listed([...causeNames, filter.cause]), filter.cause);
		const input = clientSearch.querySelector("input");
		if (input.value !== filter.client) input.value = filter.client;
	};

	root.append(
		heading("Live"),
		problem,
		el("div", { class: "stack" },
			el("div", { class: "stack pair" }, routesPlot.node, tokensPlot.node),
			el("div", { class: "stack pair late" }, panel("Why requests were refused", causes), panel("Endpoints", endpoints)),
			el("section", { class: "panel", "aria-labelledby": "refusals" },
				el("header", {}, el("h2", { id: "refusals" }, "Refusals as they happen"), connection, el("div", { class: "push actions" }, pause)),
				el("div", { class: "filters inset" }, realmChoice.node, causeChoice.node, clientSearch),
				el("table", { class: "cards" }, el("caption", { class: "hidden" }, "Refusals, the newest first"), el("thead", {}, el("tr", {}, refusalColumns.map((c) => el("th", { scope: "col" }, c)))), rows),
				nothing, news)));

	every(15, signal, async () => {
		let answer;
		try {
			answer = (await ask("GET", "live", { signal })).data;
			problem.replaceChildren();
		} catch (error) {
			if (!signal.aborted) problem.replaceChildren(trouble(error));
			causes.removeAttribute("aria-busy");
			return;
		}
		if (signal.aborted) return;
		const step = answer.step_seconds || 60;
		const end = (Math.floor(new Date(answer.now) / (step * 1000)) + 1) * step * 1000; // of the minute that is not over
		const fresh = () => Object.fromEntries(outcomeKinds.map(([kind]) => [kind, Array(60).fill(0)]));
		const atRoutes = fresh(), atEndpoints = fresh();
		const byCause = new Map(), byEndpoint = new Map();
		for (const s of answer.series ?? []) {
			const kind = kindOf(s.outcome);
			add((s.kind === "route" ? atRoutes : atEndpoints)[kind], s.counts);
			if (s.kind === "route" && s.cause) {
				const key = `${s.cause}\n${s.outcome}`;
				if (!byCause.has(key)) byCause.set(key, { cause: s.cause, outcome: s.outcome, kind, counts: [] });
				add(byCause.get(key).counts, s.counts);
			} else if (s.kind !== "route") {
				const key = `${s.kind}\n${s.realm}`;
				if (!byEndpoint.has(key)) byEndpoint.set(key, { kind: s.kind, realm: s.realm, passed: 0, refused: 0, failed: 0 });
				byEndpoint.get(key)[kind] += total(s.counts);
			}
		}
		routesPlot.show(atRoutes, step, end);
		tokensPlot.show(atEndpoints, step, end);
		const listed = [...byCause.values()].filter((c) => total(c.counts) > 0).sort((a, b) => total(b.counts) - total(a.counts));
		const focused = causes.contains(document.activeElement) ? document.activeElement.dataset.cause : null;
		causes.replaceChildren(listed.length === 0
			? empty("Nothing was refused in the last hour.")
			: table("Causes of refusals in the last hour", ["Cause", "Answer", "Course", "5 min", "1 hour"], listed.map((c) => [
				el("button", { type: "button", class: "plain", "data-cause": c.cause, title: "Show only refusals with this cause", click: () => set({ cause: c.cause }) }, breakable(c.cause)),
				el("span", { class: "dim" }, breakable(c.outcome)), sparkline(c.counts, c.kind), number(total(c.counts.slice(-5))), number(total(c.counts))]), 3));
		if (focused) causes.querySelector(`[data-cause="${CSS.escape(focused)}"]`)?.focus();
		const known = [...byEndpoint.values()].sort((a, b) => a.realm.localeCompare(b.realm) || a.kind.localeCompare(b.kind));
		endpoints.replaceChildren(known.length === 0
			? empty("No realm here has endpoints in use.", "oauth_server serves them.")
			: table("Requests to the endpoints in the last hour", ["Endpoint", "Realm", "Answered", "Refused", "Unavailable"], known.map((e) => [e.kind, plain(e.realm, 60), number(e.passed), number(e.refused), number(e.failed)]), 2));
		causes.removeAttribute("aria-busy");
		for (const c of listed) causeNames.add(c.cause);
		showFilters();
	});

	listen(signal, receive, (state, wait) => {
		const words = { connecting: "connecting…", connected: "connected", lost: `not connected; next attempt in ${span(wait)}` };
		connection.replaceChildren(badge(state === "connected" ? "good" : state === "lost" ? "bad" : "off", words[state]));
	});
	for (const e of refusals) if (e.cause) causeNames.add(e.cause);
	showFilters();
	all();
	watchGateway(signal, showFilters);
	return (changed) => set({ realm: changed.get("realm") ?? "", cause: changed.get("cause") ?? "", client: changed.get("client") ?? "" });
}

// ---- Dialogs

// dialog opens one. build gets what closes it and returns what is in it. Closed, it is gone, and the
// focus is back where it was.
function dialog(title, build) {
	const before = document.activeElement;
	const node = el("dialog", { "aria-labelledby": "dialog-title" }, el("h2", { id: "dialog-title" }, title));
	const gone = () => {
		if (!node.isConnected) return;
		node.replaceChildren(); // and with it what was shown
		node.remove();
		if (before?.isConnected) before.focus();
		else document.querySelector("h1")?.focus({ preventScroll: true });
	};
	const close = () => {
		node.close();
		gone(); // the event comes later, when another dialog may be there
	};
	node.append(build(close, node));
	node.addEventListener("close", gone);
	document.body.append(node);
	node.showModal();
	node.querySelector("[data-first]")?.focus();
	return node;
}

// Neither what was shown in a dialog nor a token is kept for a way back to the page.
addEventListener("pagehide", () => {
	for (const d of document.querySelectorAll("dialog")) {
		d.replaceChildren();
		d.remove();
	}
	for (const input of document.querySelectorAll("input[type=password]")) input.value = "";
});

// form makes the form of a dialog. work does what it is for, and its error stands in the form; then
// done is called, with what work returned.
function form({ close, fields, action, danger, work, done }) {
	const problem = el("div", { "aria-live": "assertive" });
	const submit = el("button", { class: danger ? "primary danger" : "primary" }, action);
	return el("form", {
		autocomplete: "off",
		submit: async (event) => {
			event.preventDefault();
			submit.disabled = true;
			problem.replaceChildren();
			try {
				const result = await work();
				close();
				done?.(result);
			} catch (error) {
				problem.replaceChildren(...(error instanceof Problem ? [trouble(error), error.extra ?? ""] : [notice("bad", el("p", {}, error.message))]));
			}
			submit.disabled = false;
		},
	}, fields, problem, el("div", { class: "actions" }, el("button", { type: "button", click: close, "data-first": danger }, "Cancel"), submit));
}

// question asks before what can't be undone. With typed, the name must be written to go on.
function question({ title, text, action, danger = true, typed, work, done }) {
	dialog(title, (close, node) => {
		const fields = [el("p", {}, text)];
		if (typed) {
			const input = el("input", { type: "text", autocomplete: "off", spellcheck: "false", "data-first": true, input: () => (node.querySelector("button.primary").disabled = input.value !== typed) });
			fields.push(field(["Type ", code(typed), " to go on"], input));
		}
		const made = form({ close, fields, action, danger, work, done });
		if (typed) made.querySelector("button.primary").disabled = true;
		return made;
	});
}

const field = (label, control, help) => el("label", { class: "field" }, el("span", {}, label), control, help && el("small", {}, help));

// showSecret shows a secret that was just made: here, and nowhere else.
function showSecret(id, secret) {
	dialog("The new secret", (close) => {
		const shownSecret = el("code", { class: "secret", tabindex: "0" }, secret);
		const said = el("span", { role: "status", class: "dim" });
		const copy = async () => {
			try {
				await navigator.clipboard.writeText(secret);
				said.textContent = "Copied.";
			} catch {
				getSelection().selectAllChildren(shownSecret);
				said.textContent = "Selected: copy it with Ctrl+C or ⌘C.";
			}
		};
		return el("div", { class: "stack" },
			el("p", {}, "The secret of ", code(id, 120), ". It is shown only now: the gateway keeps its hash and nothing else. Put it where the program finds it before you close this."),
			shownSecret,
			el("div", { class: "actions" }, el("button", { type: "button", class: "primary", click: copy, "data-first": true }, "Copy"), el("button", { type: "button", click: close }, "Close"), said));
	});
}

// ---- Clients

const readOnly = () => notice("", el("p", {}, "This page only shows. To change clients here, put ", code("console write"), " into the global block ", code("oauth"), ", and reload; ", code("caddy oauth client"), " changes them in any case."));

const ended = (secret) => secret.until && new Date(secret.until) <= new Date();

// clientState is a client's state.
function clientState(c) {
	if (c.unusable) return badge("bad", "unusable");
	if (c.settings?.disabled) return badge("off", "disabled");
	if (c.secrets?.length > 0 && c.secrets.every(ended)) return badge("bad", "secrets ended");
	return badge("good", "active");
}

// secretsSummary says how many secrets a client has, and when the last of them ends.
function secretsSummary(c) {
	const live = (c.secrets ?? []).filter((s) => !ended(s));
	if (!c.secrets?.length) return el("span", { class: "dim" }, "none");
	if (live.length === 0) return badge("bad", "all ended");
	if (live.some((s) => !s.until)) return el("span", { class: "nowrap" }, counted(live.length, "secret"));
	const last = live.map((s) => s.until).sort().at(-1);
	const soon = new Date(last) - Date.now() < 30 * 86400e3;
	return [counted(live.length, "secret"), el("br"), soon ? badge("warn", ["ends ", shortMoment(last)]) : el("span", { class: "dim" }, "ends ", shortMoment(last))];
}

const kindOfClient = (c) => (c.managed ? "managed" : "configuration");

// lastUse is when a client last showed itself, by a token or by a secret.
const lastUse = (c) => [c.use?.seen, c.use?.token, ...(c.secrets ?? []).map((s) => s.used)].filter(Boolean).sort((a, b) => new Date(a) - new Date(b)).at(-1);

const clientFilters = ["search", "realm", "state", "managed", "unused", "expiring", "after"];

function clients({ root, query, signal }) {
	const filter = {};
	const take = (from) => clientFilters.forEach((name) => (filter[name] = from.get(name) ?? ""));
	take(query);
	const actions = el("div", { class: "push actions" });
	const advice = el("div");
	const place = el("div", { class: "panel" });
	const said = el("p", { class: "hidden", role: "status" });
	const before = []; // the cursors of the pages before this one

	const choose = (name) => (value) => refresh({ [name]: value });
	const choices = {
		realm: select("Realm", choose("realm")),
		state: select("State", choose("state")),
		managed: select("From", choose("managed")),
		unused: select("Use", choose("unused")),
		expiring: select("Secrets", choose("expiring")),
	};
	const searched = search("Search by ID", filter.search, later(signal, (value) => refresh({ search: value }), 300));
	const showFilters = () => {
		const other = (options, value) => (options.some(([v]) => v === value) ? options : [...options, [value, plain(value, 40)]]);
		choices.realm.offer(other([["", "All"], ...realms().map((r) => [r, plain(r, 60)])], filter.realm), filter.realm);
		choices.state.offer(other([["", "All"], ["active", "Active"], ["disabled", "Disabled"], ["unusable", "Unusable"]], filter.state), filter.state);
		choices.managed.offer(other([["", "All"], ["true", "Managed"], ["false", "Configuration"]], filter.managed), filter.managed);
		choices.unused.offer(other([["", "Any"], ["30d", "Unused for 30 days"], ["90d", "Unused for 90 days"], ["365d", "Unused for a year"]], filter.unused), filter.unused);
		choices.expiring.offer(other([["", "Any"], ["7d", "End within 7 days"], ["30d", "End within 30 days"], ["90d", "End within 90 days"]], filter.expiring), filter.expiring);
		const input = searched.querySelector("input");
		if (input.value !== filter.search && input !== document.activeElement) input.value = filter.search;
	};
	const filtered = () => clientFilters.some((name) => name !== "after" && filter[name] !== "");
	// Another filter begins at its first page.
	const refresh = (changed) => {
		if (!("after" in changed)) {
			before.length = 0;
			changed = { ...changed, after: "" };
		}
		Object.assign(filter, changed);
		keep(["clients"], filter);
		showFilters();
		list();
	};

	let listing = null;
	const list = () => {
		listing?.abort();
		listing = new AbortController();
		const mine = AbortSignal.any([signal, listing.signal]);
		const set = Object.entries({ ...filter, limit: "50" }).filter(([, v]) => v !== "");
		return load(place, mine, () => ask("GET", "clients?" + new URLSearchParams(set), { signal: mine }), ({ data }) => {
			said.textContent = `${counted(data.clients.length, "client")} shown`;
			if (data.clients.length === 0) {
				return filtered() || filter.after
					? empty("No client fits.", el("button", { type: "button", class: "plain", click: () => refresh(Object.fromEntries(clientFilters.map((n) => [n, ""]))) }, "Show all clients"))
					: empty("There are no clients yet.", "Add one with a block client in the Caddyfile, or as a managed client.");
			}
			const several = realms().length > 1;
			const next = data.next && el("button", { type: "button", click: () => { before.push(filter.after); refresh({ after: data.next }); } }, "Next page");
			const back = filter.after && el("button", { type: "button", click: () => refresh({ after: before.pop() ?? "" }) }, before.length > 0 ? "Previous page" : "First page");
			return [
				table("Clients", ["Client", "State", "From", "Scopes", "Secrets", "Last used"], data.clients.map((c) => [
					[several && el("span", { class: "dim" }, plain(c.realm, 60), " / "), addressable(c.id) ? el("a", { href: address(["clients", c.realm, c.id]) }, code(c.id)) : code(c.id)],
					[clientState(c), c.unusable && el("div", { class: "dim" }, plain(c.unusable))], kindOfClient(c), tags(c.settings?.scopes), secretsSummary(c),
					[shortMoment(lastUse(c), "not known"), c.use?.from && el("div", { class: "dim nowrap" }, "from ", code(c.use.from)), c.elsewhere > 0 && el("div", { class: "dim" }, "comes with tokens from elsewhere")],
				])),
				(next || back) && el("div", { class: "body actions" }, back, next),
			];
		});
	};

	root.append(
		el("div", { class: "head" }, el("h1", { tabindex: "-1" }, "Clients"), actions), advice,
		el("div", { class: "filters" }, searched, choices.realm.node, choices.state.node, choices.managed.node, choices.unused.node, choices.expiring.node), place, said);
	showFilters();
	list();
	let was = null;
	watchGateway(signal, () => {
		showFilters();
		const now = JSON.stringify([mayWrite(), realms(), gateway.overview?.realms?.map((r) => r.managed_clients)]);
		if (now === was || !gateway.overview) return;
		was = now;
		const managed = gateway.overview.realms.filter((r) => r.managed_clients);
		advice.replaceChildren(mayWrite() && managed.length === 0 ? notice("", el("p", {}, "No realm has managed clients, so none can be added here. Put ", code("managed_clients"), " into the realm's options, and reload.")) : mayWrite() ? "" : readOnly());
		actions.replaceChildren(mayWrite() && managed.length > 0 ? el("button", { type: "button", class: "primary", click: () => addClient(managed.map((r) => r.name)) }, "Add client") : "");
	});
	return (changed) => {
		take(changed);
		showFilters();
		list();
	};
}

const words = (text) => text.split(/[\s,]+/).filter(Boolean);

// object reads a JSON object that somebody has written.
function object(text, what) {
	if (text.trim() === "") return {};
	let read = null;
	try {
		read = JSON.parse(text);
	} catch (error) {
		throw new Error(`${what}: this is no JSON: ${error.message}`);
	}
	if (read === null || typeof read !== "object" || Array.isArray(read)) throw new Error(`${what} must be a JSON object, as in {"token_format": "jwt"}`);
	return read;
}

function addClient(managed) {
	dialog("Add a client", (close) => {
		const id = el("input", { type: "text", required: true, autocomplete: "off", spellcheck: "false", maxlength: "256", "data-first": true });
		const realm = el("select", {}, managed.map((name) => el("option", { value: name }, plain(name, 60))));
		const scopes = el("input", { type: "text", autocomplete: "off", spellcheck: "false" });
		const defaults = el("input", { type: "text", autocomplete: "off", spellcheck: "false" });
		const audience = el("input", { type: "text", autocomplete: "off", spellcheck: "false" });
		const lifetime = el("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "as the realm", pattern: "[0-9hms]+" });
		const jwk = field("Public key (JWK)", el("textarea", { rows: "4", spellcheck: "false" }), ["Made with ", el("code", {}, "caddy oauth generate-key"), ". A private key is refused."]);
		const auth = el("select", { change: () => (jwk.hidden = auth.value !== "private_key_jwt") },
			el("option", { value: "" }, "Secret, made by the gateway"), el("option", { value: "private_key_jwt" }, "Key (private_key_jwt)"), el("option", { value: "other" }, "As the other settings say"));
		const other = el("textarea", { rows: "4", spellcheck: "false", placeholder: "{}" });
		jwk.hidden = true;
		return form({
			close, action: "Add client",
			fields: [
				el("div", { class: "row" }, field("Client ID", id), managed.length > 1 && field("Realm", realm)),
				field("Scopes", scopes, "What it may ask for, separated by spaces. Without any it can have no token."),
				field("Default scopes", defaults, "What it gets if it asks for none. Without any, those of the realm."),
				el("div", { class: "row" }, field("Audience", audience), field("Lifetime of its tokens", lifetime, "As in 10m or 1h.")),
				field("It authenticates by", auth), jwk,
				el("details", {}, el("summary", {}, "Other settings"), field("Other settings (JSON)", other, "Settings of a client as the configuration has them in JSON, such as {\"token_format\": \"jwt\"}.")),
			],
			work: async () => {
				const settings = object(other.value, "Other settings");
				if (scopes.value.trim()) settings.scopes = words(scopes.value);
				if (defaults.value.trim()) settings.default_scopes = words(defaults.value);
				if (audience.value.trim()) settings.audience = words(audience.value);
				if (lifetime.value.trim()) settings.token_lifetime = lifetime.value.trim();
				if (auth.value === "private_key_jwt") {
					settings.auth = ["private_key_jwt"];
					settings.jwk = [object(jwk.querySelector("textarea").value, "The public key")];
				}
				if (!addressable(id.value)) throw new Error("A browser can't name a client that is called . or ..; the command line can.");
				return (await ask("PUT", clientPath(realm.value, id.value), { body: settings, headers: { "If-None-Match": "*" } }).catch((error) => {
					throw error.status === 412 ? new Error("The realm has a client of this ID already. Choose another one, or change the one that is there.") : error;
				})).data;
			},
			done: (added) => {
				location.hash = address(["clients", added.realm, added.id]);
				if (added.secret) showSecret(added.id, added.secret);
			},
		});
	});
}

// durations writes the durations of settings, which JSON has in nanoseconds, as people do.
function durations(settings) {
	const text = (n) => {
		if (typeof n !== "number") return n;
		for (const [unit, size] of [["h", 3600e9], ["m", 60e9], ["s", 1e9], ["ms", 1e6]]) if (n % size === 0) return n / size + unit;
		return n;
	};
	const copy = structuredClone(settings ?? {});
	if ("token_lifetime" in copy) copy.token_lifetime = text(copy.token_lifetime);
	for (const limit of Object.values(copy.limits ?? {})) if (limit && "per" in limit) limit.per = text(limit.per);
	return copy;
}

function client({ root, signal, parts }) {
	const [, realm, id] = parts;
	const body = el("div", { class: "stack" });
	const actions = el("div", { class: "push actions" });
	const state = el("span");
	let read = null; // the client and its ETag
	root.append(
		el("p", {}, el("a", { href: "#/clients" }, "Clients"), el("span", { class: "dim" }, " / ", plain(realm, 60))),
		el("div", { class: "head" }, el("h1", { tabindex: "-1" }, plain(id)), state, actions), body);
	const refresh = () => load(body, signal, () => ask("GET", clientPath(realm, id), { signal }), (answer) => {
		read = answer;
		return show();
	});
	const again = async () => {
		await refresh();
		if (document.activeElement === document.body) root.querySelector("h1").focus({ preventScroll: true });
	};
	const path = clientPath(realm, id);
	const named = code(id, 120);

	// change puts settings, and only if nobody else has changed the client since it was read.
	const change = (settings) => ask("PUT", path, { body: settings, headers: read.etag ? { "If-Match": read.etag } : {} }).catch((error) => {
		if (error.status === 412) error.extra = el("button", { type: "button", click: (event) => { event.target.closest("dialog").close(); again(); } }, "Show the client as it is now");
		throw error;
	});

	const show = () => {
		const c = read.data;
		state.replaceChildren(clientState(c));
		const mine = mayWrite() && c.managed;
		actions.replaceChildren(...[
			mine && el("button", { type: "button", click: () => changeSettings(c) }, "Change settings"),
			mine && (c.settings.disabled
				? el("button", { type: "button", click: () => enable(c) }, "Enable")
				: el("button", { type: "button", class: "danger", click: () => disable(c) }, "Disable")),
			mayWrite() && el("button", { type: "button", class: "danger", click: revoke }, "Revoke tokens"),
			mine && el("button", { type: "button", class: "danger", click: remove }, "Remove"),
		].filter(Boolean));
		const settings = durations(c.settings);
		const takesSecrets = !settings.auth?.length ? !settings.federated?.length : settings.auth.some((a) => a.startsWith("client_secret"));
		return [
			c.unusable && notice("bad", el("p", {}, "This client can't be used: ", plain(c.unusable), ". It can't authenticate, and its tokens are refused.")),
			!mayWrite() ? readOnly() : !c.managed && notice("", el("p", {}, "This client is in the configuration", settings.at ? [" (", code(settings.at), ")"] : "", ": change it there, and reload.")),
			el("div", { class: "stack sides" },
				el("div", { class: "stack" },
					el("section", { class: "panel" }, el("header", {}, el("h2", {}, "Secrets"), mine && takesSecrets && el("div", { class: "push actions" }, el("button", { type: "button", click: () => newSecret(c) }, "New secret"))),
						c.secrets?.length ? table("Secrets", ["Secret", "State", "Until", "Last used", ...(mine ? ["Action"] : [])], c.secrets.map((s, i) => [
							s.id ? code(s.id) : `no. ${i + 1}`,
							[secretState(s, c.use), s.from && new Date(s.from) > new Date() && el("div", { class: "dim" }, "from ", moment(s.from))],
							[moment(s.until, "no end"), s.retire_unused && el("div", { class: "dim" }, `retires when unused for ${plain(typeof s.retire_unused === "number" ? durations({ token_lifetime: s.retire_unused }).token_lifetime : s.retire_unused, 40)}`)],
							shortMoment(s.used, "not known"),
							...(mine ? [s.id ? el("button", { type: "button", class: "danger", click: () => removeSecret(s) }, "Remove", el("span", { class: "hidden" }, ` secret ${s.id}`)) : null] : []),
						])) : empty(takesSecrets ? "It has no secret." : "It needs no secret.", takesSecrets ? "It can't authenticate until it has one." : ["It authenticates by ", tags(settings.auth)])),
					panel("Settings", el("div", { class: "body stack" }, facts([
						["Scopes", tags(settings.scopes)],
						settings.default_scopes && ["Default scopes", tags(settings.default_scopes)],
						["Audience", tags(settings.audience)],
						["Authenticates by", settings.auth ? tags(settings.auth) : settings.federated?.length ? tags(["federated"]) : tags(["client_secret_basic", "client_secret_post"])],
						["Tokens live", settings.token_lifetime ? plain(settings.token_lifetime) : "as the realm says"],
						["Token format", settings.token_format ? plain(settings.token_format) : "as the realm says"],
						(c.introspects || settings.introspect) && ["May ask about", plain(c.introspects || settings.introspect)],
					]), el("details", {}, el("summary", {}, "All settings, as JSON"), el("pre", { tabindex: "0" }, pretty(settings)))))),
				el("div", { class: "stack" },
					panel("Use", el("div", { class: "body" }, facts([
						["Last token", moment(c.use?.token, "not known")],
						["Last use", moment(c.use?.seen, "not known")],
						["From", c.use?.from ? code(c.use.from) : none()],
						["Method", c.use?.method ? code(c.use.method) : none()],
						["Credential", c.use?.credential ? code(c.use.credential) : none()],
						c.elsewhere !== undefined && ["Tokens from elsewhere", `${counted(c.elsewhere, "check")} at this gateway`],
					]))),
					panel("About", el("div", { class: "body" }, facts([
						["Realm", plain(realm, 60)],
						["From", c.managed ? "managed: kept in the store" : ["the configuration", settings.at ? [", ", code(settings.at)] : ""]],
						c.created && ["Added", moment(c.created)],
						c.changed && ["Changed", moment(c.changed)],
						["Refusals", el("a", { href: address(["live"], { realm, client: id }) }, "Watch its refusals")],
					]))))),
		];
	};

	const changeSettings = (c) => dialog("Change settings", (close) => {
		const text = el("textarea", { rows: "16", spellcheck: "false", "data-first": true }, JSON.stringify(durations(c.settings), null, 2));
		return form({
			close, action: "Save",
			fields: [field(["Settings of ", named.cloneNode(true), ", as JSON"], text, "They replace those that it has; its secrets stay. What is narrowed counts from the next request on, for tokens that it has, too.")],
			work: () => change(object(text.value, "The settings")),
			done: again,
		});
	});
	const disable = (c) => question({
		title: "Disable the client?", action: "Disable",
		text: [named.cloneNode(true), " can't authenticate until it is enabled again. All its tokens end now, for good."],
		work: () => change({ ...c.settings, disabled: true }), done: again,
	});
	const enable = async (c) => {
		try {
			await change({ ...c.settings, disabled: false });
			again();
		} catch (error) {
			body.prepend(trouble(error), error.extra ?? "");
		}
	};
	const revoke = () => question({
		title: "Revoke all its tokens?", action: "Revoke tokens",
		text: ["All tokens that ", named.cloneNode(true), " has fetched so far end now, for good. It can fetch new ones."],
		work: () => ask("POST", "tokens/revoke", { body: { realm, client: id } }), done: again,
	});
	const remove = () => question({
		title: "Remove the client?", action: "Remove", typed: id,
		text: [named.cloneNode(true), " and its secrets are gone, and all its tokens end, for good. A client that is added with this ID later is another one."],
		work: () => ask("DELETE", path, { headers: read.etag ? { "If-Match": read.etag } : {} }),
		done: () => (location.hash = "#/clients"),
	});
	const removeSecret = (s) => question({
		title: "Remove the secret?", action: "Remove secret",
		text: ["Programs that use the secret ", code(s.id), " of ", named.cloneNode(true), " can't authenticate any more.", s.used ? [" It was last used ", shortMoment(s.used), "."] : " When it was last used is not known."],
		work: () => ask("DELETE", clientPath(realm, id, "secrets", s.id), { headers: read.etag ? { "If-Match": read.etag } : {} }), done: again,
	});
	const newSecret = (c) => dialog("New secret", (close) => {
		const until = el("input", { type: "datetime-local" });
		const at = el("input", { type: "datetime-local", "aria-label": "When the other secrets end" });
		const days = el("select", { "aria-label": "How long unused" }, [["24h", "a day"], ["168h", "7 days"], ["720h", "30 days"]].map(([v, text]) => el("option", { value: v, selected: v === "168h" }, text)));
		const revokes = el("input", { type: "checkbox" });
		const choice = (value, text, extra, checked) => el("div", { class: "choice" }, el("label", {}, el("input", { type: "radio", name: "others", value, checked }), text), extra);
		const others = (c.secrets ?? []).filter((s) => !ended(s)).length;
		const fieldset = el("fieldset", {}, el("legend", {}, others === 1 ? "The secret that it has" : `The ${others} secrets that it has`),
			choice("retire", "retire once unused for", days, true), choice("keep", "stay"), choice("at", "end at", at), choice("now", "end at once"));
		at.addEventListener("input", () => (fieldset.querySelector("[value=at]").checked = true));
		return form({
			close, action: "Make the secret",
			fields: [
				el("p", {}, "The gateway makes another secret for ", named.cloneNode(true), " and shows it once."),
				others > 0 && fieldset,
				field("The new secret ends", until, "Empty: it has no end."),
				el("label", { class: "choice" }, revokes, "Revoke all tokens that it has fetched so far"),
			],
			work: async () => {
				const asked = {};
				if (until.value) asked.until = new Date(until.value).toISOString();
				const kind = others > 0 && fieldset.querySelector(":checked").value;
				if (kind === "retire") asked.others_retire_unused = days.value;
				if (kind === "at" && !at.value) throw new Error("Say when the other secrets end.");
				if (kind === "at") asked.others_until = new Date(at.value).toISOString();
				if (kind === "now") asked.others_until = new Date().toISOString();
				if (revokes.checked) asked.revoke_tokens = true;
				return (await ask("POST", clientPath(realm, id, "secrets"), { body: asked, headers: read.etag ? { "If-Match": read.etag } : {} })).data;
			},
			done: async (made) => {
				again();
				showSecret(id, made.secret);
			},
		});
	});

	refresh();
	let wrote = null;
	watchGateway(signal, () => {
		if (wrote !== mayWrite() && read) body.replaceChildren(...show().filter(Boolean));
		wrote = mayWrite();
	});
}

function secretState(s, use) {
	if (ended(s)) return badge("bad", "ended");
	if (s.from && new Date(s.from) > new Date()) return badge("off", "not yet");
	if (s.until && new Date(s.until) - Date.now() < 30 * 86400e3) return badge("warn", "ends soon");
	return badge("good", use?.credential && use.credential === s.id ? "in use" : "valid");
}

// pretty is JSON in lines, each of them plain.
const pretty = (value) => JSON.stringify(value, null, 2).split("\n").map((line) => plain(line, 2000)).join("\n");

// ---- Routes

// What is said of who gets in.
const accesses = { open: "Open", clients: "Clients", endpoint: "Endpoints", nobody: "Nobody", answered: "Answered by Caddy", unknown: "Unknown" };

function routes({ root, query, signal }) {
	const filter = { search: query.get("search") ?? "", who: query.get("who") ?? "" };
	const place = el("div", { class: "stack" });
	const said = el("p", { class: "hidden", role: "status" });
	let data = null;
	const change = (changed) => {
		Object.assign(filter, changed);
		keep(["routes"], filter);
		show();
	};
	const choice = select("Who gets in", (who) => change({ who }));
	const searched = search("Search by path, client or backend", filter.search, later(signal, (value) => change({ search: value })));
	const show = () => {
		if (!data) return;
		const counts = {};
		for (const site of data.sites) for (const row of site.rows) counts[row.who] = (counts[row.who] ?? 0) + 1;
		choice.offer([["", "All"], ...Object.entries(accesses).filter(([who]) => counts[who] || who === filter.who).map(([who, text]) => [who, `${text} (${counts[who] ?? 0})`])], filter.who);
		const wanted = filter.search.toLowerCase();
		const fits = (site, row) => (!filter.who || row.who === filter.who) && (!wanted || JSON.stringify([site.hosts, row.paths, row.methods, row.clients, row.foreign, row.to, row.rules]).toLowerCase().includes(wanted));
		const panels = [];
		let n = 0;
		for (const site of data.sites) {
			const rows = site.rows.filter((row) => fits(site, row));
			n += rows.length;
			if (rows.length > 0) panels.push(panel(siteTitle(site), (site.notes ?? []).map((note) => el("p", { class: "body dim" }, plain(note, 500))), table(`Routes of ${siteTitle(site)}`, ["Path", "Methods", "Who gets in", "Goes to", "Rule", "Ask"], rows.map((row) => routeCells(site, row)))));
		}
		if (data.cut) panels.push(notice("warn", el("p", {}, "There is more than is looked into: some rows depend on paths or hosts that have no rows of their own.")));
		said.textContent = `${counted(n, "route")} shown`;
		if (n === 0) panels.unshift(el("div", { class: "panel" }, data.sites.length === 0 ? empty("The configuration has no routes.") : empty("No route fits.", el("button", { type: "button", class: "plain", click: () => { searched.querySelector("input").value = ""; change({ search: "", who: "" }); } }, "Show all"))));
		place.replaceChildren(...panels);
	};
	root.append(heading("Routes"), el("p", { class: "lead" }, "Who gets in where, by the configuration in force. Of several rows that fit a request, the first counts. A client stands for the best token that it can fetch."), el("div", { class: "filters" }, searched, choice.node), place, said);
	load(place, signal, () => ask("GET", "routes", { signal }), (answer) => {
		data = answer.data;
		show();
		return [...place.childNodes];
	});
	return (changed) => {
		Object.assign(filter, { search: changed.get("search") ?? "", who: changed.get("who") ?? "" });
		searched.querySelector("input").value = filter.search;
		show();
	};
}

const siteScheme = (site) => (site.tls ? "https://" : "http://");

function siteTitle(site) {
	const names = (site.hosts?.length ? site.hosts : site.listen ?? []).map((name) => siteScheme(site) + name);
	const usual = site.tls ? ":443" : ":80";
	return plain(names.join(", ") + (site.hosts?.length && !site.listen?.includes(usual) ? ` at ${(site.listen ?? []).join(", ")}` : ""), 400);
}

// siteAddress is where a request to a site would go.
function siteAddress(site) {
	const listen = site.listen?.[0] ?? "";
	const port = /:(\d+)$/.exec(listen)?.[1];
	const host = site.hosts?.[0] ?? (listen.replace(/:\d+$/, "") || "localhost");
	return siteScheme(site) + host.replaceAll("*", "x") + (port && port !== (site.tls ? "443" : "80") ? ":" + port : "");
}

// some shows the first few of a list, and the others if they are asked for. A single other one would
// take no more room.
function some(list, few, show) {
	if (list.length <= few + 1) return list.map(show);
	return [list.slice(0, few).map(show), el("details", {}, el("summary", {}, `and ${list.length - few} others`), list.slice(few, 500).map(show))];
}

function routeCells(site, row) {
	const who = {
		open: () => el("span", { class: "open" }, "OPEN"),
		nobody: () => ["nobody", row.why && el("span", { class: "dim" }, ": ", plain(row.why))],
		answered: () => none(),
		endpoint: () => plain(row.why ?? "clients, with their own credentials"),
		unknown: () => badge("warn", plain(row.why ?? "not known")),
		clients: () => {
			const list = row.clients ?? [];
			const name = (c) => tag(realms().length > 1 ? `${c.realm.replaceAll("/", "~")}/${c.id}` : c.id);
			return [
				list.length > 0 && el("span", { class: "tags" }, list.slice(0, 6).map(name)),
				list.length > 6 && el("details", {}, el("summary", {}, `and ${counted(list.length - 6, "other")}`), el("span", { class: "tags" }, list.slice(6, 500).map(name))),
				(row.foreign ?? []).map((f) => el("div", {}, "tokens of ", code(f.source), f.needs?.length ? [" with ", tags(f.needs)] : "")),
			];
		},
	}[row.who]?.() ?? plain(row.who);
	const method = row.methods?.[0] === "*" || !row.methods?.length ? "GET" : row.methods[0];
	const path = (row.paths?.[0] ?? "/").replaceAll("*", "");
	const url = siteAddress(site) + (path.startsWith("/") ? path : "/" + path);
	return [
		[some(row.paths ?? [], 3, (p) => el("div", {}, code(p, 160))), row.when?.length ? el("div", { class: "dim" }, "if ", row.when.map((w, i) => [i > 0 && " and ", code(w)])) : null],
		el("span", { class: "mono" }, plain((row.methods ?? []).join(" "))),
		[who, (row.notes ?? []).map((n) => el("div", { class: "dim" }, plain(n)))],
		row.to?.length ? row.to.map((t) => el("div", {}, code(t, 160))) : none(),
		row.rules?.length ? row.rules.map((r) => el("div", {}, code(r, 160))) : none(),
		el("a", { href: address(["explain"], { method, url }) }, "Explain", el("span", { class: "hidden" }, plain(` ${method} ${url}`))),
	];
}

// ---- Explain

function explain({ root, query, signal }) {
	const method = el("input", { type: "text", autocomplete: "off", spellcheck: "false", list: "methods", required: true });
	const url = el("input", { type: "text", autocomplete: "off", spellcheck: "false", required: true, placeholder: "https://api.example.com/orders" });
	const id = el("input", { type: "text", autocomplete: "off", spellcheck: "false" });
	const realm = el("select");
	const token = el("input", { type: "password", autocomplete: "off", spellcheck: "false" });
	const origin = el("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "as the URL suggests" });
	const headers = el("textarea", { rows: "3", spellcheck: "false", placeholder: "Accept: text/html" });
	const clientFields = el("div", { class: "row" }, field("Client ID", id), field("Realm", realm));
	const tokenField = field("Token", token, "It is sent to the gateway, which looks at it and keeps nothing. This page forgets it when you leave the screen.");
	const choice = (value, text) => el("label", { class: "choice" }, el("input", { type: "radio", name: "who", value, change: () => showWho() }), text);
	const who = el("fieldset", {}, el("legend", {}, "Who asks"), el("div", { class: "actions" }, choice("nobody", "Nobody: no token"), choice("client", "A client, with its best token"), choice("token", "Whoever has this token")));
	const result = el("div", { class: "stack", "aria-live": "polite" });
	const chosen = () => who.querySelector(":checked")?.value ?? "nobody";
	const choose = (value) => (who.querySelector(`[value=${value}]`).checked = true);
	const showWho = () => {
		clientFields.hidden = chosen() !== "client";
		tokenField.hidden = chosen() !== "token";
	};
	let wantedRealm = "", wasRefused = "";
	const showRealms = () => {
		const value = realm.value || wantedRealm;
		const names = [...new Set([...realms(), value])].filter(Boolean);
		if (JSON.stringify(names) !== realm.dataset.offered) {
			realm.dataset.offered = JSON.stringify(names);
			realm.replaceChildren(el("option", { value: "" }, "Any"), ...names.map((name) => el("option", { value: name }, plain(name, 60))));
		}
		realm.value = value;
	};
	const take = async (from) => {
		method.value = from.get("method") ?? "GET";
		url.value = from.get("url") ?? "";
		id.value = from.get("client") ?? "";
		wantedRealm = from.get("realm") ?? "";
		wasRefused = from.get("cause") ?? "";
		realm.value = "";
		showRealms();
		origin.value = from.get("from") ?? "";
		if (id.value) choose("client");
		else if (chosen() !== "token") choose("nobody");
		showWho();
		result.replaceChildren();
		if (!url.value && from.get("path")) {
			await load(result, signal, () => urlOf(from, signal), (found) => {
				url.value = found;
				return [];
			});
		}
		if (url.value && !signal.aborted) asked(true);
	};
	const asked = async (quietly) => {
		const body = { method: method.value.trim(), url: url.value.trim() };
		if (chosen() === "client" && id.value) Object.assign(body, { client: id.value }, realm.value ? { realm: realm.value } : {});
		if (chosen() === "token") {
			if (!token.value) {
				if (!quietly) result.replaceChildren(notice("warn", el("p", {}, "Paste a token, or choose who else asks.")));
				return;
			}
			body.token = token.value.trim();
		}
		if (origin.value.trim()) body.from = origin.value.trim();
		for (const line of headers.value.split("\n").filter((l) => l.trim())) {
			const cut = line.indexOf(":");
			const name = line.slice(0, cut).trim();
			if (cut < 1) return result.replaceChildren(notice("warn", el("p", {}, "A header is a name, a colon and a value, each in a line of its own.")));
			if (name.toLowerCase() === "authorization") return result.replaceChildren(notice("warn", el("p", {}, "Credentials don't belong among the headers: choose “Whoever has this token”, and paste the token there.")));
			body.header ??= {};
			(body.header[name] ??= []).push(line.slice(cut + 1).trim());
		}
		// The token stays out of the address.
		keep(["explain"], { method: body.method, url: body.url, client: body.client, realm: body.realm, from: body.from });
		await load(result, signal, () => ask("POST", "explain", { body, signal }), ({ data }) => [
			wasRefused && data.outcome.kind === "pass" && data.client && notice("warn", el("p", {}, `Such a request was refused for the cause ${plain(wasRefused, 40)}, but the best token that the client can fetch gets it through. So the client used another one: does it ask for all scopes that it needs, and fetch a new token in time?`)),
			explanation(data),
		]);
		wasRefused = "";
	};
	root.append(
		heading("Explain"),
		el("p", { class: "lead" }, "Which way a request would go, and why it would be refused. Nothing is sent to a backend, counted, logged or stored."),
		el("div", { class: "stack" },
			el("section", { class: "panel", "aria-label": "The request" }, el("div", { class: "body" }, el("form", {
				class: "ask", autocomplete: "off", novalidate: true, submit: (event) => {
					event.preventDefault();
					if (!url.value.trim()) {
						result.replaceChildren(notice("warn", el("p", {}, "Give a URL, as in https://api.example.com/orders.")));
						url.focus();
						return;
					}
					asked(false);
				},
			},
			el("div", { class: "row" }, el("div", { class: "short" }, field("Method", method)), el("div", { class: "wide" }, field("URL", url))),
			el("datalist", { id: "methods" }, ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].map((m) => el("option", { value: m }))),
			who, clientFields, tokenField,
			el("details", {}, el("summary", {}, "More about the request"), el("div", { class: "row" }, field("Comes from the address", origin), field("Headers", headers))),
			el("div", { class: "actions" }, el("button", { class: "primary" }, "Explain"))))),
			result));
	watchGateway(signal, showRealms);
	take(query);
	return take;
}

// urlOf returns the URL of a request of which the host and the path are known, and the rule that it met:
// the site that has the rule says whether it came over TLS.
async function urlOf(known, signal) {
	const host = known.get("host") ?? "", rule = known.get("rule") ?? "";
	const { data } = await ask("GET", "routes", { signal });
	const name = host.replace(/:\d+$/, "").toLowerCase();
	const sites = data.sites.filter((site) => site.rows.some((row) => row.rules?.includes(rule)));
	const site = sites.find((s) => s.hosts?.includes(name)) ?? sites.find((s) => !s.hosts?.length) ?? sites[0] ?? data.sites[0];
	if (!site) throw new Problem(0, "The configuration has no routes any more.");
	return (host ? siteScheme(site) + host : siteAddress(site)) + known.get("path");
}

// ending says how a walk ends, as 'caddy oauth explain' does.
function ending(o) {
	switch (o.kind) {
	case "pass":
		return ["good", "It passes", `${o.at ?? "A backend"} gets it.`];
	case "unknown":
		return ["warn", "Nobody can tell", `It depends on ${(o.unsure ?? []).join(", ") || "something that isn't looked into"}.${o.as_if ? ` If it gets past that unchanged: ${ending(o.as_if).slice(1).join(". ")}` : ""}`];
	case "closed":
		return ["bad", "It is not answered", `${o.at ?? "A handler"} closes the connection.`];
	case "unanswered":
		return ["warn", "No handler answers it", "Caddy sends an empty 200."];
	}
	const status = o.status ? ` with ${o.status}` : "", at = o.at ? `At ${o.at}.` : "";
	if (o.kind === "refused") return ["bad", `It is refused${status}${o.cause ? `: ${o.cause}` : ""}`, at];
	return [o.status >= 300 ? "warn" : "good", `It is answered${status}`, at];
}

function explanation(e) {
	const [kind, verdict, where] = ending(e.outcome);
	const mark = (did) => ({ refused: "bad", passed: "good", forwarded: "good", answered: "off", skipped: "off" })[did] ?? "warn";
	const steps = (e.steps ?? []).filter((s) => !s.aside), aside = (e.steps ?? []).filter((s) => s.aside);
	const step = (s) => el("li", {},
		badge(mark(s.did), [plain(s.handler, 120), " ", el("strong", {}, plain(s.did))]), s.cause && [": ", plain(s.cause)],
		el("span", { class: "dim" }, "  ", code(s.at || s.path, 200)),
		s.text && el("div", {}, plain(s.text, 600)),
		s.cause && s.want?.length > 0 && el("div", {}, "wanted: ", tags(s.want), " has: ", s.has?.length ? tags(s.has) : "nothing"));
	const passing = e.client_count === 0 ? null : e.passing_count === 0
		? `None of ${counted(e.client_count, "client")} would ${e.outcome.kind === "unknown" ? "certainly " : ""}pass.`
		: [`Of ${counted(e.client_count, "client")}, ${number(e.passing_count)} would pass: `, tags(e.passing), e.passing.length < e.passing_count && " …"];
	return [
		el("section", { class: "panel" }, el("div", { class: "verdict stack " + kind },
			el("p", {}, badge(kind, plain(verdict))),
			(where || e.means || e.do) && el("div", {}, where && el("p", {}, plain(where, 500)), e.means && el("p", {}, prose(e.means)), e.do && el("p", {}, el("strong", {}, "What to do: "), prose(e.do))),
			el("p", { class: "dim" }, code(e.method), " ", code(e.url, 500), e.client ? [" by client ", code(e.client)] : e.token ? [" with ", plain(e.token, 500)] : " by anybody"),
			e.client && e.token && el("p", { class: "dim" }, "Its token: ", plain(e.token, 500)),
			e.asked?.length > 0 && el("p", { class: "dim" }, `Asked about the token: ${plain(e.asked.join(", "), 500)}`))),
		panel(["Its way through server ", code(e.server)],
			steps.length > 0 ? el("ol", { class: "steps" }, steps.map(step)) : empty("It meets no handler of the gateway."),
			aside.length > 0 && el("details", { class: "body" }, el("summary", {}, `Steps that play no part (${aside.length})`), el("ol", { class: "steps" }, aside.map(step)))),
		passing && panel("Who else would pass", el("p", { class: "body" }, passing)),
	];
}

// ---- Keys

function keys({ root, signal }) {
	const place = el("div", { class: "stack" });
	root.append(heading("Keys", el("button", { type: "button", click: () => refresh() }, "Refresh")), el("p", { class: "lead" }, "The keys by which self-contained tokens are signed and sealed. Nothing here is secret. Keys that the gateway makes change by themselves."), place);
	const kinds = { "in use": "good", next: "off", old: "off", published: "off" };
	const rotate = (realm, withdraw) => question({
		title: withdraw ? "Withdraw all keys?" : "Make the next keys?", action: withdraw ? "Withdraw keys" : "Make keys", danger: withdraw, typed: withdraw ? realm : null,
		text: withdraw
			? ["The keys of realm ", code(realm), " end now, and with them all its self-contained tokens, for good. Clients must fetch new ones. This is for keys that were stolen."]
			: ["Realm ", code(realm), " gets its next keys now. They come into use when others have had the time to fetch them. No token is refused."],
		work: () => ask("POST", "keys/rotate", { body: withdraw ? { realm, withdraw } : { realm } }), done: () => refresh(),
	});
	const refresh = () => load(place, signal, () => ask("GET", "keys", { signal }), ({ data }) => data.realms.map((r) => el("section", { class: "panel" },
		el("header", {}, el("h2", {}, plain(r.realm, 60)), r.epoch && el("span", { class: "dim" }, "epoch ", code(r.epoch)),
			mayWrite() && r.keys.some((k) => !k.file) && el("div", { class: "push actions" },
				el("button", { type: "button", click: () => rotate(r.realm, false) }, "Make next keys", el("span", { class: "hidden" }, ` of ${plain(r.realm, 60)}`)),
				el("button", { type: "button", class: "danger", click: () => rotate(r.realm, true) }, "Withdraw keys", el("span", { class: "hidden" }, ` of ${plain(r.realm, 60)}`)))),
		r.keys.length === 0 ? empty("This realm has no keys.", "Its tokens are opaque: each counts only while the store has its record.")
			: table(`Keys of ${plain(r.realm, 60)}`, ["Key", "Use", "State", "Algorithm", "Made", "In use from", "Until"], r.keys.map((k) => [
				code(k.id), k.use === "sign" ? "signs JWTs" : k.use === "seal" ? "seals tokens" : plain(k.use), badge(kinds[k.state] ?? "off", plain(k.state)), k.algorithm ? code(k.algorithm) : none(),
				k.file ? el("span", { class: "dim" }, "from a file") : moment(k.made), moment(k.from), moment(k.until),
			])))));
	refresh();
	let wrote = mayWrite();
	watchGateway(signal, () => {
		if (wrote !== mayWrite()) refresh();
		wrote = mayWrite();
	});
}

// ---- Sources and store

function latency(ms) {
	if (typeof ms !== "number") return none();
	const text = ms < 0.1 ? `${Math.round(ms * 1000)} µs` : ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
	return el("span", { class: "nowrap" }, text);
}

function sources({ root, signal }) {
	const place = el("div", { class: "stack" });
	root.append(heading("Sources and store"), place);
	const show = () => {
		if (gateway.problem) return place.replaceChildren(trouble(gateway.problem, lookAtGateway));
		const o = gateway.overview;
		const [kind, word, todo] = stateOf(o.store.state);
		const hits = o.cache?.hits ?? 0, misses = o.cache?.misses ?? 0;
		const told = o.sources.filter((s) => stateOf(s.state)[2]);
		place.replaceChildren(
			todo && kind !== "off" ? notice(kind, el("p", {}, "Store: ", todo)) : "",
			o.store.coherent ? "" : notice("warn", el("p", {}, "This gateway doesn't hear of changes at others, so its cache answers nothing: every check asks the store, which is slower and just as right. It recovers by itself when the link is back.")),
			...told.map((s) => notice(stateOf(s.state)[0], el("p", {}, code(s.label), ": ", stateOf(s.state)[2]))),
			el("div", { class: "stack pair" },
				panel("Store", el("div", { class: "body" }, facts([
					["Kind", plain(o.store.kind ?? "–")],
					o.store.address && ["Address", code(o.store.address)],
					["State", badge(kind, word)],
					["Link", o.store.coherent ? badge("good", "hears of changes at other gateways") : badge("warn", "lost: the cache is bypassed")],
					["Reads take", latency(o.store.latency_ms?.get)],
					["Writes take", latency(o.store.latency_ms?.put)],
				]))),
				panel("Cache", el("div", { class: "body" }, o.cache ? facts([
					["Tokens", [number(o.cache.entries), o.cache.max ? el("span", { class: "dim" }, ` of ${number(o.cache.max)} at most`) : ""]],
					["Answered from it", [number(hits), hits + misses > 0 ? el("span", { class: "dim" }, ` (${((100 * hits) / (hits + misses)).toFixed(1)} %)`) : ""]],
					["Asked elsewhere", number(misses)],
				]) : "The cache is off."))),
			panel("Sources of tokens from elsewhere", o.sources.length === 0 ? empty("There are none.", "All tokens are issued here.") : table("Sources", ["Source", "Type", "State", "Takes", "Answers", "Used at", "Last error"], o.sources.map((s) => [
				code(s.label), plain(s.type ?? ""), badge(...stateOf(s.state).slice(0, 2)), latency(s.latency_ms),
				s.stale ? badge("warn", "stale answers are served") : "current", s.used_at === undefined ? none() : el("span", { class: "nowrap" }, counted(s.used_at, "route")), s.last_error ? plain(s.last_error, 500) : none(),
			]))),
			panel("Realms", o.realms.length === 0 ? empty("No realm issues tokens here.") : table("Realms", ["Realm", "State", "Issuer", "Tokens", "Clients", "Managed clients"], o.realms.map((r) => [
				el("a", { href: address(["clients"], { realm: r.name }) }, plain(r.name, 60)), r.state === "none" ? badge("off", "issues nothing here") : badge(...stateOf(r.state).slice(0, 2)), r.issuer ? code(r.issuer) : none(), plain(r.token_format ?? ""), number(r.configured), r.managed_clients ? number(r.managed) : el("span", { class: "dim" }, "off"),
			]))));
	};
	watchGateway(signal, show);
}

// ---- Start

document.querySelector(".skip").addEventListener("click", (event) => {
	event.preventDefault(); // the part behind # says which screen it is
	document.getElementById("main").focus();
});
addEventListener("hashchange", open);
every(15, new AbortController().signal, lookAtGateway);
open();
