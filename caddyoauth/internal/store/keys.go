package store

import (
	"bytes"
	"time"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// What the stores' implementations of oauth.KeyStore have in common.

// sameKeyring reports whether a stored keyring is the one that a caller knows; nil is none.
func sameKeyring(stored, known []byte) bool {
	return (stored == nil) == (known == nil) && bytes.Equal(stored, known)
}

// begins reports whether a keyring is one of epoch.
func begins(keyring []byte, epoch oauth.Epoch) bool { return bytes.HasPrefix(keyring, epoch[:]) }

// denialGrace is how much longer than its token a denial is kept. If a clock was ahead and is set
// back, or is behind on another gateway, an expired token counts again, and must still be denied.
const denialGrace = 24 * time.Hour
