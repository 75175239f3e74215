// Command from-forgerock stands in for ForgeRock AM 7: it answers at AM's paths, in AM's words, as far as the
// client credentials grant goes. It has the realm / alone, and three clients, and forgets everything when it
// ends.
package main

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	realm    = "/am/oauth2/realms/root"
	lifetime = time.Hour
	keyID    = "wU3ifIIaLOUAReRB/FG6eM1P1QM="
	// introspectAll is the scope of clients that may ask about everybody's tokens.
	introspectAll = "am-introspect-all-tokens"
)

// client is a client of AM.
type client struct {
	secret string
	scopes []string
	// stateless has it get JWTs ("client-based" tokens), and not opaque ones ("server-based").
	stateless bool
}

var clients = map[string]client{
	"reports": {secret: "secret-in-am-1", scopes: []string{"orders:read"}},
	"billing": {secret: "secret-in-am-2", scopes: []string{"orders:read", "orders:write"}, stateless: true},
	"gateway": {secret: "demo-secret-gateway", scopes: []string{introspectAll}},
}

// token is what a token says.
type token struct {
	client string
	scopes []string
	ends   time.Time
}

// am has one key, and remembers all tokens that have not been revoked.
type am struct {
	base   string // the URL of AM's OAuth 2.0 endpoints, and the issuer of its realm /
	key    *ecdsa.PrivateKey
	mu     sync.Mutex
	tokens map[string]token
}

// refuse answers in AM's form: the description first.
func refuse(w http.ResponseWriter, status int, code, description string) {
	answer(w, status, struct {
		Description string `json:"error_description"`
		Code        string `json:"error"`
	}{description, code})
}

func answer(w http.ResponseWriter, status int, document any) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	w.Header().Set("Content-Type", "application/json;charset=UTF-8")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(document); err != nil {
		log.Println(err)
	}
}

// authenticate returns the ID of the client that sends a request, or answers that it is none: 401 if it used
// Basic, and 400 if its secret was in the form.
func authenticate(w http.ResponseWriter, r *http.Request) (id string, ok bool) {
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	if c, known := clients[id]; known && subtle.ConstantTimeCompare([]byte(secret), []byte(c.secret)) == 1 {
		return id, true
	}
	status := http.StatusBadRequest
	if r.Header.Get("Authorization") != "" {
		status = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", `Basic realm="/"`)
	}
	refuse(w, status, "invalid_client", "Client authentication failed")
	return "", false
}

// issue is the token endpoint.
func (a *am) issue(w http.ResponseWriter, r *http.Request) {
	switch r.PostFormValue("grant_type") {
	case "client_credentials":
	case "":
		refuse(w, http.StatusBadRequest, "invalid_request", "Grant type is not set")
		return
	default:
		refuse(w, http.StatusBadRequest, "unsupported_grant_type", "Grant type is not supported")
		return
	}
	id, ok := authenticate(w, r)
	if !ok {
		return
	}
	c := clients[id]
	scopes := strings.Fields(r.PostFormValue("scope"))
	if len(scopes) == 0 {
		scopes = c.scopes
	}
	unknown := slices.DeleteFunc(slices.Clone(scopes), func(scope string) bool { return slices.Contains(c.scopes, scope) })
	if len(unknown) > 0 {
		refuse(w, http.StatusBadRequest, "invalid_scope", "Unknown/invalid scope(s): ["+strings.Join(unknown, ", ")+"]")
		return
	}
	t := token{client: id, scopes: scopes, ends: time.Now().Add(lifetime)}
	text := random()
	if c.stateless {
		var err error
		if text, err = a.sign(t); err != nil {
			refuse(w, http.StatusBadRequest, "server_error", "Internal Server Error (500)") // as AM does
			return
		}
	}
	a.mu.Lock()
	a.tokens[text] = t
	a.mu.Unlock()
	answer(w, http.StatusOK, struct {
		Token     string `json:"access_token"`
		Scope     string `json:"scope"`
		Type      string `json:"token_type"`
		ExpiresIn int    `json:"expires_in"`
	}{text, strings.Join(scopes, " "), "Bearer", int(time.Until(t.ends).Seconds())})
}

// random returns 160 random bits, in 27 characters.
func random() string {
	bits := make([]byte, 20)
	rand.Read(bits)
	return base64.RawURLEncoding.EncodeToString(bits)
}

// sign makes a JWT of AM's form, signed by ES256.
func (a *am) sign(t token) (string, error) {
	now := time.Now().Unix()
	payload, err := json.Marshal(map[string]any{
		"sub": "(age!" + t.client + ")", "subname": t.client, "cts": "OAUTH2_STATELESS_GRANT", "auditTrackingId": random(), "authGrantId": random(),
		"iss": a.base, "tokenName": "access_token", "token_type": "Bearer", "aud": t.client, "nbf": now, "iat": now, "auth_time": now,
		"exp": t.ends.Unix(), "expires_in": int(lifetime.Seconds()), "grant_type": "client_credentials", "scope": t.scopes, "realm": "/", "jti": random(),
	})
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	input := encode([]byte(`{"typ":"JWT","zip":"NONE","kid":"`+keyID+`","alg":"ES256"}`)) + "." + encode(payload)
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, a.key, digest[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return input + "." + encode(signature), nil
}

// find returns what a token says, if it is good.
func (a *am) find(text string) (t token, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok = a.tokens[text]
	return t, ok && time.Now().Before(t.ends)
}

// introspect answers about the caller's own tokens, and about everybody's to clients that may ask.
func (a *am) introspect(w http.ResponseWriter, r *http.Request) {
	id, ok := authenticate(w, r)
	if !ok {
		return
	}
	if r.PostFormValue("token") == "" {
		refuse(w, http.StatusBadRequest, "invalid_request", "Missing parameter: token")
		return
	}
	t, active := a.find(r.PostFormValue("token"))
	if !active || t.client != id && !slices.Contains(clients[id].scopes, introspectAll) {
		answer(w, http.StatusOK, map[string]bool{"active": false})
		return
	}
	answer(w, http.StatusOK, struct {
		Active    bool   `json:"active"`
		Scope     string `json:"scope"`
		Realm     string `json:"realm"`
		Client    string `json:"client_id"`
		User      string `json:"user_id"`
		Username  string `json:"username"`
		Type      string `json:"token_type"`
		Expires   int64  `json:"exp"`
		Subject   string `json:"sub"`
		Subname   string `json:"subname"`
		Issuer    string `json:"iss"`
		Level     int    `json:"auth_level"`
		ExpiresIn int    `json:"expires_in"`
	}{true, strings.Join(t.scopes, " "), "/", t.client, t.client, t.client, "Bearer", t.ends.Unix(), "(age!" + t.client + ")", t.client, a.base, 0, int(time.Until(t.ends).Seconds())})
}

// tokenInfo tells the bearer of a token what it says.
func (a *am) tokenInfo(w http.ResponseWriter, r *http.Request) {
	text, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if query := r.URL.Query().Get("access_token"); query != "" && text != "" {
		refuse(w, http.StatusBadRequest, "invalid_request", "Access Token cannot be provided in both query and header")
		return
	} else if query != "" {
		text = query
	}
	t, ok := a.find(text)
	if !ok {
		refuse(w, http.StatusUnauthorized, "invalid_token", "The access token provided is expired, revoked, malformed, or invalid for other reasons.")
		return
	}
	document := map[string]any{
		"access_token": text, "token_type": "Bearer", "expires_in": int(time.Until(t.ends).Seconds()), "scope": t.scopes, "client_id": t.client,
		"grant_type": "client_credentials", "realm": "/",
	}
	for _, scope := range t.scopes {
		document[scope] = ""
	}
	answer(w, http.StatusOK, document)
}

// revoke ends a token of the caller.
func (a *am) revoke(w http.ResponseWriter, r *http.Request) {
	id, ok := authenticate(w, r)
	if !ok {
		return
	}
	text := r.PostFormValue("token")
	if text == "" {
		refuse(w, http.StatusBadRequest, "invalid_request", "Missing parameter: token")
		return
	}
	if t, active := a.find(text); active && t.client != id {
		refuse(w, http.StatusBadRequest, "invalid_grant", "The provided token id belongs to different access grant.")
		return
	}
	a.mu.Lock()
	delete(a.tokens, text)
	a.mu.Unlock()
	answer(w, http.StatusOK, struct{}{})
}

// metadata is OpenID Connect's: AM has no document of RFC 8414.
func (a *am) metadata(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{
		"issuer": a.base, "token_endpoint": a.base + "/access_token", "introspection_endpoint": a.base + "/introspect",
		"revocation_endpoint": a.base + "/token/revoke", "jwks_uri": a.base + "/connect/jwk_uri", "grant_types_supported": []string{"client_credentials"},
	})
}

// keys answers with the public key, as a JWK set (RFC 7517).
func (a *am) keys(w http.ResponseWriter, _ *http.Request) {
	point, err := a.key.PublicKey.Bytes() // a 4, then both coordinates
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	encode := base64.RawURLEncoding.EncodeToString
	answer(w, http.StatusOK, map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": keyID, "x": encode(point[1:33]), "y": encode(point[33:]),
	}}})
}

// exported answers as AM's REST interface does to an administrator: all settings of the clients, but no
// secret.
func exported(w http.ResponseWriter, _ *http.Request) {
	set := func(value any) any { return map[string]any{"inherited": false, "value": value} }
	var all []any
	for _, id := range slices.Sorted(maps.Keys(clients)) {
		c := clients[id]
		all = append(all, map[string]any{
			"_id":   id,
			"_type": map[string]any{"_id": "OAuth2Client", "name": "OAuth2 Clients", "collection": true},
			"coreOAuth2ClientConfig": map[string]any{
				"clientType": set("Confidential"), "status": set("Active"), "scopes": set(c.scopes), "defaultScopes": set(c.scopes), "accessTokenLifetime": set(0), "userpassword": nil,
			},
			"advancedOAuth2ClientConfig": map[string]any{
				"grantTypes": set([]string{"client_credentials"}), "tokenEndpointAuthMethod": set("client_secret_basic"),
			},
			"overrideOAuth2ClientConfig": map[string]any{"providerOverridesEnabled": c.stateless, "statelessTokensEnabled": c.stateless},
		})
	}
	answer(w, http.StatusOK, map[string]any{"result": all, "resultCount": len(all), "pagedResultsCookie": nil, "remainingPagedResults": -1})
}

// provider is the same for the settings that all clients share.
func provider(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{
		"_id": "", "_type": map[string]any{"_id": "oauth-oidc", "name": "OAuth2 Provider", "collection": false},
		"coreOAuth2Config":     map[string]any{"accessTokenLifetime": int(lifetime.Seconds()), "statelessTokensEnabled": false},
		"advancedOAuth2Config": map[string]any{"grantTypes": []string{"client_credentials"}},
	})
}

func main() {
	log.SetOutput(os.Stdout)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+cmp.Or(os.Getenv("PORT"), "8221"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", listener.Addr())
	a := &am{base: "http://" + listener.Addr().String() + "/am/oauth2", key: key, tokens: make(map[string]token)}
	for _, base := range []string{"/am/oauth2", realm} {
		http.HandleFunc("POST "+base+"/access_token", a.issue)
		http.HandleFunc("POST "+base+"/introspect", a.introspect)
		http.HandleFunc("GET "+base+"/tokeninfo", a.tokenInfo)
		http.HandleFunc("POST "+base+"/token/revoke", a.revoke)
		http.HandleFunc("GET "+base+"/.well-known/openid-configuration", a.metadata)
		http.HandleFunc("GET "+base+"/connect/jwk_uri", a.keys)
	}
	http.HandleFunc("GET /am/json/realms/root/realm-config/agents/OAuth2Client", exported)
	http.HandleFunc("GET /am/json/realms/root/realm-config/services/oauth-oidc", provider)
	log.Fatal(http.Serve(listener, nil))
}
