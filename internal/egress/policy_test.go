package egress

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/sandbox"
)

func TestCanonicalHost(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tt := range []struct{ in, want, why string }{
		{in: "api.example.org", want: "api.example.org"},
		{in: "API.Example.ORG", want: "api.example.org"},
		{in: "example.org.", want: "example.org"},
		{in: "*.Example.org.", want: "*.example.org"},
		{in: "bücher.example", want: "xn--bcher-kva.example"},
		{in: "BÜCHER.example", want: "xn--bcher-kva.example"},
		{in: "xn--bcher-kva.example", want: "xn--bcher-kva.example"},
		{in: "XN--BCHER-KVA.example", want: "xn--bcher-kva.example"},
		{in: "*.bücher.example", want: "*.xn--bcher-kva.example"},
		{in: "faß.example", want: "xn--fa-hia.example"},
		{in: "例え.テスト", want: "xn--r8jz45g.xn--zckzah"},
		{in: "example。org", want: "example.org"},
		{in: "ｅｘａｍｐｌｅ.org", want: "example.org"},
		{in: "1password.com", want: "1password.com"},
		{in: "a.3com", want: "a.3com"},
		{in: "intranet", want: "intranet"},
		{in: "*.com", want: "*.com"},
		{in: strings.Repeat(long+".", 3) + strings.Repeat("a", 61), want: strings.Repeat(long+".", 3) + strings.Repeat("a", 61)},

		{in: "", why: "no host name"},
		{in: ".", why: "no host name"},
		{in: "*.", why: `"*." is no host name`},
		{in: "*", why: "no host name"},
		{in: "*.*.example.org", why: "no host name"},
		{in: "a.*.example.org", why: "no host name"},
		{in: "*example.org", why: "no host name"},
		{in: "example.org..", why: "no host name"},
		{in: "a..b", why: "no host name"},
		{in: ".example.org", why: "no host name"},
		{in: "-a.example.org", why: "no host name"},
		{in: "a-.example.org", why: "no host name"},
		{in: "a_b.example.org", why: "no host name"},
		{in: "evil.org\x00.example.org", why: "no host name"},
		{in: "evil.org\n.example.org", why: "no host name"},
		{in: "ex ample.org", why: "no host name"},
		{in: "example.org:443", why: "no host name"},
		{in: "https://example.org", why: "no host name"},
		{in: "user@example.org", why: "no host name"},
		{in: "example.org/path", why: "no host name"},
		{in: "\xff.example.org", why: "no host name"},
		{in: "xn--a.example", why: "no host name"},
		{in: "a\u202eb.example", why: "no host name"},
		{in: "a." + long + "a.example", why: "no host name"},
		{in: strings.Repeat(long+".", 3) + strings.Repeat("a", 62), why: "no host name"},
		{in: strings.Repeat("a.", 4000), why: "too long"},
		{in: "203.0.113.7", why: "is an address"},
		{in: "203.0.113.7.", why: "is an address"},
		{in: "１２７.0.0.1", why: "is an address"},
		{in: "127.1", why: "is an address"},
		{in: "2130706433", why: "is an address"},
		{in: "0x7f000001", why: "is an address"},
		{in: "0x7F.1", why: "is an address"},
		{in: "example.0x1f", why: "is an address"},
		{in: "::1", why: "is an address"},
		{in: "[2001:db8::1]", why: "is an address"},
		{in: "fe80::1%eth0", why: "is an address"},
		{in: "*.203.0.113.7", why: "is an address"},
		{in: "localhost", why: "the sandbox itself"},
		{in: "LocalHost.", why: "the sandbox itself"},
		{in: "*.localhost", why: "the sandbox itself"},
		{in: "a.localhost", why: "the sandbox itself"},
	} {
		got, why := canonicalHost(tt.in)
		if got != tt.want || (tt.why == "") != (why == "") || !strings.Contains(why, tt.why) {
			t.Errorf("canonicalHost(%.40q) = %q, %q; want %q, %q", tt.in, got, why, tt.want, tt.why)
		}
		if strings.ContainsAny(why, "\x00\n") || len(why) > 400 {
			t.Errorf("%.40q is refused with %q", tt.in, why)
		}
	}
}

// reserved has an address of each range that is never reached, and the first and
// the last of some.
var reserved = []string{
	"0.0.0.0", "0.1.2.3", "10.0.0.0", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254",
	"169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.88.99.1", "192.168.1.1",
	"198.18.0.1", "198.19.255.255", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16",
	"::", "::1", "::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "100::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254",
	"fe80::1", "febf::1", "fec0::1", "feff::1", "ff02::1", "ff0e::1", "2001::1", "2001:2::1", "2001:20::1", "2002:a00:1::1",
	"4000::1", "5f00::1", "7fff::1", "8000::1",
	"::ffff:10.0.0.1", "::ffff:203.0.113.7", "::ffff:127.0.0.1", "fe80::1%eth0", "2001:db8::1%eth0",
}

var public = []string{
	"1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.1", "169.253.255.255",
	"172.15.255.255", "172.32.0.0", "192.0.1.1", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0",
	"203.0.113.7", "223.255.255.255", "168.63.129.15", "168.63.129.17", "2000::1", "2001:200::1", "2001:db8::1", "2003::1",
	"2606:4700::1", "3fff:ffff::1",
}

func TestForbiddenAddresses(t *testing.T) {
	for _, text := range reserved {
		if !Ranges(nil).forbids(netip.MustParseAddr(text)) {
			t.Errorf("%s may be reached", text)
		}
	}
	for _, text := range public {
		if Ranges(nil).forbids(netip.MustParseAddr(text)) {
			t.Errorf("%s may not be reached", text)
		}
	}
	if !(Ranges)(nil).forbids(netip.Addr{}) {
		t.Error("no address is one that may be reached")
	}
}

// The operator's word opens what it names, and nothing in disguise.
func TestOperatorsRanges(t *testing.T) {
	ranges := parse(t, "10.1.0.0/16", "fd00:1::/32", "127.0.0.0/8")
	for text, forbids := range map[string]bool{
		"10.1.0.1": false, "10.2.0.1": true, "fd00:1::1": false, "fd00:2::1": true, "127.0.0.1": false, "203.0.113.7": false,
		"::ffff:10.1.0.1": true, "::ffff:127.0.0.1": true, "fd00:1::1%eth0": true,
	} {
		if got := ranges.forbids(netip.MustParseAddr(text)); got != forbids {
			t.Errorf("forbids(%s) = %v", text, got)
		}
	}
	all := parse(t, "0.0.0.0/0", "::/0")
	for _, text := range []string{"::ffff:10.0.0.1", "::ffff:127.0.0.1"} {
		if !all.forbids(netip.MustParseAddr(text)) {
			t.Errorf("%s may be reached by an operator's ::/0", text)
		}
	}
}

func parse(t *testing.T, texts ...string) Ranges {
	t.Helper()
	var r Ranges
	for _, text := range texts {
		p, err := ParseRange(text)
		if err != nil {
			t.Fatal(err)
		}
		r = append(r, p)
	}
	return r
}

func TestParseRange(t *testing.T) {
	for text, want := range map[string]string{
		"203.0.113.0/24": "203.0.113.0/24", "203.0.113.7/24": "203.0.113.0/24", "203.0.113.7": "203.0.113.7/32",
		"2001:db8::/32": "2001:db8::/32", "2001:DB8::1": "2001:db8::1/128", "0.0.0.0/0": "0.0.0.0/0",
		"": "", "203.0.113.0/33": "", "203.0.113.0/-1": "", "203.0.113.0/024": "", "203.0.113/24": "", "0203.0.113.7": "", "fe80::1%eth0": "",
		"fe80::%eth0/64": "", "::ffff:10.0.0.0/104": "", "::ffff:10.0.0.1": "", "example.org": "", "203.0.113.0/24 ": "",
	} {
		got, err := ParseRange(text)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("ParseRange(%q) = %v, %v; want %q", text, got, err, want)
		}
	}
}

// One range of addresses can be asked for if every forbidden address in it is the
// operator's to give, whether it gave them in one piece or in several.
func TestOverlap(t *testing.T) {
	for _, tt := range []struct {
		asked  string
		ranges []string
		is     string
	}{
		{asked: "203.0.113.0/24"},
		{asked: "9.0.0.0/8"},
		{asked: "10.0.0.0/8", is: "10.0.0.0/8"},
		{asked: "10.1.2.3", is: "10.0.0.0/8"},
		{asked: "8.0.0.0/6", is: "10.0.0.0/8"},
		{asked: "0.0.0.0/0", is: "0.0.0.0/8"},
		{asked: "::/0", is: "::/3"},
		{asked: "168.0.0.0/8", is: "168.63.129.16/32"},
		{asked: "2000::/3", is: "2001::/23"},
		{asked: "2001:db8::/32"},
		{asked: "64:ff9b::/96", is: "::/3"},
		{asked: "fec0::/10", is: "8000::/1"},
		{asked: "10.1.0.0/16", ranges: []string{"10.0.0.0/8"}},
		{asked: "10.0.0.0/8", ranges: []string{"10.1.0.0/16"}, is: "10.0.0.0/8"},
		{asked: "10.0.0.0/8", ranges: []string{"10.0.0.0/9", "10.128.0.0/9"}},
		{asked: "10.0.0.0/8", ranges: []string{"10.0.0.0/9", "10.128.0.0/10", "10.192.0.0/10"}},
		{asked: "10.0.0.0/8", ranges: []string{"10.0.0.0/9", "10.192.0.0/10"}, is: "10.0.0.0/8"},
		{asked: "8.0.0.0/6", ranges: []string{"10.0.0.0/8"}},
		{asked: "8.0.0.0/6", ranges: []string{"10.0.0.0/9"}, is: "10.0.0.0/8"},
		{asked: "10.0.0.0/31", ranges: []string{"10.0.0.0", "10.0.0.1"}},
		{asked: "10.0.0.0/30", ranges: []string{"10.0.0.0", "10.0.0.1", "10.0.0.3"}, is: "10.0.0.0/8"},
		{asked: "fd00::/8", ranges: []string{"fd00::/9", "fd80::/9"}},
		{asked: "fd00::1", ranges: []string{"fd00::1"}},
		{asked: "0.0.0.0/0", ranges: []string{"0.0.0.0/0"}},
		{asked: "127.0.0.1", ranges: []string{"::/0"}, is: "127.0.0.0/8"},
	} {
		asked, err := ParseRange(tt.asked)
		if err != nil {
			t.Fatal(err)
		}
		got, is := parse(t, tt.ranges...).overlap(asked)
		if is != (tt.is != "") || is && got.String() != tt.is {
			t.Errorf("overlap(%s) with %v = %v, %v; want %q", tt.asked, tt.ranges, got, is, tt.is)
		}
	}
}

// Whatever random ranges the operator names: a range that overlaps nothing
// forbidden has no address that is.
func TestOverlapAgreesWithForbids(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	address := func() netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(random.IntN(4)), byte(random.IntN(256)), byte(random.IntN(256))})
	}
	for range 2000 {
		var ranges Ranges
		for range random.IntN(6) {
			ranges = append(ranges, netip.PrefixFrom(address(), 7+random.IntN(26)).Masked())
		}
		asked := netip.PrefixFrom(address(), 20+random.IntN(13)).Masked()
		_, is := ranges.overlap(asked)
		some := false
		for a := asked.Addr(); asked.Contains(a); a = a.Next() {
			some = some || ranges.forbids(a)
		}
		if is != some {
			t.Fatalf("overlap(%v) with %v is %v, but that it holds a forbidden address is %v", asked, ranges, is, some)
		}
	}
}

func host(name string, ports ...uint16) sandbox.EgressRule {
	return sandbox.EgressRule{Host: name, Ports: ports}
}

func cidr(text string, ports ...uint16) sandbox.EgressRule {
	return sandbox.EgressRule{CIDR: netip.MustParsePrefix(text), Ports: ports}
}

func TestResolve(t *testing.T) {
	over := func(n int) []uint16 {
		ports := make([]uint16, n)
		for i := range ports {
			ports[i] = uint16(i + 1)
		}
		return ports
	}
	defaults := sandbox.Egress{RateKiBps: 1000, TotalMiB: 100}
	for _, tt := range []struct {
		name  string
		asked sandbox.Egress
		want  string // as JSON
		err   string
	}{
		{name: "nothing", want: `{"allow":[],"rate_kib_s":1000,"total_mib":100}`},
		{name: "a host", asked: allow(host("API.example.org.")),
			want: `{"allow":[{"host":"api.example.org","ports":[80,443],"protocol":"tcp"}],"rate_kib_s":1000,"total_mib":100}`},
		{name: "ports in order and once", asked: allow(host("a.b", 443, 22, 443, 22, 1, 65535)),
			want: `{"allow":[{"host":"a.b","ports":[1,22,443,65535],"protocol":"tcp"}],"rate_kib_s":1000,"total_mib":100}`},
		{name: "a range, all ports", asked: allow(cidr("203.0.113.9/24")),
			want: `{"allow":[{"cidr":"203.0.113.0/24","protocol":"tcp"}],"rate_kib_s":1000,"total_mib":100}`},
		{name: "an empty list of ports is none", asked: allow(sandbox.EgressRule{CIDR: netip.MustParsePrefix("203.0.113.0/24"), Ports: []uint16{}}),
			want: `{"allow":[{"cidr":"203.0.113.0/24","protocol":"tcp"}],"rate_kib_s":1000,"total_mib":100}`},
		{name: "duplicates", asked: allow(host("a.b"), host("A.B.", 443, 80), host("a.b", 80), cidr("203.0.113.1/24"), cidr("203.0.113.2/24")),
			want: `{"allow":[{"host":"a.b","ports":[80,443],"protocol":"tcp"},{"host":"a.b","ports":[80],"protocol":"tcp"},{"cidr":"203.0.113.0/24","protocol":"tcp"}],"rate_kib_s":1000,"total_mib":100}`},
		{name: "UDP beside TCP", asked: allow(host("a.b", 53), sandbox.EgressRule{Host: "a.b", Ports: []uint16{53}, Protocol: sandbox.UDP}),
			want: `{"allow":[{"host":"a.b","ports":[53],"protocol":"tcp"},{"host":"a.b","ports":[53],"protocol":"udp"}],"rate_kib_s":1000,"total_mib":100}`},
		{name: "limits", asked: sandbox.Egress{RateKiBps: 1, TotalMiB: 100}, want: `{"allow":[],"rate_kib_s":1,"total_mib":100}`},
		{name: "as many ports as there may be", asked: allow(host("a.b", over(MaxPorts)...)), want: `"ports":[1,2,3,`},
		{name: "as many rules as there may be", asked: sandbox.Egress{Allow: make1000(MaxRules)}, want: `{"host":"h999.example.org"`},

		{name: "10,000 rules", asked: sandbox.Egress{Allow: make1000(10_000)}, err: "egress has 10000 rules; it can have 1000 at most"},
		{name: "port 0", asked: allow(host("a.b", 443, 0)), err: "egress: rule 1: port 0; ports go from 1 to 65535"},
		{name: "too many ports", asked: allow(host("a.b"), cidr("203.0.113.0/24", over(MaxPorts+1)...)), err: "egress: rule 2: it has 33 ports; it can have 32 at most"},
		{name: "no rule", asked: allow(sandbox.EgressRule{}), err: "egress: rule 1: it has neither host nor cidr"},
		{name: "two in one", asked: allow(sandbox.EgressRule{Host: "a.b", CIDR: netip.MustParsePrefix("203.0.113.0/24")}), err: "both host and cidr"},
		{name: "no name", asked: allow(host("a b")), err: `egress: rule 1: "a b" is no host name`},
		{name: "no such protocol", asked: allow(sandbox.EgressRule{Host: "a.b", Protocol: "TCP"}), err: `protocol is "TCP"; it can be "tcp" or "udp"`},
		{name: "the words of denials", asked: allow(sandbox.EgressRule{Host: "a.b", Protocol: sandbox.DNS}), err: `protocol is "dns"`},
		{name: "loopback", asked: allow(cidr("127.0.0.1/32")), err: "has addresses of 127.0.0.0/8, which sandboxes may not reach unless emberd's --egress-ranges allows it"},
		{name: "metadata", asked: allow(cidr("169.254.169.254/32", 80)), err: "169.254.0.0/16"},
		{name: "everything", asked: allow(cidr("0.0.0.0/0")), err: "0.0.0.0/8"},
		{name: "IPv4 as IPv6", asked: allow(cidr("::ffff:203.0.113.0/120")), err: "IPv4 written as IPv6"},
		{name: "a negative rate", asked: sandbox.Egress{RateKiBps: -1}, err: "egress: rate_kib_s is -1; it can be 1 to 1000"},
		{name: "more than the operator grants", asked: sandbox.Egress{TotalMiB: 101}, err: "egress: total_mib is 101; it can be 1 to 100"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Ranges(nil).Resolve(tt.asked, defaults)
			if tt.err != "" {
				if code, msg := sandbox.Public(err); code != sandbox.CodeInvalid || !strings.Contains(msg, tt.err) {
					t.Errorf("got %v, want %s", err, tt.err)
				}
				return
			}
			text, _ := json.Marshal(got)
			if err != nil || !strings.Contains(string(text), tt.want) {
				t.Errorf("got %s, %v; want %s", text, err, tt.want)
			}
			again, err := Ranges(nil).Resolve(got, defaults)
			if err != nil || !reflect.DeepEqual(again, got) {
				t.Errorf("resolved again it is %+v, %v; was %+v", again, err, got)
			}
			var read sandbox.Egress
			if err := json.Unmarshal(text, &read); err != nil || !reflect.DeepEqual(read, got) {
				t.Errorf("from its record it is %+v, %v; was %+v", read, err, got)
			}
		})
	}
	if _, err := Ranges(nil).Resolve(sandbox.Egress{RateKiBps: MaxRateKiBps + 1}, sandbox.Egress{}); err == nil {
		t.Error("a rate that nothing has is granted")
	}
	for text, e := range map[string]sandbox.Egress{
		"rate_kib_s": {RateKiBps: MaxRateKiBps + 1}, "total_mib": {TotalMiB: -1}, "": {RateKiBps: MaxRateKiBps, TotalMiB: MaxTotalMiB},
	} {
		if err := CheckLimits(e); (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("CheckLimits(%+v) = %v", e, err)
		}
	}
}

func allow(rules ...sandbox.EgressRule) sandbox.Egress { return sandbox.Egress{Allow: rules} }

// make1000 returns that many different rules.
func make1000(n int) []sandbox.EgressRule {
	rules := make([]sandbox.EgressRule, n)
	for i := range rules {
		rules[i] = host(fmt.Sprintf("h%d.example.org", i))
	}
	return rules
}

func TestPolicy(t *testing.T) {
	asked := allow(
		host("example.org"), host("*.example.com"), host("*.deep.example.com", 22), host("both.example.com", 8080),
		sandbox.EgressRule{Host: "example.org", Ports: []uint16{123}, Protocol: sandbox.UDP},
		cidr("203.0.113.0/24", 5432), cidr("203.0.113.128/25", 22, 80), cidr("2001:db8::/32"), cidr("10.1.0.0/16", 443),
	)
	ranges := parse(t, "10.1.0.0/16")
	resolved, err := ranges.Resolve(asked, sandbox.Egress{})
	if err != nil {
		t.Fatal(err)
	}
	p := newPolicy(resolved, ranges)
	for _, tt := range []struct {
		name  string
		proto sandbox.Protocol
		port  uint16
		want  bool
	}{
		{"example.org", sandbox.TCP, 443, true},
		{"example.org", sandbox.TCP, 80, true},
		{"example.org", sandbox.TCP, 8080, false},
		{"example.org", sandbox.UDP, 443, false},
		{"example.org", sandbox.UDP, 123, true},
		{"www.example.org", sandbox.TCP, 443, false},
		{"notexample.org", sandbox.TCP, 443, false},
		{"example.org.evil.test", sandbox.TCP, 443, false},
		{"org", sandbox.TCP, 443, false},
		{"example.com", sandbox.TCP, 443, false},
		{"a.example.com", sandbox.TCP, 443, true},
		{"a.b.c.example.com", sandbox.TCP, 443, true},
		{"notexample.com", sandbox.TCP, 443, false},
		{"example.com.evil.test", sandbox.TCP, 443, false},
		{"com", sandbox.TCP, 443, false},
		{"deep.example.com", sandbox.TCP, 22, false},
		{"a.deep.example.com", sandbox.TCP, 22, true},
		{"a.deep.example.com", sandbox.TCP, 443, true},
		{"both.example.com", sandbox.TCP, 443, true},
		{"both.example.com", sandbox.TCP, 8080, true},
		{"*.example.com", sandbox.TCP, 443, true}, // never asked for: canonicalName refuses it
		{"", sandbox.TCP, 443, false},
		{".", sandbox.TCP, 443, false},
		{"203.0.113.1", sandbox.TCP, 5432, false},
	} {
		if got := p.allowsName(tt.name, tt.proto, tt.port); got != tt.want {
			t.Errorf("allowsName(%q, %s, %d) = %v", tt.name, tt.proto, tt.port, got)
		}
	}
	for _, tt := range []struct {
		addr  string
		proto sandbox.Protocol
		port  uint16
		want  bool
	}{
		{"203.0.113.1", sandbox.TCP, 5432, true},
		{"203.0.113.1", sandbox.TCP, 22, false},
		{"203.0.113.200", sandbox.TCP, 5432, true},
		{"203.0.113.200", sandbox.TCP, 22, true},
		{"203.0.113.200", sandbox.UDP, 22, false},
		{"203.0.112.255", sandbox.TCP, 5432, false},
		{"::ffff:203.0.113.1", sandbox.TCP, 5432, false},
		{"2001:db8::7", sandbox.TCP, 1, true},
		{"2001:db8::7", sandbox.TCP, 65535, true},
		{"2001:db9::7", sandbox.TCP, 1, false},
		{"10.1.2.3", sandbox.TCP, 443, true},
		{"10.2.2.3", sandbox.TCP, 443, false},
	} {
		if got := p.allowsAddr(netip.MustParseAddr(tt.addr), tt.proto, tt.port); got != tt.want {
			t.Errorf("allowsAddr(%s, %s, %d) = %v", tt.addr, tt.proto, tt.port, got)
		}
	}
	// A range that the operator has taken back since is reached no more.
	if newPolicy(resolved, nil).allowsAddr(netip.MustParseAddr("10.1.2.3"), sandbox.TCP, 443) {
		t.Error("a record allows more than the operator does")
	}
	if rules := p.rulesFor("a.deep.example.com"); len(rules) != 2 {
		t.Errorf("overlapping rules: %v", rules)
	}
}

// FuzzCanonicalName checks that a name has one form, in which every resolver takes
// it, and that what is no name is refused in words that can be printed.
func FuzzCanonicalName(f *testing.F) {
	for _, s := range []string{
		"api.example.org", "API.Example.ORG.", "bücher.example", "*.example.org", "xn--bcher-kva.example", "127.1", "0x7f.1", "::1",
		"a\x00.b", "a。b", "\xff", "faß.de", "a..b", "-a.b", strings.Repeat("a", 64) + ".b", "１２７.0.0.1", "ß.1", "ab\u200dc.d",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, why := canonicalName(in)
		if (got == "") != (why != "") {
			t.Fatalf("%q: %q and %q", in, got, why)
		}
		if why != "" {
			if strings.ContainsFunc(why, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(why) > 500 {
				t.Fatalf("%q is refused with %q", in, why)
			}
			return
		}
		if again, _ := canonicalName(got); again != got {
			t.Fatalf("%q has the forms %q and %q", in, got, again)
		}
		if again, _ := canonicalName(strings.ToUpper(got) + "."); again != got {
			t.Fatalf("%q has the forms %q and %q", in, got, again)
		}
		if len(got) > maxName || strings.Trim(got, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" {
			t.Fatalf("%q has the form %q", in, got)
		}
		for label := range strings.SplitSeq(got, ".") {
			if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
				t.Fatalf("%q has the form %q", in, got)
			}
		}
		if _, err := netip.ParseAddr(got); err == nil {
			t.Fatalf("%q is the address %s", in, got)
		}
	})
}

// FuzzResolve checks that what is granted is in its one form, asks for no forbidden
// address, and that what is not is the client's fault.
func FuzzResolve(f *testing.F) {
	for _, s := range []string{
		`{"allow":[{"host":"api.example.org","ports":[443]},{"host":"*.example.com"},{"cidr":"203.0.113.0/24","ports":[5432],"protocol":"tcp"}]}`,
		`{"allow":[{"cidr":"10.0.0.0/8"}]}`, `{"allow":[{"cidr":"::ffff:10.0.0.0/104"}]}`, `{"rate_kib_s":-1}`, `{"allow":[{"host":"a","ports":[0,65535]}]}`,
		`{"allow":[{"cidr":"10.1.0.0/17"},{"cidr":"10.1.128.0/17"}],"total_mib":7}`,
	} {
		f.Add(s)
	}
	ranges := Ranges{netip.MustParsePrefix("10.1.0.0/17"), netip.MustParsePrefix("10.1.128.0/17")}
	f.Fuzz(func(t *testing.T, text string) {
		var asked sandbox.Egress
		if json.Unmarshal([]byte(text), &asked) != nil {
			return
		}
		got, err := ranges.Resolve(asked, sandbox.Egress{})
		if err != nil {
			if code, _ := sandbox.Public(err); code != sandbox.CodeInvalid {
				t.Fatalf("error of code %s: %v", code, err)
			}
			return
		}
		if again, err := ranges.Resolve(got, sandbox.Egress{}); err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("%s: resolved again %+v, %v; was %+v", text, again, err, got)
		}
		p := newPolicy(got, ranges)
		for _, rule := range got.Allow {
			if rule.Host != "" {
				name := strings.Replace(rule.Host, wildcard, "sub.", 1)
				if !p.allowsName(name, rule.Protocol, rule.Ports[0]) {
					t.Fatalf("%s: %+v does not allow %s", text, rule, name)
				}
				continue
			}
			last := rule.CIDR.Addr()
			for bits := range rule.CIDR.Addr().BitLen() - rule.CIDR.Bits() {
				raw := last.AsSlice()
				raw[len(raw)-1-bits/8] |= 1 << (bits % 8)
				last, _ = netip.AddrFromSlice(raw)
			}
			for _, addr := range []netip.Addr{rule.CIDR.Addr(), last} {
				if ranges.forbids(addr) || !p.allowsAddr(addr, rule.Protocol, slices.Concat(rule.Ports, []uint16{1})[0]) {
					t.Fatalf("%s: %+v and %s", text, rule, addr)
				}
			}
		}
	})
}
