package verifiers

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	jwxjwt "github.com/lestrrat-go/jwx/v3/jwt"
)

// verifier is a program that verifies tokens with somebody's library. It fetches the JWK set, and
// keeps it as the library does unless told otherwise.
type verifier struct {
	name   string
	verify func(token string) (claims map[string]any, err error)
}

// issued is what verifiers know of the JWTs that they expect.
type issued struct {
	issuer, set, audience string
	algorithms            []string
	// answer is set if they expect signed answers of introspection (RFC 9701), not access tokens.
	answer bool
}

func (i issued) typ() string {
	if i.answer {
		return "token-introspection+jwt"
	}
	return "at+jwt"
}

func (i issued) required() []string {
	if i.answer {
		return []string{"iat", "token_introspection"}
	}
	return []string{"exp", "iat", "jti", "client_id"}
}

var errType = errors.New("the token has another type")

// startVerifiers starts one of each kind, in a bubble.
func startVerifiers(t *testing.T, out outside, want issued) []verifier {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return []verifier{
		withOIDC(t, ctx, out, want), withJWX(t, ctx, out, want), withKeyfunc(t, ctx, out, want), withJose(t, out, want),
	}
}

// withOIDC finds the keys by the metadata. It keeps them until it meets one that it does not know.
func withOIDC(t *testing.T, ctx context.Context, out outside, want issued) verifier {
	t.Helper()
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, out.client()), want.issuer)
	if err != nil {
		t.Fatalf("go-oidc: %v", err)
	}
	own := provider.Verifier(&oidc.Config{ClientID: want.audience, SupportedSigningAlgs: want.algorithms})
	return verifier{"go-oidc", func(token string) (claims map[string]any, err error) {
		read, err := own.Verify(ctx, token)
		if err != nil {
			return nil, err
		}
		return claims, read.Claims(&claims)
	}}
}

// withJWX asks again at times that follow from Cache-Control, and then only.
func withJWX(t *testing.T, ctx context.Context, out outside, want issued) verifier {
	t.Helper()
	cache, err := jwk.NewCache(ctx, httprc.NewClient(httprc.WithHTTPClient(out.client())))
	if err == nil {
		err = cache.Register(ctx, want.set, jwk.WithHTTPClient(out.client()))
	}
	if err != nil {
		t.Fatalf("jwx: %v", err)
	}
	set, err := cache.CachedSet(want.set)
	if err != nil {
		t.Fatalf("jwx: %v", err)
	}
	return verifier{"jwx", func(token string) (claims map[string]any, err error) {
		message, err := jws.ParseString(token)
		if err != nil {
			return nil, err
		}
		if typ, _ := message.Signatures()[0].ProtectedHeaders().Type(); typ != want.typ() {
			return nil, errType
		}
		options := []jwxjwt.ParseOption{jwxjwt.WithKeySet(set), jwxjwt.WithIssuer(want.issuer), jwxjwt.WithAudience(want.audience)}
		for _, claim := range want.required() {
			options = append(options, jwxjwt.WithRequiredClaim(claim))
		}
		read, err := jwxjwt.ParseString(token, options...)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(read)
		return claims, errors.Join(err, json.Unmarshal(text, &claims))
	}}
}

// withKeyfunc asks again each hour, and when it meets a key that it does not know, but not too often.
func withKeyfunc(t *testing.T, ctx context.Context, out outside, want issued) verifier {
	t.Helper()
	keys, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{want.set}, keyfunc.Override{Client: out.client()})
	if err != nil {
		t.Fatalf("keyfunc: %v", err)
	}
	return verifier{"golang-jwt", func(token string) (map[string]any, error) {
		claims := make(jwt.MapClaims)
		read, err := jwt.ParseWithClaims(token, claims, keys.KeyfuncCtx(ctx), jwt.WithValidMethods(want.algorithms), jwt.WithIssuer(want.issuer),
			jwt.WithAudience(want.audience), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithStrictDecoding())
		if err != nil {
			return nil, err
		}
		if read.Header["typ"] != "at+jwt" {
			return nil, errType
		}
		return claims, nil
	}}
}

// withJose asks again when it meets a key that it does not know, but not too often, and when it has
// had the keys for ten minutes.
func withJose(t *testing.T, out outside, want issued) verifier {
	t.Helper()
	var input io.Writer
	var output *bufio.Reader
	var node *exec.Cmd
	out.do(func() { input, output, node = startJose(t) })
	t.Cleanup(func() {
		out.do(func() {
			node.Process.Kill()
			node.Wait()
		})
	})
	return verifier{"jose", func(token string) (claims map[string]any, err error) {
		now := time.Now().UnixMilli()
		var answer struct {
			Error   string
			Payload map[string]any
		}
		out.do(func() {
			err = json.NewEncoder(input).Encode(map[string]any{
				"set": want.set, "issuer": want.issuer, "audience": want.audience, "typ": want.typ(), "requiredClaims": want.required(), "token": token, "now": now,
			})
			if err == nil {
				var line []byte
				line, err = output.ReadBytes('\n')
				err = errors.Join(err, json.Unmarshal(line, &answer))
			}
		})
		if answer.Error != "" {
			err = errors.New(answer.Error)
		}
		return answer.Payload, err
	}}
}

func startJose(t *testing.T) (io.Writer, *bufio.Reader, *exec.Cmd) {
	program, err := filepath.Abs("jose.mjs")
	if err != nil {
		t.Error(err)
	}
	node := exec.Command("node", program)
	node.Env = []string{"HOME=" + t.TempDir()}
	input, err := node.StdinPipe()
	if err != nil {
		t.Error(err)
	}
	output, err := node.StdoutPipe()
	if err == nil {
		err = node.Start()
	}
	if err != nil {
		t.Errorf("it needs Node, and the packages that .ci/node installs: %v", err)
	}
	return input, bufio.NewReader(output), node
}

// wantsAll has all verifiers accept a token, and compares what they read.
func wantsAll(t *testing.T, all []verifier, token string, want issued) {
	t.Helper()
	for _, v := range all {
		claims, err := v.verify(token)
		if err != nil {
			t.Errorf("%s refuses a good token: %v", v.name, err)
			continue
		}
		if claims["iss"] != want.issuer || claims["sub"] != "reader" || claims["client_id"] != "reader" || claims["scope"] != "read" || claims["jti"] == "" ||
			!slices.Contains([]string{want.audience, "[" + want.audience + "]"}, fmt.Sprint(claims["aud"])) {
			t.Errorf("%s reads %v", v.name, claims)
		}
	}
}

// wantsNone has all verifiers refuse a token.
func wantsNone(t *testing.T, what string, all []verifier, token string) {
	t.Helper()
	for _, v := range all {
		if claims, err := v.verify(token); err == nil {
			t.Errorf("%s accepts %s, and reads %v", v.name, what, claims)
		}
	}
}
