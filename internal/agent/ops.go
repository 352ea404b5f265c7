package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/x/printable"
)

// Bounds of what an agent says about itself.
const (
	maxBuildID     = 128
	maxInterpreter = 256
	maxProof       = 32
)

// maxText is how much of a guest's error text is kept, in bytes.
const maxText = 1 << 10

var (
	// errProtocol is matched by everything a guest sends that the protocol does
	// not allow, apart from broken frames.
	errProtocol = errors.New("the guest broke the protocol")
	// errGuest is matched by errors that the guest reported.
	errGuest = errors.New("the guest says")
)

// aLongTimeAgo is a deadline that ends reads and writes at once.
var aLongTimeAgo = time.Unix(1, 0)

// interrupt ends reads and writes of stream when ctx ends, until the function
// it returns is called.
func interrupt(ctx context.Context, stream net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = stream.SetDeadline(aLongTimeAgo) })
}

// causeOf is why ctx ended, if it has, and err otherwise.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// hello asks who the agent is, on stream, which it closes. If there is a
// challenge, the agent is asked to answer it.
func hello(ctx context.Context, stream net.Conn, challenge []byte) (*agentv1.HelloReply, error) {
	req := &agentv1.Request{Op: &agentv1.Request_Hello{
		Hello: &agentv1.Hello{ProtocolVersion: agentv1.ProtocolVersion, Challenge: challenge},
	}}
	defer func() { _ = stream.Close() }()
	defer interrupt(ctx, stream)()
	if err := agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameRequest, req); err != nil {
		return nil, causeOf(ctx, err)
	}
	reply, err := readHello(stream)
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	return reply, nil
}

func readHello(stream io.Reader) (*agentv1.HelloReply, error) {
	_, payload, err := next(agentv1.NewFrameReader(stream, agentv1.FrameHello, agentv1.FrameError))
	if err != nil {
		return nil, err
	}
	reply := new(agentv1.HelloReply)
	if err := proto.Unmarshal(payload, reply); err != nil {
		return nil, fmt.Errorf("%w: hello: %w", errProtocol, err)
	}
	if v := reply.GetProtocolVersion(); v != agentv1.ProtocolVersion {
		return nil, fmt.Errorf("%w: the agent speaks %d, emberd speaks %d", ErrVersion, v, agentv1.ProtocolVersion)
	}
	if len(reply.GetBuildId()) > maxBuildID || len(reply.GetInterpreter()) > maxInterpreter || len(reply.GetProof()) > maxProof {
		return nil, fmt.Errorf("%w: hello is too long", errProtocol)
	}
	return reply, nil
}

// WriteFile creates or replaces the regular file at path in the VM with what r
// holds, on stream, which it closes. A transfer that fails leaves an old file as
// it was.
func WriteFile(ctx context.Context, stream net.Conn, path string, mode fs.FileMode, r io.Reader) error {
	defer func() { _ = stream.Close() }()
	defer interrupt(ctx, stream)()
	w := agentv1.NewFrameWriter(stream)
	req := &agentv1.Request{Op: &agentv1.Request_WriteFile{
		WriteFile: &agentv1.WriteFile{Path: path, Mode: uint32(mode.Perm())},
	}}
	if err := w.WriteMessage(agentv1.FrameRequest, req); err != nil {
		return fmt.Errorf("write file %s: %w", path, causeOf(ctx, err))
	}
	// The guest may refuse at any time, and then takes no more data.
	var reply error
	var replying sync.WaitGroup
	replying.Go(func() {
		reply = readDone(stream)
		_ = stream.SetWriteDeadline(aLongTimeAgo)
	})
	sendErr := sendFile(ctx, w, r)
	if srcErr, ok := errors.AsType[*sourceError](sendErr); ok {
		_ = stream.SetReadDeadline(aLongTimeAgo)
		replying.Wait()
		return fmt.Errorf("write file %s: %w", path, causeOf(ctx, srcErr))
	}
	replying.Wait()
	if err := cmp.Or(reply, sendErr); err != nil {
		return fmt.Errorf("write file %s: %w", path, causeOf(ctx, err))
	}
	return nil
}

// sourceError is an error of what was to be sent, not of the guest.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "read source: " + e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

func sendFile(ctx context.Context, w *agentv1.FrameWriter, r io.Reader) error {
	buf := make([]byte, agentv1.MaxData)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := r.Read(buf)
		if n > 0 {
			if err := w.Write(agentv1.FrameData, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return w.Write(agentv1.FrameEnd, nil)
		}
		if err != nil {
			return &sourceError{err}
		}
	}
}

// Dial connects to address inside the VM; network is "tcp" or "unix". The
// connection owns stream. ctx bounds the dialling only. The connection has a
// CloseWrite method, as a TCP connection has.
func Dial(ctx context.Context, stream net.Conn, network, address string) (net.Conn, error) {
	conn, err := dial(ctx, stream, network, address)
	if err != nil {
		_ = stream.Close()
		return nil, fmt.Errorf("dial %s in the guest: %w", address, causeOf(ctx, err))
	}
	return conn, nil
}

func dial(ctx context.Context, stream net.Conn, network, address string) (net.Conn, error) {
	stop := interrupt(ctx, stream)
	defer stop()
	req := &agentv1.Request{Op: &agentv1.Request_Dial{
		Dial: &agentv1.Dial{Network: network, Address: address},
	}}
	if err := agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameRequest, req); err != nil {
		return nil, err
	}
	if err := readDone(stream); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return agentv1.NewDataConn(stream), nil
}

// readDone reads the reply of an operation that has no result.
func readDone(stream io.Reader) error {
	_, payload, err := next(agentv1.NewFrameReader(stream, agentv1.FrameDone, agentv1.FrameError))
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(payload, new(agentv1.Done)); err != nil {
		return fmt.Errorf("%w: done: %w", errProtocol, err)
	}
	return nil
}

// next reads a frame of an operation that is not over: the stream's end and an
// error frame are errors.
func next(frames *agentv1.FrameReader) (agentv1.FrameType, []byte, error) {
	t, payload, err := frames.Next()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read reply: %w", err)
	}
	if t != agentv1.FrameError {
		return t, payload, nil
	}
	var m agentv1.Error
	if err := proto.Unmarshal(payload, &m); err != nil {
		return 0, nil, fmt.Errorf("%w: error: %w", errProtocol, err)
	}
	return 0, nil, guestError(&m, fmt.Errorf("%w: %s", errGuest, printable.Head(m.GetMessage(), maxText)))
}

// expectEnd waits until the stream is over and makes sure that it brings nothing
// more. How it ends is of no account: all there was to know is known.
func expectEnd(stream io.Reader) error {
	var more [1]byte
	if _, err := io.ReadFull(stream, more[:]); err == nil {
		return fmt.Errorf("%w: it goes on after the last frame", errProtocol)
	}
	return nil
}
