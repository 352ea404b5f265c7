package client

import (
	"context"
	"net/http"

	"github.com/emberd/emberd/api/rest"
)

// Inspect returns the sandbox id and what confines it on its host.
func (c *Client) Inspect(ctx context.Context, id string) (rest.Inspection, error) {
	var in rest.Inspection
	err := c.do(ctx, http.MethodGet, sandboxPath(id)+"/inspect", nil, &in)
	return in, err
}
