package caddyoauth

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/getkin/kin-openapi/openapi3"
)

// openAPITypes are the types of the bodies that the document names, by the name that it gives them.
// Those of their fields have their own names. What is sent needs no member but those of openAPIRequired.
var openAPITypes = map[string]any{
	"Client": shownClient{}, "Secret": shownSecret{}, "Use": shownUse{}, "ClientPage": listedClients{}, "ClientSettings": Client{}, "SecretRequest": secretRequest{},
	"Error": struct {
		Error string `json:"error"`
	}{},
	"Export": exportedClients{}, "ExportRequest": exportRequest{}, "ImportRequest": importRequest{}, "ImportAnswer": importAnswer{},
	"Explanation": explanation{}, "ExplainRequest": explainRequest{}, "ForgetRequest": forgetRequest{}, "Health": health{},
	"KeyList": listedKeys{}, "Key": listedKey{}, "RotateRequest": rotateRequest{}, "RotateAnswer": rotatedKeys{},
	"RevokeRequest": revokeRequest{}, "RevokeAnswer": revokeAnswer{}, "RouteTable": routeTable{}, "Live": live{}, "State": gatewayState{},
}

// openAPIRequired are the members that a body must have that is sent.
var openAPIRequired = map[string][]string{
	"ClientSettings": nil, "SecretRequest": nil, "ExportRequest": nil, "ImportRequest": {"version", "clients"},
	"ExplainRequest": {"method", "url"}, "ForgetRequest": nil, "RotateRequest": nil, "RevokeRequest": nil,
}

// The document describes what is served: each path and no other, with the members that the types have, and
// what their comments say. With -update, the schemas in it are written anew.
func TestOpenAPI(t *testing.T) {
	var document map[string]any
	if err := json.Unmarshal(openAPI, &document); err != nil {
		t.Fatal(err)
	}
	components := document["components"].(map[string]any)
	schemas := openAPISchemas(t)
	made, err := json.Marshal(schemas)
	if err != nil {
		t.Fatal(err)
	}
	if there, err := json.Marshal(components["schemas"]); err != nil || !bytes.Equal(there, made) {
		if update := flag.Lookup("update"); update == nil || update.Value.String() != "true" {
			t.Fatalf("its schemas are not those of the types; run go test ./caddyoauth -run TestOpenAPI -update")
		}
		components["schemas"] = schemas
		writeOpenAPI(t, document)
	}

	text, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := loaded.Validate(t.Context()); err != nil {
		t.Error(err)
	}
	served := make(map[string]bool)
	for _, route := range (adminAPI{}).Routes() {
		served[strings.TrimSuffix(route.Pattern, "{$}")] = false
	}
	for path := range loaded.Paths.Map() {
		pattern, _, _ := strings.Cut(path, "{")
		if _, ok := served[pattern]; !ok {
			t.Errorf("it has %s, which is not served", path)
		}
		served[pattern] = true
	}
	for pattern, described := range served {
		if !described {
			t.Errorf("it doesn't have %s", pattern)
		}
	}
	used := regexp.MustCompile(`"#/components/schemas/(\w+)"`).FindAllSubmatch(text, -1)
	for name := range schemas {
		if !slices.ContainsFunc(used, func(m [][]byte) bool { return string(m[1]) == name }) {
			t.Errorf("nothing in it uses %s", name)
		}
	}
}

// writeOpenAPI writes the document, its members in the order of their names.
func writeOpenAPI(t *testing.T, document map[string]any) {
	t.Helper()
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "\t")
	if err := encoder.Encode(document); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("openapi.json", text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// openAPISchemas makes the schemas of openAPITypes and of the types in them.
func openAPISchemas(t *testing.T) map[string]any {
	t.Helper()
	m := schemaMaker{comments: commentsOf(t), names: make(map[reflect.Type]string), schemas: make(map[string]any)}
	for name, value := range openAPITypes {
		m.names[reflect.TypeOf(value)] = name
	}
	for _, name := range slices.Sorted(maps.Keys(openAPITypes)) {
		of := reflect.TypeOf(openAPITypes[name])
		schema := m.object(of)
		if _, sent := openAPIRequired[name]; sent {
			delete(schema, "required")
			if required := openAPIRequired[name]; required != nil {
				schema["required"] = required
			}
		}
		m.schemas[name] = schema
	}
	return m.schemas
}

type schemaMaker struct {
	comments map[string]string // by type, or type and field
	names    map[reflect.Type]string
	schemas  map[string]any
}

// object returns the schema of a struct.
func (m *schemaMaker) object(of reflect.Type) map[string]any {
	properties, required := make(map[string]any), []string{}
	m.members(of, properties, &required)
	schema := map[string]any{"type": "object"}
	if len(properties) > 0 {
		schema["properties"] = properties
	}
	if text := m.comments[of.Name()]; text != "" {
		schema["description"] = renamed(text, of.Name(), m.names[of])
	}
	if len(required) > 0 {
		slices.Sort(required)
		schema["required"] = required
	}
	return schema
}

func (m *schemaMaker) members(of reflect.Type, properties map[string]any, required *[]string) {
	for field := range of.Fields() {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case field.Anonymous && name == "":
			m.members(field.Type, properties, required)
		case !field.IsExported() || name == "-":
		default:
			text := renamed(m.comments[of.Name()+"."+field.Name], field.Name, "`"+name+"`")
			properties[name] = described(m.schema(field.Type), text)
			if options == "" {
				*required = append(*required, name)
			}
		}
	}
}

// renamed returns a comment that begins with a name of Go with the name that the document has.
func renamed(comment, name, now string) string {
	if rest, ok := strings.CutPrefix(comment, name+" "); ok {
		return now + " " + rest
	}
	return comment
}

// described adds a description to a schema. One that is elsewhere has room for none beside it.
func described(schema map[string]any, text string) map[string]any {
	switch {
	case text == "":
		return schema
	case schema["$ref"] != nil:
		return map[string]any{"allOf": []any{schema}, "description": text}
	}
	schema["description"] = text
	return schema
}

func (m *schemaMaker) schema(of reflect.Type) map[string]any {
	switch of {
	case reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case reflect.TypeFor[caddy.Duration]():
		return map[string]any{"oneOf": []any{map[string]any{"type": "integer"}, map[string]any{"type": "string", "example": "15m"}}}
	case reflect.TypeFor[json.RawMessage]():
		return map[string]any{"type": "object"}
	}
	switch of.Kind() {
	case reflect.Pointer:
		return m.schema(of.Elem())
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return map[string]any{"type": "integer"}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Slice, reflect.Array:
		return map[string]any{"type": "array", "items": m.schema(of.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": m.schema(of.Elem())}
	case reflect.Struct:
		name := m.names[of]
		if name == "" {
			name = strings.ToUpper(of.Name()[:1]) + of.Name()[1:]
			m.names[of] = name
			m.schemas[name] = nil // it may have itself in it
			m.schemas[name] = m.object(of)
		}
		return map[string]any{"$ref": "#/components/schemas/" + name}
	}
	panic("no schema for " + of.String())
}

// commentsOf returns the comments of this package's types and of their fields, each on a line.
func commentsOf(t *testing.T) map[string]string {
	t.Helper()
	comments := make(map[string]string)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, declared := range parsed.Decls {
			types, ok := declared.(*ast.GenDecl)
			if !ok || types.Tok != token.TYPE {
				continue
			}
			for _, spec := range types.Specs {
				named := spec.(*ast.TypeSpec)
				fields, ok := named.Type.(*ast.StructType)
				if !ok {
					continue
				}
				comments[named.Name.Name] = line(cmp.Or(named.Doc, types.Doc).Text())
				for _, field := range fields.Fields.List {
					for _, name := range field.Names {
						comments[named.Name.Name+"."+name.Name] = line(cmp.Or(field.Doc.Text(), field.Comment.Text()))
					}
				}
			}
		}
	}
	return comments
}

func line(comment string) string { return strings.Join(strings.Fields(comment), " ") }
