package rest

import "time"

// Stats is what sandboxes use now.
type Stats struct {
	Sandboxes []Usage `json:"sandboxes" nullable:"false" doc:"The sandboxes of which there is anything, oldest first."`
	Total     Total   `json:"total" doc:"All VMMs of the daemon: of sandboxes, of the pool, and those that wait for a template."`
}

// Usage is what one sandbox uses. What is not known yet is absent.
type Usage struct {
	ID           string    `json:"id" example:"sb_a1b2c3d4e5f6"`
	LanguagePack string    `json:"language_pack" example:"python"`
	State        string    `json:"state" enum:"creating,running,deleting" example:"running"`
	BootPath     string    `json:"boot_path,omitempty" enum:"cold-boot,restore,pool" example:"pool"`
	CreatedAt    time.Time `json:"created_at"`
	ExpiresAt    time.Time `json:"expires_at"`
	Execs        int       `json:"execs" example:"1" doc:"Programs that run."`
	MemoryMiB    int       `json:"memory_mib" example:"256" doc:"The memory of its microVM."`
	PID          int       `json:"pid,omitempty" example:"4711" doc:"The process id of its VMM."`
	CPUUS        int64     `json:"cpu_us,omitempty" example:"1500000" doc:"CPU time that its VMM had, the guest included, in microseconds."`
	OwnBytes     int64     `json:"own_bytes,omitempty" example:"7340032" doc:"Memory of the host that is nobody else's."`
	SharedBytes  int64     `json:"shared_bytes,omitempty" example:"5242880" doc:"Its part of memory that it shares with others, mostly of one template."`
}

// Total is what all VMMs use together.
type Total struct {
	VMMs        int   `json:"vmms" example:"5"`
	OwnBytes    int64 `json:"own_bytes" example:"36700160"`
	SharedBytes int64 `json:"shared_bytes" example:"26214400" doc:"What they share, counted once."`
	PromisedMiB int   `json:"promised_mib" example:"960" doc:"Memory that sandboxes may come to use."`
	CapacityMiB int   `json:"capacity_mib" example:"7000" doc:"Memory that may be promised to sandboxes."`
}
