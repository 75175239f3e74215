// Package conf holds what people write in a configuration, read and checked in one way: the
// options of Caddyfile blocks, references to secrets, and values that several modules share.
package conf
