package caddyoauth

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// What a request reaches on paper is what a walk says, which agrees with real requests. Where lint
// can't tell, it says so.
func TestProbesAgreeWithWalks(t *testing.T) {
	t.Setenv("WALK_SECRET", walkSecret)
	log := filepath.Join(t.TempDir(), "log")
	var opened, closed int
	rapid.Check(t, func(t *rapid.T) {
		site := &walkSite{t: t, backend: "127.0.0.1:9"}
		text := site.configuration(log)
		a, end, err := startAsked(t, text)
		if err != nil {
			t.Skip(err)
		}
		defer end()
		l := newLinted(a.app, a.policy.http)
		o := lookForOpenDoors(l)
		for _, at := range o.ways {
			o.candidates(at, func(p probe, _ string) bool {
				got := o.try(p, false)
				if got.doubt || o.left <= 0 {
					return false
				}
				w := &walker{p: a.policy, server: p.server.server, path: "apps/http/servers/" + p.server.name, Result: &walk{}, app: a.policy.supposed}
				w.source = w.nobodys
				r := p.request()
				if err := w.run(r.WithContext(context.WithValue(r.Context(), askingCtxKey{}, true))); err != nil {
					t.Fatal(err)
				}
				if len(w.unsure) > 0 || len(reportedBy(w.Result)) > 0 {
					return false // lint takes what is only reported for refused
				}
				forwarded, met := "", false
				for _, step := range w.Result.Steps {
					if step.Did == didForward && forwarded == "" {
						forwarded = step.Path
					}
					met = met || step.Handler == "oauth_protect" && step.Did != didSkip
				}
				if strings.Contains(forwarded, "/errors/") {
					forwarded, met = "", true // error routes count only for what is refused
				}
				open := w.Result.Outcome.Kind == outcomePass && !met
				if open {
					opened++
				} else {
					closed++
				}
				switch {
				case got.open() != open:
					t.Fatalf("%s from %v %v is open: %v, but the walk ends with %+v\n%s", p.URL(), p.from, p.header, got.open(), w.Result.Outcome, text)
				case open && got.backend.handler.path != forwarded:
					t.Fatalf("%s gets to %s, but the walk to %s\n%s", p.URL(), got.backend.handler.path, forwarded, text)
				}
				return slices.Contains(got.passed, at.lintHandler)
			})
		}
	})
	t.Logf("%d open, %d not", opened, closed)
	if opened == 0 || closed == 0 {
		t.Errorf("%d requests are open and %d are not: that compares nothing", opened, closed)
	}
}
