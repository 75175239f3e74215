package introspect

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// Objects are decoded as encoding/json does it, token by token.
func FuzzObject(f *testing.F) {
	for _, seed := range []string{
		"", " ", "null", "7", `"a"`, "[]", "{}", " {\t}\r\n", "{}{}", `{"a":1`, `{"a":1,}`, `{"a" : 1.5e+09 , "b":-0,"c":"\u00fc\n\\\"" ,"":null}`,
		`{"a":true,"b":false,"b":null}`, `{"a":{"b":1,"c":{"b":[{"b":1}]}}}`, `{"a":{"b":1,"\u0062":1}}`, `{"a":[{"b":1,"b":1}]}`,
		`{"a":[],"b":[1,"two",true,null],"c":[1,[]],"d":[[1],2],"e":[{},1],"f":[ ]}`, "{\"a\":\"\xff\"}", `{"a":"\ud800"}`, `{"\ud83d\ude00":"\ud83d\ude00"}`,
		`{"a":` + strings.Repeat("[", 31) + "1" + strings.Repeat("]", 31) + "}", `{"a":` + strings.Repeat("[", 32) + "1" + strings.Repeat("]", 32) + "}",
		`{"a":` + strings.Repeat(`{"a":`, 31) + "1" + strings.Repeat("}", 32), `{"a":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + "}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, text, ok := readObject(data)
		want, wanted := objectByTokens(data)
		if ok != wanted || ok && (len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) || text != string(bytes.TrimSpace(data))) {
			t.Errorf("%q: %#v of %q, %t; want %#v, %t", data, got, text, ok, want, wanted)
		}
	})
}

// objectByTokens is decodeObject by means of encoding/json alone.
func objectByTokens(data []byte) (map[string]any, bool) {
	if !utf8.Valid(data) || !json.Valid(data) || halfEscaped(data) {
		return nil, false
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	value, err := valueByTokens(decoder, 0)
	object, ok := value.(map[string]any)
	return object, ok && err == nil
}

func valueByTokens(decoder *json.Decoder, depth int) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, errors.New("too deep")
	}
	switch token {
	case json.Delim('{'):
		object := make(map[string]any)
		for decoder.More() {
			name, err := decoder.Token()
			if err != nil {
				return nil, err
			}
			if _, twice := object[name.(string)]; twice {
				return nil, errors.New("two members of one name")
			}
			if object[name.(string)], err = valueByTokens(decoder, depth+1); err != nil {
				return nil, err
			}
		}
		if _, err := decoder.Token(); err != nil || depth > 0 {
			return nested{}, err
		}
		return object, nil
	case json.Delim('['):
		list, scalars := []any{}, true
		for decoder.More() {
			value, err := valueByTokens(decoder, depth+1)
			if err != nil {
				return nil, err
			}
			if _, deep := value.(nested); deep {
				scalars = false
			}
			list = append(list, value)
		}
		if _, err := decoder.Token(); err != nil || !scalars || depth != 1 {
			return nested{}, err
		}
		return list, nil
	}
	return token, nil
}
