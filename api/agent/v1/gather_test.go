package agentv1_test

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// packets notes the size of each write.
type packets struct {
	net.Conn
	sizes []int
}

func (p *packets) Write(b []byte) (int, error) {
	p.sizes = append(p.sizes, len(b))
	return p.Conn.Write(b)
}

// What yamux writes arrives unchanged, each frame in one piece.
func TestGather(t *testing.T) {
	a, b := net.Pipe()
	config := yamux.DefaultConfig()
	config.EnableKeepAlive, config.LogOutput = false, io.Discard
	near := &packets{Conn: a}
	client, err := yamux.Client(agentv1.Gather(near), config)
	if err != nil {
		t.Fatal(err)
	}
	server, err := yamux.Server(b, config)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()

	go func() {
		stream, err := client.Open()
		if err != nil {
			return
		}
		_, _ = stream.Write([]byte("forty-two"))
		_, _ = stream.Write(make([]byte, 12)) // a body as long as a header
		_, _ = stream.Write([]byte("end"))
		_ = stream.Close()
	}()
	stream, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.SetDeadline(time.Now().Add(10 * time.Second))
	got, err := io.ReadAll(stream)
	if want := "forty-two" + string(make([]byte, 12)) + "end"; err != nil || string(got) != want {
		t.Errorf("read %q, %v; want %q", got, err, want)
	}
	_ = stream.Close()
	_ = client.Close()
	// Opening, three bodies with their headers, closing.
	if want := []int{12, 21, 24, 15, 12}; !slices.Equal(near.sizes, want) {
		t.Errorf("writes of %v bytes, want %v", near.sizes, want)
	}
}
