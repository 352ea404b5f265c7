package jail

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
)

// Limits of one VMM process. It keeps about thirty files open, and unless it is
// to leave a snapshot it writes none: a core dump would hold its guest's memory.
const (
	maxOpenFiles = 256
	maxFileMiB   = 1
	maxCoreSize  = 0
)

// noVM is the size of the VM of a VMM that has none yet.
var noVM = sandbox.Size{VCPUs: 1}

// plan decides everything about the jail of a VMM that has no VM yet. Nothing is
// done yet.
func (j *Jailer) plan(spec Spec, user int) sandbox.Jail {
	name := string(spec.ID)
	id := strconv.Itoa(user)
	fileSize := uint64(max(maxFileMiB, spec.FileMiB)) << 20
	p := sandbox.Jail{
		UID: user, GID: user,
		Root:         filepath.Join(j.cfg.Dir, j.rootDir(name)),
		Files:        j.ownFiles(user),
		Namespaces:   []string{"ipc", "mnt", "net", "pid", "uts"},
		Cgroup:       "/" + j.cgroups.name + "/" + name,
		CgroupLimits: limitsFor(noVM, spec.FileMiB, j.disk),
		Rlimits:      map[string]uint64{"nofile": maxOpenFiles, "fsize": fileSize, "core": maxCoreSize},
		Umask:        fmt.Sprintf("%04o", umask),
		ConsoleBytes: consoleTail,
		Command: slices.Concat([]string{
			j.cfg.Jailer, "--id", name, "--exec-file", j.cfg.Firecracker, "--uid", id, "--gid", id,
			"--chroot-base-dir", j.cfg.Dir,
			"--resource-limit", fmt.Sprintf("no-file=%d", maxOpenFiles),
			"--resource-limit", fmt.Sprintf("fsize=%d", fileSize),
			"--",
		}, spec.Args),
	}
	for _, c := range jailerCapabilities {
		p.BoundingSet = append(p.BoundingSet, c.name)
	}
	if j.diskErr != nil {
		p.Missing = append(p.Missing, "io.max: "+j.diskErr.Error())
	}
	return p
}

// equipped is plan, of a VMM that has no VM yet, with a VM of that size and its
// files, name to path on the host. They are looked at, and nothing else is done.
func (j *Jailer) equipped(plan sandbox.Jail, spec Spec, size sandbox.Size, files map[string]string) (sandbox.Jail, error) {
	shared, err := sharedFiles(files)
	if err != nil {
		return sandbox.Jail{}, err
	}
	plan.Files = slices.Concat(plan.Files, shared)
	sortFiles(plan.Files)
	plan.CgroupLimits = limitsFor(size, spec.FileMiB, j.disk)
	return plan, nil
}

// ownFiles are what a VMM finds in its root directory when it begins: what the
// jailer makes, for the VMM's user alone or out of its reach.
func (j *Jailer) ownFiles(user int) []sandbox.JailFile {
	own := func(path, kind, mode string) sandbox.JailFile {
		return sandbox.JailFile{Path: path, Kind: kind, Mode: mode, UID: user, GID: user}
	}
	files := []sandbox.JailFile{
		own("/", "dir", "0700"),
		own("/dev", "dir", "0700"),
		own("/dev/kvm", "device", "0600"),
		own("/dev/net", "dir", "0700"),
		own("/dev/net/tun", "device", "0600"),
		own("/dev/urandom", "device", "0600"),
		own("/run", "dir", "0700"),
		{Path: "/" + j.execName(), Kind: "file", Mode: "0755"},
		{Path: "/" + j.execName() + ".pid", Kind: "file", Mode: "0600"},
	}
	if j.userfault {
		files = append(files, own("/dev/userfaultfd", "device", "0600"))
	}
	sortFiles(files)
	return files
}

// sharedFiles are the links that a VM's files are in the root directory.
func sharedFiles(shared map[string]string) ([]sandbox.JailFile, error) {
	var files []sandbox.JailFile
	for name, source := range shared {
		var st unix.Stat_t
		if err := unix.Lstat(source, &st); err != nil {
			return nil, &fs.PathError{Op: "stat", Path: source, Err: err}
		}
		files = append(files, sandbox.JailFile{
			Path: "/" + name, Kind: "file", Mode: fmt.Sprintf("%04o", st.Mode&0o7777),
			UID: int(st.Uid), GID: int(st.Gid), Source: source,
		})
	}
	return files, nil
}

func sortFiles(files []sandbox.JailFile) {
	slices.SortFunc(files, func(a, b sandbox.JailFile) int { return strings.Compare(a.Path, b.Path) })
}
