package fctest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/agent/agenttest"
)

// machine is what a fake is told of its VM, and what its snapshots hold.
type machine struct {
	BootArgs  string
	MemoryMiB int
	Drive     string
	Vsock     string
	TAP       string // none if it has no network interface
}

// phase is when a call is allowed.
type phase int

const (
	before phase = iota // a VM is there
	running
	paused
)

// calls are what the API takes, by method and path: when, and every field that
// it knows.
var calls = map[string]struct {
	phase  phase
	fields []string
}{
	"PUT /machine-config": {before, []string{"vcpu_count", "mem_size_mib"}},
	"PUT /cpu-config":     {before, []string{"cpuid_modifiers"}},
	"PUT /boot-source":    {before, []string{"kernel_image_path", "initrd_path", "boot_args"}},
	"PUT /drives/rootfs":  {before, []string{"drive_id", "path_on_host", "is_root_device", "is_read_only"}},
	"PUT /vsock":          {before, []string{"guest_cid", "uds_path"}},
	"PUT /entropy":        {before, nil},
	"PUT /network-interfaces/eth0": {before, []string{
		"iface_id", "host_dev_name", "guest_mac", "rx_rate_limiter", "tx_rate_limiter",
	}},
	"PUT /actions":         {before, []string{"action_type"}},
	"PUT /snapshot/load":   {before, []string{"snapshot_path", "mem_backend", "resume_vm"}},
	"PATCH /vm":            {running, []string{"state"}},
	"PUT /snapshot/create": {paused, []string{"snapshot_type", "snapshot_path", "mem_file_path"}},
}

// body holds the fields that the fake looks at, of any call.
type body struct {
	MemoryMiB  int    `json:"mem_size_mib"`
	Kernel     string `json:"kernel_image_path"`
	Initrd     string `json:"initrd_path"`
	BootArgs   string `json:"boot_args"`
	Drive      string `json:"path_on_host"`
	TAP        string `json:"host_dev_name"`
	Vsock      string `json:"uds_path"`
	Action     string `json:"action_type"`
	State      string `json:"state"`
	StatePath  string `json:"snapshot_path"`
	MemoryPath string `json:"mem_file_path"`
	Memory     struct {
		Type string `json:"backend_type"`
		Path string `json:"backend_path"`
	} `json:"mem_backend"`
}

// call carries out one request.
func (v *vmm) call(r *http.Request) error {
	name := r.Method + " " + r.URL.Path
	known, ok := calls[name]
	switch {
	case !ok:
		return fmt.Errorf("invalid request method and/or path: %s", name)
	case v.mode == Refusing:
		return errors.New("refused")
	case known.phase == before && v.running:
		return errors.New("the requested operation is not supported after starting the microVM")
	case known.phase != before && !v.running:
		return errors.New("the requested operation is not supported before starting the microVM")
	case known.phase == paused && !v.paused:
		return errors.New("save or restore of a microVM that is not paused")
	}
	var raw json.RawMessage
	var fields map[string]any
	var b body
	if err := json.NewDecoder(r.Body).Decode(&raw); err != nil {
		return err
	}
	if err := errors.Join(json.Unmarshal(raw, &fields), json.Unmarshal(raw, &b)); err != nil {
		return err
	}
	for field := range fields {
		if !slices.Contains(known.fields, field) {
			return fmt.Errorf("unknown field `%s`", field)
		}
	}
	switch name {
	case "PUT /machine-config":
		v.vm.MemoryMiB = b.MemoryMiB
	case "PUT /boot-source":
		v.vm.BootArgs = b.BootArgs
		return readable(b.Kernel, b.Initrd)
	case "PUT /drives/rootfs":
		v.vm.Drive = b.Drive
		return readable(b.Drive)
	case "PUT /vsock":
		v.vm.Vsock = b.Vsock
		return v.listenVsock(b.Vsock)
	case "PUT /network-interfaces/eth0":
		v.vm.TAP = b.TAP
		return readable(tapFile(b.TAP))
	case "PUT /actions":
		if b.Action != "InstanceStart" || v.vm.BootArgs == "" {
			return errors.New("cannot start the microVM without a kernel")
		}
		v.start()
	case "PATCH /vm":
		v.pause(b.State == "Paused")
	case "PUT /snapshot/create":
		return v.save(b)
	case "PUT /snapshot/load":
		return v.load(b)
	}
	return nil
}

// readable opens files when they are named, as Firecracker does.
func readable(files ...string) error {
	for _, path := range files {
		f, err := os.Open(jailPath(path))
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	return nil
}

// start has the guest run.
func (v *vmm) start() {
	v.running = true
	fmt.Println("fake firecracker: guest console begins")
	switch v.mode {
	case Stillborn:
		fmt.Println("fake firecracker: stillborn")
		v.exitCode = 1
		v.stop()
	case Sound:
		cfg := agenttest.Config{Interpreter: "python3"}
		for arg := range strings.FieldsSeq(v.vm.BootArgs) {
			if interpreter, ok := strings.CutPrefix(arg, "emberd.interpreter="); ok {
				cfg.Interpreter = interpreter
			}
		}
		cfg.Arm = v.vm.arm
		go func() { _ = agenttest.Serve(context.Background(), v.guest, cfg) }()
	}
}

// memoryMark begins the pages of a fake's memory that it writes to when it was
// restored. The rest of it is a hole.
const memoryMark = "memory of a fake guest"

// WrittenPages are these pages.
var WrittenPages = [...]int64{0, 2}

const pageSize = 4096

// save writes a snapshot.
func (v *vmm) save(b body) error {
	state, err := json.Marshal(v.vm)
	if err != nil {
		return err
	}
	var memory []byte
	for _, page := range WrittenPages {
		memory = append(memory, make([]byte, page*pageSize-int64(len(memory)))...)
		memory = append(memory, memoryMark...)
	}
	path := jailPath(b.MemoryPath)
	return errors.Join(
		os.WriteFile(jailPath(b.StatePath), state, 0o600),
		os.WriteFile(path, memory, 0o600),
		os.Truncate(path, int64(v.vm.MemoryMiB)<<20),
	)
}

// load makes the VM of a snapshot run. Firecracker ends when it cannot.
func (v *vmm) load(b body) (err error) {
	defer func() {
		if err != nil {
			v.exitCode = 1
			defer v.stop()
		}
	}()
	state, err := os.ReadFile(jailPath(b.StatePath))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(state, &v.vm); err != nil {
		return fmt.Errorf("snapshot state: %w", err)
	}
	memory, err := os.Stat(jailPath(b.Memory.Path))
	if err != nil {
		return err
	}
	if b.Memory.Type != "File" || memory.Size() != int64(v.vm.MemoryMiB)<<20 {
		return fmt.Errorf("memory %s of %d bytes does not fit the snapshot", b.Memory.Path, memory.Size())
	}
	if err := readable(v.vm.Drive, b.Memory.Path); err != nil {
		return err
	}
	if v.vm.TAP != "" {
		if err := readable(tapFile(v.vm.TAP)); err != nil {
			return err
		}
	}
	if err := v.listenVsock(v.vm.Vsock); err != nil {
		return err
	}
	if v.memory, err = mapMemory(jailPath(b.Memory.Path), int(memory.Size())); err != nil {
		return err
	}
	v.running, v.paused = true, true
	return nil
}

// pause stops the guest or has it go on. One that was restored writes to its
// memory when it does.
func (v *vmm) pause(stop bool) {
	resumed := v.paused && !stop
	if v.paused = stop; resumed && v.memory != nil {
		for _, page := range WrittenPages {
			v.memory[page*pageSize]++
		}
		v.memory = nil
		v.start()
	}
}

// mapMemory maps a guest's memory as Firecracker does. It stays mapped.
func mapMemory(path string, size int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
}
