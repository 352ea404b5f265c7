package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/emberd/emberd/internal/x/printable"
)

// The bodies of Firecracker's API that emberd sends. Firecracker refuses fields
// it does not know, so each one here exists in every supported release.
type (
	machineConfig struct {
		VCPUs     int `json:"vcpu_count"`
		MemoryMiB int `json:"mem_size_mib"`
	}
	bootSource struct {
		KernelPath string `json:"kernel_image_path"`
		InitrdPath string `json:"initrd_path"`
		BootArgs   string `json:"boot_args"`
	}
	drive struct {
		ID         string `json:"drive_id"`
		Path       string `json:"path_on_host"`
		IsRoot     bool   `json:"is_root_device"`
		IsReadOnly bool   `json:"is_read_only"`
	}
	vsockDevice struct {
		GuestCID int    `json:"guest_cid"`
		UDSPath  string `json:"uds_path"`
	}
	entropyDevice    struct{}
	networkInterface struct {
		ID      string      `json:"iface_id"`
		TAP     string      `json:"host_dev_name"`
		MAC     string      `json:"guest_mac"`
		Receive rateLimiter `json:"rx_rate_limiter"`
		Send    rateLimiter `json:"tx_rate_limiter"`
	}
	rateLimiter struct {
		Bytes  tokenBucket `json:"bandwidth"`
		Frames tokenBucket `json:"ops"`
	}
	tokenBucket struct {
		Size     int `json:"size"`
		RefillMs int `json:"refill_time"`
	}
	cpuConfig struct {
		CPUID []cpuidModifier `json:"cpuid_modifiers"`
	}
	cpuidModifier struct {
		Leaf      string             `json:"leaf"`
		Subleaf   string             `json:"subleaf"`
		Flags     int                `json:"flags"`
		Registers []registerModifier `json:"modifiers"`
	}
	registerModifier struct {
		Register string `json:"register"`
		Bitmap   string `json:"bitmap"` // bit 31 first; x leaves one as it is
	}
	action struct {
		Type string `json:"action_type"`
	}
	vmState struct {
		State string `json:"state"`
	}
	snapshotCreate struct {
		Type       string `json:"snapshot_type"`
		StatePath  string `json:"snapshot_path"`
		MemoryPath string `json:"mem_file_path"`
	}
	snapshotLoad struct {
		StatePath string        `json:"snapshot_path"`
		Memory    memoryBackend `json:"mem_backend"`
	}
	memoryBackend struct {
		Type string `json:"backend_type"`
		Path string `json:"backend_path"`
	}
	apiFault struct {
		Message string `json:"fault_message"`
	}
)

// withoutVirtualisation takes VMX and SVM out of what a guest is told of its CPU.
// KVM offers them where the host has nested virtualisation on; no guest of
// emberd's is to have another hypervisor's code to attack.
var withoutVirtualisation = cpuConfig{CPUID: []cpuidModifier{
	{Leaf: "0x1", Subleaf: "0x0", Registers: []registerModifier{{"ecx", "0bxxxxxxxxxxxxxxxxxxxxxxxxxx0xxxxx"}}},
	{Leaf: "0x80000001", Subleaf: "0x0", Registers: []registerModifier{{"ecx", "0bxxxxxxxxxxxxxxxxxxxxxxxxxxxxx0xx"}}},
}}

// Bounds of one answer of the VMM, in bytes. A VMM that a guest has taken over is
// as hostile as the guest.
const (
	maxReplyHeader = 4 << 10
	maxReply       = 64 << 10
	maxFault       = 1 << 10 // what is kept of it when it is an error
)

// apiClient speaks to the API socket of one Firecracker process.
type apiClient struct {
	http http.Client
	dial func(context.Context) (net.Conn, error)
}

func newAPIClient(dial func(context.Context) (net.Conn, error)) *apiClient {
	c := &apiClient{dial: dial}
	// Firecracker sends nobody elsewhere.
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		// Firecracker serves ten connections and no more; one is enough.
		MaxConnsPerHost:        1,
		MaxResponseHeaderBytes: maxReplyHeader,
	}
	return c
}

func (c *apiClient) close() { c.http.CloseIdleConnections() }

// pollInterval is how often the API socket is tried until it answers. The wait
// is a few milliseconds on real hardware, so a coarser poll would be felt in
// every create.
const pollInterval = 2 * time.Millisecond

// waitReady returns when the API socket accepts connections, ctx ends, or the
// VMM does.
func (c *apiClient) waitReady(ctx context.Context, exited <-chan struct{}) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		conn, err := c.dial(ctx)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-exited:
			return errExited
		case <-tick.C:
		}
	}
}

var errExited = errors.New("the VMM exited")

// call sends one request and expects 204 No Content.
func (c *apiClient) call(ctx context.Context, method, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://firecracker"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s %s: status %d: %s", method, path, resp.StatusCode, faultMessage(reply))
	}
	return nil
}

// faultMessage is what Firecracker says went wrong, or the beginning of its
// reply when that is not in the usual place.
func faultMessage(reply []byte) string {
	text := string(reply)
	var f apiFault
	if err := json.Unmarshal(reply, &f); err == nil && f.Message != "" {
		text = f.Message
	}
	return printable.Head(text, maxFault)
}
