package engine

import "github.com/emberd/emberd/internal/sandbox"

// Capacity is what the sandboxes of a daemon may take together. It bounds what
// they may come to use and not what they use now: a sandbox that was admitted
// finds the memory it was promised.
type Capacity struct {
	// Sandboxes is how many there may be, those that are being created or
	// deleted included.
	Sandboxes int
	// MemoryMiB is memory of the host, for guests and their VMMs.
	MemoryMiB int
	// VCPUs are shares of the host's CPUs, which may be promised several times
	// over.
	VCPUs int
}

// admit returns an error if there is no room for one more microVM of that size.
// The caller holds e.mu until the promise is made, so that creates cannot
// overtake each other.
func (e *Engine) admit(size sandbox.Size) error {
	limit, promised := e.cfg.Capacity, e.promised
	switch {
	case promised.Sandboxes >= limit.Sandboxes:
		return sandbox.OverQuota("there are %d sandboxes, as many as this emberd allows", promised.Sandboxes)
	case promised.MemoryMiB+size.PromisedMiB() > limit.MemoryMiB:
		return sandbox.OverCapacity("memory_mib %d takes %d MiB of the host with its VMM; %d of %d MiB are free",
			size.MemoryMiB, size.PromisedMiB(), max(0, limit.MemoryMiB-promised.MemoryMiB), limit.MemoryMiB)
	case promised.VCPUs+size.VCPUs > limit.VCPUs:
		return sandbox.OverCapacity("vcpus is %d; %d of %d are free",
			size.VCPUs, max(0, limit.VCPUs-promised.VCPUs), limit.VCPUs)
	}
	return nil
}

// promise counts one more microVM. The caller holds e.mu.
func (e *Engine) promise(size sandbox.Size) {
	e.promised.Sandboxes++
	e.promised.MemoryMiB += size.PromisedMiB()
	e.promised.VCPUs += size.VCPUs
}

// release counts one microVM less, once nothing is left of it. The caller holds
// e.mu.
func (e *Engine) release(size sandbox.Size) {
	e.promised.Sandboxes--
	e.promised.MemoryMiB -= size.PromisedMiB()
	e.promised.VCPUs -= size.VCPUs
}
