package jail

import (
	"errors"
	"io"
	"syscall"
	"testing"
)

// A console whose reader is gone takes what a pipe holds, and then no more. It
// is no broken pipe.
func TestConsoleNeedsNoReader(t *testing.T) {
	console, sink, err := consolePipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.WriteString("last words"); err != nil {
		t.Fatal(err)
	}
	if err := console.Close(); err != nil {
		t.Fatal(err)
	}
	fd := int(sink.Fd())
	if err := syscall.SetNonblock(fd, true); err != nil { // as Firecracker does
		t.Fatal(err)
	}
	taken := 0
	for range 1000 {
		n, err := syscall.Write(fd, make([]byte, 4096))
		if err != nil && !errors.Is(err, syscall.EAGAIN) {
			t.Fatal(err)
		}
		taken += max(n, 0)
	}
	if taken == 0 || taken > 1<<20 {
		t.Errorf("%d bytes were taken", taken)
	}
	if err := sink.Close(); err != nil {
		t.Error(err)
	}
}

func TestConsoleEndsWithItsWriter(t *testing.T) {
	console, sink, err := consolePipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = console.Close() }()
	if _, err := sink.WriteString("last words"); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(console); err != nil || string(got) != "last words" {
		t.Errorf("read %q, %v", got, err)
	}
}
