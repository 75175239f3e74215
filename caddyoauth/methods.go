package caddyoauth

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// MethodRule is what `oauth_protect` asks for if a request has one of some methods. What is set
// here replaces what the `oauth_protect` itself says of it; everything else holds as it does
// there.
type MethodRule struct {
	// The methods, as in `GET`. They are compared byte for byte, so `HEAD` is not `GET`. A `*`
	// alone stands for all methods that no other rule of the `oauth_protect` names. A WebSocket
	// is a `GET`, over HTTP/2 and HTTP/3 too, where its method is `CONNECT`.
	Methods []string `json:"methods,omitempty"`

	// Scopes that the token must have, all of them. Default: those of the `oauth_protect`.
	Scopes []string `json:"scopes,omitempty"`

	// Scopes, at least one of which the token must have. Default: those of the `oauth_protect`.
	AnyScope []string `json:"any_scope,omitempty"`

	// Audiences, at least one of which the token must name. Default: those of the
	// `oauth_protect`.
	Audience []string `json:"audience,omitempty"`

	// Claims that the token must have, all of them. Default: those of the `oauth_protect`.
	Claims []ClaimRule `json:"claims,omitempty"`

	// `required` refuses tokens that are not bound to a key. Default: as the `oauth_protect` says.
	DPoP string `json:"dpop,omitempty"`

	// Lets requests without a token pass, unnamed. Default: as the `oauth_protect` says.
	Optional bool `json:"optional,omitempty"`
}

// anyMethod stands for all methods that no rule names.
const anyMethod = "*"

// isNamed reports whether a rule is for methods that it names.
func (m *MethodRule) isNamed() bool { return !slices.Contains(m.Methods, anyMethod) }

// checkMethods checks the methods of a rule. The error names on, the option in a Caddyfile.
func checkMethods(methods []string) error {
	if len(methods) == 0 {
		return errors.New("on takes at least one method, as in 'on GET HEAD', or a *")
	}
	for i, method := range methods {
		switch {
		case method == anyMethod && len(methods) > 1:
			return errors.New("on: * stands for all methods that no other 'on' names, so no method goes beside it")
		case method == anyMethod:
		case method == http.MethodConnect:
			return errors.New("on: no rule is for CONNECT: tunnels are refused, and a WebSocket counts as GET")
		case !isMethod(method):
			return fmt.Errorf("on: '%s' is not a method in capitals, as in 'on GET HEAD'", method)
		case slices.Contains(methods[:i], method):
			return fmt.Errorf("on names %s twice", method)
		}
	}
	return nil
}

// checkMethodsOnce checks that no method has two rules.
func checkMethodsOnce(rules []MethodRule) error {
	var known []string
	for i := range rules {
		for _, method := range rules[i].Methods {
			if slices.Contains(known, method) {
				return fmt.Errorf("on: %s is in two of them, and can have one rule", method)
			}
			known = append(known, method)
		}
	}
	return nil
}

// isMethod reports whether text is a token (RFC 9110 section 5.6.2) without small letters and *.
func isMethod(text string) bool {
	for _, c := range []byte(text) {
		if ('A' > c || c > 'Z') && ('0' > c || c > '9') && strings.IndexByte("!#$%&'+-.^_`|~", c) < 0 {
			return false
		}
	}
	return text != ""
}

// provisionRules checks what the route asks for, and makes its rules.
func (p *Protect) provisionRules() error {
	own, err := newRule(access.Rule{}, p.Scopes, p.AnyScope, p.Audience, p.Claims, p.Optional)
	if err != nil {
		return err
	}
	own.KeyBound = p.DPoP != nil && p.DPoP.Mode == dpopRequired
	p.rule = own
	if err := checkMethodsOnce(p.On); err != nil {
		return err
	}
	named := make(map[string]*access.Rule)
	for i := range p.On {
		on := &p.On[i]
		if err := checkMethods(on.Methods); err != nil {
			return err
		}
		rule, err := newRule(own, on.Scopes, on.AnyScope, on.Audience, on.Claims, on.Optional)
		if err != nil {
			return fmt.Errorf("on %s: %w", strings.Join(on.Methods, " "), err)
		}
		if on.DPoP != "" {
			if err := checkClientDPoP(on.DPoP); err != nil {
				return fmt.Errorf("on %s: %w", strings.Join(on.Methods, " "), err)
			}
			rule.KeyBound = true
		}
		if !on.isNamed() {
			p.rule = rule
			continue
		}
		for _, method := range on.Methods {
			named[method] = &rule
		}
	}
	if len(named) == 0 {
		return nil
	}
	p.named, p.misspelt = named, make(map[string]*access.Rule)
	for method, rule := range named {
		p.misspelt[method] = access.Both(rule, &p.rule)
	}
	return nil
}

// warnOfOptional warns of rules that ask for something of a token, and that requests without one
// pass, only because of what stands elsewhere.
func (p *Protect) warnOfOptional() {
	for _, on := range p.On {
		if p.Optional && !on.Optional && len(on.Scopes)+len(on.AnyScope)+len(on.Audience)+len(on.Claims) > 0 {
			p.logger.Warn("requests without a token pass this rule, because the oauth_protect around it is optional: put 'optional' into those 'on' that mean it, and not into the block itself",
				zap.String("rule", p.At), zap.Strings("on", on.Methods))
		}
	}
}

// newRule returns the rule with what is set, and the rest of base.
func newRule(base access.Rule, scopes, anyScope, audience []string, claims []ClaimRule, optional bool) (access.Rule, error) {
	if err := errors.Join(conf.CheckScopes("scopes", scopes), conf.CheckScopes("any_scope", anyScope)); err != nil {
		return base, err
	}
	if err := conf.CheckAudience("audience", audience); err != nil {
		return base, err
	}
	if len(scopes) > 0 {
		base.Scopes = scopes
	}
	if len(anyScope) > 0 {
		base.AnyScope = anyScope
	}
	if len(audience) > 0 {
		base.Audience = audience
	}
	if len(claims) > 0 {
		base.Claims = nil
	}
	for _, claim := range claims {
		if err := claim.check(); err != nil {
			return base, err
		}
		base.Claims = append(base.Claims, access.Claim(claim))
	}
	base.Optional = base.Optional || optional
	return base, nil
}

// ruleFor returns the rule for requests with a method. It doesn't allocate for methods in
// capitals.
func (p *Protect) ruleFor(method string) *access.Rule {
	if p.named == nil {
		return &p.rule
	}
	if method == http.MethodConnect {
		// Other than for a WebSocket it doesn't get here, and of that backends see a GET.
		method = http.MethodGet
	}
	if rule := p.named[method]; rule != nil {
		return rule
	}
	// Case counts (RFC 9110 section 9.1), so "post" is another method than POST. Some backends take
	// it for POST all the same, so it has to meet both rules.
	if rule := p.misspelt[strings.ToUpper(method)]; rule != nil {
		return rule
	}
	return &p.rule
}

// anyOptional reports whether requests with some method need no token.
func (p *Protect) anyOptional() bool {
	if p.rule.Optional {
		return true
	}
	for _, rule := range p.named {
		if rule.Optional {
			return true
		}
	}
	return false
}
