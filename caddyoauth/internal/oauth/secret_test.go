package oauth

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// The costs of the slow hashes in these tests: as low as they may be, and different.
const (
	memoryA, passesA = 16384, 2
	memoryB, passesB = 8192, 4
)

// attempts returns a realm and the ways to fail there.
func attempts(t testing.TB) (*engine, map[string]Request) {
	expired := slowSecret(t, "s", memoryA, passesA)
	expired.Until = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	off := newClient("off", slowSecret(t, "s", memoryA, passesA))
	off.Disabled = true
	basicOnly := newClient("basic", slowSecret(t, "s", memoryA, passesA))
	basicOnly.Auth = []string{AuthBasic}
	e := newEngine(t, nil,
		newClient("one", slowSecret(t, "right", memoryA, passesA)),
		newClient("two", slowSecret(t, "right", memoryA, passesA), slowSecret(t, "second", memoryA, passesA)),
		newClient("mixed", slowSecret(t, "right", memoryA, passesA), slowSecret(t, "other", memoryB, passesB), quickSecret(t, "quick")),
		newClient("quick", quickSecret(t, "right")),
		newClient("generated", mustHash(t, "$sha256$"+strings.Repeat("A", 43))),
		newClient("expired", expired), off, basicOnly,
	)
	basic := func(id, secret string) Request { return request(t, id, secret, grantForm) }
	post := func(id, secret string) Request {
		form := url.Values{"grant_type": {GrantClientCredentials}, "client_id": {id}, "client_secret": {secret}}
		r, err := ParseRequest(Incoming{Body: form.Encode(), From: from})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	return e, map[string]Request{
		"unknown client":               basic("nobody", "right"),
		"unknown client, empty secret": basic("nobody", ""),
		"wrong secret":                 basic("one", "wrong"),
		"wrong secret of two":          basic("two", "wrong"),
		"wrong secret of three kinds":  basic("mixed", "wrong"),
		"wrong quick secret":           basic("quick", "wrong"),
		"wrong generated secret":       basic("generated", "wrong"),
		"disabled client":              basic("off", "s"),
		"expired secret":               basic("expired", "s"),
		"method not allowed":           post("basic", "s"),
		"empty secret":                 basic("one", ""),
		"empty secret of a quick one":  basic("quick", ""),
		"secret of 10 KiB":             basic("one", strings.Repeat("x", 10<<10)),
		"right secret and 10 KiB":      basic("one", "right"+strings.Repeat("x", 10<<10)),
		"unknown client, 10 KiB":       basic("nobody", strings.Repeat("x", 10<<10)),
		"secret over the limit":        basic("quick", strings.Repeat("x", maxSecretBytes+1)),
		"two readings, unknown client": basic("nobody", "a+b"),
		"two readings, wrong secret":   basic("one", "a+b"),
		"two readings, disabled":       basic("off", "a+b"),
		"two readings, expired":        basic("expired", "a+b"),
		"two readings, quick":          basic("quick", "a+b"),
		"two readings, one over":       basic("mixed", strings.Repeat("+", 1+maxSecretBytes/3)),
	}
}

func sha256Hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return "$sha256$" + base64.RawStdEncoding.EncodeToString(sum[:])
}

func mustHash(t testing.TB, hash string) *Secret {
	t.Helper()
	s, err := HashedSecret(hash)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Every failed authentication costs the same slow hashes and gets the same answer, whatever made
// it fail.
func TestFailuresCostTheSame(t *testing.T) {
	e, failures := attempts(t)
	const once = 3 // two of one cost, for the client with two, and one of the other
	for name, r := range failures {
		before := e.cfg.Hasher.hashes.Load()
		_, _, err := e.Token(t.Context(), r)
		if code := codeOf(err); code != CodeInvalidClient {
			t.Errorf("%s: %q", name, code)
		}
		var refusal *Error
		if errors.As(err, &refusal) && refusal.Description != "client authentication failed" {
			t.Errorf("%s is described as %q", name, refusal.Description)
		}
		// It costs that for each reading of what was sent, whoever it was sent for.
		if n, want := e.cfg.Hasher.hashes.Load()-before, once*int64(len(r.Credentials.Secrets)); n != want {
			t.Errorf("%s costs %d slow hashes, want %d", name, n, want)
		}
	}
	// What is no credentials claims nothing and costs nothing.
	for name, authorization := range map[string][]string{"none": nil, "another scheme": {"Bearer x"}, "malformed": {"Basic %"}} {
		before := e.cfg.Hasher.hashes.Load()
		r, err := ParseRequest(Incoming{Authorization: authorization, Body: grantForm.Encode(), From: from})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := e.Token(t.Context(), r); codeOf(err) != CodeInvalidClient {
			t.Errorf("%s: %v", name, err)
		}
		if n := e.cfg.Hasher.hashes.Load() - before; n != 0 {
			t.Errorf("%s costs %d slow hashes", name, n)
		}
	}
}

// A realm without slow hashes fails quickly for everybody.
func TestFailuresWithoutSlowHashes(t *testing.T) {
	e := newEngine(t, nil, newClient("quick", quickSecret(t, "right")))
	for _, id := range []string{"quick", "nobody"} {
		if _, _, err := e.Token(t.Context(), request(t, id, "wrong", grantForm)); codeOf(err) != CodeInvalidClient {
			t.Errorf("%s: %v", id, err)
		}
	}
	if n := e.cfg.Hasher.hashes.Load(); n != 0 {
		t.Errorf("%d slow hashes were computed", n)
	}
}

// A dummy costs as much as what it stands for. If it were malformed, its work would end early.
func TestDummiesCostAsMuch(t *testing.T) {
	if err := bcrypt.CompareHashAndPassword(dummyBcrypt(10), []byte("x")); !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
		t.Errorf("the bcrypt dummy: %v", err)
	}
	for cost := uint32(10); cost <= 14; cost++ {
		if got, err := bcrypt.Cost(dummyBcrypt(cost)); err != nil || uint32(got) != cost {
			t.Errorf("the bcrypt dummy of cost %d has cost %d, %v", cost, got, err)
		}
	}
	secret := slowSecret(t, "s", memoryA, passesA)
	for _, kind := range []hashKind{kindPBKDF2SHA256, kindPBKDF2SHA512} {
		if d := dummy(slowCost{kind: kind, time: 2, length: 32}); d.kind != kind || !d.slow() || d.hash("s") || pbkdf2Key(sha256.New, "s", d) == nil {
			t.Errorf("the PBKDF2 dummy is %+v", d.cost)
		}
	}
	if d := dummy(secret.cost); d.cost != secret.cost || len(d.bytes) != len(secret.bytes) || d.hash("s") {
		t.Errorf("the Argon2id dummy has cost %+v, want %+v", d.cost, secret.cost)
	}
}

// A success is remembered for a while, for this secret alone, and a wrong secret
// after it costs the full price.
func TestSuccessIsRemembered(t *testing.T) {
	e := newEngine(t, nil, newClient("c", slowSecret(t, "right", memoryA, passesA)), newClient("d", slowSecret(t, "right", memoryB, passesB)))
	try := func(id, secret string) (Code, int64) {
		before := e.cfg.Hasher.hashes.Load()
		_, _, err := e.Token(t.Context(), request(t, id, secret, grantForm))
		return codeOf(err), e.cfg.Hasher.hashes.Load() - before
	}
	// Failing costs a hash of each kind, for each reading: a space is sent as +.
	for i, c := range []struct {
		id, secret string
		advance    time.Duration
		code       Code
		hashes     int64
	}{
		{"c", "right", 0, "", 1},
		{"c", "right", 0, "", 0},
		{"c", "wrong", 0, CodeInvalidClient, 2},
		{"c", "righ", 0, CodeInvalidClient, 2},
		{"c", "right ", 0, CodeInvalidClient, 4},
		{"c", "", 0, CodeInvalidClient, 2},
		{"c", "right", 0, "", 0}, // the wrong ones made nothing forgotten
		{"d", "wrong", 0, CodeInvalidClient, 2},
		{"d", "right", 0, "", 1},               // what one client proved is nothing to another
		{"c", "right", rememberFor - 1, "", 0}, // which renews it
		{"c", "right", rememberFor - 1, "", 0},
		{"c", "wrong", rememberFor - 1, CodeInvalidClient, 2}, // and this does not
		{"c", "right", 1, "", 1},                              // long enough ago
		{"c", "right", 0, "", 0},
	} {
		e.advance(c.advance)
		if code, hashes := try(c.id, c.secret); code != c.code || hashes != c.hashes {
			t.Errorf("step %d, %s with %q: %q after %d slow hashes, want %q after %d", i, c.id, c.secret, code, hashes, c.code, c.hashes)
		}
	}
}

// A secret ends at its Until, to the nanosecond, remembered or not.
func TestUntilEndsASecret(t *testing.T) {
	for name, old := range map[string]*Secret{"slow": slowSecret(t, "old", memoryA, passesA), "quick": quickSecret(t, "old"), "hashed": mustHash(t, sha256Hash("old"))} {
		e := newEngine(t, nil, newClient("c", old, quickSecret(t, "new")))
		until := e.now().Add(time.Minute)
		old.Until = until
		for _, c := range []struct {
			at   time.Time
			want Code
		}{{e.now(), ""}, {until.Add(-1), ""}, {until, CodeInvalidClient}, {until.Add(time.Hour), CodeInvalidClient}} {
			e.nanos.Store(c.at.UnixNano())
			if _, _, err := e.Token(t.Context(), request(t, "c", "old", grantForm)); codeOf(err) != c.want {
				t.Errorf("the old secret, %s, %v from its end: %v", name, c.at.Sub(until), err)
			}
			if _, _, err := e.Token(t.Context(), request(t, "c", "new", grantForm)); err != nil {
				t.Errorf("the new secret, %v from the old one's end: %v", c.at.Sub(until), err)
			}
		}
	}
}

// Right and wrong secrets of two clients at once are never mistaken for each other while the
// successes of both are being remembered.
func TestConcurrentChecksAreNotMixedUp(t *testing.T) {
	e := newEngine(t, nil,
		newClient("one", slowSecret(t, "secret of one", memoryA, passesA), quickSecret(t, "quick of one")),
		newClient("two", slowSecret(t, "secret of two", memoryA, passesA), quickSecret(t, "quick of two")))
	secrets := []string{"secret of one", "quick of one", "secret of two", "quick of two"}
	requests := make(map[string]Request)
	for _, id := range []string{"one", "two"} {
		for _, secret := range secrets {
			requests[id+"\x00"+secret] = request(t, id, secret, grantForm)
		}
	}
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for i := range 2000 {
				for key, r := range requests {
					id, secret, _ := strings.Cut(key, "\x00")
					right := strings.HasSuffix(secret, id)
					if !right && i%1000 != 0 {
						continue // the wrong ones cost a slow hash each
					}
					var out Outcome
					client, err := e.authenticate(t.Context(), r, &out)
					for codeOf(err) == CodeUnavailable { // says nothing of the secret: this machine is slow
						client, err = e.authenticate(t.Context(), r, &out)
					}
					if right && (err != nil || client.ID != id) {
						t.Errorf("%s with %q: %v", id, secret, err)
					}
					if !right && codeOf(err) != CodeInvalidClient {
						t.Errorf("%s with %q got in: %v", id, secret, err)
					}
				}
			}
		})
	}
	callers.Wait()
}

// A full queue has its own answer, which says nothing about the credentials. Clients that need no
// slow hash don't notice it.
func TestFullQueueAtTheTokenEndpoint(t *testing.T) {
	e := newEngine(t, nil, newClient("slow", slowSecret(t, "right", memoryA, passesA)), newClient("quick", quickSecret(t, "right")))
	hasher := e.cfg.Hasher
	room := func(n int) { hasher.queue, hasher.share = n, n }
	room(0)
	for _, r := range []Request{request(t, "slow", "right", grantForm), request(t, "slow", "wrong", grantForm), request(t, "nobody", "x", grantForm), request(t, "quick", "wrong", grantForm)} {
		if _, _, err := e.Token(t.Context(), r); codeOf(err) != CodeUnavailable {
			t.Errorf("%v", err)
		}
	}
	if _, _, err := e.Token(t.Context(), request(t, "quick", "right", grantForm)); err != nil {
		t.Errorf("a quick secret: %v", err)
	}
	room(1)
	e.issue(t, "slow", "right")
	room(0)
	e.issue(t, "slow", "right") // remembered
}

// A configuration may have good hashes. Weak, expensive and malformed ones are refused.
func TestHashedSecret(t *testing.T) {
	b64 := base64.RawStdEncoding.EncodeToString
	salt, digest := b64(make([]byte, 16)), b64(make([]byte, 32))
	crypt := strings.Repeat(".", 53)
	pbkdf2 := func(name, params string) string { return "$pbkdf2-" + name + "$" + params + "$" + salt + "$" + digest }
	argon := func(params string) string { return "$argon2id$v=19$" + params + "$" + salt + "$" + digest }
	for _, c := range []struct {
		hash string
		ok   bool
	}{
		{"$sha256$" + digest, true},
		{argon("m=19456,t=2,p=1"), true},
		{argon("m=47104,t=1,p=1"), true}, // as Caddy makes them
		{argon("m=7168,t=5,p=1"), true},
		{argon("m=262144,t=10,p=4"), true},
		{"$2a$10$" + crypt, true}, {"$2b$12$" + crypt, true}, {"$2y$14$" + crypt, true},

		{pbkdf2("sha256", "i=600000,l=32"), true}, {pbkdf2("sha256", "600000"), true}, {pbkdf2("sha256", "i=2000000,l=32"), true},
		{pbkdf2("sha512", "i=210000,l=32"), true}, {pbkdf2("sha512", "210000"), true}, {pbkdf2("sha512", "1000000"), true},
		{pbkdf2("sha256", "599999"), false}, {pbkdf2("sha256", "i=599999,l=32"), false}, {pbkdf2("sha256", "i=100000,l=32"), false}, {pbkdf2("sha256", "0"), false},
		{pbkdf2("sha512", "209999"), false}, {pbkdf2("sha512", "i=1,l=32"), false}, {pbkdf2("sha256", "2000001"), false}, {pbkdf2("sha512", "1000001"), false}, {pbkdf2("sha512", "4294967296"), false},
		{pbkdf2("sha256", "+600000"), false}, {pbkdf2("sha256", "0600000"), false}, {pbkdf2("sha256", "i=600000"), false}, {pbkdf2("sha256", "i=600000,l="), false}, {pbkdf2("sha256", "i=600000,l=31"), false},
		{pbkdf2("sha256", "i=600000,l=032"), false}, {pbkdf2("sha256", "l=32,i=600000"), false}, {pbkdf2("sha256", ""), false}, {pbkdf2("sha1", "600000"), false}, {pbkdf2("sha384", "600000"), false},
		{pbkdf2("sha256", "600000") + "$", false}, {pbkdf2("sha256", "600000") + "=", false}, {"$pbkdf2-sha256$600000$" + salt, false}, {"$pbkdf2-sha256$600000$$" + digest, false}, {"$pbkdf2-sha256$600000$" + salt + "$", false},
		{"$pbkdf2-sha256$i=600000,l=0$" + salt + "$", false}, {"$pbkdf2-sha256$600000$" + salt + "$" + b64(make([]byte, 64)), false}, {"$pbkdf2-sha512$600000$" + salt + "$" + b64(make([]byte, 64)), true},
		{"$pbkdf2-sha256$600000$" + b64(make([]byte, 7)) + "$" + digest, false}, {"$pbkdf2-sha256$600000$" + b64(make([]byte, 65)) + "$" + digest, false},
		// The two forms have different characters for 62 in base64.
		{"$pbkdf2-sha256$600000$" + strings.Repeat(".", 22)[:21] + "A$" + digest, true}, {"$pbkdf2-sha256$600000$" + strings.Repeat("+", 21) + "A$" + digest, false},
		{"$pbkdf2-sha256$i=600000,l=32$" + strings.Repeat("+", 21) + "A$" + digest, true}, {"$pbkdf2-sha256$i=600000,l=32$" + strings.Repeat(".", 21) + "A$" + digest, false},

		{"", false}, {"$", false}, {"$$$$$", false}, {"abc", false},
		{"$sha256$", false}, {"$sha256$" + digest + "=", false}, {"$sha256$" + digest[:42], false}, {"$sha256$" + digest + "A", false},
		{"$sha256$" + digest[:42] + "B", false}, // bits beyond the digest
		{"$SHA256$" + digest, false},

		{argon("m=262145,t=2,p=1"), false}, {argon("m=4194304,t=2,p=1"), false}, {argon("m=4294967295,t=1,p=1"), false},
		{argon("m=4294967296,t=1,p=1"), false}, {argon("m=99999999999999999999,t=1,p=1"), false},
		{argon("m=19456,t=11,p=1"), false}, {argon("m=19456,t=4294967295,p=1"), false},
		{argon("m=19456,t=2,p=5"), false}, {argon("m=19456,t=2,p=256"), false}, {argon("m=19456,t=2,p=257"), false},
		{argon("m=0,t=2,p=1"), false}, {argon("m=19456,t=0,p=1"), false}, {argon("m=19456,t=2,p=0"), false},
		{argon("m=-1,t=2,p=1"), false}, {argon("m=+19456,t=2,p=1"), false}, {argon("m=0x4c00,t=2,p=1"), false}, {argon("m=1e5,t=2,p=1"), false},
		{argon("m=7167,t=10,p=1"), false}, {argon("m=8192,t=3,p=1"), false},
		{argon("t=2,m=19456,p=1"), false}, {argon("m=19456,t=2"), false}, {argon("m=19456,t=2,p=1,keyid=x"), false}, {argon(""), false}, {argon("m=,t=,p="), false},
		{"$argon2id$v=19$m=19456,t=2,p=1$$" + digest, false}, {"$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$", false},
		{"$argon2id$v=19$m=19456,t=2,p=1$" + b64(make([]byte, 7)) + "$" + digest, false}, {"$argon2id$v=19$m=19456,t=2,p=1$" + b64(make([]byte, 65)) + "$" + digest, false},
		{"$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + b64(make([]byte, 15)), false}, {"$argon2id$v=19$m=19456,t=2,p=1$" + salt + "$" + b64(make([]byte, 65)), false},
		{"$argon2id$v=19$m=19456,t=2,p=1$" + salt + "==$" + digest, false}, {"$argon2id$v=19$m=19456,t=2,p=1$!$" + digest, false},
		{"$argon2id$v=16$m=19456,t=2,p=1$" + salt + "$" + digest, false}, {"$argon2id$m=19456,t=2,p=1$" + salt + "$" + digest, false},
		{"$argon2i$v=19$m=19456,t=2,p=1$" + salt + "$" + digest, false}, {"$argon2d$v=19$m=19456,t=2,p=1$" + salt + "$" + digest, false},
		{argon("m=19456,t=2,p=1") + "$", false},

		{"$2a$09$" + crypt, false}, {"$2a$15$" + crypt, false}, {"$2a$31$" + crypt, false}, {"$2a$99$" + crypt, false}, {"$2a$1$" + crypt, false}, {"$2a$xx$" + crypt, false},
		{"$2a$10$" + crypt[1:], false}, {"$2a$10$" + crypt + ".", false}, {"$2a$10$", false}, {"$2a$", false}, {"$2x$10$" + crypt, false}, {"$2$10$" + crypt, false},
		{"$2a$10$" + strings.Replace(crypt, ".", "!", 1), false}, {"$2a$10x" + crypt, false}, {"$2a$10$" + crypt[:52] + "\n", false},
	} {
		secret, err := HashedSecret(c.hash)
		if (err == nil) != c.ok {
			t.Errorf("%q: %v", c.hash, err)
		}
		if err != nil && len(c.hash) > 30 && strings.Contains(err.Error(), c.hash[len(c.hash)-12:]) {
			t.Errorf("the error repeats the hash: %v", err)
		}
		// Only the form is checked of those that would take long.
		if secret != nil && (!secret.slow() || secret.cost.memory > 0 && secret.cost.memory < 50_000) && (secret.quick("") || secret.quick("x") || secret.slow() && secret.hash("x")) {
			t.Errorf("%q accepts anything", c.hash)
		}
	}
}

// The hashes that the command line makes are right for their secret and no other, and it refuses
// to make weak ones.
func TestMakingHashes(t *testing.T) {
	generated := GenerateSecret()
	if !strings.HasPrefix(generated, secretPrefix) || len(generated) != len(secretPrefix)+43 || generated == GenerateSecret() {
		t.Errorf("generated secrets are like %q", generated)
	}
	hash, err := HashGenerated(generated)
	if err != nil || !mustHash(t, hash).quick(generated) || mustHash(t, hash).quick(generated+"x") {
		t.Errorf("the hash of a generated secret: %q, %v", hash, err)
	}
	for _, s := range []string{"", "abc", secretPrefix, secretPrefix + "abc", generated[:len(generated)-1], generated + "A", strings.TrimPrefix(generated, secretPrefix)} {
		if _, err := HashGenerated(s); err == nil {
			t.Errorf("%q passes for a generated secret", s)
		}
	}

	if hash, err = HashArgon2id("correct horse"); err != nil {
		t.Fatal(err)
	}
	if secret := mustHash(t, hash); !secret.hash("correct horse") || secret.hash("correct horse ") || secret.hash("") {
		t.Errorf("%q is not the hash of its secret alone", hash)
	}
	if again, _ := HashArgon2id("correct horse"); again == hash {
		t.Error("two hashes of one secret are equal: there is no salt")
	}
	for _, s := range []string{"", "a\x00b", "\xff", strings.Repeat("x", maxSecretBytes+1)} {
		if _, err := HashArgon2id(s); err == nil {
			t.Errorf("Argon2id hashes %.20q", s)
		}
		if _, err := HashBcrypt(s); err == nil {
			t.Errorf("bcrypt hashes %.20q", s)
		}
		if _, err := PlainSecret(s); err == nil {
			t.Errorf("%.20q is a secret", s)
		}
	}
	if _, err := HashBcrypt(strings.Repeat("a", 73)); err == nil {
		t.Error("bcrypt hashes 73 bytes")
	}
}

// bcrypt by itself would read the first 72 bytes and let anything follow.
func TestBcryptReadsAllOfASecret(t *testing.T) {
	long := strings.Repeat("a", 72)
	const hash = "$2a$10$P7snOx9lebNlTPDR1i65deh.pQBrntHeBUM2NdV3L2J/K.ntgcypK"
	secret := mustHash(t, hash)
	if !secret.hash(long) {
		t.Error("the secret of 72 bytes is refused")
	}
	if secret.hash(long + "XYZ") {
		t.Error("72 bytes and a suffix are accepted")
	}
}

// Whatever prints a secret or its hash prints no more than one word.
func TestSecretsDoNotPrint(t *testing.T) {
	secret := quickSecret(t, "canary-secret")
	hashed := mustHash(t, "$sha256$"+base64.RawStdEncoding.EncodeToString([]byte("canary-digest-of-thirty-two-byte")))
	credentials := Credentials{Method: AuthBasic, ClientIDs: []string{"c"}, Secrets: []string{"canary-secret"}}
	for _, v := range []any{secret, hashed, credentials, &credentials, []*Secret{secret, hashed}, map[string]*Secret{"c": hashed}, newClient("c", secret, hashed), struct{ C Credentials }{credentials}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
			if text := fmt.Sprintf(verb, v); strings.Contains(text, "canary") || strings.Contains(text, "99 97 110 97 114 121") || strings.Contains(text, "63616e617279") {
				t.Errorf("%s of %T prints %s", verb, v, text)
			}
		}
	}
}

// BenchmarkFailedAuthentication takes the time of failed authentications, side by side. Compare
// them by eye, or with benchstat: on a machine that others use, no test could judge them.
func BenchmarkFailedAuthentication(b *testing.B) {
	e, failures := attempts(b)
	for name, r := range failures {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				e.Token(b.Context(), r)
			}
		})
	}
}

// BenchmarkSecretCheck is a check of a generated secret, and of one that is remembered.
func BenchmarkSecretCheck(b *testing.B) {
	generated := GenerateSecret()
	hash, err := HashGenerated(generated)
	if err != nil {
		b.Fatal(err)
	}
	e := newEngine(b, nil, newClient("generated", mustHash(b, hash)), newClient("slow", slowSecret(b, "right", memoryA, passesA)))
	for name, r := range map[string]Request{"generated": request(b, "generated", generated, grantForm), "remembered": request(b, "slow", "right", grantForm)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				var out Outcome
				if _, err := e.authenticate(b.Context(), r, &out); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A secret that a person may have chosen can't be tried out at full speed.
func TestWhichSecretsCanBeGuessed(t *testing.T) {
	for secret, want := range map[string]bool{
		"summer":                true,
		strings.Repeat("a", 31): true,
		strings.Repeat("a", 32): false,
		GenerateSecret():        false,
		"cos_short":             true,
	} {
		s, err := PlainSecret(secret)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.slow(); got != want {
			t.Errorf("%.8s of %d characters is checked slowly: %v, want %v", secret, len(secret), got, want)
		}
	}
}
