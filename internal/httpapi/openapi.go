package httpapi

import (
	"encoding/json"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
)

// apiVersion is the version of the interface, not of emberd: it changes when a
// client that worked could stop working.
const apiVersion = "1"

const description = `Runs unvetted code in Firecracker microVMs.

Requests need no content type. Answers are JSON unless their operation says
otherwise, and errors always are. A key is asked for where the daemon has some, except on its Unix socket.

Besides the errors named at each operation, any request can be answered with 403
or 421, when a web page may have caused it, with 414 when its query is longer
than 4 KiB, and one with a body with 408, when that is not sent in time. What is
no HTTP, or has more than 16 KiB of headers, gets a plain text and an end of the
connection.`

// keyScheme is the name of the API keys in the document.
const keyScheme = "key"

const jsonType = "application/json"

// openAPI returns the OpenAPI 3.1 document of routes as JSON. The schemas come
// from the tags of the Go types, and from what this daemon grants.
func openAPI(routes []route, g grants) []byte {
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	doc := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title:       "emberd",
			Version:     apiVersion,
			Description: description,
			License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
		},
		Components: &huma.Components{Schemas: schemas, SecuritySchemes: map[string]*huma.SecurityScheme{
			keyScheme: {Type: "http", Scheme: "bearer", Description: "A key of `emberctl key create`."},
		}},
		Security: []map[string][]string{{}, {keyScheme: {}}},
	}
	for _, rt := range routes {
		doc.AddOperation(operation(rt, schemas))
	}
	g.state(schemas.Map())
	for name, s := range schemas.Map() {
		if strings.HasSuffix(name, "Request") {
			acceptNull(s)
			continue
		}
		// The daemon refuses fields it does not know; a client must not, as
		// answers may gain some.
		s.AdditionalProperties = nil
	}
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		panic(err) // made of constants: it cannot fail in one build and not in the tests
	}
	return append(b, '\n')
}

// acceptNull has the schema of a request say that null counts as absent.
func acceptNull(s *huma.Schema) {
	for name, property := range s.Properties {
		switch {
		case slices.Contains(s.Required, name):
		case property.Ref != "":
			s.Properties[name] = &huma.Schema{
				Description: property.Description, AnyOf: []*huma.Schema{{Ref: property.Ref}, {Type: "null"}},
			}
		default:
			property.Nullable = true
		}
	}
}

// examples are those of path parameters.
var examples = map[string]string{"id": "sb_a1b2c3d4e5f6", "ex": "ex_0123456789ab"}

var pathParam = regexp.MustCompile(`\{(\w+)\}`)

// operation describes one route.
func operation(rt route, schemas huma.Registry) *huma.Operation {
	op := &huma.Operation{
		Method: rt.method, Path: rt.path, OperationID: rt.id,
		Summary: rt.summary, Description: rt.doc,
		Responses: map[string]*huma.Response{strconv.Itoa(rt.status): {
			Description: http.StatusText(rt.status),
			Content:     content(schemas, rt.out, rt.media),
		}},
	}
	for _, m := range pathParam.FindAllStringSubmatch(rt.path, -1) {
		op.Parameters = append(op.Parameters, &huma.Param{
			Name: m[1], In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString},
			Example: examples[m[1]],
		})
	}
	if rt.once {
		op.Parameters = append(op.Parameters, onceParam())
	}
	for _, p := range rt.query {
		p.In = "query"
		op.Parameters = append(op.Parameters, p)
	}
	if rt.in != nil {
		op.RequestBody = &huma.RequestBody{Required: !rt.inOptional, Content: content(schemas, rt.in, "")}
	}
	if rt.inType != "" {
		op.RequestBody = &huma.RequestBody{Required: !rt.inOptional, Content: content(schemas, nil, rt.inType)}
	}
	codes := append(slices.Clone(rt.errors), sandbox.CodeInternal)
	if rt.once {
		codes = append(codes, sandbox.CodeKeyReused)
	}
	if rt.open {
		op.Security = []map[string][]string{}
	} else {
		codes = append(codes, sandbox.CodeUnauthorized, sandbox.CodeStarting, sandbox.CodeRate)
	}
	// Several codes may share a status: the description names them all.
	for _, code := range codes {
		status := strconv.Itoa(statusOf(code))
		if r := op.Responses[status]; r != nil {
			r.Description += ", " + string(code)
			continue
		}
		op.Responses[status] = &huma.Response{
			Description: "code " + string(code),
			Content:     content(schemas, rest.Error{}, ""),
		}
	}
	op.Responses["default"] = &huma.Response{Description: "what any request can end in", Content: content(schemas, rest.Error{}, "")}
	for _, code := range codes {
		if retryAfter(code) != "" {
			op.Responses[strconv.Itoa(statusOf(code))].Headers = map[string]*huma.Param{"Retry-After": {
				Description: "Seconds to wait, when there is no room, there were too many requests, or emberd is starting or shutting down.",
				Schema:      &huma.Schema{Type: huma.TypeInteger},
			}}
		}
	}
	return op
}

// content is a JSON body of v's type, text of another media type, either, or
// nothing.
func content(schemas huma.Registry, v any, media string) map[string]*huma.MediaType {
	var types map[string]*huma.MediaType
	if v != nil {
		t := reflect.TypeOf(v)
		types = map[string]*huma.MediaType{jsonType: {Schema: schemas.Schema(t, true, t.Name())}}
	}
	if media != "" {
		if types == nil {
			types = map[string]*huma.MediaType{}
		}
		types[media] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}}
	}
	return types
}
