package oauth

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

var testKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// newCertificate makes a certificate that signs itself, with some changes.
func newCertificate(t testing.TB, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ci"}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	change(template)
	der, err := x509.CreateCertificate(nil, template, template, testKey.Public(), testKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// rdns encodes a name. Each part has types and values in turn.
func rdns(t testing.TB, parts ...[]any) []byte {
	t.Helper()
	der, err := encodeRDNs(parts)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func encodeRDNs(parts [][]any) ([]byte, error) {
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	type attributesSET []attribute
	var name []attributesSET
	for _, part := range parts {
		var attributes attributesSET
		for i := 0; i < len(part); i += 2 {
			attributes = append(attributes, attribute{part[i].(asn1.ObjectIdentifier), part[i+1].(asn1.RawValue)})
		}
		name = append(name, attributes)
	}
	return asn1.Marshal(name)
}

func utf8String(s string) asn1.RawValue {
	return asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(s)}
}

var (
	oidCN = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidO  = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidOU = asn1.ObjectIdentifier{2, 5, 4, 11}
	oidDC = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}
	oidXX = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}
)

// A distinguished name matches part by part, whatever types its strings have, and in no other order.
func TestDistinguishedName(t *testing.T) {
	t.Parallel()
	printable := func(s string) asn1.RawValue {
		return asn1.RawValue{Tag: asn1.TagPrintableString, Bytes: []byte(s)}
	}
	ia5 := func(s string) asn1.RawValue { return asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte(s)} }
	cn := func(s string) []any { return []any{oidCN, utf8String(s)} }
	ci := [][]any{{oidDC, ia5("com")}, {oidDC, ia5("example")}, {oidO, printable("Example")}, {oidCN, utf8String("ci")}}
	for _, c := range []struct {
		what string
		name [][]any
		text string
		want bool
	}{
		{"the same", ci, "CN=ci,O=Example,DC=example,DC=com", true},
		{"names of attributes in another case", ci, "cn=ci,o=Example,dC=example,Dc=com", true},
		{"OIDs", ci, "2.5.4.3=ci,2.5.4.10=Example,0.9.2342.19200300.100.1.25=example,DC=com", true},
		{"the other way round", ci, "DC=com,DC=example,O=Example,CN=ci", false},
		{"a part too few", ci, "CN=ci,O=Example,DC=example", false},
		{"a part too many", ci, "CN=ci,O=Example,DC=example,DC=com,C=DE", false},
		{"the common name alone", ci, "CN=ci", false},
		{"a value in another case", ci, "CN=CI,O=Example,DC=example,DC=com", false},
		{"another attribute with the value", ci, "OU=ci,O=Example,DC=example,DC=com", false},
		{"a value in hexadecimal", ci, "CN=#0c026369,O=Example,DC=example,DC=com", true},
		{"the value as another type of string in hexadecimal", ci, "CN=#13026369,O=Example,DC=example,DC=com", true},

		{"an escaped comma", [][]any{cn("Doe, John")}, `CN=Doe\, John`, true},
		{"a comma in hexadecimal", [][]any{cn("Doe, John")}, `CN=Doe\2c John`, true},
		{"a comma that separates", [][]any{{oidO, utf8String("x")}, cn("ci")}, `CN=ci\,O=x`, false},
		{"a value that looks like two parts", [][]any{cn("ci,O=x")}, `CN=ci,O=x`, false},
		{"and is written as one", [][]any{cn("ci,O=x")}, `CN=ci\,O=x`, true},
		{"an equals sign", [][]any{cn("a=b")}, `CN=a=b`, true},
		{"an escaped equals sign", [][]any{cn("a=b")}, `CN=a\=b`, true},
		{"all that is escaped", [][]any{cn(`"+,;<>\`)}, `CN=\"\+\,\;\<\>\\`, true},
		{"a number sign", [][]any{cn("#ci")}, `CN=\#ci`, true},
		{"spaces at the ends", [][]any{cn(" ci ")}, `CN=\ ci\20`, true},
		{"spaces in the middle", [][]any{cn("c  i")}, `CN=c  i`, true},
		{"fewer spaces", [][]any{cn("c  i")}, `CN=c i`, false},
		{"letters beyond ASCII", [][]any{cn("Grüße")}, `CN=Grüße`, true},
		{"those in hexadecimal", [][]any{cn("Grüße")}, `CN=Gr\C3\BC\C3\9Fe`, true},
		{"those decomposed", [][]any{cn("Grüße")}, "CN=Gru\u0308ße", false},
		{"BMPString", [][]any{{oidCN, asn1.RawValue{Tag: asn1.TagBMPString, Bytes: []byte{0, 'c', 0, 'i'}}}}, "CN=ci", true},
		{"an empty value", [][]any{cn("")}, "CN=", true},
		{"a value with NUL", [][]any{cn("ci\x00.evil")}, `CN=ci`, false},

		{"several attributes in a part", [][]any{{oidCN, utf8String("ci"), oidOU, utf8String("x")}}, "CN=ci+OU=x", true},
		{"in another order", [][]any{{oidCN, utf8String("ci"), oidOU, utf8String("x")}}, "OU=x+CN=ci", true},
		{"as parts of their own", [][]any{{oidCN, utf8String("ci"), oidOU, utf8String("x")}}, "CN=ci,OU=x", false},
		{"parts of their own as one", [][]any{{oidOU, utf8String("x")}, cn("ci")}, "CN=ci+OU=x", false},

		{"no string", [][]any{{oidXX, asn1.RawValue{Tag: asn1.TagInteger, Bytes: []byte{5}}}}, "1.3.6.1.4.1.99999.1=#020105", true},
		{"another one", [][]any{{oidXX, asn1.RawValue{Tag: asn1.TagInteger, Bytes: []byte{5}}}}, "1.3.6.1.4.1.99999.1=#020106", false},
		{"a string that reads like it", [][]any{{oidXX, asn1.RawValue{Tag: asn1.TagInteger, Bytes: []byte{5}}}}, "1.3.6.1.4.1.99999.1=\\05", false},
		{"no name", nil, "CN=ci", false},
	} {
		subject, err := NewCertificateSubject("subject_dn", c.text)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if got := subject.isIn(namesIn(&x509.Certificate{RawSubject: rdns(t, c.name...)})); got != c.want {
			t.Errorf("%s: %q matches: %v", c.what, c.text, got)
		}
	}
	cert := newCertificate(t, func(c *x509.Certificate) { c.Subject.Organization = []string{"Example, Inc."} })
	if subject, err := NewCertificateSubject("subject_dn", cert.Subject.String()); err != nil || !subject.isIn(namesIn(cert)) {
		t.Errorf("what crypto/x509 writes, %q, does not match: %v", cert.Subject, err)
	}
}

func TestSubjectAlternativeNames(t *testing.T) {
	t.Parallel()
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	cert := newCertificate(t, func(c *x509.Certificate) {
		c.Subject.CommonName = "common.example.com"
		c.DNSNames = []string{"ci.example.com", "*.wild.example.com", "UPPER.example.com"}
		c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 7), net.ParseIP("2001:db8::1"), net.ParseIP("::ffff:192.0.2.8").To16()}
		c.URIs = []*url.URL{uri("https://CI.example.com/A?b#c"), uri("urn:ci:1")}
		c.EmailAddresses = []string{"Ci@Example.com"}
	})
	workload := func(change func(*x509.Certificate)) *x509.Certificate {
		return newCertificate(t, func(c *x509.Certificate) {
			c.URIs = []*url.URL{uri("spiffe://example.org/ci/runner")}
			change(c)
		})
	}
	spiffe := workload(func(*x509.Certificate) {})
	for _, c := range []struct {
		kind, value string
		cert        *x509.Certificate
		want        bool
	}{
		{"san_dns", "ci.example.com", cert, true},
		{"san_dns", "CI.Example.COM", cert, true},
		{"san_dns", "upper.example.com", cert, true},
		{"san_dns", "common.example.com", cert, false},
		{"san_dns", "a.wild.example.com", cert, false},
		{"san_dns", "example.com", cert, false},
		{"san_dns", "ci.example.com.evil.test", cert, false},
		{"san_ip", "192.0.2.7", cert, true},
		{"san_ip", "::ffff:192.0.2.7", cert, true},
		{"san_ip", "192.0.2.8", cert, true},
		{"san_ip", "2001:DB8:0:0::1", cert, true},
		{"san_ip", "2001:db8::2", cert, false},
		{"san_uri", "https://ci.example.com/A?b#c", cert, true},
		{"san_uri", "HTTPS://Ci.example.com/A?b#c", cert, true},
		{"san_uri", "https://ci.example.com/a?b#c", cert, false},
		{"san_uri", "https://ci.example.com/%41?b#c", cert, false},
		{"san_uri", "https://ci.example.com/A", cert, false},
		{"san_uri", "urn:ci:1", cert, true},
		{"san_uri", "urn:CI:1", cert, false},
		{"san_email", "Ci@example.COM", cert, true},
		{"san_email", "ci@example.com", cert, false},
		{"san_dns", "ci.example.com", newCertificate(t, func(*x509.Certificate) {}), false},
		{"san_uri", "spiffe://example.org/ci/runner", spiffe, true},
		{"san_uri", "spiffe://example.org/ci", spiffe, false},
		{"san_uri", "spiffe://example.org/ci/runner/2", spiffe, false},
		{"san_uri", "spiffe://example.com/ci/runner", spiffe, false},
		{"san_uri", "spiffe://example.org/ci/runner", workload(func(c *x509.Certificate) { c.URIs = append(c.URIs, uri("https://example.org")) }), false},
		{"san_uri", "spiffe://example.org/ci/runner", workload(func(c *x509.Certificate) { c.DNSNames = []string{"ci"} }), true},
		{"san_uri", "spiffe://example.org/ci/runner", workload(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), false},
		{"san_uri", "spiffe://example.org/ci/runner", workload(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), false},
		{"san_uri", "spiffe://example.org/ci/runner", workload(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), false},
	} {
		subject, err := NewCertificateSubject(c.kind, c.value)
		if err != nil {
			t.Errorf("%s %q: %v", c.kind, c.value, err)
		} else if got := subject.isIn(namesIn(c.cert)); got != c.want {
			t.Errorf("%s %q matches: %v", c.kind, c.value, got)
		}
	}
}

// A subject that can't be meant is an error, which says why.
func TestWrongCertificateSubjects(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ kind, value, want string }{
		{"subject_cn", "ci", "unknown kind"},
		{"subject_dn", "", "is not a distinguished name"},
		{"subject_dn", "ci", "is not a distinguished name"},
		{"subject_dn", "CN=ci,", "is not a distinguished name"},
		{"subject_dn", "CN=ci, O=Example", "has a space around the name"},
		{"subject_dn", "CN = ci", "has a space around the name"},
		{"subject_dn", "CN= ci", "has a space at the beginning"},
		{"subject_dn", "CN=ci ,O=Example", "has a space at the end"},
		{"subject_dn", "CN=ci+ O=x", "has a space around the name"},
		{"subject_dn", "XY=ci", "has an attribute with an unknown name"},
		{"subject_dn", "2.5.=ci", "has an attribute with an unknown name"},
		{"subject_dn", "2.05.4=ci", "has an attribute with an unknown name"},
		{"subject_dn", "1.40.4=ci", "has an attribute with an unknown name"},
		{"subject_dn", "2.7000000000=ci", "each number below 2147483648"},
		{"subject_dn", "2.2147483568=ci", "has an attribute with an unknown name"}, // 80 more in the encoding
		{"subject_dn", "2.5.2147483648=ci", "has an attribute with an unknown name"},
		{"subject_dn", "2" + strings.Repeat(".7", 200) + "=ci", "has an attribute with an unknown name"}, // too long
		{"subject_dn", "=ci", "has an attribute with an unknown name"},
		{"subject_dn", `CN=a\`, "has a backslash"},
		{"subject_dn", `CN=a\4`, "has a backslash"},
		{"subject_dn", `CN=a\zz`, "has a backslash"},
		{"subject_dn", `CN="a"`, "write a backslash"},
		{"subject_dn", `CN=a;O=b`, "write a backslash"},
		{"subject_dn", `CN=\ff`, "is not UTF-8"},
		{"subject_dn", `CN=#`, "is not hexadecimal"},
		{"subject_dn", `CN=#0c`, "encoding can't be read"},
		{"subject_dn", `CN=#0c026369ff`, "encoding can't be read"},
		{"subject_dn", `CN=#0g`, "is not hexadecimal"},
		{"san_dns", "*.example.com", "has a wildcard"},
		{"san_dns", "", "is not the name of a host"},
		{"san_dns", "ci.example.com.", "is not the name of a host"},
		{"san_dns", "https://ci.example.com", "is not the name of a host"},
		{"san_dns", "grüße.example.com", "is not the name of a host"},
		{"san_ip", "192.0.2", "is not an IP address"},
		{"san_ip", "192.0.2.0/24", "is not an IP address"},
		{"san_ip", "fe80::1%eth0", "is not an IP address"},
		{"san_email", "example.com", "is not an email address"},
		{"san_email", "a b@example.com", "is not an email address"},
		{"san_email", "*@*", "is not an email address"},
		{"san_uri", "ci.example.com", "is not a URI"},
		{"san_uri", "https://a b", "is not a URI"},
		{"san_uri", "spiffe://example.org", "is not a SPIFFE ID"},
		{"san_uri", "spiffe://example.org/", "is not a SPIFFE ID"},
		{"san_uri", "spiffe://example.org/ci/*", "is not a SPIFFE ID"},
		{"san_uri", "spiffe://example.org/../ci", "is not a SPIFFE ID"},
		{"san_uri", "spiffe://Example.org/ci", "is not a SPIFFE ID"},
		{"san_uri", "spiffe://example.org:80/ci", "is not a SPIFFE ID"},
		{"san_uri", "SPIFFE://example.org/ci", "is not a SPIFFE ID"},
		{"san_uri", "spiffe:example.org/ci", "is not a SPIFFE ID"},
	} {
		if _, err := NewCertificateSubject(c.kind, c.value); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v", c.kind, c.value, err)
		}
	}
}

// write is the inverse of parseName.
func (n distinguishedName) write() string {
	var parts []string
	for i := len(n) - 1; i >= 0; i-- {
		var attributes []string
		for _, a := range n[i] {
			value := "#" + hex.EncodeToString([]byte(a.der))
			if a.der == "" {
				value = ""
				for _, b := range []byte(a.text) {
					value += fmt.Sprintf("\\%02x", b)
				}
			}
			attributes = append(attributes, a.oid+"="+value)
		}
		parts = append(parts, strings.Join(attributes, "+"))
	}
	return strings.Join(parts, ",")
}

// What is read as a name, written again, is the name; and a certificate that was made for it
// matches it and nothing else that was read.
func FuzzDistinguishedName(f *testing.F) {
	for _, seed := range []string{
		"CN=ci,O=Example", `CN=Doe\, John+OU=a\2b`, "CN=#0c026369", "1.2.3=#020105", "CN=", "CN=a=b", `CN=\ a\ `, "DC=a,DC=b", "CN=\x00", "CN=#3000+L=x",
		"2.999.1=ü", "CN=a,CN=a+CN=b+CN=a", "2.7000000000=", "2.2147483567=", "2.2147483568=", "1.3.2147483647=a", "0.39=",
	} {
		f.Add(seed, "CN=ci")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		name, err := parseName(a)
		if err != nil {
			return
		}
		if again, err := parseName(name.write()); err != nil || !again.equal(name) {
			t.Fatalf("%q is read as %q, and that as %v, %v", a, name.write(), again, err)
		}
		var parts [][]any
		for _, part := range name {
			var attributes []any
			for _, attribute := range part {
				var oid asn1.ObjectIdentifier
				for number := range strings.SplitSeq(attribute.oid, ".") {
					n, err := strconv.Atoi(number)
					if err != nil {
						t.Fatalf("%q has the OID %s: %v", a, attribute.oid, err)
					}
					oid = append(oid, n)
				}
				value := utf8String(attribute.text)
				if attribute.der != "" {
					value = asn1.RawValue{FullBytes: []byte(attribute.der)}
				}
				attributes = append(attributes, oid, value)
			}
			parts = append(parts, attributes)
		}
		der, err := encodeRDNs(parts)
		if err != nil {
			t.Fatalf("%q can't be in a certificate: %v", a, err)
		}
		back, err := nameOf(der)
		if err != nil || !back.equal(name) {
			t.Fatalf("%q is %q in a certificate, %v", a, back.write(), err)
		}
		if other, err := parseName(b); err == nil && other.equal(back) != (other.write() == name.write()) {
			t.Fatalf("%q and %q are equal: %v", a, b, other.equal(back))
		}
	})
}

// FuzzNameOf gives arbitrary bytes to what reads the name of a certificate.
func FuzzNameOf(f *testing.F) {
	f.Add(rdns(f, []any{oidCN, utf8String("ci")}))
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		name, err := nameOf(der)
		if err != nil {
			return
		}
		if again, err := nameOf(bytes.Clone(der)); err != nil || !again.equal(name) {
			t.Fatalf("%x is read in two ways", der)
		}
		if len(name) == 0 {
			return
		}
		if written, err := parseName(name.write()); err == nil && !written.equal(name) {
			t.Fatalf("%x is %q, which is another name", der, name.write())
		}
	})
}

func FuzzSubjectURI(f *testing.F) {
	f.Add("spiffe://example.org/ci", "HTTPS://A.example/B")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, uri := range []string{a, b} {
			if normal := normalURI(uri); normalURI(normal) != normal || len(normal) != len(uri) || !strings.EqualFold(normal, uri) {
				t.Fatalf("the normal form of %q is %q", uri, normal)
			}
		}
	})
}

// A certificate is good from its first moment to its last, however long the connection is open.
func TestCertificateOutOfTime(t *testing.T) {
	t.Parallel()
	cert := newCertificate(t, func(*x509.Certificate) {})
	for _, c := range []struct {
		at   time.Time
		want string
	}{
		{cert.NotBefore.Add(-time.Second), reasonCertificateNotYet}, {cert.NotBefore, ""}, {cert.NotAfter, ""}, {cert.NotAfter.Add(time.Second), reasonCertificateExpired},
	} {
		if got := whyNotNow(cert, c.at); got != c.want {
			t.Errorf("at %s: %q, want %q", c.at, got, c.want)
		}
	}
}
