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
	"strconv"
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
	// within is the shape of a field that is a struct, or a list of structs.
	within shape
	// most is how many there may be in a list.
	most int
}

// shapeOf returns the shape of T.
func shapeOf[T any]() shape { return shapeOfType(reflect.TypeFor[T]()) }

func shapeOfType(t reflect.Type) shape {
	var s shape
	for _, f := range fields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		m := member{name: name, required: options != "omitempty", index: f.Index}
		element := f.Type
		if f.Type.Kind() == reflect.Slice {
			element = f.Type.Elem()
			m.text = element.Kind() == reflect.Uint8
			m.most, _ = strconv.Atoi(f.Tag.Get("maxItems"))
		}
		if element.Kind() == reflect.Pointer {
			element = element.Elem()
		}
		if element.Kind() == reflect.Struct {
			m.within = shapeOfType(element)
		}
		s = append(s, m)
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
	if tooDeep(data) {
		return sandbox.Invalid("the request body is nested too deeply")
	}
	return decodeObject(data, "", s, reflect.ValueOf(to).Elem())
}

// decodeObject fills the struct v from a JSON object whose place in the body path
// says, with a dot behind it.
func decodeObject(data []byte, path string, s shape, v reflect.Value) error {
	values, err := object(data, path, s)
	if err != nil {
		return err
	}
	for _, m := range s {
		raw, ok := values[m.name]
		if !ok || string(raw) == "null" {
			if m.required {
				return sandbox.Invalid("missing field %q", path+m.name)
			}
			continue
		}
		// encoding/json would take an array of numbers for bytes, too.
		if m.text && raw[0] != '"' {
			return errBody(fmt.Errorf("%s is not a string", m.name))
		}
		field := v.FieldByIndex(m.index)
		switch {
		case field.Kind() == reflect.Slice && !m.text:
			err = decodeList(raw, path+m.name, m, field)
		case m.within != nil:
			if field.Kind() == reflect.Pointer {
				field.Set(reflect.New(field.Type().Elem()))
				field = field.Elem()
			}
			err = decodeObject(raw, path+m.name+".", m.within, field)
		default:
			err = decodeValue(raw, field)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func decodeValue(raw []byte, v reflect.Value) error {
	if err := json.Unmarshal(raw, v.Addr().Interface()); err != nil {
		return errBody(err)
	}
	return nil
}

// decodeList fills the slice v from a JSON array, in which a null is no value. It
// stops when there are too many.
func decodeList(data []byte, path string, m member, v reflect.Value) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if open, err := dec.Token(); err != nil || open != json.Delim('[') {
		return errBody(fmt.Errorf("%s is not an array", path))
	}
	list := reflect.MakeSlice(v.Type(), 0, 0)
	for i := 0; dec.More(); i++ {
		if m.most > 0 && i == m.most {
			return sandbox.Invalid("%q has more than %d elements", path, m.most)
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return errBody(err)
		}
		if string(raw) == "null" {
			return errBody(fmt.Errorf("%s[%d] is null", path, i))
		}
		element := reflect.New(v.Type().Elem()).Elem()
		var err error
		if m.within != nil {
			err = decodeObject(raw, fmt.Sprintf("%s[%d].", path, i), m.within, element)
		} else {
			err = decodeValue(raw, element)
		}
		if err != nil {
			return err
		}
		list = reflect.Append(list, element)
	}
	v.Set(list)
	return nil
}

// fields returns the fields of the struct t and of those that are embedded in
// it.
func fields(t reflect.Type) []reflect.StructField {
	return slices.DeleteFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool { return f.Anonymous })
}

// object splits a JSON object at path into its fields, which are some of those in
// known.
// It stops at the first that is not, so that a body of many fields takes no
// memory.
func object(data []byte, path string, known shape) (map[string]json.RawMessage, error) {
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
			return nil, sandbox.Invalid("unknown field %q", path+name)
		}
		if _, ok := values[name]; ok {
			return nil, sandbox.Invalid("field %q appears twice", path+name)
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
