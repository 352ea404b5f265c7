package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/emberd/emberd/internal/config"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/egress"
)

// egressSettings adds what sandboxes can be allowed to reach.
func egressSettings(t *config.Table, e *daemon.Egress) {
	f := t.Section("What sandboxes may reach")
	f.BoolVar(&e.On, "egress", e.On, "give a sandbox that asks for it a network interface, behind which it reaches what its policy allows")
	f.Var(&listValue[netip.Prefix]{(*[]netip.Prefix)(&e.Ranges), egress.ParseRange}, "egress-ranges", "private or reserved addresses that a policy may allow all the same: 10.1.0.0/16")
	f.Var(&listValue[netip.AddrPort]{&e.DNS, parseResolver}, "egress-dns", "resolvers to ask for the names that policies allow: ADDRESS[:PORT]; none takes those of /etc/resolv.conf")
	f.BoolVar(&e.IPv6, "egress-ipv6", e.IPv6, "let sandboxes reach IPv6 addresses")
	f.IntVar(&e.Limits.RateKiBps, "egress-rate-kib-s", e.Limits.RateKiBps, "KiB a second that may go through in each direction, for one sandbox; one may ask for less")
	f.IntVar(&e.Limits.TotalMiB, "egress-total-mib", e.Limits.TotalMiB, "MiB that may go through in all as long as a sandbox lives; one may ask for less")
}

// parseResolver reads an address with or without a port.
func parseResolver(text string) (netip.AddrPort, error) {
	const dns = 53
	at, err := netip.ParseAddrPort(text)
	if err != nil {
		var addr netip.Addr
		addr, err = netip.ParseAddr(strings.Trim(text, "[]"))
		at = netip.AddrPortFrom(addr, dns)
	}
	if err != nil || at.Port() == 0 || at.Addr().IsUnspecified() {
		return netip.AddrPort{}, fmt.Errorf("%q is no ADDRESS[:PORT] of a resolver", text)
	}
	return at, nil
}

// listValue is a list as the value of a flag, which can be given more than once.
type listValue[T fmt.Stringer] struct {
	list  *[]T
	parse func(string) (T, error)
}

func (v *listValue[T]) Type() string { return "strings" }

func (v *listValue[T]) String() string { return "[" + strings.Join(v.GetSlice(), ",") + "]" }

// Set adds what is between commas.
func (v *listValue[T]) Set(text string) error {
	for word := range strings.SplitSeq(text, ",") {
		if err := v.Append(word); err != nil {
			return err
		}
	}
	return nil
}

// Append, Replace and GetSlice make it a list, as files and the environment have
// it.
func (v *listValue[T]) Append(word string) error {
	value, err := v.parse(strings.TrimSpace(word))
	if err == nil {
		*v.list = append(*v.list, value)
	}
	return err
}

// Replace forgets what there was.
func (v *listValue[T]) Replace(all []string) error {
	*v.list = nil
	for _, word := range all {
		if err := v.Append(word); err != nil {
			return err
		}
	}
	return nil
}

// GetSlice returns the list as text.
func (v *listValue[T]) GetSlice() []string {
	if v.list == nil {
		return nil
	}
	words := make([]string, len(*v.list))
	for i, value := range *v.list {
		words[i] = value.String()
	}
	return words
}
