package caddyoauth

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/go-jose/go-jose/v4"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Clients of other servers are imported in four steps:
//
//	readImported         import.go            the files, or all in a folder
//	readAM, …            import_am.go, …      what one product exports becomes realms and clients
//	migration.finish     import.go            what the gateway would refuse is left out
//	writeRealms          import_caddyfile.go  the Caddyfile, which is read again and compared
//
// An export is as good as whoever could write to it, so all texts in it are hostile. Each of its fields
// is used, is known to mean nothing here, or is reported.

const (
	// maxImportFiles bounds the files of an import. Amster writes one for each client.
	maxImportFiles = 50_000
	// maxImportBytes bounds their bytes, all together. An export of AM has some 15 KB for each client. How
	// deep they are nested is bounded by encoding/json, at 10,000 levels; nothing here descends further
	// than an export's own form does.
	maxImportBytes = 256 << 20
	// maxImportClients bounds the clients.
	maxImportClients = 100_000
)

// What others have and the gateway has not.
const (
	nobodyLogsIn = "nobody logs in here"
	noIDTokens   = "there are no id_tokens here"
	noUserinfo   = "there is no userinfo here"
)

// importedFile is a file of an export.
type importedFile struct {
	path string
	data []byte
}

// readImported reads the files, and the files .json in folders and what is below them. A file - is
// standard input.
func readImported(in io.Reader, paths []string) (files []importedFile, err error) {
	left := int64(maxImportBytes)
	add := func(path string, r io.Reader) error {
		data, err := io.ReadAll(io.LimitReader(r, left+1))
		if err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		left -= int64(len(data))
		switch {
		case left < 0:
			return fmt.Errorf("there are more than %d MiB to read", maxImportBytes>>20)
		case len(files) == maxImportFiles:
			return fmt.Errorf("there are more than %d files to read", maxImportFiles)
		}
		files = append(files, importedFile{path, data})
		return nil
	}
	open := func(path string) error {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		return add(path, file)
	}
	for _, path := range paths {
		if path == "-" {
			err = add("standard input", in)
		} else if info, failed := os.Stat(path); failed != nil {
			err = failed
		} else if !info.IsDir() {
			err = open(path)
		} else {
			err = filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
				// Links are not followed: they may lead anywhere.
				if err != nil || !entry.Type().IsRegular() || !strings.EqualFold(filepath.Ext(path), ".json") {
					return err
				}
				return open(path)
			})
		}
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

// documents returns the JSON documents in a file, which may have several, one after the other.
func (f importedFile) documents() (all []json.RawMessage, err error) {
	for decoder := json.NewDecoder(bytes.NewReader(f.data)); ; {
		var document json.RawMessage
		switch err := decoder.Decode(&document); {
		case errors.Is(err, io.EOF) && len(all) > 0:
			return all, nil
		case err != nil: // not repeated: it may hold a part of a secret
			return nil, errors.New("it is not JSON, or not whole")
		}
		all = append(all, document)
	}
}

// decodeImported returns the members of a JSON object. One that has a name twice is refused: it means
// something else to each who reads it.
func decodeImported(data []byte) (map[string]json.RawMessage, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	if begin, err := decoder.Token(); err != nil || begin != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	members := make(map[string]json.RawMessage)
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, errors.New("it is not JSON")
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, errors.New("it is not JSON")
		}
		text := name.(string) // the name of a member is always one
		if _, twice := members[text]; twice {
			return nil, fmt.Errorf("it has %q twice", loggedText(text))
		}
		members[text] = value
	}
	return members, nil
}

// migration is an import from another server: what was read, and what is to be said of it.
type migration struct {
	// issuer is that of root, or empty.
	issuer string
	// managed is set if the clients become managed ones, so that the settings of realms don't count.
	managed bool
	// certificates is the folder for files with certificates, or empty.
	certificates string
	realms       map[string]*importedRealm
	report       importReport
	// secrets are those that were made for clients whose own can't be read.
	secrets []madeSecret
	// files are those that the configuration refers to: their contents by their paths.
	files map[string]string
	// needsIssuer and needsCertificates name a client that can't be had without one; empty for none.
	needsIssuer, needsCertificates string
	clients                        int
}

// importedRealm is a realm as the configuration will have it, with what is said of it.
type importedRealm struct {
	Realm
	report *reportedRealm
}

// madeSecret is a line of the file of --secrets.
type madeSecret struct {
	Realm  string `json:"realm"`
	Client string `json:"client"`
	Secret string `json:"secret"`
}

// importReport says what became of everything in an export.
type importReport struct {
	Realms []*reportedRealm `json:"realms"`
	// Problems are files, or parts of them, that can't be read.
	Problems []lostSetting `json:"problems,omitempty"`
	// Skipped has what is there by the way and concerns no client, such as journeys: how many of each kind.
	Skipped map[string]int `json:"skipped,omitempty"`
}

// reportedRealm says what became of a realm.
type reportedRealm struct {
	Name string `json:"name"`
	// From is what the export calls it.
	From string        `json:"from"`
	Lost []lostSetting `json:"lost,omitempty"`
	// Notes say what the configuration has that the export doesn't, and what to see to about it.
	Notes   []string          `json:"notes,omitempty"`
	Clients []*reportedClient `json:"clients"`
}

// reportedClient says what became of a client.
type reportedClient struct {
	ID string `json:"id"`
	// LeftOut is why the client is not there at all; empty if it is.
	LeftOut string `json:"left_out,omitempty"`
	// NewSecret is set if it has another secret than before.
	NewSecret bool `json:"new_secret,omitempty"`
	// made is that secret.
	made string
	// Carried are the fields of the export that were used.
	Carried []string `json:"carried,omitempty"`
	// Lost are those that could not be.
	Lost []lostSetting `json:"lost,omitempty"`
}

// lostSetting is a field that could not be carried over, and why; or a file that could not be read.
type lostSetting struct {
	Field string `json:"field"`
	Why   string `json:"why"`
}

func (c *reportedClient) lose(field, format string, values ...any) {
	c.Lost = append(c.Lost, lostSetting{field, fmt.Sprintf(format, values...)})
}

// leaveOut says why a client can't be imported. The first reason counts.
func (c *reportedClient) leaveOut(format string, values ...any) {
	if c.LeftOut == "" {
		c.LeftOut = fmt.Sprintf(format, values...)
	}
}

func (r *reportedRealm) lose(field, format string, values ...any) {
	r.Lost = append(r.Lost, lostSetting{field, fmt.Sprintf(format, values...)})
}

func (r *reportedRealm) note(text string) { r.Notes = append(r.Notes, text) }

func (r *importReport) problem(where, format string, values ...any) {
	r.Problems = append(r.Problems, lostSetting{where, fmt.Sprintf(format, values...)})
}

// skip counts something that is no client.
func (r *importReport) skip(kind string) {
	if r.Skipped == nil {
		r.Skipped = make(map[string]int)
	}
	r.Skipped[loggedText(kind)]++
}

// whole reports whether everything was carried over.
func (r *importReport) whole() bool {
	lost := len(r.Problems) > 0
	for _, realm := range r.Realms {
		lost = lost || len(realm.Lost) > 0
		for _, client := range realm.Clients {
			lost = lost || client.LeftOut != "" || len(client.Lost) > 0
		}
	}
	return !lost
}

// count returns how many clients there are in the export, and how many of them are left out.
func (r *importReport) count() (all, out int) {
	for _, realm := range r.Realms {
		for _, client := range realm.Clients {
			all++
			if client.LeftOut != "" {
				out++
			}
		}
	}
	return all, out
}

// print writes the report for people.
func (r *importReport) print(w io.Writer) error {
	var text strings.Builder
	lost := func(indent string, all []lostSetting) {
		for _, setting := range all {
			fmt.Fprintf(&text, "%s%s: %s\n", indent, setting.Field, setting.Why)
		}
	}
	for _, realm := range r.Realms {
		fmt.Fprintf(&text, "Realm %s, which is %q there:\n", realm.Name, loggedText(realm.From))
		for _, note := range realm.Notes {
			fmt.Fprintf(&text, "  note: %s\n", note)
		}
		lost("  not carried over: ", realm.Lost)
		for _, client := range realm.Clients {
			switch {
			case client.LeftOut != "":
				fmt.Fprintf(&text, "  client %q is left out: %s\n", loggedText(client.ID), client.LeftOut)
			case client.NewSecret:
				fmt.Fprintf(&text, "  client %q, with a new secret; carried over: %s\n", loggedText(client.ID), strings.Join(client.Carried, ", "))
			default:
				fmt.Fprintf(&text, "  client %q; carried over: %s\n", loggedText(client.ID), strings.Join(client.Carried, ", "))
			}
			lost("    not carried over: ", client.Lost)
		}
	}
	lost("Not read: ", r.Problems)
	if len(r.Skipped) > 0 {
		var kinds []string
		for _, kind := range sortedKeys(r.Skipped) {
			kinds = append(kinds, fmt.Sprintf("%d %s", r.Skipped[kind], kind))
		}
		fmt.Fprintf(&text, "Of no concern here: %s\n", strings.Join(kinds, ", "))
	}
	all, out := r.count()
	fmt.Fprintf(&text, "%d clients: %d are carried over, %d are left out.\n", all, all-out, out)
	_, err := io.WriteString(w, printable(text.String())) // an export may have what a terminal obeys
	return err
}

var notInRealmName = regexp.MustCompile(`[^a-z0-9_-]+`)

// realmNameOf returns the name here of a realm that an export calls from, without slashes around it.
func realmNameOf(from string) string {
	if checkRealmName(from) == nil {
		return from
	}
	parts := strings.Split(strings.ToLower(from), "/")
	for i, part := range parts {
		parts[i] = strings.Trim(notInRealmName.ReplaceAllString(part, "-"), "-")
	}
	if name := strings.Join(parts, "/"); checkRealmName(name) == nil {
		return name
	}
	// It nests too deep, or has parts that are no names here.
	return cmp.Or(strings.Trim(strings.Join(parts, "-"), "-"), rootRealm)
}

// realm returns the realm that the export calls from.
func (m *migration) realm(from string) (*importedRealm, error) {
	there := strings.Trim(from, "/")
	name := realmNameOf(there)
	if realm := m.realms[name]; realm != nil {
		if strings.Trim(realm.report.From, "/") != there {
			return nil, fmt.Errorf("the realms %q and %q would both be called %s here; import them one at a time", loggedText(realm.report.From), loggedText(from), name)
		}
		return realm, nil
	}
	realm := &importedRealm{report: &reportedRealm{Name: name, From: from, Clients: []*reportedClient{}}}
	realm.Clients = make(map[string]*Client)
	if there != "" && there != name {
		realm.report.lose("name", "it is %s here, and so in URLs, since %v", name, checkRealmName(there))
	}
	if m.realms == nil {
		m.realms = make(map[string]*importedRealm)
	}
	m.realms[name] = realm
	return realm, nil
}

// client returns what is said of a client, which is nothing yet.
func (m *migration) client(realm *importedRealm, id string) (*reportedClient, error) {
	if m.clients++; m.clients > maxImportClients {
		return nil, fmt.Errorf("there are more than %d clients", maxImportClients)
	}
	report := &reportedClient{ID: id}
	realm.report.Clients = append(realm.report.Clients, report)
	return report, nil
}

// add adds a client, if nothing speaks against it.
func (m *migration) add(realm *importedRealm, report *reportedClient, client *Client) {
	if err := conf.CheckClientID(report.ID); err != nil {
		report.leaveOut("%v", err)
	}
	if !canBeWritten(report.ID) {
		report.leaveOut("its ID has braces, which a Caddyfile could take for a placeholder")
	}
	if realm.Clients[report.ID] != nil {
		report.leaveOut("the export has another client of this ID, which is the one that counts")
	}
	client.Scopes = report.usable("scope", client.Scopes, conf.IsScope)
	client.DefaultScopes = report.usable("default scope", client.DefaultScopes, conf.IsScope)
	client.Audience = report.usable("audience", client.Audience, func(a string) bool {
		return conf.CheckAudience("audience", []string{a}) == nil
	})
	for _, scope := range client.DefaultScopes {
		if !slices.Contains(client.Scopes, scope) {
			// It gets the scope in any case, so this gives it nothing more.
			client.Scopes = append(client.Scopes, scope)
			report.lose("default scope", "%q was not among the scopes, and is now", loggedText(scope))
		}
	}
	if report.LeftOut == "" {
		if err := m.check(report.ID, client); err != nil {
			report.leaveOut("%v", err)
		}
	}
	if report.LeftOut != "" {
		return
	}
	realm.Clients[report.ID] = client
	if report.NewSecret {
		m.secrets = append(m.secrets, madeSecret{realm.report.Name, report.ID, report.made})
	}
}

// usable returns those of the values that the gateway takes, each once.
func (c *reportedClient) usable(kind string, values []string, takes func(string) bool) (all []string) {
	for _, value := range values {
		switch {
		case slices.Contains(all, value):
		case !takes(value) || !canBeWritten(value):
			c.lose(kind, "%q can't be one here", loggedText(value))
		default:
			all = append(all, value)
		}
	}
	return all
}

// check finds what the gateway would refuse of a client.
func (m *migration) check(id string, client *Client) error {
	made, err := client.provision(id, oauth.FormatOpaque, caddy.Duration(time.Hour), nil, Limits{}, zap.NewNop())
	if err != nil {
		return err
	}
	issuer := m.issuer
	if slices.Contains(made.Auth, oauth.AuthPrivateKeyJWT) && issuer == "" {
		if m.needsIssuer == "" && !m.managed {
			m.needsIssuer = id
		}
		issuer = "https://localhost" // any one: only whether there is one is checked
	}
	if _, err := client.assertionKeys(id, made.Auth, issuer); err != nil {
		return err
	}
	if client.TLSClientAuth != nil {
		if !canBeWritten(client.TLSClientAuth.Value) {
			return errors.New("the subject of its certificate has characters that can't be written in a Caddyfile")
		}
		if _, err := client.TLSClientAuth.provision(); err != nil {
			return err
		}
	}
	if m.managed {
		return client.checkManaged()
	}
	return nil
}

// finish sorts the report, and checks that the gateway would take the realms as they are.
func (m *migration) finish() error {
	for _, name := range sortedKeys(m.realms) {
		realm := m.realms[name]
		for _, client := range realm.report.Clients {
			if client.LeftOut != "" { // nothing of it is there
				client.NewSecret, client.Carried, client.Lost = false, nil, nil
			}
		}
		slices.SortStableFunc(realm.report.Clients, func(a, b *reportedClient) int { return strings.Compare(a.ID, b.ID) })
		m.report.Realms = append(m.report.Realms, realm.report)
	}
	slices.SortFunc(m.secrets, func(a, b madeSecret) int {
		return strings.Compare(a.Realm+"/"+a.Client, b.Realm+"/"+b.Client)
	})
	all, out := m.report.count()
	switch {
	case m.clients == 0:
		return errors.New("there are no clients in it")
	case m.needsIssuer != "":
		return fmt.Errorf("client %q signs assertions, which must name the issuer: give --issuer", loggedText(m.needsIssuer))
	case m.needsCertificates != "":
		return fmt.Errorf("client %q has a certificate of its own, which needs a file: give --certificates, a folder", loggedText(m.needsCertificates))
	case all == out:
		return errors.New("none of the clients can be carried over")
	}
	return nil
}

// importedFields are the fields of a client, or of a realm's settings, as an export has them. Whoever
// needs one takes it. What nobody has taken is reported by rest.
type importedFields struct {
	values map[string]json.RawMessage
	// inherited are those that the export says come from somewhere else.
	inherited map[string]bool
	// carried is told of each field that was taken and says something.
	carried func(field string)
	// lost is told why a field is not carried over, and failed why nothing of all this can be.
	lost, failed func(field, why string)
}

// fields returns the fields of a client.
func (c *reportedClient) fields(values map[string]json.RawMessage) *importedFields {
	return &importedFields{
		values:  values,
		carried: func(field string) { c.Carried = append(c.Carried, field) },
		lost:    func(field, why string) { c.lose(field, "%s", why) },
		failed:  func(field, why string) { c.leaveOut("%s: %s", field, why) },
	}
}

// fields returns the fields of a realm's settings. A realm isn't left out for one that can't be read.
func (r *reportedRealm) fields(values map[string]json.RawMessage) *importedFields {
	lost := func(field, why string) { r.lose(field, "%s", why) }
	return &importedFields{values: values, carried: func(string) {}, lost: lost, failed: lost}
}

// saysNothing reports whether a value is one that an export has where nothing is set.
func saysNothing(value json.RawMessage) bool {
	switch string(bytes.TrimSpace(value)) {
	case "", "null", `""`, "[]", "{}":
		return true
	}
	return false
}

// hasExpression reports whether a value stands for another one, which the export doesn't have: AM has
// &{am.secret} and {"$int": …}, Keycloak ${SECRET}.
func hasExpression(value []byte) bool {
	return bytes.Contains(value, []byte("&{")) || bytes.Contains(value, []byte("${")) ||
		bytes.Contains(value, []byte(`\u0026{`)) || bytes.Contains(value, []byte(`{"$`))
}

// take stores a field, and reports whether there is one.
func (f *importedFields) take(field string, into any) bool {
	value, there := f.values[field]
	delete(f.values, field)
	switch {
	case !there || saysNothing(value):
		return false
	case hasExpression(value):
		f.failed(field, "it is an expression, which stands for a value that is not in the export")
		return false
	case json.Unmarshal(value, into) != nil: // the error may repeat a part of it
		f.failed(field, "it has another form than is known")
		return false
	}
	if f.inherited[field] {
		f.lost(field, "it comes from a group; what the export has was taken, so see whether that is right")
	}
	f.carried(field)
	return true
}

// list stores a field whose parts are looked at one by one.
func (f *importedFields) list(field string, into any) {
	value := f.values[field]
	delete(f.values, field)
	if !saysNothing(value) && json.Unmarshal(value, into) != nil {
		f.failed(field, "it has another form than is known")
	}
}

func (f *importedFields) text(field string) (text string) {
	f.take(field, &text)
	return strings.TrimSpace(text)
}

func (f *importedFields) texts(field string) (texts []string) {
	f.take(field, &texts)
	return texts
}

// flag returns a field that is true or false, which some exports have as a text.
func (f *importedFields) flag(field string) bool {
	if text := string(f.values[field]); text == `"true"` || text == `"false"` {
		f.values[field] = json.RawMessage(strings.Trim(text, `"`))
	}
	is := false
	if string(f.values[field]) == "false" {
		delete(f.values, field)
		return false
	}
	f.take(field, &is)
	return is
}

// number returns a field with a whole number, which some exports have as a text, or 0 if it has none, or
// less.
func (f *importedFields) number(field string) (n int64) {
	if text := strings.Trim(string(f.values[field]), `"`); text != "" && strings.Trim(text, "-0123456789") == "" {
		f.values[field] = json.RawMessage(text)
		if text == "0" || strings.HasPrefix(text, "-") {
			delete(f.values, field)
		}
	}
	f.take(field, &n)
	return n
}

// seconds returns a field with a duration in seconds, or 0 if it has none. More than the gateway allows is
// a year.
func (f *importedFields) seconds(field string) caddy.Duration {
	const most = 365 * 24 * 60 * 60
	n := f.number(field)
	if n > most {
		f.lost(field, fmt.Sprintf("%d seconds are too long; it is a year here", n))
		n = most
	}
	return caddy.Duration(time.Duration(n) * time.Second)
}

// time returns a field with a time in seconds since 1970, or the zero time.
func (f *importedFields) time(field string) time.Time {
	const most = 1 << 37 // in the 63rd century; times of later than 9999 can't be written
	if n := f.number(field); n > 0 && n < most {
		return time.Unix(n, 0).UTC()
	}
	return time.Time{}
}

// ignored says of a field that nobody takes why it can't be carried over, unless it says nothing, or has
// one of the values that are as good as none. One with a star at its end stands for all that begin so.
// Without a reason, the field means nothing here whatever it says.
type ignored struct {
	why  string
	none []string
}

// rest reports the fields that nobody has taken. A name in the list that ends with a star stands for
// all fields that begin so.
func (f *importedFields) rest(known map[string]ignored) {
	for _, field := range sortedKeys(f.values) {
		value := f.values[field]
		rule, is := known[field]
		if !is {
			for pattern := range known {
				if begin, ok := strings.CutSuffix(pattern, "*"); ok && strings.HasPrefix(field, begin) {
					rule, is = known[pattern], true
					break
				}
			}
		}
		switch {
		case !is && !saysNothing(value):
			f.lost(quotedField(field), "this field is unknown")
		case is && rule.why != "" && !saysNothing(value) && !rule.isNone(value):
			f.lost(field, rule.why)
		}
	}
	clear(f.values)
}

// isNone reports whether a value is as good as none.
func (r ignored) isNone(value json.RawMessage) bool {
	var compact bytes.Buffer
	if json.Compact(&compact, value) != nil {
		return false
	}
	text := strings.Trim(compact.String(), `"`)
	return slices.ContainsFunc(r.none, func(none string) bool {
		begin, pattern := strings.CutSuffix(none, "*")
		return text == none || pattern && strings.HasPrefix(text, begin)
	})
}

// quotedField returns the name of a field that nobody knows, so that it can't be taken for a sentence.
func quotedField(field string) string { return fmt.Sprintf("%q", loggedText(field)) }

// hashOfOthers matches hashes and encrypted values as servers and directories write them.
var hashOfOthers = regexp.MustCompile(`^(\{[A-Za-z0-9._-]+\}|\$[A-Za-z0-9-]+\$)`)

// secret gives a client the secret that the export has in a field. If nobody can read that, it makes
// one.
func (m *migration) secret(report *reportedClient, client *Client, field, plain string) {
	var why string
	switch _, err := oauth.HashedSecret(plain); {
	case client.Disabled && (plain == "" || strings.Trim(plain, "*") == ""):
		return // it needs none
	case plain == "":
		why = "the export has no secret"
	case strings.Trim(plain, "*") == "":
		why = "the export has asterisks in its place"
	case hasExpression([]byte(plain)):
		why = "it is an expression, which stands for a secret that is not in the export"
	case err == nil:
		client.Secrets = []ClientSecret{{Hash: plain}}
		report.Carried = append(report.Carried, field)
		return
	case hashOfOthers.MatchString(plain):
		why = "it is encrypted, or a hash that is not accepted here"
		if strings.HasPrefix(plain, "$") {
			why = err.Error()
		}
	default:
		hash := oauth.HashArgon2id // a person may have chosen it
		if _, err := oauth.HashGenerated(plain); err == nil {
			hash = oauth.HashGenerated
		}
		hashed, err := hash(plain)
		if err == nil {
			client.Secrets = []ClientSecret{{Hash: hashed}}
			report.Carried = append(report.Carried, field)
			return
		}
		why = err.Error()
	}
	made, hash, err := newSecret()
	if err != nil {
		report.leaveOut("%s: %v", field, err)
		return
	}
	report.NewSecret, report.made = true, made
	report.lose(field, "%s, so the client has a new one", why)
	client.Secrets = []ClientSecret{{Hash: hash}}
}

// keys gives a client the public keys of a JWK set. Those that are of no use are reported.
func (c *reportedClient) keys(client *Client, field string, set []byte) {
	var parsed struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal(set, &parsed) != nil {
		c.leaveOut("%s: it is not a JWK set", field)
		return
	}
	why := "it has none"
	for n, raw := range parsed.Keys {
		where := fmt.Sprintf("%s, key %d", field, n+1)
		// What can be in a key besides is left behind, so that no more of it is printed than is known.
		_, err := jwkSet("it", []json.RawMessage{raw}) // says whether it is private, too
		var jwk jose.JSONWebKey
		if err == nil && jwk.UnmarshalJSON(raw) != nil {
			err = errors.New("it can't be read")
		}
		if err == nil {
			err = client.addKey(jose.JSONWebKey{Key: jwk.Key, KeyID: jwk.KeyID, Algorithm: jwk.Algorithm, Use: jwk.Use})
		}
		if err != nil {
			why = err.Error()
			if _, reason, ok := strings.Cut(why, "keys can be used: "); ok {
				why = reason
			}
			c.lose(where, "%s", why)
		}
	}
	if len(client.JWK) == 0 {
		c.leaveOut("%s: there is no key in it that can be used: %s", field, why)
	}
}

// addKey gives a client a public key.
func (cc *Client) addKey(jwk jose.JSONWebKey) error {
	for _, text := range []string{jwk.KeyID, jwk.Algorithm, jwk.Use} {
		if strings.Contains(text, "`") || !canBeWritten(text) {
			return errors.New("its kid has characters that can't be written in a Caddyfile")
		}
	}
	text, err := jwk.MarshalJSON()
	if err == nil {
		_, err = jwkSet("it", []json.RawMessage{text})
	}
	if err == nil {
		cc.JWK = append(cc.JWK, text)
	}
	return err
}

// keyOfCertificate gives a client the public key of a certificate, in PEM or in base64.
func (c *reportedClient) keyOfCertificate(client *Client, field, text string) {
	certificate, err := importedCertificate(text)
	if err != nil {
		c.leaveOut("%s: %v", field, err)
		return
	}
	if err := client.addKey(jose.JSONWebKey{Key: certificate.PublicKey, Use: "sig"}); err != nil {
		c.leaveOut("%s: %v", field, err)
	}
}

// importedCertificate reads a certificate in PEM, or in base64 as exports have it.
func importedCertificate(text string) (*x509.Certificate, error) {
	if !strings.Contains(text, "-----BEGIN") {
		text = "-----BEGIN CERTIFICATE-----\n" + strings.TrimSpace(text) + "\n-----END CERTIFICATE-----\n"
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("it is not a certificate")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, errors.New("it is not a certificate")
	}
	return certificate, nil
}

var notInFileName = regexp.MustCompile(`[^A-Za-z0-9_-]+`)

// certificate gives a client a certificate of its own, by a file.
func (m *migration) certificate(realm *importedRealm, report *reportedClient, client *Client, field, text string) {
	certificate, err := importedCertificate(text)
	switch {
	case err != nil:
		report.leaveOut("%s: %v", field, err)
		return
	case m.managed:
		report.leaveOut("%s: a managed client can't have a certificate of its own", field)
		return
	case m.certificates == "":
		if m.needsCertificates == "" {
			m.needsCertificates = report.ID
		}
		return
	}
	name := strings.ReplaceAll(realm.report.Name, "/", "-") + "-" + notInFileName.ReplaceAllString(report.ID, "_")
	path := filepath.ToSlash(filepath.Join(m.certificates, fmt.Sprintf("%.100s-%d.pem", name, len(m.files)+1)))
	if !canBeWritten(path) {
		report.leaveOut("%s: the folder of --certificates has a name that can't be written in a Caddyfile", field)
		return
	}
	if m.files == nil {
		m.files = make(map[string]string)
	}
	m.files[path] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw}))
	client.CertificateFiles = []string{path}
}

// realmsByName returns the realms as a configuration has them.
func (m *migration) realmsByName() map[string]*Realm {
	realms := make(map[string]*Realm, len(m.realms))
	for name, realm := range m.realms {
		realms[name] = &realm.Realm
	}
	if m.issuer != "" {
		if realms[rootRealm] == nil {
			realms[rootRealm] = &Realm{}
		}
		realms[rootRealm].Issuer = m.issuer
	}
	return realms
}
