package agent

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// errStranger is an agent that does not know what it was told when its VM was
// armed.
var errStranger = errors.New("the agent does not know its secret")

// NewSecret returns a secret for [Identity].
func NewSecret() []byte { return random(agentv1.SecretSize) }

// Prove returns an error unless the agent knows the secret that its VM was armed
// with. It is for a session with a VM that somebody else armed.
func (s *Session) Prove(ctx context.Context, secret []byte) error {
	if len(secret) != agentv1.SecretSize {
		return fmt.Errorf("a secret of %d bytes", len(secret))
	}
	stream, err := s.OpenStream(ctx)
	if err != nil {
		return err
	}
	challenge := random(agentv1.MaxChallenge)
	reply, err := hello(ctx, stream, challenge)
	if err != nil {
		return fmt.Errorf("challenge the agent: %w", err)
	}
	if !hmac.Equal(reply.GetProof(), agentv1.Prove(secret, challenge)) {
		return errStranger
	}
	return nil
}
