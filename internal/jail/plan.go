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

// Limits of one VMM process. It keeps about thirty files open, and writes none:
// a core dump would hold its guest's memory.
const (
	maxOpenFiles = 256
	maxFileSize  = 1 << 20
	maxCoreSize  = 0
)

// plan decides everything about the jail of one VMM. Nothing is done yet.
func (j *Jailer) plan(spec Spec, user int) (sandbox.Jail, error) {
	name := string(spec.ID)
	id := strconv.Itoa(user)
	files, err := j.files(spec.Files, user)
	if err != nil {
		return sandbox.Jail{}, err
	}
	p := sandbox.Jail{
		UID: user, GID: user,
		Root:         filepath.Join(j.cfg.Dir, j.rootDir(name)),
		Files:        files,
		Namespaces:   []string{"ipc", "mnt", "net", "pid", "uts"},
		Cgroup:       "/" + j.cgroups.name + "/" + name,
		CgroupLimits: limitsFor(spec.Size, j.disk),
		Rlimits:      map[string]uint64{"nofile": maxOpenFiles, "fsize": maxFileSize, "core": maxCoreSize},
		Umask:        fmt.Sprintf("%04o", umask),
		ConsoleBytes: consoleTail,
		Command: slices.Concat([]string{
			j.cfg.Jailer, "--id", name, "--exec-file", j.cfg.Firecracker, "--uid", id, "--gid", id,
			"--chroot-base-dir", j.cfg.Dir,
			"--resource-limit", fmt.Sprintf("no-file=%d", maxOpenFiles),
			"--resource-limit", fmt.Sprintf("fsize=%d", maxFileSize),
			"--",
		}, spec.Args),
	}
	for _, c := range jailerCapabilities {
		p.BoundingSet = append(p.BoundingSet, c.name)
	}
	if j.diskErr != nil {
		p.Missing = append(p.Missing, "io.max: "+j.diskErr.Error())
	}
	return p, nil
}

// files are what a VMM finds in its root directory: the links that are shared,
// and what the jailer makes, for the VMM's user alone or out of its reach.
func (j *Jailer) files(shared map[string]string, user int) ([]sandbox.JailFile, error) {
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
	slices.SortFunc(files, func(a, b sandbox.JailFile) int { return strings.Compare(a.Path, b.Path) })
	return files, nil
}
