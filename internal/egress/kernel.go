package egress

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	hostkernel "github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/fault"
)

// Fault points of [Host.Attach] and [Host.Adopt], one for each step. Adopting has
// no TAP to make.
const (
	FaultNamespace = "egress.namespace"
	FaultSettings  = "egress.settings"
	FaultRules     = "egress.rules"
	FaultVerify    = "egress.verify"
	FaultTAP       = "egress.tap"
	FaultWire      = "egress.wire"
	FaultSockets   = "egress.sockets"
)

// FaultPoints are the steps that a test can break.
var FaultPoints = []string{FaultNamespace, FaultSettings, FaultRules, FaultVerify, FaultTAP, FaultWire, FaultSockets}

// kernel is the part of a microVM's network that the kernel keeps, in the VMM's
// namespace: the interface, and the rules that decide which of the guest's packets
// reach the relay. It goes on without the daemon. Its methods may be called by any
// number of goroutines until it is closed.
type kernel struct {
	ns    *namespace
	guest Guest
	ipv6  bool
	rules *ruleset

	// mu is held while the kernel is talked to: what is opened depends on what is
	// open, and netlink answers at once.
	mu     sync.Mutex
	ranges Ranges
	hosts  map[string]map[string]bool // that elements of name sets are for, by set and key
	counts map[string]tally           // by set and key
}

// kernelConfig is what a kernel is made of.
type kernelConfig struct {
	ipv6   bool
	log    *slog.Logger
	faults *fault.Set
}

// attachKernel makes the interface, once the rules for it are in force. On error
// nothing is left of it.
func attachKernel(ctx context.Context, cfg kernelConfig, vmm VMM, p *policy) (_ *kernel, s sockets, err error) {
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Unwind(ctx))
		}
	}()
	k, err := enterKernel(cfg, vmm, false)
	if err != nil {
		return nil, s, err
	}
	undo.Add(FaultNamespace, func(context.Context) error { return k.close() })
	steps := []struct {
		fault string
		do    func() error
		undo  func() error
	}{
		{FaultSettings, func() error { return k.ns.do(func() error { return apply(settings(cfg.ipv6)) }) }, nil},
		{FaultRules, func() error { return k.install(p, nil) }, k.uninstall},
		{FaultVerify, func() error { return k.verify(p) }, nil},
		{FaultTAP, func() error { return k.ns.do(func() error { return makeTAP(vmm.UID) }) }, func() error { return k.ns.do(removeTAP) }},
		{FaultWire, func() error { return k.ns.do(func() error { return wire(k.guest, cfg.ipv6) }) }, nil},
		{FaultSockets, func() (err error) { s, err = k.listen(ctx); return err }, func() error { return s.close() }},
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return nil, s, err
		}
		if step.undo != nil {
			undo.Add(step.fault, func(context.Context) error { return step.undo() })
		}
		if err := errors.Join(step.do(), cfg.faults.Hit(step.fault)); err != nil {
			return nil, s, err
		}
	}
	return k, s, nil
}

// adoptKernel takes over what an earlier daemon made, and has it be as this one
// would make it. On error the rules stay as they are, and nothing passes.
func adoptKernel(ctx context.Context, cfg kernelConfig, vmm VMM, p *policy) (_ *kernel, s sockets, err error) {
	k, err := enterKernel(cfg, vmm, true)
	if err != nil {
		return nil, s, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(), k.close())
		}
	}()
	steps := []struct {
		fault string
		do    func() error
	}{
		{FaultSettings, func() error { return k.ns.do(func() error { return apply(settings(cfg.ipv6)) }) }},
		{FaultRules, func() error { return k.reassert(p, cfg.log.With("vm", vmm.ID)) }},
		{FaultVerify, func() error { return k.verify(p) }},
		{FaultWire, func() error { return k.ns.do(func() error { return wire(k.guest, cfg.ipv6) }) }},
		{FaultSockets, func() (err error) { s, err = k.listen(ctx); return err }},
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return nil, s, err
		}
		if err := errors.Join(step.do(), cfg.faults.Hit(step.fault)); err != nil {
			return nil, s, err
		}
	}
	return k, s, nil
}

// enterKernel opens the namespace of a VMM that has the interface, or has none.
func enterKernel(cfg kernelConfig, vmm VMM, tap bool) (*kernel, error) {
	ns, err := openNamespace(vmm.PID)
	if err != nil {
		return nil, err
	}
	err = errors.Join(ns.do(func() error { return holds(tap) }), cfg.faults.Hit(FaultNamespace))
	if err != nil {
		return nil, errors.Join(err, ns.close())
	}
	guest := GuestOf(vmm.ID)
	if !cfg.ipv6 { // then the guest has no such addresses
		guest.Addr6, guest.Gateway6 = netip.Addr{}, netip.Addr{}
	}
	return &kernel{ns: ns, guest: guest, ipv6: cfg.ipv6, rules: newRuleset(guest, cfg.ipv6), hosts: map[string]map[string]bool{}, counts: map[string]tally{}}, nil
}

func (k *kernel) close() error { return k.ns.close() }

// How long the kernel may take to answer, and how much may be said to it at once.
const (
	answerTime = time.Minute
	batchBytes = 16 << 20
)

// bound sets the limits of a connection to the kernel, so that nobody waits for
// ever.
func bound(conn *netlink.Conn) error {
	return errors.Join(conn.SetWriteBuffer(batchBytes), conn.SetReadBuffer(batchBytes), conn.SetDeadline(time.Now().Add(answerTime)))
}

// talk returns a connection to the namespace's rules. The caller closes it.
func (k *kernel) talk() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(k.ns.file.Fd())), nftables.WithSockOptions(bound))
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return conn, nil
}

// batch has changes made as one.
func (k *kernel) batch(fill func(*nftables.Conn) error) error {
	conn, err := k.talk()
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseLasting() }()
	if err := fill(conn); err != nil {
		return err
	}
	return conn.Flush()
}

// explain says what a host may lack whose kernel does not know what is asked of it.
func explain(err error) error {
	for _, unknown := range []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} {
		if errors.Is(err, unknown) {
			return sandbox.EgressUnavailable("this host's kernel lacks a part of nftables (sudo modprobe -a " + strings.Join(hostkernel.NetworkModules()[1:], " ") + ")").Because(err)
		}
	}
	return err
}

// install puts the rules for a policy in the place of all that is there, at once.
// What was resolved and what was used before may be carried over.
func (k *kernel) install(p *policy, old *carried) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.rules
	err := k.batch(func(conn *nftables.Conn) error {
		conn.AddTable(r.table) // or there might be none to delete
		conn.DelTable(r.table)
		conn.AddTable(r.table)
		for _, s := range r.sets {
			if err := conn.AddSet(s, nil); err != nil {
				return err
			}
		}
		total := &nftables.QuotaObj{Table: r.table, Name: totalQuota, Bytes: quota(p), Over: true}
		if old != nil {
			total.Consumed = old.used.Bytes
			for name, elements := range old.names {
				if err := add(conn, r.set(name), elements); err != nil {
					return err
				}
			}
		}
		conn.AddObj(total)
		for _, name := range []string{refusedCounter, forgedCounter} {
			conn.AddObj(&nftables.CounterObj{Table: r.table, Name: name})
		}
		for _, c := range r.chains {
			conn.AddChain(c.Chain)
		}
		for _, c := range r.chains {
			for _, rule := range c.rules {
				conn.AddRule(&nftables.Rule{Table: r.table, Chain: c.Chain, Exprs: rule})
			}
		}
		return k.addRanges(conn, p)
	})
	if err != nil {
		return fmt.Errorf("install rules: %w", explain(err))
	}
	k.ranges = p.ranges
	return nil
}

func (k *kernel) uninstall() error {
	return k.batch(func(conn *nftables.Conn) error {
		conn.AddTable(k.rules.table)
		conn.DelTable(k.rules.table)
		return nil
	})
}

func (k *kernel) addRanges(conn *nftables.Conn, p *policy) error {
	for _, f := range k.rules.families {
		for name, elements := range elements(p, f) {
			if err := add(conn, k.rules.set(name), elements); err != nil {
				return err
			}
		}
	}
	return nil
}

// add adds elements in messages that are not too long for their length's 16 bits.
func add(conn *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) error {
	for some := range slices.Chunk(elements, 100) {
		if err := conn.SetAddElements(set, some); err != nil {
			return err
		}
	}
	return nil
}

// set has the kernel let through what p allows, at once. What was resolved before
// stays for as long as p has the rule that it was resolved for; what was used and
// what was denied stays.
func (k *kernel) set(p *policy) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	// An element may end between being read and being deleted, and then nothing is
	// changed.
	for range 3 {
		if err = k.trySet(p); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("change rules: %w", err)
	}
	k.ranges = p.ranges
	return nil
}

func (k *kernel) trySet(p *policy) error {
	return k.batch(func(conn *nftables.Conn) error {
		for _, f := range k.rules.families {
			names := k.rules.set(nameSet + f.suffix)
			there, err := conn.GetSetElements(names)
			if err != nil {
				return fmt.Errorf("list %s: %w", names.Name, err)
			}
			stale := slices.DeleteFunc(there, func(e nftables.SetElement) bool { return opened(p, e) })
			for some := range slices.Chunk(stale, 100) {
				if err := conn.SetDeleteElements(names, plain(some)); err != nil {
					return err
				}
			}
			conn.FlushSet(k.rules.set(rangeSet + f.suffix))
			conn.FlushSet(k.rules.set(wholeSet + f.suffix))
		}
		conn.AddObj(&nftables.QuotaObj{Table: k.rules.table, Name: totalQuota, Bytes: quota(p), Over: true})
		return k.addRanges(conn, p)
	})
}

// plain returns elements by their keys alone, as they are deleted.
func plain(elements []nftables.SetElement) []nftables.SetElement {
	keys := make([]nftables.SetElement, len(elements))
	for i, e := range elements {
		keys[i].Key = e.Key
	}
	return keys
}

// opened tells whether what was resolved is open under p.
func opened(p *policy, e nftables.SetElement) bool {
	addr, proto, port, ok := target(e.Key)
	if !ok || p.ranges.forbids(addr) {
		return false
	}
	hosts := strings.Fields(e.Comment)
	return slices.ContainsFunc(p.Allow, func(r sandbox.EgressRule) bool {
		return r.Host != "" && slices.Contains(hosts, r.Host) && covers(r, proto, port)
	})
}

// The shortest and the longest time for which an address is open.
const (
	shortestOpen = 5 * time.Second
	longestOpen  = time.Hour + time.Minute
)

// open lets through what rules, all of them for names, allow at addr, for ttl from
// now on.
func (k *kernel) open(addr netip.Addr, rules []sandbox.EgressRule, ttl time.Duration) error {
	i := slices.IndexFunc(k.rules.families, func(f family) bool { return uint32(len(addr.AsSlice())) == f.size })
	if i < 0 || addr.Is4In6() {
		return fmt.Errorf("open %s: no such addresses here", addr)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ranges.forbids(addr) {
		return fmt.Errorf("open %s: it is never reached", addr)
	}
	set := k.rules.set(nameSet + k.rules.families[i].suffix)
	hosts := map[string][]string{}
	for _, r := range rules {
		for _, port := range r.Ports {
			key := string(key(addr, r.Protocol, port))
			hosts[key] = append(hosts[key], r.Host)
		}
	}
	fresh := make([]nftables.SetElement, 0, len(hosts))
	for _, key := range slices.Sorted(maps.Keys(hosts)) {
		at := set.Name + key
		if len(k.hosts) > 2*maxNames {
			clear(k.hosts) // most have ended
		}
		if k.hosts[at] == nil {
			k.hosts[at] = map[string]bool{}
		}
		for _, host := range hosts[key] {
			k.hosts[at][host] = true
		}
		fresh = append(fresh, nftables.SetElement{
			Key: []byte(key), Timeout: min(max(ttl, shortestOpen), longestOpen), Comment: comment(slices.Collect(maps.Keys(k.hosts[at]))),
		})
	}
	// An element that is there does not take a new end: it is deleted, and so that
	// this does not fail, added first. To packets it is one change.
	replace := func(conn *nftables.Conn) error {
		for some := range slices.Chunk(fresh, 100) {
			if err := errors.Join(conn.SetAddElements(set, some), conn.SetDeleteElements(set, plain(some)), conn.SetAddElements(set, some)); err != nil {
				return err
			}
		}
		return nil
	}
	var err error
	for range 3 {
		if err = k.batch(replace); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", addr, err)
	}
	return nil
}

// carried is what a change of the rules leaves as it was.
type carried struct {
	names map[string][]nftables.SetElement
	used  usage
}

// usage is what the kernel counted.
type usage struct {
	Bytes           uint64 // that passed
	Refused, Forged uint64 // packets
	quota           uint64
}

// used reads the counts.
func (k *kernel) used() (usage, error) {
	conn, err := k.talk()
	if err != nil {
		return usage{}, err
	}
	defer func() { _ = conn.CloseLasting() }()
	objects, err := conn.GetNamedObjects(k.rules.table)
	if err != nil {
		return usage{}, fmt.Errorf("list counters: %w", err)
	}
	var u usage
	for _, o := range objects {
		named, ok := o.(*nftables.NamedObj)
		if !ok {
			continue
		}
		switch o := named.Obj.(type) {
		case *expr.Quota:
			if named.Name == totalQuota && o.Over {
				u.Bytes, u.quota = o.Consumed, o.Bytes
			}
		case *expr.Counter:
			switch named.Name {
			case refusedCounter:
				u.Refused = o.Packets
			case forgedCounter:
				u.Forged = o.Packets
			}
		}
	}
	return u, nil
}
