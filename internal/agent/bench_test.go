package agent_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/agent/agenttest"
)

// BenchmarkExec runs programs that end at once, and one that writes a lot, with
// and without an id: what the protocol and both of its sides cost, without a VM.
func BenchmarkExec(b *testing.B) {
	for _, bb := range []struct {
		name, code string
		stdin      []byte
	}{
		{"nothing", ":", nil},
		{"line", "echo 42", nil},
		{"input", "read x", []byte("42\n")},
		{"16 MiB", "head -c 16777216 /dev/zero", nil},
	} {
		for name, id := range map[string]string{"": "", ", kept": "ex_%012x"} {
			b.Run(bb.name+name, func(b *testing.B) {
				s, end, err := agenttest.Open(b.Context(), agenttest.Config{})
				if err != nil {
					b.Fatal(err)
				}
				defer end()
				cmd := agent.Command{Code: bb.code}
				for n := 0; b.Loop(); n++ {
					if id != "" {
						cmd.ID = fmt.Sprintf(id, n)
					}
					exit, err := s.Exec(b.Context(), cmd, agent.Stdio{
						Stdin: bytes.NewReader(bb.stdin), Stdout: io.Discard, Stderr: io.Discard,
					})
					if err != nil || exit.Code != 0 {
						b.Fatalf("exit %+v, %v", exit, err)
					}
				}
			})
		}
	}
}
