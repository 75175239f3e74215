// Command caddy is Caddy with its standard modules and the OAuth 2.0 gateway.
//
// Use it to try the gateway and to develop it. Release binaries are built with xcaddy, as the
// README says: `caddy upgrade` and `caddy add-package` look for the plugin among the binary's
// dependencies, but here it is the main module.
package main

import (
	_ "time/tzdata" // for systems without time zone data

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddyoauth/gateway/caddyoauth"
)

func main() {
	caddycmd.Main()
}
