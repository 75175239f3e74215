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
// generation of each client, which decides whether its tokens still count, and secrets, of
// which all gateways must have the same. Whether a token has expired is for the caller to judge.
//
// The rules that all stores share stand once: what a stored token looks like in record.go,
// what happens to clients that come and go in clients.go. The store modules of the
// configuration, in package caddyoauth, only read settings and open what is here.
//
// A new store implements oauth.TokenStore, takes those two files as they are, refuses what
// it can't read instead of answering "not found", and joins the suite in store_test.go by
// calling testStore with a function that opens an empty store. The suite is the same for all
// of them; tests of what only one store has to fear, such as a damaged file or a lost
// connection, stand in a file of its own.
package store
