// Package keys holds the keys that make self-contained tokens: how they are made, how they lie in
// a store, and which of them are in use.
//
// A realm has one [Ring], which all gateways of a store share. It belongs to an [oauth.Epoch]: a
// store that has lost its data gets a new ring, of a new epoch, and so no token of before is good.
// A [Cipher] protects the keys in the ring from those who can read the store.
package keys
