package rest

// Inspection is one sandbox, and what confines it. It is made for whoever runs
// the daemon, and tells where things are on the host; programs in a sandbox
// cannot ask for it.
type Inspection struct {
	Sandbox Sandbox `json:"sandbox"`
	Jail    Jail    `json:"jail"`
}

// Jail is everything that confines the VMM process of a sandbox.
type Jail struct {
	PID          int               `json:"pid" example:"4711" doc:"The VMM's process id."`
	UID          int               `json:"uid" example:"1701642240" doc:"The VMM's user id, which nothing else on the host has."`
	GID          int               `json:"gid" example:"1701642240" doc:"The VMM's group id, likewise."`
	Root         string            `json:"root" doc:"The VMM's root directory, as the host sees it."`
	Files        []JailFile        `json:"files" nullable:"false" doc:"What the root directory held when the VMM was started."`
	Namespaces   []string          `json:"namespaces" nullable:"false" example:"[\"ipc\",\"mnt\",\"net\",\"pid\",\"uts\"]" doc:"The namespaces that the VMM shares with nobody."`
	Cgroup       string            `json:"cgroup" doc:"The VMM's cgroup."`
	CgroupLimits map[string]string `json:"cgroup_limits" doc:"The files of the cgroup and what was written to them."`
	Missing      []string          `json:"missing,omitempty" doc:"Limits that this host cannot enforce, and why. Absent when there are none."`
	Rlimits      map[string]uint64 `json:"rlimits" doc:"The soft and hard limit of each resource of the process."`
	Umask        string            `json:"umask" example:"0077" doc:"The mask of what the VMM creates."`
	BoundingSet  []string          `json:"bounding_set" nullable:"false" doc:"The capabilities that the jailer had to make the jail. The VMM has none of them, and cannot gain any."`
	ConsoleBytes int               `json:"console_bytes" example:"65536" doc:"How much of the console is kept."`
	Command      []string          `json:"command" nullable:"false" doc:"The jailer with its arguments."`
}

// JailFile is a file in a jail.
type JailFile struct {
	Path   string `json:"path" example:"/rootfs"`
	Kind   string `json:"kind" enum:"dir,file,device" example:"file"`
	Mode   string `json:"mode" example:"0444" doc:"Its permissions, octal."`
	UID    int    `json:"uid" example:"0"`
	GID    int    `json:"gid" example:"0"`
	Source string `json:"source,omitempty" doc:"The file on the host that it is a hard link of. Absent for files of the jail's own."`
}
