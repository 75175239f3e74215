package introspect_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddyoauth/gateway/introspect"
)

const (
	proofURL   = "https://api.example.com/orders"
	proofToken = "the-token"
)

var proofTime = time.Unix(1_800_000_000, 0)

func newProofs(t testing.TB, cfg introspect.ProofsConfig) *introspect.Proofs {
	t.Helper()
	cfg.Now = func() time.Time { return proofTime }
	proofs, err := introspect.NewProofs(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return proofs
}

func proofHeader(k signingKey) claims {
	return claims{"typ": "dpop+jwt", "alg": k.alg, "jwk": k.jwk(claims{"kid": nil, "alg": nil, "use": nil})}
}

func proofClaims() claims {
	hash := sha256.Sum256([]byte(proofToken))
	return claims{"jti": "1", "htm": "POST", "htu": proofURL, "iat": proofTime.Unix(), "ath": b64(string(hash[:]))}
}

func (k signingKey) proof(header, claims claims) string { return k.token(header.json(), claims.json()) }

var proofOf = introspect.ProofOf{Method: "POST", URLs: []string{proofURL}, Token: proofToken}

// RFC 9449 section 4.3, one line for each way to break a check.
func TestProofs(t *testing.T) {
	proofs := newProofs(t, introspect.ProofsConfig{})
	es, rs, ed := keyFor("ES256"), keyFor("RS256"), keyFor("EdDSA")
	public := func(k signingKey) claims { return proofHeader(k)["jwk"].(claims) }
	jwk := func(k signingKey, changes claims) claims { return claims{"jwk": public(k).with(changes)} }
	for what, c := range map[string]struct {
		key            signingKey
		header, claims claims
		cause          introspect.Cause
	}{
		"ES256":                         {es, nil, nil, ""},
		"RS256":                         {rs, nil, nil, ""},
		"PS256":                         {keyFor("PS256"), nil, nil, ""},
		"EdDSA":                         {ed, nil, nil, ""},
		"typ as a media type":           {es, claims{"typ": "application/DPoP+jwt"}, nil, ""},
		"a nonce":                       {es, nil, claims{"nonce": "n"}, ""},
		"claims that nobody knows":      {es, nil, claims{"x": 1}, ""},
		"a key that says what it is":    {es, jwk(es, claims{"use": "sig", "alg": "ES256", "key_ops": []string{"verify"}, "kid": "x"}), nil, ""},
		"10 s early":                    {es, nil, claims{"iat": proofTime.Unix() + 10}, ""},
		"10 s late":                     {es, nil, claims{"iat": proofTime.Unix() - 10}, ""},
		"a jti of 256 bytes":            {es, nil, claims{"jti": strings.Repeat("j", 256)}, ""},
		"a fraction of a second":        {es, nil, claims{"iat": json.RawMessage("1799999999.5")}, ""},
		"no typ":                        {es, claims{"typ": nil}, nil, introspect.CauseType},
		"another typ":                   {es, claims{"typ": "JWT"}, nil, introspect.CauseType},
		"typ of access tokens":          {es, claims{"typ": "at+jwt"}, nil, introspect.CauseType},
		"typ is no string":              {es, claims{"typ": 1}, nil, introspect.CauseType},
		"no alg":                        {es, claims{"alg": nil}, nil, introspect.CauseAlgorithm},
		"alg none":                      {es, claims{"alg": "none"}, nil, introspect.CauseAlgorithm},
		"alg HS256":                     {es, claims{"alg": "HS256"}, nil, introspect.CauseAlgorithm},
		"alg that is not in the list":   {keyFor("ES384"), nil, nil, introspect.CauseAlgorithm},
		"alg of another kind of key":    {es, claims{"alg": "RS256"}, nil, introspect.CauseProofKey},
		"alg of another RSA":            {rs, claims{"alg": "PS256"}, nil, introspect.CauseSignature},
		"no jwk":                        {es, claims{"jwk": nil}, nil, introspect.CauseProofKey},
		"jwk is a string":               {es, claims{"jwk": public(es).json()}, nil, introspect.CauseMalformed},
		"a symmetric key":               {es, claims{"jwk": claims{"kty": "oct", "k": "AAAA"}}, nil, introspect.CauseMalformed},
		"a symmetric member":            {es, jwk(es, claims{"k": "AAAA"}), nil, introspect.CauseMalformed},
		"a private key":                 {es, jwk(es, claims{"d": b64(strings.Repeat("d", 32))}), nil, introspect.CauseMalformed},
		"a private member of another":   {es, jwk(es, claims{"oth": []string{"AAAA"}}), nil, introspect.CauseProofKey},
		"a key for something else":      {es, jwk(es, claims{"use": "enc"}), nil, introspect.CauseProofKey},
		"a key for another algorithm":   {rs, jwk(rs, claims{"alg": "PS256"}), nil, introspect.CauseProofKey},
		"another key":                   {es, jwk(ed, nil), nil, introspect.CauseProofKey},
		"another key of that kind":      {es, jwk(signingKey{"", "ES256", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}, nil), nil, introspect.CauseSignature},
		"crit":                          {es, claims{"crit": []string{"x"}, "x": 1}, nil, introspect.CauseMalformed},
		"b64":                           {es, claims{"b64": false}, nil, introspect.CauseMalformed},
		"no jti":                        {es, nil, claims{"jti": nil}, introspect.CauseMalformed},
		"an empty jti":                  {es, nil, claims{"jti": ""}, introspect.CauseMalformed},
		"jti is a number":               {es, nil, claims{"jti": 1}, introspect.CauseMalformed},
		"a jti of 257 bytes":            {es, nil, claims{"jti": strings.Repeat("j", 257)}, introspect.CauseMalformed},
		"no htm":                        {es, nil, claims{"htm": nil}, introspect.CauseMalformed},
		"another method":                {es, nil, claims{"htm": "GET"}, introspect.CauseProofMethod},
		"small letters":                 {es, nil, claims{"htm": "post"}, introspect.CauseProofMethod},
		"htu is a number":               {es, nil, claims{"htu": 1}, introspect.CauseMalformed},
		"no htu":                        {es, nil, claims{"htu": nil}, introspect.CauseMalformed},
		"no iat":                        {es, nil, claims{"iat": nil}, introspect.CauseMalformed},
		"iat is a string":               {es, nil, claims{"iat": fmt.Sprint(proofTime.Unix())}, introspect.CauseMalformed},
		"1 min late":                    {es, nil, claims{"iat": proofTime.Unix() - 60}, introspect.CauseExpired},
		"1 h late":                      {es, nil, claims{"iat": proofTime.Unix() - 3600}, introspect.CauseExpired},
		"11 s early":                    {es, nil, claims{"iat": proofTime.Unix() + 11}, introspect.CauseNotYet},
		"1 h early":                     {es, nil, claims{"iat": proofTime.Unix() + 3600}, introspect.CauseNotYet},
		"over by its own exp":           {es, nil, claims{"exp": proofTime.Unix()}, introspect.CauseExpired},
		"not begun by its own nbf":      {es, nil, claims{"nbf": proofTime.Unix() + 11}, introspect.CauseNotYet},
		"no ath":                        {es, nil, claims{"ath": nil}, introspect.CauseProofToken},
		"ath of another token":          {es, nil, claims{"ath": b64(strings.Repeat("h", 32))}, introspect.CauseProofToken},
		"ath in hexadecimal":            {es, nil, claims{"ath": fmt.Sprintf("%x", sha256.Sum256([]byte(proofToken)))}, introspect.CauseProofToken},
		"ath with padding":              {es, nil, claims{"ath": proofClaims()["ath"].(string) + "="}, introspect.CauseProofToken},
		"nonce is a number":             {es, nil, claims{"nonce": 1}, introspect.CauseMalformed},
		"a proof of more than 8 KiB":    {es, nil, claims{"x": strings.Repeat("x", 8<<10)}, introspect.CauseMalformed},
		"a key whose exponent is one":   {rs, jwk(rs, claims{"e": "AQ"}), nil, introspect.CauseProofKey},
		"a key of 1024 bits":            {rs, jwk(rs, claims{"n": b64("\xff" + strings.Repeat("n", 127))}), nil, introspect.CauseProofKey},
		"a point that is on no curve":   {es, jwk(es, claims{"x": b64(strings.Repeat("x", 32))}), nil, introspect.CauseMalformed},
		"jku, x5u, x5c and kid besides": {es, claims{"jku": "https://evil.example", "x5u": "https://evil.example", "kid": "other"}, nil, ""},
	} {
		text := c.key.proof(proofHeader(c.key).with(c.header), proofClaims().with(c.claims))
		proof, cause := proofs.Verify(text, proofOf)
		if cause != c.cause || (proof != nil) != (cause == "") {
			t.Errorf("%s: cause %q, not %q", what, cause, c.cause)
		}
	}

	good := es.proof(proofHeader(es), proofClaims())
	parts := strings.Split(good, ".")
	for what, text := range map[string]string{
		"nothing":               "",
		"no JWT":                "proof",
		"two JWTs":              good + "," + good,
		"two JWTs with a space": good + ", " + good,
		"a space":               good + " ",
		"padding":               good + "=",
		"four parts":            good + ".",
		"another signature":     parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
		"no signature":          parts[0] + "." + parts[1] + ".",
		"JSON":                  `{"protected":"` + parts[0] + `","payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`,
		"two members jti":       es.token(proofHeader(es).json(), strings.Replace(proofClaims().json(), "{", `{"jti":"2",`, 1)),
		"two members jwk":       es.token(strings.Replace(proofHeader(es).json(), "{", `{"jwk":`+public(ed).json()+`,`, 1), proofClaims().json()),
	} {
		if _, cause := proofs.Verify(text, proofOf); cause == "" {
			t.Errorf("%s: accepted", what)
		}
	}

	proof, _ := proofs.Verify(es.proof(proofHeader(es), proofClaims().with(claims{"nonce": "n"})), proofOf)
	hash := sha256.Sum256([]byte(fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, public(es)["x"], public(es)["y"]))) // RFC 7638 section 3
	key := b64(string(hash[:]))
	if proof == nil || proof.ID != "1" || proof.URL != proofURL || proof.Nonce != "n" || !proof.IssuedAt.Equal(proofTime) || proof.Key != key {
		t.Errorf("%+v, of the key %s", proof, key)
	}
	withoutToken := proofOf
	withoutToken.Token = ""
	if _, cause := proofs.Verify(es.proof(proofHeader(es), proofClaims().with(claims{"ath": nil})), withoutToken); cause != "" {
		t.Errorf("at a token endpoint, a proof needs no ath: %s", cause)
	}
}

// The URL of a proof is compared by what it means and not by its spelling.
func TestURLsOfProofs(t *testing.T) {
	proofs := newProofs(t, introspect.ProofsConfig{})
	key := keyFor("ES256")
	for _, c := range []struct {
		known, htu string
		same       bool
	}{
		{proofURL, proofURL, true},
		{proofURL, "HTTPS://API.Example.com:443/orders", true},
		{proofURL, "https://api.example.com:/orders", true},
		{proofURL, "https://api.example.com/orders?q=1#f", true},
		{proofURL, "https://api.example.com/%6frders", true},
		{proofURL, "https://api.example.com/x/../orders", true},
		{proofURL, "https://api.example.com/./orders", true},
		{"https://api.example.com", "https://api.example.com/", true},
		{"https://api.example.com/", "https://api.example.com?q", true},
		{"https://api.example.com/a/b/..", "https://api.example.com/a/", true},
		{"https://api.example.com/a/.", "https://api.example.com/a/", true},
		{"https://api.example.com/%e4%2f", "https://api.example.com/%E4%2F", true},
		{"https://api.example.com/%7e", "https://api.example.com/~", true},
		{"http://localhost:8080/a", "http://LOCALHOST:8080/a", true},
		{"http://[::1]/a", "http://[::1]:80/a", true},
		{"http://[::1]:8080/a", "http://[::1]:8080/a", true},
		{proofURL, "http://api.example.com/orders", false},
		{proofURL, "http://api.example.com:443/orders", false},
		{proofURL, "https://api.example.com:8443/orders", false},
		{proofURL, "https://api.example.com:80/orders", false},
		{proofURL, "https://evil.example/orders", false},
		{proofURL, "https://api.example.com.evil.example/orders", false},
		{proofURL, "https://api.example.com@evil.example/orders", false},
		{proofURL, "https://user@api.example.com/orders", false},
		{proofURL, "https://api.example.com/orders/", false},
		{proofURL, "https://api.example.com/Orders", false},
		{proofURL, "https://api.example.com//orders", false},
		{proofURL, "https://api.example.com/", false},
		{proofURL, "https://api.example.com/orders%2F", false},
		{"https://api.example.com/a%2Fb", "https://api.example.com/a/b", false},
		{"https://api.example.com/%61%", "https://api.example.com/%61%", false},
		{proofURL, "/orders", false},
		{proofURL, "//api.example.com/orders", false},
		{proofURL, "https:api.example.com/orders", false},
		{proofURL, "https:///orders", false},
		{proofURL, "ftp://api.example.com/orders", false},
		{proofURL, " " + proofURL, false},
		{proofURL, "", false},
		{"", "", false},
	} {
		of := proofOf
		of.URLs = []string{"https://other.example", c.known}
		_, cause := proofs.Verify(key.proof(proofHeader(key), proofClaims().with(claims{"htu": c.htu})), of)
		if want := map[bool]introspect.Cause{false: introspect.CauseProofURL}[c.same]; cause != want {
			t.Errorf("%q at %q: cause %q", c.htu, c.known, cause)
		}
	}
}

func TestProofsConfigIsChecked(t *testing.T) {
	for what, cfg := range map[string]introspect.ProofsConfig{
		"none":         {Algorithms: []string{"none"}},
		"HMAC":         {Algorithms: []string{"ES256", "HS256"}},
		"a short life": {MaxAge: 9 * time.Second},
		"a long life":  {MaxAge: 6 * time.Minute},
		"no leeway":    {Leeway: -1},
		"much leeway":  {Leeway: 2 * time.Minute},
	} {
		if _, err := introspect.NewProofs(cfg); err == nil || cfg.Check() == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	proofs := newProofs(t, introspect.ProofsConfig{Algorithms: []string{"ES384"}, MaxAge: 10 * time.Second, Leeway: time.Second})
	es, edwards := keyFor("ES384"), keyFor("EdDSA")
	for want, text := range map[introspect.Cause]string{
		"":                        es.proof(proofHeader(es), proofClaims().with(claims{"iat": proofTime.Unix() - 9})),
		introspect.CauseExpired:   es.proof(proofHeader(es), proofClaims().with(claims{"iat": proofTime.Unix() - 10})),
		introspect.CauseNotYet:    es.proof(proofHeader(es), proofClaims().with(claims{"iat": proofTime.Unix() + 2})),
		introspect.CauseAlgorithm: edwards.proof(proofHeader(edwards), proofClaims()),
	} {
		if _, cause := proofs.Verify(text, proofOf); cause != want {
			t.Errorf("%q, not %q", cause, want)
		}
	}
	if until := proofs.Until(proofTime); !until.Equal(proofTime.Add(10 * time.Second)) {
		t.Errorf("until %v", until)
	}
}

// Nobody without the key makes a proof that passes: header and claims are those that the key signed.
func FuzzProofs(f *testing.F) {
	proofs := newProofs(f, introspect.ProofsConfig{})
	genuine := make(map[string]bool)
	seed := []byte(strings.Repeat("s", 32)) // each of the fuzzer's processes has the same keys
	for _, key := range []signingKey{
		{"", "ES256", must(ecdsa.ParseRawPrivateKey(elliptic.P256(), seed))},
		{"", "EdDSA", ed25519.NewKeyFromSeed(seed)},
	} {
		for _, c := range []claims{nil, {"nonce": "n"}, {"ath": nil}, {"htu": "HTTPS://api.example.com:443/%6Frders?x"}, {"iat": json.RawMessage("1.8e9")}} {
			text := key.proof(proofHeader(key), proofClaims().with(c))
			genuine[text[:strings.LastIndexByte(text, '.')]] = true
			f.Add(text)
		}
		f.Add(key.proof(proofHeader(key).with(claims{"jwk": json.RawMessage("{}"), "crit": []string{"b64"}}), proofClaims()))
	}
	f.Add("e..")
	f.Fuzz(func(t *testing.T, text string) {
		proof, cause := proofs.Verify(text, proofOf)
		if (proof == nil) == (cause == "") {
			t.Errorf("%q: %+v, %q", text, proof, cause)
		}
		if proof != nil && !genuine[text[:strings.LastIndexByte(text, '.')]] {
			t.Errorf("%q passes", text)
		}
	})
}

func BenchmarkProofs(b *testing.B) {
	for _, alg := range []string{"ES256", "EdDSA", "RS256"} {
		b.Run(alg, func(b *testing.B) {
			proofs, key := newProofs(b, introspect.ProofsConfig{}), keyFor(alg)
			text := key.proof(proofHeader(key), proofClaims())
			b.ReportAllocs()
			for b.Loop() {
				if _, cause := proofs.Verify(text, proofOf); cause != "" {
					b.Fatal(cause)
				}
			}
		})
	}
}
