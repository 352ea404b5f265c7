package firecracker

import (
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for _, tt := range []struct{ out, version, err string }{
		{out: "Firecracker v1.12.1\n\nSupported snapshot data format versions: 6.0.0\n", version: "1.12.1"},
		{out: "Jailer v1.12.1\n", version: "1.12.1"},
		{out: "Firecracker v1.15.1\n", version: "1.15.1"},
		{out: "Firecracker v1.16.1\n", version: "1.16.1"},
		{out: "Firecracker v1.16.0\n", err: "vsock can die"},
		{out: "Firecracker v1.11.0\n", err: "emberd works with 1.12 to 1.16"},
		{out: "Firecracker v1.17.0\n", err: "emberd works with 1.12 to 1.16"},
		{out: "Firecracker v2.12.0\n", err: "emberd works with 1.12 to 1.16"},
		{out: "QEMU emulator version 7.2.0\n", err: "prints no version"},
		{out: "", err: "prints no version"},
		{out: "Firecracker v1.99999999999999999999.0\n", err: "value out of range"},
	} {
		got, err := parseVersion("/opt/firecracker", []byte(tt.out))
		if got != tt.version || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %q, %v, want %q, %q", tt.out, got, err, tt.version, tt.err)
		}
	}
}
