package access

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyoauth/gateway/introspect"
)

// good returns facts that pass every rule here, with one thing changed.
func good(change func(*introspect.Facts)) *introspect.Facts {
	facts := &introspect.Facts{
		Active: true, ClientID: "reporter", Subject: "reporter",
		Scopes: []string{"read", "list"}, Audience: []string{"api"}, Claims: `{"role":["dev","ops"]}`,
	}
	if change != nil {
		change(facts)
	}
	return facts
}

func certificateBound() *introspect.Facts {
	return good(func(f *introspect.Facts) { f.Confirmation.Certificate = "a" })
}

func TestEachCauseIsFoundAndNothingElseRefuses(t *testing.T) {
	allowed, fit := Decision{Allowed: true}, Request{Fit: true}
	bound := func(certificate, key string) *introspect.Facts {
		return good(func(f *introspect.Facts) {
			f.Confirmation = introspect.Confirmation{Certificate: certificate, Key: key}
		})
	}
	proves := func(certificate, key string) Request {
		return Request{Proven: introspect.Confirmation{Certificate: certificate, Key: key}, Fit: true}
	}
	everything := Rule{
		Scopes: []string{"read"}, AnyScope: []string{"write", "list"}, Audience: []string{"api", "web"},
		Claims: []Claim{{"role", []string{"ops", "root"}}, {"role", []string{"dev"}}},
	}
	for _, c := range []struct {
		name    string
		rule    Rule
		facts   *introspect.Facts
		request Request
		want    Decision
	}{
		{"a rule without demands takes any valid token", Rule{}, good(nil), fit, allowed},
		{"a token that meets every demand passes", everything, good(nil), fit, allowed},
		{"an inactive token is refused without demands", Rule{}, introspect.Inactive(), fit, Decision{Cause: introspect.CauseUnknown}},
		{"an inactive token is no more than inactive", everything, introspect.Inactive(), Request{}, Decision{Cause: introspect.CauseUnknown}},
		{"an inactive token keeps the cause that its source found", everything, introspect.InactiveBecause(introspect.CauseRevoked), fit, Decision{Cause: introspect.CauseRevoked}},
		{"a cause that is not on the list is unknown", Rule{}, introspect.InactiveBecause("made_up"), fit, Decision{Cause: introspect.CauseUnknown}},
		{"no source can say that a token only lacks a scope", Rule{}, introspect.InactiveBecause(CauseScope), fit, Decision{Cause: introspect.CauseUnknown}},

		{"a certificate that the token is bound to", Rule{}, certificateBound(), Request{Fit: true, Proven: introspect.Confirmation{Certificate: "a"}}, allowed},
		{"another certificate", Rule{}, certificateBound(), Request{Fit: true, Proven: introspect.Confirmation{Certificate: "b"}}, Decision{Cause: introspect.CauseBinding}},
		{"no certificate, before everything else that is wrong", everything, certificateBound(), Request{}, Decision{Cause: introspect.CauseBinding}},
		{"its certificate, too early", Rule{}, certificateBound(), Request{Fit: true, TooEarly: true, Proven: introspect.Confirmation{Certificate: "a"}}, Decision{Cause: CauseEarlyData}},
		{"a bearer token, too early", Rule{}, good(nil), Request{Fit: true, TooEarly: true}, allowed},

		{"a token for another audience", everything, good(func(f *introspect.Facts) { f.Audience = []string{"API"} }), fit,
			Decision{Cause: introspect.CauseAudience, Want: []string{"api", "web"}, Has: []string{"API"}}},
		{"a token without audience", everything, good(func(f *introspect.Facts) { f.Audience = nil }), fit,
			Decision{Cause: introspect.CauseAudience, Want: []string{"api", "web"}}},
		{"the audience comes before the names", everything, good(func(f *introspect.Facts) { f.Audience, f.ClientID, f.Subject = nil, "", "" }), Request{},
			Decision{Cause: introspect.CauseAudience, Want: []string{"api", "web"}}},

		{"a certificate that is proven", Rule{}, bound("c", ""), proves("c", ""), allowed},
		{"a certificate that is not proven", Rule{}, bound("c", ""), fit, Decision{Cause: introspect.CauseBinding}},
		{"another certificate", Rule{}, bound("c", ""), proves("d", "c"), Decision{Cause: introspect.CauseBinding}},
		{"a key that is proven", Rule{KeyBound: true}, bound("", "k"), proves("", "k"), allowed},
		{"a key that is not proven", Rule{}, bound("", "k"), fit, Decision{Cause: introspect.CauseBinding}},
		{"another key", Rule{}, bound("", "k"), proves("k", "l"), Decision{Cause: introspect.CauseBinding}},
		{"one of two", Rule{}, bound("c", "k"), proves("c", ""), Decision{Cause: introspect.CauseBinding}},
		{"both of two", Rule{KeyBound: true}, bound("c", "k"), proves("c", "k"), allowed},
		{"a bearer token, and a certificate that nobody asks for", Rule{}, good(nil), proves("c", ""), allowed},
		{"a bearer token where it must be bound to a key", Rule{KeyBound: true}, good(nil), proves("c", ""), Decision{Cause: CauseUnbound}},
		{"of two rules, one needs a key", *Both(&everything, &Rule{KeyBound: true}), good(nil), fit, Decision{Cause: CauseUnbound}},
		{"an inactive token that is bound", Rule{KeyBound: true}, introspect.Inactive(), fit, Decision{Cause: introspect.CauseUnknown}},

		{"a token that names nobody", Rule{}, good(func(f *introspect.Facts) { f.ClientID, f.Subject = "", "" }), fit, Decision{Cause: CauseNamesNobody}},
		{"a client is somebody", Rule{}, good(func(f *introspect.Facts) { f.Subject = "" }), fit, allowed},
		{"a subject is somebody", Rule{}, good(func(f *introspect.Facts) { f.ClientID = "" }), fit, allowed},
		{"nobody comes before names that don't fit", Rule{}, good(func(f *introspect.Facts) { f.ClientID, f.Subject = "", "" }), Request{}, Decision{Cause: CauseNamesNobody}},

		{"names that don't fit", Rule{}, good(nil), Request{}, Decision{Cause: CauseUnfit}},
		{"names that don't fit come before scopes", everything, good(func(f *introspect.Facts) { f.Scopes = nil }), Request{}, Decision{Cause: CauseUnfit}},

		{"one scope of several is missing", Rule{Scopes: []string{"read", "write"}}, good(nil), fit,
			Decision{Cause: CauseScope, Want: []string{"read", "write"}, Has: []string{"read", "list"}}},
		{"a scope is no prefix", Rule{Scopes: []string{"rea"}}, good(nil), fit,
			Decision{Cause: CauseScope, Want: []string{"rea"}, Has: []string{"read", "list"}}},
		{"none of the alternatives", Rule{AnyScope: []string{"write", "delete"}}, good(nil), fit,
			Decision{Cause: CauseScope, Want: []string{"write", "delete"}, Has: []string{"read", "list"}}},
		{"an alternative that the token has does not replace a scope", Rule{Scopes: []string{"write"}, AnyScope: []string{"delete", "list"}}, good(nil), fit,
			Decision{Cause: CauseScope, Want: []string{"write", "list"}, Has: []string{"read", "list"}}},
		{"scopes come before claims", everything, good(func(f *introspect.Facts) { f.Scopes, f.Claims = nil, "" }), fit,
			Decision{Cause: CauseScope, Want: []string{"read", "write", "list"}}},

		{"a claim has another value", Rule{Claims: []Claim{{"role", []string{"OPS", "root"}}}}, good(nil), fit,
			Decision{Cause: CauseClaim, Claim: "role", Want: []string{"OPS", "root"}}},
		{"a claim is missing", Rule{Claims: []Claim{{"role", []string{"ops"}}, {"tenant", []string{"a"}}}}, good(nil), fit,
			Decision{Cause: CauseClaim, Claim: "tenant", Want: []string{"a"}}},

		{"of two rules, both allow the request", *Both(&everything, &Rule{Scopes: []string{"list"}}), good(nil), fit, allowed},
		{"of two rules, the first refuses", *Both(&Rule{Audience: []string{"web"}}, &everything), good(nil), fit,
			Decision{Cause: introspect.CauseAudience, Want: []string{"web"}, Has: []string{"api"}}},
		{"of two rules, the second refuses the audience", *Both(&everything, &Rule{Audience: []string{"web"}}), good(nil), fit,
			Decision{Cause: introspect.CauseAudience, Want: []string{"web"}, Has: []string{"api"}}},
		{"of two rules, the second refuses a claim", *Both(&everything, &Rule{Claims: []Claim{{"tenant", []string{"a"}}}}), good(nil), fit,
			Decision{Cause: CauseClaim, Claim: "tenant", Want: []string{"a"}}},
		{"of two rules that ask for scopes, both are named", *Both(&Rule{Scopes: []string{"read"}}, &Rule{AnyScope: []string{"write", "admin"}}), good(nil), fit,
			Decision{Cause: CauseScope, Want: []string{"read", "write", "admin"}, Has: []string{"read", "list"}}},
		{"a rule for requests without a token changes nothing for others", Rule{Scopes: []string{"write"}, Optional: true}, good(nil), fit,
			Decision{Cause: CauseScope, Want: []string{"write"}, Has: []string{"read", "list"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Decide(&c.rule, c.facts, c.request); !reflect.DeepEqual(got, c.want) {
				t.Errorf("decided %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestTheScopesForABearerAreItsOwnAlternatives(t *testing.T) {
	rule := Rule{Scopes: []string{"read"}, AnyScope: []string{"write", "list", "delete"}}
	if got, want := rule.ScopesFor(good(nil)), []string{"read", "list"}; !slices.Equal(got, want) {
		t.Errorf("a bearer with one alternative needs %q, want %q", got, want)
	}
	if got, want := rule.ScopesFor(introspect.Inactive()), []string{"read", "write", "list", "delete"}; !slices.Equal(got, want) {
		t.Errorf("a bearer with no alternative needs %q, want %q", got, want)
	}
	slices.Sort(rule.ScopesFor(introspect.Inactive()))
	if want := []string{"write", "list", "delete"}; !slices.Equal(rule.AnyScope, want) {
		t.Errorf("a caller that sorts its scopes changes the rule to %q", rule.AnyScope)
	}
}

func TestOfTwoRulesATokenIsOptionalOnlyIfBothSaySo(t *testing.T) {
	for _, a := range []bool{false, true} {
		for _, b := range []bool{false, true} {
			if got := Both(&Rule{Optional: a}, &Rule{Optional: b}).Optional; got != (a && b) {
				t.Errorf("optional %t and %t make %t", a, b, got)
			}
		}
	}
}

func TestAllowingDoesNotAllocate(t *testing.T) {
	rule := Rule{Scopes: []string{"read"}, AnyScope: []string{"write", "list"}, Audience: []string{"api"}}
	facts := good(nil)
	allowed := true
	if n := testing.AllocsPerRun(100, func() { allowed = allowed && Decide(&rule, facts, Request{Fit: true}).Allowed }); n != 0 || !allowed {
		t.Errorf("allowed %t with %v allocations, want none", allowed, n)
	}
}

func TestEveryCauseIsExplainedOnce(t *testing.T) {
	seen := make(map[Cause]bool)
	for _, e := range Explanations {
		if seen[e.Cause] {
			t.Errorf("%s is explained twice", e.Cause)
		}
		seen[e.Cause] = true
		if e.Result == "" || !strings.HasSuffix(e.Means, ".") || !strings.HasSuffix(e.Do, ".") {
			t.Errorf("%s is not explained: %+v", e.Cause, e)
		}
	}
	for _, cause := range introspect.Causes() {
		if !seen[cause] {
			t.Errorf("sources find %s, which is not explained", cause)
		}
	}
	// Nothing else has all the causes, so look for them in the source.
	for _, file := range []string{"cause.go", "../../../introspect/cause.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		declared := regexp.MustCompile(`(?m)^\tCause\w+ +Cause += "([a-z_]+)"`).FindAllSubmatch(source, -1)
		if len(declared) < 10 {
			t.Errorf("only %d causes were found in %s", len(declared), file)
		}
		for _, m := range declared {
			if !seen[Cause(m[1])] {
				t.Errorf("%s declares the cause %s, which is not explained", file, m[1])
			}
		}
	}
}

// Callers can't tell the causes apart that a token's source finds.
func TestAllCausesThatASourceFindsHaveOneResult(t *testing.T) {
	for _, e := range Explanations {
		if slices.Contains(introspect.Causes(), e.Cause) && e.Result != ResultToken {
			t.Errorf("%s has the result %s, want %s", e.Cause, e.Result, ResultToken)
		}
	}
}
