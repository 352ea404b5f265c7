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
	"strings"
	"time"
	"unicode/utf8"

	"github.com/emberd/emberd/internal/sandbox"
)

// defaultBodyTimeout is how long a client may take to send a body.
const defaultBodyTimeout = 20 * time.Second

// errBody is the answer to a body that is no JSON object of the right types.
func errBody(cause error) error {
	return &sandbox.Error{Code: sandbox.CodeInvalid, Message: "invalid request body", Cause: cause}
}

// readBody returns the body of r without the white space around it. One of more
// than limit bytes is an error, whatever length it claims to have.
func (a *api) readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	// The deadline must not outlast the body: net/http goes on reading, to
	// notice a client that goes away while its program runs.
	deadline := http.NewResponseController(w)
	_ = deadline.SetReadDeadline(time.Now().Add(a.bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	_ = deadline.SetReadDeadline(time.Time{})
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, &sandbox.Error{Code: sandbox.CodeTooLarge, Message: fmt.Sprintf("request body too large: the limit is %d bytes", limit)}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, &httpError{http.StatusRequestTimeout, sandbox.Invalid("request body took too long")}
	}
	if err != nil {
		return nil, errBody(err)
	}
	return bytes.TrimSpace(body), nil
}

// decode fills the struct that to points to from a JSON object. It is stricter
// than encoding/json, because a misspelt or repeated field means that the
// client would not get what it asked for: names are compared exactly, each may
// appear once, and those without omitempty must. A null counts as absent.
func decode(data []byte, to any) error {
	// encoding/json would quietly put U+FFFD in the place of broken UTF-8, and
	// so run another program than the one that was sent.
	if !utf8.Valid(data) {
		return errBody(errors.New("not UTF-8"))
	}
	values, err := object(data)
	if err != nil {
		return err
	}
	v := reflect.ValueOf(to).Elem()
	for _, field := range reflect.VisibleFields(v.Type()) {
		if field.Anonymous {
			continue // its fields are visible themselves
		}
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		raw, ok := values[name]
		delete(values, name)
		if !ok || string(raw) == "null" {
			if options != "omitempty" {
				return sandbox.Invalid("missing field %q", name)
			}
			continue
		}
		if err := json.Unmarshal(raw, v.FieldByIndex(field.Index).Addr().Interface()); err != nil {
			return errBody(err)
		}
	}
	for name := range values {
		return sandbox.Invalid("unknown field %q", name)
	}
	return nil
}

// object splits a JSON object into its fields.
func object(data []byte) (map[string]json.RawMessage, error) {
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
