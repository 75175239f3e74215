package caddyoauth

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// Which secrets go is known from when they were used, since when that is known, and which newer one was valid
// meanwhile.
func TestWhichSecretsAreUnused(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	ago := func(hours int) time.Time { return now.Add(-time.Duration(hours) * time.Hour) }
	type secret struct {
		ClientSecret
		idle int // hours; -1 if nobody has noted that
		used int // likewise
	}
	retires := ClientSecret{RetireUnused: caddy.Duration(24 * time.Hour)}
	for _, c := range []struct {
		name    string
		secrets []secret
		since   int // hours
		want    []int
	}{
		{"unused for its time", []secret{{retires, 99, 24}, {ClientSecret{}, 48, 1}}, 99, []int{0}},
		{"used within it", []secret{{retires, 99, 23}, {ClientSecret{}, 48, 1}}, 99, nil},
		{"never used", []secret{{retires, 99, -1}, {ClientSecret{}, 48, -1}}, 99, []int{0}},
		{"never used, which is known for less", []secret{{retires, 99, -1}, {ClientSecret{}, 48, 1}}, 23, nil},
		{"never used, which nobody has noted", []secret{{retires, 99, -1}, {ClientSecret{}, 48, 1}}, -1, nil},
		{"used long ago, and since when uses are noted doesn't matter", []secret{{retires, 99, 30}, {ClientSecret{}, 48, 1}}, -1, []int{0}},
		{"it does not retire", []secret{{ClientSecret{}, 99, 90}, {ClientSecret{}, 48, 1}}, 99, nil},
		{"it is the only one", []secret{{retires, 99, 90}}, 99, nil},
		{"it is the newest", []secret{{ClientSecret{}, 99, 90}, {retires, 48, 40}}, 99, nil},
		{"it was added, or its client enabled, within its time", []secret{{retires, 23, -1}, {ClientSecret{}, 48, 1}}, 99, nil},
		{"the newer one was added within its time", []secret{{retires, 99, 90}, {ClientSecret{}, 23, 1}}, 99, nil},
		{"the newer one has begun within its time", []secret{{retires, 99, 90}, {ClientSecret{From: ago(23)}, 48, 1}}, 99, nil},
		{"the newer one has begun before", []secret{{retires, 99, 90}, {ClientSecret{From: ago(24)}, 48, 1}}, 99, []int{0}},
		{"the newer one has not begun", []secret{{retires, 99, 90}, {ClientSecret{From: ago(-1)}, 48, -1}}, 99, nil},
		{"the newer one has ended", []secret{{retires, 99, 90}, {ClientSecret{Until: now}, 48, 1}}, 99, nil},
		{"another newer one has not", []secret{{retires, 99, 90}, {ClientSecret{Until: now}, 48, 1}, {ClientSecret{}, 30, 1}}, 99, []int{0}},
		{"one of two newer ones was added within its time", []secret{{retires, 99, 90}, {ClientSecret{}, 48, 1}, {ClientSecret{}, 23, 1}}, 99, []int{0}},
		{"two, and the last stays", []secret{{retires, 99, 90}, {retires, 48, 40}, {retires, 30, 29}}, 99, []int{0, 1}},
		{"nobody has noted since when its disuse counts", []secret{{retires, -1, 90}, {ClientSecret{}, 48, 1}}, 99, nil},
		{"nor that of the newer one", []secret{{retires, 99, 90}, {ClientSecret{}, -1, 1}}, 99, nil},
	} {
		record := managedRecord{Idle: make(map[string]time.Time)}
		use := oauth.Use{Credentials: make(map[string]time.Time)}
		var want []string
		for i, s := range c.secrets {
			s.Hash = fmt.Sprint("hash ", i)
			id := secretID(s.Hash)
			record.Client.Secrets = append(record.Client.Secrets, s.ClientSecret)
			if s.idle >= 0 {
				record.Idle[id] = ago(s.idle)
			}
			if s.used >= 0 {
				use.Credentials[id] = ago(s.used)
			}
			if slices.Contains(c.want, i) {
				want = append(want, id)
			}
		}
		uses := oauth.Uses{Clients: map[string]oauth.Use{"c": use}}
		if c.since >= 0 {
			uses.Since = ago(c.since)
		}
		if got := record.unused("c", uses, now); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", c.name, got, want)
		}
	}
}

// The disuse of a secret counts from when it was added, and from anew once a client is enabled again.
func TestSinceWhenDisuseCounts(t *testing.T) {
	t.Parallel()
	at := func(hour int) time.Time { return time.Date(2026, 6, 1, hour, 0, 0, 0, time.UTC) }
	var was *managedRecord
	change := func(hour int, disabled bool, hashes ...string) {
		next := &managedRecord{Changed: at(hour), Client: Client{Disabled: disabled}}
		if was != nil {
			next.Idle = was.Idle // as a copy of was has it
		}
		for _, hash := range hashes {
			next.Client.Secrets = append(next.Client.Secrets, ClientSecret{Hash: hash})
		}
		next.countDisuse(was)
		was = next
	}
	wants := func(what string, hours ...int) {
		t.Helper()
		for i, s := range was.Client.Secrets {
			if got := was.Idle[secretID(s.Hash)]; !got.Equal(at(hours[i])) || len(was.Idle) != len(hours) {
				t.Errorf("%s: secret %d is idle since %v", what, i+1, got)
			}
		}
	}
	change(1, false, "a")
	change(2, false, "a", "b")
	wants("with another secret", 1, 2)
	change(3, false, "b", "c")
	wants("with one taken away", 2, 3)
	change(4, true, "b", "c")
	wants("disabled", 2, 3)
	change(5, false, "b", "c")
	wants("enabled again", 5, 5)
}

// Secrets that end at once do so at a gateway whose clock is behind that of the command, too.
func TestRotationAtOnceAllowsForClocks(t *testing.T) {
	now := time.Now()
	for _, r := range []rotation{{overlap: "0"}, {revokeTokens: true}} {
		asked, err := r.asked(now)
		if err != nil || asked.OthersUntil.After(now.Add(-30*time.Minute)) {
			t.Errorf("%+v: others end at %v of %v, %v", r, asked.OthersUntil, now, err)
		}
	}
	if asked, err := (rotation{overlap: "1h"}).asked(now); err != nil || !asked.OthersUntil.Equal(now.Add(time.Hour)) {
		t.Errorf("an hour later: %v of %v, %v", asked.OthersUntil, now, err)
	}
}
