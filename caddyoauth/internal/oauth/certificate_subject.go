package oauth

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// CertificateSubject is what the certificate of a client that uses AuthTLS must name (RFC 8705
// section 2.1.2). It is compared exactly: no wildcard of a certificate counts, and no common name
// stands in for an alternative name.
type CertificateSubject struct {
	kind string
	// value is in normal form; name is the value instead if it is a distinguished name.
	value string
	name  distinguishedName
}

// subjectKinds are the kinds of subjects, with what reads the value of each.
var subjectKinds = map[string]func(*CertificateSubject, string) error{
	"subject_dn": (*CertificateSubject).readName,
	"san_dns":    (*CertificateSubject).readDNS,
	"san_uri":    (*CertificateSubject).readURI,
	"san_ip":     (*CertificateSubject).readIP,
	"san_email":  (*CertificateSubject).readEmail,
}

// SubjectKinds returns the kinds of subjects that exist, sorted.
func SubjectKinds() []string { return slices.Sorted(maps.Keys(subjectKinds)) }

// NewCertificateSubject returns a subject of one of the SubjectKinds. The error says what is wrong
// with the value.
func NewCertificateSubject(kind, value string) (*CertificateSubject, error) {
	read, known := subjectKinds[kind]
	if !known {
		return nil, fmt.Errorf("unknown kind of subject %q (known: %s)", kind, strings.Join(SubjectKinds(), ", "))
	}
	s := &CertificateSubject{kind: kind}
	if err := read(s, value); err != nil {
		return nil, fmt.Errorf("%s %q %w", kind, value, err)
	}
	return s, nil
}

// isIn reports whether the subject is among the names of a certificate.
func (s *CertificateSubject) isIn(names certificateNames) bool {
	switch s.kind {
	case "subject_dn":
		return names.subject != nil && s.name.equal(names.subject)
	case "san_dns":
		return slices.ContainsFunc(names.dns, func(name string) bool { return lowerASCII(name) == s.value })
	case "san_uri":
		if strings.HasPrefix(s.value, spiffePrefix) && !names.workload {
			return false
		}
		return slices.ContainsFunc(names.uris, func(uri string) bool { return normalURI(uri) == s.value })
	case "san_ip":
		return slices.ContainsFunc(names.ips, func(ip []byte) bool {
			addr, ok := netip.AddrFromSlice(ip)
			return ok && addr.Unmap().String() == s.value
		})
	case "san_email":
		return slices.ContainsFunc(names.emails, func(email string) bool { return normalEmail(email) == s.value })
	}
	return false
}

func (s *CertificateSubject) readName(value string) (err error) {
	s.name, err = parseName(value)
	return err
}

func (s *CertificateSubject) readDNS(value string) error {
	switch {
	case strings.Contains(value, "*"):
		return errors.New("has a wildcard: name the host")
	case !isHost(value):
		return errors.New("is not the name of a host; one with other letters is written as in DNS, with xn--")
	}
	s.value = lowerASCII(value) // case doesn't count in DNS (RFC 4343)
	return nil
}

// isHost reports whether a name has only the characters of the names of hosts.
func isHost(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return len(name) <= 253
}

func (s *CertificateSubject) readIP(value string) error {
	addr, err := netip.ParseAddr(value)
	if err != nil || addr.Zone() != "" {
		return errors.New("is not an IP address")
	}
	s.value = addr.Unmap().String()
	return nil
}

func (s *CertificateSubject) readEmail(value string) error {
	local, host, ok := strings.Cut(value, "@")
	if !ok || local == "" || !isHost(host) || !isASCII(local) {
		return errors.New("is not an email address")
	}
	s.value = normalEmail(value)
	return nil
}

// normalEmail writes the host of an address in lower case (RFC 5280 section 7.5).
func normalEmail(email string) string {
	at := strings.LastIndexByte(email, '@')
	return email[:at+1] + lowerASCII(email[at+1:])
}

func (s *CertificateSubject) readURI(value string) error {
	u, err := url.Parse(value)
	switch {
	case err != nil, u.Scheme == "", !isASCII(value), strings.ContainsAny(value, "<>\""):
		return errors.New("is not a URI with a scheme")
	case u.Scheme == "spiffe" && !isSPIFFE(value):
		return errors.New("is not a SPIFFE ID, as in spiffe://example.org/ci/runner")
	}
	s.value = normalURI(value)
	return nil
}

// normalURI writes the scheme and the host of a URI in lower case (RFC 5280 section 7.4).
func normalURI(uri string) string {
	scheme, rest, ok := strings.Cut(uri, ":")
	if !ok {
		return uri
	}
	scheme = lowerASCII(scheme) + ":"
	authority, ok := strings.CutPrefix(rest, "//")
	if !ok {
		return scheme + rest
	}
	end := strings.IndexAny(authority, "/?#")
	if end < 0 {
		end = len(authority)
	}
	host := strings.LastIndexByte(authority[:end], '@') + 1
	return scheme + "//" + authority[:host] + lowerASCII(authority[host:end]) + authority[end:]
}

const spiffePrefix = "spiffe://"

// isSPIFFE reports whether an ID is that of a workload (SPIFFE-ID section 2).
func isSPIFFE(id string) bool {
	const lower, upper = "abcdefghijklmnopqrstuvwxyz0123456789.-_", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	consistsOf := func(s, of string) bool { return s != "" && strings.Trim(s, of) == "" }
	rest, ok := strings.CutPrefix(id, spiffePrefix)
	domain, path, _ := strings.Cut(rest, "/")
	if !ok || len(id) > 2048 || len(domain) > 255 || !consistsOf(domain, lower) {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." || !consistsOf(segment, lower+upper) {
			return false
		}
	}
	return true
}

// certificateNames are the names in a certificate. The alternative ones (RFC 5280 section 4.2.1.6) are
// as they stand in it: crypto/x509 keeps a URI in a form in which several are the same.
type certificateNames struct {
	subject           distinguishedName // nil if it can't be read
	dns, uris, emails []string
	ips               [][]byte
	// workload is set if a workload of SPIFFE may authenticate with the certificate: it has no second
	// URI, and is not that of an authority (X509-SVID sections 2, 4 and 5.2).
	workload bool
}

var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// namesIn returns the names in a certificate that crypto/x509 has accepted. It reads them all, so that
// the time says nothing about the name that is looked for.
func namesIn(cert *x509.Certificate) (names certificateNames) {
	names.subject, _ = nameOf(cert.RawSubject)
	for _, extension := range cert.Extensions { // at most one: crypto/x509 refuses duplicates
		if !extension.Id.Equal(subjectAltName) {
			continue
		}
		var list []asn1.RawValue
		if rest, err := asn1.Unmarshal(extension.Value, &list); err != nil || len(rest) > 0 {
			continue
		}
		for _, name := range list {
			if name.Class != asn1.ClassContextSpecific {
				continue
			}
			switch name.Tag {
			case 1:
				names.emails = append(names.emails, string(name.Bytes))
			case 2:
				names.dns = append(names.dns, string(name.Bytes))
			case 6:
				names.uris = append(names.uris, string(name.Bytes))
			case 7:
				names.ips = append(names.ips, name.Bytes)
			}
		}
	}
	names.workload = len(names.uris) == 1 && !cert.IsCA && cert.KeyUsage&x509.KeyUsageDigitalSignature != 0 &&
		cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) == 0
	return names
}

// isASCII reports whether all characters are visible ones of ASCII.
func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}

func lowerASCII(s string) string {
	lower := []byte(s)
	for i, c := range lower {
		if 'A' <= c && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	return string(lower)
}
