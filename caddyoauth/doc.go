// Package caddyoauth makes Caddy an OAuth 2.0 gateway for machines.
//
// It registers with Caddy
//
//	oauth                         the app: realms, clients, the token store, the cache   app.go, realm.go
//	oauth.stores.{bbolt,memory,redis}   where issued tokens live                         store_bbolt.go, store_memory.go, store_redis.go
//	oauth.sources.{local,introspect,jwt}   where accepted tokens come from               source_local.go, source_introspect.go, source_jwt.go
//	http.handlers.oauth_server    the token, introspection and revocation endpoints      server.go
//	http.handlers.oauth_protect   bearer tokens in front of a backend                    protect.go, strip.go, identity.go
//	http.handlers.oauth_guard     no way around oauth_protect beside its matcher         guard.go, early.go
//	http.matchers.oauth_scope     routing by the scopes of the caller                    matcher.go
//	admin.api.oauth               forgetting what is cached                              admin.go
//	caddy oauth                   the command line                                       command.go
//
// and their Caddyfile syntax (caddyfile.go), with their metrics (metrics.go) and what they
// make of connections and paths (transport.go, path.go), of requests that miss an endpoint
// (misdirected.go), and of identities that are used too early (order.go). The rules of OAuth are in internal/oauth,
// the stores in internal/store, the cache and its sources in package introspect.
//
// A realm is an authorization server. Its settings are parsed in Provision; its
// engine, an oauth.Server over the shared store and cache, exists from Start on, and
// requests that come before wait for it. A token request goes through
//
//	Server.ServeHTTP → oauth.ParseRequest → oauth.Server.Token → mint → TokenStore.Put → Server.answer
//
// and a protected request through
//
//	Protect.ServeHTTP → Protect.judge → findOut → introspect.CachedSource → oauth.Server.Lookup → identityHeaders.identify
package caddyoauth
