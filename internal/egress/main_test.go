package egress

import (
	"io"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// standIn has the test binary be a process with a namespace and nothing else.
const standIn = "EMBERD_TEST_STAND_IN"

func TestMain(m *testing.M) {
	if os.Getenv(standIn) != "" {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
