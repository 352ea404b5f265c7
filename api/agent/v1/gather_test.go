package agentv1_test

import (
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
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
	gatherer := agentv1.Gather(near)
	client, err := yamux.Client(gatherer, config)
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
		gatherer.Last(stream.(*yamux.Stream).StreamID())
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
	// Opening with the first body, and the last with the closing.
	if want := []int{12 + 21, 24, 15 + 12}; !slices.Equal(near.sizes, want) {
		t.Errorf("writes of %v bytes, want %v", near.sizes, want)
	}
}

// What waits for company goes out alone when none comes.
func TestGatherHasPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		g := agentv1.Gather(near)
		syn := []byte{0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0}
		if n, err := g.Write(syn); n != len(syn) || err != nil {
			t.Fatal(n, err)
		}
		began := time.Now()
		got := make([]byte, 2*len(syn))
		if n, err := far.Read(got); n != len(syn) || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		if waited := time.Since(began); waited != time.Second {
			t.Errorf("it came after %v", waited)
		}
		// A body is never torn from its header, however late it comes.
		g.Last(1)
		data := []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3}
		_, _ = g.Write(data)
		time.Sleep(time.Minute)
		_, _ = g.Write([]byte("end"))
		if n, err := far.Read(got); n != 15 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		_, _ = g.Write(syn)
		_ = g.Close()
		_ = far.Close()
		if _, err := g.Write(syn[:1]); err == nil {
			t.Error("a closed connection takes bytes")
		}
	})
}
