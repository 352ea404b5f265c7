package rest

// Pool is the microVMs that are ready before anybody asks for them.
type Pool struct {
	Pool []PoolStock `json:"pool" nullable:"false"`
}

// PoolStock is one kind of microVM that the pool keeps, and what became of it
// since the daemon began. Sandboxes with other limits of size, disk or processes
// do not come from it.
type PoolStock struct {
	Pack     string `json:"pack" example:"python" doc:"The language pack."`
	Size     Size   `json:"size" doc:"The size of each microVM."`
	Ready    int    `json:"ready" example:"2" doc:"How many are waiting for a sandbox."`
	Target   int    `json:"target" example:"2" doc:"How many there should be now. It grows when a request finds none, and shrinks when that did not happen for a while."`
	Min      int    `json:"min" example:"2" doc:"The least that the target can be."`
	Max      int    `json:"max" example:"4" doc:"The most that the target can be. The memory of so many is set aside."`
	Hits     int64  `json:"hits" example:"17" doc:"Requests that found one waiting."`
	Misses   int64  `json:"misses" example:"1" doc:"Requests that found none, so that one was made for them."`
	Refills  int64  `json:"refills" example:"19" doc:"MicroVMs that were made ready."`
	Failures int64  `json:"failures" example:"0" doc:"Refills that failed, and microVMs that ended or fell silent while they waited."`
}

// Size is what a microVM is given.
type Size struct {
	VCPUs     int `json:"vcpus" example:"1"`
	MemoryMiB int `json:"memory_mib" example:"256"`
}
