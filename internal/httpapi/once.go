package httpapi

import (
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
)

// once returns whether a request with that body is to be carried out once: if it
// has a key.
func once(r *http.Request, body []byte) (sandbox.Once, error) {
	keys := r.Header.Values(rest.OnceHeader)
	if len(keys) == 0 {
		return sandbox.Once{}, nil
	}
	if len(keys) > 1 {
		return sandbox.Once{}, sandbox.Invalid("%s is given twice", rest.OnceHeader)
	}
	key, err := sandbox.ParseOnceKey(keys[0])
	if err != nil {
		return sandbox.Once{}, err
	}
	return sandbox.NewOnce(tenant(r), key, r.Pattern, body), nil
}

// onceParam describes the key.
func onceParam() *huma.Param {
	least, most := 1, sandbox.MaxOnceKey
	return &huma.Param{
		Name: rest.OnceHeader, In: "header",
		Schema:      &huma.Schema{Type: huma.TypeString, MinLength: &least, MaxLength: &most, Pattern: "^[!-~]*$"},
		Description: "A name for the request, so that it can be sent again: it is carried out once, and answered like the first time. With another body the answer is 422. Each API key has names of its own.",
	}
}
