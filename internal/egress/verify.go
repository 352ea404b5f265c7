package egress

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// errDiffers is that the kernel's rules are not those that were asked for.
var errDiffers = errors.New("the rules in the kernel differ from the policy's")

// verify returns an error unless the kernel has the rules that p asks for, and
// those alone.
func (k *kernel) verify(p *policy) error {
	return errors.Join(k.verifyRules(), k.verifyPolicy(p))
}

// verifyRules compares everything but what depends on the policy.
func (k *kernel) verifyRules() error {
	conn, err := k.talk()
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseLasting() }()
	got, err := readBack(conn, int(k.ns.file.Fd()))
	if err != nil {
		return fmt.Errorf("read rules back: %w", err)
	}
	return differ(got, k.rules.text())
}

// differ says in which line two texts differ first.
func differ(got, want string) error {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		var a, b string
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			return fmt.Errorf("%w: line %d is %q, not %q", errDiffers, i+1, a, b)
		}
	}
	return nil
}

// verifyPolicy compares what depends on the policy.
func (k *kernel) verifyPolicy(p *policy) error {
	conn, err := k.talk()
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseLasting() }()
	for _, f := range k.rules.families {
		for name, want := range elements(p, f) {
			got, err := conn.GetSetElements(k.rules.set(name))
			if err != nil {
				return fmt.Errorf("read %s back: %w", name, err)
			}
			slices.SortFunc(got, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
			same := func(a, b nftables.SetElement) bool {
				return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.KeyEnd, b.KeyEnd)
			}
			if !slices.EqualFunc(got, want, same) {
				return fmt.Errorf("%w: %s has %d elements, of %d that it should have", errDiffers, name, len(got), len(want))
			}
		}
	}
	used, err := k.used()
	if err != nil {
		return err
	}
	if want := quota(p); used.quota != want {
		return fmt.Errorf("%w: the limit is %d bytes, not %d", errDiffers, used.quota, want)
	}
	return nil
}

// reassert has the rules of p in force. If those of an earlier daemon are the same
// nothing is changed.
func (k *kernel) reassert(p *policy, log *slog.Logger) error {
	err := k.verifyRules()
	if err != nil {
		if !errors.Is(err, errDiffers) && !errors.Is(err, unix.ENOENT) {
			return err
		}
		log.Warn("the rules of a network were put up anew", "err", err)
		return k.install(p, k.carry(p))
	}
	k.ranges = p.ranges
	err = k.verifyPolicy(p)
	if errors.Is(err, errDiffers) {
		log.Warn("a network did not have the policy of its record", "err", err)
		return k.set(p)
	}
	if err != nil {
		return err
	}
	return k.set(p) // what was resolved for another policy goes
}

// carry reads what is kept when the rules are put up anew: what was used, and what
// was resolved. What cannot be read is lost, which opens nothing.
func (k *kernel) carry(p *policy) *carried {
	old := &carried{names: map[string][]nftables.SetElement{}}
	if used, err := k.used(); err == nil {
		old.used = used
	}
	conn, err := k.talk()
	if err != nil {
		return old
	}
	defer func() { _ = conn.CloseLasting() }()
	for _, f := range k.rules.families {
		set := k.rules.set(nameSet + f.suffix)
		there, err := conn.GetSetElements(set)
		if err != nil {
			continue
		}
		for _, e := range there {
			if opened(p, e) && e.Expires > 0 {
				old.names[set.Name] = append(old.names[set.Name], nftables.SetElement{Key: e.Key, Timeout: e.Expires, Comment: e.Comment})
			}
		}
	}
	return old
}
