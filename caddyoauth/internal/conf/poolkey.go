package conf

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
)

// poolSecret keys the digest in pool keys, so that a logged key can't be used to try passwords
// offline. Like the pools, it lives as long as the process.
var poolSecret = func() []byte { b := make([]byte, 32); rand.Read(b); return b }()

// PoolKey returns the key under which a pool keeps something that outlives a configuration: its
// name, and a digest of all settings, so that what is opened with other settings gets a key of
// its own. The key may be logged: the name must hold no secret, and the digest stands for those
// in the settings. Settings must be what JSON can express; anything else is a mistake in the
// program, and panics.
func PoolKey(name string, settings ...any) string {
	text, err := json.Marshal(settings)
	if err != nil {
		panic(err)
	}
	digest := sha256.Sum256(slices.Concat(poolSecret, text))
	return name + " (" + hex.EncodeToString(digest[:8]) + ")"
}
