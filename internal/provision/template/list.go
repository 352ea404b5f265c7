package template

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
)

// State is what can be said of a template.
type State string

// The states of a template.
const (
	Ready    State = "ready"
	Building State = "building"
	Failed   State = "failed"
	// Unverified is a template on the disk that nobody has asked for yet.
	Unverified State = "unverified"
)

// Info is what is told about a template.
type Info struct {
	// ID is empty as long as there are no files.
	ID   string
	Pack string
	Size sandbox.Size
	// Network says that the microVMs have a network interface.
	Network bool
	State   State
	// Phase is what goes on while it is built, Err why it failed.
	Phase string
	Err   error
	// CreatedAt is when it was made. Bytes is the room that it takes on the
	// disk, and Apparent the length of its files.
	CreatedAt       time.Time
	Bytes, Apparent int64
}

// Counts are what became of templates since the daemon began.
type Counts struct {
	// Builds were made and Failures were not; Refused were not what they had been
	// when they were made.
	Builds, Failures, Refused int64
	// FailedRestores are microVMs that could not be restored.
	FailedRestores int64
}

// Counts returns what became of templates since the daemon began.
func (s *Templates) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

func (s *Templates) count(add func(*Counts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	add(&s.counts)
}

// List returns all templates, by pack and size.
func (s *Templates) List() []Info {
	infos := s.stored()
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, sl := range s.slots {
		info := Info{Pack: k.pack, Size: k.size, Network: k.network}
		switch {
		case sl.template != nil:
			info = sl.template.info(Ready)
		case sl.job != nil:
			info.State = Building
			info.Phase, _ = sl.job.phase.Load().(string)
		case sl.err != nil:
			info.State, info.Err = Failed, sl.err
		default:
			continue
		}
		same := func(i Info) bool { return slotKey{i.Pack, i.Size, i.Network} == k }
		infos = append(slices.DeleteFunc(infos, same), info)
	}
	slices.SortFunc(infos, func(a, b Info) int {
		return cmp.Or(cmp.Compare(a.Pack, b.Pack), cmp.Compare(a.Size.MemoryMiB, b.Size.MemoryMiB),
			cmp.Compare(a.Size.VCPUs, b.Size.VCPUs), cmp.Compare(a.ID, b.ID))
	})
	return infos
}

// stored are the templates on the disk, as their manifests describe them.
func (s *Templates) stored() []Info {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return nil
	}
	var infos []Info
	for _, e := range entries {
		dir := filepath.Join(s.cfg.Dir, e.Name())
		if m, err := readManifest(dir); err == nil && filepath.Ext(dir) != partialSuffix {
			infos = append(infos, (&template{manifest: m, snapshot: firecracker.SnapshotIn(dir, m.Key.Size, "")}).info(Unverified))
		}
	}
	return infos
}

func (t *template) info(state State) Info {
	i := Info{ID: t.Key.ID(), Pack: t.Pack, Size: t.Key.Size, Network: t.Key.Network, State: state, CreatedAt: t.CreatedAt}
	i.Bytes, i.Apparent = t.size()
	return i
}

// Build makes the template of a kind, unless there is one, and returns when it is
// ready.
func (s *Templates) Build(ctx context.Context, k Kind) (Info, error) {
	if err := k.Size.Check(); err != nil {
		return Info{}, err
	}
	if err := provision.CheckEgress(s.cfg.Networks, nothing(k.Network)); err != nil {
		return Info{}, err
	}
	s.mu.Lock()
	sl := s.slot(k.slot())
	if sl.template == nil && sl.job == nil {
		s.begin(sl, k, s.swept) //nolint:contextcheck // others may wait for it, too
	}
	j := sl.job
	s.mu.Unlock()
	if j != nil {
		select {
		case <-j.done:
		case <-ctx.Done():
			return Info{}, context.Cause(ctx)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case sl.template != nil:
		return sl.template.info(Ready), nil
	case sl.err != nil:
		return Info{}, sl.err
	}
	return Info{}, sandbox.ErrBoot // it was discarded already
}

// Remove removes a template. VMs that were restored from it go on.
func (s *Templates) Remove(id string) error {
	s.building.Lock()
	defer s.building.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sl := range s.slots {
		if sl.template != nil && sl.template.Key.ID() == id {
			s.discard(sl)
			return nil
		}
	}
	for _, info := range s.stored() {
		if info.ID == id {
			return remove(filepath.Join(s.cfg.Dir, id))
		}
	}
	return &sandbox.Error{Code: sandbox.CodeNotFound, Message: "template not found"}
}
