package httpapi

import (
	"net/http"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
)

func (a *API) inspect(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := sandbox.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	sb, jail, err := a.engine.Inspect(id)
	if err != nil {
		return nil, err
	}
	return rest.Inspection{Sandbox: describe(sb), Jail: describeJail(jail)}, nil
}

// describeJail returns j in the API's words.
func describeJail(j sandbox.Jail) rest.Jail {
	files := make([]rest.JailFile, len(j.Files))
	for i, f := range j.Files {
		files[i] = rest.JailFile(f)
	}
	return rest.Jail{
		PID:          j.PID,
		UID:          j.UID,
		GID:          j.GID,
		Root:         j.Root,
		Files:        files,
		Namespaces:   j.Namespaces,
		Cgroup:       j.Cgroup,
		CgroupLimits: j.CgroupLimits,
		Missing:      j.Missing,
		Rlimits:      j.Rlimits,
		Umask:        j.Umask,
		BoundingSet:  j.BoundingSet,
		ConsoleBytes: j.ConsoleBytes,
		Command:      j.Command,
	}
}
