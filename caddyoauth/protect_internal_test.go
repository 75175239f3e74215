package caddyoauth

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyoauth/gateway/caddyoauth/internal/access"
)

// oauth_protect has an answer to every cause, except to tunnels, which are refused before it
// decides anything.
func TestEveryCauseHasAnAnswer(t *testing.T) {
	p := &Protect{label: "every cause", basic: new(basicRoute), dpop: new(dpopRoute)}
	t.Cleanup(func() { collectors.checks.DeletePartialMatch(prometheus.Labels{"realm": p.label}) })
	p.prepareRejections(collectors)
	for _, e := range access.Explanations {
		no := p.rejections[e.Cause]
		if e.Cause == access.CauseTunnel {
			continue
		}
		if no == nil || no.status < 400 || no.cause != e.Cause || no.err == nil || no.count == nil {
			t.Errorf("%s is answered with %+v", e.Cause, no)
		}
	}
}
