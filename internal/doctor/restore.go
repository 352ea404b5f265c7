package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/sandbox"
)

// clones is how many microVMs are restored from one template and compared.
const clones = 16

// maxClockError is how far a clone's clock may be off.
const maxClockError = time.Second

// whoAmI prints, as the first program of a clone, what no other clone may have
// too, and the time.
const whoAmI = `import json, os, random, socket, time, uuid
read = lambda path: open(path).read().strip()
print(json.dumps({"time": time.time(), "ids": {
  "/dev/urandom": os.urandom(16).hex(), "uuid4": str(uuid.uuid4()), "random": repr(random.random()),
  "boot_id": read("/proc/sys/kernel/random/boot_id"), "machine-id": read("/etc/machine-id"),
  "host name": socket.gethostname(), "kernel uuid": read("/proc/sys/kernel/random/uuid")}}))
`

// clone is what a clone says of itself.
type clone struct {
	Time float64           `json:"time"`
	IDs  map[string]string `json:"ids"`
}

// CheckRestore has the daemon behind c restore microVMs from one template, and
// compares them: they are twins in everything that their agents did not change.
// Unlike the checks of [Run] it makes what it looks at, and removes it again.
func CheckRestore(ctx context.Context, c *client.Client) []Result {
	built := Result{Name: "template", Verdict: OK}
	t, err := c.BuildTemplate(ctx, rest.TemplateRequest{LanguagePack: sandbox.DefaultPack})
	if err != nil {
		built.Verdict, built.Reason = Fail, err.Error()
		return []Result{built}
	}
	built.Reason = fmt.Sprintf("%s of %s, %.1f MB on disk", t.ID, t.LanguagePack, float64(t.Bytes)/1e6)
	results := []Result{built}

	seen := map[string]map[string]bool{}
	worst := time.Duration(0)
	for i := range clones {
		who, off, err := meetClone(ctx, c)
		if err != nil {
			return append(results, Result{Name: "restore", Verdict: Fail, Reason: fmt.Sprintf("clone %d of %d: %v", i+1, clones, err)})
		}
		worst = max(worst, off)
		for name, id := range who.IDs {
			if seen[name] == nil {
				seen[name] = map[string]bool{}
			}
			seen[name][id] = true
		}
	}
	results = append(results, Result{Name: "restore", Verdict: OK, Reason: fmt.Sprintf("%d clones of one template", clones)})
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		r := Result{Name: name, Verdict: OK, Reason: fmt.Sprintf("%d clones, %d values", clones, len(seen[name]))}
		if len(seen[name]) != clones || seen[name][""] {
			r.Verdict = Fail
		}
		results = append(results, r)
	}
	clock := Result{Name: "clock", Verdict: OK, Reason: fmt.Sprintf("off by %v at most", worst.Round(time.Millisecond))}
	if worst > maxClockError {
		clock.Verdict = Fail
	}
	return append(results, clock)
}

// meetClone restores a microVM, asks it who it is, and removes it. off is by how
// much its clock is certainly wrong.
func meetClone(ctx context.Context, c *client.Client) (who clone, off time.Duration, err error) {
	id, err := c.Create(ctx, sandbox.DefaultPack, client.WithBootPath(string(sandbox.Restored)))
	if err != nil {
		return who, 0, err
	}
	defer func() {
		if gone := c.Delete(context.WithoutCancel(ctx), id); err == nil {
			err = gone
		}
	}()
	before := time.Now()
	res, err := c.Exec(ctx, id, client.Program{Code: whoAmI})
	after := time.Now()
	if err != nil {
		return who, 0, err
	}
	if res.ExitCode != 0 {
		return who, 0, fmt.Errorf("it could not say who it is: %s", strings.TrimSpace(string(res.Stderr)))
	}
	if err := json.Unmarshal(res.Stdout, &who); err != nil {
		return who, 0, fmt.Errorf("it does not say who it is: %w", err)
	}
	now := time.UnixMicro(int64(who.Time * 1e6))
	return who, max(0, before.Sub(now), now.Sub(after)), nil
}
