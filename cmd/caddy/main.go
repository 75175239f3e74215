// Command caddy is Caddy with its standard modules and the OAuth 2.0 gateway.
//
// It is for trying the gateway out and for developing it. Release binaries are built
// with xcaddy, as the README says: `caddy upgrade` and `caddy add-package` need to find
// the plugin among the binary's dependencies, and here it is the main module.
package main

import (
	_ "time/tzdata" // time zones, where the system has none

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddyoauth/gateway/caddyoauth"
)

func main() {
	caddycmd.Main()
}
