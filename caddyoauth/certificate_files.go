package caddyoauth

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/introspect"
)

// certificateInterval is how often the files with clients' certificates are read.
const certificateInterval = 5 * time.Second

// openCertificates holds the certificates of clients, which outlive a reload.
var openCertificates = caddy.NewUsagePool()

// certificateFiles are the certificates in one client's files. One goroutine reads them again, from
// watchCertificates until Destruct. What can't be read changes nothing.
type certificateFiles struct {
	paths  []string
	logger func() *zap.Logger // of the configuration in force
	// known are the thumbprints. A map never changes once it is here.
	known  atomic.Pointer[map[string]bool]
	cancel context.CancelFunc
	ended  chan struct{} // closed when the goroutine is over
}

// watchCertificates reads the files, and goes on to do so.
func watchCertificates(paths []string, logger func() *zap.Logger) (*certificateFiles, error) {
	ctx, cancel := context.WithCancel(context.Background())
	f := &certificateFiles{paths: paths, logger: logger, cancel: cancel, ended: make(chan struct{})}
	if err := f.read(); err != nil {
		cancel()
		return nil, err
	}
	go f.watch(ctx)
	return f, nil
}

func (f *certificateFiles) watch(ctx context.Context) {
	defer close(f.ended)
	ticker := time.NewTicker(certificateInterval)
	defer ticker.Stop()
	failure := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		said := failure
		failure = ""
		if err := f.read(); err != nil {
			failure = err.Error()
			if failure != said { // once, and not every few seconds
				f.logger().Warn("cannot read the certificates of a client: those from before stay in use", zap.Error(err))
			}
		}
	}
}

func (f *certificateFiles) read() error {
	known := make(map[string]bool)
	for _, path := range f.paths {
		certificates, err := readCertificates(path)
		if err != nil {
			return fmt.Errorf("certificate_file %s: %w", path, err)
		}
		for _, certificate := range certificates {
			known[introspect.CertificateThumbprint(certificate)] = true
		}
	}
	f.known.Store(&known)
	return nil
}

// has reports whether the files have a certificate with this thumbprint.
func (f *certificateFiles) has(thumbprint string) bool { return (*f.known.Load())[thumbprint] }

// Destruct implements caddy.Destructor.
func (f *certificateFiles) Destruct() error {
	f.cancel()
	<-f.ended
	return nil
}

// openCertificateFiles has the certificates of the realm's clients read, or shares those of the
// configuration before. hold is told of each reference that is taken.
func (r *servedRealm) openCertificateFiles(hold func(reference)) error {
	for _, id := range sortedKeys(r.certificates) {
		paths := r.certificates[id]
		key := conf.PoolKey("client certificates", r.name, id, paths)
		opened, _, err := loadOrOpen(openCertificates, key, func() (*certificateFiles, error) {
			return watchCertificates(paths, func() *zap.Logger {
				return caddy.Log().Named("oauth").With(zap.String("realm", r.name), zap.String("client_id", id))
			})
		})
		if err != nil {
			return fmt.Errorf("client %q: %w", id, err)
		}
		hold(reference{openCertificates, key})
		// Nobody has the client yet: the engine is made after this.
		r.settings.Clients[id].Certificates = opened.has
	}
	return nil
}
