package agent_test

import (
	"net"
	"testing"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/agent/agenttest"
)

// The host passes on which limits a program ran into, and of one that could not
// be started as well.
func TestHit(t *testing.T) {
	tests := map[string]struct {
		said *agentv1.Exit
		want agent.Exit
	}{
		"none":      {&agentv1.Exit{Code: 1}, agent.Exit{Code: 1}},
		"none, too": {&agentv1.Exit{Code: 1, Hit: &agentv1.LimitsHit{}}, agent.Exit{Code: 1}},
		"memory": {
			&agentv1.Exit{Code: 137, Signal: 9, Hit: &agentv1.LimitsHit{Memory: true}},
			agent.Exit{Code: 137, Signal: 9, Hit: agent.Hit{Memory: true}},
		},
		"disk and pids": {
			&agentv1.Exit{Hit: &agentv1.LimitsHit{Disk: true, Pids: true}},
			agent.Exit{Hit: agent.Hit{Disk: true, PIDs: true}},
		},
		"not started": {
			&agentv1.Exit{StartError: "too many", Hit: &agentv1.LimitsHit{Pids: true}},
			agent.Exit{StartError: "too many", Hit: agent.Hit{PIDs: true}},
		},
	}
	for name, tt := range tests {
		s := open(t, agenttest.Config{Handle: agenttest.HelloThen(func(stream net.Conn) {
			_ = agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameExit, tt.said)
		})})
		got, err := s.Exec(t.Context(), agent.Command{Code: "x"}, agent.Stdio{})
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, tt.want)
		}
	}
}
