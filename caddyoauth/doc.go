// Package caddyoauth makes Caddy an OAuth 2.0 gateway for machines.
//
// # Where things are
//
// These modules are registered with Caddy:
//
//	oauth                        the app: realms, clients, store, cache          app.go, realm.go, client.go
//	oauth.stores.*               where issued tokens are kept                    store_bbolt.go, store_memory.go, store_redis.go
//	oauth.sources.*              where accepted tokens come from                 source_local.go, source_introspect.go, source_jwt.go,
//	                                                                             source_spiffe.go
//	http.handlers.oauth_server   the token, introspection, revocation and
//	                             metadata endpoints                              server.go, wire.go, metadata.go
//	http.handlers.oauth_protect  checks bearer tokens in front of a backend      protect.go, bearer.go, identity.go
//	http.handlers.oauth_guard    guards what an oauth_protect with a matcher
//	                             leaves out                                      guard.go
//	http.matchers.oauth_scope    matches by the scopes of the caller             matcher.go
//	admin.api.oauth              the paths below /oauth/ on the admin endpoint   admin.go, admin_browser.go,
//	                                                                             admin_clients.go, admin_events.go,
//	                                                                             admin_keys.go, admin_move.go,
//	                                                                             admin_revoke.go, admin_state.go, console.go,
//	                                                                             explain.go, health.go, history.go,
//	                                                                             openapi.go, routes.go
//	caddy oauth                  the command line                                command.go, command_assertion.go,
//	                                                                             command_client.go, command_explain.go,
//	                                                                             command_import.go,
//	                                                                             command_keys.go, command_lint.go,
//	                                                                             command_move.go, command_routes.go,
//	                                                                             command_token.go
//
// Around them:
//
//	lifecycle.go           from Start to Cleanup, across reloads; begins with the whole story
//	caddyfile.go           the syntax of the global option and the directives
//	early.go, strip.go     what callers must not say about themselves, removed before any handler reads it
//	methods.go             rules that depend on the method
//	unnamed.go             requests that pass without an identity
//	resource.go            the document that says who issues tokens for what is protected
//	challenge.go           what challenges say
//	report.go              requests that pass although they would be refused
//	order.go               refuses a configuration that uses an identity before it is known
//	lint.go                finds what loads in silence and should not; what exactly, in lint_open.go (with
//	                       the requests of lint_probe.go), lint_locked.go and lint_doubtful.go; what is
//	                       known of order and matchers, in lint_routes.go
//	walk.go                asks a configuration who gets in where, without a request: walk_routes.go goes
//	                       through the routes as Caddy does, walk_handlers.go asks our own handlers
//	explain.go             shows such a walk; place.go finds the lines of Caddy's own directives
//	expect.go              refuses a configuration in which requests would end otherwise than it says
//	routes.go              lists who gets in where: routes_watcher.go watches walks that stand for many
//	                       requests, routes_answer.go says who got in, routes_pattern.go knows which
//	                       hosts and paths belong together
//	managed.go             clients that operators add while gateways run; retire_secrets.go removes those
//	                       of their secrets that are no longer used
//	import.go              clients of other servers become a Caddyfile: import_am.go,
//	                       import_keycloak.go and import_hydra.go read what those servers export, and
//	                       import_caddyfile.go writes
//	transport.go, path.go  which connections and which paths are acceptable
//	refusal.go             what the log says of refused requests
//	misdirected.go         requests that miss an endpoint, and may carry a secret
//	metrics.go             metrics; those about clients are in metrics_clients.go and
//	                       metrics_inventory.go
//	inventory.go           what each client did last, and when the store is told of it; the list of
//	                       clients, which goes by that, is admin_list.go
//	observe.go             spans, and the trace that goes along to other servers
//
// The rules of OAuth are in internal/oauth, the decision whether a request may pass in
// internal/access, the keys of self-contained tokens in internal/keys, the stores in
// internal/store, reading a configuration in internal/conf, and the cache and the sources of tokens
// in package introspect. Imports go down only.
//
// A realm is an authorization server. Provision reads its settings. Its engine, an oauth.Engine
// over the shared store and cache, exists once Start is over; earlier requests wait for it.
//
// # A token request
//
//	Server.ServeHTTP                      server.go                       path, method, TLS, size
//	oauth.ParseRequest                    internal/oauth/request.go       bytes become a value
//	oauth.Engine.authenticate             internal/oauth/authenticate.go  which client is this?
//	oauth.Engine.Token                    internal/oauth/engine.go        grant, scopes, limits; opaque.mint makes the token
//	store.Bbolt.Put                       internal/store/bbolt.go         durable before anybody has the token
//	Server.answer                         wire.go                         the only place for status, JSON, log line and count
//
// # A protected request
//
//	earlyStrip.ServeHTTP                  early.go                        before all other handlers of the server
//	Protect.ServeHTTP                     protect.go                      strips what is left; judge finds the token and decides
//	findOut                               sources.go                      whose token can it be?
//	introspect.CachedSource.LookupWithin  ../introspect/cached_source.go  what does it mean? Misses go to oauth's issued.Lookup
//	access.Decide                         internal/access/access.go       may this request pass this route? Never cached
//	identityHeaders.identify              identity.go                     tells the backend who is calling
package caddyoauth
