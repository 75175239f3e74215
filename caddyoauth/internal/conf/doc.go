// Package conf is for what people write in a configuration: how it is read and checked, in one
// way for all modules.
//
//	options.go    the blocks of a Caddyfile: Options says what a block may hold
//	arguments.go  what stands behind an option: Text, Flag, Duration, Secret, ...
//	secret.go     placeholders, and references to secrets, which never stand in a configuration
//	check.go      values that mean the same everywhere: scopes, audiences, client IDs, URLs
//	poolkey.go    whether two configurations mean the same connection
//
// What only one module knows is checked there. No error holds a secret.
package conf
