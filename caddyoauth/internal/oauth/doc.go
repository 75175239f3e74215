// Package oauth holds the rules of the authorization server: who may have a token,
// what it says, who may ask about it, who may end it. It parses what arrives, decides,
// mints, and asks a [TokenStore] to remember.
//
// It knows no Caddy, no HTTP server and no database driver. The wall clock and the
// randomness of tokens come in through [Settings], so the rules can be tested like
// arithmetic.
// Every failure that a caller may learn of is an [*Error]; every other error means
// "we could not find out".
package oauth
