// Package oauth holds the rules of the authorization server: who may have a token, what the
// token says, who may ask about it, who may end it.
//
// An [Engine] applies these rules at the endpoints of one realm. [ParseRequest] turns what
// arrives there into a [Request]. The realm's clients are a [Clients], which can be replaced
// while requests run. A token is an opaque string that proves where it was issued; what it
// stands for lies in a [TokenStore]. Everybody who wants to know what a token means asks
// [Engine.Tokens].
//
// The package knows no Caddy, no HTTP server and no database driver. The wall clock and the
// randomness of tokens come in through [Settings], so the rules can be tested like
// arithmetic. Every failure that a caller may learn about is an [*Error]; every other error
// means "we could not find out".
package oauth
