package caddyoauth

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
	"github.com/caddyoauth/gateway/caddyoauth/internal/store"
)

func init() {
	caddy.RegisterModule(BboltStore{})
}

// BboltStore keeps tokens in a file, for one Caddy process. Every token and every revocation is
// on disk before its caller gets an answer, and survives a crash. Expired tokens are removed.
type BboltStore struct {
	// The file. It is created with mode 0600, and its folder with mode 0700. A file that belongs
	// to another user is refused, unless that user is root. So is a folder that everybody may
	// write to, unless it is sticky. Placeholders are replaced when the configuration is loaded.
	// Default: `oauth/tokens.db` in Caddy's data directory.
	Path string `json:"path,omitempty"`

	// How long to wait for another process that has the file open, from `1s` to `1m`: during an
	// update, the old process may need a while to end. Until then, requests that need the store
	// get 503, if the gateway listens at all. Default: `1s`.
	LockTimeout caddy.Duration `json:"lock_timeout,omitempty"`

	path string // with placeholders replaced, or the default
}

// Bounds of lock_timeout. The lower bound is also the default, and the least that the store waits
// for the file. The upper bound is less than the time that supervisors allow for a start, which is
// a minute and a half with systemd; and a reload blocks the admin endpoint for as long.
const (
	minLockTimeout = time.Second
	maxLockTimeout = time.Minute
)

func checkLockTimeout(timeout caddy.Duration) error {
	if t := time.Duration(timeout); t < minLockTimeout || t > maxLockTimeout {
		return fmt.Errorf("lock_timeout must be between %v and %v, got %v", minLockTimeout, maxLockTimeout, t)
	}
	return nil
}

// CaddyModule returns the Caddy module information.
func (BboltStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "oauth.stores.bbolt",
		New: func() caddy.Module { return new(BboltStore) },
	}
}

// Provision resolves the path.
func (s *BboltStore) Provision(caddy.Context) error {
	s.LockTimeout = cmp.Or(s.LockTimeout, caddy.Duration(minLockTimeout))
	if err := checkLockTimeout(s.LockTimeout); err != nil {
		return err
	}
	s.path = s.Path
	if s.path == "" {
		s.path = filepath.Join(caddy.AppDataDir(), "oauth", "tokens.db")
		return nil
	}
	return conf.Resolve("path", &s.path)
}

// poolKey returns the real path of the file, so that two spellings of it mean one file.
func (s *BboltStore) poolKey() (string, error) {
	path, err := filepath.Abs(s.path)
	if err != nil {
		return "", fmt.Errorf("token store: %w", err)
	}
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", store.Unusable(path, err)
	}
	if folder, err = filepath.EvalSymlinks(folder); err != nil {
		return "", store.Unusable(path, err)
	}
	return filepath.Join(folder, filepath.Base(path)), nil
}

func (s *BboltStore) open(path string, owner *openStore) (oauth.TokenStore, error) {
	owner.immediate = true
	for begun := time.Now(); ; {
		b, err := store.OpenBbolt(path, time.Now)
		// A process that is told to end stops waiting.
		if !errors.Is(err, store.ErrInUse) || caddy.Exiting() || time.Since(begun) >= time.Duration(s.LockTimeout) {
			return b, err
		}
	}
}

// UnmarshalCaddyfile reads
//
//	bbolt [<path>] {
//		lock_timeout <duration>
//	}
func (s *BboltStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the store's name
	args, err := conf.Args(d, 0, 1)
	if err != nil {
		return err
	}
	if len(args) > 0 {
		s.Path = args[0]
	}
	return conf.Options{
		"lock_timeout": conf.Duration(&s.LockTimeout, checkLockTimeout),
	}.Read(d, "bbolt")
}

// Interface guards
var (
	_ caddy.Provisioner     = (*BboltStore)(nil)
	_ caddyfile.Unmarshaler = (*BboltStore)(nil)
	_ storeOpener           = (*BboltStore)(nil)
)
