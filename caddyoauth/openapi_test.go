package caddyoauth_test

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

var openAPIRouter = sync.OnceValues(func() (routers.Router, error) {
	document, err := openapi3.NewLoader().LoadFromFile("openapi.json")
	if err != nil {
		return nil, err
	}
	document.Servers = nil // tests have other addresses
	for _, schema := range document.Components.Schemas {
		if strict := false; len(schema.Value.Properties) > 0 { // a program must not mind what is new; a test does
			schema.Value.AdditionalProperties.Has = &strict
		}
	}
	return gorillamux.NewRouter(document)
})

// checkOpenAPI checks that an answer of the admin endpoint, and the request if it was accepted, are as the
// document says. All requests of tests to the admin endpoint come by here.
func checkOpenAPI(t testing.TB, r *http.Request, res *http.Response, body string) {
	t.Helper()
	router, err := openAPIRouter()
	if err != nil {
		t.Error(err)
		return
	}
	asked := r.Clone(r.Context())
	if asked.Body = http.NoBody; r.GetBody != nil {
		if asked.Body, err = r.GetBody(); err != nil {
			t.Error(err)
			return
		}
	}
	route, values, err := router.FindRoute(asked)
	if err != nil {
		if res.StatusCode < 400 && r.Method != http.MethodHead {
			t.Errorf("%s %s: %d, and openapi.json has no such request: %v", r.Method, r.URL.Path, res.StatusCode, err)
		}
		return
	}
	request := &openapi3filter.RequestValidationInput{Request: asked, PathParams: values, Route: route}
	if res.StatusCode < 400 {
		if err := openapi3filter.ValidateRequest(r.Context(), request); err != nil {
			t.Errorf("%s %s: the request is not as openapi.json says: %v", r.Method, r.URL.Path, err)
		}
	}
	answer := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: request, Status: res.StatusCode, Header: res.Header, Body: io.NopCloser(strings.NewReader(body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}
	if err := openapi3filter.ValidateResponse(r.Context(), answer); err != nil {
		t.Errorf("%s %s: %d is not as openapi.json says: %v", r.Method, r.URL.Path, res.StatusCode, err)
	}
}

// The document is served as it is.
func TestOpenAPIIsServed(t *testing.T) {
	config, address := withAdmin(t, caddyfileOf("store memory\n"+testClients, gatewaySite))
	a := admin{startCaddyfile(t, config), address}
	document := a.must(200, "GET", "/oauth/openapi.json", "").json(t)
	if document["openapi"] != "3.0.3" || document["paths"].(map[string]any)["/oauth/clients"] == nil {
		t.Errorf("the document is %.200v", document)
	}
	a.must(405, "POST", "/oauth/openapi.json", "{}")
}
