// Package sandbox is emberd's vocabulary: what a sandbox is called, what may be
// asked of it, the states it passes through and the errors every layer agrees
// on.
//
// The one idea is that each layer speaks these words and converts at its own
// edge only: HTTP in httpapi, protobuf in agent, JSON in store. The package
// depends on the standard library alone and does nothing but describe.
package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"time"
)

// idPrefix begins every sandbox id, and vmPrefix every microVM's; idHexLen hex
// digits follow.
const (
	idPrefix = "sb_"
	vmPrefix = "vm-"
	idHexLen = 12
)

// ID names one sandbox for ever; ids are never reused.
type ID string

// NewID returns a fresh random id, "sb_" and 12 hex digits.
func NewID() ID {
	var b [idHexLen / 2]byte
	_, _ = rand.Read(b[:]) // documented never to fail
	return ID(idPrefix + hex.EncodeToString(b[:]))
}

// ParseID accepts exactly what [NewID] makes. Anything else is [ErrNotFound],
// since it cannot name a sandbox.
func ParseID(s string) (ID, error) {
	if !isID(s, idPrefix) {
		return "", ErrNotFound
	}
	return ID(s), nil
}

func isID(s, prefix string) bool {
	rest, ok := strings.CutPrefix(s, prefix)
	return ok && len(rest) == idHexLen && strings.Trim(rest, "0123456789abcdef") == ""
}

// VMID names one microVM and everything that is made for it on the host. It is
// not the sandbox's id, because a microVM can be made before anybody asks for a
// sandbox. It is never reused, and has the characters that Firecracker's jailer
// takes.
type VMID string

// NewVMID returns a fresh random id, "vm-" and 12 hex digits.
func NewVMID() VMID {
	return VMID(vmPrefix + strings.TrimPrefix(string(NewID()), idPrefix))
}

// ParseVMID accepts exactly what [NewVMID] makes, and tells whether it did.
func ParseVMID(s string) (VMID, bool) { return VMID(s), isID(s, vmPrefix) }

// DefaultPack is the language pack of a create request that names none.
const DefaultPack = "python"

// Spec is what a client asks for when creating a sandbox.
type Spec struct {
	// Pack is the language pack; empty means [DefaultPack].
	Pack   string
	Limits Limits
	// BootPath is the one way that the microVM may come to be; empty means the
	// fastest there is.
	BootPath BootPath
	// Egress is what it may reach; nil gives it no network interface.
	Egress *Egress
	// Once, unless it is zero, has the request carried out once.
	Once Once
}

// Size is what a microVM is given.
type Size struct {
	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memory_mib"`
}

// DefaultSize is enough for an interpreter with the common libraries loaded.
var DefaultSize = Size{VCPUs: 1, MemoryMiB: 256}

// Limits of [Size]: what Firecracker takes, and what the guest's kernel needs.
const (
	maxVCPUs     = 32
	minMemoryMiB = 128
)

// Check returns an error if no microVM can have that size.
func (s Size) Check() error {
	switch {
	case s.VCPUs < 1 || s.VCPUs > maxVCPUs:
		return Invalid("a microVM has 1 to %d virtual CPUs, not %d", maxVCPUs, s.VCPUs)
	case s.MemoryMiB < minMemoryMiB:
		return Invalid("a microVM needs %d MiB of memory, not %d", minMemoryMiB, s.MemoryMiB)
	}
	return nil
}

// BootPath says how a sandbox's microVM came to be.
type BootPath string

// The ways of a microVM into being, the fastest last.
const (
	// ColdBoot is a microVM booted from its kernel when it was asked for.
	ColdBoot BootPath = "cold-boot"
	// Restored is one restored from a template when it was asked for.
	Restored BootPath = "restore"
	// Pooled is one that was ready before it was asked for.
	Pooled BootPath = "pool"
)

// ParseBootPath accepts the name of a boot path, and none.
func ParseBootPath(s string) (BootPath, error) {
	switch path := BootPath(s); path {
	case "", ColdBoot, Restored, Pooled:
		return path, nil
	}
	return "", Invalid("boot_path is %q; it can be %q, %q or %q", s, ColdBoot, Restored, Pooled)
}

// Sandbox is what emberd tells about one sandbox. It is a value: holding one
// says nothing about whether the sandbox still exists.
type Sandbox struct {
	ID ID `json:"id"`
	// VM is its microVM, empty until there is one to clear up after.
	VM        VMID      `json:"vm,omitempty"`
	Pack      string    `json:"pack"`
	Limits    Limits    `json:"limits"`
	State     State     `json:"state"`
	BootPath  BootPath  `json:"boot_path"`
	CreatedAt time.Time `json:"created_at"`
	// AskedAt is how long the host was up when it was asked for, which no change
	// of the clock touches.
	AskedAt time.Duration `json:"asked_at_uptime_ns"`
	// ExpiresAt is when its lifetime ends.
	ExpiresAt time.Time `json:"expires_at"`
	// IdleExpiresAt is when it ends if no program is run until then. It is zero
	// while one runs, and in records, since every program changes it.
	IdleExpiresAt time.Time `json:"idle_expires_at,omitzero"`
	// Egress is what it may reach, nil if it has no network interface.
	Egress *Egress `json:"egress,omitempty"`
	// Once is of the request for it.
	Once Once `json:"once,omitzero"`
}

// LimitsHit is which limits of a sandbox a program, or one that it started, ran
// into. It is the guest's word.
type LimitsHit struct {
	// Memory says that a process was ended, or not made, for want of memory.
	Memory bool
	// Disk says that the program failed when files had no room left.
	Disk bool
	// PIDs says that there was one process or thread too many.
	PIDs bool
}

// Names returns the limits as the API names them, nil if there are none.
func (h LimitsHit) Names() []string {
	var names []string
	for _, limit := range []struct {
		name string
		hit  bool
	}{{"memory_mib", h.Memory}, {"disk_mib", h.Disk}, {"pids", h.PIDs}} {
		if limit.hit {
			names = append(names, limit.name)
		}
	}
	return names
}
