package sandbox

// Jail is everything that confines one VMM process: who it is, what it sees and
// what it may use. It is decided before the VMM is started, and what is started
// is what it says.
type Jail struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
	// Root is the VMM's root directory, as the host sees it.
	Root string `json:"root"`
	// Files are all that the root directory holds when the VMM starts.
	Files []JailFile `json:"files"`
	// Namespaces are those that the VMM shares with nobody.
	Namespaces []string `json:"namespaces"`
	Cgroup     string   `json:"cgroup"`
	// CgroupLimits are the cgroup's files and what is written to them.
	CgroupLimits map[string]string `json:"cgroup_limits"`
	// Missing says which limits this host cannot enforce, and why.
	Missing []string `json:"missing,omitempty"`
	// Rlimits are both the soft and the hard limit of each resource.
	Rlimits map[string]uint64 `json:"rlimits"`
	Umask   string            `json:"umask"`
	// BoundingSet are the capabilities that the jailer needs to build the jail.
	// The VMM has none of them, and no way to gain one.
	BoundingSet []string `json:"bounding_set"`
	// ConsoleBytes is how much of the console is kept.
	ConsoleBytes int `json:"console_bytes"`
	// Command is the jailer with all of its arguments.
	Command []string `json:"command"`
	// PID is the VMM's process id, 0 as long as there is none.
	PID int `json:"pid,omitempty"`
}

// JailFile is a file in a jail's root directory.
type JailFile struct {
	Path string `json:"path"`
	// Kind is "dir", "file" or "device".
	Kind string `json:"kind"`
	// Mode are the permissions, as chmod takes them.
	Mode string `json:"mode"`
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	// Source is the file on the host that this one is a hard link of.
	Source string `json:"source,omitempty"`
}
