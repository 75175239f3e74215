package caddyoauth

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/caddyoauth/gateway/caddyoauth/internal/conf"
	"github.com/caddyoauth/gateway/caddyoauth/internal/oauth"
)

// CertificateSubject is what a client's certificate must name (RFC 8705 section 2.1.2).
type CertificateSubject struct {
	// Where the name stands in the certificate: `subject_dn`, the whole subject, or `san_dns`,
	// `san_uri`, `san_ip` or `san_email`, one of the alternative names.
	Kind string `json:"kind,omitempty"`

	// The name. A subject is written as in RFC 4514, with the last part first, as in
	// `CN=ci,O=Example`; `openssl x509 -noout -subject -nameopt RFC2253` prints it. It is compared
	// part by part, and case counts. A host or an IP address is compared by its meaning, and is no
	// pattern. With a SPIFFE ID, as in `spiffe://example.org/ci`, the certificate must be an
	// X.509-SVID.
	Value string `json:"value,omitempty"`
}

func (s *CertificateSubject) provision() (*oauth.CertificateSubject, error) {
	subject, err := oauth.NewCertificateSubject(s.Kind, s.Value)
	if err != nil {
		return nil, fmt.Errorf("tls_client_auth: %w", err)
	}
	return subject, nil
}

// provisionCertificates checks how the client authenticates by certificates, and sets the subject of
// its certificate. It returns the files that have certificates of its own, whose content Start reads
// again.
func (cc *Client) provisionCertificates(c *oauth.Client, logger *zap.Logger) (files []string, err error) {
	byAuthority, byFile := slices.Contains(c.Auth, oauth.AuthTLS), slices.Contains(c.Auth, oauth.AuthSelfSigned)
	switch {
	case byAuthority && cc.TLSClientAuth == nil:
		return nil, fmt.Errorf("auth %s needs the subject of the client's certificate: add a line such as 'tls_client_auth san_dns ci.example.com'", oauth.AuthTLS)
	case !byAuthority && cc.TLSClientAuth != nil:
		return nil, fmt.Errorf("it has a tls_client_auth, and may not use it: add 'auth %s'", oauth.AuthTLS)
	case byFile && len(cc.CertificateFiles) == 0:
		return nil, fmt.Errorf("auth %s needs the client's certificate: add a certificate_file", oauth.AuthSelfSigned)
	case !byFile && len(cc.CertificateFiles) > 0:
		return nil, fmt.Errorf("it has a certificate_file, and may not use it: add 'auth %s'", oauth.AuthSelfSigned)
	}
	if byAuthority {
		if c.CertificateSubject, err = cc.TLSClientAuth.provision(); err != nil {
			return nil, err
		}
	}
	if !byFile {
		return nil, nil
	}
	alive := false
	for _, path := range cc.CertificateFiles {
		if err := conf.Resolve("certificate_file", &path); err != nil {
			return nil, err
		}
		certificates, err := readCertificates(path)
		if err != nil {
			return nil, fmt.Errorf("certificate_file %s: %w", path, err)
		}
		for _, certificate := range certificates {
			alive = alive || time.Now().Before(certificate.NotAfter)
		}
		files = append(files, path)
	}
	if !alive && !c.Disabled {
		logger.Warn("all certificates of a client have expired: it can't authenticate by them", zap.String("client_id", c.ID))
	}
	return files, nil
}

// readCertificates reads a file with certificates in PEM, and nothing else, at least one.
func readCertificates(path string) (certificates []*x509.Certificate, err error) {
	// Reading a pipe would wait for whoever writes to it.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	begun := bytes.Count(data, []byte("-----BEGIN "))
	for {
		block, rest := pem.Decode(data)
		switch {
		case block == nil && len(certificates) == 0:
			return nil, errors.New("there is no certificate in PEM in it")
		case block == nil && len(certificates) < begun: // it is being written, or was cut off
			return nil, errors.New("a PEM block is incomplete")
		case block == nil:
			return certificates, nil
		case block.Type != "CERTIFICATE":
			return nil, fmt.Errorf("there is a %s in it, and it must have certificates alone", strings.ToLower(block.Type))
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certificates)+1, err)
		}
		certificates, data = append(certificates, certificate), rest
	}
}

// tlsClientAuthOption reads tls_client_auth <kind> <value>.
func tlsClientAuthOption(place **CertificateSubject) conf.Option {
	return conf.Func(func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) != 2 {
			return d.Errf("tls_client_auth takes one of %s and its value, in quotes if there are spaces in it, as in 'tls_client_auth subject_dn \"CN=ci,O=Example Inc\"'", strings.Join(oauth.SubjectKinds(), ", "))
		}
		*place = &CertificateSubject{Kind: args[0], Value: args[1]}
		if _, err := (*place).provision(); err != nil {
			return d.WrapErr(err)
		}
		return conf.NoBlock(d, "tls_client_auth")
	})
}
