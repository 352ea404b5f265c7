package firecracker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for _, tt := range []struct{ out, version, err string }{
		{out: "Firecracker v1.12.1\n\nSupported snapshot data format versions: 6.0.0\n", version: "1.12.1"},
		{out: "Jailer v1.12.1\n", version: "1.12.1"},
		{out: "Firecracker v1.15.1\n", version: "1.15.1"},
		{out: "Firecracker v1.16.1\n", version: "1.16.1"},
		{out: "Firecracker v1.13.0\n", err: "CVE-2026-5747"},
		{out: "Firecracker v1.14.3\n", err: "use 1.14.4"},
		{out: "Firecracker v1.14.4\n", version: "1.14.4"},
		{out: "Firecracker v1.15.0\n", err: "use 1.15.1"},
		{out: "Firecracker v1.16.0\n", err: "vsock can stay dead"},
		{out: "Firecracker v1.11.0\n", err: "emberd works with 1.12 to 1.16"},
		{out: "Firecracker v1.17.0\n", err: "emberd works with 1.12 to 1.16"},
		{out: "Firecracker v2.12.0\n", err: "emberd works with 1.12 to 1.16"},
		{out: "QEMU emulator version 7.2.0\n", err: "prints no version"},
		{out: "", err: "prints no version"},
		{out: "Firecracker v1.99999999999999999999.0\n", err: "value out of range"},
	} {
		r, err := parseVersion([]byte(tt.out))
		got := r.String()
		if err != nil {
			got = ""
		}
		if got != tt.version || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %q, %v, want %q, %q", tt.out, got, err, tt.version, tt.err)
		}
	}
}

// Executables of a release that emberd does not work with are refused, and so
// is anything that is none.
func TestCheckVersions(t *testing.T) {
	for _, tt := range []struct{ vmm, jailer, version, err string }{
		{vmm: "Firecracker v1.12.1", jailer: "Jailer v1.12.1", version: "1.12.1"},
		{vmm: "Firecracker v1.16.0", jailer: "Jailer v1.16.0", err: "vsock can stay dead"},
		{vmm: "Firecracker v1.11.9", jailer: "Jailer v1.11.9", err: "emberd works with"},
		{vmm: "Firecracker v1.17.0", jailer: "Jailer v1.17.0", err: "emberd works with"},
		{vmm: "Firecracker v0.25.2", jailer: "Jailer v0.25.2", err: "emberd works with"},
		{vmm: "Firecracker v1.12.1", jailer: "Jailer v1.14.4", err: "of one release"},
		{vmm: "Firecracker of my own", jailer: "Jailer v1.12.1", err: "no version"},
		{vmm: "Firecracker v1.12.1", jailer: "", err: "no version"},
		{vmm: "", jailer: "", err: "no version"},
	} {
		dir := t.TempDir()
		stub := func(name, says string) string {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+says+"'\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			return path
		}
		got, err := CheckVersions(t.Context(), stub("firecracker", tt.vmm), stub("jailer", tt.jailer))
		if got != tt.version || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q, %q: %q, %v, want %q, %q", tt.vmm, tt.jailer, got, err, tt.version, tt.err)
		}
	}
}
