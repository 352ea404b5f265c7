package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Flags of a thread that runs in the kernel only, from include/linux/sched.h.
// KVM starts such threads on behalf of a VMM; newer kernels list them among the
// VMM's own.
const (
	pfIOWorker   = 0x00000010
	pfUserWorker = 0x00004000
	pfKThread    = 0x00200000
)

// checkThreads returns an error unless every thread of the process under /proc
// is confined as a VMM's has to be while its guest runs: behind a seccomp
// filter, without a way to new privileges, as the one user, in no other group,
// and with no capability.
func checkThreads(proc string, user int) error {
	tasks, err := os.ReadDir(filepath.Join(proc, "task"))
	if err != nil {
		return fmt.Errorf("threads of VMM: %w", err)
	}
	checked := 0
	for _, task := range tasks {
		own, err := checkThread(filepath.Join(proc, "task", task.Name()), user)
		if processGone(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("thread %s of VMM: %w", task.Name(), err)
		}
		if own {
			checked++
		}
	}
	// A thread that is started after the listing inherits what the one that
	// started it has, so no thread can be missed.
	if checked == 0 {
		return errors.New("the VMM has no thread")
	}
	return nil
}

// checkThread checks one thread. One that is not the VMM's own passes.
func checkThread(task string, user int) (own bool, err error) {
	flags, err := threadFlags(filepath.Join(task, "stat"))
	if err != nil || flags&(pfKThread|pfUserWorker|pfIOWorker) != 0 {
		return false, err
	}
	status, err := readStatus(filepath.Join(task, "status"))
	if err != nil {
		return false, err
	}
	ids := slices.Repeat([]string{strconv.Itoa(user)}, 4)
	for _, want := range []struct {
		name  string
		value []string
	}{
		{"Seccomp", []string{"2"}},
		{"NoNewPrivs", []string{"1"}},
		{"Uid", ids},
		{"Gid", ids},
		{"Groups", nil},
		{"CapInh", noCapability},
		{"CapPrm", noCapability},
		{"CapEff", noCapability},
		{"CapAmb", noCapability},
	} {
		got, ok := status[want.name]
		if !ok || !slices.Equal(got, want.value) {
			return true, fmt.Errorf("%s is %q, want %q", want.name, got, want.value)
		}
	}
	return true, nil
}

var noCapability = []string{"0000000000000000"}

// readStatus reads a status file of /proc: the words behind each name.
func readStatus(path string) (map[string][]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	status := make(map[string][]string)
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			status[name] = strings.Fields(value)
		}
	}
	return status, nil
}

// threadFlags reads the kernel's flags of a thread. They are the seventh field
// behind the name, which is in parentheses and may hold any byte.
func threadFlags(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	_, rest, ok := cutLast(string(b), ")")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 7 {
		return 0, fmt.Errorf("%s: unexpected content", path)
	}
	return strconv.ParseUint(fields[6], 10, 64)
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
