// Package store holds the places where issued tokens can be kept. Each is an
// [oauth.TokenStore], whose comments are the contract:
//
//   - [Bbolt], the default, keeps them in a file, for one process. What it has acknowledged
//     survives a crash.
//   - [Redis] keeps them in a Redis or Valkey that several gateways share, and tells each
//     gateway what the others revoke.
//   - [Memory] keeps them for as long as the process lives.
//
// They keep records of tokens, never the tokens themselves, and two things more: the
// generation of each client, which decides whether its tokens still count, and secrets, which
// all gateways have to share. Whether a token has expired is for the caller to judge.
//
// Two files hold what stores have in common: record.go says how a token is encoded, outside the
// memory of the process, and clients.go what happens to clients that come and go. The store
// modules of the configuration, in package caddyoauth, only read settings and open a store from
// here.
//
// A new store implements oauth.TokenStore, uses those two files as they are, and returns an
// error for what it can't read, never "not found". It joins the suite in store_test.go by a
// line in the table stores or, if it needs a server, by a test that calls testStore. The suite
// is the same for all; what can happen to one store only, such as a damaged file or a lost
// connection, is tested in files of their own.
package store
