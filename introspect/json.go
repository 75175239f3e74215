package introspect

import (
	"bytes"
	"encoding/json"
	"errors"
	"iter"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds how deep JSON from an issuer may nest. Real claims have four levels.
const maxDepth = 32

// nested is what decodeObject puts in place of an object inside the object, and of a list
// with anything but scalars in it. findClaim finds what is in them.
type nested struct{}

// decodeObject decodes a JSON object as encoding/json does with UseNumber, except for nested
// values. It refuses what another parser might understand differently: two members of one
// name, text that is not Unicode, more than maxDepth levels, or anything after the object.
func decodeObject(data []byte) (map[string]any, bool) {
	if !utf8.Valid(data) || !json.Valid(data) || halfEscaped(data) {
		return nil, false
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	value, err := decodeValue(decoder, 0)
	object, ok := value.(map[string]any)
	return object, ok && err == nil
}

// halfEscaped reports whether valid JSON escapes one half of a surrogate pair alone, as in
// "\ud800". encoding/json replaces it with U+FFFD, which would make one name of many.
func halfEscaped(data []byte) bool {
	for {
		// In valid JSON a backslash occurs only in strings, and each \u has four digits.
		at := bytes.IndexByte(data, '\\')
		if at < 0 {
			return false
		}
		data = data[at:]
		unit, ok := escapedUnit(data)
		switch {
		case !ok:
			data = data[2:]
		case !utf16.IsSurrogate(unit):
			data = data[6:]
		default:
			low, _ := escapedUnit(data[6:])
			if utf16.DecodeRune(unit, low) == utf8.RuneError {
				return true
			}
			data = data[12:]
		}
	}
}

// escapedUnit returns the UTF-16 code unit of the escape that data starts with, if it does.
func escapedUnit(data []byte) (rune, bool) {
	if len(data) < 6 || data[0] != '\\' || data[1] != 'u' {
		return 0, false
	}
	unit, err := strconv.ParseUint(string(data[2:6]), 16, 16)
	return rune(unit), err == nil
}

var errAmbiguous = errors.New("JSON is too deep or has two members of one name")

// decodeValue decodes the next value. It reads everything in it, and builds the outermost
// object and its lists of scalars.
func decodeValue(decoder *json.Decoder, depth int) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, errAmbiguous
	}
	switch token {
	case json.Delim('{'):
		var object map[string]any
		for decoder.More() {
			name, err := decoder.Token()
			if err != nil {
				return nil, err
			}
			if _, twice := object[name.(string)]; twice {
				return nil, errAmbiguous
			}
			value, err := decodeValue(decoder, depth+1)
			if err != nil {
				return nil, err
			}
			if object == nil {
				object = make(map[string]any)
			}
			if depth > 0 {
				value = nil // only the names matter here
			}
			object[name.(string)] = value
		}
		if _, err := decoder.Token(); err != nil || depth > 0 {
			return nested{}, err
		}
		return object, nil
	case json.Delim('['):
		list, scalars := []any{}, true
		for decoder.More() {
			value, err := decodeValue(decoder, depth+1)
			if err != nil {
				return nil, err
			}
			switch value.(type) {
			case nested, []any:
				list, scalars = nil, false
			}
			if depth == 1 && scalars {
				list = append(list, value)
			}
		}
		if _, err := decoder.Token(); err != nil || !scalars {
			return nested{}, err
		}
		return list, nil
	}
	return token, nil
}

// jsonMembers yields the names and values of a JSON object. This and the functions below are
// for text that has been checked to be valid JSON. For any other text they yield something or
// nothing, and end.
func jsonMembers(object string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		rest, ok := strings.CutPrefix(object, "{")
		for ok {
			var name, value string
			if name, rest = cutJSON(rest); name == "" || name[0] != '"' {
				return
			}
			rest, _ = strings.CutPrefix(skipSpace(rest), ":")
			if value, rest = cutJSON(rest); value == "" || !yield(stringText(name), value) {
				return
			}
			rest, ok = strings.CutPrefix(skipSpace(rest), ",")
		}
	}
}

// jsonElements yields the values of a JSON array.
func jsonElements(array string) iter.Seq[string] {
	return func(yield func(string) bool) {
		rest, ok := strings.CutPrefix(array, "[")
		for ok {
			var value string
			if value, rest = cutJSON(rest); value == "" || !yield(value) {
				return
			}
			rest, ok = strings.CutPrefix(skipSpace(rest), ",")
		}
	}
}

// cutJSON cuts the first JSON value off s. The value is empty if there is none.
func cutJSON(s string) (value, rest string) {
	s = skipSpace(s)
	if s == "" {
		return "", ""
	}
	end := 0
	switch s[0] {
	case '"':
		end = stringEnd(s, 0)
	case '{', '[':
		for depth := 0; end < len(s); {
			c := s[end]
			if c == '"' {
				end = stringEnd(s, end)
				continue
			}
			end++
			switch c | 0x20 { // turns brackets into braces and leaves braces as they are
			case '{':
				depth++
			case '}':
				depth--
				if depth == 0 {
					return s[:end], s[end:]
				}
			}
		}
	default:
		for end < len(s) && s[end] != ',' && s[end] != ']' && s[end] != '}' && s[end] > ' ' {
			end++
		}
	}
	return s[:end], s[end:]
}

// stringEnd returns where the JSON string that starts at s[i] ends.
func stringEnd(s string, i int) int {
	for from := i + 1; ; {
		quote := strings.IndexByte(s[from:], '"')
		if quote < 0 {
			return len(s)
		}
		quote += from
		escapes := quote
		for escapes > from && s[escapes-1] == '\\' {
			escapes--
		}
		if (quote-escapes)%2 == 0 {
			return quote + 1
		}
		from = quote + 1
	}
}

func skipSpace(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\n' || s[0] == '\t' || s[0] == '\r') {
		s = s[1:]
	}
	return s
}

// stringText returns what a JSON string says.
func stringText(quoted string) string {
	if len(quoted) >= 2 && strings.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	var text string
	if json.Unmarshal([]byte(quoted), &text) != nil {
		return ""
	}
	return text
}
