package agent_test

import (
	"context"
	"log/slog"
	"net"
	"testing"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/agent/agenttest"
)

func TestProofOfTheSecret(t *testing.T) {
	secret, other := agent.NewSecret(), agent.NewSecret()
	for _, tt := range []struct {
		name       string
		arm, asked []byte
		want       bool
	}{
		{"the one it was armed with", secret, secret, true},
		{"another", other, secret, false},
		{"armed without one", nil, secret, false},
		{"none to be proven", secret, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, agenttest.Config{})
			if err := s.Arm(t.Context(), agent.Identity{Hostname: "vm", DiskMiB: 1, PIDs: 1, Secret: tt.arm}); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := s.Prove(t.Context(), tt.asked); (err == nil) != tt.want {
					t.Errorf("proven: %v, want %v", err, tt.want)
				}
			}
		})
	}
}

func TestAgentThatWasNeverArmedProvesNothing(t *testing.T) {
	if err := open(t, agenttest.Config{}).Prove(t.Context(), agent.NewSecret()); err == nil {
		t.Error("it did")
	}
}

// What an agent answered once is of no use to whoever listened.
func TestProofCannotBeReplayed(t *testing.T) {
	secret := agent.NewSecret()
	old := agentv1.Prove(secret, make([]byte, agentv1.MaxChallenge))
	host, guest := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = agenttest.ServeConn(ctx, guest, agenttest.Config{Handle: func(stream net.Conn) {
			_ = agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameHello,
				&agentv1.HelloReply{ProtocolVersion: agentv1.ProtocolVersion, Proof: old})
			agenttest.Silent(stream)
		}})
	}()
	defer func() { cancel(); <-served }()
	s, err := agent.Open(t.Context(), host, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.Prove(t.Context(), secret); err == nil {
		t.Error("it was taken")
	}
}
