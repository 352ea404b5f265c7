package client

import (
	"context"
	"net/http"

	"github.com/emberd/emberd/api/rest"
)

// WithEgress asks for a sandbox that has a network interface and reaches what
// policy allows. Without it a sandbox has none.
func WithEgress(policy rest.EgressRequest) CreateOption {
	return func(r *rest.CreateRequest) { r.Egress = &policy }
}

// SetEgress has the sandbox id reach what policy allows and nothing else. It
// returns the policy as it is in force then. A sandbox that was made without egress
// has no interface, and the error is an [*Error] with the code "no_egress".
func (c *Client) SetEgress(ctx context.Context, id string, policy rest.EgressRequest) (rest.Egress, error) {
	var set rest.Egress
	err := c.do(ctx, http.MethodPut, sandboxPath(id)+"/egress", policy, &set)
	return set, err
}

// Egress returns what the sandbox id may reach.
func (c *Client) Egress(ctx context.Context, id string) (rest.Egress, error) {
	var policy rest.Egress
	err := c.do(ctx, http.MethodGet, sandboxPath(id)+"/egress", nil, &policy)
	return policy, err
}

// EgressDenials returns what was refused to the sandbox id so far.
func (c *Client) EgressDenials(ctx context.Context, id string) ([]rest.EgressDenial, error) {
	var list rest.EgressDenialList
	err := c.do(ctx, http.MethodGet, sandboxPath(id)+"/egress/denials", nil, &list)
	return list.Denials, err
}
