// Package conf reads and checks what people write in a configuration, in one way for all modules.
//
//	options.go    blocks of a Caddyfile: Options says what a block may hold
//	arguments.go  options by what they take: Flag, Text, Duration, Secret, ...
//	secret.go     placeholders, and references to secrets, which no configuration holds
//	check.go      values that mean the same everywhere: scopes, audiences, client IDs, URLs
//	poolkey.go    the key under which a connection outlives a configuration
//
// A module checks what only it knows. No error holds a secret, and no function here opens a
// connection.
package conf
