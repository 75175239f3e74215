package oauth

import (
	"cmp"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// distinguishedName is the name of a certificate's subject, in the order of the certificate. The
// attributes of each part are sorted, because there they are a set.
//
// It is parsed here because the libraries that can read RFC 4514 are LDAP clients, and crypto/x509
// writes it but can't read it.
type distinguishedName [][]nameAttribute

// nameAttribute is an attribute of a name.
type nameAttribute struct {
	oid string // dotted
	// text is the value if it is a string, whatever its type; otherwise der is its encoding.
	text, der string
}

// equal reports whether both are the same name: part by part, character by character. RFC 5280 would
// let names differ in case and spaces, but a name in the configuration is copied from a certificate.
func (n distinguishedName) equal(other distinguishedName) bool {
	return slices.EqualFunc(n, other, func(a, b []nameAttribute) bool { return slices.Equal(a, b) })
}

func (n distinguishedName) sort() {
	for _, part := range n {
		slices.SortFunc(part, func(a, b nameAttribute) int {
			return cmp.Or(strings.Compare(a.oid, b.oid), strings.Compare(a.text, b.text), strings.Compare(a.der, b.der))
		})
	}
}

// attributeTypes are the short names that may stand for an OID, in lower case: those of RFC 4514,
// and others that OpenSSL prints.
var attributeTypes = map[string]string{
	"cn": "2.5.4.3", "sn": "2.5.4.4", "serialnumber": "2.5.4.5", "c": "2.5.4.6", "l": "2.5.4.7", "st": "2.5.4.8",
	"street": "2.5.4.9", "o": "2.5.4.10", "ou": "2.5.4.11", "title": "2.5.4.12", "businesscategory": "2.5.4.15",
	"postalcode": "2.5.4.17", "gn": "2.5.4.42", "givenname": "2.5.4.42", "initials": "2.5.4.43",
	"organizationidentifier": "2.5.4.97", "dc": "0.9.2342.19200300.100.1.25", "uid": "0.9.2342.19200300.100.1.1",
	"emailaddress":  "1.2.840.113549.1.9.1",
	"jurisdictionl": "1.3.6.1.4.1.311.60.2.1.1", "jurisdictionst": "1.3.6.1.4.1.311.60.2.1.2", "jurisdictionc": "1.3.6.1.4.1.311.60.2.1.3",
}

// maxOID is the length of an OID of 31 numbers in its dotted form, each as large as it can be. None in
// use is as long.
const maxOID = len("2") + 30*len(".2147483647")

// isOID reports whether text is the dotted form of an OID that a certificate can have: one with a number
// of more than 31 bits is read neither by encoding/asn1 nor by crypto/x509.
func isOID(text string) bool {
	if len(text) > maxOID {
		return false // ParseOID would take time by the square of a number's length
	}
	oid, err := x509.ParseOID(text)
	if err != nil {
		return false
	}
	content, err := oid.MarshalBinary()
	if err != nil {
		return false
	}
	der, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagOID, Bytes: content})
	if err != nil {
		return false
	}
	var read asn1.ObjectIdentifier
	_, err = asn1.Unmarshal(der, &read)
	return err == nil && read.String() == text // without leading zeros
}

// parseName reads the string form of a name (RFC 4514), which begins with the last part.
func parseName(text string) (distinguishedName, error) {
	var name distinguishedName
	part := []nameAttribute{}
	for rest := text; ; {
		label, value, ok := strings.Cut(rest, "=")
		oid := attributeTypes[strings.ToLower(label)]
		switch {
		case !ok:
			return nil, errors.New("is not a distinguished name: a part is an attribute's name, = and its value, as in CN=ci,O=Example")
		case strings.Trim(label, " ") != label:
			return nil, errors.New("has a space around the name of an attribute: there is none around , + and = (RFC 4514), as in the output of openssl x509 -noout -subject -nameopt RFC2253")
		case oid == "" && !isOID(label):
			return nil, fmt.Errorf("has an attribute with an unknown name, %q: write its OID, as in 2.5.4.3=ci, each number below 2147483648", label)
		case oid == "":
			oid = label
		}
		attribute, after, err := parseAttribute(oid, value)
		if err != nil {
			return nil, err
		}
		part = append(part, attribute)
		if after == "" || after[0] == ',' {
			name = append(name, part)
			part = nil
		}
		if after == "" {
			break
		}
		rest = after[1:]
	}
	slices.Reverse(name)
	name.sort()
	return name, nil
}

// parseAttribute reads the value at the beginning of text. What comes after is empty, or begins with
// a comma or a plus.
func parseAttribute(oid, text string) (_ nameAttribute, after string, _ error) {
	if hexadecimal, ok := strings.CutPrefix(text, "#"); ok {
		end := strings.IndexAny(hexadecimal, ",+")
		if end < 0 {
			end = len(hexadecimal)
		}
		der, err := hex.DecodeString(hexadecimal[:end])
		if err != nil || len(der) == 0 {
			return nameAttribute{}, "", errors.New("has a value that begins with # and is not hexadecimal")
		}
		attribute, err := attributeOf(oid, der)
		return attribute, hexadecimal[end:], err
	}
	var value []byte
	spaces := 0 // at the end, without a backslash
	for i := 0; ; i++ {
		switch c := byteAt(text, i); {
		case i == len(text) || c == ',' || c == '+':
			switch {
			case spaces > 0:
				return nameAttribute{}, "", errors.New("has a space at the end of a value: write \\20 if it belongs there")
			case !utf8.Valid(value):
				return nameAttribute{}, "", errors.New("has a value that is not UTF-8")
			}
			return nameAttribute{oid: oid, text: string(value)}, text[i:], nil
		case c == '\\' && strings.IndexByte(" \"#+,;<=>\\", byteAt(text, i+1)) >= 0:
			value, spaces = append(value, text[i+1]), 0
			i++
		case c == '\\':
			decoded, err := hex.DecodeString(text[min(i+1, len(text)):min(i+3, len(text))])
			if err != nil || len(decoded) != 1 {
				return nameAttribute{}, "", errors.New(`has a backslash before something else than two hexadecimal digits or one of , + " \ < > ; = # and space`)
			}
			value, spaces = append(value, decoded...), 0
			i += 2
		case strings.IndexByte("\x00\";<>", c) >= 0:
			return nameAttribute{}, "", fmt.Errorf("has %q in a value: write a backslash before it", c)
		case c == ' ' && len(value) == 0:
			return nameAttribute{}, "", errors.New("has a space at the beginning of a value: write \\20 if it belongs there")
		case c == ' ':
			value, spaces = append(value, c), spaces+1
		default:
			value, spaces = append(value, c), 0
		}
	}
}

// byteAt returns a byte that means nothing behind the end.
func byteAt(s string, i int) byte {
	if i < len(s) {
		return s[i]
	}
	return 'x'
}

type attributeSET []struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// nameOf reads the name in a certificate.
func nameOf(der []byte) (distinguishedName, error) {
	var parts []attributeSET
	if rest, err := asn1.Unmarshal(der, &parts); err != nil || len(rest) > 0 {
		return nil, errors.New("the name can't be read")
	}
	name := make(distinguishedName, 0, len(parts))
	for _, attributes := range parts {
		part := make([]nameAttribute, 0, len(attributes))
		for _, a := range attributes {
			attribute, err := attributeOf(a.Type.String(), a.Value.FullBytes)
			if err != nil {
				return nil, err
			}
			part = append(part, attribute)
		}
		name = append(name, part)
	}
	name.sort()
	return name, nil
}

// attributeOf reads the value of an attribute from its encoding.
func attributeOf(oid string, der []byte) (nameAttribute, error) {
	var value any
	rest, err := asn1.Unmarshal(der, &value)
	text, isText := value.(string)
	switch {
	case len(rest) > 0 || err != nil:
		return nameAttribute{}, errors.New("has a value whose encoding can't be read")
	case isText && utf8.ValidString(text):
		return nameAttribute{oid: oid, text: text}, nil
	}
	return nameAttribute{oid: oid, der: string(der)}, nil
}
