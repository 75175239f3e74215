package store

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// boltFile makes a file with plain bbolt, as another version of this program would, and returns
// its path.
func boltFile(t *testing.T, fill func(*bolt.Tx) error) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "tokens.db")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(fill); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// putRaw puts a record into a bucket, which is created if it is not there, and keeps the digest.
func putRaw(tx *bolt.Tx, bucket, key, value string) error {
	b, err := tx.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return err
	}
	return setValue(b, []byte(key), []byte(value))
}

// withVersion fills a file of version 1 whose version number says something else.
func withVersion(number string) func(*bolt.Tx) error {
	return func(tx *bolt.Tx) error {
		for _, name := range fileBuckets[1] {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return putRaw(tx, "meta", "version", number)
	}
}

// A new file says which version it is of.
func TestBboltNewFileHasAVersion(t *testing.T) {
	b := openBbolt(t, filepath.Join(t.TempDir(), "tokens.db"), time.Now)
	if err := b.view(func(tx *bolt.Tx) error {
		if got := tx.Bucket([]byte("meta")).Get([]byte("version")); string(got) != "4" {
			t.Errorf("the version is %q", got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// A file from before files had a version opens, keeps everything in it, and goes on working.
func TestBboltFileWithoutAVersion(t *testing.T) {
	token := tokenUntil("a", farAway)
	path := boltFile(t, func(tx *bolt.Tx) error {
		key := binary.BigEndian.AppendUint64(nil, uint64(farAway.UnixMilli()))
		for _, r := range [][3]string{
			{"tokens", string(key) + string(token.ID[:]), fmt.Sprintf(
				`{"v":1,"id":%q,"r":"root","c":"client of a","g":7,"s":"read write","a":["https://api.example.com","two"],"i":%d}`,
				base64.StdEncoding.EncodeToString(token.ID[:]), token.IssuedAt.UnixMilli())},
			{"clients", "root\x00stays", `{"generation":3}`},
			{"clients", "root\x00back", `{"generation":5,"retired":true}`},
			{"secrets", "key", "secret"},
		} {
			if err := putRaw(tx, r[0], r[1], r[2]); err != nil {
				return err
			}
		}
		return nil
	})
	stays, back := oauth.ClientRef{Realm: "root", ClientID: "stays"}, oauth.ClientRef{Realm: "root", ClientID: "back"}
	for range 2 {
		b := openBbolt(t, path, time.Now)
		present(t, b, token)
		if got := admit(t, b, stays, back); got[stays] != 3 || got[back] != 5 {
			t.Errorf("the generations are %v, want 3 and 5", got)
		}
		if got, err := b.Secret(ctx, "key", []byte("another")); err != nil || string(got) != "secret" {
			t.Errorf("the secret is %q, %v", got, err)
		}
		put(t, b, tokenOf("new"))
		present(t, b, tokenOf("new"))
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A file of any earlier version gets the present one when it is opened, so that no earlier program takes
// the records that are written from then on for damaged ones.
func TestBboltFileGetsTheVersion(t *testing.T) {
	for version := range fileVersion {
		path := boltFile(t, func(tx *bolt.Tx) error {
			for _, name := range fileBuckets[version+1] {
				if _, err := tx.CreateBucket(name); err != nil {
					return err
				}
			}
			return putRaw(tx, "meta", "version", fmt.Sprint(version+1))
		})
		if err := openBbolt(t, path, time.Now).view(func(tx *bolt.Tx) error {
			if got := tx.Bucket(bucketMeta).Get(keyVersion); string(got) != fmt.Sprint(fileVersion) {
				t.Errorf("a file of version %d has version %s", version+1, got)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// A file of the version before opens and keeps its tokens, which are JSON, whether they are bound or not. What is
// written from then on is compact, and the file has the version that says so.
func TestBboltFileWithJSONRecords(t *testing.T) {
	token, bound := tokenUntil("a", farAway), tokenUntil("bound", farAway)
	path := boltFile(t, func(tx *bolt.Tx) error {
		for _, name := range fileBuckets[3] {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		if err := putRaw(tx, "meta", "version", "3"); err != nil {
			return err
		}
		for _, token := range []oauth.Token{token, bound} {
			if err := putRaw(tx, "tokens", string(tokenKey(token.Key)), recordOfEarlier(token)); err != nil {
				return err
			}
		}
		return nil
	})
	for _, name := range []string{"new", "bound, new"} {
		b := openBbolt(t, path, time.Now)
		present(t, b, token)
		present(t, b, bound)
		put(t, b, tokenOf(name))
		if err := b.view(func(tx *bolt.Tx) error {
			if got := tx.Bucket(bucketMeta).Get(keyVersion); string(got) != "4" {
				t.Errorf("the version is %q", got)
			}
			if got := tx.Bucket(bucketTokens).Get(tokenKey(tokenOf(name).Key)); len(got) == 0 || got[0] != compact && got[0] != compactBound {
				t.Errorf("the new record is %q", got)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A file of a later version is refused, whatever is in it, and stays as it is. The error says what
// to do; it doesn't say that the file is damaged, since somebody might throw it away.
func TestBboltFileOfALaterVersion(t *testing.T) {
	path := boltFile(t, func(tx *bolt.Tx) error {
		if err := putRaw(tx, "meta", "version", "5"); err != nil {
			return err
		}
		keys, err := tx.CreateBucket([]byte("keys"))
		if err != nil {
			return err
		}
		if err := keys.Put([]byte("a"), []byte("without a digest")); err != nil {
			return err
		}
		_, err = keys.CreateBucket([]byte("a bucket in a bucket"))
		return err
	})
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := OpenBbolt(path, time.Now)
	if err == nil {
		b.Close()
		t.Fatal("it was opened")
	}
	for _, part := range []string{path, "was written by a later version of the gateway", "version 5", "up to 4", "run the later version", "store bbolt <path>"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the message does not say %q: %v", part, err)
		}
	}
	for _, part := range []string{"damaged", "move it away"} {
		if strings.Contains(err.Error(), part) {
			t.Errorf("the message says %q: %v", part, err)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the file was changed, %v", err)
	}
}

// A version number that makes no sense, or that has changed by itself, is damage.
func TestBboltVersionIsDamaged(t *testing.T) {
	for name, fill := range map[string]func(*bolt.Tx) error{
		"none":     func(tx *bolt.Tx) error { return putRaw(tx, "meta", "another", "1") },
		"empty":    withVersion(""),
		"zero":     withVersion("0"),
		"negative": withVersion("-1"),
		"a word":   withVersion("two"),
		"huge":     withVersion("99999999999999999999"),
		"changed": func(tx *bolt.Tx) error {
			if err := withVersion("1")(tx); err != nil {
				return err
			}
			return tx.Bucket(bucketMeta).Put(keyVersion, []byte("2"))
		},
		"of a file without its buckets": func(tx *bolt.Tx) error { return putRaw(tx, "meta", "version", "1") },
		"of a file with another bucket": func(tx *bolt.Tx) error {
			if err := withVersion("1")(tx); err != nil {
				return err
			}
			return putRaw(tx, "keys", "a", "b")
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := boltFile(t, fill)
			b, err := OpenBbolt(path, time.Now)
			if err == nil {
				b.Close()
				t.Fatal("it was opened")
			}
			saysWhatToDo(t, err, path)
		})
	}
}

// A file whose root has lost all its buckets is damaged. It is not an empty file, which would
// begin anew and end all tokens without a word.
func TestBboltEmptiedFileIsDamaged(t *testing.T) {
	path, _, page := fileToDamage(t)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := 0 // the meta page of the last transaction
	if txid := func(at int) uint64 { return binary.NativeEndian.Uint64(file[at+64:]) }; txid(page) > txid(0) {
		last = page
	}
	root := int(binary.NativeEndian.Uint64(file[last+32:])) * page
	binary.NativeEndian.PutUint16(file[root+10:], 0) // its number of elements
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBbolt(path, time.Now)
	if err == nil {
		b.Close()
		t.Fatal("it was opened")
	}
	saysWhatToDo(t, err, path)
}
