package introspect

import (
	"bytes"
	"encoding/json"
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
// What is in the object may be part of a copy of data.
func decodeObject(data []byte) (map[string]any, bool) {
	object, _, ok := readObject(data)
	return object, ok
}

// readObject is decodeObject, and returns the text of the object. All texts in the object are parts of
// it or stand alone, so whoever keeps both keeps no more than the one.
func readObject(data []byte) (object map[string]any, text string, ok bool) {
	if !utf8.Valid(data) || !json.Valid(data) || halfEscaped(data) {
		return nil, "", false
	}
	text = string(bytes.TrimSpace(data))
	if text[0] != '{' { // JSON is not empty
		return nil, "", false
	}
	object = make(map[string]any, 8)
	_, ok = decodeMembers(text, 0, func(name string, value any) bool {
		_, twice := object[name]
		object[name] = value
		return !twice
	})
	return object, text, ok
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

// decodeMembers goes through the members of the object that text, which is valid JSON, begins with, and
// returns what is behind the object. It calls member for each, until that returns false.
func decodeMembers(text string, depth int, member func(name string, value any) bool) (rest string, ok bool) {
	rest = skipSpace(text[1:])
	if rest != "" && rest[0] == '}' {
		return rest[1:], true
	}
	for rest != "" {
		var quoted string
		quoted, rest = cutJSON(rest)
		rest, _ = strings.CutPrefix(skipSpace(rest), ":")
		value, after, ok := decodeValue(rest, depth+1)
		if !ok || !member(stringText(quoted), value) {
			return "", false
		}
		if rest, ok = strings.CutPrefix(skipSpace(after), ","); !ok {
			return strings.CutPrefix(rest, "}")
		}
		rest = skipSpace(rest)
	}
	return "", false
}

// decodeValue decodes the value that text, which is valid JSON, begins with, and returns what is behind it.
// It reads everything in it, and builds lists of scalars in the outermost object.
func decodeValue(text string, depth int) (value any, rest string, ok bool) {
	text = skipSpace(text)
	if text == "" || depth > maxDepth {
		return nil, "", false
	}
	switch text[0] {
	case '{':
		names := make(map[string]struct{}) // only these matter here
		rest, ok = decodeMembers(text, depth, func(name string, _ any) bool {
			_, twice := names[name]
			names[name] = struct{}{}
			return !twice
		})
		return nested{}, rest, ok
	case '[':
		return decodeList(text, depth)
	}
	quoted, rest := cutJSON(text)
	switch quoted[0] {
	case '"':
		return stringText(quoted), rest, true
	case 't', 'f':
		return quoted == "true", rest, true
	case 'n':
		return nil, rest, true
	}
	return json.Number(quoted), rest, true
}

// decodeList is decodeValue for a list.
func decodeList(text string, depth int) (value any, rest string, ok bool) {
	list, scalars := []any{}, depth == 1
	rest = skipSpace(text[1:])
	if after, empty := strings.CutPrefix(rest, "]"); empty {
		rest = after
	} else {
		for more := true; more; {
			var element any
			if element, rest, ok = decodeValue(rest, depth+1); !ok {
				return nil, "", false
			}
			if _, deep := element.(nested); deep {
				list, scalars = nil, false
			}
			if scalars {
				list = append(list, element)
			}
			rest, more = strings.CutPrefix(skipSpace(rest), ",")
		}
		if rest, ok = strings.CutPrefix(rest, "]"); !ok {
			return nil, "", false
		}
	}
	if !scalars {
		return nested{}, rest, true
	}
	return list, rest, true
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
