package rest

// Limits is what a sandbox may use. In a request a limit that is absent or 0 has
// the daemon's default; nothing is unlimited.
type Limits struct {
	VCPUs        int   `json:"vcpus,omitempty" minimum:"0" example:"1" doc:"Virtual CPUs of the microVM."`
	MemoryMiB    int   `json:"memory_mib,omitempty" minimum:"0" example:"256" doc:"Memory of the microVM in MiB."`
	DiskMiB      int   `json:"disk_mib,omitempty" minimum:"0" example:"128" doc:"How much may be written to files, in MiB. Files are kept in the guest's memory; the default is half of it."`
	PIDs         int   `json:"pids,omitempty" minimum:"0" example:"512" doc:"How many processes and threads programs may have together."`
	TimeoutS     int64 `json:"timeout_s,omitempty" minimum:"0" example:"3600" doc:"How long the sandbox lives, in seconds from the request for it. Then it is deleted, whatever runs in it."`
	IdleTimeoutS int64 `json:"idle_timeout_s,omitempty" minimum:"0" example:"1800" doc:"How long it lives while no program runs, in seconds."`
	ExecTimeoutS int64 `json:"exec_timeout_s,omitempty" minimum:"0" example:"3600" doc:"How long one program may run, in seconds."`
	Execs        int   `json:"execs,omitempty" minimum:"0" example:"16" doc:"How many programs may run at a time."`
	OutputBytes  int   `json:"output_bytes,omitempty" minimum:"0" example:"16777216" doc:"How much of each output stream the result of a program carries. What it writes beyond that is read and dropped."`
}
