package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/emberd/emberd/internal/sandbox"
)

// maxDepth is how deep a body may be nested.
const maxDepth = 32

// errBody is the answer to a body that is no JSON object of the right types.
func errBody(cause error) error {
	return &sandbox.Error{Code: sandbox.CodeInvalid, Message: "invalid request body", Cause: cause}
}

// readBody returns the body of r without the white space around it. One of more
// than limit bytes is an error, whatever length it claims to have.
func (a *API) readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := a.readBytes(w, r, limit)
	return bytes.TrimSpace(body), err
}

// readBytes returns the body of r as it is.
func (a *API) readBytes(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	tooLarge := &sandbox.Error{Code: sandbox.CodeTooLarge, Message: fmt.Sprintf("request body too large: the limit is %d bytes", limit)}
	conn := http.NewResponseController(w)
	if r.ContentLength > limit {
		giveUp(w, conn)
		return nil, tooLarge
	}
	body, err := io.ReadAll(&paced{
		r: http.MaxBytesReader(w, r.Body, limit), request: r, conn: conn,
		deadline: time.Now().Add(a.bodyGrace),
	})
	if err != nil {
		giveUp(w, conn)
	} else {
		// The deadline must not outlast the body: net/http goes on reading, to
		// notice a client that goes away while its program runs.
		_ = conn.SetReadDeadline(time.Time{})
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, &httpError{http.StatusRequestTimeout, sandbox.Invalid("request body took too long")}
	}
	if err != nil {
		return nil, errBody(err)
	}
	return body, nil
}

// giveUp has the connection closed after the answer: what is left of a body is
// not waited for.
func giveUp(w http.ResponseWriter, conn *http.ResponseController) {
	w.Header().Set("Connection", "close")
	_ = conn.SetReadDeadline(time.Now())
}

// paced reads the body of a request that has to come at bodyRate.
type paced struct {
	r        io.Reader
	request  *http.Request
	conn     *http.ResponseController
	deadline time.Time
}

func (p *paced) Read(b []byte) (int, error) {
	_ = p.conn.SetReadDeadline(p.deadline)
	// A key that is revoked sets a deadline too, after it ended the context.
	if revoked(p.request) {
		return 0, errRevoked
	}
	n, err := p.r.Read(b)
	p.deadline = p.deadline.Add(time.Duration(n) * time.Second / bodyRate)
	return n, err
}

// shape is what decode has to know of a struct. It takes longer to find out than
// to decode a request.
type shape []member

// member is one field of a struct, as it is in JSON.
type member struct {
	name     string
	required bool
	text     bool // bytes, which are a string in JSON
	index    []int
}

// shapeOf returns the shape of T.
func shapeOf[T any]() shape {
	var s shape
	for _, f := range fields(reflect.TypeFor[T]()) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		s = append(s, member{name, options != "omitempty", f.Type.Kind() == reflect.Slice, f.Index})
	}
	return s
}

func (s shape) knows(name string) bool {
	return slices.ContainsFunc(s, func(m member) bool { return m.name == name })
}

// decode fills the struct that to points to from a JSON object. It is stricter
// than encoding/json, because a misspelt or repeated field means that the
// client would not get what it asked for: names are compared exactly, each may
// appear once, and those without omitempty must. A null counts as absent. s is the
// shape of T.
func decode[T any](data []byte, s shape, to *T) error {
	// encoding/json would quietly put U+FFFD in the place of broken UTF-8, and
	// so run another program than the one that was sent.
	if !utf8.Valid(data) {
		return errBody(errors.New("not UTF-8"))
	}
	values, err := object(data, s)
	if err != nil {
		return err
	}
	v := reflect.ValueOf(to).Elem()
	for _, m := range s {
		raw, ok := values[m.name]
		if !ok || string(raw) == "null" {
			if m.required {
				return sandbox.Invalid("missing field %q", m.name)
			}
			continue
		}
		// encoding/json would take an array of numbers for bytes, too.
		if m.text && raw[0] != '"' {
			return errBody(fmt.Errorf("%s is not a string", m.name))
		}
		if err := json.Unmarshal(raw, v.FieldByIndex(m.index).Addr().Interface()); err != nil {
			return errBody(err)
		}
	}
	return nil
}

// fields returns the fields of the struct t and of those that are embedded in
// it.
func fields(t reflect.Type) []reflect.StructField {
	return slices.DeleteFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool { return f.Anonymous })
}

// object splits a JSON object into its fields, which are some of those in known.
// It stops at the first that is not, so that a body of many fields takes no
// memory.
func object(data []byte, known shape) (map[string]json.RawMessage, error) {
	if tooDeep(data) {
		return nil, sandbox.Invalid("the request body is nested too deeply")
	}
	if !json.Valid(data) || data[0] != '{' {
		return nil, errBody(errors.New("not a JSON object"))
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if _, err := dec.Token(); err != nil {
		return nil, errBody(err)
	}
	values := make(map[string]json.RawMessage)
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, errBody(err)
		}
		name, _ := key.(string)
		if !known.knows(name) {
			return nil, sandbox.Invalid("unknown field %q", name)
		}
		if _, ok := values[name]; ok {
			return nil, sandbox.Invalid("field %q appears twice", name)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, errBody(err)
		}
		values[name] = value
	}
	return values, nil
}

// tooDeep reports whether JSON is nested more than maxDepth deep. Of what is no
// JSON it may report anything.
func tooDeep(data []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}
