package caddyoauth

import (
	_ "embed"
	"net/http"
)

// openAPI describes the paths below /oauth/ on the admin endpoint (OpenAPI 3.0). A test writes its schemas,
// which are made of the types and their comments; the rest is written by hand.
//
//go:embed openapi.json
var openAPI []byte

// serveOpenAPI answers with the description of the admin endpoint.
func serveOpenAPI(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return adminError(http.StatusMethodNotAllowed, "GET or HEAD only")
	}
	w.Header().Set("Content-Type", "application/json")
	_, err := w.Write(openAPI)
	return err
}
