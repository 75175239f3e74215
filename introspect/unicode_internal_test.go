package introspect

import (
	"encoding/json"
	"regexp"
	"testing"
)

var (
	escapedBackslash = regexp.MustCompile(`\\\\`)
	escapedPair      = regexp.MustCompile(`\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}`)
	escapedHalf      = regexp.MustCompile(`\\u[dD][89a-fA-F][0-9a-fA-F]{2}`)
)

// Half of a pair is what remains once escaped backslashes and whole pairs are removed.
func FuzzHalfEscaped(f *testing.F) {
	for _, seed := range []string{`"\ud800"`, `"\ud83d\ude00"`, `"\\ud800"`, `"\\\ud800"`, `{"\udc00":1}`, `"\ud800\ud83d\ude00"`, `"\ude00\ud83d"`, `"\n\u0041"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if !json.Valid(data) {
			return
		}
		rest := escapedPair.ReplaceAll(escapedBackslash.ReplaceAll(data, []byte("--")), []byte("--"))
		if got, want := halfEscaped(data), escapedHalf.Match(rest); got != want {
			t.Errorf("%s: %v, want %v", data, got, want)
		}
	})
}
