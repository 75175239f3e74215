package caddyoauth

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
)

// TLSClient are the TLS settings of connections that the gateway opens. The oldest accepted
// version is TLS 1.2, and certificates are always verified.
type TLSClient struct {
	// A PEM file with the certificates of the authorities to trust. Default: those that the
	// system trusts.
	CA string `json:"ca,omitempty"`

	// A PEM file with the certificate that the gateway presents. It is read at each handshake,
	// so it may be renewed without a reload. Default: none.
	Certificate string `json:"certificate,omitempty"`

	// A PEM file with the key of that certificate. It is read at each handshake, too.
	Key string `json:"key,omitempty"`

	// The name that the server's certificate must have. Default: the host that is connected to.
	ServerName string `json:"server_name,omitempty"`
}

// config reads the files and returns the settings for crypto/tls, and a text that differs whenever
// the trust does: after a reload, no connection may go on that trusts a withdrawn authority. A
// file that is missing, or holds nothing useful, is an error: there is no default to fall back on.
func (c *TLSClient) config() (_ *tls.Config, trust string, err error) {
	resolved := *c
	if err := cmp.Or(conf.Resolve("ca", &resolved.CA), conf.Resolve("certificate", &resolved.Certificate),
		conf.Resolve("key", &resolved.Key), conf.Resolve("server_name", &resolved.ServerName)); err != nil {
		return nil, "", err
	}
	trust = fmt.Sprintf("%q", resolved)
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: resolved.ServerName}
	if resolved.CA != "" {
		pem, err := os.ReadFile(resolved.CA)
		if err != nil {
			return nil, "", fmt.Errorf("reading ca: %w", err)
		}
		trust += string(pem)
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, "", fmt.Errorf("ca %s holds no certificate", resolved.CA)
		}
	}
	if err := resolved.check(); err != nil {
		return nil, "", err
	}
	if resolved.Certificate != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(resolved.Certificate, resolved.Key)
			if err != nil {
				return nil, fmt.Errorf("loading certificate %s and its key: %w", resolved.Certificate, err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, "", err
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return config, trust, nil
}

func (c *TLSClient) check() error {
	if (c.Certificate == "") != (c.Key == "") {
		return errors.New("certificate and key need each other")
	}
	return nil
}

// tlsOption reads
//
//	tls {
//		ca          <file>
//		certificate <file>
//		key         <file>
//		server_name <name>
//	}
func tlsOption(place **TLSClient) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		if _, err := conf.Args(d, 0, 0); err != nil {
			return err
		}
		c := new(TLSClient)
		*place = c
		return conf.Options{
			"ca":          conf.Text(&c.CA),
			"certificate": conf.Text(&c.Certificate),
			"key":         conf.Text(&c.Key),
			"server_name": conf.Text(&c.ServerName),
		}.Read(d, "tls", c.check)
	})
}
