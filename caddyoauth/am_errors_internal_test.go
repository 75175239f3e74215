package caddyoauth

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// amDecisions are what AM says for each refusal that an endpoint can make, by its description. A * stands
// for what is put in when it is made. ours is the decision to keep our code and text, since AM has no
// such refusal, or no text for it.
var amDecisions = map[string]string{
	// What AM refuses, too.
	"the method must be POST":                                    "Required Method: POST found: GET",
	"the content type must be application/x-www-form-urlencoded": "Invalid Content Type",
	"grant_type is missing":                                      "Grant type is not set",
	"the grant type is not supported":                            "Grant type is not supported",
	"the client is not authorized to use this grant type":        "The authenticated client is not authorized to use this authorization grant type.",
	"client authentication failed":                               "Client authentication failed",
	"client_id differs from the authenticated client":            "Client authentication failed",
	"the client may not have a scope that was requested":         "Unknown/invalid scope(s): [a, b]",
	"the scope is malformed or too long":                         "Unknown/invalid scope(s): []",
	"no scope was requested and the client has no default scope": "No scope requested and no default scope configured",
	"Invalid cnf_key parameter":                                  "Invalid cnf_key parameter",
	"token is missing":                                           "Missing parameter: token",
	"the token was issued to another client":                     "The provided token id belongs to different access grant.",

	// AM has a text if there is an Authorization header; writeAMError sees to that.
	"there is more than one client authentication method": ours,

	// What AM takes, or does not look at.
	"* is repeated":           ours,
	"a parameter is repeated": ours,
	"resource must be repeated under its plain name, and not as a list with brackets": ours,
	"* must be sent once, and not as a list with brackets":                            ours,
	"there is more than one Authorization header":                                     ours,
	"the body is not well-formed":                                                     ours,
	"the body could not be read":                                                      ours,
	"the body is larger than 64 KiB":                                                  ours,
	"too many parameters":                                                             ours,
	"client_assertion_type must be *":                                                 ours,
	"client_assertion is missing":                                                     ours,
	"a resource must be an absolute URI without a fragment":                           ours,
	"the client may not have a token for a resource that was requested":               ours,
	"the token would be too long; ask for fewer scopes or resources":                  ours,
	"TLS is required":                                                                 ours,
	"send it again after the TLS handshake":                                           ours,
	"the realm parameter asks for another realm than the path: name the realm in the path, as in /realms/root/realms/name, and leave the parameter out": ours,

	// What AM does not have.
	"the client's tokens are bound to its certificate; send the request with one": ours,
	"the DPoP proof is not valid here":                                            ours,
	"the client's tokens are bound to a key: a DPoP proof is required":            ours,
	"there is more than one DPoP header":                                          ours,
	"the DPoP proof needs the nonce that comes with this answer":                  ours,
	"the token is not valid here":                                                 ours,
	"the token lacks a required scope":                                            ours,
	"the Authorization header must have one well-formed bearer token":             ours,
	"too many failed authentications":                                             ours,
	"too many authentications under way":                                          ours,
	"the client fetches too many tokens":                                          ours,
	"the client has too many tokens":                                              ours,
	"the client has used too many assertions":                                     ours,
	"the client has revoked too many tokens":                                      ours,
	"too many inquiries":                                                          ours,
	"too many inquiries about tokens that are not active":                         ours,

	// What AM's own endpoint says.
	"the method must be GET": "Required Method: GET found: GET",
	"The access token provided is expired, revoked, malformed, or invalid for other reasons.": ours,
	"Access Token cannot be provided in both query and header":                                ours,
	"access_token is repeated":     ours,
	"the query is not well-formed": ours,

	// AM answers an outage with 400, so that programs give up.
	"try again later": ours,
}

const ours = "ours"

// Whoever adds a refusal, or changes one, decides what a realm says of it that answers as AM does.
func TestEveryRefusalHasADecisionForAM(t *testing.T) {
	refusals := refusalsInSource(t)
	for description, refusal := range refusals {
		want, decided := amDecisions[description]
		if !decided {
			t.Errorf("what AM says is undecided for %s: %q", refusal.Code, description)
			continue
		}
		if want == ours {
			want = refusal.Description
		}
		if _, got := amErrorOf(refusal, "GET"); got != want {
			t.Errorf("for %q AM says %q, want %q", description, got, want)
		}
	}
	for description := range amDecisions {
		if refusals[description] == nil {
			t.Errorf("there is no refusal with %q", description)
		}
	}
}

// refusalsInSource finds all refusals of the endpoints that authenticate clients, by their descriptions.
func refusalsInSource(t *testing.T) map[string]*oauth.Error {
	t.Helper()
	files, err := filepath.Glob("internal/oauth/*.go")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, "server.go", "wire.go", "misdirected.go", "am_errors.go", "am_tokeninfo.go")
	constants := make(map[string]string)
	found := make(map[string]*oauth.Error)
	var parsed []*ast.File
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, file)
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok {
				for i, name := range spec.Names {
					if i < len(spec.Values) {
						if text := textOf(spec.Values[i], constants); !strings.Contains(text, "*") {
							constants[name.Name] = text
						}
					}
				}
			}
			return true
		})
	}
	for _, file := range parsed {
		ast.Inspect(file, func(n ast.Node) bool {
			e := new(oauth.Error)
			switch n := n.(type) {
			case *ast.FuncDecl:
				// One is given its description, which is where it is called; the other answers where no
				// endpoint is.
				return n.Name.Name != "invalidRequest" && n.Name.Name != "directions"
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.Ident); !ok || f.Name != "invalidRequest" {
					return true
				}
				e.Code, e.Description = oauth.CodeInvalidRequest, textOf(n.Args[0], constants)
			case *ast.AssignStmt:
				at := slices.IndexFunc(n.Lhs, func(left ast.Expr) bool {
					field, ok := left.(*ast.SelectorExpr)
					return ok && field.Sel.Name == "Description"
				})
				if at < 0 {
					return true
				}
				e.Description = textOf(n.Rhs[at], constants)
			case *ast.CompositeLit:
				for _, element := range n.Elts {
					if field, ok := element.(*ast.KeyValueExpr); ok {
						switch key, _ := field.Key.(*ast.Ident); {
						case key == nil:
						case key.Name == "Code":
							e.Code = oauth.Code(textOf(field.Value, constants))
						case key.Name == "Description":
							e.Description = textOf(field.Value, constants)
						case key.Name == "Reason":
							e.Reason = textOf(field.Value, constants)
						case key.Name == "Scopes":
							e.Scopes = []string{"a", "b"}
						}
					}
				}
				if e.Code == "" || e.Description == "" {
					return true
				}
			default:
				return true
			}
			if found[e.Description] == nil || found[e.Description].Reason == "" {
				found[e.Description] = e
			}
			return true
		})
	}
	return found
}

// textOf returns a text as the source has it, with a * for each part that it doesn't say.
func textOf(e ast.Expr, constants map[string]string) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, _ := strconv.Unquote(e.Value)
		return text
	case *ast.BinaryExpr:
		return textOf(e.X, constants) + textOf(e.Y, constants)
	case *ast.SelectorExpr:
		return textOf(e.Sel, constants)
	case *ast.Ident:
		if text, known := constants[e.Name]; known {
			return text
		}
	}
	return "*"
}

// ServeEndpoint has the first oauth_server of the active configuration answer a request.
func ServeEndpoint(w http.ResponseWriter, r *http.Request) error {
	return activeApp().servers[0].ServeHTTP(w, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil }))
}

// A client that has no secret doesn't get a method that takes one.
func TestAuthMethodsOfAMNeedASecret(t *testing.T) {
	am := &AMCompat{AuthMethods: authMethodsNever}
	if got := am.authMethods(&oauth.Client{Auth: []string{oauth.AuthPrivateKeyJWT}}); !slices.Equal(got, []string{oauth.AuthPrivateKeyJWT}) {
		t.Errorf("the methods are %q", got)
	}
	if got := am.authMethods(&oauth.Client{Auth: []string{oauth.AuthPrivateKeyJWT, oauth.AuthPost}}); !slices.Equal(got, []string{oauth.AuthPrivateKeyJWT, oauth.AuthPost, oauth.AuthBasic}) {
		t.Errorf("the methods are %q", got)
	}
}
