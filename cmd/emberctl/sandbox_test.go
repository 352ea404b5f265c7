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
			WorkDir: "/data", KVM: "emulated",
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
