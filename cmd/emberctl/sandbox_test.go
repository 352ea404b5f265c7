package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/emberd/emberd/api/rest"
)

// TestInfo checks that info leaves out nothing that matters, above all what
// kind of KVM there is.
func TestInfo(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(rest.Info{
			GuestRAMMiB: 256, GuestVCPUs: 2, BootPath: "cold-boot", Packs: []string{"python", "shell"},
			WorkDir: "/data", KVM: "emulated", Egress: true,
			Versions: rest.Versions{Emberd: "1.2.3", Firecracker: "1.12.1", HostKernel: "6.1.0"},
		})
	}))
	defer srv.Close()
	const want = `emberd       1.2.3
firecracker  1.12.1
host kernel  6.1.0
kvm          emulated
guest        2 vCPU, 256 MiB
boot path    cold-boot
packs        python, shell
egress       yes
data         /data
`
	var stdout, stderr bytes.Buffer
	a := &app{stdout: &stdout, stderr: &stderr}
	if got := a.run(t.Context(), []string{"--addr", srv.URL, "info"}); got != 0 || stderr.Len() > 0 {
		t.Errorf("exit status %d, stderr %q", got, stderr.String())
	}
	if got := stdout.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestPool(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/pool" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		_ = json.NewEncoder(w).Encode(rest.Pool{Pool: []rest.PoolStock{{
			Pack: "python", Size: rest.Size{VCPUs: 1, MemoryMiB: 256},
			Ready: 1, Target: 2, Min: 2, Max: 4, Hits: 50, Misses: 6, Refills: 57, Failures: 8,
		}}})
	}))
	defer srv.Close()
	const want = `PACK    VCPUS  MEMORY   READY  TARGET  MIN  MAX  HITS  MISSES  REFILLS  FAILURES
python  1      256 MiB  1      2       2    4    50    6       57       8
`
	var stdout, stderr bytes.Buffer
	a := &app{stdout: &stdout, stderr: &stderr}
	if got := a.run(t.Context(), []string{"--addr", srv.URL, "pool"}); got != 0 || stderr.Len() > 0 || stdout.String() != want {
		t.Errorf("exit status %d, stderr %q\ngot\n%swant\n%s", got, stderr.String(), stdout.String(), want)
	}
}
