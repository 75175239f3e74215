package introspect

import (
	"strings"
	"testing"
)

// Only what SPIFFE allows is the ID of a workload, so that each has one spelling.
func TestTrustDomains(t *testing.T) {
	for id, domain := range map[string]string{
		"spiffe://example.org/ci/runner":                    "spiffe://example.org",
		"spiffe://example.org/a":                            "spiffe://example.org",
		"spiffe://my_domain-1.example/A.b_c-d/...":          "spiffe://my_domain-1.example",
		"spiffe://10.0.0.1/x":                               "spiffe://10.0.0.1",
		"spiffe://example.org":                              "", // the trust domain itself
		"spiffe://example.org/":                             "",
		"spiffe://example.org/a/":                           "",
		"spiffe://example.org//a":                           "",
		"spiffe://example.org/a/../b":                       "",
		"spiffe://example.org/./b":                          "",
		"spiffe://example.org/a%2fb":                        "",
		"spiffe://example.org/a b":                          "",
		"spiffe://example.org/a?x":                          "",
		"spiffe://example.org/a#x":                          "",
		"spiffe://example.org/ä":                            "",
		"spiffe://Example.org/a":                            "",
		"SPIFFE://example.org/a":                            "",
		"spiffe://user@example.org/a":                       "",
		"spiffe://example.org:443/a":                        "",
		"spiffe:///a":                                       "",
		"spiffe:/example.org/a":                             "",
		"https://example.org/a":                             "",
		"":                                                  "",
		"spiffe://" + strings.Repeat("a", 256) + "/a":       "",
		"spiffe://example.org/" + strings.Repeat("a", 2048): "",
	} {
		got, ok := TrustDomain(id)
		if ok != (domain != "") || ok && got != domain {
			t.Errorf("%q is in %q, %v; want %q", id, got, ok, domain)
		}
		if ok && !IsTrustDomain(got) {
			t.Errorf("%q is no trust domain", got)
		}
	}
	for text, want := range map[string]bool{"spiffe://example.org": true, "example.org": false, "spiffe://": false, "spiffe://example.org/": false, "spiffe://Example.org": false} {
		if IsTrustDomain(text) != want {
			t.Errorf("%q is a trust domain: %v", text, !want)
		}
	}
}

// A workload is in the trust domain that its ID begins with, and in no other.
func FuzzTrustDomain(f *testing.F) {
	for _, seed := range []string{"spiffe://example.org/a", "spiffe://example.org", "spiffe://a/b/../c", "spiffe:///", "", "spiffe://a:1/b", "spiffe://a@b/c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		domain, ok := TrustDomain(id)
		if !ok {
			return
		}
		path, found := strings.CutPrefix(id, domain)
		if !found || !strings.HasPrefix(path, "/") || !IsTrustDomain(domain) || strings.Count(domain, "/") != 2 {
			t.Errorf("%q is in %q", id, domain)
		}
	})
}

// In a bundle only the keys of JWT-SVIDs count, and these count nowhere else.
func TestBundles(t *testing.T) {
	const key = `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0","kid":"k"`
	for use, want := range map[string]struct{ bundle, set bool }{
		`,"use":"jwt-svid"}`:  {true, false},
		`,"use":"x509-svid"}`: {false, false},
		`,"use":"sig"}`:       {false, true},
		`}`:                   {false, true},
	} {
		data := []byte(`{"spiffe_sequence":1,"spiffe_refresh_hint":300,"keys":[` + key + use + `]}`)
		if _, _, err := parseBundle(data); (err == nil) != want.bundle {
			t.Errorf("%s in a bundle: %v", use, err)
		}
		if _, _, err := parseKeysFile(data); (err == nil) != want.set {
			t.Errorf("%s in a JWK set: %v", use, err)
		}
	}
	if _, ignored, err := parseBundle([]byte(`{"keys":[` + key + `,"use":"jwt-svid"},` + key + `,"use":"x509-svid","x5c":["AA=="]}]}`)); err != nil || len(ignored) != 1 || ignored[0].KeyID != "k" {
		t.Errorf("got %v, %v", ignored, err)
	}
}

// A JWT-SVID may have any iss, so a cached one is not said to be issued by its trust domain, as another
// JWT is by its issuer.
func TestTheCacheRecallsNoIssuerOfSVIDs(t *testing.T) {
	for spiffe, want := range map[bool]string{true: "", false: "spiffe://example.org"} {
		j := &JWT{cfg: JWTConfig{Keys: &Keys{cfg: KeysConfig{SPIFFE: spiffe, Issuer: "spiffe://example.org"}}}}
		if got := j.issuerInTokens(); got != want {
			t.Errorf("SPIFFE: %t: %q, want %q", spiffe, got, want)
		}
	}
}

// The settings of a trust domain must make sense.
func TestSPIFFESettings(t *testing.T) {
	for what, cfg := range map[string]KeysConfig{
		"no trust domain": {SPIFFE: true, Issuer: "https://example.org", KeysFile: "x"},
		"a workload":      {SPIFFE: true, Issuer: "spiffe://example.org/a", KeysFile: "x"},
		"metadata":        {SPIFFE: true, Issuer: "spiffe://example.org", Discovery: true},
	} {
		if cfg.Check() == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if err := (KeysConfig{SPIFFE: true, Issuer: "spiffe://example.org", KeysFile: "x"}).Check(); err != nil {
		t.Error(err)
	}
	if _, err := NewJWT(JWTConfig{Keys: &Keys{cfg: KeysConfig{SPIFFE: true, Issuer: "spiffe://example.org"}}}); err == nil || !strings.Contains(err.Error(), "Audience") {
		t.Errorf("without an audience: %v", err)
	}
}
