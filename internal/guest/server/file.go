package server

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// writeFile creates or replaces a file. It is written beside its place and
// renamed, so that a transfer which breaks off leaves the old file as it was.
func writeFile(stream net.Conn, w *agentv1.FrameWriter, req *agentv1.WriteFile) error {
	path := req.GetPath()
	if !filepath.IsAbs(path) {
		return fmt.Errorf("write file %q: the path is not absolute", path)
	}
	if err := receiveFile(path, fs.FileMode(req.GetMode()).Perm(), stream); err != nil {
		return fmt.Errorf("write file %q: %w", path, err)
	}
	return w.WriteMessage(agentv1.FrameDone, &agentv1.Done{})
}

func receiveFile(path string, mode fs.FileMode, stream io.Reader) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".emberd-*")
	if err != nil {
		return bare(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	frames := agentv1.NewFrameReader(stream, agentv1.FrameData, agentv1.FrameEnd)
	for {
		t, payload, err := frames.Next()
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if t == agentv1.FrameEnd {
			break
		}
		if _, err := f.Write(payload); err != nil {
			return bare(err)
		}
	}
	if err := f.Chmod(mode); err != nil {
		return bare(err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return bare(err)
	}
	return f.Close()
}

// bare takes the name of the temporary file out of an error.
func bare(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}
