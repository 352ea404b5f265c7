package proc

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is how much is moved at a time: half of what a pipe holds, and it fits
// in one frame.
const chunk = 32 << 10

// output is the reading end of one of a program's output pipes.
type output struct {
	pipe *os.File
}

// copyTo hands everything the program writes to w until the pipe ends or the
// time of lingerFor is up. When w fails it calls fail.
func (o *output) copyTo(w io.Writer, fail func(error)) {
	buf := make([]byte, chunk)
	for {
		n, err := o.pipe.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				fail(werr)
				return
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if err := o.copyRest(w); err != nil {
				fail(err)
			}
			return
		}
		if err != nil {
			return
		}
	}
}

// copyRest hands over what is in the pipe now, which is everything the program
// wrote before it ended and this side was too slow to read.
func (o *output) copyRest(w io.Writer) error {
	if err := o.pipe.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	n, err := o.buffered()
	if err != nil {
		return err
	}
	_, err = io.CopyN(w, o.pipe, int64(n))
	return err
}

// buffered returns the number of bytes in the pipe.
func (o *output) buffered() (n int, err error) {
	conn, err := o.pipe.SyscallConn()
	if err != nil {
		return 0, err
	}
	var ioctlErr error
	err = conn.Control(func(fd uintptr) { n, ioctlErr = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n, errors.Join(err, ioctlErr)
}

// lingerFor bounds how much longer copyTo waits for the pipe's end.
func (o *output) lingerFor(d time.Duration) {
	_ = o.pipe.SetReadDeadline(time.Now().Add(d))
}

// feed copies src into the program's standard input until either ends, and
// closes the pipe.
func feed(pipe *os.File, src io.Reader) {
	buf := make([]byte, chunk)
	_, _ = io.CopyBuffer(struct{ io.Writer }{pipe}, struct{ io.Reader }{src}, buf)
	_ = pipe.Close()
}

// orphans are the output pipes that background processes hold after their
// program has ended. They are read, and what comes is thrown away, so that a
// server which was left running is not killed by its own log.
type orphans struct {
	mu     sync.Mutex
	pipes  map[*os.File]struct{}
	closed bool
	reads  sync.WaitGroup
}

// discard takes over pipe. A pipe that has ended costs nothing.
func (o *orphans) discard(pipe *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || pipe.SetReadDeadline(time.Time{}) != nil {
		_ = pipe.Close()
		return
	}
	if o.pipes == nil {
		o.pipes = make(map[*os.File]struct{})
	}
	o.pipes[pipe] = struct{}{}
	o.reads.Go(func() {
		_, _ = io.Copy(io.Discard, struct{ io.Reader }{pipe})
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.pipes, pipe)
		_ = pipe.Close()
	})
}

// close closes every pipe and waits for its reader.
func (o *orphans) close() {
	o.mu.Lock()
	o.closed = true
	for pipe := range o.pipes {
		_ = pipe.Close()
	}
	o.mu.Unlock()
	o.reads.Wait()
}
