// Package doctor says whether this host can run emberd, and what to do where
// it cannot.
//
// It is a list of small checks. Each answers one question with a verdict, the
// reason for it and, where something is to be done, a command that does it.
// Checks change nothing, and never try out what they check: a device that opens
// proves little, a fact of the kernel more.
package doctor

import (
	"context"
	"io/fs"
	"os"
	"os/exec"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/paths"
)

// Verdict is the outcome of a check.
type Verdict string

// The verdicts. With a warning emberd works, though not as well or as safely as
// it could; with a failure it does not. Of what is unknown the host does not tell.
const (
	OK      Verdict = "ok"
	Warn    Verdict = "warn"
	Fail    Verdict = "fail"
	Unknown Verdict = "unknown"
)

// Result is the outcome of one check.
type Result struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason"`
	// Remedy is a command to run, or what else to do. It is empty when nothing
	// is to be done.
	Remedy string `json:"remedy,omitempty"`
}

// Env is what the checks look at.
type Env struct {
	Data paths.Data
	Run  paths.Run
	// Host is the host's root directory.
	Host fs.FS
	// Euid is the effective user.
	Euid int
	// LookPath finds a program.
	LookPath func(name string) (string, error)
	// Versions asks Firecracker and its jailer for the version they share.
	Versions func(ctx context.Context, firecracker, jailer string) (string, error)
	// Free returns the bytes free for path, which need not exist yet.
	Free func(path string) (uint64, error)
	// Tmpfs tells whether path, which need not exist yet, is in memory.
	Tmpfs func(path string) (bool, error)
	// FileLimit is how many files a process may come to have open.
	FileLimit func() (uint64, error)
	// ClockSynced tells whether something keeps the clock right.
	ClockSynced func() (bool, error)
}

// NewEnv is this process on this host.
func NewEnv(data paths.Data, run paths.Run) Env {
	return Env{
		Data:        data,
		Run:         run,
		Host:        os.DirFS("/"),
		Euid:        os.Geteuid(),
		LookPath:    exec.LookPath,
		Versions:    firecracker.CheckVersions,
		Free:        free,
		Tmpfs:       tmpfs,
		FileLimit:   fileLimit,
		ClockSynced: clockSynced,
	}
}

// check is one question. It is asked with the answer to the first of all: where
// there is no KVM, emberd runs in the machine, which has its own of many things.
type check struct {
	name string
	run  func(ctx context.Context, env Env, kvm KVM) Result
}

var checks = []check{
	{"kvm", checkKVM},
	{"machine", checkMachine},
	{"root", checkRoot},
	{"cgroups", checkCgroups},
	{"firecracker", checkFirecracker},
	{"advisories", checkAdvisories},
	{"kernel", checkKernel},
	{"packs", checkPacks},
	{"disk", checkDisk},
	{"run-dir", checkRunDir},
	{"files", checkFiles},
	{"mitigations", checkMitigations},
	{"smt", checkSMT},
	{"swap", checkSwap},
	{"ksm", checkKSM},
	{"clock", checkClock},
	{"network", checkNetwork},
	{"leftovers", checkLeftovers},
}

// Run runs every check and returns the results in a fixed order.
func Run(ctx context.Context, env Env) []Result {
	kvm := DetectKVM(env.Host)
	results := make([]Result, 0, len(checks))
	for _, c := range checks {
		r := c.run(ctx, env, kvm)
		r.Name = c.name
		results = append(results, r)
	}
	return results
}

func unknown(reason string) Result      { return Result{Verdict: Unknown, Reason: reason} }
func ok(reason string) Result           { return Result{Verdict: OK, Reason: reason} }
func warn(reason, remedy string) Result { return Result{Verdict: Warn, Reason: reason, Remedy: remedy} }
func fail(reason, remedy string) Result { return Result{Verdict: Fail, Reason: reason, Remedy: remedy} }
