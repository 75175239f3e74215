package oauth

import (
	"net/url"
	"slices"
	"strings"
)

// grantAudience returns the audience of a token for the resources that a request names, without
// duplicates (RFC 8707). Each must be in the client's audience, byte for byte; otherwise the
// request is refused, and nothing is left out silently. A request that names none gets the
// client's whole audience.
func (c *Client) grantAudience(resources []string) ([]string, error) {
	if len(resources) == 0 {
		return c.Audience, nil
	}
	var audience []string
	for _, resource := range resources {
		if !isResource(resource) {
			return nil, &Error{Code: CodeInvalidTarget, Description: "a resource must be an absolute URI without a fragment"}
		}
		if !slices.Contains(c.Audience, resource) {
			return nil, &Error{Code: CodeInvalidTarget, Description: "the client may not have a token for a resource that was requested"}
		}
		if !slices.Contains(audience, resource) {
			audience = append(audience, resource)
		}
	}
	return audience, nil
}

// isResource reports whether s can name a resource: an absolute URI without a fragment, not even
// an empty one (RFC 8707 section 2, RFC 3986 section 4.3).
func isResource(s string) bool {
	if strings.Contains(s, "#") {
		return false
	}
	u, err := url.Parse(s)
	return err == nil && u.IsAbs()
}
