package egress

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

func TestBook(t *testing.T) {
	b := newBook()
	now := time.Unix(1000, 0)
	b.now = func() time.Time { now = now.Add(time.Second); return now }
	rule := forName("a.example.org", 443)
	name := sandbox.EgressDenial{Host: "a.example.org", Protocol: sandbox.DNS, Reason: sandbox.DeniedNoRule}
	addr := sandbox.EgressDenial{Addr: netip.MustParseAddr("203.0.113.5"), Port: 22, Protocol: sandbox.TCP, Reason: sandbox.DeniedNoRule}
	b.deny(name)
	b.deny(addr)
	before := b.list()
	withRule := name
	withRule.Rule, withRule.Count = &rule, 100 // which is not the caller's to say
	b.deny(withRule)
	withRule.Count, withRule.Last = 2, time.Unix(1003, 0)
	addr.Count, addr.Last = 1, time.Unix(1002, 0)
	if got, want := b.list(), []sandbox.EgressDenial{withRule, addr}; !reflect.DeepEqual(got, want) {
		t.Errorf("the book has\n  %s\nwant\n  %s", show(got), show(want))
	}
	since := sandbox.EgressDenialsSince(before, b.list())
	if len(since) != 1 || since[0].Count != 1 || since[0].Host != "a.example.org" {
		t.Errorf("since then it has\n  %s", show(since))
	}
}

func TestBookIsBounded(t *testing.T) {
	b := newBook()
	for i := range 10 * maxDenials {
		b.deny(sandbox.EgressDenial{Host: fmt.Sprintf("n%d.example.org", i), Protocol: sandbox.DNS, Reason: sandbox.DeniedNoRule})
		b.deny(sandbox.EgressDenial{Host: "same.example.org", Protocol: sandbox.DNS, Reason: sandbox.DeniedNoRule})
	}
	b.deny(sandbox.EgressDenial{Host: "late.example.org", Protocol: sandbox.TCP, Reason: sandbox.DeniedName})
	got := b.list()
	if len(got) != maxDenials+2 {
		t.Fatalf("the book has %d entries, want %d", len(got), maxDenials+2)
	}
	if d := got[maxDenials]; d.Host != "" || d.Protocol != sandbox.DNS || d.Count != 9*maxDenials+1 {
		t.Errorf("the others are %+v", d)
	}
	if d := got[1]; d.Host != "same.example.org" || d.Count != 10*maxDenials {
		t.Errorf("what was known is %+v", d)
	}
}

// Nothing that a guest sends stays longer than a name, or controls a terminal.
func TestBookIsPrintable(t *testing.T) {
	b := newBook()
	b.deny(sandbox.EgressDenial{Host: "\x1b[2J\r\n" + strings.Repeat("x", 10_000), Protocol: sandbox.TCP, Reason: sandbox.DeniedName})
	if got := b.list()[0].Host; len(got) > maxName+10 || strings.ContainsAny(got, "\x1b\r\n") {
		t.Errorf("the book has %q", got)
	}
}

func TestGuestName(t *testing.T) {
	for _, tt := range []struct {
		raw, want string
		ok        bool
	}{
		{"api.example.org", "api.example.org", true},
		{"API.Example.ORG", "api.example.org", true},
		{"xn--bcher-kva.example", "xn--bcher-kva.example", true},
		{raw: "bücher.example"}, {raw: "api.example.org."}, {raw: ""}, {raw: "."}, {raw: "a..b"}, {raw: "a b"}, {raw: "a\x00b"},
		{raw: "203.0.113.5"}, {raw: "0x7f.1"}, {raw: "::1"}, {raw: "ａpi.example.org"}, {raw: "api。example.org"}, {raw: "xn--a"},
		{raw: "*.example.org"}, {raw: strings.Repeat("a.", 200) + "org"}, {raw: "\u00ad" + "api.example.org"}, {raw: "\u212a.example"},
	} {
		if got, ok := guestName(tt.raw); ok != tt.ok || ok && got != tt.want {
			t.Errorf("guestName(%q) = %q, %t; want %q, %t", tt.raw, got, ok, tt.want, tt.ok)
		}
	}
}

func FuzzGuestName(f *testing.F) {
	f.Add("API.example.org")
	f.Add("bücher.example")
	f.Fuzz(func(t *testing.T, raw string) {
		name, ok := guestName(raw)
		if !ok {
			return
		}
		if name != strings.ToLower(raw) || len(name) > maxName {
			t.Errorf("%q is %q", raw, name)
		}
		if again, why := canonicalName(name); again != name || why != "" {
			t.Errorf("%q is not in its one form, but %q (%s)", name, again, why)
		}
	})
}
